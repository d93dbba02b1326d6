"""1,000 bits flipped in a closed file: every answer is right, and the pass that meets the damage heals it."""

from __future__ import annotations

import random
import shutil
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


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Flip bits, one at a time, each in a copy of the same file."""
    counts = Counts()
    done = 0
    while done < number:
        with counting_stuck(counts), world.start(flip, done, number, chance.random()) as child:
            while done < number:
                done += 1
                counts += child.receive()
            child.join()
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
            passes = [embedder.embed_result(TEXTS) for _ in range(2)]
            # A bit of the index may come to light only when the first pass writes, after most of it was read: the
            # whole file is set aside then, and the second pass is the one that fills the new one.
            if passes[-1].misses and embedder.session.quarantined == 1:
                passes.append(embedder.embed_result(TEXTS))
        wrong = sum(wrong_rows(one.vectors, expected) for one in passes)
        pipe.send(Counts(len(TEXTS), passes[-1].misses, wrong, 0))
        shutil.rmtree(copy.folder)
