"""`embcache verify`: the real command, in processes of its own, on caches that real runs have filled."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from embcache.stores import DiskStore
from embcache.stores.folder import ASIDE, PAGE_SIZE

from tests.cli.commands import PLENTY, Run, embcache, passages, started
from tests.programs import tool
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ["version", "entries", "notes", "faults", "damage", "removed", "salvaged", "unplaced", "clean"]
MANY = 700
"""Entries, more than are read at a time."""
BOUND_BY_RIGHTS = 'exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"' if os.geteuid() == 0 else ":"


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream(dims=1024) as upstream:
        yield upstream


def fill(folder: Path, count: int = 20) -> None:
    lines = "".join(text + "\n" for text in passages(count)).encode()
    assert embcache(folder, "embed", "-", stdin=lines).code == 0


def told(run: Run, code: int) -> dict[str, Any]:
    assert (run.code, run.err) == (code, "")
    found: dict[str, Any] = json.loads(run.out)
    assert list(found) == NAMES
    assert (found["version"], found["clean"]) == (1, code == 0)
    return found


def verified(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    return told(embcache(folder, "verify", "--json", *options), code)


def change(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "cache/cache.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def spoil(folder: Path) -> None:
    """Make three entries corrupt, and one a pickle."""
    entries = "SELECT rowid FROM Cache WHERE length(key) = 16 ORDER BY rowid"
    change(
        folder,
        f"UPDATE Cache SET value = zeroblob(300) WHERE rowid IN ({entries} LIMIT 3)",  # noqa: S608 - our own words
        f"UPDATE Cache SET mode = 4 WHERE rowid IN ({entries} LIMIT 1 OFFSET 5)",  # noqa: S608 - as above
    )


def spoil_page(folder: Path, *, last: bool) -> None:
    """Overwrite the page of the database that holds its last entry, or one in the middle."""
    path = folder / "cache/cache.db"
    with closing(sqlite3.connect(path)) as database:
        values = database.execute("SELECT value FROM Cache WHERE length(key) = 16 ORDER BY rowid").fetchall()
    content = bytearray(path.read_bytes())
    start = content.index(values[-1 if last else len(values) // 2][0]) // PAGE_SIZE * PAGE_SIZE
    content[start : start + PAGE_SIZE] = os.urandom(PAGE_SIZE)
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_clean(folder: Path) -> None:
    """A cache whose every entry proves itself is exit code 0."""
    fill(folder)
    found = verified(folder)
    assert found == dict.fromkeys(NAMES, 0) | {
        "version": 1,
        "entries": 20,
        "notes": found["notes"],
        "faults": {},
        "damage": None,
        "clean": True,
    }
    assert found["notes"] > 0
    run = embcache(folder, "verify")
    assert (run.code, run.err) == (0, "")
    assert run.out.decode() == f"20 entries and {found['notes']} notes proved themselves\n"


@pytest.mark.parametrize("options", [[], ["--repair"]])
def test_no_cache(folder: Path, options: list[str]) -> None:
    """Where there is no cache nothing is wrong, and none is made."""
    assert verified(folder, *options)["entries"] == 0
    assert list(folder.iterdir()) == []


def test_a_database_without_a_table(folder: Path) -> None:
    """A database that a process had just begun to make when it was killed is empty, and clean."""
    fill(folder)
    (folder / "cache/cache.db").write_bytes(b"")
    assert verified(folder)["entries"] == 0


def test_damage(folder: Path) -> None:
    """Rows that do not prove themselves are exit code 1, told by kind, and left as they are."""
    fill(folder)
    spoil(folder)
    before = contents(folder)
    found = verified(folder, code=1)
    assert (found["entries"], found["faults"], found["removed"]) == (16, {"corrupt": 3, "foreign": 1}, 0)
    run = embcache(folder, "verify")
    assert run.code == 1
    assert run.out.decode().splitlines()[1:] == [
        "3 rows did not: corrupt",
        "1 row did not: foreign",
        "embcache verify --repair removes what fails and saves what can be saved",
    ]
    after = contents(folder)
    # What SQLite needs to read beside a writer: a log without content, and its index.
    assert after.pop("cache/cache.db-wal", b"") == b""
    after.pop("cache/cache.db-shm", None)
    assert after == before


def test_a_log_is_read_and_left(folder: Path) -> None:
    """Entries in the log of a process that has not closed its cache are proved, and the log is not folded in."""
    fill(folder)
    with closing(DiskStore(folder / "cache")) as store:
        store.put_many({bytes(16): b"no record"}, space=b"s")
        before = contents(folder)
        assert verified(folder, code=1)["faults"] == {"corrupt": 1}
        after = contents(folder)
    for name in ("cache/cache.db", "cache/cache.db-wal"):
        assert after[name] == before[name] != b""


def test_repair(folder: Path, server: Upstream) -> None:
    """`--repair` removes what fails and nothing else: the next run is clean, and only that is bought again."""
    fill(folder)
    spoil(folder)
    assert verified(folder, "--repair", code=1)["removed"] == 4
    assert verified(folder)["entries"] == 16
    server.forget()
    fill(folder)
    assert len(server.sent_inputs) == 4


@pytest.mark.parametrize("last", [False, True])
def test_repair_of_a_damaged_file(folder: Path, server: Upstream, last: bool) -> None:
    """Of a file with a page of rubbish, be it the last, `--repair` saves the rest; the next run is clean."""
    fill(folder, 20)
    fill(folder, MANY)
    spoil_page(folder, last=last)
    assert verified(folder, code=1)["damage"]
    found = verified(folder, "--repair", code=1)
    assert MANY - 10 < found["salvaged"] < MANY
    assert verified(folder)["entries"] == found["salvaged"]
    assert [path for path in (folder / "cache").iterdir() if path.name.startswith(ASIDE)] == []
    server.forget()
    fill(folder, MANY)
    assert len(server.sent_inputs) == MANY - found["salvaged"]


def test_a_foreign_schema(folder: Path) -> None:
    """A trigger that somebody planted is damage; `--repair` takes the entries out of its reach."""
    fill(folder)
    change(folder, "CREATE TRIGGER planted AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END")
    assert "schema" in verified(folder, code=1)["damage"]
    assert verified(folder, "--repair", code=1)["salvaged"] == 20
    assert verified(folder)["entries"] == 20


def test_what_was_set_aside_is_kept_while_it_cannot_be_placed(folder: Path) -> None:
    """A file set aside whose entries' space is not known is kept until it is, and its accounts are counted once."""
    fill(folder, 20)
    billed = json.loads(embcache(folder, "stats", "--json").out)["billed_tokens"]
    change(folder, "DELETE FROM Cache WHERE CAST(key AS TEXT) LIKE 'space:%'", "CREATE TABLE planted (x)")
    found = verified(folder, "--repair", code=1)
    assert (found["salvaged"], found["unplaced"]) == (0, 20)
    again = embcache(folder, "verify", "--repair")
    assert (again.code, "waiting in a file set aside" in again.out.decode()) == (0, True)
    assert [path.name for path in (folder / "cache").iterdir() if path.name.startswith(ASIDE)]

    fill(folder, 1)

    assert verified(folder, "--repair")["salvaged"] == 19
    assert [path.name for path in (folder / "cache").iterdir() if path.name.startswith(ASIDE)] == []
    stats = json.loads(embcache(folder, "stats", "--json").out)
    assert stats["entries"] == 20
    assert billed < stats["billed_tokens"] < 2 * billed


def test_foreign_files(folder: Path) -> None:
    """Files of others in the folder are never touched, not even under names that resemble ours."""
    fill(folder)
    for name in ("thesis.docx", f"{ASIDE}copy", f"{ASIDE}1.bak", "cache.db.old", "sub/cache.db"):
        path = folder / "cache" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody's")
    spoil_page(folder, last=False)
    theirs = {name: data for name, data in contents(folder).items() if data == b"somebody's"}
    assert len(theirs) == 5
    verified(folder, "--repair", code=1)
    after = contents(folder)
    assert {name: after.get(name) for name in theirs} == theirs


def test_read_only(folder: Path) -> None:
    """A cache in a folder that cannot be written is proved all the same; repairing it is exit code 3, and one line."""
    if os.geteuid() == 0:
        tool("setpriv")
    fill(folder)
    spoil(folder)
    (folder / "cache").chmod(0o500)
    found = told(embcache(folder, "verify", "--json", first=BOUND_BY_RIGHTS), code=1)
    assert (found["entries"], found["faults"]) == (16, {"corrupt": 3, "foreign": 1})
    run = embcache(folder, "verify", "--repair", first=BOUND_BY_RIGHTS)
    assert (run.code, run.out, len(run.lines)) == (3, b"", 1)


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    """A database that this user may not read is exit code 3 and one line."""
    if os.geteuid() == 0:
        tool("setpriv")
    fill(folder)
    (folder / "cache/cache.db").chmod(0)
    run = embcache(folder, "verify", first=BOUND_BY_RIGHTS)
    assert (run.code, run.out, len(run.lines)) == (3, b"", 1)
    assert "cache.db" in run.err


def test_locked(folder: Path) -> None:
    """A lock of another process hinders no proof; repairing then is exit code 3, says so, and removes nothing."""
    fill(folder)
    spoil(folder)
    with closing(sqlite3.connect(folder / "cache/cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert verified(folder, code=1)["faults"] == {"corrupt": 3, "foreign": 1}
        run = embcache(folder, "verify", "--repair")
        assert (run.code, run.out, len(run.lines)) == (3, b"", 1)
        assert "locked" in run.err
        other.execute("ROLLBACK")
    assert verified(folder, code=1)["faults"] == {"corrupt": 3, "foreign": 1}


def test_no_folder_of_ours(folder: Path) -> None:
    """A folder that others may write to is exit code 3, with or without `--repair`."""
    fill(folder)
    (folder / "cache").chmod(0o777)
    for options in ([], ["--repair"]):
        run = embcache(folder, "verify", *options)
        assert (run.code, run.out, len(run.lines)) == (3, b"", 1)


def test_garbage(folder: Path) -> None:
    """A file that is no database is damage; `--repair` sets it aside, and a new cache takes its place."""
    fill(folder)
    (folder / "cache/cache.db").write_bytes(b"This is no database. " * 1000)
    assert verified(folder, code=1)["damage"]
    verified(folder, "--repair", code=1)
    assert verified(folder)["entries"] == 0


@pytest.mark.parametrize("options", [["--nope"], ["file"]])
def test_wrong_usage(folder: Path, options: list[str]) -> None:
    """A mistake in the command is exit code 2."""
    run = embcache(folder, "verify", *options)
    assert (run.code, run.out) == (2, b"")


def test_help(folder: Path) -> None:
    """The help tells what `--repair` does, and what the exit codes mean."""
    shown = embcache(folder, "verify", "--help").out.decode()
    assert "--repair" in shown
    assert "Exit code 1 where damage was found" in " ".join(shown.split())


def test_nobody_listens(folder: Path) -> None:
    """A standard output whose reader has left ends the command without a word."""
    fill(folder)
    with started(folder, "verify") as run:
        run.out.close()
        assert run.process.wait(PLENTY) in (0, 1)
        assert run.told() == ""
