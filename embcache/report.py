"""Figures and progress, made fit to be seen: one room for terminal, notebook and file."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from embcache.keys import decode_space
from embcache.types import HELD, OF_MODELS, OF_SPENDING, CacheStats, as_rows, part_table
from embcache.usage import EVERYTHING, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from embcache.stores.base import Store
    from embcache.usage import Wanted

SECONDS_BEFORE_BAR = 2.0
"""Work that ends sooner shows no bar unless one is asked for."""
DAYS = 30
"""Days that are shown one by one, today included."""
PARTS = ("by_model", "by_project", "by_day")

Table = list[tuple[str, ...]]
"""A line of headings, and lines of as many cells."""


class Progress(Protocol):
    """What is told how far a call came."""

    def update(self, n: int = 1) -> object:
        """Note that ``n`` inputs more are there."""
        ...

    def close(self) -> object:
        """End the show."""
        ...


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether people see what is written to ``stream``, which is None where the process was started without."""
    return stream is not None and not stream.closed and stream.isatty()


def begin_progress(total: int | None, *, wanted: bool | None) -> Progress | None:
    """Return a bar for ``total`` inputs: always, never, or (None) where somebody looks, for what takes long.

    Somebody looks at a terminal, and at a notebook. A ``total`` of None shows how many are done, but not of how many.
    """
    if wanted is False or (wanted is None and not is_terminal(sys.stderr) and not in_notebook()):
        return None
    if "tqdm.auto" not in sys.modules:
        from tqdm import TqdmWarning

        # In a notebook without widgets it advises to install them, and makes do with text.
        with warnings.catch_warnings(action="ignore", category=TqdmWarning):
            import_module("tqdm.auto")
    from tqdm.auto import tqdm

    bar: Progress = tqdm(total=total, unit=" inputs", desc="embedding", delay=0 if wanted else SECONDS_BEFORE_BAR)
    return bar


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, where standard error is shown but is no terminal."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and hasattr(get_shell(), "kernel")


def read_stats(store: Store, prices: Mapping[str, float], wanted: Wanted = EVERYTHING) -> CacheStats:
    """Return the figures of a store, from its accounts and what it counts of its spaces; no entry is read.

    Args:
        store: where the accounts are.
        prices: the user's, by model, for a million tokens.
        wanted: whose figures.

    Raises:
        StoreError: it cannot be read.
    """
    totals = store.totals()
    spaces = [(decode_space(name), entries, size) for name, (entries, size) in totals.spaces.items()]
    return summarise(totals.accounts, spaces, prices, totals.bytes_on_disk, wanted)


def as_json(stats: CacheStats) -> dict[str, Any]:
    """Return figures as plain values, under the names of :class:`~embcache.types.CacheStats`."""
    names = [field.name for field in fields(stats) if field.name not in PARTS]

    def plain(part: CacheStats) -> dict[str, Any]:
        return {name: getattr(part, name) for name in names}

    parts = {by: {name: plain(part) for name, part in getattr(stats, by).items()} for by in PARTS}
    return plain(stats) | parts


def total_rows(stats: CacheStats, wanted: Wanted) -> list[tuple[str, str]]:
    """Return the figures in all for people, as (what, how much), without what cannot be told of a project."""
    return [row for row in as_rows(stats) if wanted.project is None or row[0] not in HELD]


def part_tables(stats: CacheStats, wanted: Wanted) -> list[Table]:
    """Return the figures by model, and by project if one has a name; none where there are none."""
    tables: list[Table] = []
    if stats.by_model:
        tables.append(part_table("model", stats.by_model, OF_MODELS if wanted.project is None else OF_SPENDING))
    if any(stats.by_project):
        tables.append(part_table("project", stats.by_project, OF_SPENDING))
    return tables


def last_days(stats: CacheStats, today: date) -> dict[str, CacheStats]:
    """Return the figures of each of the last days, those on which nothing happened included, by ISO date."""
    days = [(today - timedelta(days=before)).isoformat() for before in reversed(range(DAYS))]
    return {day: stats.by_day.get(day, CacheStats()) for day in days}


def day_table(days: Mapping[str, CacheStats]) -> Table:
    """Return the figures of those of ``days`` on which anything happened."""
    return part_table("day", {day: part for day, part in days.items() if part != CacheStats()}, OF_SPENDING)


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Return rows as lines of text: the first column to the left, the others to the right if they are ``numbers``."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    adjust = [str.ljust, *[str.rjust if numbers else str.ljust] * (len(widths) - 1)]
    return [
        "  ".join(put(cell, width) for put, cell, width in zip(adjust, row, widths, strict=True)).rstrip()
        for row in rows
    ]
