"""Nothing can be written: the disk is full, or somebody else holds the lock and does not let go."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from embcache import StoreError

from tests.faults.watch import CANARY, KEY, Watch, descriptors, moved
from tests.programs import fill, mounted, output, python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIMS = 1024
ROOM = 1 << 20
"""Bytes left on the disk: enough for some entries, not for all."""


@pytest.fixture
def disk(watch: Watch, tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB, with the cache on it."""
    watch.server.dims = DIMS
    with mounted(tmp_path / "small") as place:
        watch.folder = place / "cache"
        yield place
        watch.close()
        watch.check_secrets("")  # while there are files to look into


# S04


def test_s04_a_disk_that_runs_full(watch: Watch, disk: Path) -> None:
    """Where the disk runs full all vectors come back, those not stored are counted and warned of once, others hit."""
    before, texts = watch.texts(100), [f"{CANARY} later {n}" for n in range(400)]
    with watch.open(batch_size=50, max_concurrency=1) as one:
        watch.embed(one, before)
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - ROOM)
        assert watch.embed(one, texts).misses == 400
        lost = moved(one)["store_errors"]
        assert moved(one) == {"store_errors": lost}
        assert 0 < lost < 400
        assert lost % 50 == 0, "a request's vectors are stored together or not at all"
        watch.hits(one, [*before, *texts[: 400 - lost]])
        watch.server.forget()
        watch.embed(one, texts)
        assert watch.server.sent_inputs == texts[400 - lost :]
        assert moved(one) == {"store_errors": 2 * lost}
        warned = watch.warnings()
        assert len(warned) == 1
        assert "full" in warned[0]
        filler.unlink()
        watch.embed(one, texts)
        watch.hits(one, [*before, *texts])
        watch.works(one)
        assert one.stats().billed_tokens >= watch.server.billed_tokens, "what was billed meanwhile is on the books"
    assert watch.warnings() == []


def test_s04_for_those_who_want_to_know(watch: Watch, disk: Path) -> None:
    """With `on_store_error="raise"` a full disk is a StoreError, once everything that had room is stored."""
    with watch.open(on_store_error="raise") as one:
        watch.embed(one, watch.texts(100))
        filler = fill(disk)
        with watch.raises(StoreError):
            one.embed([f"{CANARY} later {n}" for n in range(600)])
        watch.hits(one, watch.texts(100))
        filler.unlink()
        watch.works(one)


# S05

ASKS = """
    import sys, warnings
    from embcache import CachedEmbedder, EmbcacheWarning
    from tests.twins import right, same
    from tests.faults.watch import moved

    texts = sys.stdin.read().splitlines()
    with CachedEmbedder("m", base_url=sys.argv[1], api_key=sys.argv[2], cache_dir=sys.argv[3]) as one:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            held = one.embed_result(texts)
            assert same(held.vectors, right(texts, 1024))
            print(held.hits, held.misses, len(warned), moved(one))
            assert same(one.embed(["new", texts[0]]), right(["new", texts[0]], 1024))
            print(len(warned), warned[0].category is EmbcacheWarning, moved(one))
"""
# Ends as a kill does, so that the log is not folded into the file.
BUYS = """
    import os, sys
    from embcache import CachedEmbedder

    texts = sys.stdin.read().splitlines()
    one = CachedEmbedder("m", base_url=sys.argv[1], api_key=sys.argv[2], cache_dir=sys.argv[3])
    one.embed(texts)
    print("kept", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("log", [False, True], ids=["closed", "with a log"])
def test_s05_a_disk_that_is_full_from_the_start(watch: Watch, disk: Path, *, log: bool) -> None:
    """A new process serves hits from a full disk without a request, and returns and counts what it cannot store."""
    texts, given = watch.texts(300), (watch.server.base_url, KEY, watch.folder)
    if log:
        assert output(python(BUYS, *given), "\n".join(texts)) == "kept"
        assert (watch.folder / "cache.db-wal").stat().st_size > 300 * 4 * DIMS
    else:
        with watch.open() as one:
            watch.embed(one, texts)
    watch.server.forget()
    filler = fill(disk)
    told = output(python(ASKS, *given), "\n".join(texts)).splitlines()
    assert told == ["300 0 0 {}", "1 True {'store_errors': 1}"]
    assert watch.server.sent_inputs == ["new"]
    filler.unlink()
    with watch.open() as one:
        watch.hits(one, texts)
        watch.works(one)


@pytest.mark.parametrize("log", [False, True], ids=["closed", "with a log"])
def test_s05_each_call_tries_anew(watch: Watch, disk: Path, *, log: bool) -> None:
    """While the disk is full each call tries to open the cache for writing; what fails holds nothing, and one works."""
    if log:
        output(python(BUYS, watch.server.base_url, KEY, watch.folder), "\n".join(watch.texts(100)))
    else:
        with watch.open() as one:
            watch.embed(one, watch.texts(100))
    filler = fill(disk)
    with watch.open() as one:
        watch.embed(one, ["new"])
        held = descriptors()
        gc.disable()
        try:
            for number in range(19):
                watch.embed(one, [f"new {number}"])
            more = descriptors() - held
        finally:
            gc.enable()
        assert moved(one) == {"store_errors": 20}
        assert more.total() < 19, "a thread or two may have begun to read, but no attempt has left anything"
        watch.hits(one, watch.texts(100))
        filler.unlink()
        watch.works(one)


# S09

LOCK = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("already_open", [True, False], ids=["open", "not open yet"])
def test_s09_a_stopped_process_holds_the_lock(watch: Watch, *, already_open: bool) -> None:
    """While a process that holds the lock is stopped hits are served, and 20 calls that miss wait a second in all."""
    texts, fresh = watch.texts(20), [f"{CANARY} new {n}" for n in range(20)]
    with watch.open() as one:
        watch.embed(one, texts)
    with watch.open() as one:
        if already_open:
            watch.embed(one, ["open"])
        holder = python(LOCK, watch.folder / "cache.db")
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            for text in fresh:
                watch.embed(one, [text])
            waited = time.monotonic() - began
            for _ in range(20):
                watch.hits(one, texts)
            assert moved(one) == {"store_busy": 20}
            # A second is promised; a busy machine takes some for itself. Were each to wait it would be 16.
            assert waited < 4
            assert len(watch.warnings()) == 1
            holder.send_signal(signal.SIGCONT)
        finally:
            holder.kill()
            holder.communicate(timeout=60)
        watch.embed(one, fresh)
        watch.hits(one, fresh)
        watch.works(one)
        assert moved(one) == {"store_busy": 20}
