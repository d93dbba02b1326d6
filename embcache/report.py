"""Figures and progress, made fit to be seen: one room for terminal, notebook and file."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

from embcache.types import FAULT_COUNTERS, show_money

if TYPE_CHECKING:
    from embcache.types import CacheStats

SECONDS_BEFORE_BAR = 2.0
"""Work that ends sooner shows no bar unless one is asked for."""
KILO = 1000


class Progress(Protocol):
    """What is told how far a call came."""

    def update(self, n: int = 1) -> object:
        """Note that ``n`` inputs more are there."""
        ...

    def close(self) -> object:
        """End the show."""
        ...


def begin_progress(total: int | None, *, wanted: bool | None) -> Progress | None:
    """Return a bar for ``total`` inputs: always, never, or (None) on a terminal for what takes long.

    A ``total`` of None shows how many are done, but not of how many.
    """
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return None
    from tqdm.auto import tqdm

    bar: Progress = tqdm(total=total, unit=" inputs", desc="embedding", delay=0 if wanted else SECONDS_BEFORE_BAR)
    return bar


def as_json(stats: CacheStats) -> dict[str, Any]:
    """Return figures as plain values, under the names of :class:`~embcache.types.CacheStats`."""
    plain = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return plain | {"by_model": {model: as_json(part) for model, part in stats.by_model.items()}}


def hit_rate(stats: CacheStats) -> float | None:
    """Return the share of inputs that were answered without a request; None where none was asked for.

    Repetitions within a call are no hits: nothing was stored for them yet.
    """
    asked = stats.hits + stats.misses + stats.duplicates
    return stats.hits / asked if asked else None


def show_bytes(count: int) -> str:
    """Return a number of bytes for people, in powers of ten."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < KILO:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= KILO
    return f"{size:,.1f} TB"


def show_rate(rate: float | None) -> str:
    """Return a share in per cent; a dash where there is none."""
    return "-" if rate is None else f"{rate:.1%}"


def as_rows(stats: CacheStats) -> list[tuple[str, str]]:
    """Return figures for people, as (what, how much); counters of faults only where something went wrong."""
    rows = [
        ("entries", f"{stats.entries:,}"),
        ("on disk", show_bytes(stats.bytes_on_disk)),
        ("hits", f"{stats.hits:,}"),
        ("misses", f"{stats.misses:,}"),
        ("duplicates", f"{stats.duplicates:,}"),
        ("hit rate", show_rate(hit_rate(stats))),
        ("requests", f"{stats.requests:,}"),
        ("tokens billed", f"{stats.billed_tokens:,}"),
        ("cost", show_money(stats.cost)),
        ("tokens saved", f"{stats.saved_tokens:,}"),
        ("saving", show_money(stats.saved_cost)),
    ]
    if stats.saved_tokens:
        rows.insert(10, ("saved exactly", f"{stats.saved_exact:,}"))
    if stats.unknown_requests:
        rows.append(("requests of unknown cost", f"{stats.unknown_requests:,}"))
    return rows + [
        (name.replace("_", " "), f"{getattr(stats, name):,}") for name in FAULT_COUNTERS if getattr(stats, name)
    ]


MODEL_COLUMNS = ("model", "entries", "on disk", "hit rate", "billed", "cost", "saved", "saving")


def by_model_rows(stats: CacheStats) -> list[tuple[str, ...]]:
    """Return the figures of each model, under ``MODEL_COLUMNS``."""
    return [
        (
            model,
            f"{part.entries:,}",
            show_bytes(part.bytes_on_disk),
            show_rate(hit_rate(part)),
            f"{part.billed_tokens:,}",
            "unknown" if part.cost is None else show_money(part.cost),
            f"{part.saved_tokens:,}",
            "unknown" if part.saved_cost is None else show_money(part.saved_cost),
        )
        for model, part in stats.by_model.items()
    ]
