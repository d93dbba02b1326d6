"""The chart of `embcache stats` on a terminal: it is true to its figures, and fits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from embcache import CacheStats
from embcache.cli.terminal import BLOCKS, FULL, HEIGHT, HITS, MISSES, chart, show

if TYPE_CHECKING:
    from rich.text import Text

COUNTS = st.integers(0, 10**9)
DAYS = st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=30)


def days(counts: list[tuple[int, int]]) -> dict[str, CacheStats]:
    return {f"2026-01-{n + 1:02}": CacheStats(hits=hits, misses=misses) for n, (hits, misses) in enumerate(counts)}


def columns(lines: list[Text], count: int) -> list[list[tuple[str, str]]]:
    """Each day's column from the ground upwards: its glyphs with their styles."""
    found: list[list[tuple[str, str]]] = []
    for number in range(count):
        column: list[tuple[str, str]] = []
        for line in reversed(lines[1:-1]):
            at = len(line) - 2 * (count - number)
            styles = [str(span.style) for span in line.spans if span.start <= at < span.end]
            column.append((line.plain[at], styles[0] if styles else ""))
        found.append(column)
    return found


def eighths(column: list[tuple[str, str]]) -> tuple[int, int]:
    """How high a column's hits are, and the whole of it, in eighths of a line."""
    hits = whole = 0
    for glyph, style in column:
        filled = BLOCKS.index(glyph)
        if style == f"{HITS} on {MISSES}":
            hits, whole = hits + filled, whole + FULL
        else:
            hits, whole = hits + filled * (style == HITS), whole + filled
    return hits, whole


@given(DAYS)
def test_columns_are_as_high_as_their_figures(counts: list[tuple[int, int]]) -> None:
    """To an eighth of a line a column is as high as its day's inputs, none of them hidden; hits to half a line."""
    scale = max(hits + misses for hits, misses in counts)
    lines = chart(days(counts), 80, colour=True)
    if not scale:
        assert lines == []
        return
    assert len(lines) == HEIGHT + 2
    for (hits, misses), column in zip(counts, columns(lines, len(counts)), strict=True):
        below, whole = eighths(column)
        assert abs(whole - (hits + misses) / scale * HEIGHT * FULL) <= (1 if hits + misses else 0)
        assert bool(whole) == bool(hits + misses)
        assert abs(below - hits / scale * HEIGHT * FULL) <= FULL / 2 + 1


@given(DAYS, st.integers(40, 200), st.booleans())
def test_chart_fits(counts: list[tuple[int, int]], width: int, colour: bool) -> None:
    """Whatever the terminal's width, no line is longer; where room is short, the latest days are shown."""
    lines = chart(days(counts), width, colour=colour)
    assert all(len(line.plain.strip("\n")) <= width for line in lines)
    assert not lines or lines[-1].plain.endswith(list(days(counts))[-1])


def test_without_colour() -> None:
    """Without colour, hits are solid and misses are shaded."""
    lines = chart(days([(80, 0), (40, 40), (0, 80)]), 80, colour=False)
    shown = [line.plain[-6:] for line in lines[1:-1]]
    assert shown == ["█ ░ ░ "] * 4 + ["█ █ ░ "] * 4
    assert all("cyan" not in str(span.style) for line in lines[1:] for span in line.spans)


def test_a_figure_is_not_cut_unseen() -> None:
    """Where a table does not fit, what is left out of a figure is seen to be left out."""
    console = Console(file=io.StringIO(), width=20, color_system=None)
    show(console, [("cache", "c")], [[("model", "billed", "saved"), ("a-model", "123,456,789,012", "999,999,999")]], {})
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().splitlines()[-2:]
    assert "…" in "".join(last)
