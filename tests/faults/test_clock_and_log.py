"""A clock that jumps while a cache is in use, and a log that grows, is lost or is damaged."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from embcache import InputRejected
from embcache.stores import DiskStore

from tests.faults import running
from tests.faults.running import ask, opened, program, set_aside, unwarned
from tests.stores.files import records
from tests.twins import right, same

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

server = running.server

HOUR = 3600.0
TEN_YEARS = 10 * 365 * 24 * HOUR
MIB = 1 << 20


# The clock


@pytest.mark.parametrize("jump", [HOUR, -HOUR, TEN_YEARS, -TEN_YEARS], ids=["1 h", "-1 h", "10 y", "-10 y"])
def test_s20_the_clock_jumps(server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """However the clock jumps, entries neither die nor revive, nothing waits for it, and figures stay sensible."""
    now = time.time
    with opened(server, tmp_path) as embedder:
        embedder.embed(["a", "b"])
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        began = time.monotonic()
        assert embedder.embed_result(["a", "b"]).hits == 2
        assert same(embedder.embed(["a", "new"]), right(["a", "new"]))
        with opened(server, tmp_path) as other:
            assert other.embed_result(["new", "b", "a"]).hits == 3
        assert time.monotonic() - began < 20
    monkeypatch.setattr(time, "time", now)
    with opened(server, tmp_path) as embedder:
        assert embedder.embed_result(["new", "b", "a"]).hits == 3
        stats = embedder.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.billed_tokens) == (3, 9, 3, server.billed_tokens)


@pytest.mark.parametrize("jump", [-HOUR, HOUR, 25 * HOUR, -TEN_YEARS, TEN_YEARS])
def test_s20_what_is_remembered_for_a_day(
    server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """A refusal is remembered for a day of the clock; one of the future is as good as forgotten, not one for ever."""
    server.poison = {"bad"}
    with opened(server, tmp_path) as embedder, pytest.raises(InputRejected):
        embedder.embed(["good", "bad"])
    server.poison = set()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    with opened(server, tmp_path) as embedder:
        if 0 <= jump < 24 * HOUR:
            with pytest.raises(InputRejected, match="refused before"):
                embedder.embed(["good", "bad"])
        else:
            assert same(embedder.embed(["good", "bad"]), right(["good", "bad"]))


@pytest.mark.parametrize("jump", [-HOUR, HOUR, -TEN_YEARS, TEN_YEARS])
def test_s20_leases_of_another_clock(
    server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """A lease that was given by a clock far ahead or behind keeps nobody waiting longer than it was given for."""
    with opened(server, tmp_path) as embedder:
        embedder.embed("a")
        engine = embedder._engine
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        keys = [b"%016d" % n for n in range(5)]
        assert engine.keeper.claim(keys, b"another", 5.0) == set(keys)
        monkeypatch.setattr(time, "time", now)
        assert engine.keeper.claim(keys, b"one", 5.0) == set(keys)


# The log


def test_s21_a_log_that_a_reader_pins(tmp_path: Path) -> None:
    """A log that grew while a reader kept it whole is cut when that is gone, and after close() there is none."""
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(records(0), space=b"s")
        with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM Cache").fetchone()
            for batch in range(18):
                store.put_many(records(*range(batch * 1000, batch * 1000 + 1000), size=4200), space=b"s")
            log = tmp_path / "cache.db-wal"
            assert log.stat().st_size > 64 * MIB, "the reader did not pin it"
            store.close()
            assert log.stat().st_size > 64 * MIB, "it was cut under a reader"
            reader.execute("COMMIT")
        for number in range(3):
            store.put_many(records(number), space=b"s")
        assert log.stat().st_size <= 64 * MIB
    assert not log.exists()
    assert ask(tmp_path, "PRAGMA integrity_check") == "ok"


def test_s21_a_log_of_one_large_commit(tmp_path: Path) -> None:
    """After one commit of more than 64 MiB no more than 32 of log stay in use, and after close() none."""
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(records(*range(12_000), size=6000), space=b"s")
        log = tmp_path / "cache.db-wal"
        assert log.stat().st_size > 64 * MIB
        for number in range(3):
            store.put_many(records(number), space=b"s")
        assert log.stat().st_size <= 33 * MIB
    assert not log.exists()


DIES = """
    import os, signal
    embedder = opened()
    for n in range(0, 60, 5):
        embedder.embed([f"text {k}" for k in range(n, n + 5)])
    os.kill(os.getpid(), signal.SIGKILL)
"""
TEXTS = [f"text {n}" for n in range(60)]


def lose(path: Path, _chance: random.Random) -> None:
    path.unlink()


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def blank(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    page = 4096
    start = chance.randrange(len(content) // page) * page
    content[start : start + page] = bytes(page)
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["cache.db-wal", "cache.db-shm"])
@pytest.mark.parametrize("closed_before", [False, True], ids=["fresh", "grown"])
def test_s26_a_log_lost_or_damaged(server: Upstream, tmp_path: Path, file: str, *, closed_before: bool) -> None:
    """After a crash, a log or its index that is lost or damaged costs the last commits at most, and no right vector."""
    crashed = tmp_path / "crashed"
    if closed_before:
        with opened(server, crashed) as embedder:
            embedder.embed(["before"])
    child = program(DIES, server, crashed)
    child.communicate(timeout=60)
    assert (crashed / file).stat().st_size > 4096
    chance = random.Random(20261124)
    bought: list[int] = []
    for number, damage in enumerate([lose, *[cut, flip, blank] * 10]):
        folder = tmp_path / str(number)
        shutil.copytree(crashed, folder)
        damage(folder / file, chance)
        with opened(server, folder) as embedder, unwarned():
            result = embedder.embed_result(TEXTS)
            assert same(result.vectors, right(TEXTS)), damage.__name__
            bought.append(result.misses)
            assert same(embedder.embed(TEXTS), right(TEXTS))
            assert embedder.session.misses == result.misses, "it does not heal"
        with opened(server, folder, offline=True) as embedder:
            assert same(embedder.embed(TEXTS), right(TEXTS))
            if closed_before:
                assert same(embedder.embed("before"), right(["before"])[0])
        assert ask(folder, "PRAGMA integrity_check") == "ok"
        assert set_aside(folder) == []
        shutil.rmtree(folder)
    if file == "cache.db-shm":
        assert set(bought) == {0}, "the index is made anew from the log"
    else:
        assert bought[0] == len(TEXTS), "all was in the log, or what was lost is not noticed"
        assert len(set(bought)) > 3
