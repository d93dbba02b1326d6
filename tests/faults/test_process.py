"""The process itself: stopped at any time, ending at once, looking after a folder of others, its writer gone."""

from __future__ import annotations

import ctypes
import random
import signal
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from embcache import EmbcacheWarning
from embcache.stores.table import Table

from tests.cli.commands import asking, embcache, passages, started
from tests.faults import running
from tests.faults.running import opened, program, unwarned
from tests.twins import SECONDS, right, same, soon

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from embcache import CachedEmbedder

    from tests.upstream import Upstream

server = running.server


# Stopped, and ending


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_c01_stopped_at_any_time(
    server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """However often a run is stopped, and whenever, the same command goes on where it was, and pays nothing twice."""
    for name, value in asking(server).items():
        monkeypatch.setenv(name, value)
    texts = passages(600)
    (tmp_path / "in.txt").write_text("".join(text + "\n" for text in texts))
    server.cap, server.delay = 20, 0.03
    chance = random.Random(code)
    stopped = 0
    for _ in range(5):
        with started(tmp_path, "embed", "in.txt", "-o", "out.jsonl") as run:
            wanted = len(server.requests) + chance.randrange(1, 6)
            while run.process.poll() is None and len(server.requests) < wanted:
                time.sleep(0.005)
            time.sleep(chance.random() / 20)
            run.process.send_signal(number)
            ended = run.end()
        if ended.code == 0:
            break
        assert ended.code == code
        assert not (tmp_path / "out.jsonl").exists()
        stopped += 1
    assert stopped > 1
    assert embcache(tmp_path, "embed", "in.txt", "-o", "out.npy").code == 0
    assert sorted(map(str, server.accepted_inputs)) == sorted(texts)


CLOSED = {
    "embed": (["embed", "in.txt", "-o", "-"], "exec >&-", 1, "embcache: standard output: closed"),
    "stats": (["stats"], "exec >&-", 1, "embcache: standard output: closed"),
    "stats --json": (["stats", "--json"], "exec >&-", 1, "embcache: standard output: closed"),
    "doctor": (["doctor"], "exec >&-", 1, "embcache: standard output: closed"),
    "verify": (["verify"], "exec >&-", 1, "embcache: standard output: closed"),
    "without standard error": (["embed", "in.txt", "-o", "out.npy"], "exec 2>&-", 0, ""),
    "without either": (["embed", "in.txt", "-o", "out.npy"], "exec >&- 2>&-", 0, ""),
}


@pytest.mark.parametrize("case", CLOSED)
def test_c02_closed_from_the_start(
    server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A command that was started without standard output or error says so in a line, or does its work all the same."""
    arguments, first, code, line = CLOSED[case]
    for name, value in asking(server).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "in.txt").write_text("".join(text + "\n" for text in passages(20)))
    run = embcache(tmp_path, *arguments, first=first)
    assert run.code == code
    assert run.err.startswith(line)
    assert (tmp_path / "out.npy").exists() == (not line)


AT_ONCE = """
    import os
    embedder = opened()
    for n in range(0, 50, 5):
        embedder.embed([f"text {k}" for k in range(n, n + 5)])
    END
"""
ENDS = {
    "no goodbye": "os._exit(3)",
    "exit": "sys.exit(3)",
    "error": "sys.stderr.close(); raise LookupError",
    "exit on a thread": "import threading; threading.Thread(target=os._exit, args=(3,)).start()",
}


@pytest.mark.parametrize("end", ENDS)
def test_c03_an_end_right_after_a_call(server: Upstream, tmp_path: Path, end: str) -> None:
    """Whatever way a process ends right after `embed` returned, what that had returned is there."""
    child = program(AT_ONCE.replace("END", ENDS[end]), server, tmp_path)
    child.communicate(timeout=60)
    assert child.returncode in {1, 3}
    texts = [f"text {n}" for n in range(50)]
    with opened(server, tmp_path, offline=True) as embedder:
        assert same(embedder.embed(texts), right(texts))


# A folder with others' files in it


def content(folder: Path) -> Mapping[str, object]:
    """Everything in a folder by its path: the bytes of files, the targets of links."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def damage_rows(cache: Path) -> None:
    content = bytearray((cache / "cache.db").read_bytes())
    for place in range(len(content) // 2, len(content), 32_768):
        content[place] ^= 1
    (cache / "cache.db").write_bytes(content)


def damage_file(cache: Path) -> None:
    (cache / "cache.db").write_bytes(b"This is no database. " * 5000)


def remove_file(cache: Path) -> None:
    (cache / "cache.db").unlink()


@pytest.mark.parametrize("options", [[], ["--repair"]], ids=["verify", "verify --repair"])
@pytest.mark.parametrize("spoil", [None, damage_rows, damage_file, remove_file])
def test_c05_foreign_files_are_left_alone(server: Upstream, tmp_path: Path, options: list[str], spoil: object) -> None:
    """Whatever state the cache is in, to look after it touches no file, folder or link that is not its own."""
    cache = tmp_path / "cache"
    with opened(server, cache) as embedder:
        embedder.embed([f"text {n}" for n in range(300)])
    ours = {"cache.db", "cache.db-wal", "cache.db-shm", "embcache.marker"}
    assert set(content(cache)) <= ours
    outside = tmp_path / "outside"
    outside.write_text("mine")
    foreign = [
        *("thesis.docx", "proj/src/main.py", "cache.db.bak", "cache.db-old", "cache.db.corrupt-notes.txt", ".hidden"),
        *("ab/cd/0123456789abcdef0123456789ab.val", "cache.db.corrupt-7/inside", "embcache.marker.txt", "xcache.db"),
    ]
    for name in foreign:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("mine")
    (cache / "empty").mkdir()
    (cache / "link").symlink_to(outside)
    if callable(spoil):
        spoil(cache)
    before = content(cache)
    run = embcache(tmp_path, "verify", *options, "--cache-dir", cache)
    assert run.code == (1 if spoil in {damage_rows, damage_file} else 0)
    if options and spoil:
        assert embcache(tmp_path, "verify", "--repair", "--cache-dir", cache).code in {0, 1}
        assert embcache(tmp_path, "verify", "--cache-dir", cache).code == 0, "it did not heal"

    def of_others(found: Mapping[str, object]) -> Mapping[str, object]:
        return {name: what for name, what in found.items() if name not in ours and not is_aside(name)}

    assert of_others(content(cache)) == of_others(before)
    assert outside.read_text() == "mine"


def is_aside(name: str) -> bool:
    stem = name.removeprefix("cache.db.corrupt-").removesuffix("-wal").removesuffix("-shm")
    return name.startswith("cache.db.corrupt-") and stem.isdigit() and len(stem) > 1


# The thread that writes


def writer_of(embedder: CachedEmbedder) -> threading.Thread:
    thread = embedder._engine._store._writer._thread  # type: ignore[attr-defined]
    assert isinstance(thread, threading.Thread)
    return thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what is brought about
def test_c07_the_writer_dies(server: Upstream, tmp_path: Path) -> None:
    """A writer thread that dies costs the write it was about to begin, which is counted; then there is another one."""
    with opened(server, tmp_path) as embedder:
        embedder.embed("a")
        for number in range(3):
            thread = writer_of(embedder)
            # Raised as soon as the thread takes its next errand, of which nobody will tell.
            end = ctypes.pythonapi.PyThreadState_SetAsyncExc
            assert thread.ident is not None
            assert end(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1
            texts = [f"{number} {n}" for n in range(5)]
            with unwarned():
                began = time.monotonic()
                assert same(embedder.embed(texts), right(texts))
                assert time.monotonic() - began < 20
            thread.join(SECONDS)
            assert not thread.is_alive()
        texts = ["a", "b", "c"]
        assert same(embedder.embed(texts), right(texts))
        assert writer_of(embedder).is_alive()
        lost = embedder.session.store_busy
        bought = embedder.session.misses
    with opened(server, tmp_path) as embedder:
        asked = [*texts, *(f"{number} {n}" for number in range(3) for n in range(5))]
        assert embedder.embed_result(asked).misses <= lost
        assert embedder.stats().entries == bought == 1 + 15 + 2


def test_c07_the_writer_hangs(server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs nobody waits for it twice, vectors come all the same, and what is not kept is counted."""
    go = threading.Event()
    insert = Table.insert

    def hang(*args: object) -> int:
        go.wait(SECONDS)
        return insert(*args)  # type: ignore[arg-type]

    with opened(server, tmp_path) as embedder:
        embedder.embed("a")
        monkeypatch.setattr(Table, "insert", hang)
        began = time.monotonic()
        for number in range(30):
            texts = [f"{number}", f"{number} again", "a"]
            with pytest.warns(EmbcacheWarning, match="busy with an earlier") if number == 1 else nullcontext():
                assert same(embedder.embed(texts), right(texts))
        assert time.monotonic() - began < SECONDS / 2
        assert embedder.session.store_busy == 29 * 2
        monkeypatch.setattr(Table, "insert", insert)
        go.set()
        assert soon(lambda: embedder.embed_result("0").hits)
        texts = ["b", "c"]
        assert same(embedder.embed(texts), right(texts))
    with opened(server, tmp_path, offline=True) as embedder:
        texts = ["a", "0", "0 again", "b", "c"]
        assert same(embedder.embed(texts), right(texts))
