"""Figures as one page to look at: HTML with its own style and pictures, which loads nothing and runs nothing."""

from __future__ import annotations

from base64 import b64encode
from datetime import date
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from embcache._version import __version__
from embcache.report import day_table, last_days, part_tables
from embcache.show import show_bytes, show_money, show_rate
from embcache.types import FAULT_COUNTERS, hit_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embcache.report import Table
    from embcache.types import CacheStats
    from embcache.usage import Wanted

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f6f4; --line: #dededa; --ink: #1b1b1a; --soft: #5d5c58;
  --spared: #2a78d6; --bought: #d9622b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161615; --card: #20201f; --line: #3a3a37; --ink: #f1f1ee; --soft: #b5b4ad;
    --spared: #4a94ea; --bought: #e0753f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 3rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0; font-size: 1.5rem; font-weight: 650; }
h2 { margin: 2.5rem 0 0.75rem; font-size: 1.05rem; font-weight: 650; }
p { margin: 0.25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.75rem; margin-top: 1.5rem; }
.tile { padding: 0.9rem 0.85rem; border-radius: 0.5rem; background: var(--card); }
.tile h2 { margin: 0; font-size: 0.85rem; font-weight: 500; color: var(--soft); }
.tile strong { display: block; margin: 0.1rem 0; font-size: 1.5rem; font-weight: 600; }
.tile p { margin: 0; font-size: 0.8rem; }
figure { margin: 0; }
figcaption { display: flex; gap: 1.25rem; margin-bottom: 0.5rem; font-size: 0.85rem; color: var(--soft); }
figcaption span::before {
  content: ""; display: inline-block; width: 0.7rem; height: 0.7rem; margin-right: 0.4rem; border-radius: 2px;
}
.spared-key::before { background: var(--spared); }
.bought-key::before { background: var(--bought); }
/* Where room is short, a chart is moved rather than made too small to read, and its latest days are seen first. */
.chart { overflow-x: auto; direction: rtl; }
svg { display: block; width: 100%; min-width: 42rem; height: auto; direction: ltr; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.spared { fill: var(--spared); }
.bought { fill: var(--bought); }
.day { fill: transparent; }
.day:hover { fill: var(--ink); fill-opacity: 0.07; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0 0.4rem 1.25rem; border-bottom: 1px solid var(--line); }
th, td { text-align: right; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); }
tbody th { color: var(--ink); white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
th:first-child { padding-left: 0; text-align: left; }
details { margin-top: 1.25rem; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; }
footer { margin-top: 2.5rem; font-size: 0.85rem; color: var(--soft); }
"""
# Were anything in a name ever taken for markup, the browser would still load nothing and run nothing.
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'"
)
WIDTH, HEIGHT = 960, 230
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 10, 24
"""Room around a chart, for its labels."""
BAR_SHARE = 0.68
"""How much of a day's width its column takes."""
ROUND = 3
GAP = 1.5
"""Between the two parts of a column."""
LINES = 5
"""Lines across a chart, at most."""
WEEK = 7


class Column(NamedTuple):
    """One day of a chart: what was spared, and what was bought."""

    day: date
    spared: int
    bought: int


def page(stats: CacheStats, wanted: Wanted, today: date) -> str:
    """Return the page: the figures in all, charts of the last days up to ``today``, and tables.

    Args:
        stats: the figures, of a whole store or of what is ``wanted``.
        wanted: what they are limited to, to be told.
        today: the last day shown (UTC).
    """
    days = last_days(stats, today)
    columns = {day: date.fromisoformat(day) for day in days}
    inputs = [Column(columns[day], part.hits, part.misses) for day, part in days.items()]
    tokens = [Column(columns[day], part.saved_tokens, part.billed_tokens) for day, part in days.items()]
    parts = [
        _head(stats, wanted, today),
        _tiles(stats, wanted),
        "<h2>Inputs by day</h2>",
        _chart(inputs, "hits", "misses"),
        "<h2>Tokens by day</h2>",
        _chart(tokens, "saved", "billed"),
    ]
    daily = day_table(days)
    if len(daily) > 1:
        parts.append(f"<details><summary>The same in figures</summary>{_table(daily)}</details>")
    parts += [f"<h2>By {table[0][0]}</h2>{_table(table)}" for table in part_tables(stats, wanted)]
    faults = [(name.replace("_", " "), f"{getattr(stats, name):,}") for name in FAULT_COUNTERS if getattr(stats, name)]
    if faults:
        parts.append(f"<h2>What went wrong without failing</h2>{_table([('kind', 'times'), *faults])}")
    parts.append(
        f"<footer>Made by embcache {escape(__version__)}. Days are of UTC. Billed tokens are the servers' own figures; "
        "what was saved is exact where a request held one input, and apportioned by length otherwise. Amounts are at "
        "the prices known when this page was made.</footer>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>embcache: what was paid and what was saved</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _head(stats: CacheStats, wanted: Wanted, today: date) -> str:
    since = f"{_day(date.fromisoformat(next(iter(stats.by_day))))} to " if stats.by_day else ""
    limits = [f"{name} {value}" for name, value in wanted._asdict().items() if value is not None]
    only = f"<p>Only {escape(', '.join(limits))}</p>" if limits else ""
    return f"<header><h1>What was paid and what was saved</h1><p>{since}{_day(today)}</p>{only}</header>"


def _tiles(stats: CacheStats, wanted: Wanted) -> str:
    asked = stats.hits + stats.misses + stats.duplicates
    apportioned = stats.saved_tokens - stats.saved_exact
    tiles = [
        ("Billed", show_money(stats.cost), [f"{stats.billed_tokens:,} tokens", f"{stats.requests:,} requests"]),
        (
            "Saved",
            show_money(stats.saved_cost),
            [f"{stats.saved_tokens:,} tokens:", f"{stats.saved_exact:,} exact,", f"{apportioned:,} apportioned"],
        ),
        ("Unknown", f"{stats.unknown_requests:,}", ["requests of which no", "server told the cost"]),
        ("Hit rate", show_rate(hit_rate(stats)), [f"{stats.hits:,} hits", f"of {asked:,} inputs"]),
    ]
    if wanted.project is None:
        tiles.append(("In the cache", f"{stats.entries:,}", ["entries", show_bytes(stats.bytes_on_disk)]))
    return (
        '<div class="tiles">'
        + "".join(
            f'<section class="tile"><h2>{name}</h2><strong>{figure}</strong><p>{"<br>".join(lines)}</p></section>'
            for name, figure, lines in tiles
        )
        + "</div>"
    )


def _table(table: Table) -> str:
    head, *rows = table
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _chart(columns: Sequence[Column], spared: str, bought: str) -> str:
    """Return a chart of columns, what was bought on top of what was spared, with a name for each of the two."""
    step = _step(max(column.spared + column.bought for column in columns))
    top = step * max(1, -(-max(column.spared + column.bought for column in columns) // step))
    height, slot = HEIGHT - TOP - BOTTOM, (WIDTH - LEFT - RIGHT) / len(columns)
    ground = TOP + height
    marks: list[str] = []
    for value in range(0, top + 1, step):
        y = ground - height * value / top
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for number, column in enumerate(columns):
        x, wide = LEFT + slot * number, slot * BAR_SHARE
        left, middle = x + (slot - wide) / 2, x + slot / 2
        low, high = height * column.spared / top, height * column.bought / top
        if low:
            marks.append(_bar("spared", left, ground, wide, low, rounded=not high))
        if high:
            raised = low + GAP if low and high > GAP else low
            marks.append(_bar("bought", left, ground - raised, wide, high + low - raised, rounded=True))
        told = f"{_day(column.day)}: {column.spared:,} {spared}, {column.bought:,} {bought}"
        marks.append(
            f'<rect class="day" x="{x:.1f}" y="{TOP}" width="{slot:.1f}" height="{height}"><title>{told}</title></rect>'
        )
        if (len(columns) - 1 - number) % WEEK == 0:
            end = number == len(columns) - 1
            place = f'x="{WIDTH - RIGHT}" text-anchor="end"' if end else f'x="{middle:.1f}" text-anchor="middle"'
            marks.append(f'<text {place} y="{HEIGHT - 6}">{column.day.day} {column.day:%b}</text>')
    keys = f'<span class="spared-key">{spared}</span><span class="bought-key">{bought}</span>'
    label = f"{spared} and {bought} by day, {_day(columns[0].day)} to {_day(columns[-1].day)}"
    return (
        f'<figure><figcaption>{keys}</figcaption><div class="chart">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(marks)}</svg></div></figure>'
    )


def _bar(  # noqa: PLR0913 - a bar's own measures
    kind: str, x: float, ground: float, width: float, height: float, *, rounded: bool
) -> str:
    """Return a bar that stands on ``ground``, its upper corners rounded or not."""
    r = min(ROUND, height, width / 2) if rounded else 0
    return (
        f'<path class="{kind}" d="M{x:.1f} {ground:.1f}v{r - height:.2f}q0 {-r:.2f} {r:.2f} {-r:.2f}'
        f'h{width - 2 * r:.2f}q{r:.2f} 0 {r:.2f} {r:.2f}v{height - r:.2f}z"/>'
    )


def _step(highest: int) -> int:
    """Return the round number between two lines of a chart: 1, 2 or 5 with noughts."""
    step = 1
    while step * LINES < highest:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def _short(value: int) -> str:
    """Return a round number at a chart: ``250``, ``20k``, ``1.5M``."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{value / unit:,g}{name}"
    return str(value)


def _day(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"
