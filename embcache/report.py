"""Figures and progress, made fit to be seen: one room for terminal, notebook and file."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from embcache.types import CacheStats

SECONDS_BEFORE_BAR = 2.0
"""Work that ends sooner shows no bar unless one is asked for."""


class Progress(Protocol):
    """What is told how far a call came."""

    def update(self, n: int = 1) -> object:
        """Note that ``n`` inputs more are there."""
        ...

    def close(self) -> object:
        """End the show."""
        ...


def begin_progress(total: int, *, wanted: bool | None) -> Progress | None:
    """Return a bar for ``total`` inputs to buy: always, never, or (None) on a terminal for what takes long."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return None
    from tqdm.auto import tqdm

    bar: Progress = tqdm(total=total, unit=" inputs", desc="embedding", delay=0 if wanted else SECONDS_BEFORE_BAR)
    return bar


def as_json(stats: CacheStats) -> dict[str, Any]:
    """Return figures as plain values, under the names of :class:`~embcache.types.CacheStats`."""
    plain = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return plain | {"by_model": {model: as_json(part) for model, part in stats.by_model.items()}}
