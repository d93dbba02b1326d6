"""16 processes on shared and own texts: all vectors right, and what is not stored is counted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from scripts.stressing.counts import Counts
from scripts.stressing.world import check, counting_stuck, failures, right, wrong_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from scripts.stressing.world import World

TEXTS = 400
"""Texts of one process, half of them shared with all others."""


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Have ``number`` processes embed at once; twice, the second time with new texts in the open store."""
    counts = Counts()
    for turn in range(2):
        shared = [f"text {n} of all, turn {turn}" for n in range(TEXTS // 2)]
        own = [[f"text {n} of process {me}, turn {turn}" for n in range(TEXTS // 2)] for me in range(number)]
        with counting_stuck(counts):
            children = [world.start(embed_all, shared + mine, chance.random()) for mine in own]
            try:
                for child in children:
                    child.receive()
                for child in children:
                    child.pipe.send("go")
                told = [child.receive() for child in children]
                for child in children:
                    child.join()
            finally:
                for child in children:
                    child.__exit__()
            bought, stored, uncounted, wrong = (sum(figures) for figures in zip(*told, strict=True))
            found: Counts = world.ask(check, shared + [text for mine in own for text in mine])
            counts += Counts(
                bought, abs(bought - stored - uncounted) + max(0, found.lost - uncounted), wrong + found.wrong, 0
            )
    return counts


def embed_all(world: World, pipe: Connection, texts: Sequence[str], seed: float) -> None:
    """Embed ``texts`` in an order of its own, some at a time; say how many were bought, stored, counted lost, wrong."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    left, wrong = chance.sample(texts, len(texts)), 0
    embedder = world.open()
    pipe.send("ready")
    pipe.recv()
    while left:
        size = chance.randrange(1, 40)
        some, left = left[:size], left[size:]
        wrong += wrong_rows(embedder.embed(some), right(some))
    embedder.close()
    session = embedder.session
    pipe.send((session.misses, session.entries, failures(embedder), wrong))
