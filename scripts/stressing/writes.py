"""The n-th write fails, for n from 1 to 60, and so do later ones: vectors are right, what was acknowledged is there.

The errors are injected by strace into what SQLite asks of the system, in a process of its own, which is
``python -m scripts.stressing.writes``.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.stressing.counts import Counts
from scripts.stressing.world import SILENCE, Stuck, World, check, counting_stuck, failures, prepare, right, wrong_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = "pwrite64,fsync,fdatasync,ftruncate"
ERRORS = ("EIO", "ENOSPC")
SELDOM = 97
"""A commit takes about 20 writes: between so many, some go well; where every n-th fails, few do or none."""
BATCHES = 20


def run(world: World, number: int, chance: random.Random) -> Counts:
    """For each n, run a process whose every n-th write fails, and one that is spared more, and look with fresh ones."""
    if shutil.which("strace") is None:
        raise SystemExit("scripts/stress: the part `writes` needs strace; on Debian: apt-get install strace")
    counts = Counts()
    for first in range(1, number + 1):
        for step in (first, SELDOM):
            place = replace(world, folder=world.folder / f"{first}-{step}")
            with counting_stuck(counts):
                fault = f"error={chance.choice(ERRORS)}:when={first}+{step}"
                kept, wrong = _embed_with_failing_writes(place, fault, chance.getrandbits(32))
                found: Counts = place.ask(check, kept)
                counts += Counts(len(kept), found.lost, wrong + found.wrong, found.stuck)
            shutil.rmtree(place.folder, ignore_errors=True)
    return counts


def _embed_with_failing_writes(world: World, fault: str, seed: int) -> tuple[list[str], int]:
    """Return which texts such a process acknowledged as stored, and how many of its vectors were wrong."""
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={CALLS}"]
    settings = json.dumps([world.base_url, str(world.folder), world.without, seed])
    command = [*strace, "-e", f"inject={CALLS}:{fault}", sys.executable, "-m", "scripts.stressing.writes", settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SILENCE, check=False)  # noqa: S603 - ours
    except subprocess.TimeoutExpired:
        raise Stuck(f"a process with {fault} did not end") from None
    if done.returncode:
        raise Stuck(f"a process with {fault} ended with {done.returncode}:\n{done.stderr}")
    kept, wrong = json.loads(done.stdout)
    return kept, wrong


def embed_batches(world: World, seed: int) -> Iterator[tuple[list[str], int]]:
    """Embed new texts and known ones; yield, for each call, what it acknowledged and how many vectors were wrong."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    embedder = world.open()
    texts: list[str] = []
    for batch in range(BATCHES):
        new = [f"text {n} of batch {batch}" for n in range(chance.randrange(1, 30))]
        texts += new
        some = new + chance.sample(texts, min(10, len(texts)))
        failed = failures(embedder)
        vectors = embedder.embed(some)
        yield (new if failures(embedder) == failed else []), wrong_rows(vectors, right(some))
        if batch == BATCHES // 2:
            embedder.close()
            embedder = world.open()
    embedder.close()


def main() -> None:
    """Embed, and print what was acknowledged and how many vectors were wrong."""
    base_url, folder, without, seed = json.loads(sys.argv[1])
    world = World(base_url, Path(folder), without)
    prepare(world)
    kept: list[str] = []
    wrong = 0
    for some, bad in embed_batches(world, seed):
        kept += some
        wrong += bad
    print(json.dumps([kept, wrong]))


if __name__ == "__main__":
    main()
