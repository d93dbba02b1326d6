"""Figures on a terminal: tables, and a chart of the last days."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from embcache.show import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache import report
    from embcache.types import CacheStats

HITS, MISSES = "cyan", "yellow"
BLOCKS = " ▁▂▃▄▅▆▇█"
"""Blocks of nought to eight eighths."""
SHADE = "░"
FULL = len(BLOCKS) - 1
HEIGHT = 8
"""Lines of the chart."""
DAY_WIDTH = 2


def make_console() -> Console:
    """Return the terminal; what NO_COLOR and TERM say of it holds."""
    return Console(highlight=False)


def show(
    console: Console,
    rows: Sequence[tuple[str, str]],
    tables: Sequence[report.Table],
    days: Mapping[str, CacheStats],
) -> None:
    """Print the figures in all, a chart of the last days, and the tables of what they are made of."""
    totals = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    totals.add_column(style="bold")
    totals.add_column(overflow="fold")
    for row in rows:
        totals.add_row(*map(_text, row))
    console.print(totals)
    for line in chart(days, console.width, colour=console.color_system is not None and not console.no_color):
        console.print(line, no_wrap=True, crop=True)
    for head, *lines in tables:
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        table.add_column(head[0], overflow="fold")
        for column in head[1:]:  # where room is short, a figure is seen to be cut
            table.add_column(column, justify="right", overflow="ellipsis", no_wrap=True)
        for cells in lines:
            table.add_row(*map(_text, cells))
        console.print()
        console.print(table)


def chart(days: Mapping[str, CacheStats], width: int, *, colour: bool) -> list[Text]:
    """Return the hits and misses of days as columns, none where there were none; the latest days where room is short.

    Without ``colour``, misses are shaded.
    """
    scale = max((part.hits + part.misses for part in days.values()), default=0)
    if not scale:
        return []
    margin = len(f"{scale:,}") + 1
    shown = list(days.items())[-max(1, (width - margin) // DAY_WIDTH) :]
    key = Text.assemble(
        "\nby day (UTC)  ", (BLOCKS[FULL], HITS), " hits  ", (BLOCKS[FULL] if colour else SHADE, MISSES), " misses"
    )
    lines = [key]
    for level in reversed(range(HEIGHT)):
        label = f"{scale:,}" if level == HEIGHT - 1 else "0" if level == 0 else ""
        line = Text.assemble((label.rjust(margin - 1) + " ", "dim"))
        for _, part in shown:
            line.append_text(_cell(part, scale, level, colour=colour))
        lines.append(line)
    first, last = shown[0][0], shown[-1][0]
    gap = len(shown) * DAY_WIDTH - len(first) - len(last)
    ends = f"{first}{' ' * gap}{last}" if gap > 0 else last
    lines.append(Text(" " * margin + ends, style="dim"))
    return lines


def _cell(part: CacheStats, scale: int, level: int, *, colour: bool) -> Text:
    """Return one line's piece of one day's column: hits below, misses on top, told apart to an eighth of a line."""
    asked = part.hits + part.misses
    eighths = asked and max(1, round(asked * HEIGHT * FULL / scale))
    below = asked and round(eighths * part.hits / asked)
    filled = min(max(eighths - level * FULL, 0), FULL)
    hits = min(max(below - level * FULL, 0), FULL)
    if not colour:
        glyph = BLOCKS[filled] if hits * 2 >= filled else SHADE
        return Text(glyph.ljust(DAY_WIDTH))
    if filled == FULL and 0 < hits < FULL:
        return Text.assemble((BLOCKS[hits], f"{HITS} on {MISSES}"), " ")
    return Text.assemble((BLOCKS[filled], HITS if hits * 2 >= filled else MISSES), " ")


def _text(cell: str) -> Text:
    """Return a name or figure as it stands: one in brackets is no markup."""
    return Text(printable(cell))
