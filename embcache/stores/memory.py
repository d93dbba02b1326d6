"""A store in the memory of the process: a dict with a bound. The smallest whole store, and a good one to read first."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from embcache.stores.base import PinConflict, Totals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class MemoryStore:
    """A store that ends with its process.

    Args:
        size_limit: bytes of records to hold at most, None for no limit; the oldest stored go first.
    """

    def __init__(self, size_limit: int | None = None) -> None:
        """Start empty."""
        self._size_limit = size_limit
        self._lock = threading.Lock()
        self._records: dict[bytes, tuple[bytes, bytes]] = {}
        self._notes: dict[bytes, bytes] = {}
        self._accounts: dict[bytes, Counter[str]] = {}
        self._leases: dict[bytes, tuple[bytes, float]] = {}
        self._events: Counter[str] = Counter()
        self._size = 0

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            found = {key: self._records[key][0] for key in keys if key in self._records}
            return found | {key: self._notes[key] for key in keys if key in self._notes}

    def put_many(  # noqa: PLR0913 - all that makes one commit
        self,
        records: Mapping[bytes, bytes],
        usage: Mapping[bytes, Mapping[str, int]] | None = None,
        *,
        space: bytes = b"",
        notes: Mapping[bytes, bytes] | None = None,
        pin: tuple[bytes, bytes] | None = None,
        release: bytes | None = None,
    ) -> None:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            if pin and self._notes.setdefault(*pin) != pin[1]:
                raise PinConflict
            for key, record in records.items():
                self._drop(key)
                self._records[key] = (record, space)
                self._size += len(record)
            self._notes.update(notes or {})
            for account, counts in (usage or {}).items():
                self._accounts.setdefault(account, Counter()).update(counts)
            if release is not None:
                self._release(release, tuple(self._leases))
            while self._size_limit is not None and self._size > self._size_limit:
                self._drop(next(iter(self._records)))
                self._events["evicted"] += 1

    def claim(self, keys: Collection[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        now = time.monotonic()
        with self._lock:
            free = {
                k for k in keys if k not in self._leases or self._leases[k][0] == owner or self._leases[k][1] <= now
            }
            self._leases.update(dict.fromkeys(free, (owner, now + seconds)))
            return free

    def release(self, keys: Collection[bytes], owner: bytes) -> None:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            self._release(owner, keys)

    def delete_many(self, keys: Collection[bytes]) -> int:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            return sum(self._drop(key) or self._notes.pop(key, None) is not None for key in set(keys))

    def scan(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            held = list(self._records.items())
        for key, (record, space) in held:
            yield key, record, space

    def totals(self) -> Totals:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            spaces: dict[bytes, tuple[int, int]] = {}
            for record, space in self._records.values():
                entries, size = spaces.get(space, (0, 0))
                spaces[space] = entries + 1, size + len(record)
            return Totals(spaces, {account: dict(counts) for account, counts in self._accounts.items()})

    def events(self) -> Mapping[str, int]:
        """See :class:`~embcache.stores.base.Store`."""
        with self._lock:
            events, self._events = self._events, Counter()
            return events

    def close(self) -> None:
        """Keep everything: there is nothing to write, and a later call finds it."""

    def _release(self, owner: bytes, keys: Collection[bytes]) -> None:
        for key in keys:
            if self._leases.get(key, (b"", 0.0))[0] == owner:
                del self._leases[key]

    def _drop(self, key: bytes) -> bool:
        """Remove an entry; return whether there was one."""
        record, _ = self._records.pop(key, (None, b""))
        self._size -= len(record or b"")
        return record is not None
