"""`embcache clear`: everything of ours goes, at once and only when it was said, and nothing of anybody else's."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from embcache.keys import encode_space
from embcache.stores import DiskStore

from tests.cli.caches import content, documented, space, stock
from tests.cli.commands import PLENTY, Terminal, asking, embcache, passages, started
from tests.stores.files import MARKER, names, records
from tests.upstream import Upstream

if TYPE_CHECKING:
    from pathlib import Path

SPACE = encode_space(space())
FOREIGN = {
    "cache.db.bak": b"a copy that somebody made",
    "cache.db-wal.old": b"another",
    "cache.db.corrupt-notes": b"what somebody wrote of it",
    "cache.db.corrupt-1700000000000000000-notes": b"the same",
    "thesis.docx": b"years of work",
    "embcache.marker.txt": b"no marker",
}


def test_everything_of_ours(tmp_path: Path) -> None:
    """Database, log, files set aside and marker go; what others have in the folder stays byte for byte."""
    stock(tmp_path, space(), passages(5))
    cache = tmp_path / "cache"
    aside = f"cache.db.corrupt-{1_700_000_000_000_000_000}"
    for name in (aside, aside + "-wal", aside + "-shm", "cache.db-wal", "cache.db-shm", "cache.db-journal"):
        (cache / name).touch()
    for name, data in FOREIGN.items():
        (cache / name).write_bytes(data)
    (cache / "cache.db.corrupt-5").mkdir()
    (cache / "project/src").mkdir(parents=True)
    (cache / "project/src/cache.db").write_bytes(b"of another program")

    run = embcache(tmp_path, "clear", "--yes", "--json")

    assert (run.code, run.err) == (0, "")
    told = json.loads(run.out)
    assert list(told) == documented("clear")
    assert told | {"bytes_on_disk": 0} == {
        "version": 1,
        "files": 8,
        "bytes_on_disk": 0,
        "entries": 5,
        "billed_tokens": 0,
        "cost": 0.0,
        "removed": True,
    }
    assert names(cache) == {*FOREIGN, "project", "cache.db.corrupt-5"}
    assert {name: (cache / name).read_bytes() for name in FOREIGN} == FOREIGN
    assert (cache / "project/src/cache.db").read_bytes() == b"of another program"


def test_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After real work all is gone, figures too, and the next run buys everything again."""
    with Upstream() as server:
        for name, value in asking(server).items():
            monkeypatch.setenv(name, value)
        lines = "\n".join(passages(5)).encode()
        assert embcache(tmp_path, "embed", "-", stdin=lines).code == 0
        run = embcache(tmp_path, "clear", "--yes")
        assert (run.code, run.err) == (0, "")
        assert b"5 entries and accounts of %d tokens" % server.billed_tokens in run.out
        assert run.out.endswith(b"\nremoved\n")
        assert list((tmp_path / "cache").iterdir()) == []
        assert json.loads(embcache(tmp_path, "stats", "--json").out)["misses"] == 0
        assert embcache(tmp_path, "embed", "-", stdin=lines).code == 0
        assert server.accepted_inputs == passages(5) * 2


def test_no_cache(tmp_path: Path) -> None:
    """Where there is no cache, or an empty folder, nothing happens, and nothing is made."""
    for _ in range(2):
        run = embcache(tmp_path, "clear", "--yes")
        assert (run.code, run.out, run.err) == (0, b"there is no cache\n", "")
        (tmp_path / "cache").mkdir(exist_ok=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_our_marker(tmp_path: Path) -> None:
    """A folder that embcache did not mark is refused, whatever the names in it: exit code 3."""
    stock(tmp_path, space(), passages(1))
    cache = tmp_path / "cache"
    (cache / MARKER).unlink()
    before = (cache / "cache.db").read_bytes()
    run = embcache(tmp_path, "clear", "--yes")
    assert (run.code, run.out, len(run.lines)) == (3, b"", 1)
    (cache / MARKER).symlink_to("cache.db")
    assert embcache(tmp_path, "clear", "--yes").code == 3
    assert (cache / "cache.db").read_bytes() == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A folder that is a link is refused; a file of ours that is a link is none of ours."""
    stock(tmp_path, space(), passages(1))
    (tmp_path / "cache").rename(tmp_path / "real")
    (tmp_path / "cache").symlink_to("real")
    assert embcache(tmp_path, "clear", "--yes").code == 3
    (tmp_path / "cache").unlink()
    (tmp_path / "real").rename(tmp_path / "cache")
    (tmp_path / "precious").write_bytes(b"data")
    (tmp_path / "cache/cache.db-wal").symlink_to(tmp_path / "precious")
    assert embcache(tmp_path, "clear", "--yes").code == 0
    assert (tmp_path / "precious").read_bytes() == b"data"
    assert names(tmp_path / "cache") == {"cache.db-wal"}


def test_a_damaged_cache(tmp_path: Path) -> None:
    """What cannot be read can be removed."""
    stock(tmp_path, space(), passages(1))
    (tmp_path / "cache/cache.db").write_bytes(b"This is no database. " * 100)
    run = embcache(tmp_path, "clear", "--yes")
    assert (run.code, run.err) == (0, "")
    assert b"what it holds cannot be read" in run.out
    assert names(tmp_path / "cache") == set()


def test_in_a_pipe_nobody_is_asked(tmp_path: Path) -> None:
    """Without a terminal nothing is asked and nothing goes: exit code 2, and a word on --yes."""
    made = stock(tmp_path, space(), passages(3))
    run = embcache(tmp_path, "clear", stdin=b"y\n")
    assert (run.code, run.out) == (2, b"")
    assert "--yes" in run.err
    assert content(tmp_path) == made


@pytest.mark.parametrize(("answer", "code", "left"), [("yes", 0, 0), ("n", 1, 3), ("yeah", 1, 3)])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str, code: int, left: int) -> None:
    """On a terminal it tells what goes, asks, and takes nothing but a yes for one."""
    stock(tmp_path, space(), passages(3))
    with (
        Terminal() as screen,
        started(tmp_path, "clear", stdin=screen.end, stdout=screen.end, stderr=screen.end) as run,
    ):
        screen.type(answer + "\n")
        run.process.wait(timeout=PLENTY)
        shown = screen.shown()
    assert run.process.returncode == code
    assert "with 3 entries" in shown
    assert "Remove it all? [y/N]" in shown
    assert len(content(tmp_path)) == left


def test_under_an_open_store(tmp_path: Path) -> None:
    """Who has the cache open goes on with a new one: nothing of it is lost, and it is marked as ours again."""
    with closing(DiskStore(tmp_path / "cache")) as store:
        store.put_many(records(1, 2), space=SPACE)
        assert embcache(tmp_path, "clear", "--yes").code == 0
        assert store.get_many(records(1).keys()) == {}
        store.put_many(records(3), space=SPACE)
        assert store.get_many(records(1, 3).keys()) == records(3)
    with closing(DiskStore(tmp_path / "cache")) as store:
        assert store.get_many(records(1, 3).keys()) == records(3)
    assert names(tmp_path / "cache") == {"cache.db", MARKER}
