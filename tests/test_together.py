"""Many inputs one after the other, and single ones at the same time: `embed_iter`, and requests that are shared."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import AsyncCachedEmbedder, CachedEmbedder, EmbcacheWarning, InputRejected, InvalidInput

from tests.upstream import Upstream, hold, vector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def embedder(server: Upstream, tmp_path: Path) -> Iterator[CachedEmbedder]:
    with CachedEmbedder("m", base_url=server.base_url, api_key="k", cache_dir=tmp_path) as one:
        yield one


def right(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def test_an_endless_iterable(server: Upstream, embedder: CachedEmbedder) -> None:
    """Arrays come in order while the input has no end, and no more of it is read than some batches ahead."""
    read = itertools.count()
    vectors = embedder.embed_iter((f"text {number % 70}" for number in read), batch_size=10)
    taken = [next(vectors) for _ in range(20)]
    assert np.array_equal(np.concatenate(taken), right([f"text {number % 70}" for number in range(200)]))
    assert next(read) <= 200 + 10 * 6
    assert sorted(server.sent_inputs) == sorted(f"text {number}" for number in range(70))


def test_the_last_array_is_shorter(embedder: CachedEmbedder) -> None:
    """Whatever the number of inputs, nothing is left out."""
    assert [part.shape for part in embedder.embed_iter(["a", "b", "c", "d", "e"], batch_size=2)] == [
        (2, 8),
        (2, 8),
        (1, 8),
    ]
    assert list(embedder.embed_iter([])) == []
    ids = list(embedder.embed_iter([[1, 2], [3]], batch_size=1))
    assert np.array_equal(np.concatenate(ids), np.stack([vector([1, 2]), vector([3])]))


def test_errors_wait_for_their_turn(server: Upstream, embedder: CachedEmbedder) -> None:
    """What comes before a wrong input is handed out; then the error names it, counted from the beginning."""
    server.poison = {"bad"}
    vectors = embedder.embed_iter(["a", "b", "c", ""], batch_size=2)
    assert np.array_equal(next(vectors), right(["a", "b"]))
    with pytest.raises(InvalidInput) as wrong:
        next(vectors)
    assert wrong.value.indexes == (3,)
    vectors = embedder.embed_iter(["a", "b", "c", "bad", "d"], batch_size=2)
    next(vectors)
    with pytest.raises(InputRejected) as rejected:
        next(vectors)
    assert rejected.value.indexes == (3,)


@pytest.mark.parametrize("given", ["a text", b"a text", {"a": 1}, 5, [1, 2, 3]], ids=repr)
def test_what_is_no_iterable_of_inputs(embedder: CachedEmbedder, given: object) -> None:
    """A text is not iterated over letter by letter, nor a list of ids number by number."""
    with pytest.raises(InvalidInput):
        list(embedder.embed_iter(given))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_leaving_early_sends_no_more(server: Upstream, embedder: CachedEmbedder) -> None:
    """Who stops in the middle of an iteration is not charged for what was only read ahead."""
    gate = threading.Event()
    for _ in range(8):
        server.play(hold(gate))
    vectors = embedder.embed_iter((str(number) for number in itertools.count()), batch_size=5)
    gate.set()
    next(vectors)
    vectors.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    embedder.close()
    assert len(server.sent_inputs) <= 5 * 6


async def _many(server: Upstream, folder: Path, texts: list[str]) -> tuple[list[np.ndarray], int]:
    async with AsyncCachedEmbedder("m", base_url=server.base_url, api_key="k", cache_dir=folder) as embedder:
        vectors = await asyncio.gather(*(embedder.embed(text) for text in texts))
        return vectors, embedder.session.hits


@pytest.mark.asyncio
async def test_tasks_share_requests(server: Upstream, tmp_path: Path) -> None:
    """A thousand tasks that ask for one new text each make a handful of requests; warm, none."""
    server.delay = 0.05
    texts = [f"text {number}" for number in range(1000)]
    vectors, _ = await _many(server, tmp_path, texts)
    assert np.array_equal(np.stack(vectors), right(texts))
    assert len(server.requests) < 50
    assert sorted(server.sent_inputs) == sorted(texts)
    sent = len(server.requests)
    vectors, hits = await _many(server, tmp_path, texts)
    assert (np.array_equal(np.stack(vectors), right(texts)), hits, len(server.requests)) == (True, 1000, sent)


def test_threads_share_requests(server: Upstream, embedder: CachedEmbedder) -> None:
    """The first of many threads is served at once; what arrives meanwhile goes together, and each text once."""
    gate = threading.Event()
    server.play(hold(gate))
    answers: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        answers[number] = embedder.embed(f"text {number % 20}")

    first = threading.Thread(target=ask, args=(0,))
    first.start()
    assert server.wait_for(1)
    others = [threading.Thread(target=ask, args=(number,)) for number in range(1, 60)]
    for thread in others:
        thread.start()
    gate.set()
    for thread in [first, *others]:
        thread.join(60)
    assert all(np.array_equal(answers[number], vector(f"text {number % 20}")) for number in range(60))
    assert sorted(server.sent_inputs) == sorted(f"text {number}" for number in range(20))
    assert server.requests[0].inputs == ["text 0"]


def test_a_bad_input_among_gathered_ones_is_its_own_callers(server: Upstream, embedder: CachedEmbedder) -> None:
    """A text that the server refuses fails the thread that asked for it, and no other that shared the request."""
    embedder.embed("warm up")
    server.poison = {"bad", "worse"}
    gate = threading.Event()
    server.play(hold(gate))
    outcome: dict[str, object] = {}

    def ask(text: str) -> None:
        try:
            outcome[text] = embedder.embed(text)
        except InputRejected as error:
            outcome[text] = error

    first = threading.Thread(target=ask, args=("first",))
    first.start()
    assert server.wait_for(2)
    others = [threading.Thread(target=ask, args=(text,)) for text in ("bad", "good", "worse", "fine")]
    for thread in others:
        thread.start()
    gate.set()
    for thread in [first, *others]:
        thread.join(60)
    assert isinstance(outcome["bad"], InputRejected)
    assert isinstance(outcome["worse"], InputRejected)
    assert all(np.array_equal(np.asarray(outcome[text]), vector(text)) for text in ("first", "good", "fine"))


@pytest.mark.asyncio
async def test_a_warning_names_the_line_that_asked(server: Upstream, tmp_path: Path) -> None:
    """Warnings are of the caller's own line, on both faces, whichever method was called."""
    server.model_name = "another"
    settings: dict[str, Any] = {"base_url": server.base_url, "api_key": "k", "cache_dir": tmp_path}
    for single in (True, False):
        async with AsyncCachedEmbedder("m", **settings) as embedder:
            with pytest.warns(EmbcacheWarning) as told:
                _ = await embedder.embed(f"{single}") if single else await embedder.embed_result([f"{single}"])
        with CachedEmbedder("m", **settings) as other, pytest.warns(EmbcacheWarning) as told_too:
            _ = other.embed(f"{single} too") if single else other.embed_result([f"{single} too"])
        assert [warning.filename for warning in (*told, *told_too)] == [__file__] * 2
