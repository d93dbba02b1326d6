"""The process ends, or the caller is interrupted, at any instant."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.faults.watch import CANARY, KEY, Watch
from tests.programs import output, python
from tests.twins import say

if TYPE_CHECKING:
    import subprocess

# S07

KILLS = 50
"""For each of two seeds."""
# Forks a child for each kill, so that Python and all it needs are loaded once. A child tells through a pipe what a call
# has returned, and is killed some time after the first it told; what it told is then asked of another child.
KILLER = """
    import os, random, signal, sys, time
    import embcache.providers.openai_compatible, embcache.stores.disk  # else every child loads them anew
    from embcache import CachedEmbedder
    from tests.twins import right, same

    url, key, folder, kills, seed, early = sys.argv[1:]
    DIMS = 512
    chance = random.Random(int(seed))

    def open(**settings):
        return CachedEmbedder("m", base_url=url, api_key=key, cache_dir=folder, **settings)

    def texts(round, call):
        return [f"TEXT-CANARY {round} {call} {n}" for n in range(10)]

    def write(round, pipe):
        one, call = open(), 0
        while True:
            if early == "early":
                os.write(pipe, call.to_bytes(4, "big"))
            assert same(one.embed(texts(round, call)), right(texts(round, call), DIMS))
            if early != "early":
                os.write(pipe, call.to_bytes(4, "big"))
            call += 1

    def check(round, calls):
        with open(offline=True) as one:
            for call in range(calls):
                assert same(one.embed(texts(round, call)), right(texts(round, call), DIMS))

    def child(work, *args):
        pid = os.fork()
        if not pid:
            try:
                work(*args)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        return pid

    told = lost = 0
    for round in range(int(kills)):
        out, into = os.pipe()
        pid = child(write, round, into)
        os.close(into)
        first = os.read(out, 4)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rest = b""
        while more := os.read(out, 65536):
            rest += more
        os.close(out)
        calls = (len(first) + len(rest)) // 4
        told += calls
        lost += os.waitpid(child(check, round, calls), 0)[1] != 0
    print(told, lost)
"""


def kill(watch: Watch, kills: int, seed: int, when: str = "") -> tuple[int, int]:
    """Kill so often; return how many calls were told to have returned, and of how many kills one of these was lost."""
    watch.server.dims = 512
    told = output(python(KILLER, watch.server.base_url, KEY, watch.folder, kills, seed, when)).splitlines()
    calls, lost = map(int, told[-1].split())
    return calls, lost


@pytest.mark.parametrize("seed", [1, 2])
def test_s07_killed_while_writing(watch: Watch, seed: int) -> None:
    """Of a hundred processes killed while they wrote, all that a call had returned is there and right for another."""
    calls, lost = kill(watch, KILLS, seed)
    assert lost == 0
    assert calls > 2 * KILLS, "too few calls between the kills"
    with closing(sqlite3.connect(watch.folder / "cache.db")) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    with watch.open() as one:
        watch.works(one)


def test_s07_told_too_early(watch: Watch) -> None:
    """Where a call is told before it has returned the same kills lose some: the test above can fail."""
    _, lost = kill(watch, 10, 3, "early")
    assert lost > 0


# S08

# Interrupts a hundred calls, then waits until it is told to go on. `in_transaction` is looked at between two writes.
STORM = """
    import random, signal, sys, threading
    import embcache.stores.disk
    from embcache import CachedEmbedder
    from tests.twins import right, same

    def ring(*_):
        raise KeyboardInterrupt

    url, key, folder, seed, guard = sys.argv[1:]
    chance = random.Random(int(seed))
    one = CachedEmbedder("m", base_url=url, api_key=key, cache_dir=folder)
    one.embed("TEXT-CANARY 0")
    store, threads = one._engine._store, threading.active_count()
    signal.signal(signal.SIGALRM, ring)
    for line in sys.stdin:
        interrupts = 0
        while interrupts < 100:
            texts = [f"TEXT-CANARY {chance.randrange(500)}" for _ in range(chance.randrange(1, 20))]
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 3e-3))
                    vectors = one.embed(texts, refresh=chance.random() < 0.2)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert same(vectors, right(texts, 64))
            except KeyboardInterrupt:
                interrupts += 1
        if guard == "off":  # what an interrupt between two statements of a writing caller leaves behind
            store._writer.run(lambda: store._connection().execute("BEGIN IMMEDIATE"), 10)
        held = store._writer.run(lambda: store._connection().in_transaction, 10)
        print(held, store._writer._thread.is_alive(), flush=True)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    one.close()
"""
WRITER = """
    import sys, warnings
    from embcache import CachedEmbedder
    from tests.faults.watch import moved
    from tests.twins import right, same

    warnings.simplefilter("ignore")
    url, key, folder = sys.argv[1:]
    one = CachedEmbedder("m", base_url=url, api_key=key, cache_dir=folder)
    for line in sys.stdin:
        text = f"TEXT-CANARY of the other {line.strip()}"
        assert same(one.embed([text]), right([text], 64))
        print(one.embed_result([text]).hits, moved(one), flush=True)
    one.close()
"""


def answer(child: subprocess.Popen[str], line: str) -> str:
    say(child, line)
    assert child.stdout
    return child.stdout.readline().strip()


def test_s08_a_storm_of_interrupts(watch: Watch) -> None:
    """After every hundred of 600 interrupted calls the store is free, and another process writes to it at once."""
    given = watch.server.base_url, KEY, watch.folder
    storm, writer = python(STORM, *given, 8, "on"), python(WRITER, *given)
    for number in range(6):
        assert answer(storm, "go") == "False True"
        assert answer(writer, str(number)) == "1 {}"
    assert (output(storm), output(writer)) == ("", "")
    with watch.open() as one:
        texts = [f"{CANARY} {n}" for n in range(500)]
        watch.embed(one, texts)
        watch.hits(one, [*texts, *(f"{CANARY} of the other {number}" for number in range(6))])
        assert one.stats().billed_tokens == watch.server.billed_tokens
        watch.works(one)


def test_s08_a_lock_left_behind(watch: Watch) -> None:
    """Where a transaction is left open the other process cannot write: the test above can fail."""
    given = watch.server.base_url, KEY, watch.folder
    storm, writer = python(STORM, *given, 8, "off"), python(WRITER, *given)
    assert answer(storm, "go") == "True True"
    assert answer(writer, "0") == "0 {'store_busy': 2}"
    for child in (storm, writer):
        child.kill()
        child.communicate(timeout=60)
