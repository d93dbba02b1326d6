"""Every form of input that `embed` takes, on both faces."""

from __future__ import annotations

import array
import asyncio
import enum
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embcache import AsyncCachedEmbedder

from tests import twins
from tests.twins import SECONDS, Bench, counts, right, same
from tests.upstream import Upstream, hold, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.upstream import Item

bench = twins.bench

TEXTS = [f"passage {n}" for n in range(7)]


class Word(str):
    __slots__ = ()


class Words(enum.StrEnum):
    A = "a"
    B = "b"


class Column:
    """A column as pandas has them: iterable, with `tolist`, and no Sequence."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def __iter__(self) -> Iterator[object]:
        return iter(self._values)

    def tolist(self) -> list[object]:
        return list(self._values)


@dataclass
class Form:
    """One way to hand inputs over; made anew for each test, since some can be read only once."""

    make: Callable[[], object]
    items: list[Item]
    single: bool = False


FORMS = {
    "text": Form(lambda: "a", ["a"], single=True),
    "texts": Form(lambda: ["a", "b"], ["a", "b"]),
    "ids": Form(lambda: [1, 2, 3], [[1, 2, 3]], single=True),
    "lists of ids": Form(lambda: [[1], [2, 3]], [[1], [2, 3]]),
    "one text in a list": Form(lambda: ["a"], ["a"]),
    "one list of ids in a list": Form(lambda: [[1, 2]], [[1, 2]]),
    "tuple": Form(lambda: ("a", "b"), ["a", "b"]),
    "generator": Form(lambda: (chr(code) for code in b"ab"), ["a", "b"]),
    "deque": Form(lambda: deque("ab"), ["a", "b"]),
    "values of a mapping": Form({1: "a", 2: "b"}.values, ["a", "b"]),
    "strings of a class of their own": Form(lambda: [Word("a"), Word("b")], ["a", "b"]),
    "a string of a class of its own": Form(lambda: Word("a"), ["a"], single=True),
    "enumeration": Form(lambda: list(Words), ["a", "b"]),
    "column": Form(lambda: Column("a", "b"), ["a", "b"]),
    "column of ids": Form(lambda: Column([1], [2, 3]), [[1], [2, 3]]),
    "array of str": Form(lambda: np.array(["a", "b"]), ["a", "b"]),
    "array of objects": Form(lambda: np.array(["a", "b"], dtype=object), ["a", "b"]),
    "list of NumPy's str": Form(lambda: list(np.array(["a", "b"])), ["a", "b"]),
    "array of ids": Form(lambda: np.array([1, 2, 3]), [[1, 2, 3]], single=True),
    "list of NumPy's ids": Form(lambda: list(np.array([1, 2, 3])), [[1, 2, 3]], single=True),
    "array of small ids": Form(lambda: np.array([1, 2, 3], dtype=np.uint16), [[1, 2, 3]], single=True),
    "two rows of ids": Form(lambda: np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "list of arrays": Form(lambda: [np.array([1]), np.array([2, 3])], [[1], [2, 3]]),
    "array.array": Form(lambda: array.array("q", [1, 2, 3]), [[1, 2, 3]], single=True),
    "range": Form(lambda: range(1, 4), [[1, 2, 3]], single=True),
    "tuples of ids": Form(lambda: ((1,), (2, 3)), [[1], [2, 3]]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_input(bench: Bench, form: Form) -> None:
    """A text, texts, ids and lists of ids are taken in every usual container; ONE input gives one vector."""
    with bench.open() as embedder:
        first, second = embedder.embed(form.make()), embedder.embed(form.make())
    expected = right(form.items)[0] if form.single else right(form.items)
    assert same(first, expected)
    assert same(second, expected)
    assert [request.body["input"] for request in bench.server.requests] == [form.items]


def test_texts_and_ids_of_the_same_bytes(bench: Bench) -> None:
    """A text and token ids are two inputs, even where the bytes that are hashed are the same."""
    with bench.open() as embedder:
        assert same(embedder.embed("abcd"), vector("abcd"))
        assert same(embedder.embed([int.from_bytes(b"abcd", "little")]), vector([0x64636261]))


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_the_list_may_change_meanwhile(bench: Bench, memory_size: int | None) -> None:
    """What is done to the caller's list while the call is under way changes nothing of the call."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    asked = TEXTS.copy()
    with bench.open(memory_size=memory_size) as embedder:
        answer = embedder.begin(asked)
        assert bench.server.wait_for(1, SECONDS)
        asked.clear()
        gate.set()
        result = answer.result(SECONDS)
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert same(result.vectors, right(TEXTS))
    assert counts(result) == (0, 7, 0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("memory_size", [None, 1 << 20])
async def test_the_list_may_change_at_once(tmp_path: Path, memory_size: int | None) -> None:
    """A list that changes as soon as a task has begun brings no text another one's vector, now or later."""
    with Upstream() as server:
        async with AsyncCachedEmbedder(
            base_url=server.base_url, cache_dir=tmp_path, memory_size=memory_size
        ) as embedder:
            for n in range(20):
                texts = [f"{n} {k}" for k in range(9)]
                asked = texts.copy()
                task = asyncio.create_task(embedder.embed(asked))
                await asyncio.sleep(0)
                asked.reverse()
                assert same(await asyncio.wait_for(task, SECONDS), right(texts))
                assert same(await asyncio.wait_for(embedder.embed(texts), SECONDS), right(texts))
        assert len(server.requests) == 20


def test_a_generator_that_fails(bench: Bench) -> None:
    """What the caller's generator raises reaches the caller, and nothing is sent."""

    def texts() -> Iterator[str]:
        yield "a"
        raise LookupError

    with bench.open() as embedder, pytest.raises(LookupError):
        embedder.embed(texts())
    assert bench.server.requests == []
