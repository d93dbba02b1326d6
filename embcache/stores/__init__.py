"""Where vectors are kept: the protocol of a store, and those that come with embcache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embcache.stores.base import Store, Totals
from embcache.stores.memory import MemoryStore

if TYPE_CHECKING:
    from embcache.stores.disk import DiskStore

__all__ = ["DiskStore", "MemoryStore", "Store", "Totals"]


def __getattr__(name: str) -> object:
    """Import the store on disk where it is first asked for: it brings diskcache and sqlite3."""
    if name == "DiskStore":
        from embcache.stores.disk import DiskStore

        return DiskStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
