"""The table of a store's database, and what a writer does with it within a transaction. Knows SQL and no diskcache.

What diskcache's table ``Cache`` holds for us, all with ``raw = 1`` and ``mode = 1``:

- entries: a 16-byte key, a sealed record, and the number of the entry's space as ``tag``;
- notes, spaces, accounts and leases: longer keys, sealed maps, no tag.
"""

from __future__ import annotations

import time
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from embcache.codec import open_note, seal_note

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

CHUNK = 2000
"""Keys a statement; SQLite takes 32,766 values, and 999 before 3.32 of 2020."""
ROWS = (250, 64, 16, 4, 1)
"""Rows inserted by a statement: of few different lengths, since a statement that is kept for another time keeps what it
inserted last, and there may be 128 of them."""
KEY_BYTES = 16
SPACE = b"space:"
ACCOUNT = b"account:"
LEASE = b"lease:"
LAST = b"\xff" * 40
"""Greater than whatever follows the family in a note's key."""
TYPICAL_ROW = 8192
"""Bytes a row is taken to free, when room has to be made."""


def space_number(space: bytes) -> int:
    """Return the number that rows of ``space`` carry: 48 bits of its hash, so that it can be told without the file."""
    return int.from_bytes(sha256(space).digest()[:6], "big")


def note_key(family: bytes, name: bytes) -> bytes:
    """Return the key of the note of ``family`` about ``name``."""
    return family + sha256(name).digest()


def marks(values: Collection[object]) -> str:
    """Return a question mark for each value."""
    return ",".join("?" * len(values))


def chunks(keys: Collection[bytes]) -> Iterator[list[bytes]]:
    """Yield ``keys`` in order, as many at a time as a statement takes."""
    ordered = sorted(keys)
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


class Table:
    """The rows, through a connection that has begun a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Work through ``connection``."""
        self._connection = connection

    def value(self, key: bytes) -> bytes | None:
        """Return what is held under ``key``, None where nothing is."""
        row = self._connection.execute("SELECT value FROM Cache WHERE raw = 1 AND key = ?", (key,)).fetchone()
        return row[0] if row and type(row[0]) is bytes else None

    def family(self, family: bytes) -> list[tuple[bytes, bytes]]:
        """Return (key, value) of all notes whose key begins with ``family``."""
        return self._connection.execute(
            "SELECT key, value FROM Cache WHERE raw = 1 AND tag IS NULL AND key >= ? AND key < ?",
            (family, family + LAST),
        ).fetchall()

    def note(self, key: bytes, value: bytes) -> None:
        """Hold a note, in place of what is held under its key."""
        self._connection.execute(
            "INSERT INTO Cache (key, raw, store_time, access_time, mode, value) VALUES (?1, 1, ?3, ?3, 1, ?2)"
            " ON CONFLICT (key, raw) DO UPDATE SET store_time = ?3, mode = 1, filename = NULL, value = ?2",
            (key, value, time.time()),
        )

    def insert(self, records: Mapping[bytes, bytes], space: bytes, size_limit: int | None) -> int:
        """Hold entries of ``space``; return how many were evicted, of themselves if they alone are too many."""
        for chunk in chunks(records.keys()):
            self.delete(chunk)
        rows = list(records.items())
        evicted = 0
        if size_limit is not None:
            newest = _newest(rows, size_limit)
            evicted, rows = len(rows) - len(newest), newest
            evicted += self._evict(size_limit - sum(len(record) for _, record in rows))
        size = sum(len(record) for _, record in rows)
        now, number = time.time(), space_number(space)
        for some in _parts(rows):
            values = ",".join(
                [f"(?{place}, 1, ?1, ?1, ?2, 1, ?{place + 1})" for place in range(3, 3 + 2 * len(some), 2)]
            )
            # Many rows a statement: for each, SQLite keeps a copy of the page that diskcache's triggers change.
            self._connection.execute(
                f"INSERT INTO Cache (key, raw, store_time, access_time, tag, mode, value) VALUES {values}",  # noqa: S608
                [now, number, *(value for row in some for value in row)],
            )
        self._count(note_key(SPACE, space), number, len(rows), size, space)
        return evicted if size_limit is None else evicted + self._evict(size_limit)

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove what is held under ``keys``, no more than a statement takes; return how many were held."""
        where = f"WHERE raw = 1 AND key IN ({marks(keys)})"
        held = self._connection.execute(
            f"SELECT tag, count(*), sum(length(value)) FROM Cache {where} GROUP BY tag",  # noqa: S608 - question marks
            keys,
        ).fetchall()
        if held:
            self._connection.execute(f"DELETE FROM Cache {where}", keys)  # noqa: S608 - question marks
            self._uncount(row for row in held if type(row[0]) is int)
        return sum(count for _, count, _ in held)

    def discard(self, records: Mapping[bytes, bytes]) -> int:
        """Remove those entries that are still held as these very ``records``; return how many."""
        same: list[bytes] = []
        for chunk in chunks(records.keys()):
            held = self._connection.execute(
                f"SELECT key, value FROM Cache WHERE raw = 1 AND key IN ({marks(chunk)})",  # noqa: S608 - question marks
                chunk,
            )
            same += [key for key, record in held if record == records[key]]
        return sum(self.delete(chunk) for chunk in chunks(same))

    def add(self, account: bytes, counts: Mapping[str, int]) -> None:
        """Add to the counters of an account, which begins at nothing if it is new or does not prove itself."""
        key = note_key(ACCOUNT, account)
        note = open_note(key, self.value(key))
        total = Counter[str](note["c"] if note else {})
        total.update(counts)
        self.note(key, seal_note(key, {"a": account, "c": dict(total)}))

    def move(self, account: bytes, to: bytes) -> bool:
        """Add the counters of an account to another, and remove it; return whether there was one."""
        key = note_key(ACCOUNT, account)
        note = open_note(key, self.value(key))
        if note is None:
            return False
        self.add(to, note["c"])
        self.delete([key])
        return True

    def claim(self, keys: Collection[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """Lease to ``owner`` those of ``keys`` that nobody else holds a lease of, and return them."""
        now = time.time()
        others: set[bytes] = set()
        over: list[bytes] = []
        for key, lease in self._leases():
            # A lease that ends later than any can be given has a clock behind it that was set back.
            if lease is None or not now < lease["u"] <= now + lease["s"]:
                over.append(key)
            elif lease["o"] != owner:
                others.update(_split(lease["k"]))
        if over:
            self.delete(over)
        free = set(keys) - others
        for chunk in chunks(free):  # a note has a largest size
            joined = b"".join(chunk)
            key = note_key(LEASE, owner + joined)
            self.note(key, seal_note(key, {"o": owner, "u": now + seconds, "s": seconds, "k": joined}))
        return free

    def release(self, owner: bytes, keys: Collection[bytes] | None = None) -> None:
        """End the leases of ``owner`` on ``keys``, all of them where none are named."""
        for key, lease in self._leases():
            if lease is None or lease["o"] != owner:
                continue
            left = set[bytes]() if keys is None else _split(lease["k"]).difference(keys)
            if left:
                self.note(key, seal_note(key, lease | {"k": b"".join(sorted(left))}))
            else:
                self.delete([key])

    def _leases(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        return [(key, open_note(key, record)) for key, record in self.family(LEASE)]

    def delete_rows(self, rowids: Collection[int]) -> None:
        """Remove rows, whatever they hold."""
        self._connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid in rowids])

    def recount(self) -> None:
        """Count the entries of every space anew, from the rows themselves."""
        held = "SELECT tag, count(*), sum(length(value)) FROM Cache WHERE tag IS NOT NULL GROUP BY tag"
        counts = {number: (entries, size) for number, entries, size in self._connection.execute(held)}
        for key, record in self.family(SPACE):
            note = open_note(key, record)
            if note is None:
                self.delete([key])
            else:
                entries, size = counts.get(space_number(note["s"]), (0, 0))
                self.note(key, seal_note(key, {"s": note["s"], "e": entries, "b": size}))

    def _evict(self, limit: int) -> int:
        """Remove the oldest entries until the file needs no more than ``limit`` bytes; return how many went."""
        evicted = 0
        while True:
            pages, free, page = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            excess = (pages - free) * page - limit
            if excess <= 0:
                return evicted
            oldest = self._connection.execute(
                "SELECT rowid, tag, length(value) FROM Cache WHERE tag IS NOT NULL ORDER BY rowid LIMIT ?",
                (max(1, excess // TYPICAL_ROW),),
            ).fetchall()
            if not oldest:
                return evicted
            evicted += len(oldest)
            self._connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid, _, _ in oldest])
            self._uncount((tag, 1, size) for _, tag, size in oldest)

    def _count(self, key: bytes, number: int, entries: int, size: int, space: bytes) -> None:
        """Add to what is known of a space."""
        held = self.value(key)
        note = open_note(key, held)
        if note is not None:
            entries, size = note["e"] + entries, note["b"] + size
        elif held is not None:  # damaged: the rows themselves know
            counted = "SELECT count(*), ifnull(sum(length(value)), 0) FROM Cache WHERE tag = ?"
            entries, size = self._connection.execute(counted, (number,)).fetchone()
        self.note(key, seal_note(key, {"s": space, "e": entries, "b": size}))

    def _uncount(self, removed: Iterable[tuple[int, int, int]]) -> None:
        """Take removed entries, as (number of the space, entries, bytes), out of what is known of their spaces."""
        entries, sizes = Counter[int](), Counter[int]()
        for number, count, size in removed:
            entries[number] += count
            sizes[number] += size or 0
        for number, count in entries.items():
            # The key begins with the number, so that a space is found by what its rows carry.
            for key, record in self.family(SPACE + number.to_bytes(6, "big")):
                note = open_note(key, record)
                if note is not None:  # one that is damaged is counted anew when its space is next written to
                    self._count(key, number, -count, -sizes[number], note["s"])


def _parts(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Cut rows into parts that have the length of a statement."""
    start = 0
    for length in ROWS:
        while len(rows) - start >= length:
            yield rows[start : start + length]
            start += length


def _newest(rows: list[tuple[bytes, bytes]], limit: int) -> list[tuple[bytes, bytes]]:
    """Return as many of the last rows as fit into ``limit`` bytes."""
    total = 0
    for place in range(len(rows) - 1, -1, -1):
        total += len(rows[place][1])
        if total > limit:
            return rows[place + 1 :]
    return rows


def _split(joined: bytes) -> set[bytes]:
    return {joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)}
