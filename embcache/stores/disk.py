"""The default store: diskcache's file on disk. The only room that knows diskcache.

Writing goes through diskcache's own connection, on one thread; reading through read-only connections of ours to the
same file, many keys a statement. Of diskcache's private names ``Cache._con`` alone is used, and ``SCHEMA`` in
``folder.py`` knows the SQL of its tables; ``tests/stores/test_disk.py`` fails when a new diskcache changes either.

Over 400 lines, so that no other file has to know diskcache.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import diskcache

from embcache.codec import open_note
from embcache.errors import StoreBusy, StoreError
from embcache.forks import tell_after_fork, wait_before_fork
from embcache.stores.base import PinConflict, Totals
from embcache.stores.folder import (
    DAMAGE,
    Damaged,
    database_of,
    disk_usage,
    identity_of,
    look_over,
    network_file_system,
    prepare,
    set_aside,
)
from embcache.stores.reader import DamagedError, Reader
from embcache.stores.table import ACCOUNT, CHUNK, SPACE, Table, chunks, space_number
from embcache.stores.writer import Writer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds a write may take of its caller's time."""
LOCK_PATIENCE = 0.8
"""Seconds of these it may wait for whoever else writes."""
SLOWEST_DISK = 8 << 20
"""Bytes a second that a disk writes at least; what is waited for a large write beyond ``PATIENCE``."""
COST_OF_A_ROW = 2048
"""Bytes that a row costs in time besides its own."""
SECONDS_TO_CLOSE = 10.0
FOLD = "PRAGMA wal_checkpoint(TRUNCATE)"
NO_LIMIT = 2**62
LOG_LIMIT = 32 << 20
"""Bytes the log is cut to when it has been folded into the file."""
PAGES_AT_ONCE = 256
"""Pages given back to the disk by one transaction."""
PAGES_OF_LOG = 128
"""Pages after which the log is folded into a file that has a limit."""
VERSION = 1
"""The ``user_version`` of the database: how this embcache uses it."""
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

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
    """Refuses everything diskcache would do with a row: rows are written and read by our own rooms alone.

    So nothing is ever unpickled, and no file that a row may name is read or removed.
    """

    def __init__(self, directory: str, **_ignored: object) -> None:
        """Ignore every setting a file could hold."""
        super().__init__(directory, min_file_size=NO_LIMIT, pickle_protocol=0)

    def put(self, key: object) -> NoReturn:
        """Refuse to write a key."""
        raise StoreError(f"diskcache was asked to write a key ({type(key).__name__})")

    def get(self, key: object, raw: object) -> NoReturn:
        """Refuse to read a key."""
        raise StoreError(f"diskcache was asked to read a key ({type(key).__name__}, raw {raw!r})")

    def store(self, value: object, read: object, key: object = None) -> NoReturn:  # noqa: ARG002
        """Refuse to write a value."""
        raise StoreError(f"diskcache was asked to write a value ({type(value).__name__})")

    def fetch(self, mode: object, filename: object, value: object, read: object) -> NoReturn:  # noqa: ARG002
        """Refuse to read a value."""
        raise StoreError(f"diskcache was asked to read a value (mode {mode!r})")

    def filename(self, key: object = None, value: object = None) -> NoReturn:  # noqa: ARG002
        """Refuse to name a file."""
        raise StoreError("diskcache was asked for a file")

    def remove(self, file_path: object) -> None:
        """Never remove what a row names."""


class _Cache(diskcache.Cache):
    """A cache that, where it cannot be opened, leaves no connection open until the garbage is collected."""

    def __init__(self, directory: str, **settings: Any) -> None:  # noqa: ANN401 - diskcache's own
        try:
            super().__init__(directory, **settings)  # pyright: ignore[reportUnknownMemberType] - diskcache has no types
        except BaseException:
            self.close()
            raise


class _Verbatim(str):
    """A path that diskcache takes as it is: it would put variables in for what begins with a dollar sign."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __contains__(self, part: object) -> bool:
        return part != "$" and isinstance(part, str) and super().__contains__(part)


class DiskStore:
    """A store in a folder, shared by any number of processes on one machine.

    What is put has survived ``kill -9`` when ``put_many`` returns; a power cut may take the last commits.

    Args:
        directory: the folder, made if it is not there; private to the user.
        size_limit: bytes the files may take; None never evicts, otherwise the oldest stored entries go first.
        read_only: never write a byte; whatever would is refused with ``StoreError``.
        allow_network_fs: use a folder on a network file system, where SQLite cannot promise anything.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        size_limit: int | None = None,
        *,
        read_only: bool = False,
        allow_network_fs: bool = False,
    ) -> None:
        """Remember where; nothing is opened or made before it is needed."""
        self.directory = Path(directory).expanduser().absolute()
        self.size_limit = size_limit
        self.read_only = read_only
        self.allow_network_fs = allow_network_fs
        self._reader = Reader(self.directory)
        self._begin()
        tell_after_fork(self)
        wait_before_fork(self)

    def _begin(self) -> None:
        self._writer = Writer("embcache-writer", _teller(weakref.ref(self)))
        weakref.finalize(self, self._writer.stop)
        self._cache: Any = None  # a diskcache.Cache, which has no types; None while it is not open
        self._raw: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._patience = LOCK_PATIENCE
        self._suspect = False
        self._events: Counter[str] = Counter()
        self._events_lock = threading.Lock()

    def connections(self) -> list[object]:
        """Return what a child of a fork must neither use nor close."""
        return [self._cache, self._cache and self._raw, *self._reader.connections()]

    def locks(self) -> list[threading.Lock]:
        """Return what is locked by whoever is in the middle of reading or writing."""
        return [self._writer.busy, *self._reader.locks()]

    def after_fork(self) -> None:
        """Begin anew in a child; connections and thread are the parent's."""
        self._reader.after_fork()
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the recipe: what travels to another process is where the store is, never a handle."""
        return _rebuild, (str(self.directory), self.size_limit, self.read_only, self.allow_network_fs)

    # Reading, on the caller's thread

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        found: dict[bytes, bytes] = {}
        try:
            for chunk in chunks(keys) if len(keys) > 1 else (keys,):
                found.update(self._reader.rows(chunk))
        except DamagedError:
            self._suspect = True  # the next write finds out whether the file is to be set aside
            raise
        return found

    def scan(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """See :class:`~embcache.stores.base.Store`."""
        spaces = {space_number(note["s"]): note["s"] for note in self._notes(SPACE)}
        for key, record, number in self._reader.entries(CHUNK):
            yield key, record, spaces.get(number, b"")

    def scan_by_key(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield as ``scan()``, ascending by key: slower, since what is stored together is read apart."""
        spaces = {space_number(note["s"]): note["s"] for note in self._notes(SPACE)}
        for key, record, number in self._reader.entries_by_key(CHUNK):
            yield key, record, spaces.get(number, b"")

    def keys_of(self, family: bytes) -> list[bytes]:
        """Return the keys of all notes that begin with ``family``."""
        return [key for key, _ in self._reader.family(family)]

    def used(self) -> int:
        """Return the bytes of the file that are in use; what is not can be given back with :meth:`vacuum`."""
        return self._reader.used()

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
        evicted = 0

        def put(table: Table) -> None:
            nonlocal evicted
            if pin and (held := table.value(pin[0])) != pin[1]:
                if held is not None:
                    raise PinConflict
                table.note(*pin)
            evicted = table.insert(records, space, self.size_limit) if records else 0
            for key, note in (notes or {}).items():
                table.note(key, note)
            for account, counts in (usage or {}).items():
                table.add(account, counts)
            if release is not None:
                table.release(release)

        size = sum(len(record) + COST_OF_A_ROW for record in records.values())
        self._transact(put, size, lambda: self._happened("evicted", evicted))

    def delete_many(self, keys: Collection[bytes]) -> int:
        """See :class:`~embcache.stores.base.Store`. The deleted bytes are overwritten in the file."""
        deleted = self._transact(lambda table: sum(table.delete(chunk) for chunk in chunks(set(keys))))
        if deleted:
            self._write(self._checkpoint, SECONDS_TO_CLOSE)
        return deleted

    def discard(self, records: Mapping[bytes, bytes]) -> int:
        """Remove, in one transaction, those entries that are still held as these very ``records``; return how many.

        Their room in the file is not given back: :meth:`vacuum` does that for many at once.
        """
        size = sum(len(record) + COST_OF_A_ROW for record in records.values())
        return self._transact(lambda table: table.discard(records), size)

    def move_accounts(self, names: Mapping[bytes, bytes]) -> int:
        """Add the counters of accounts to those they are mapped to, and remove them, in one transaction; count them."""
        return self._transact(lambda table: sum(table.move(name, to) for name, to in names.items()))

    def vacuum(self) -> None:
        """Give the disk back what removed rows took, a little at a time, so that others can write in between."""
        while self._write(self._vacuum_some, SECONDS_TO_CLOSE):
            pass
        self._write(self._checkpoint, SECONDS_TO_CLOSE)

    def claim(self, keys: Collection[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """See :class:`~embcache.stores.base.Store`."""
        return self._transact(lambda table: table.claim(keys, owner, seconds))

    def release(self, keys: Collection[bytes], owner: bytes) -> None:
        """See :class:`~embcache.stores.base.Store`."""
        self._transact(lambda table: table.release(owner, keys))

    def delete_rows(self, rowids: Collection[int]) -> None:
        """Remove rows that do not prove themselves, and count the entries of every space anew."""

        def delete(table: Table) -> None:
            table.delete_rows(rowids)
            table.recount()

        self._transact(delete)

    def set_aside(self) -> None:
        """Set the file aside if it is damaged; the next write begins a new one."""
        self._suspect = True
        self._transact(lambda _: None)

    def events(self) -> Mapping[str, int]:
        """See :class:`~embcache.stores.base.Store`."""
        with self._events_lock:
            events, self._events = self._events, Counter()
            return events

    def close(self) -> None:
        """See :class:`~embcache.stores.base.Store`. Folds the log into the file, which stands alone afterwards."""
        self._reader.close()
        try:
            if not self.read_only and identity_of(database_of(self.directory)) is not None:
                self._writer.run(self._close, SECONDS_TO_CLOSE)
        except (sqlite3.Error, OSError, StoreError):
            # It cannot be written, somebody else holds it, or it is damaged. What was put is committed: the log stays,
            # and whoever opens the file next folds it in, or finds the damage.
            pass
        finally:
            self._writer.stop()

    def write_failed_late(self, error: BaseException) -> None:
        """Count a write that failed when nobody waited for it any more."""
        self._happened("store_busy" if _code(error) in BUSY else "store_errors")

    def _happened(self, name: str, count: int = 1) -> None:
        if count:
            with self._events_lock:
                self._events[name] += count

    def _transact(self, action: Callable[[Table], T], size: int = 0, then: Callable[[], None] | None = None) -> T:
        """Carry out ``action``, which writes ``size`` bytes, in a transaction on the writer's thread, and ``then``."""

        def transact() -> T:
            try:
                result = self._try(action)
            except (sqlite3.DatabaseError, Damaged) as error:
                if not self._mend(error):
                    raise
                result = self._try(action)
            if then is not None:
                then()
            return result

        return self._write(transact, PATIENCE + size / SLOWEST_DISK)

    def _write(self, action: Callable[[], T], patience: float) -> T:
        """Carry out ``action`` on the writer's thread; what goes wrong is a ``StoreError``."""
        if self.read_only:
            raise StoreError(f"the cache {self.directory} is open for reading only")
        try:
            return self._writer.run(action, patience)
        except (sqlite3.Error, OSError, Damaged) as error:
            if _code(error) in BUSY:
                raise StoreBusy(f"the cache {self.directory} is locked by another process") from error
            raise StoreError(f"the cache {self.directory} cannot be written: {error}") from error

    # On the writer's thread

    def _try(self, action: Callable[[Table], T]) -> T:
        # After somebody kept us waiting in vain, nobody waits again until the lock could be had.
        patience, self._patience = self._patience, 0.0
        connection = self._open(patience)
        connection.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        self._patience = LOCK_PATIENCE
        try:
            result = action(Table(connection))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if self.size_limit is not None and disk_usage(self.directory) > self.size_limit:
            with contextlib.suppress(sqlite3.Error):  # what was committed is committed
                self._shrink(connection)
        return result

    def _open(self, patience: float) -> sqlite3.Connection:
        """Return diskcache's connection to the file that is there now, opened if it was not."""
        if self._cache is not None and identity_of(database_of(self.directory)) != self._file:
            self._let_go()
            self._happened("reopened")
        if self._cache is None:
            if not self.allow_network_fs and (kind := network_file_system(self.directory)):
                raise StoreError(
                    f"the cache {self.directory} is on a network file system ({kind}), where SQLite may damage it; "
                    "name a local folder as cache_dir, or say allow_network_fs=True"
                )
            path = prepare(self.directory, patience)
            self._file = identity_of(path)
            self._examine(path, patience)
            self._cache = _Cache(_Verbatim(self.directory), disk=BytesDisk, **SETTINGS)
            self._raw = self._connection()
            for setting in (
                "trusted_schema = OFF",
                "secure_delete = ON",
                "temp_store = MEMORY",  # or each write keeps a copy of its pages in a file outside the folder
                f"journal_size_limit = {LOG_LIMIT}",
            ):
                self._connection().execute(f"PRAGMA {setting}").fetchall()
            if self.size_limit is not None:
                self._connection().execute(f"PRAGMA wal_autocheckpoint = {PAGES_OF_LOG}").fetchall()
            if not self._connection().execute("PRAGMA user_version").fetchone()[0]:
                self._connection().execute(f"PRAGMA user_version = {VERSION}")
        if self._suspect:
            self._suspect = False
            found = self._connection().execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise Damaged("its pages are damaged")
        return self._connection()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = self._cache._con  # noqa: SLF001 - see the top of this file
        return connection

    def _examine(self, path: Path, patience: float) -> None:
        """See to it that diskcache can open the file, which it would wait for, for a minute, were it locked."""
        if path.is_dir():
            raise Damaged("it is a folder")
        with contextlib.closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreError(f"the cache {path} was made by a newer embcache; use that, or another cache_dir")
            made = look_over(connection)
            if not made and version:
                raise Damaged("its table is missing")
            connection.execute("BEGIN IMMEDIATE")
            if made:
                # What the file says of SQLite diskcache obeys before it writes what we say, and tries for a minute.
                said = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
                wrong = [(name, value) for name, value in SETTINGS.items() if said.get(name) != value]
                connection.executemany("INSERT OR REPLACE INTO Settings (key, value) VALUES (?, ?)", wrong)
            connection.execute("COMMIT")

    def _mend(self, error: sqlite3.DatabaseError | Damaged) -> bool:
        """Do what can be done about what a write met; return whether it may be tried again."""
        if isinstance(error, Damaged) or _code(error) in DAMAGE:
            self._replace()
        elif _code(error) == sqlite3.SQLITE_READONLY:
            # Within a process SQLite shares the index of the log: who opened it while it could only be read has
            # everybody else only read it as well, and that may be long over.
            self._let_go()
            self._reader.close()
        else:
            return False
        return True

    def _replace(self) -> None:
        """Set the damaged file aside; the next write begins a new one."""
        self._let_go()
        self._patience = LOCK_PATIENCE  # it was damage and no lock, and others may be making a new one
        if set_aside(self.directory, self._file):  # the one that was looked at: there may be a new one already
            self._happened("quarantined")

    def _let_go(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            with contextlib.suppress(sqlite3.Error):
                cache.close()

    def _checkpoint(self) -> None:
        """Fold the log into the file and empty it, as far as readers allow."""
        self._open(0.0).execute(FOLD).fetchall()

    def _vacuum_some(self) -> bool:
        """Cut some free pages off the file; return whether there are more."""
        connection = self._open(LOCK_PATIENCE)
        connection.execute(f"PRAGMA busy_timeout = {round(LOCK_PATIENCE * 1000)}").fetchall()
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        connection.executescript(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})")
        left = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return bool(0 < left < free)

    @staticmethod
    def _shrink(connection: sqlite3.Connection) -> None:
        """Give the disk back what evicted entries took."""
        connection.executescript("PRAGMA incremental_vacuum")  # execute() would end after the first page
        connection.execute(FOLD).fetchall()

    def _close(self) -> None:
        path = database_of(self.directory)
        try:
            if self._cache is not None and identity_of(path) == self._file:
                self._connection().execute(FOLD).fetchall()
        finally:
            self._let_go()
        # A connection that only reads leaves the log behind; one that may write takes it away when it is the last.
        if path.with_name(path.name + "-wal").exists() and identity_of(path) is not None:
            with contextlib.closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as connection:
                connection.execute("PRAGMA schema_version").fetchall()


def _teller(store: weakref.ref[DiskStore]) -> Callable[[BaseException], None]:
    """Return what counts a write that failed when nobody waited for it any more."""

    def failed_late(error: BaseException) -> None:
        one = store()
        if one is not None:
            one.write_failed_late(error)

    return failed_late


def _code(error: BaseException) -> int:
    """Return SQLite's primary error code, 0 where there is none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _rebuild(directory: str, size_limit: int | None, *flags: bool) -> DiskStore:
    return DiskStore(directory, size_limit, read_only=flags[0], allow_network_fs=flags[1])
