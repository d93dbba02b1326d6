"""What a caller may not hand over: named by its index, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import InvalidInput

from tests import twins

if TYPE_CHECKING:
    from tests.twins import Bench

bench = twins.bench

WRONG: dict[str, tuple[Any, tuple[int, ...]]] = {
    "an empty string": ("", (0,)),
    "empty strings among others": (["a", "", "b", ""], (1, 3)),
    "an array with an empty string": (np.array(["a", ""]), (1,)),
    "a number among texts": (["a", 1], (1,)),
    "a text among ids": ([1, "a", 2], (1,)),
    "a list of ids among texts": (["a", [1], "b"], (1,)),
    "an id among lists of ids": ([[1], 2], (1,)),
    "a text among lists of ids": ([[1], "a"], (1,)),
    "bytes": (b"a", ()),
    "a bytearray": (bytearray(b"a"), ()),
    "a memoryview": (memoryview(b"a"), ()),
    "bytes among texts": (["a", b"b"], (1,)),
    "an array of bytes": (np.array([b"a", b"b"]), (0, 1)),
    "a mapping": ({"a": 1}, ()),
    "a mapping among texts": (["a", {"b": 1}], (1,)),
    "a set": ({"a"}, ()),
    "a frozen set": (frozenset({1}), ()),
    "keys of a mapping": ({"a": 1}.keys(), ()),
    "a set among lists of ids": ([[1], {2}], (1,)),
    "a lone surrogate": ("\ud800", (0,)),
    "lone surrogates among others": (["a", "b\udfff", "c", "\udc80d"], (1, 3)),
    "too many ids": (list(range(8193)), (0,)),
    "too many ids in one of several": ([[1], [7] * 8193], (1,)),
    "a negative id": ([1, -1], (0,)),
    "a negative id in one of several": ([[1], [2], [-3]], (2,)),
    "an id beyond 32 bits": ([[1], [2**32]], (1,)),
    "a boolean": ([True], (0,)),
    "booleans": ([[1], [1, True]], (1,)),
    "an array of booleans": (np.array([True, False]), (0, 1)),
    "no ids": ([[]], (0,)),
    "no ids in one of several": ([[1], [], [2], []], (1, 3)),
    "nothing": (None, ()),
    "nothing among texts": (["a", None], (1,)),
    "nothing in a list": ([None, None], (0, 1)),
    "a number": (7, ()),
    "a NumPy number": (np.int64(7), ()),
    "NumPy fractions": ([np.float64(1.5)], (0,)),
    "a fraction": ([[1], [1.5]], (1,)),
    "an array of fractions": (np.array([1.0, 2.0]), (0, 1)),
    "an array that is no list": (np.array("a"), ()),
    "texts within a list": ([["a"]], (0,)),
    "ids too deep": ([[1], [[2]]], (1,)),
    "an array too deep": (np.zeros((1, 2, 2), dtype=int), (0,)),
    "an object": (object(), ()),
}


@pytest.mark.parametrize(("wrong", "indexes"), WRONG.values(), ids=WRONG)
def test_wrong_inputs(bench: Bench, wrong: object, indexes: tuple[int, ...]) -> None:
    """What cannot be embedded is an `InvalidInput`, a ValueError, with all its indexes; nothing is sent."""
    with bench.open() as embedder:
        for method in (embedder.embed, embedder.embed_result, embedder.forget):
            with pytest.raises(InvalidInput) as caught:
                method(wrong)
            assert caught.value.indexes == indexes
            assert isinstance(caught.value, ValueError)
            assert all(str(index) in str(caught.value) for index in indexes)
        session = embedder.session
    assert bench.server.requests == []
    assert (session.requests, session.misses) == (0, 0)


def test_many_wrong_inputs(bench: Bench) -> None:
    """All indexes are in the error, and ten of them in its message."""
    with bench.open() as embedder, pytest.raises(InvalidInput, match=r"inputs 0, 1, .*, 9 and 90 more") as caught:
        embedder.embed([""] * 100)
    assert caught.value.indexes == tuple(range(100))


def test_the_largest_inputs(bench: Bench) -> None:
    """8192 ids are not too many, nor are the smallest and the greatest id wrong."""
    with bench.open() as embedder:
        assert embedder.embed([[1] * 8192, [0, 2**32 - 1]]).shape == (2, 8)


def test_the_text_is_nowhere_in_the_error(bench: Bench) -> None:
    """An error about a text holds it neither in its words nor in what it came of."""
    with bench.open() as embedder, pytest.raises(InvalidInput) as caught:
        embedder.embed(["a canary \ud800"])
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__
