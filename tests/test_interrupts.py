"""Callers who go away, requests that fail half-way: what was paid for is kept."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import CancelledError

import pytest

from embcache import AuthenticationError, ProviderUnavailable

from tests import twins
from tests.twins import SECONDS, Bench, right, same, say, soon
from tests.upstream import hold, proper, status

bench = twins.bench

TEXTS = [f"passage {n}" for n in range(25)]


# Half-way


def test_u10_the_third_of_five_requests_fails(bench: Bench) -> None:
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


def test_u10_one_of_five_requests_fails_while_others_are_under_way(bench: Bench) -> None:
    """Requests that are under way when another one fails end, and what they bring is stored."""
    gate = threading.Event()
    bench.server.play(hold(gate), hold(gate), status(500))
    with bench.open(batch_size=5, max_concurrency=3, max_retries=0) as embedder:
        answer = embedder.begin(TEXTS)
        assert bench.server.wait_for(3, SECONDS)
        assert soon(lambda: bench.server.in_flight == 2)
        # Until the failure is noted: those under way would be followed by others otherwise.
        (job,) = embedder.face._engine._buyer._jobs
        assert soon(lambda: job.cutter is not None and not job.cutter._waiting)
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
def test_u25_a_task_is_cancelled(bench: Bench) -> None:
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
def test_u25_what_nobody_waits_for_is_not_sent(bench: Bench) -> None:
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


@pytest.mark.parametrize("bench", ["async"], indirect=True)
def test_what_was_not_sent_keeps_nobody_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cancelled call was about to buy, and did not, can be bought at once by the next caller."""
    # A lease that is left behind ends by itself after seconds: here never, so that it cannot go unnoticed.
    monkeypatch.setattr("embcache.buyer.LEASE_SECONDS", 3600.0)
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.open(max_concurrency=1) as embedder:
        busy = embedder.begin(["a", "b"])
        assert bench.server.wait_for(1, SECONDS)
        gone = embedder.begin(TEXTS)
        assert soon(lambda: len(embedder.face._engine._buyer._flights) == 2 + 25)
        assert gone.cancel()
        gate.set()
        busy.result(SECONDS)
        assert soon(lambda: not embedder.face._engine._buyer._flights)
        assert same(embedder.begin(TEXTS).result(SECONDS).vectors, right(TEXTS))
    assert bench.server.sent_inputs == ["a", "b", *TEXTS]


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
    with bench.start(INTERRUPTED) as child:
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
    bench.run("import warnings; warnings.simplefilter('ignore')\n" + TOOLS + FORK)
    assert sorted(map(str, bench.server.sent_inputs)) == ["a", "b", "c", "d", "e"]


TOOLS = "from tests.twins import right, same\n"
