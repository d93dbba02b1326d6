"""What goes wrong around an embedder, and what holds all the same. Rows of the fault matrix stand in the names."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import CachedEmbedder, CacheMiss, ConfigError, EmbcacheWarning, InputRejected
from embcache.stores import DiskStore
from embcache.stores.upkeep import verify

from tests.programs import ROOT
from tests.upstream import Upstream, vector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIMS = 64
EIGHT = """
    import sys, numpy as np
    from embcache import CachedEmbedder
    texts = [f"text {number}" for number in range(4000)]
    with CachedEmbedder("m", base_url=sys.argv[1], cache_dir=sys.argv[2]) as embedder:
        print("ready", flush=True)
        sys.stdin.readline()
        result = embedder.embed_result(texts)
        np.save(sys.argv[3], result.vectors)
        print(result.requests, result.hits, result.misses, flush=True)
"""


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream(dims=DIMS) as upstream:
        yield upstream


def embedder(server: Upstream, folder: Path, **settings: Any) -> CachedEmbedder:  # noqa: ANN401 - any setting
    return CachedEmbedder("m", base_url=server.base_url, api_key="k", cache_dir=folder, **settings)


def right(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text, DIMS) for text in texts])


def test_eight_processes_on_one_cold_corpus_send_each_text_once(server: Upstream, tmp_path: Path) -> None:
    """Eight processes that start on the same 4,000 new texts buy each of them once, and all get the same vectors."""
    server.delay = 0.2
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(EIGHT), server.base_url, tmp_path / "cache", tmp_path / f"{n}.npy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for n in range(8)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    told = [worker.communicate(timeout=100)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8
    assert sorted(server.sent_inputs) == sorted(f"text {number}" for number in range(4000))
    assert sum(int(misses) for _, _, misses in told) == 4000
    expected = right([f"text {number}" for number in range(4000)])
    assert all(np.array_equal(np.load(tmp_path / f"{n}.npy"), expected) for n in range(8))


def test_a_dead_holder_of_a_lease_delays_for_seconds_only(server: Upstream, tmp_path: Path) -> None:
    """What a process that was killed had leased is bought by another one once the lease is over."""
    with embedder(server, tmp_path) as one:
        one.embed("a text")
    code = """
        import sys, os
        from embcache import CachedEmbedder
        embedder = CachedEmbedder("m", base_url=sys.argv[1], api_key="k", cache_dir=sys.argv[2])
        embedder.embed(["b", "c"])
    """
    server.delay = 60
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), server.base_url, tmp_path], cwd=ROOT)
    assert server.wait_for(2, 30)
    victim.kill()
    victim.wait()
    server.delay = 0
    began = time.monotonic()
    with embedder(server, tmp_path) as other:
        assert np.array_equal(other.embed(["b", "c"]), right(["b", "c"]))
    assert time.monotonic() - began < 20


def test_refusals_are_remembered(server: Upstream, tmp_path: Path) -> None:
    """What the server refused is not asked for again on the next run, unless it is to; the words are not kept."""
    server.poison = {"bad"}
    with embedder(server, tmp_path) as one, pytest.raises(InputRejected) as caught:
        one.embed(["good", "bad", "fine"])
    assert (caught.value.indexes, caught.value.kept) == ((1,), 2)
    sent = len(server.requests)
    with embedder(server, tmp_path) as other:
        with pytest.raises(InputRejected, match="refused before") as again:
            other.embed(["good", "bad", "fine"])
        assert (again.value.indexes, again.value.status) == ((1,), 400)
        assert len(server.requests) == sent
        server.poison = set()
        assert np.array_equal(other.embed(["good", "bad"], refresh=True), right(["good", "bad"]))
        assert np.array_equal(other.embed(["good", "bad"]), right(["good", "bad"]))


def test_a_refusal_of_everything_is_not_remembered(server: Upstream, tmp_path: Path) -> None:
    """Where no input of the call was taken, it may be the request that is wrong, and nothing is remembered."""
    server.poison = {"bad"}
    with embedder(server, tmp_path) as one:
        for asked in (1, 2):
            with pytest.raises(InputRejected):
                one.embed("bad")
            assert len(server.requests) == asked


def test_masked(server: Upstream, tmp_path: Path) -> None:
    """With `errors="mask"` refused inputs are rows of NaN and named, wherever they occur; the others are right."""
    server.poison = {"bad"}
    for _ in range(2):  # bought, and then remembered
        with embedder(server, tmp_path) as one:
            result = one.embed_result(["a", "bad", "b", "bad"], errors="mask")
        assert {index: error.status for index, error in result.rejected.items()} == {1: 400, 3: 400}
        assert np.isnan(result.vectors).all(axis=1).tolist() == [False, True, False, True]
        assert np.array_equal(result.vectors[[0, 2]], right(["a", "b"]))
    with embedder(server, tmp_path) as one, pytest.raises(ConfigError):
        one.embed("a", errors="ignore")  # type: ignore[arg-type]


def test_offline(server: Upstream, tmp_path: Path) -> None:
    """With `offline=True` hits are served, and what is missing is named by index; nothing is ever sent."""
    with embedder(server, tmp_path) as one:
        one.embed(["a", "b"])
    sent = len(server.requests)
    with embedder(server, tmp_path, offline=True) as one:
        assert np.array_equal(one.embed(["b", "a"]), right(["b", "a"]))
        with pytest.raises(CacheMiss) as caught:
            one.embed(["a", "new", "b", "newer", "new"])
        assert caught.value.indexes == (1, 3, 4)
    assert len(server.requests) == sent


def test_epochs(server: Upstream, tmp_path: Path) -> None:
    """An epoch begins anew under the same model name, is not sent, and has figures of its own."""
    with embedder(server, tmp_path) as one:
        one.embed("a")
    with embedder(server, tmp_path, epoch="2026-11") as one:
        assert one.embed_result("a").misses == 1
        assert set(one.stats().by_model) == {"m", "m (epoch 2026-11)"}
    assert all("epoch" not in (request.body or {}) for request in server.requests)


def test_a_schema_that_is_no_text(server: Upstream, tmp_path: Path) -> None:
    """Wherever the schema holds a byte that no text can, the file is set aside, and `verify --repair` takes it too."""
    with embedder(server, tmp_path) as one:
        one.embed("a")
    good = (tmp_path / "cache.db").read_bytes()
    for word in (b"CREATE TABLE Cache", b"Cache_key_raw", b"Settings_count_insert", b"rowid INTEGER"):
        place = good.index(word)
        (tmp_path / "cache.db").write_bytes(good[:place] + b"\xe5" + good[place + 1 :])
        with embedder(server, tmp_path) as one:
            with pytest.warns(EmbcacheWarning):
                assert np.array_equal(one.embed("a"), right(["a"])[0])
            assert one.embed_result("a").hits == 1
        store = DiskStore(tmp_path)
        verify(store, repair=True)
        assert verify(store, repair=False).is_clean
        store.close()


def test_closing_over_a_damaged_file(server: Upstream, tmp_path: Path) -> None:
    """Closing an embedder over a file that is damaged is no error: whoever uses it next sees to the damage."""
    with embedder(server, tmp_path) as one:
        one.embed("a")
    (tmp_path / "cache.db").write_bytes(os.urandom(70_000))
    (tmp_path / "cache.db-wal").touch()
    embedder(server, tmp_path).close()
    with embedder(server, tmp_path) as one:
        with pytest.warns(EmbcacheWarning):
            assert np.array_equal(one.embed("a"), right(["a"])[0])
        assert one.embed_result("a").hits == 1


def test_an_empty_file_that_is_locked(server: Upstream, tmp_path: Path) -> None:
    """A lock on a file that holds nothing yet is waited for once, not at every one of a call's requests."""
    import sqlite3

    texts = [f"text {n}" for n in range(40)]
    with embedder(server, tmp_path) as one:
        one.embed("a")
    os.truncate(tmp_path / "cache.db", 0)
    holder = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with embedder(server, tmp_path, batch_size=1, max_concurrency=1) as one:
        with pytest.warns(EmbcacheWarning):
            assert np.array_equal(one.embed(texts), right(texts))
        assert time.monotonic() - began < 8
        holder.close()
        assert np.array_equal(one.embed(texts), right(texts))
        assert one.embed_result(texts).hits == 40


def test_s15_a_folder_that_is_removed_is_made_again(server: Upstream, tmp_path: Path) -> None:
    """When somebody removes the folder under an open embedder, it goes on, and what it buys then is kept."""
    folder = tmp_path / "cache"
    with embedder(server, folder) as one:
        one.embed("a")
        shutil.rmtree(folder)
        with pytest.warns(EmbcacheWarning, match="replaced"):
            assert np.array_equal(one.embed("a"), vector("a", DIMS))
        assert one.stats().reopened == 1
    with embedder(server, folder, offline=True) as other:
        assert np.array_equal(other.embed("a"), vector("a", DIMS))


def test_s18_fork(server: Upstream, tmp_path: Path) -> None:
    """After a fork both sides read and write, each with connections and threads of its own."""
    with embedder(server, tmp_path) as one:
        one.embed(["a", "b"])
        child = os.fork()
        if not child:
            ok = False
            try:
                ok = np.array_equal(one.embed(["a", "of the child"]), right(["a", "of the child"]))
                one.close()
            finally:
                os._exit(0 if ok else 1)
        assert np.array_equal(one.embed(["b", "of the parent"]), right(["b", "of the parent"]))
        assert os.waitpid(child, 0)[1] == 0
        sent = len(server.requests)
        assert np.array_equal(one.embed(["of the child"]), right(["of the child"]))
        assert len(server.requests) == sent


def test_an_embedder_travels_as_a_recipe(server: Upstream, tmp_path: Path) -> None:
    """A pickled embedder is how to make it: without key or handle, and working where it arrives."""
    one = CachedEmbedder("m", base_url=server.base_url, api_key="sk-CANARY", cache_dir=tmp_path)
    one.embed("a")
    packed = pickle.dumps(one)
    assert b"CANARY" not in packed
    with pickle.loads(packed) as other:  # noqa: S301 - our own
        assert np.array_equal(other.embed("a"), vector("a", DIMS))
    one.close()


def test_verify(server: Upstream, tmp_path: Path) -> None:
    """`verify` finds what does not prove itself and, told to, removes it; the rest stays."""
    texts = [f"text {n}" for n in range(500)]
    with embedder(server, tmp_path) as one:
        one.embed(texts)
    store = DiskStore(tmp_path)
    assert verify(store, repair=False).is_clean
    import sqlite3

    with sqlite3.connect(tmp_path / "cache.db") as connection:
        connection.execute("UPDATE Cache SET value = zeroblob(300) WHERE tag IS NOT NULL AND rowid % 100 = 7")
        connection.execute("UPDATE Cache SET mode = 4 WHERE tag IS NOT NULL AND rowid % 100 = 8")
    connection.close()
    found = verify(store, repair=False)
    assert (found.entries, dict(found.faults), found.damage) == (490, {"corrupt": 5, "foreign": 5}, None)
    assert verify(store, repair=True).removed == 10
    assert verify(store, repair=False).is_clean
    assert [entries for entries, _ in store.totals().spaces.values()] == [490]
    store.close()


@pytest.mark.parametrize("damage", ["empty", "no table"])
def test_verify_a_file_without_a_table(server: Upstream, tmp_path: Path, damage: str) -> None:
    """An empty file holds nothing and is clean; one that lacks its table is damaged, and repair sets it aside."""
    import sqlite3

    with embedder(server, tmp_path) as one:
        one.embed("a")
    if damage == "empty":
        os.truncate(tmp_path / "cache.db", 0)
    else:
        connection = sqlite3.connect(tmp_path / "cache.db")
        connection.execute("DROP TABLE Cache")
        connection.close()
    store = DiskStore(tmp_path)
    assert verify(store, repair=False).damage == {"empty": None, "no table": "its table is missing"}[damage]
    verify(store, repair=True)
    assert verify(store, repair=False).is_clean
    store.close()
    with embedder(server, tmp_path) as one:
        assert np.array_equal(one.embed("a"), right(["a"])[0])
        assert one.embed_result("a").hits == 1


def test_verify_saves_what_can_be_saved(server: Upstream, tmp_path: Path) -> None:
    """Of a file with a page of rubbish, `--repair` saves every entry that still proves itself, and the accounts."""
    texts = [f"text {n}" for n in range(2000)]
    with embedder(server, tmp_path) as one:
        one.embed(texts)
        billed = one.stats().billed_tokens
    path = tmp_path / "cache.db"
    content = bytearray(path.read_bytes())
    page = 32_768
    content[page * 9 : page * 10] = os.urandom(page)
    path.write_bytes(content)
    store = DiskStore(tmp_path)
    assert verify(store, repair=False).damage is not None
    assert verify(store, repair=True).salvaged > 1000
    assert verify(store, repair=False).is_clean
    store.close()
    sent = len(server.sent_inputs)
    with embedder(server, tmp_path) as one:
        assert one.stats().billed_tokens == billed
        assert np.array_equal(one.embed(texts), right(texts))
    assert 0 < len(server.sent_inputs) - sent < 1000
