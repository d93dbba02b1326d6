"""The parts, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.stressing import flips, interrupts, kills, machine, pairs, processes, writes

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from scripts.stressing.counts import Counts
    from scripts.stressing.world import World


@dataclass(frozen=True)
class Part:
    """One kind of fault.

    Attributes:
        number: how many there are in a whole run.
        done: what a number of them is called in the table.
        run: meets so many of them, and returns what came of it.
    """

    number: int
    done: str
    run: Callable[[World, int, random.Random], Counts]


PARTS = {
    "kills": Part(300, "processes killed", kills.run),
    "interrupts": Part(5_000, "interrupts", interrupts.run),
    "flips": Part(1_000, "bits flipped", flips.run),
    "processes": Part(16, "processes at once", processes.run),
    "writes": Part(60, "first writes to fail", writes.run),
    "pairs": Part(100, "pairs that share a key", pairs.run),
    "machine": Part(120, "random walks", machine.run),
}
