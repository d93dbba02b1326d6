"""Pairs of texts crafted to share a key: each gets its own vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.stressing.counts import Counts
from scripts.stressing.world import counting_stuck, right, wrong_rows

from tests.reference import colliding_texts

if TYPE_CHECKING:
    import random
    from multiprocessing.connection import Connection

    from scripts.stressing.world import World


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Embed the one of each pair, and ask for the other."""
    counts = Counts()
    with counting_stuck(counts):
        counts += world.ask(embed_pairs, [f"model {chance.getrandbits(64)}" for _ in range(number)])
    return counts


def embed_pairs(world: World, pipe: Connection, models: list[str]) -> None:
    """Embed a pair for each model, each text in place of the other, and say what came of it."""
    counts = Counts()
    for model in models:
        with world.open(model) as embedder:
            space = embedder.space
            one, other = colliding_texts(space.provider, model, space.format, [])
            embedder.embed([one])
        for text in (other, one, other):
            with world.open(model) as embedder:
                counts += Counts(1, 0, wrong_rows(embedder.embed([text]), right([text])), 0)
    pipe.send(counts)
