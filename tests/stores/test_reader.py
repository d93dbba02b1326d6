"""Reading the store on disk: whatever is not there or not ours is not found, and no lock is taken."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from embcache.stores import DiskStore
from embcache.stores.reader import Reader

from tests.programs import output, python
from tests.stores.files import database, key, records


def test_nothing_is_made_before_it_is_needed(store: DiskStore, folder: Path) -> None:
    """Reading a folder that is not there finds nothing and makes nothing, and neither does closing."""
    assert store.get_many([key(1)]) == {}
    assert list(store.scan()) == []
    assert store.totals().spaces == {}
    assert dict(store.events()) == {}
    store.close()
    assert not folder.exists()


def test_a_reader_sees_what_comes_later(store: DiskStore, folder: Path) -> None:
    """A store that found nothing finds what another one makes, and every commit after it."""
    assert store.get_many([key(1)]) == {}
    with closing(DiskStore(folder)) as other:
        other.put_many(records(1), space=b"s")
        assert store.get_many([key(1)]) == records(1)
        other.put_many(records(2), space=b"s")
        assert store.get_many([key(1), key(2)]) == records(1, 2)


def test_figures_read_no_entries(store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held in all is found through the index of keys, however many entries there are: none is looked at."""
    asked: list[tuple[str, tuple[object, ...]]] = []
    query = Reader._query

    def seen(reader: Reader, statement: str, values: tuple[object, ...]) -> object:
        asked.append((statement, values))
        return query(reader, statement, values)

    store.put_many(records(*range(2000)), {b"account": {"hits": 1}}, space=b"s")
    monkeypatch.setattr(Reader, "_query", seen)
    totals = store.totals()
    assert (totals.spaces[b"s"][0], totals.accounts) == (2000, {b"account": {"hits": 1}})
    assert len(asked) == 2
    with database(folder) as connection:
        for statement, values in asked:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            assert [step[-1] for step in plan] == ["SEARCH Cache USING INDEX Cache_key_raw (key>? AND key<?)"]


# Rows that are not ours


ODD = {
    "text value": "UPDATE Cache SET value = 'text'",
    "number value": "UPDATE Cache SET value = 1",
    "NULL value": "UPDATE Cache SET value = NULL",
    "pickled": "UPDATE Cache SET mode = 4",
    "in a file": "UPDATE Cache SET mode = 2, filename = 'outside'",
    "raw, but in a file": "UPDATE Cache SET filename = 'outside'",
    "pickled key": "UPDATE Cache SET raw = 0",
    "text key": "UPDATE Cache SET key = '0123456789abcdef'",
    "NULL key": "UPDATE Cache SET key = NULL",
    "space of no number": "UPDATE Cache SET tag = 'text'",
}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_odd_rows_are_never_returned(store: DiskStore, folder: Path, odd: str) -> None:
    """A row that no put_many writes is neither got nor scanned nor followed to a file, and putting heals it."""
    store.put_many(records(1, 2), space=b"s")
    (folder / "outside").write_text("not to be read")
    with database(folder) as connection:
        connection.execute(ODD[odd] + " WHERE key = ?", (key(1),))
    if odd != "space of no number":
        assert store.get_many([key(1), key(2), b"0123456789abcdef"]) == records(2)
        assert list(store.scan()) == [(key(2), *records(2).values(), b"s")]
    assert all(type(value) is bytes for row in store.scan() for value in row)
    store.put_many(records(1, 3), space=b"s")
    assert store.get_many([key(1), key(2), key(3)]) == records(1, 2, 3)
    store.delete_many([key(1)])
    assert store.get_many([key(1), key(2), key(3)]) == records(2, 3)
    assert (folder / "outside").read_text() == "not to be read"


# Threads


DESCRIPTORS = Path("/proc/self/fd")


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="descriptors are counted in /proc")
def test_threads_that_come_and_go(store: DiskStore) -> None:
    """A service with a thread for each request does not run out of descriptors: a thread's end gives back its own."""
    store.put_many(records(1), space=b"s")
    before = len(list(DESCRIPTORS.iterdir()))
    for _ in range(100):
        thread = threading.Thread(target=store.get_many, args=([key(1)],))
        thread.start()
        thread.join()
    assert len(list(DESCRIPTORS.iterdir())) < before + 50


def test_reading_while_another_thread_closes(folder: Path) -> None:
    """close() while other threads read neither crashes the process nor gives them a wrong answer."""
    # In a process of its own, since a connection that is closed under a reader takes the interpreter with it.
    code = """
        import sys, threading
        from embcache.errors import StoreError
        from embcache.stores import DiskStore
        from tests.stores.files import records

        store, put = DiskStore(sys.argv[1]), records(*range(300), size=2_000)
        store.put_many(put, space=b"s")
        over, answers = threading.Event(), []

        def read():
            while not over.is_set():
                try:
                    answers.append(store.get_many(list(put)) == put)
                except StoreError:
                    continue

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        while len(answers) < 3:
            over.wait(0.01)
        for _ in range(200):
            store.close()
        over.set()
        for reader in readers:
            reader.join()
        store.close()
        print(all(answers))
    """
    assert output(python(code, folder)) == "True"
