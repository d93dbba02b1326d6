"""The end of an embedder: closed, dropped, or with its process; what it began ends, and nothing is left."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import TimeoutError as StillWaiting
from concurrent.futures import wait
from typing import TYPE_CHECKING

import pytest

from embcache import AsyncCachedEmbedder, CachedEmbedder, EmbcacheError
from embcache.stores import MemoryStore

from tests import twins
from tests.twins import SECONDS, Bench, in_thread, right, same, say, soon
from tests.upstream import Upstream, hold

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

bench = twins.bench

TEXTS = [f"passage {n}" for n in range(25)]


def test_as_a_context_manager(bench: Bench) -> None:
    """Leaving the block closes the embedder, also by an error; afterwards it says so to whoever asks."""
    embedder = bench.open()
    with pytest.raises(LookupError), embedder:
        raise LookupError(embedder.embed("a"))
    for inputs in ("a", "b", ["a", "b"]):
        with pytest.raises(EmbcacheError, match="closed"):
            embedder.embed(inputs)
    assert embedder.session.misses == 1
    embedder.face._end()  # what the interpreter's exit does is then nothing
    assert len(bench.server.requests) == 1


def test_close_twice(bench: Bench) -> None:
    """To close again is no error, and an embedder that was never used closes as well."""
    embedder = bench.open()
    embedder.close()
    embedder.close()
    assert not bench.folder.exists()


@pytest.mark.asyncio
async def test_async_with(tmp_path: Path) -> None:
    """The asynchronous face is an asynchronous context manager, and closes as often as one likes."""
    with Upstream() as server:
        async with AsyncCachedEmbedder(base_url=server.base_url, cache_dir=tmp_path) as embedder:
            assert same(await embedder.embed(["a", "b"]), right(["a", "b"]))
        with pytest.raises(EmbcacheError, match="closed"):
            await embedder.embed("a")
        await embedder.aclose()


@pytest.mark.asyncio
async def test_the_loop_goes_on(tmp_path: Path) -> None:
    """While one task waits for the server, others run, and many are answered by one request."""
    gate = threading.Event()
    with Upstream() as server:
        server.play(hold(gate))
        async with AsyncCachedEmbedder(base_url=server.base_url, cache_dir=tmp_path) as embedder:
            tasks = [asyncio.create_task(embedder.embed(TEXTS)) for _ in range(20)]
            # Not reached if a call held the loop.
            assert await asyncio.to_thread(server.wait_for, 1, SECONDS)
            assert not any(task.done() for task in tasks)
            gate.set()
            for vectors in await asyncio.wait_for(asyncio.gather(*tasks), SECONDS):
                assert same(vectors, right(TEXTS))
        assert len(server.requests) == 1


def test_close_waits(bench: Bench) -> None:
    """`close` waits for what is being bought; whoever asked for it gets it, and it is stored."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    embedder = bench.open(batch_size=5, max_concurrency=2)
    answer = embedder.begin(TEXTS)
    assert bench.server.wait_for(2, SECONDS)
    closing = in_thread(embedder.face._engine.close)
    with pytest.raises(StillWaiting):
        closing.result(0.2)
    with pytest.raises(EmbcacheError, match="closed"):
        embedder.embed("too late")
    gate.set()
    closing.result(SECONDS)
    assert same(answer.result(SECONDS).vectors, right(TEXTS))
    with bench.open() as other:
        assert same(other.embed(TEXTS), right(TEXTS))
    assert len(bench.server.requests) == 5


class SlowStore(MemoryStore):
    """A store that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        self.asked.set()
        assert self.go.wait(SECONDS)
        return super().get_many(keys)


def test_closed_during_a_look_up(bench: Bench) -> None:
    """A call that was still looking up when the embedder closed ends as well, one way or the other."""
    store = SlowStore()
    embedder = bench.open(store=store, cache_dir=None)
    answer = in_thread(lambda: embedder.embed("a"))
    assert store.asked.wait(SECONDS)
    closing = in_thread(embedder.face._engine.close)
    wait([closing], timeout=0.2)  # it may wait for the call, or not
    store.go.set()
    closing.result(SECONDS)
    error = answer.exception(SECONDS)
    assert error is None or (isinstance(error, EmbcacheError) and "closed" in str(error))


def test_a_store_of_ones_own_stays_open(bench: Bench) -> None:
    """A store that was handed over is shared, and outlives the embedders that use it."""
    store = MemoryStore()
    for _ in range(2):
        with bench.open(store=store, cache_dir=None) as embedder:
            assert same(embedder.embed(TEXTS), right(TEXTS))
    assert len(bench.server.requests) == 1
    assert not bench.folder.exists()


def test_no_thread_is_left(bench: Bench) -> None:
    """All threads of an embedder end with it."""
    before = threading.enumerate()
    with bench.open(batch_size=5) as embedder:
        embedder.embed(TEXTS)
        assert threads_since(before)
    assert soon(lambda: not threads_since(before))


def threads_since(before: Collection[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("embcache")]


def test_an_embedder_nobody_holds(bench: Bench) -> None:
    """An embedder that is dropped without a word writes what it counted, and ends its threads."""
    before = threading.enumerate()
    if bench.face == "sync":
        embedder = CachedEmbedder(**bench.settings())
        embedder.embed(TEXTS)
        embedder.embed(TEXTS)
        del embedder
    else:
        other_embedder = AsyncCachedEmbedder(**bench.settings())
        asyncio.run(other_embedder.embed(TEXTS))
        asyncio.run(other_embedder.embed(TEXTS))
        del other_embedder
    assert soon(lambda: not threads_since(before))
    with bench.open() as other:
        assert other.stats().hits == len(TEXTS)


def test_what_takes_longer_than_the_end(bench: Bench) -> None:
    """What was sent is stored however long its answer takes, though nobody holds the embedder; then threads end."""
    before = threading.enumerate()
    gate = threading.Event()
    bench.server.play(hold(gate))
    embedder = bench.open()
    answer = embedder.begin(TEXTS)
    assert bench.server.wait_for(1, SECONDS)
    embedder.face._end()  # as when it is dropped: waits for two seconds
    assert threads_since(before)
    gate.set()
    assert same(answer.result(SECONDS).vectors, right(TEXTS))
    assert soon(lambda: not threads_since(before))
    embedder.close()
    with bench.open() as other:
        assert same(other.embed(TEXTS), right(TEXTS))
    assert len(bench.server.requests) == 1


def test_c03_a_process_that_never_closes(bench: Bench) -> None:
    """What was counted is written at the interpreter's exit."""
    bench.run(f"call({TEXTS!r}); call({TEXTS!r})")
    with bench.open() as embedder:
        stats = embedder.stats()
    assert (stats.hits, stats.misses, stats.requests, stats.entries) == (25, 25, 1, 25)


ENDING = f"""
answer = embedder.begin({TEXTS!r})
sys.stdin.readline()
print("ending", flush=True)
"""


def test_c03_exit_waits_a_little(bench: Bench) -> None:
    """What is being bought when the interpreter ends is waited for, and stored."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.start(ENDING) as child:
        assert bench.server.wait_for(1, SECONDS)
        say(child, "")
        assert child.stdout
        assert child.stdout.readline() == "ending\n"
        gate.set()
        child.communicate(timeout=SECONDS)
    assert child.returncode == 0
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert len(bench.server.requests) == 1


def test_c03_exit_does_not_wait_for_long(bench: Bench) -> None:
    """A server that does not answer keeps no process from ending."""
    bench.server.play(hold(threading.Event()))
    with bench.start(ENDING) as child:
        assert bench.server.wait_for(1, SECONDS)
        _, complaints = child.communicate("\n", timeout=SECONDS)
    assert (child.returncode, complaints) == (0, "")
