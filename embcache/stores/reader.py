"""Read-only connections to a store's database, one a thread: many keys a statement, never a lock taken."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from embcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CACHE_KIB = 2048
"""Memory a connection keeps for pages. SQLite's own default counts pages, of which 32 KiB each would be much."""

LAST = b"\xff" * 40
"""Greater than whatever follows the family in a note's key."""

_abandoned: list[sqlite3.Connection] = []
"""Connections of a parent process: SQLite forbids using and closing them after a fork, so that they are kept as is."""


class Reader:
    """Reads the database at ``path``; where there is none, there is nothing in it."""

    def __init__(self, path: Path) -> None:
        """Remember where; a connection is opened by the first thread that reads."""
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        self._pid = os.getpid()

    def rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (key, value) of those ``keys`` that are held, at most as many as a statement takes."""
        # Looked up by key in the index alone, then read by rowid: neighbours share a page, which is then read once.
        marks = ",".join("?" * len(keys))
        return self._query(
            "SELECT key, value FROM Cache"  # noqa: S608 - question marks
            f" WHERE rowid IN (SELECT rowid FROM Cache WHERE raw = 1 AND key IN ({marks}))"
            " AND mode = 1 AND filename IS NULL AND typeof(value) = 'blob'",
            keys,
        )

    def family(self, family: bytes) -> list[tuple[bytes, bytes]]:
        """Return (key, value) of all notes whose key begins with ``family``."""
        return self._query(
            "SELECT key, value FROM Cache WHERE raw = 1 AND mode = 1 AND typeof(value) = 'blob' AND tag IS NULL"
            " AND key >= ? AND key < ?",
            (family, family + LAST),
        )

    def entries(self, chunk: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield (key, value, number of its space) of all entries, oldest first; no statement stays open in between."""
        last = -1
        while True:
            rows = self._query(
                "SELECT rowid, key, value, tag FROM Cache WHERE rowid > ? AND tag IS NOT NULL ORDER BY rowid LIMIT ?",
                (last, chunk),
            )
            if not rows:
                return
            for last, key, value, number in rows:  # noqa: B007 - the last rowid is where the next goes on
                yield key, value, number

    def close(self) -> None:
        """Close the connections of all threads; a later read opens its own again."""
        with self._lock:
            connections, self._open = self._open, []
            self._local = threading.local()
        for connection in connections:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _query(self, statement: str, values: Sequence[object]) -> list[Any]:
        try:
            connection = self._connection()
            return connection.execute(statement, values).fetchall() if connection else []
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # made by another process a moment ago, and still empty
                return []
            raise self._translated(error) from error
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"the cache {self._path} cannot be read: {error}")

    def _connection(self) -> sqlite3.Connection | None:
        if self._pid != os.getpid():
            _abandoned.extend(self._open)
            self._open, self._local, self._lock, self._pid = [], threading.local(), threading.Lock(), os.getpid()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None and self._path.exists():
            connection = self._local.connection = self._connect("mode=ro")
            with self._lock:
                self._open.append(connection)
        return connection

    def _connect(self, how: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?{how}", uri=True, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA trusted_schema = OFF").fetchall()
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}").fetchall()
        connection.execute("PRAGMA mmap_size = 0").fetchall()
        return connection
