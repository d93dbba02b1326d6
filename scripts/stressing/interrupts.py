"""5,000 interrupts in the main thread: after each hundred nothing is locked, in this process or another."""

from __future__ import annotations

import gc
import random
import signal
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from embcache import StoreError
from embcache.stores import disk
from scripts.stressing.counts import Counts
from scripts.stressing.world import check, counting_stuck, failures, right, settle, wrong_rows

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from embcache import CachedEmbedder
    from scripts.stressing.world import World

HUNDRED = 100
TEXTS = 2_000
PATIENCE = 1.0
"""Seconds within which another process has written."""
ATTEMPTS = 3
"""How often it tries: a lock that stays is there every time, a machine that is busy is not."""
THREADS = {"embcache-writer", "embcache-desk"}


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Interrupt a process, and have another one write after each hundred."""
    counts = Counts()
    kept: list[str] = []
    with counting_stuck(counts), world.start(neighbour) as other, world.start(storm, number, chance.random()) as child:
        while (said := child.receive()) is not None:
            wrong, stuck, texts = said
            kept += texts
            other.pipe.send(f"after {len(kept)}")
            counts += Counts(0, 0, wrong, stuck + (not other.receive()))
            if counts.stuck:
                break  # what is stuck stays so, and says nothing new
            child.pipe.send("go on")
        else:
            child.join()
    with counting_stuck(counts):
        counts += world.ask(check, kept)
    return counts


def neighbour(world: World, pipe: Connection) -> None:
    """Embed the texts that come, and say of each whether it was written within a second."""
    disk.PATIENCE = PATIENCE
    with world.open() as embedder, suppress(EOFError):
        embedder.embed("the first")  # opens everything
        while text := pipe.recv():
            pipe.send(any(_writes(embedder, f"{text}, {attempt}") for attempt in range(ATTEMPTS)))


def _writes(embedder: CachedEmbedder, text: str) -> bool:
    failed, begun = failures(embedder), time.monotonic()
    embedder.embed([text])
    return time.monotonic() - begun < PATIENCE and failures(embedder) == failed


def storm(world: World, pipe: Connection, number: int, seed: float) -> None:
    """Do all that an embedder does, interrupted at any instant; say what was found, after each hundred and at the end.

    What was returned is told as kept, unless it could not be stored.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    # What is interrupted while an object is cleared away cannot be raised anywhere; it is not to be printed either.
    sys.unraisablehook = lambda _: None
    names = [f"text {n}" for n in range(TEXTS)]
    passing = [f"passing {n}" for n in range(5)]
    embedder = world.open(batch_size=16)
    embedder.embed(["the first of all"])
    interrupts = wrong = 0
    kept: set[str] = set()
    told: set[str] = set()
    while interrupts < number:
        texts = chance.sample(names, chance.randrange(1, 20))
        choice, refresh = chance.random(), chance.random() < 0.1  # noqa: PLR2004 - now and then
        forgets = choice < 0.2  # noqa: PLR2004 - as above
        if forgets:
            embedder.embed(passing)
        seconds, failed = chance.uniform(2e-5, 2e-3 if forgets else 5e-3), failures(embedder)
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                if forgets:
                    embedder.forget(passing)
                    continue
                if choice < 0.3:  # noqa: PLR2004 - as above
                    embedder.stats()
                    continue
                vectors = embedder.embed(texts, refresh=refresh)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            wrong += wrong_rows(vectors, right(texts))
            kept.update(texts if failures(embedder) == failed else ())
        except StoreError:  # of forget(): the store was busy, or worse, which is found out below
            pass
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts % HUNDRED == 0 or interrupts == number:
                pipe.send((wrong, _stuck(embedder, f"after {interrupts} interrupts"), sorted(kept - told)))
                told |= kept
                wrong = 0
                pipe.recv()
    embedder.close()
    pipe.send(None)


def _stuck(embedder: CachedEmbedder, text: str) -> int:
    """Return how much is stuck in this process: transactions that stay open, threads that are gone, a wrong answer."""
    answered = wrong_rows(embedder.embed([text]), right([text])) == 0
    settled = settle(lambda: not any(connection.in_transaction for connection in _connections()))
    alive = {thread.name for thread in threading.enumerate()}
    return (not answered) + (not settled) + len(THREADS - alive)


def _connections() -> list[sqlite3.Connection]:
    return [thing for thing in gc.get_objects() if isinstance(thing, sqlite3.Connection)]
