"""The default store: diskcache's file on disk. The only room that knows diskcache.

Writing goes through diskcache's own connection, on one thread; reading through read-only connections of ours to the
same file, many keys a statement, so that hits are served even where nothing can be written. Of diskcache's private
names ``Cache._con`` alone is used; ``tests/stores/test_disk.py`` fails when a new diskcache changes what is relied on.

What the table ``Cache`` holds, all with ``raw = 1`` and ``mode = 1``:

- entries: a 16-byte key, a sealed record, and the number of the entry's space as ``tag``;
- notes, spaces, accounts and leases: longer keys, sealed maps, no tag.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import diskcache

from embcache.codec import open_note, seal_note
from embcache.errors import StoreBusy, StoreError
from embcache.stores.base import PinConflict, Totals
from embcache.stores.folder import database_of, disk_usage, prepare
from embcache.stores.reader import LAST, Reader
from embcache.stores.writer import Writer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds a write may take of its caller's time."""
LOCK_PATIENCE = 0.8
"""Seconds of these it may wait for whoever else writes."""
CHUNK = 2000
"""Keys a statement; SQLite takes 32,766 values, and 999 before 3.32 of 2020."""
SECONDS_TO_CLOSE = 10.0
MODE_RAW = 1
NO_LIMIT = 2**62

SPACE = b"space:"
ACCOUNT = b"account:"
LEASE = b"lease:"

# Every setting is given at every open, so that what the file says is never obeyed.
SETTINGS: Mapping[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "size_limit": NO_LIMIT,
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 1,
    "sqlite_mmap_size": 0,
    "sqlite_auto_vacuum": 2,
    "sqlite_cache_size": -8192,
    "disk_min_file_size": NO_LIMIT,
    "disk_pickle_protocol": 0,
}


class BytesDisk(diskcache.Disk):
    """Bytes in, bytes out, always inside the database: nothing is pickled, and no file a row may name is touched."""

    def __init__(self, directory: str, **_ignored: object) -> None:
        """Ignore every setting a file could hold."""
        super().__init__(directory, min_file_size=NO_LIMIT, pickle_protocol=0)

    def put(self, key: object) -> NoReturn:
        """Refuse: rows are written by :class:`DiskStore` alone."""
        raise StoreError(f"diskcache was asked to write {type(key).__name__}")

    def get(self, key: object, raw: object) -> NoReturn:
        """Refuse: rows are read by :class:`~embcache.stores.reader.Reader` alone."""
        raise StoreError(f"diskcache was asked to read {type(key).__name__} {raw!r}")

    def store(self, value: object, read: object, key: object = None) -> NoReturn:
        """Refuse, as ``put``."""
        raise StoreError(f"diskcache was asked to store {type(value).__name__} {read!r} {type(key).__name__}")

    def fetch(self, mode: object, filename: object, value: object, read: object) -> NoReturn:  # noqa: ARG002
        """Refuse, as ``get``."""
        raise StoreError(f"diskcache was asked to fetch a row of mode {mode!r}")

    def filename(self, key: object = None, value: object = None) -> NoReturn:  # noqa: ARG002
        """Refuse: there are no files."""
        raise StoreError("diskcache was asked for a file")

    def remove(self, file_path: object) -> None:
        """Never remove what a row names."""


def space_number(space: bytes) -> int:
    """Return the number that rows of ``space`` carry: 48 bits of its hash, so that it can be told without the file."""
    return int.from_bytes(sha256(space).digest()[:6], "big")


def _note_key(family: bytes, name: bytes) -> bytes:
    return family + sha256(name).digest()


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _chunks(keys: Collection[bytes]) -> Iterator[list[bytes]]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


class DiskStore:
    """A store in a folder, shared by any number of processes on one machine.

    Args:
        directory: the folder, made if it is not there; private to the user.
        size_limit: bytes the files may take; None never evicts, otherwise the oldest stored entries go first.
    """

    def __init__(self, directory: str | os.PathLike[str], size_limit: int | None = None) -> None:
        """Remember where; nothing is opened or made before it is needed."""
        self.directory = Path(directory).expanduser().absolute()
        self.size_limit = size_limit
        self._writer = Writer(f"embcache-writer-{self.directory.name}")
        self._reader = Reader(database_of(self.directory))
        self._cache: Any = None  # a diskcache.Cache, which has no types; None while it is not open
        self._patience = LOCK_PATIENCE
        weakref.finalize(self, self._writer.stop)
        self._events: Counter[str] = Counter()
        self._events_lock = threading.Lock()

    # Reading, on the caller's thread

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        found: dict[bytes, bytes] = {}
        for chunk in _chunks(keys):
            found.update(self._reader.rows(chunk))
        return found

    def scan(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """See :class:`~embcache.stores.base.Store`."""
        spaces = {space_number(note["s"]): note["s"] for note in self._notes(SPACE)}
        for key, record, number in self._reader.entries(CHUNK):
            yield key, record, spaces.get(number, b"")

    def totals(self) -> Totals:
        """See :class:`~embcache.stores.base.Store`."""
        return Totals(
            {note["s"]: (note["e"], note["b"]) for note in self._notes(SPACE)},
            {note["a"]: note["c"] for note in self._notes(ACCOUNT)},
            disk_usage(self.directory),
        )

    def _notes(self, family: bytes) -> Iterator[dict[str, Any]]:
        for key, record in self._reader.family(family):
            note = open_note(key, record)
            if note is not None:
                yield note

    # Writing, on the writer's thread

    def put_many(
        self,
        records: Mapping[bytes, bytes],
        usage: Mapping[bytes, Mapping[str, int]] | None = None,
        *,
        space: bytes = b"",
        notes: Mapping[bytes, bytes] | None = None,
        pin: tuple[bytes, bytes] | None = None,
    ) -> None:
        """See :class:`~embcache.stores.base.Store`."""

        def put(connection: sqlite3.Connection) -> int:
            if pin:
                held = _value(connection, pin[0])
                if held is None:
                    _upsert(connection, *pin)
                elif held != pin[1]:
                    raise PinConflict
            evicted = self._insert(connection, records, space) if records else 0
            for key, note in (notes or {}).items():
                _upsert(connection, key, note)
            for account, counts in (usage or {}).items():
                _add(connection, _note_key(ACCOUNT, account), {"a": account}, counts)
            return evicted

        evicted = self._transact(put)
        if evicted:
            self._happened("evicted", evicted)

    def delete_many(self, keys: Collection[bytes]) -> int:
        """See :class:`~embcache.stores.base.Store`. The deleted bytes are overwritten in the file."""

        def delete(connection: sqlite3.Connection) -> int:
            connection.execute("PRAGMA secure_delete = ON").fetchall()
            return sum(_delete(connection, chunk) for chunk in _chunks(set(keys)))

        deleted = self._transact(delete)
        if deleted:
            self._writer.run(self._checkpoint, SECONDS_TO_CLOSE)
        return deleted

    def claim(self, keys: Collection[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        now = time.time()

        def claim(connection: sqlite3.Connection) -> set[bytes]:
            mine, others, expired = set[bytes](), set[bytes](), list[bytes]()
            for key, record in _family(connection, LEASE):
                note = open_note(key, record)
                # A lease that ends later than any can be given has a clock behind it that was set back.
                if note is None or not now < note["u"] <= now + note["s"]:
                    expired.append(key)
                else:
                    (mine if note["o"] == owner else others).update(_split(note["k"]))
            _delete(connection, expired)
            free = set(keys) - others
            key = _note_key(LEASE, owner)
            note = {"o": owner, "u": now + seconds, "s": seconds, "k": b"".join(sorted(mine | free))}
            _upsert(connection, key, seal_note(key, note))
            return free

        return self._transact(claim)

    def release(self, keys: Collection[bytes], owner: bytes) -> None:
        """See :class:`~embcache.stores.base.Store`."""
        key = _note_key(LEASE, owner)

        def release(connection: sqlite3.Connection) -> None:
            note = open_note(key, _value(connection, key))
            left = _split(note["k"]).difference(keys) if note else set[bytes]()
            if note and left:
                _upsert(connection, key, seal_note(key, note | {"k": b"".join(sorted(left))}))
            else:
                _delete(connection, [key])

        self._transact(release)

    def events(self) -> Mapping[str, int]:
        """See :class:`~embcache.stores.base.Store`."""
        with self._events_lock:
            events, self._events = self._events, Counter()
            return events

    def close(self) -> None:
        """See :class:`~embcache.stores.base.Store`. Folds the log into the file, which stands alone afterwards."""

        def close() -> None:
            if self._cache is not None:
                try:
                    self._checkpoint()
                finally:
                    self._cache.close()
                    self._cache = None

        self._reader.close()
        try:
            if self._cache is not None:
                self._writer.run(close, SECONDS_TO_CLOSE)
        except sqlite3.Error as error:
            message = f"the cache {self.directory} could not be closed: {error}"
            raise StoreError(message) from error
        finally:
            self._writer.stop()

    def _happened(self, name: str, count: int) -> None:
        with self._events_lock:
            self._events[name] += count

    def _transact(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out ``action`` within one transaction on the writer's thread."""

        def transact() -> T:
            connection = self._open()
            connection.execute(f"PRAGMA busy_timeout = {round(self._patience * 1000)}").fetchall()
            # After somebody kept us waiting in vain, nobody waits again until a write has succeeded.
            self._patience = 0.0
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = action(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._patience = LOCK_PATIENCE
            return result

        try:
            return self._writer.run(transact, PATIENCE)
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                message = f"the cache {self.directory} is locked by another process"
                raise StoreBusy(message) from error
            message = f"the cache {self.directory} cannot be written: {error}"
            raise StoreError(message) from error

    def _open(self) -> sqlite3.Connection:
        """Return diskcache's connection, opened if it was not. On the writer's thread only."""
        if self._cache is None:
            path = prepare(self.directory)
            # diskcache waits for a minute where the file is locked when it opens it; find that out before it does.
            probe = sqlite3.connect(path, timeout=self._patience, isolation_level=None)
            try:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
                self._cache = diskcache.Cache(str(self.directory), disk=BytesDisk, **SETTINGS)
            finally:
                probe.close()
            connection: sqlite3.Connection = self._cache._con  # noqa: SLF001 - see the top of this file
            connection.execute("PRAGMA trusted_schema = OFF").fetchall()
            connection.execute(f"PRAGMA journal_size_limit = {32 << 20}").fetchall()
        return self._cache._con  # type: ignore[no-any-return]  # noqa: SLF001

    def _checkpoint(self) -> None:
        """Fold the log into the file and empty it, as far as readers allow."""
        self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _insert(self, connection: sqlite3.Connection, records: Mapping[bytes, bytes], space: bytes) -> int:
        """Write records of ``space``; return how many entries were evicted for it."""
        for chunk in _chunks(records.keys()):
            _delete(connection, chunk)
        size = sum(map(len, records.values()))
        evicted = self._evict(connection, size) if self.size_limit is not None else 0
        now, number = time.time(), space_number(space)
        connection.executemany(
            "INSERT INTO Cache (key, raw, store_time, access_time, tag, mode, value) VALUES (?, 1, ?, ?, ?, 1, ?)",
            [(key, now, now, number, record) for key, record in records.items()],
        )
        _count(connection, number, len(records), size, space)
        return evicted + (self._evict(connection, 0) if self.size_limit is not None else 0)

    def _evict(self, connection: sqlite3.Connection, coming: int) -> int:
        """Remove the oldest entries until ``coming`` bytes more fit into the limit; return how many went."""
        limit, evicted = self.size_limit or 0, 0
        while True:
            pages, free, page = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            excess = (pages - free) * page + coming - limit
            if excess <= 0:
                return evicted
            oldest = connection.execute(
                "SELECT rowid, tag, length(value) FROM Cache WHERE tag IS NOT NULL ORDER BY rowid LIMIT ?",
                (max(1, excess // 8192),),
            ).fetchall()
            if not oldest:
                return evicted
            evicted += len(oldest)
            connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid, _, _ in oldest])
            _uncount(connection, [(tag, 1, size) for _, tag, size in oldest])


# What the writer does with its connection, within a transaction


def _value(connection: sqlite3.Connection, key: bytes) -> bytes | None:
    row = connection.execute("SELECT value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchone()
    return row[0] if row and type(row[0]) is bytes else None


def _family(connection: sqlite3.Connection, family: bytes) -> list[tuple[bytes, bytes]]:
    return connection.execute(
        "SELECT key, value FROM Cache WHERE raw = 1 AND tag IS NULL AND key >= ? AND key < ?", (family, family + LAST)
    ).fetchall()


def _upsert(connection: sqlite3.Connection, key: bytes, value: bytes) -> None:
    connection.execute(
        "INSERT INTO Cache (key, raw, store_time, access_time, mode, value) VALUES (?1, 1, ?3, ?3, 1, ?2)"
        " ON CONFLICT (key, raw) DO UPDATE SET store_time = ?3, mode = 1, filename = NULL, value = ?2",
        (key, value, time.time()),
    )


def _add(connection: sqlite3.Connection, key: bytes, about: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Add ``counts`` to those of a sealed note, which is made if it is not there or does not prove itself."""
    note = open_note(key, _value(connection, key))
    total = Counter(note["c"] if note else {})
    total.update(counts)
    _upsert(connection, key, seal_note(key, {**about, "c": dict(total)}))


def _delete(connection: sqlite3.Connection, keys: Sequence[bytes]) -> int:
    """Remove what is held under ``keys`` (no more than a statement takes); return how many were held."""
    where = f"WHERE raw = 1 AND key IN ({_marks(keys)})"
    held = connection.execute(
        f"SELECT tag, count(*), sum(length(value)) FROM Cache {where} GROUP BY tag",  # noqa: S608 - question marks
        keys,
    ).fetchall()
    if held:
        connection.execute(f"DELETE FROM Cache {where}", keys)  # noqa: S608 - question marks
        _uncount(connection, [row for row in held if row[0] is not None])
    return sum(count for _, count, _ in held)


def _space_key(connection: sqlite3.Connection, number: int) -> bytes | None:
    # The key begins with the number, so that a space is found by what its rows carry.
    start = SPACE + number.to_bytes(6, "big")
    for key, _ in _family(connection, start):
        return key
    return None


def _count(connection: sqlite3.Connection, number: int, entries: int, size: int, space: bytes | None = None) -> None:
    """Add to what is known of the space with this number; ``space`` names it where it may be new."""
    key = _note_key(SPACE, space) if space is not None else _space_key(connection, number)
    held = _value(connection, key) if key is not None else None
    note = open_note(key, held) if key is not None else None
    if key is None or (note is None and space is None):
        return  # a space whose name is lost is counted anew when it is next written to
    if note is None and held is not None:
        counted = "SELECT count(*), ifnull(sum(length(value)), 0) FROM Cache WHERE tag = ?"
        entries, size = connection.execute(counted, (number,)).fetchone()
    known = (note["e"], note["b"]) if note else (0, 0)
    about = {"s": note["s"] if note else space, "e": known[0] + entries, "b": known[1] + size}
    _upsert(connection, key, seal_note(key, about))


def _uncount(connection: sqlite3.Connection, removed: Iterable[tuple[int, int, int]]) -> None:
    entries, sizes = Counter[int](), Counter[int]()
    for number, count, size in removed:
        entries[number] += count
        sizes[number] += size
    for number, count in entries.items():
        _count(connection, number, -count, -sizes[number])


def _split(joined: bytes) -> set[bytes]:
    return {joined[start : start + 16] for start in range(0, len(joined), 16)}
