"""Files and records of another embcache: nothing is damaged by either, and nothing is taken for damage.

There is no earlier release yet. A copy of this very package whose versions are raised stands in for a later one: for
that, this one is the earlier.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import embcache
from embcache import EmbcacheWarning, StoreError

from tests.faults import running
from tests.faults.running import ask, opened, program, set_aside, unwarned
from tests.programs import output
from tests.twins import right, same

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

server = running.server

TEXTS = [f"text {n}" for n in range(20)]


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute(statement)
        connection.commit()


def later_records(folder: Path) -> None:
    """Make all entries, notes and accounts those of version 9."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection:
        rows = connection.execute("SELECT rowid, value FROM Cache").fetchall()
        later = [(b"ECV9" + value[4:], rowid) for rowid, value in rows]
        connection.executemany("UPDATE Cache SET value = ? WHERE rowid = ?", later)
        connection.commit()


@pytest.mark.parametrize("read_only", [True, False])
def test_s25_records_of_a_later_version(server: Upstream, tmp_path: Path, *, read_only: bool) -> None:
    """A record of a later version is a miss that is counted; it is replaced by what is bought, but not if read-only."""
    with opened(server, tmp_path) as embedder:
        embedder.embed(TEXTS)
    later_records(tmp_path)
    before = (tmp_path / "cache.db").read_bytes()
    with opened(server, tmp_path, read_only=read_only) as embedder:
        with pytest.warns(EmbcacheWarning, match="bad_version: 20"):
            assert same(embedder.embed(TEXTS), right(TEXTS))
        session = embedder.session
        assert (session.bad_version, session.corrupt, session.quarantined, session.misses) == (20, 0, 0, 20)
    if read_only:
        assert (tmp_path / "cache.db").read_bytes() == before
    else:
        with opened(server, tmp_path, offline=True) as embedder:
            assert same(embedder.embed(TEXTS), right(TEXTS))
    assert set_aside(tmp_path) == []


def test_s25_a_file_of_a_later_version(server: Upstream, tmp_path: Path) -> None:
    """A file of a later version is not written and not set aside; its own version finds it as it was left."""
    with opened(server, tmp_path) as embedder:
        embedder.embed(TEXTS)
    version = ask(tmp_path, "PRAGMA user_version")
    change(tmp_path, "PRAGMA user_version = 99")
    before = (tmp_path / "cache.db").read_bytes()
    with opened(server, tmp_path) as embedder:
        with pytest.warns(EmbcacheWarning, match="made by a newer embcache"):
            assert same(embedder.embed([*TEXTS, "new"]), right([*TEXTS, "new"]))
        session = embedder.session
        assert (session.hits, session.misses, session.store_errors, session.quarantined) == (20, 1, 1, 0)
    with (
        opened(server, tmp_path, on_store_error="raise") as embedder,
        unwarned(),
        pytest.raises(StoreError, match="made by a newer embcache; use that, or another cache_dir"),
    ):
        embedder.embed("new")
    assert (tmp_path / "cache.db").read_bytes() == before
    assert set_aside(tmp_path) == []
    change(tmp_path, f"PRAGMA user_version = {version}")
    with opened(server, tmp_path, on_store_error="raise") as embedder:
        assert embedder.embed_result([*TEXTS, "new"]).hits == 20


TURN = """
    import json
    with opened() as embedder:
        answers = []
        for _ in range(2):
            result = embedder.embed_result(json.loads(sys.argv[3]))
            answers.append(same(result.vectors, right(json.loads(sys.argv[3]))))
        session = embedder.session
        print(json.dumps([answers, session.misses, session.quarantined, session.corrupt, embcache.stores.disk.VERSION]))
"""


def turn(server: Upstream, folder: Path, texts: list[str], package: Path | None = None) -> tuple[int, int]:
    """Embed `texts` twice with this embcache, or the one of `package`; return its version and what it had to buy."""
    code = f"import sys; sys.path.insert(0, {str(package)!r})\n" if package else ""
    told = output(program(TURN, server, folder, json.dumps(texts), first=code))
    answers, misses, quarantined, corrupt, version = json.loads(told)
    assert answers == [True, True]
    assert (quarantined, corrupt) == (0, 0)
    return version, misses


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """Where a package lies that is this one with the versions of file and records raised."""
    package = tmp_path / "later"
    shutil.copytree(embcache.__path__[0], package / "embcache", ignore=shutil.ignore_patterns("__pycache__"))
    for file, pattern, raised in (
        ("stores/disk.py", r"^VERSION = 1$", "VERSION = 2"),
        ("codec.py", r'^MAGIC = b"ECV1"$', 'MAGIC = b"ECV2"'),
    ):
        path = package / "embcache" / file
        text, count = re.subn(pattern, raised, path.read_text(), flags=re.MULTILINE)
        assert count == 1
        path.write_text(text)
    return package


def test_c04_a_later_embcache_on_an_earlier_ones_cache(server: Upstream, tmp_path: Path, later: Path) -> None:
    """On a cache that the earlier one made both go on, turn by turn; each buys what the other one wrote differently."""
    cache = tmp_path / "cache"
    assert turn(server, cache, TEXTS) == (1, 20)
    assert turn(server, cache, TEXTS, later) == (2, 20)
    for number in range(3):
        assert turn(server, cache, [f"earlier {number}"]) == (1, 1)
        assert turn(server, cache, [f"later {number}"], later) == (2, 1)
        assert turn(server, cache, TEXTS, later)[1] == 0
    assert set_aside(cache) == []
    with opened(server, cache, offline=True) as embedder:
        texts = [f"earlier {number}" for number in range(3)]
        assert same(embedder.embed(texts), right(texts))


def test_c04_an_earlier_embcache_on_a_later_ones_cache(server: Upstream, tmp_path: Path, later: Path) -> None:
    """On a cache that the later one made the earlier one buys and writes nothing; the later one keeps what it had."""
    cache = tmp_path / "cache"
    assert turn(server, cache, TEXTS, later) == (2, 20)
    for _ in range(3):
        before = (cache / "cache.db").read_bytes()
        assert turn(server, cache, [*TEXTS, "new"])[0] == 1
        assert (cache / "cache.db").read_bytes() == before
        assert turn(server, cache, TEXTS, later) == (2, 0)
    assert set_aside(cache) == []
