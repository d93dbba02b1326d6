"""Inputs: every form of the API's `input` is understood, and every mistake is named before anything is sent."""

from __future__ import annotations

import array
import itertools
import json
from collections import OrderedDict, deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.errors import ConfigError, InvalidInput
from embcache.inputs import Inputs, in_batches, masks, read_inputs
from embcache.types import Ask
from embcache.wire import encode_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)


class Word(str):
    """A str with something more, as frameworks have them."""

    __slots__ = ()


class Colour(StrEnum):
    RED = "red"


class Column:
    """A column of a table, as far as pandas has it in common with others."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __iter__(self) -> Iterator[object]:
        return (np.array([value])[0] for value in self.values)

    def tolist(self) -> list[object]:
        return list(self.values)


def name(value: object) -> str:
    """What a test is called after, the same in every process."""
    told = repr(value)[:60]
    return type(value).__name__ if " at 0x" in told else told


def read(given: object) -> Inputs:
    """Read inputs, all of them checked as if all were to be sent."""
    inputs = read_inputs(given)
    inputs.check(range(len(inputs.items)))
    return inputs


def payloads(inputs: Inputs) -> list[bytes]:
    return inputs.payloads(range(len(inputs.items)))


def sent(inputs: Inputs) -> object:
    """What these inputs are in a request, as a server reads it."""
    body = encode_request(Ask(inputs.items, "m", "float", None, {}, 1.0))
    return json.loads(body)["input"]


@pytest.mark.parametrize(
    ("given", "items", "single"),
    [
        ("one text", ["one text"], True),
        (" \t\n", [" \t\n"], True),
        ("\0", ["\0"], True),
        (["one"], ["one"], False),
        (["b", "a", "b"], ["b", "a", "b"], False),
        (("a", "b"), ["a", "b"], False),
        ((text for text in ("a", "b")), ["a", "b"], False),
        (iter(["a"]), ["a"], False),
        (map(str.upper, ("a", "b")), ["A", "B"], False),
        (deque(["a", "b"]), ["a", "b"], False),
        ({"x": "a", "y": "b"}.values(), ["a", "b"], False),
        (np.array(["a", "bcd"]), ["a", "bcd"], False),
        (np.array(["a", "bcd"], dtype=object), ["a", "bcd"], False),
        (Column("a", "b"), ["a", "b"], False),
        (list(np.array(["a", "bcd"])), ["a", "bcd"], False),
        (np.str_("a"), ["a"], True),
        (Word("a"), ["a"], True),
        ([Word("a"), "b"], ["a", "b"], False),
        ([Colour.RED], ["red"], False),
        ([], [], False),
        ((), [], False),
        (iter(()), [], False),
        (np.array([]), [], False),
    ],
    ids=name,
)
def test_texts(given: object, items: list[str], single: bool) -> None:
    """A text, and any iterable of texts, in order and verbatim; what is sent is what is hashed, as plain str."""
    inputs = read(given)
    assert (inputs.kind, inputs.single) == ("text", single)
    assert list(inputs.items) == items
    assert all(type(item) is str for item in inputs.items)
    assert payloads(inputs) == [item.encode() for item in items]
    assert sent(inputs) == items


@pytest.mark.parametrize(
    ("given", "items", "single"),
    [
        ([1, 2, 3], [[1, 2, 3]], True),
        ([0], [[0]], True),
        ([2**32 - 1], [[2**32 - 1]], True),
        ((1, 2), [[1, 2]], True),
        (range(3), [[0, 1, 2]], True),
        (iter([1, 2]), [[1, 2]], True),
        (array.array("I", [1, 2]), [[1, 2]], True),
        (np.array([1, 2, 3]), [[1, 2, 3]], True),
        (list(np.array([1, 2, 3])), [[1, 2, 3]], True),
        (Column(1, 2), [[1, 2]], True),
        ([1] * 8192, [[1] * 8192], True),
        ([[1, 2, 3]], [[1, 2, 3]], False),
        ([[1], [2, 3]], [[1], [2, 3]], False),
        (((1,), (2, 3)), [[1], [2, 3]], False),
        ([range(2), (2, 3)], [[0, 1], [2, 3]], False),
        ([iter([1]), iter([2, 3])], [[1], [2, 3]], False),
        (np.array([[1, 2], [3, 4]], dtype=np.uint16), [[1, 2], [3, 4]], False),
        ([np.array([1]), np.array([2, 3])], [[1], [2, 3]], False),
        ([list(np.array([1, 2]))], [[1, 2]], False),
    ],
    ids=name,
)
def test_token_ids(given: object, items: list[list[int]], single: bool) -> None:
    """A list of ids is ONE input, a list of lists many, whatever they are lists of; they are sent as plain numbers."""
    inputs = read(given)
    assert (inputs.kind, inputs.single) == ("tokens", single)
    assert list(inputs.items) == items
    assert all(type(token) is int for item in inputs.items for token in item)
    assert payloads(inputs) == [np.array(item, dtype="<u4").tobytes() for item in items]
    assert sent(inputs) == items


NO_IDS: list[int] = []
NO_INPUTS: list[object] = [
    None,
    7,
    1.5,
    True,
    object(),
    b"bytes",
    bytearray(b"bytes"),
    memoryview(b"bytes"),
    {"a": "text"},
    OrderedDict[str, str](a="text"),
    {"a"},
    frozenset({"a"}),
    {"a": "text"}.keys(),
    np.array(1),
    np.int64(1),
]


@pytest.mark.parametrize("given", NO_INPUTS, ids=name)
def test_no_inputs_at_all(given: object) -> None:
    """What is no sequence of inputs, or one without an order, is refused as a whole, and told what to give."""
    with pytest.raises(InvalidInput, match="list of token ids") as caught:
        read(given)
    assert caught.value.indexes == ()
    assert type(given).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("given", "indexes"),
    [
        (["a", 1], (1,)),
        (["a", None, "b", None], (1, 3)),
        ([None, "a"], (0,)),
        ([1, "a", 2], (1,)),
        ([1, [2]], (1,)),
        ([[1], "a", 2], (1, 2)),
        (["a", ["b"]], (1,)),
        (["a", b"b"], (1,)),
        ([b"b"], (0,)),
        ([1.5, 2.5], (0, 1)),
        ([1, 2.0], (1,)),
        ([True, False], (0, 1)),
        ([1, True], (1,)),
        ([{"a": 1}], (0,)),
        ([[1], {2}], (1,)),
        ([None], (0,)),
        (np.array([1.5, 2.5]), (0, 1)),
        ([np.float64(1)], (0,)),
        ([np.bool_(True)], (0,)),
        (["a", np.float64("nan")], (1,)),
        (Column("a", float("nan")), (1,)),
    ],
    ids=name,
)
def test_mixed_inputs(given: object, indexes: tuple[int, ...]) -> None:
    """Inputs of different or unknown kinds are refused, and those that do not go with the first are named."""
    with pytest.raises(InvalidInput, match="neither all texts nor all token ids") as caught:
        read(given)
    assert caught.value.indexes == indexes


@pytest.mark.parametrize(
    ("given", "indexes"),
    [
        ("", (0,)),
        ([""], (0,)),
        (["a", "", "b", ""], (1, 3)),
        ([NO_IDS], (0,)),
        ([[1], NO_IDS, [2], NO_IDS], (1, 3)),
        (np.empty((2, 0), dtype=int), (0, 1)),
    ],
    ids=name,
)
def test_empty_inputs(given: object, indexes: tuple[int, ...]) -> None:
    """An empty text or list of ids is refused, as the API would refuse the whole request for it."""
    with pytest.raises(InvalidInput, match="empty") as caught:
        read(given)
    assert caught.value.indexes == indexes


@pytest.mark.parametrize(
    ("given", "indexes"), [("\ud800", (0,)), (["a", "secret\udfff", "b", "\ud83d"], (1, 3)), ([Word("\ud800")], (0,))]
)
def test_lone_surrogates(given: object, indexes: tuple[int, ...]) -> None:
    """A lone surrogate is no text and is refused; the message names the input and quotes nothing of it."""
    with pytest.raises(InvalidInput, match="surrogate") as caught:
        read(given)
    assert caught.value.indexes == indexes
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "indexes"),
    [
        ([-1], (0,)),
        ([1, 2**32], (0,)),
        ([[1], [-1], [2], [2**64]], (1, 3)),
        ([[1], [True]], (1,)),
        ([[1.0]], (0,)),
        ([["a"]], (0,)),
        ([[1], [[2]]], (1,)),
        ([[None]], (0,)),
        (np.array([-1, 2]), (0,)),
        (np.array([[[1]]]), (0,)),
    ],
    ids=name,
)
def test_wrong_token_ids(given: object, indexes: tuple[int, ...]) -> None:
    """Token ids are whole numbers that fit into four bytes."""
    with pytest.raises(InvalidInput, match="whole numbers from 0 to 4294967295") as caught:
        read(given)
    assert caught.value.indexes == indexes


@pytest.mark.parametrize(
    ("given", "indexes"), [([1] * 8193, (0,)), ([[1] * 8192, [2] * 8193, [3]], (1,))], ids=["one", "many"]
)
def test_too_many_token_ids(given: object, indexes: tuple[int, ...]) -> None:
    """More than 8192 ids in an input are refused, just as many are not."""
    with pytest.raises(InvalidInput, match="8192") as caught:
        read(given)
    assert caught.value.indexes == indexes


def test_a_callers_mistake_is_a_value_error() -> None:
    """Whoever catches ValueError catches InvalidInput, and its message names the inputs, the first ten of many."""
    with pytest.raises(ValueError, match="inputs 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more: empty"):
        read([""] * 15)
    with pytest.raises(ValueError, match="input 1: empty"):
        read(["a", ""])


def test_only_what_is_sent_is_checked() -> None:
    """Texts are checked where they are about to be sent, and named by their place among all; token ids always are."""
    inputs = read_inputs(["", "a", "\ud800", ""])
    inputs.check([1])
    assert inputs.payloads([1]) == [b"a"]
    with pytest.raises(InvalidInput) as caught:
        inputs.check([1, 3])
    assert caught.value.indexes == (3,)
    with pytest.raises(InvalidInput) as caught:
        inputs.check([1, 2])
    assert caught.value.indexes == (2,)
    with pytest.raises(InvalidInput):
        read_inputs([NO_IDS])
    assert read_inputs([[1], [2], [3]]).payloads([2, 0]) == [b"\x03\0\0\0", b"\x01\0\0\0"]


# What is too much for one call


@given(st.lists(TEXTS) | st.lists(IDS), st.integers(1, 4))
def test_in_batches(items: list[Any], size: int) -> None:
    """Any iterable comes in batches of the given size, the last one smaller, each knowing how many came before it."""
    batches = list(in_batches(iter(items), size))
    assert [list(batch.items) for batch in batches] == [
        items[start : start + size] for start in range(0, len(items), size)
    ]
    assert [batch.offset for batch in batches] == list(range(0, len(items), size))
    assert not any(batch.single for batch in batches)


def test_batches_are_read_as_they_are_needed() -> None:
    """An iterable may be endless: no more of it is read than what was asked for."""
    source = itertools.count()
    batches = in_batches((f"text {number}" for number in source), 3)
    assert [list(next(batches).items) for _ in range(2)] == [
        [f"text {n}" for n in range(start, start + 3)] for start in (0, 3)
    ]
    assert next(source) == 6


@pytest.mark.parametrize(
    ("given", "indexes"),
    [
        (["a", "b", "c", "d", 1], (4,)),
        (["a", "b", None, "d"], (2,)),
        ([[1], [2], [3], NO_IDS], (3,)),
        ([[1], [2], [-1]], (2,)),
        ([1, 2, 3], (0,)),
        ([[1], [2], 3, 4], (2,)),
    ],
    ids=name,
)
def test_mistakes_in_batches(given: list[object], indexes: tuple[int, ...]) -> None:
    """A wrong input is named by its place in all that is iterated over, and what came before it has been given."""
    taken: list[object] = []
    with pytest.raises(InvalidInput) as caught:
        taken.extend(item for batch in in_batches(given, 2) for item in batch.items)
    assert caught.value.indexes == indexes
    assert taken == given[: indexes[0] // 2 * 2]


def test_mistakes_that_are_found_later() -> None:
    """A text that cannot be sent is named by its place among all, too."""
    *_, last = in_batches(["a", "b", "c", "", "e", "\ud800", ""], 4)
    with pytest.raises(InvalidInput, match="empty") as caught:
        last.check(range(3))
    assert caught.value.indexes == (6,)
    with pytest.raises(InvalidInput, match="surrogate") as caught:
        last.check(range(2))
    assert caught.value.indexes == (5,)


@pytest.mark.parametrize("given", [*NO_INPUTS, "a text"], ids=name)
def test_nothing_to_iterate_over(given: object) -> None:
    """What is no iterable of inputs is refused, and so is a text, whose letters nobody means."""
    with pytest.raises(InvalidInput):
        next(in_batches(given, 2))


@pytest.mark.parametrize(("errors", "masked"), [("raise", False), ("mask", True)])
def test_what_to_do_about_refused_inputs(errors: str, masked: bool) -> None:
    """Refused inputs are raised or masked."""
    assert masks(errors) == masked


@pytest.mark.parametrize("errors", ["", "Mask", "ignore", None, True])
def test_anything_else_to_do(errors: object) -> None:
    """There is no third way."""
    with pytest.raises(ConfigError, match="errors"):
        masks(errors)


def replace_first(given: list[Any]) -> None:
    given[0] = given[-1]


def extend_first(given: list[list[int]]) -> None:
    given[0].append(3)


def fill(given: np.ndarray[Any, Any]) -> None:
    given[...] = given.flat[-1]


@pytest.mark.parametrize(
    ("given", "change"),
    [
        (["a", "b"], replace_first),
        (["a", "b"], list[str].clear),
        ([1, 2], replace_first),
        ([[1], [2]], replace_first),
        ([[1], [2]], extend_first),
        (np.array([[1], [2]]), fill),
        (np.array(["a", "b"], dtype=object), fill),
    ],
)
def test_inputs_are_a_copy(given: object, change: Callable[[object], None]) -> None:
    """What the caller does to its list meanwhile changes nothing: what is hashed, sent and remembered is one thing."""
    inputs = read(given)
    before = json.dumps(inputs.items), list(inputs.names), payloads(inputs)
    change(given)
    assert (json.dumps(inputs.items), list(inputs.names), payloads(inputs)) == before


@given(st.lists(TEXTS, min_size=1) | st.lists(IDS, min_size=1))
def test_names(items: list[Any]) -> None:
    """Two inputs have the same name just where they have the same bytes, which is where they are equal."""
    inputs = read(items)
    for one, first in enumerate(items):
        for other, second in enumerate(items):
            assert (inputs.names[one] == inputs.names[other]) == (first == second)
            assert (payloads(inputs)[one] == payloads(inputs)[other]) == (first == second)


def test_only_equal_texts_are_equal() -> None:
    """Texts are told apart as they are: by case, by white space, by normal form."""
    inputs = read(["a", "A", "a ", " a", "\u00e9", "e\u0301", "a"])
    assert len(set(inputs.names)) == len(set(payloads(inputs))) == 6


def as_array(value: object) -> object:
    """The same as an array, where NumPy makes one of it."""
    try:
        return np.array(value)
    except ValueError:  # lists of different lengths, bytes that are not ASCII
        return value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | inner.map(as_array)
        ),
        max_leaves=6,
    )
)
def test_anything_else(given: object) -> None:
    """Whatever is given is understood and can be sent, or refused as a caller's mistake."""
    try:
        inputs = read(given)
    except InvalidInput:
        return
    assert sent(inputs) == list(inputs.items)
    assert all(payloads(inputs))
