"""What came of a part, and the table of all parts."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

HEADINGS = ("part", "what was done", "acknowledged", "lost", "wrong", "stuck", "seconds")


@dataclass
class Counts:
    """What came of many faults.

    Attributes:
        acknowledged: vectors that a call returned as stored, and that were looked for afterwards.
        lost: of these, the ones that were not there, and files that were damaged.
        wrong: vectors that were not those of their texts.
        stuck: calls that did not end or ended in an error, threads that died, locks that stayed.
    """

    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    stuck: int = 0

    def __iadd__(self, other: Self) -> Self:
        """Add what came of some more."""
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.wrong += other.wrong
        self.stuck += other.stuck
        return self

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, wrong or stuck."""
        return not (self.lost or self.wrong or self.stuck)


@dataclass(frozen=True)
class Line:
    """One part in the table."""

    part: str
    done: str
    counts: Counts
    seconds: float

    def cells(self) -> list[str]:
        """Return what stands in the table."""
        return [self.part, self.done, *(f"{count:,}" for count in astuple(self.counts)), f"{self.seconds:.0f}"]


def as_table(lines: list[Line]) -> str:
    """Return the table in Markdown."""
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *(line.cells() for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
