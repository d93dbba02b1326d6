"""What was measured, as a table for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

HEAD = ("row", "measured", "against", "goal", "median", "from .. to", "n", "")


@dataclass(slots=True)
class Line:
    """One line of the table: something measured against something else.

    Attributes:
        row: the row it belongs to, as ``--rows`` names it.
        what: what was measured.
        against: what it is divided by, or compared with.
        values: the ratio (or figure) of each round.
        unit: what stands behind the figure, such as ``x``.
        at_most: the goal, where less is better.
        at_least: the goal, where more is better.
        sides: the median of each side's own figure, in words.
        note: what else a reader has to know, such as why it was skipped.
    """

    row: str
    what: str
    against: str = ""
    values: list[float] = field(default_factory=list)
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    sides: str = ""
    note: str = ""

    @property
    def goal(self) -> str:
        """The goal in words."""
        if self.at_most is not None:
            return f"at most {_show(self.at_most, self.unit)}"
        return "" if self.at_least is None else f"at least {_show(self.at_least, self.unit)}"

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None where there is no goal, or nothing was measured."""
        if not self.values or not self.goal:
            return None
        middle = median(self.values)
        return middle <= self.at_most if self.at_most is not None else middle >= (self.at_least or 0)

    def cells(self) -> tuple[str, ...]:
        """Return the line's cells, in the order of ``HEAD``."""
        verdict = {None: "", True: "met", False: "**not met**"}[self.met]
        if not self.values:
            return self.row, self.what, self.against, self.goal, "", "", "", f"skipped: {self.note}"
        low, high = _show(min(self.values)), _show(max(self.values))
        middle, spread = _show(median(self.values), self.unit), f"{low} .. {high}" if len(self.values) > 1 else ""
        return self.row, self.what, self.against, self.goal, middle, spread, str(len(self.values)), verdict

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return {
            "row": self.row,
            "measured": self.what,
            "against": self.against,
            "unit": self.unit,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "median": median(self.values) if self.values else None,
            "values": self.values,
            "met": self.met,
            "sides": self.sides,
            "note": self.note,
        }


def _show(value: float, unit: str = "x") -> str:
    """Return a figure with three digits or more, and its unit if it is no ratio."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2  # noqa: PLR2004 - steps of ten
    return f"{value:,.{digits}f}{'' if unit == 'x' else ' ' + unit}"


def as_table(lines: list[Line]) -> str:
    """Return the lines as a Markdown table that also reads well as it is, and below it the figures behind them."""
    rows = [HEAD, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    shown = [_row(row, widths) for row in rows]
    shown.insert(1, _row(["-" * width for width in widths], widths))
    behind = [f"- {line.row}, {line.what}: {line.sides}" for line in lines if line.sides]
    notes = [f"- {line.row}, {line.what}: {line.note}" for line in lines if line.note and line.values]
    return "\n".join([*shown, "", *dict.fromkeys([*behind, *notes])])


def _row(cells: tuple[str, ...] | list[str], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
