"""The folder of the store on disk: private, holding our files alone, and made once however many make it."""

from __future__ import annotations

import os
import re
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from embcache.errors import StoreError
from embcache.stores import DiskStore
from embcache.stores.folder import exclusive, prepare

from tests.programs import NOBODY, output, python
from tests.stores.files import MARKER, PAGE, key, names, one, records

if TYPE_CHECKING:
    from pathlib import Path


def test_the_page_size_of_a_fresh_file(store: DiskStore, folder: Path) -> None:
    """A fresh file has pages of 32 KiB, which diskcache alone would not give it."""
    store.put_many(records(1), space=b"s")
    store.close()
    assert one(folder, "PRAGMA page_size") == PAGE


def test_the_page_size_after_a_kill_while_the_file_was_made(store: DiskStore, folder: Path) -> None:
    """An empty file, left by a process that was killed while making it, is made a database with the same pages."""
    folder.mkdir(mode=0o700)
    (folder / MARKER).write_text("This folder is a cache of embeddings made by embcache.")
    (folder / "cache.db").touch(mode=0o600)
    store.put_many(records(1), space=b"s")
    store.close()
    assert one(folder, "PRAGMA page_size") == PAGE


def test_what_is_in_the_folder(store: DiskStore, folder: Path) -> None:
    """Beside the database, its log and the log's index there is the marker and nothing else; later two files."""
    for number in range(5):
        store.put_many(records(number, size=200_000), space=b"s")
    reader = threading.Thread(target=store.get_many, args=([key(1)],))
    reader.start()
    reader.join()
    assert names(folder) == {"cache.db", "cache.db-wal", "cache.db-shm", MARKER}
    store.close()
    assert names(folder) == {"cache.db", MARKER}


def test_reading_alone_leaves_nothing_either(store: DiskStore, folder: Path) -> None:
    """After close() of a store that was only read, the database stands alone as well."""
    with closing(DiskStore(folder)) as other:
        other.put_many(records(1), space=b"s")
    assert store.get_many([key(1)]) == records(1)
    store.close()
    assert names(folder) == {"cache.db", MARKER}


@pytest.mark.parametrize("name", ["a b", "50%25", "a?b#c", "a;b&c=d", "schlüssel", "$EMBCACHE_DIR", "~", "it's", "[x]"])
def test_a_folder_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever characters the name of a folder holds, what is put there is there, and nowhere else."""
    monkeypatch.setenv("EMBCACHE_DIR", "elsewhere")
    with closing(DiskStore(tmp_path / name)) as store:
        store.put_many(records(1), space=b"s")
        assert store.get_many([key(1)]) == records(1)
    assert names(tmp_path) == {name}
    assert names(tmp_path / name) == {"cache.db", MARKER}


def test_foreign_files_are_left_alone(store: DiskStore, folder: Path) -> None:
    """What else lies in the folder is neither changed nor removed by any call."""
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "thesis.txt").write_text("mine")
    (folder / "cache.db.bak").write_text("mine")
    store.put_many(records(*range(100)), space=b"s")
    store.delete_many(list(records(*range(100))))
    store.close()
    assert (folder / "sub" / "thesis.txt").read_text() == "mine"
    assert (folder / "cache.db.bak").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_s23_the_folder_is_private(folder: Path, umask: int) -> None:
    """The folder is 0700 and each file of ours 0600, while open and after, whatever the umask."""
    code = """
        import os, sys
        from embcache.stores import DiskStore
        os.umask(int(sys.argv[2]))
        store = DiskStore(sys.argv[1])
        store.put_many({bytes(16): bytes(1000)}, {b"a": {"hits": 1}}, space=b"s")
        def show():
            for path in [sys.argv[1], *sorted(os.scandir(sys.argv[1]), key=lambda entry: entry.name)]:
                print(os.path.basename(path), oct(os.stat(path).st_mode & 0o7777))
        show()
        store.close()
        show()
    """
    private = {
        "cache": "0o700",
        MARKER: "0o600",
        "cache.db": "0o600",
        "cache.db-wal": "0o600",
        "cache.db-shm": "0o600",
    }
    shown = [line.split() for line in output(python(code, folder, umask)).splitlines()]
    assert len(shown) == 5 + 3
    assert dict(map(tuple, shown)) == private  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_folder_that_may_not_be_entered(folder: Path) -> None:
    """A cache that this user may not even look at is a StoreError, for reading as for writing."""
    code = f"""
        import os, sys
        import embcache.providers.openai_compatible, embcache.stores.disk
        from embcache.errors import StoreError
        os.chmod(sys.argv[1], 0)
        if os.geteuid() == 0:
            os.setuid({NOBODY})
        store = embcache.stores.disk.DiskStore(sys.argv[1])
        for call in (lambda: store.get_many([bytes(16)]), store.totals, lambda: list(store.scan()),
                     lambda: store.put_many({{bytes(16): b"x"}}, space=b"s")):
            try:
                call()
            except StoreError as error:
                print(type(error).__name__, sys.argv[1] in str(error))
            except Exception as error:
                print("foreign:", repr(error))
        store.close()
    """
    with closing(DiskStore(folder)) as store:
        store.put_many({bytes(16): b"x"}, space=b"s")
    try:
        assert output(python(code, folder)).splitlines() == ["StoreError True"] * 4
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("spoil", ["directory", "folder is a file", "garbage"])
def test_a_database_that_is_none(folder: Path, spoil: str) -> None:
    """Whatever stands where the database should be, reading or writing raises StoreError and nothing else."""
    if spoil == "folder is a file":
        folder.touch()
    elif spoil == "directory":
        (folder / "cache.db").mkdir(parents=True)
    else:
        folder.mkdir()
        (folder / "cache.db").write_bytes(os.urandom(100_000))
    with closing(DiskStore(folder)) as store:
        with suppress(StoreError):  # where the folder is a file there is nothing in it
            assert store.get_many([key(1)]) == {}
        with suppress(StoreError):
            assert store.totals().spaces == {}
        with suppress(StoreError):
            assert list(store.scan()) == []
        with pytest.raises(StoreError, match=re.escape(str(folder))):
            store.put_many(records(1), space=b"s")


ROUNDS = [f"round {number}" for number in range(12)]


def test_s17_eight_processes_make_the_file_at_once(folder: Path) -> None:
    """Of eight processes that open a folder for the first time at one instant, each stores what it has, in one file."""
    code = """
        import sys
        from pathlib import Path
        import embcache.stores.disk
        from embcache.stores import DiskStore
        embcache.stores.disk.PATIENCE = embcache.stores.disk.LOCK_PATIENCE = 30  # eight at once may be slow
        me = int(sys.argv[2])
        DiskStore(Path(sys.argv[1]) / f"warm{me}").put_many({bytes(16): b"x"}, space=b"s")
        print("ready", flush=True)
        for line in sys.stdin:
            store = DiskStore(Path(sys.argv[1]) / line.strip())
            put = {(me * 100 + n).to_bytes(16, "big"): bytes([me]) * 2000 for n in range(20)}
            store.put_many(put, {b"a": {"requests": 1}}, space=b"s", pin=(b"the pin of a space", b"8"))
            print(store.get_many(list(put)) == put, flush=True)
            store.close()
    """
    folder.mkdir()
    processes = [python(code, folder, number) for number in range(8)]
    pipes = [(process.stdin, process.stdout) for process in processes]
    for _, out in pipes:
        assert out is not None
        assert out.readline() == "ready\n"
    for name in ROUNDS:
        for into, _ in pipes:
            assert into is not None
            into.write(name + "\n")
            into.flush()
        for _, out in pipes:
            assert out is not None
            assert out.readline() == "True\n"
    for process in processes:
        output(process)
    for name in ROUNDS:
        assert one(folder / name, "PRAGMA page_size") == PAGE
        assert one(folder / name, "PRAGMA auto_vacuum") == 2
        assert one(folder / name, "PRAGMA integrity_check") == "ok"
        with closing(DiskStore(folder / name)) as store:
            totals = store.totals()
            assert totals.spaces == {b"s": (160, 160 * 2000)}
            assert totals.accounts == {b"a": {"requests": 8}}


def test_the_marker_is_removed_while_somebody_waits_for_it(folder: Path) -> None:
    """Who waits to make the database while another removes all of it marks the folder anew: never one without."""
    folder.mkdir(mode=0o700)
    made: list[Path] = []
    with exclusive(folder):
        waiting = threading.Thread(target=lambda: made.append(prepare(folder, 1.0)))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive(), "it did not wait"
        (folder / MARKER).unlink()
    waiting.join(timeout=60)
    assert [path.name for path in made] == ["cache.db"]
    assert names(folder) >= {"cache.db", MARKER}
