"""Looks after a store on disk: proves every row, removes what fails, and saves what can be saved of damaged files."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embcache.codec import examine, open_note
from embcache.errors import StoreError
from embcache.stores.folder import ASIDE, BESIDES, Damaged, check, database_of, look_over
from embcache.stores.reader import SOUND, open_read_only
from embcache.stores.table import ACCOUNT, KEY_BYTES, SPACE, space_number

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from embcache.stores.disk import DiskStore

CHUNK = 500
FAMILIES = (b"note:", b"refusal:", b"space:", b"account:", b"lease:")


@dataclass(slots=True)
class Findings:
    """What was found in a store.

    Attributes:
        entries: vectors that proved themselves.
        notes: notes, spaces, accounts and leases that did.
        faults: rows that did not, by kind: ``corrupt``, ``bad_version``, ``foreign`` (not written by embcache).
        damage: why the file as a whole is damaged, None where it is not.
        removed: rows that were removed.
        salvaged: entries that were saved from files set aside.
        unplaced: entries that wait in files set aside until the store knows their space, whose name is damaged.
    """

    entries: int = 0
    notes: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    damage: str | None = None
    removed: int = 0
    salvaged: int = 0
    unplaced: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that should not be there."""
        return not self.faults and self.damage is None


def verify(store: DiskStore, *, repair: bool) -> Findings:
    """Read and prove every row of ``store``.

    Args:
        store: what to look after.
        repair: remove rows that fail, set a damaged file aside, and save what proves itself from files set aside.

    Raises:
        StoreError: the store cannot be read or, with ``repair``, not be written.
    """
    findings = Findings()
    path = database_of(store.directory)
    check(store.directory)
    if path.exists():
        bad: list[int] = []
        try:
            with _open(path) as connection:
                holds_table = look_over(connection)
                findings.damage = _integrity(connection, holds_table=holds_table)
                for rowid, row in _rows(connection) if holds_table else ():
                    kind = _kind(*row)
                    if kind is None:
                        findings.entries += len(row[0]) == KEY_BYTES
                        findings.notes += len(row[0]) != KEY_BYTES
                    else:
                        findings.faults[kind] += 1
                        bad.append(rowid)
        except (sqlite3.DatabaseError, Damaged) as error:
            findings.damage = str(error)
        if repair and findings.damage is not None:
            store.set_aside()
        elif repair and bad:
            store.delete_rows(bad)
            findings.removed = len(bad)
    if repair:
        for aside in sorted(store.directory.glob(ASIDE + "*")):
            if aside.name.removeprefix(ASIDE).isdigit() and aside.is_file():
                saved, left = _salvage(aside, store)
                findings.salvaged += saved
                findings.unplaced += left
    return findings


@contextlib.contextmanager
def _open(path: Path) -> Generator[sqlite3.Connection]:
    try:
        with contextlib.closing(open_read_only(path)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF").fetchall()
            connection.execute("PRAGMA cell_size_check = ON").fetchall()
            yield connection
    except sqlite3.OperationalError as error:
        raise StoreError(f"the cache {path} cannot be read: {error}") from error


def _integrity(connection: sqlite3.Connection, *, holds_table: bool) -> str | None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found == "ok" and not holds_table and connection.execute("PRAGMA user_version").fetchone()[0]:
        return "its table is missing"
    return None if found == "ok" else str(found)


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, tuple[Any, ...]]]:
    last = -(2**63)
    statement = f"SELECT rowid, key, tag, value, raw = 1 AND {SOUND} FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608 - our own words
    while rows := connection.execute(statement, (last, CHUNK)).fetchall():
        for rowid, *row in rows:
            yield rowid, tuple(row)
        last = rows[-1][0]


def _kind(key: object, tag: object, value: object, sound: object) -> str | None:
    """Return what is wrong with a row, None where nothing is."""
    if not sound or type(key) is not bytes or type(value) is not bytes:
        return "foreign"
    if len(key) == KEY_BYTES and type(tag) is int:
        return examine(value)
    if tag is None and key.startswith(FAMILIES):
        return None if open_note(key, value) is not None else "corrupt"
    return "foreign"


def _salvage(aside: Path, store: DiskStore) -> tuple[int, int]:
    """Put into ``store`` what proves itself in a damaged file, and remove that; return how many were saved, and left.

    Entries that are held already stay as they are; accounts are added up. A file stays that holds entries of a space
    whose name it has lost: they are saved when the store knows the space.

    Raises:
        StoreError: the file could not be read now, for another reason than damage; it stays as it is.
    """
    saved = 0
    names = {space_number(name): name for name in store.totals().spaces}
    found: dict[int, dict[bytes, bytes]] = {}
    accounts: dict[bytes, dict[str, int]] = {}
    for key, tag, value in _readable(aside):
        note = None if len(key) == KEY_BYTES else open_note(key, value)
        if note is not None and key.startswith(SPACE):
            names[space_number(note["s"])] = note["s"]
        elif note is not None and key.startswith(ACCOUNT):
            accounts[note["a"]] = note["c"]
        elif len(key) == KEY_BYTES and type(tag) is int and examine(value) is None:
            found.setdefault(tag, {})[key] = value
    for number, records in found.items():
        if number in names:
            held = store.get_many(records.keys())
            lacking = [(key, record) for key, record in records.items() if key not in held]
            for start in range(0, len(lacking), CHUNK):
                store.put_many(dict(lacking[start : start + CHUNK]), space=names[number])
            saved += len(lacking)
    left = sum(len(records) for number, records in found.items() if number not in names)
    if not left:
        store.put_many({}, accounts)  # only now, or the next time would add them again
        for suffix in BESIDES:
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)
    return saved, left


def _readable(aside: Path) -> Iterator[tuple[bytes, object, bytes]]:
    """Yield (key, tag, value) of those rows of a damaged file that can be read."""
    try:
        with _open(aside) as connection:
            statement = f"SELECT key, tag, value FROM Cache WHERE rowid BETWEEN ? AND ? AND raw = 1 AND {SOUND}"  # noqa: S608 - our own words
            for start in range(0, _last_row(connection) + 1, CHUNK):
                try:
                    yield from connection.execute(statement, (start, start + CHUNK - 1)).fetchall()
                except sqlite3.DatabaseError:
                    for rowid in range(start, start + CHUNK):  # one bad page costs its own rows only
                        with contextlib.suppress(sqlite3.DatabaseError):
                            yield from connection.execute(statement, (rowid, rowid)).fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter of a schema that is no text, which SQLite quotes
        return  # nothing of it is a database any more


def _last_row(connection: sqlite3.Connection) -> int:
    """Return the highest rowid that a damaged file still tells of, be it in its index or by going through its rows."""
    last = 0
    for statement in (
        "SELECT max(rowid) FROM Cache NOT INDEXED",
        "SELECT rowid FROM Cache INDEXED BY Cache_key_raw",
        "SELECT rowid FROM Cache NOT INDEXED",
    ):
        try:
            for (rowid,) in connection.execute(statement):
                last = max(last, rowid or 0)
        except sqlite3.DatabaseError:
            continue  # as far as it went
        break
    return last
