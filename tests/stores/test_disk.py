"""The store on disk: its file, its lock, its limit, and what it relies on of diskcache."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
from contextlib import closing, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import numpy as np
import pytest

from embcache.codec import Entry, seal_entry
from embcache.errors import StoreBusy, StoreError
from embcache.stores import DiskStore
from embcache.stores.base import PinConflict
from embcache.stores.disk import SETTINGS, BytesDisk

from tests.programs import fill, holding, mounted, output, python
from tests.stores.files import MARKER, PAGE, database, key, one, records

if TYPE_CHECKING:
    from collections.abc import Iterator

# Holds the write lock of the database it is given, until its input ends.
LOCK = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.read()
"""


# The file


def test_every_setting_is_ours(store: DiskStore, folder: Path) -> None:
    """The file says what we want of every setting that diskcache has: nothing evicted or counted, no file, no mmap."""
    store.put_many(records(1), space=b"s")
    store.close()
    with database(folder) as connection:
        connection.execute("UPDATE Settings SET value = 'least-recently-used' WHERE key = 'eviction_policy'")
        connection.execute("UPDATE Settings SET value = 1 WHERE key IN ('size_limit', 'cull_limit', 'statistics')")
    store.put_many(records(2), space=b"s")
    with database(folder) as connection:
        said = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
    settings = {name: value for name, value in said.items() if name not in {"count", "size", "hits", "misses"}}
    assert settings == {
        "eviction_policy": "none",
        "cull_limit": 0,
        "statistics": 0,
        "tag_index": 0,
        "size_limit": 2**62,
        "sqlite_journal_mode": "wal",
        "sqlite_synchronous": 1,
        "sqlite_mmap_size": 0,
        "sqlite_auto_vacuum": 2,
        "sqlite_cache_size": -8192,
        "disk_min_file_size": 2**62,
        "disk_pickle_protocol": 0,
    }
    assert settings == SETTINGS
    assert set(settings) == set(diskcache.DEFAULT_SETTINGS), "diskcache has a setting that we do not give"


def test_how_the_file_is_written(store: DiskStore, folder: Path) -> None:
    """The journal is a write-ahead log and space can be given back: both stand in the file, for whoever opens it."""
    store.put_many(records(1), space=b"s")
    assert one(folder, "PRAGMA journal_mode") == "wal"
    assert one(folder, "PRAGMA auto_vacuum") == 2
    assert one(folder, "PRAGMA integrity_check") == "ok"


def test_plain_diskcache_reads_the_file(store: DiskStore, folder: Path) -> None:
    """Whoever has diskcache alone gets at every record under its key, as plain bytes that were never pickled."""
    put = records(*range(20), size=5_000)
    store.put_many(put, space=b"s")
    store.close()
    with closing(diskcache.Cache(str(folder), disk=diskcache.Disk)) as cache:
        assert {name: cache[name] for name in put} == put
    with database(folder) as connection:
        kinds = connection.execute("SELECT DISTINCT raw, mode, filename, typeof(key), typeof(value) FROM Cache")
        assert kinds.fetchall() == [(1, 1, None, "blob", "blob")]


def test_bytes_on_disk(store: DiskStore, folder: Path) -> None:
    """What totals() says the files take is what they take, while the store is open and after."""
    assert store.totals().bytes_on_disk == 0
    for _ in range(2):
        store.put_many(records(*range(50), size=4_000), space=b"s")
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert store.totals().bytes_on_disk == sum(sizes.values()) - sizes[MARKER]
        store.close()


def test_bytes_an_entry(store: DiskStore, folder: Path) -> None:
    """5,000 entries of 1024 dimensions take at most 4,900 bytes each, everything in the folder counted."""
    for batch in range(5):
        rows = np.random.default_rng(batch).standard_normal((1_000, 1_024), dtype=np.float32)
        sealed = {
            key(1_000 * batch + place): seal_entry(
                sha256(b"%d %d" % (batch, place)).digest(), row.tobytes(), Entry(1024, "baai/bge-m3", 120, False, 1)
            )
            for place, row in enumerate(rows)
        }
        store.put_many(sealed, {b"account": {"billed_tokens": 120_000}}, space=b"s")
    store.close()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_900 * 5_000


def test_deleted_bytes_are_gone_from_the_file(store: DiskStore, folder: Path) -> None:
    """What is deleted is overwritten: its bytes are in no file of the folder any more, those of others are."""
    gone, kept = b"secret record to forget ", b"secret record to keep "
    store.put_many({key(1): gone * 100, key(2): kept * 100}, space=b"s")
    store.delete_many([key(1)])
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert gone not in everything
    assert kept in everything


def test_a_damaged_account_of_a_space_is_counted_anew(store: DiskStore, folder: Path) -> None:
    """Where the store's own note of a space or an account is damaged, entries are counted again and nothing raises."""
    store.put_many(records(1, 2, 3), {b"a": {"hits": 5}}, space=b"s")
    with database(folder) as connection:
        connection.execute("UPDATE Cache SET value = x'00112233' WHERE tag IS NULL")
    assert store.totals().spaces == {}
    store.put_many(records(3, 4), {b"a": {"hits": 1}}, space=b"s")
    totals = store.totals()
    assert totals.spaces == {b"s": (4, 4 * 64)}
    assert totals.accounts == {b"a": {"hits": 1}}


# What is relied on of diskcache


def plain(sql: str) -> str:
    return " ".join(sql.split())


def test_what_diskcache_makes(folder: Path) -> None:
    """The tables, indexes and triggers of a fresh file are those that our statements are written for."""
    diskcache.Cache(str(folder), disk=BytesDisk, **SETTINGS).close()
    with database(folder) as connection:
        made = {name: plain(sql) for name, sql in connection.execute("SELECT name, sql FROM sqlite_master") if sql}
    assert made == {
        "Settings": "CREATE TABLE Settings ( key TEXT NOT NULL UNIQUE, value)",
        "Cache": "CREATE TABLE Cache ( rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time"
        " REAL, access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER"
        " DEFAULT 0, filename TEXT, value BLOB)",
        "Cache_key_raw": "CREATE UNIQUE INDEX Cache_key_raw ON Cache(key, raw)",
        "Cache_expire_time": "CREATE INDEX Cache_expire_time ON Cache (expire_time)",
        "Settings_count_insert": "CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache FOR EACH ROW BEGIN UPDATE"
        ' Settings SET value = value + 1 WHERE key = "count"; END',
        "Settings_count_delete": "CREATE TRIGGER Settings_count_delete AFTER DELETE ON Cache FOR EACH ROW BEGIN UPDATE"
        ' Settings SET value = value - 1 WHERE key = "count"; END',
        "Settings_size_insert": "CREATE TRIGGER Settings_size_insert AFTER INSERT ON Cache FOR EACH ROW BEGIN UPDATE"
        ' Settings SET value = value + NEW.size WHERE key = "size"; END',
        "Settings_size_update": "CREATE TRIGGER Settings_size_update AFTER UPDATE ON Cache FOR EACH ROW BEGIN UPDATE"
        ' Settings SET value = value + NEW.size - OLD.size WHERE key = "size"; END',
        "Settings_size_delete": "CREATE TRIGGER Settings_size_delete AFTER DELETE ON Cache FOR EACH ROW BEGIN UPDATE"
        ' Settings SET value = value - OLD.size WHERE key = "size"; END',
    }


def test_the_private_names_of_diskcache(folder: Path) -> None:
    """`Cache._con` is one connection a thread, in autocommit, to `cache.db`; `close()` ends it."""
    cache: Any = diskcache.Cache(str(folder), disk=BytesDisk, **SETTINGS)
    connection = cache._con
    assert type(connection) is sqlite3.Connection
    assert cache._con is connection
    assert connection.isolation_level is None
    assert Path(connection.execute("PRAGMA database_list").fetchone()[2]).resolve() == (folder / "cache.db").resolve()
    assert diskcache.core.DBNAME == "cache.db"
    assert diskcache.core.MODE_RAW == 1
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
    assert connection.execute("PRAGMA mmap_size").fetchone() == (0,)
    assert connection.execute("PRAGMA cache_size").fetchone() == (-8192,)
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


def test_our_disk_refuses_whatever_diskcache_would_do(store: DiskStore, folder: Path) -> None:
    """Handed to diskcache, our Disk reads and writes nothing, runs no pickle and removes no file that a row names."""
    store.put_many(records(1), space=b"s")
    store.close()
    (folder / "precious").write_text("mine")
    with database(folder) as connection:
        connection.execute("UPDATE Cache SET mode = 2, filename = 'precious', value = NULL WHERE key = ?", (key(1),))
    made: Any = diskcache.Cache(str(folder), disk=BytesDisk, **SETTINGS)
    with closing(made) as cache:
        for call in (
            lambda: cache.get(key(1)),
            lambda: cache.set(key(1), b"value"),
            lambda: cache.set("text", object()),
            lambda: cache.delete(key(1)),
            lambda: list(cache.iterkeys()),
            cache.peekitem,
        ):
            with pytest.raises(StoreError):
                call()
        cache.clear()
    assert (folder / "precious").read_text() == "mine"
    theirs = {name for name in vars(diskcache.Disk) if not name.startswith("__")}
    ours = {name for name in vars(BytesDisk) if not name.startswith("__")}
    # `hash` asks `put`, and `_write` needs what `filename` tells: both are refused there.
    assert theirs - ours == {"hash", "_write"}, "diskcache's Disk does something new"


# Processes


def test_two_processes_at_once(store: DiskStore, folder: Path) -> None:
    """What two processes put at the same time is all there, counted once each, and each sees the other's at once."""
    code = """
        import sys
        from embcache.stores import DiskStore
        store = DiskStore(sys.argv[1])
        for line in sys.stdin:
            number = int(line)
            store.put_many({number.to_bytes(16, "big"): bytes([number]) * 3000}, {b"a": {"requests": 1}}, space=b"s")
            print(len(store.get_many([n.to_bytes(16, "big") for n in range(200)])), flush=True)
        store.close()
    """
    other = python(code, folder)
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("".join(f"{number}\n" for number in range(100, 140)))
    other.stdin.flush()
    for number in range(40):
        store.put_many({number.to_bytes(16, "big"): bytes([number]) * 3000}, {b"a": {"requests": 1}}, space=b"s")
    for _ in range(40):
        other.stdout.readline()
    keys = {number.to_bytes(16, "big") for number in (*range(40), *range(100, 140))}
    assert set(store.get_many(keys)) == keys
    other.stdin.write("140\n")
    other.stdin.flush()
    assert int(other.stdout.readline()) == 81
    output(other)
    totals = store.totals()
    assert totals.spaces == {b"s": (81, 81 * 3000)}
    assert totals.accounts == {b"a": {"requests": 81}}


@pytest.mark.parametrize("already_open", [True, False], ids=["open", "not open yet"])
def test_a_locked_database(folder: Path, already_open: bool) -> None:
    """While another process writes, reads go on; the first write waits a second in vain, the next ones do not."""
    with closing(DiskStore(folder)) as other:
        other.put_many(records(1), space=b"s")
    with closing(DiskStore(folder)) as store:
        if already_open:
            store.put_many(records(2), space=b"s")
        with holding(LOCK, folder / "cache.db"):
            began = time.monotonic()
            with pytest.raises(StoreBusy) as busy:
                store.put_many(records(3), {b"a": {"requests": 1}}, space=b"s")
            assert time.monotonic() - began < 2.5
            assert not busy.value.started, "it was not begun, and is not done later"
            began = time.monotonic()
            assert store.get_many([key(1), key(3)]) == records(1)
            for _ in range(6):
                with pytest.raises(StoreBusy):
                    store.put_many(records(3), {b"a": {"requests": 1}}, space=b"s")
            assert time.monotonic() - began < 2.5, "each of them waited"
        store.put_many(records(4), {b"a": {"requests": 1}}, space=b"s")
        assert store.get_many([key(3), key(4)]) == records(4)
        assert store.totals().accounts == {b"a": {"requests": 1}}, "one that was refused was done as well"


def test_a_short_wait_is_waited(store: DiskStore, folder: Path) -> None:
    """A write waits for a writer that is soon done, also when the write before it was refused for its pin."""
    store.put_many({}, pin=(b"the pin of a space", b"8"))
    with pytest.raises(PinConflict):
        store.put_many({}, pin=(b"the pin of a space", b"16"))
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        soon = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        soon.start()
        try:
            store.put_many(records(1), space=b"s")
        finally:
            soon.join()
    assert store.get_many([key(1)]) == records(1)


def test_a_lease_of_a_clock_that_was_set_back(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that was given by a clock hours ahead does not last for hours."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7_200)
    assert store.claim([key(1)], b"me", 60) == {key(1)}
    monkeypatch.setattr(time, "time", lambda: now)
    assert store.claim([key(1)], b"you", 60) == {key(1)}


def test_leases_leave_nothing(store: DiskStore, folder: Path) -> None:
    """A lease that was given back or has expired leaves no row behind, at the latest when the next is given."""
    store.claim([key(1)], b"me", 60)
    store.release([key(1)], b"me")
    store.claim([key(1)], b"dead", 0.05)
    time.sleep(0.1)
    store.claim([key(1)], b"you", 60)
    assert one(folder, "SELECT count(*) FROM Cache") == 1
    store.release([key(1)], b"you")
    assert one(folder, "SELECT count(*) FROM Cache") == 0


# A full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    with mounted(tmp_path / "small") as disk:
        yield disk


def test_a_disk_that_runs_full(small: Path) -> None:
    """A write that does not fit is a StoreError and leaves nothing; all that was stored before is still read."""
    stored = records(*range(10), size=4_000)
    store = DiskStore(small / "cache")
    store.put_many(stored, {b"a": {"requests": 1}}, space=b"s")
    filler = fill(small)
    os.truncate(filler, filler.stat().st_size - (2 << 20))
    failed: dict[bytes, bytes] = {}

    def fill_up() -> None:
        for number in range(1, 200):
            failed.clear()
            failed.update(records(*range(10 * number, 10 * number + 10), size=4_000))
            store.put_many(failed, {b"a": {"requests": 1}}, space=b"s")
            stored.update(failed)

    with pytest.raises(StoreError, match=str(small)) as full:
        fill_up()
    assert not isinstance(full.value, StoreBusy)
    assert store.get_many([*stored, *failed]) == stored
    assert store.totals().accounts == {b"a": {"requests": len(stored) // 10}}
    with closing(DiskStore(small / "cache")) as other:
        assert other.get_many([*stored, *failed]) == stored
        with pytest.raises(StoreError):
            other.put_many(failed, space=b"s")
    with suppress(StoreError):  # the log cannot be folded into the file
        store.close()
    assert store.get_many([*stored, *failed]) == stored
    filler.unlink()
    store.put_many(failed, space=b"s")
    assert store.get_many([*stored, *failed]) == stored | failed
    store.close()


def test_reading_where_the_disk_is_full_to_the_last_byte(small: Path) -> None:
    """A cache that was closed in good order is read on a disk that has no room for anything more."""
    with closing(DiskStore(small / "cache")) as store:
        store.put_many(records(*range(100), size=4_000), space=b"s")
    fill(small)
    with closing(DiskStore(small / "cache")) as store:
        assert store.get_many([key(number) for number in range(101)]) == records(*range(100), size=4_000)
        assert store.totals().spaces == {b"s": (100, 400_000)}


def test_a_commit_that_fails_half_way(store: DiskStore, folder: Path) -> None:
    """Whatever stops a commit in its middle, nothing of it is kept, nothing stays locked, and the next one is done."""
    store.put_many(records(1), {b"a": {"hits": 1}}, space=b"s")
    with pytest.raises(OverflowError):
        store.put_many(records(1, 2, size=99), {b"b": {"hits": 1}, b"c": {"hits": 2**70}}, space=b"s")
    assert store.get_many([key(1), key(2)]) == records(1)
    with database(folder) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    store.put_many(records(2), {b"a": {"hits": 1}}, space=b"s")
    totals = store.totals()
    assert (totals.spaces, totals.accounts) == ({b"s": (2, 128)}, {b"a": {"hits": 2}})


# The limit of its size

MIB = 1 << 20


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.mark.parametrize(("batch", "limit"), [(1, 2 * MIB), (100, 8 * MIB), (1_000, 8 * MIB)])
def test_the_file_keeps_its_limit(folder: Path, batch: int, limit: int) -> None:
    """With size_limit the database never takes more than that and a tenth, and all files do not after close()."""
    with closing(DiskStore(folder, limit)) as store:
        for start in range(0, limit // 2_100, batch):
            store.put_many(records(*range(start, start + batch), size=4_200), space=b"s")
            with database(folder) as connection:  # the file as it is once the log is folded into it
                pages = connection.execute("PRAGMA page_count").fetchone()[0]
            assert pages * PAGE <= 1.1 * limit
        entries = store.totals().spaces[b"s"][0]
        assert store.events()["evicted"] > 0
    assert sum(sizes(folder).values()) <= 1.1 * limit
    assert entries * 4_200 > 0.7 * limit, "more was evicted than had to be"


def test_one_batch_beyond_the_limit(folder: Path) -> None:
    """A commit larger than the whole limit is cut to it, and the file with it."""
    with closing(DiskStore(folder, MIB)) as store:
        store.put_many(records(*range(2_048), size=4_200), space=b"s")
        entries = store.totals().spaces[b"s"][0]
        assert store.events() == {"evicted": 2_048 - entries}
        assert entries > 100
    assert sum(sizes(folder).values()) <= 1.1 * MIB


def test_a_limit_given_later(folder: Path) -> None:
    """A cache that grew without a limit is cut to one that is given later, and gives the disk its space back."""
    with closing(DiskStore(folder)) as store:
        store.put_many(records(*range(4_000), size=4_200), space=b"s")
    with closing(DiskStore(folder, 8 * MIB)) as store:
        store.put_many(records(4_000, size=4_200), space=b"s")
        entries = store.totals().spaces[b"s"][0]
        assert store.events() == {"evicted": 4_001 - entries}
    assert sum(sizes(folder).values()) <= 8.8 * MIB


# Its end


def test_a_store_that_is_dropped(folder: Path) -> None:
    """A store that nobody closed and nobody knows any more leaves no thread behind."""

    def writers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("embcache-writer")]

    before = writers()
    store = DiskStore(folder)
    store.put_many(records(1), space=b"s")
    assert store.get_many([key(1)]) == records(1)
    mine = [thread for thread in writers() if thread not in before]
    assert len(mine) == 1
    del store
    gc.collect()
    mine[0].join(5)
    assert not mine[0].is_alive()


def test_a_store_that_is_dropped_while_it_writes(folder: Path) -> None:
    """A store whose last write nobody waited for ends with that write, on whichever thread it is let go last."""
    store, go = DiskStore(folder), threading.Event()
    store.put_many(records(1), space=b"s")
    thread = store._writer._thread
    assert thread is not None

    def overdue(kept: DiskStore) -> None:
        go.wait(10)
        assert kept.directory == folder

    with suppress(StoreBusy):
        store._writer.run(partial(overdue, store), 0.05)
    del store
    gc.collect()
    go.set()
    deadline = time.monotonic() + 5
    while thread.is_alive() and time.monotonic() < deadline:
        gc.collect()
        thread.join(0.05)
    assert not thread.is_alive()


def test_memory_of_a_writer_is_flat(folder: Path) -> None:
    """However many commits of whatever size were made, what they held is let go: no statement keeps its values."""
    code = """
        import os, resource, sys
        from embcache.stores import DiskStore

        def used():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * resource.getpagesize()

        store = DiskStore(sys.argv[1])
        def put(count):
            store.put_many({os.urandom(16): os.urandom(8_000) for _ in range(count)}, space=b"s")
        put(500)
        before = used()
        for count in range(100, 500, 3):
            put(count)
        print(used() - before)
        store.close()
    """
    grown = int(output(python(code, folder)))
    assert grown < 40 << 20
