"""1,000 bits flipped in a closed file: every answer is right, and before long everything hits again."""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from embcache.stores.folder import DATABASE
from scripts.stressing.counts import Counts
from scripts.stressing.world import counting_stuck, right, wrong_rows

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from scripts.stressing.world import World

TEXTS = [f"text {n}" for n in range(150)]
DIMS = 256
"""So that most of the file is vectors, as it is where there are many."""
PASSES = 3
"""Passes that may take to heal: one, or more where a bit of the index comes to light only when something is written.
The whole file is set aside then, after most of it was read."""


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Flip bits, one at a time, each in a copy of the same file."""
    counts = Counts()
    done = slow = 0
    while done < number:
        with counting_stuck(counts), world.start(flip, done, number, chance.random()) as child:
            while done < number:
                done += 1
                found, late = child.receive()
                counts += found
                slow += late
            child.join()
    print(f"flips: {slow:,} of {number:,} took more than one pass to heal", file=sys.stderr, flush=True)
    return counts


def flip(world: World, pipe: Connection, start: int, stop: int, seed: float) -> None:
    """Flip bits, and say after each one what came of it."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    expected = right(TEXTS, DIMS)
    with world.open(dimensions=DIMS) as embedder:
        embedder.embed(TEXTS)
    good = (world.cache_dir / DATABASE).read_bytes()
    for number in range(start, stop):
        copy = replace(world, folder=world.folder / str(number))
        shutil.copytree(world.cache_dir, copy.cache_dir)
        flipped = bytearray(good)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        (copy.cache_dir / DATABASE).write_bytes(flipped)
        with copy.open(dimensions=DIMS) as embedder:
            passes = [embedder.embed_result(TEXTS)]
            while passes[-1].misses and len(passes) <= PASSES:
                passes.append(embedder.embed_result(TEXTS))
        wrong = sum(wrong_rows(one.vectors, expected) for one in passes)
        pipe.send((Counts(len(TEXTS), passes[-1].misses, wrong, 0), len(passes) > 2))  # noqa: PLR2004 - one, and one that hits
        shutil.rmtree(copy.folder)
