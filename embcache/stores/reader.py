"""Read-only connections to a store's database, one a thread: many keys a statement, never a lock taken.

So a full disk, a read-only folder and somebody else's lock are no special cases of reading.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from embcache.errors import StoreError
from embcache.stores.folder import DAMAGE, Damaged, check, database_of, identity_of, look_over
from embcache.stores.table import LAST, marks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

CACHE_KIB = 2048
"""Memory a connection keeps for pages. SQLite's own default counts pages, of which 32 KiB each would be much."""
SOUND = "mode = 1 AND filename IS NULL AND typeof(value) = 'blob'"
"""What is true of every row that we write."""

ONE = f"SELECT key, value FROM Cache WHERE raw = 1 AND key = ? AND {SOUND}"  # noqa: S608 - our own words


class DamagedError(StoreError):
    """The database cannot be read because it is damaged."""


def open_read_only(path: Path) -> sqlite3.Connection:
    """Return a connection to the database at ``path`` that reads it, and in whose folder nobody need write.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    try:
        return _open(path, "mode=ro", sqlite3.Connection)
    except sqlite3.OperationalError:
        # Where the folder cannot be written, SQLite needs to be told that nobody else writes to it either. Never with
        # a log that holds commits, which it would not read then.
        seen = _state_of(path)
        if seen[-1]:
            raise
        connection = _open(path, "mode=ro&immutable=1", Frozen)
        connection.seen = seen
        return connection


class Frozen(sqlite3.Connection):
    """A connection that was told that nobody writes, and looks no more: good for what was there, and nothing later."""

    seen: tuple[int, int, int]


def _is_over(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether somebody wrote to the database at ``path`` after all."""
    return isinstance(connection, Frozen) and connection.seen != _state_of(path)


def _state_of(path: Path) -> tuple[int, int, int]:
    """Return what changes when somebody writes: size and time of the file, and the size of its log."""
    file, log = path.stat(), path.with_name(path.name + "-wal")
    return file.st_size, file.st_mtime_ns, log.stat().st_size if log.exists() else 0


C = TypeVar("C", bound=sqlite3.Connection)


def _open(path: Path, how: str, kind: type[C]) -> C:
    connection = sqlite3.connect(
        f"{path.as_uri()}?{how}", uri=True, timeout=1.0, isolation_level=None, check_same_thread=False, factory=kind
    )
    try:
        connection.execute("PRAGMA schema_version").fetchall()  # the first that opens the file
    except BaseException:
        connection.close()
        raise
    return connection


class _Held:
    """A connection, with what tells the file it was opened to; closed at the end of its thread, or by ``close()``."""

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int]) -> None:
        self.connection = connection
        self.file = file
        self.is_open = True
        self.lock = threading.Lock()  # SQLite does not survive a connection that is closed while it is used

    def close(self) -> None:
        with self.lock:
            if self.is_open:
                self.is_open = False
                with contextlib.suppress(sqlite3.Error):
                    self.connection.close()

    def __del__(self) -> None:
        if self.is_open:
            self.connection.close()


class Reader:
    """Reads the database of ``directory``; where there is none, there is nothing in it."""

    def __init__(self, directory: Path) -> None:
        """Remember where; a connection is opened by the first thread that reads."""
        self._directory = directory
        self._path = database_of(directory)
        self._begin()

    def _begin(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def connections(self) -> list[object]:
        """Return what a child of a fork must neither use nor close."""
        return list(self._held)

    def locks(self) -> list[threading.Lock]:
        """Return what is locked by whoever reads."""
        return [self._opening, *(held.lock for held in list(self._held))]

    def after_fork(self) -> None:
        """Begin anew in a child."""
        self._begin()

    def rows(self, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (key, value) of those ``keys`` that are held, at most as many as a statement takes."""
        if len(keys) == 1:
            return self._query(ONE, tuple(keys))
        # Looked up by key in the index alone, then read by rowid: neighbours share a page, which is then read once.
        return self._query(
            "SELECT key, value FROM Cache"  # noqa: S608 - question marks
            f" WHERE rowid IN (SELECT rowid FROM Cache WHERE raw = 1 AND key IN ({marks(keys)})) AND {SOUND}",
            tuple(keys),
        )

    def family(self, family: bytes) -> list[tuple[bytes, bytes]]:
        """Return (key, value) of all notes whose key begins with ``family``."""
        return self._query(
            "SELECT key, value FROM Cache"  # noqa: S608 - our own words
            f" WHERE raw = 1 AND tag IS NULL AND {SOUND} AND key >= ? AND key < ?",
            (family, family + LAST),
        )

    def entries(self, chunk: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield (key, value, number of its space) of all entries, oldest first; no statement stays open in between."""
        last = -1
        while True:
            rows = self._query(
                "SELECT rowid, key, value, tag FROM Cache"  # noqa: S608 - our own words
                " WHERE rowid > ? AND raw = 1 AND typeof(tag) = 'integer' AND typeof(key) = 'blob' AND length(key) = 16"
                f" AND {SOUND} ORDER BY rowid LIMIT ?",
                (last, chunk),
            )
            if not rows:
                return
            for _, key, value, number in rows:
                yield key, value, number
            last = rows[-1][0]

    def entries_by_key(self, chunk: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield (key, value, number of its space) of all entries, ascending by key; no statement stays open between."""
        last = b""
        while True:
            # The index alone tells the keys; a row is then read for each, wherever it lies.
            rows = self._query(
                "SELECT key, value, tag FROM Cache"  # noqa: S608 - our own words
                " WHERE raw = 1 AND key > ? AND typeof(key) = 'blob' AND length(key) = 16 AND typeof(tag) = 'integer'"
                f" AND {SOUND} ORDER BY key LIMIT ?",
                (last, chunk),
            )
            if not rows:
                return
            yield from rows
            last = rows[-1][0]

    def used(self) -> int:
        """Return the bytes of the database that are in use."""
        pages = "SELECT (page_count - freelist_count) * page_size FROM"
        rows = self._query(f"{pages} pragma_page_count, pragma_freelist_count, pragma_page_size", ())
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        """Close the connections of all threads; a later read opens its own again."""
        with self._lock:
            held, self._held, self._local = list(self._held), weakref.WeakSet(), threading.local()
        for one in held:
            one.close()

    def _query(self, statement: str, values: Sequence[object]) -> list[Any]:
        try:
            while True:
                held = self._connection()
                if held is None:
                    return []
                with held.lock:
                    if held.is_open:  # else another thread closed the reader meanwhile
                        return held.connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError, Damaged) as error:
            damaged = isinstance(error, Damaged) or getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE
            kind = DamagedError if damaged else StoreError
            raise kind(f"the cache {self._path} cannot be read: {error}") from error

    def _connection(self) -> _Held | None:
        """Return this thread's connection to the file that is there now, None where there is none."""
        now = identity_of(self._path)
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None and held.is_open and held.file == now and not _is_over(held.connection, self._path):
            return held
        self._local.held = None  # the file was removed, replaced or written to after all, or was never there
        connection = self._connect() if now is not None else None
        if connection is None or now is None:
            return None
        held = self._local.held = _Held(connection, now)
        with self._lock:
            self._held.add(held)
        return held

    def _connect(self) -> sqlite3.Connection | None:
        """Return a new connection, None where the file holds no table yet."""
        check(self._directory)
        with self._opening:
            connection = open_read_only(self._path)
            try:
                if look_over(connection):
                    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}").fetchall()
                    connection.execute("PRAGMA mmap_size = 0").fetchall()
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
            return None
