"""Callers who go away, requests that fail half-way, embedders that are closed: what was paid for is kept."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import CancelledError, wait
from concurrent.futures import TimeoutError as StillWaiting
from typing import TYPE_CHECKING

import pytest

from embcache import AsyncCachedEmbedder, AuthenticationError, CachedEmbedder, EmbcacheError, ProviderUnavailable
from embcache.stores import MemoryStore

from tests import twins
from tests.twins import SECONDS, Bench, in_thread, right, same, soon
from tests.upstream import Upstream, hold, proper, status

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection
    from pathlib import Path

bench = twins.bench

TEXTS = [f"passage {n}" for n in range(25)]


# Half-way


def test_the_third_of_five_requests_fails(bench: Bench) -> None:
    """What came before a failure is stored and counted in the error; the next call sends only what is missing."""
    bench.server.play(proper(), proper(), status(401))
    with bench.open(batch_size=5, max_concurrency=1) as embedder:
        with pytest.raises(AuthenticationError) as caught:
            embedder.embed([*TEXTS, TEXTS[0]])
        assert (caught.value.kept, caught.value.indexes) == (11, ())
        assert "11 other inputs of this call are kept" in str(caught.value)
        assert embedder.stats().entries == 10
        assert len(bench.server.requests) == 3  # after such an answer the others would be of no use
        bench.server.forget()
        result = embedder.embed_result([*TEXTS, TEXTS[0]])
    assert same(result.vectors, right([*TEXTS, TEXTS[0]]))
    assert (result.hits, result.misses, result.duplicates) == (11, 15, 0)
    assert bench.server.sent_inputs == TEXTS[10:]


def test_one_of_five_requests_fails_while_others_are_under_way(bench: Bench) -> None:
    """Requests that are under way when another one fails end, and what they bring is stored."""
    gate = threading.Event()
    bench.server.play(hold(gate), hold(gate), status(500))
    with bench.open(batch_size=5, max_concurrency=3, max_retries=0) as embedder:
        answer = embedder.begin(TEXTS)
        assert bench.server.wait_for(3, SECONDS)
        assert soon(lambda: bench.server.in_flight == 2)
        gate.set()
        error = answer.exception(SECONDS)
        assert isinstance(error, ProviderUnavailable)
        assert error.kept == 10
        kept = [text for text in TEXTS if text in bench.server.accepted_inputs]
        assert len(kept) == 10
        bench.server.forget()
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert sorted(map(str, bench.server.sent_inputs)) == sorted(set(TEXTS) - set(kept))


# Callers who go away


@pytest.mark.parametrize("bench", ["async"], indirect=True)  # a thread cannot be cancelled
def test_a_task_is_cancelled(bench: Bench) -> None:
    """A caller who is cancelled leaves at once; its request ends, is stored, and the next caller hits."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.open() as embedder:
        answer = embedder.begin(TEXTS)
        assert bench.server.wait_for(1, SECONDS)
        assert answer.cancel()
        with pytest.raises(CancelledError):
            answer.result(SECONDS)
        later = embedder.begin(TEXTS)
        gate.set()
        assert same(later.result(SECONDS).vectors, right(TEXTS))
        assert same(embedder.embed(TEXTS), right(TEXTS))
        assert embedder.stats().billed_tokens == bench.server.billed_tokens
    assert [request.inputs for request in bench.server.requests] == [TEXTS]


@pytest.mark.parametrize("bench", ["async"], indirect=True)
def test_what_nobody_waits_for_is_not_sent(bench: Bench) -> None:
    """Of a call that was cancelled before its turn, what another caller wants is sent, and the rest is not."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.open(batch_size=5, max_concurrency=1) as embedder:
        busy = embedder.begin(["a", "b"])
        assert bench.server.wait_for(1, SECONDS)
        gone = embedder.begin(TEXTS)
        assert soon(lambda: len(embedder.face._engine._buyer._flights) == 2 + 25)
        assert gone.cancel()
        wants = [TEXTS[12], "c", TEXTS[24]]
        here = embedder.begin(wants)
        assert soon(lambda: len(embedder.face._engine._buyer._flights) == 2 + 25 + 1)
        gate.set()
        assert same(busy.result(SECONDS).vectors, right(["a", "b"]))
        assert same(here.result(SECONDS).vectors, right(wants))
        assert soon(lambda: not embedder.face._engine._buyer._flights)
    assert TEXTS[0] not in bench.server.sent_inputs
    assert len(bench.server.sent_inputs) <= 2 + 5 + 1 + 5


# What makes a call from the main thread, where signals arrive.
CALLS = {
    "sync": "def call(texts): return embedder.embed(texts)\n",
    "async": "import asyncio\ndef call(texts): return asyncio.run(embedder.face.embed(texts))\n",
}

INTERRUPTED = """
texts = json.loads(sys.stdin.readline())
try:
    call(texts)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(call(texts).tobytes().hex())
embedder.close()
"""


def test_ctrl_c(bench: Bench) -> None:
    """Ctrl-C reaches the caller at once, while the request goes on; the same process then has what it paid for."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.start(CALLS[bench.face] + INTERRUPTED) as child:
        say(child, str(TEXTS).replace("'", '"'))
        assert bench.server.wait_for(1, SECONDS)
        child.send_signal(signal.SIGINT)
        assert child.stdout
        assert child.stdout.readline() == "interrupted\n"
        gate.set()
        told, complaints = child.communicate("\n", timeout=SECONDS)
    assert complaints == ""
    assert told.strip() == right(TEXTS).tobytes().hex()
    assert [request.inputs for request in bench.server.requests] == [TEXTS]


def say(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin
    child.stdin.write(line + "\n")
    child.stdin.flush()


STORM = """
import random, signal
import numpy as np
from tests.twins import right, same

def ring(*_):
    raise KeyboardInterrupt

chance, interrupts = random.Random(7), 0
signal.signal(signal.SIGALRM, ring)
for n in range(400):
    texts = [f"text {chance.randrange(300)}" for _ in range(chance.randrange(1, 20))]
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 3e-3))
            vectors = embedder.embed(texts, refresh=chance.random() < 0.1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert same(vectors, right(texts))
    except KeyboardInterrupt:
        interrupts += 1
texts = [f"text {n}" for n in range(300)]
assert same(embedder.embed(texts), right(texts))
embedder.close()
print(interrupts)
"""


@pytest.mark.parametrize("bench", ["sync"], indirect=True)  # an exception out of nowhere breaks the event loop itself
@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_a_storm_of_interrupts(bench: Bench, memory_size: int | None) -> None:
    """Whenever a caller is interrupted, later calls work and are right, and every token is on the books."""
    interrupts = int(bench.run(STORM, memory_size=memory_size))
    assert interrupts > 40
    with bench.open() as embedder:
        assert embedder.stats().billed_tokens == bench.server.billed_tokens
        assert embedder.stats().entries == 300
    assert bench.server.billed_but_broken == 0


FORK = """
import os, signal
call(["a", "b"])
child = os.fork()
if not child:
    signal.alarm(10)  # to end rather than hang
    assert call(["b", "a"]).shape == (2, 8)
    assert same(call(["c", "a"]), right(["c", "a"]))
    os._exit(0)
assert same(call(["d", "a"]), right(["d", "a"]))
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert same(call(["e", "c", "b"]), right(["e", "c", "b"]))
embedder.close()
"""


@pytest.mark.parametrize("bench", ["sync"], indirect=True)  # an event loop is not carried over a fork
def test_after_a_fork(bench: Bench) -> None:
    """A process that was forked with an embedder open can use it, as its parent can, and both keep what they buy."""
    # From 3.12 on Python warns of any fork where there are threads, as there are.
    bench.run("import warnings; warnings.simplefilter('ignore')\n" + TOOLS + CALLS[bench.face] + FORK)
    assert sorted(map(str, bench.server.sent_inputs)) == ["a", "b", "c", "d", "e"]


TOOLS = "from tests.twins import right, same\n"


# The end


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


def test_a_process_that_never_closes(bench: Bench) -> None:
    """What was counted is written at the interpreter's exit."""
    bench.run(CALLS[bench.face] + f"call({TEXTS!r}); call({TEXTS!r})")
    with bench.open() as embedder:
        stats = embedder.stats()
    assert (stats.hits, stats.misses, stats.requests, stats.entries) == (25, 25, 1, 25)


ENDING = f"""
answer = embedder.begin({TEXTS!r})
sys.stdin.readline()
print("ending", flush=True)
"""


def test_exit_waits_a_little(bench: Bench) -> None:
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


def test_exit_does_not_wait_for_long(bench: Bench) -> None:
    """A server that does not answer keeps no process from ending."""
    bench.server.play(hold(threading.Event()))
    with bench.start(ENDING) as child:
        assert bench.server.wait_for(1, SECONDS)
        _, complaints = child.communicate("\n", timeout=SECONDS)
    assert (child.returncode, complaints) == (0, "")
