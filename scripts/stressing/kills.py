"""300 processes killed while they embed: whatever they had acknowledged is there."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from scripts.stressing.counts import Counts
from scripts.stressing.world import check, counting_stuck, failures, right, wrong_rows

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import NoReturn

    from scripts.stressing.world import World

LOG = "acknowledged.log"
EARLIER = 500
"""Texts of earlier processes that are checked after each kill; after the last one all are."""


def run(world: World, number: int, chance: random.Random) -> Counts:
    """Kill processes; what each had acknowledged goes into a log that is only ever appended to."""
    counts, log = Counts(), world.folder / LOG
    world.folder.mkdir(exist_ok=True)
    log.touch()
    for round_ in range(number):
        with counting_stuck(counts):
            with world.start(embed_until_killed, round_, chance.getrandbits(32)) as child:
                child.receive()
                said = [child.receive() for _ in range(chance.randrange(5))]
                time.sleep(chance.uniform(0, 0.03))
                child.kill()
                said += child.rest()
            texts = [text for some, _ in said for text in some]
            before = _read(log)
            with log.open("a") as file:
                file.writelines(f"{text}\n" for text in texts)
            some = chance.sample(before, min(EARLIER, len(before)))
            found: Counts = world.ask(check, texts + some)
            counts += Counts(len(texts), found.lost, found.wrong + sum(wrong for _, wrong in said), found.stuck)
    with counting_stuck(counts):
        found = world.ask(check, _read(log))
        counts += Counts(0, found.lost, found.wrong, found.stuck)
    return counts


def _read(log: Path) -> list[str]:
    return log.read_text().splitlines()


def embed_until_killed(world: World, pipe: Connection, round_: int, seed: int) -> NoReturn:
    """Embed new texts and, of those acknowledged before, some anew; say which, once they were returned and stored."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    pipe.send("begins")
    embedder = world.open(batch_size=16)
    texts: list[str] = []
    while True:
        start = len(texts)
        texts += [f"text {n} of process {round_}" for n in range(start, start + chance.randrange(1, 40))]
        failed = failures(embedder)
        vectors = embedder.embed(texts[start:])
        if failures(embedder) == failed:
            pipe.send((texts[start:], wrong_rows(vectors, right(texts[start:]))))
        some = chance.sample(texts, min(10, len(texts)))
        choice = chance.random()
        if choice < 0.2:  # noqa: PLR2004 - now and then
            pipe.send(([], wrong_rows(embedder.embed(some, refresh=True), right(some))))
        elif choice < 0.3:  # noqa: PLR2004 - as above
            embedder.close()
            embedder = world.open(batch_size=16)
