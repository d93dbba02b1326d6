"""What became of the file: bits flipped, entries overwritten, the whole no database any more."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache import keeper, keys

from tests import reference
from tests.faults.watch import Watch, believing, faults, moved
from tests.programs import tool
from tests.stores.files import MARKER, PAGE, database, names
from tests.twins import right

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from embcache import CachedEmbedder


def put_back(folder: Path, content: bytes) -> None:
    """Have the folder hold this database, closed, and nothing else of the store's."""
    for path in folder.iterdir():
        if path.name != MARKER:
            path.unlink()
    database_of(folder).touch(mode=0o600)
    database_of(folder).write_bytes(content)


def database_of(folder: Path) -> Path:
    return folder / "cache.db"


def aside(folder: Path) -> list[str]:
    """The damaged databases that are kept, without what belongs to them."""
    return [name for name in names(folder) if name.startswith("cache.db.corrupt-") and name[-1].isdigit()]


# S01

FLIPS = 200
HEADER = 100
"""Bytes at the beginning of a file that SQLite reads before all others."""


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def closed(watch: Watch, texts: Sequence[str]) -> bytes:
    """The database of a cache of these texts, large enough for most of it to be vectors."""
    watch.server.dims = 512
    with watch.open() as one:
        watch.embed(one, texts)
    return database_of(watch.folder).read_bytes()


def test_s01_bits_flipped_anywhere(watch: Watch) -> None:
    """Whatever bit of the closed file is flipped, no vector is wrong, and after one call everything hits again."""
    texts, total, chance = watch.texts(100), Counter[str](), random.Random(20261124)
    content = closed(watch, texts)
    for _ in range(FLIPS):
        put_back(watch.folder, flipped(content, chance.randrange(8 * len(content))))
        with watch.open() as one:
            watch.embed(one, texts)
            watch.hits(one, texts)
            found = moved(one)
        # A page that cannot be read any more fails the look-up, and has the file set aside; all else is one entry.
        assert set(found) <= {"corrupt", "bad_version"} or set(found) == {"store_errors", "quarantined"}, found
        assert found.get("corrupt", 0) + found.get("bad_version", 0) <= 1
        assert found.get("quarantined", 0) <= 1
        total.update(found.keys())
    assert total["corrupt"] > FLIPS / 4, "hardly a flip met an entry"
    assert total["quarantined"] < FLIPS / 10


def test_s01_bits_flipped_in_the_header(watch: Watch) -> None:
    """The first hundred bytes, by which SQLite takes all others, may be flipped like these: a bit of each is tried."""
    texts = watch.texts(5)
    content = closed(watch, texts)
    # Bytes 60 to 63 say which embcache made the file, and one that a later one made is left alone. Byte 47 is the
    # format, of which SQLite's complaint is unlike all others.
    bits = [8 * byte + byte % 8 for byte in range(HEADER) if byte not in range(60, 64)] + list(range(8 * 47, 8 * 48))
    for bit in bits:
        put_back(watch.folder, flipped(content, bit))
        with watch.open() as one:
            watch.embed(one, texts)
            watch.hits(one, texts)
            assert set(moved(one)) in (set(), {"store_errors", "quarantined"}), bit


def test_s01_without_a_checksum(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no entry has to prove itself the same flips make vectors wrong: the tests above can fail."""
    texts, wrong, chance = watch.texts(100), 0, random.Random(20261124)
    content = closed(watch, texts)
    monkeypatch.setattr(keeper, "open_entries", believing)
    for _ in range(40):
        put_back(watch.folder, flipped(content, chance.randrange(8 * len(content))))
        with watch.open() as one:
            wrong += not np.array_equal(one.embed(texts), right(texts, watch.server.dims))
    assert wrong > 5


# S03


def overwrite(folder: Path, key: bytes, value: bytes) -> None:
    with database(folder) as connection:
        assert connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (value, key)).rowcount == 1


def identity(one: CachedEmbedder, text: str) -> tuple[bytes, bytes]:
    """The key and the digest of a text."""
    preimage = keys.preimage(one.space, text)
    return keys.key_of(preimage), keys.digest_of(preimage)


def junk(record: bytes, digest: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that may stand where `record` should: none is what it was."""
    whatever = st.binary(max_size=3_000)
    cut = st.integers(0, len(record) - 1).map(lambda end: record[:end])
    longer = st.binary(min_size=1, max_size=100).map(lambda more: record + more)
    version = st.sampled_from("023456789AZaz").map(lambda one: b"ECV" + one.encode() + record[4:])
    sealed = st.binary(max_size=600).map(lambda body: reference.seal(digest, body))
    return st.one_of(whatever, cut, longer, version, sealed).filter(lambda value: value != record)


def test_s03_whatever_bytes_an_entry_holds(watch: Watch) -> None:
    """An entry of random bytes, cut short, of another version, or sealed junk: one miss, counted, and healed."""
    texts = watch.texts(3)
    with watch.open() as one:
        watch.embed(one, texts)
        key, digest = identity(one, texts[1])
        with database(watch.folder) as connection:
            record = connection.execute("SELECT value FROM Cache WHERE key = ?", (key,)).fetchone()[0]
        expected = Counter[str]()

        @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
        @given(junk(record, digest))
        def proves(value: bytes) -> None:
            overwrite(watch.folder, key, value)
            before = len(watch.server.sent_inputs)
            watch.embed(one, texts)
            assert watch.server.sent_inputs[before:] == [texts[1]]
            is_version = value[:3] == b"ECV" and value[3:4].isalnum() and value[3:4] != b"1"
            expected["bad_version" if is_version else "corrupt"] += 1
            assert moved(one) == expected
            watch.hits(one, texts)

        proves()
        assert len(expected) == 2
        assert faults(one.stats()) == expected
        watch.works(one)
    assert len(watch.warnings()) == 2, "one of each kind"


# S10


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(10).randbytes(70_000))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def a_thousandth(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 1000)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "theirs").write_text("mine")


def without_its_table(path: Path) -> None:
    with database(path.parent) as connection:
        connection.execute("DROP TABLE Cache")


@pytest.mark.parametrize("damage", [garbage, a_thousandth, half, a_folder, without_its_table])
def test_s10_a_damaged_file_is_set_aside(watch: Watch, damage: Callable[[Path], None]) -> None:
    """A file that is no database any more costs its entries, not the call: it is set aside, and a new one begun."""
    texts = watch.texts(200)
    with watch.open() as one:
        watch.embed(one, texts)
    damage(database_of(watch.folder))
    with watch.open() as one:
        watch.embed(one, [*texts[:5], "new"])
        watch.hits(one, [*texts[:5], "new"])
        found = moved(one)
        assert found.pop("quarantined") == 1
        assert set(found) <= {"store_errors"}, "what could not be looked up meanwhile"
        watch.works(one)
    assert len(aside(watch.folder)) == 1
    told = watch.warnings()
    assert len([line for line in told if "set aside" in line]) == 1
    assert len(told) == 1 + len(found)


def test_s10_the_end_of_the_file_is_missing(watch: Watch) -> None:
    """Of a file cut by a hundredth nearly all can be read, and is served, until a write finds out and sets it aside."""
    texts = watch.texts(200)
    with watch.open() as one:
        watch.embed(one, texts)
    path = database_of(watch.folder)
    os.truncate(path, path.stat().st_size * 99 // 100)
    with watch.open() as one:
        assert watch.embed(one, [*texts, "new"]).hits > 150
        watch.embed(one, [*texts, "new"])  # what was served from the file that was set aside is bought again
        watch.hits(one, [*texts, "new"])
        found = moved(one)
        assert found.pop("quarantined") == 1
        assert set(found) <= {"corrupt"}, "what lay across the cut"
        watch.works(one)
    assert len(aside(watch.folder)) == 1


def test_s10_an_empty_file(watch: Watch) -> None:
    """A file cut to nothing is what is left by a process killed while it made one: it is made, and nothing kept."""
    texts = watch.texts(5)
    with watch.open() as one:
        watch.embed(one, texts)
    os.truncate(database_of(watch.folder), 0)
    with watch.open() as one:
        watch.embed(one, texts)
        watch.hits(one, texts)
        assert moved(one) == {}
        watch.works(one)
    assert aside(watch.folder) == []


def test_s10_two_are_kept_aside(watch: Watch) -> None:
    """Of files that were damaged one after the other the last two are kept, however many there were."""
    texts, kept = watch.texts(5), list[str]()
    for _ in range(5):
        before = kept
        with watch.open() as one:
            watch.embed(one, texts)
            watch.hits(one, texts)
        kept = sorted(aside(watch.folder))
        assert kept[:-1] == before[-1:], "the last two"
        garbage(database_of(watch.folder))
    assert names(watch.folder) == {"cache.db", MARKER, *kept}


# S13


def trash(path: Path, page: int) -> None:
    """Overwrite a page of a file that this process has open, from another one: closing it here would drop its locks."""
    spoil = ["if=/dev/urandom", f"of={path}", f"bs={PAGE}", f"seek={page}", "count=1", "conv=notrunc"]
    subprocess.run([tool("dd"), *spoil], check=True, capture_output=True)


def fresh_connection(watch: Watch, one: CachedEmbedder, texts: Sequence[str]) -> None:
    """Embed on another thread, which has read no page yet."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            watch.embed(one, texts)
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failed == []


def test_s13_a_page_overwritten_while_open(watch: Watch) -> None:
    """Whichever page of the open file is overwritten, no call fails or is wrong, and the store works on."""
    texts = watch.texts(300)
    watch.server.dims = 512
    with watch.open() as one:
        watch.embed(one, texts)
    content = database_of(watch.folder).read_bytes()
    pages, total = len(content) // PAGE, Counter[str]()
    for page in range(pages):
        put_back(watch.folder, content)
        with watch.open() as one:
            watch.hits(one, texts[:50])
            trash(database_of(watch.folder), page)
            for _ in range(2):
                fresh_connection(watch, one, texts)
                watch.embed(one, [*texts[100:], f"new {page}"])
            watch.works(one)
            found = moved(one)
        assert found.get("quarantined", 0) <= 1, page
        assert len(aside(watch.folder)) == found.get("quarantined", 0)
        total.update(found.keys())
        watch.server.forget()
    assert total["quarantined"] > pages / 2, "most pages are looked at"
