"""Where vectors are kept: the protocol of a store, and those that come with embcache."""

from embcache.stores.base import Store, Totals
from embcache.stores.disk import DiskStore
from embcache.stores.memory import MemoryStore

__all__ = ["DiskStore", "MemoryStore", "Store", "Totals"]
