"""The account book of an embedder: what it counted, and what of that the store has not been told yet."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from embcache.forks import tell_after_fork, wait_before_fork
from embcache.usage import DAY_SECONDS, account_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.codec import Entry
    from embcache.types import Space

FLUSH_SECONDS = 1.0
"""Counts wait in memory this long before they are written."""

Accounts = dict[bytes, dict[str, int]]


class Ledger:
    """Counts for one space and project: of the session, and on their way to the store."""

    def __init__(self, space: Space, project: str | None = None) -> None:
        """Open an empty book."""
        self._space = space
        self._project = project
        self._lock = threading.Lock()
        self._session: dict[str, int] = {}
        self._pending: Accounts = {}
        self._pending_since: float | None = None
        self._today = (-1, b"")
        self._hits = self._saved = self._exact = 0
        tell_after_fork(self)
        wait_before_fork(self)

    def locks(self) -> list[threading.Lock]:
        """Return what is locked by whoever counts."""
        return [self._lock]

    def connections(self) -> list[object]:
        """Return what a child of a fork must neither use nor close: none."""
        return []

    def after_fork(self) -> None:
        """Leave to the parent what the store has not been told yet."""
        with self._lock:
            self._fold()
            self._pending, self._pending_since = {}, None

    def add(self, counts: Mapping[str, int]) -> bool:
        """Count, for the session and for the store to be told; return whether it had nothing to be told before."""
        with self._lock:
            was_empty = self._pending_since is None
            self._add(counts)
            return was_empty and self._pending_since is not None

    def add_hits(self, entries: Sequence[Entry]) -> bool:
        """Count hits, and what they saved; return as ``add`` does. The short way for the shortest calls."""
        with self._lock:
            self._hits += len(entries)
            for entry in entries:
                if entry.tokens:
                    self._saved += entry.tokens
                    self._exact += entry.tokens * entry.exact
            if self._pending_since is not None:
                return False
            self._pending_since = time.monotonic()
            return True

    def _fold(self) -> None:
        """Put single hits to the other counts."""
        if self._hits:
            counts = {"hits": self._hits, "saved_tokens": self._saved, "saved_exact": self._exact}
            self._hits = self._saved = self._exact = 0
            self._add(counts)

    def take(self, counts: Mapping[str, int]) -> Accounts:
        """Count this too, and return all that the store is to be told: the taker's to deliver from now on.

        In one step, so that what a request was billed goes into the very commit that stores what it bought.
        """
        with self._lock:
            self._fold()
            self._add(counts)
            pending, self._pending, self._pending_since = self._pending, {}, None
            return pending

    def give_back(self, usage: Accounts) -> None:
        """Take back what could not be delivered."""
        with self._lock:
            for account, counts in usage.items():
                _sum(self._pending.setdefault(account, {}), counts)
            if usage:
                self._pending_since = time.monotonic()

    def add_to_session(self, counts: Mapping[str, int]) -> None:
        """Count what the store knows by itself."""
        with self._lock:
            _sum(self._session, counts)

    def seconds_until_flush(self) -> float | None:
        """Return how long the store need not be told yet, at least 0; None where there is nothing to tell."""
        with self._lock:
            if self._pending_since is None:
                return None
            return max(0.0, self._pending_since + FLUSH_SECONDS - time.monotonic())

    def session(self) -> dict[str, int]:
        """Return what was counted since the book was opened."""
        with self._lock:
            self._fold()
            return dict(self._session)

    def _add(self, counts: Mapping[str, int]) -> None:
        if not any(counts.values()):
            return
        now = time.time()
        day = int(now // DAY_SECONDS)
        if day != self._today[0]:
            self._today = day, account_of(self._space, now, self._project)
        _sum(self._session, counts)
        _sum(self._pending.setdefault(self._today[1], {}), counts)
        if self._pending_since is None:
            self._pending_since = time.monotonic()


def _sum(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count:
            total[name] = total.get(name, 0) + count
