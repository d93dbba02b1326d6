"""Many processes on one cache, started and forked at any time, and two that find it damaged at one instant."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from embcache.stores import DiskStore

from tests.faults import running
from tests.faults.running import ask, opened, program, set_aside, unwarned
from tests.programs import output
from tests.stores.files import key, records
from tests.twins import right, same

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import Popen

    import pytest

    from tests.upstream import Upstream

server = running.server


def tell(processes: list[Popen[str]], line: str) -> None:
    """Give all of them a line at one instant."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()


def told(processes: list[Popen[str]]) -> list[str]:
    """The next line of each of them, waited for."""
    lines: list[str] = []
    for process in processes:
        assert process.stdout is not None
        lines.append(process.stdout.readline().strip())
    return lines


CROWD = """
    import random
    # Impatient, so that some writes are given up.
    embcache.stores.disk.LOCK_PATIENCE = 0.005
    me = int(sys.argv[3])
    chance = random.Random(me)
    texts = [f"shared {n}" for n in range(12)] + [f"of {me}: {n}" for n in range(12)]
    with opened(batch_size=5) as embedder:
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(6):
            asked = chance.sample(texts, 8)
            assert same(embedder.embed(asked), right(asked))
        assert same(embedder.embed(texts), right(texts))
    session = embedder.session
    print(session.misses, session.entries, session.store_errors + session.store_busy, flush=True)
"""


def test_s16_sixteen_processes(server: Upstream, tmp_path: Path) -> None:
    """Of what sixteen processes buy at once, shared and own, each vector is right, and kept or counted as lost."""
    processes = [program(CROWD, server, tmp_path, number) for number in range(16)]
    assert told(processes) == ["ready"] * 16
    tell(processes, "go")
    figures = np.array([line.split() for line in told(processes)], dtype=int)
    for process in processes:
        output(process)
    bought, kept, lost = figures.sum(axis=0)
    assert kept + lost == bought
    assert len(server.accepted_inputs) == bought
    texts = [f"shared {n}" for n in range(12)] + [f"of {me}: {n}" for me in range(16) for n in range(12)]
    with opened(server, tmp_path) as embedder:
        assert len(texts) - lost <= embedder.stats().entries <= len(texts)
        result = embedder.embed_result(texts)
        assert same(result.vectors, right(texts))
        assert result.misses <= lost
    assert ask(tmp_path, "PRAGMA integrity_check") == "ok"
    assert set_aside(tmp_path) == []


FORKS = """
    import os, threading
    embedder = opened()
    over, failed = threading.Event(), []

    def write():
        number = 0
        while not over.is_set():
            texts = [f"of the parent {number} {n}" for n in range(5)]
            if not same(embedder.embed(texts), right(texts)):
                failed.append(number)
            number += 1

    embedder.embed(["a", "b"])
    writer = threading.Thread(target=write)
    writer.start()
    children = []
    for number in range(20):
        child = os.fork()
        if not child:
            import signal
            signal.alarm(30)  # to end rather than hang
            texts = ["a", f"of child {number}", "of all children", "b"]
            ok = same(embedder.embed(texts), right(texts)) and same(embedder.embed(texts), right(texts))
            ok = ok and not embedder.session.store_errors
            embedder.close()
            os._exit(0 if ok else 1)
        children.append(child)
        over.wait(0.01)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    over.set()
    writer.join()
    print(sum(ended), failed, embedder.session.store_errors)
    embedder.close()
"""


def test_s18_fork_during_a_write(server: Upstream, tmp_path: Path) -> None:
    """A child that is forked while its parent writes inherits no transaction: both read and write, and all is kept."""
    assert output(program(FORKS, server, tmp_path)) == "0 [] 0"
    texts = ["a", "b", "of all children", *(f"of child {number}" for number in range(20))]
    with opened(server, tmp_path, offline=True) as embedder:
        assert same(embedder.embed(texts), right(texts))
    assert ask(tmp_path, "PRAGMA integrity_check") == "ok"


POOL = """
    import multiprocessing

    def work(number):
        texts = ["a", f"text {number}", f"text {number + 1}"]
        return same(embedder.embed(texts), right(texts)) and not embedder.session.store_errors

    embedder = opened()
    embedder.embed(["a"])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print(all(pool.map(work, range(40), chunksize=1)), flush=True)
    texts = [f"text {number}" for number in range(41)]
    print(same(embedder.embed(texts), right(texts)), embedder.session.misses)
    embedder.close()
"""


def test_s18_workers_forked_beforehand(server: Upstream, tmp_path: Path) -> None:
    """Workers that were forked with an embedder open, as servers and pools do, share the cache with their parent."""
    assert output(program(POOL, server, tmp_path)).splitlines() == ["True", "True 1"]
    assert sorted(map(str, server.sent_inputs)) == sorted(["a", *(f"text {number}" for number in range(41))])
    assert ask(tmp_path, "PRAGMA integrity_check") == "ok"


DAMAGED = """
    import warnings
    warnings.simplefilter("ignore")
    print("ready", flush=True)
    for folder in map(str.strip, sys.stdin):
        with opened(folder) as embedder:
            texts = ["a", f"new {sys.argv[3]}"]
            ok = same(embedder.embed(texts), right(texts)) and same(embedder.embed(texts), right(texts))
            print(ok, embedder.session.quarantined, flush=True)
"""
ROUNDS = 25


def test_c06_two_processes_set_a_file_aside_at_once(server: Upstream, tmp_path: Path) -> None:
    """Of two processes that find the file damaged at one instant one sets it aside; both go on in the new one."""
    processes = [program(DAMAGED, server, tmp_path, number) for number in range(2)]
    assert told(processes) == ["ready", "ready"]
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        with opened(server, folder) as embedder:
            embedder.embed(["a", "b"])
        (folder / "cache.db").write_bytes(os.urandom(100_000))
        tell(processes, str(folder))
        assert sorted(told(processes)) == ["True 0", "True 1"], number
        assert len(set_aside(folder)) == 1
        with opened(server, folder, offline=True) as embedder, unwarned():
            texts = ["a", "new 0", "new 1"]
            assert same(embedder.embed(texts), right(texts))
    for process in processes:
        output(process)


def test_c06_the_new_file_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the file damaged just before another one replaces it leaves the new one where it is."""
    with closing(DiskStore(tmp_path)) as early, closing(DiskStore(tmp_path)) as late:
        early.put_many(records(0), space=b"s")
        early.close()
        (tmp_path / "cache.db").write_bytes(os.urandom(100_000))
        examine = late._examine

        def examine_meanwhile(path: Path, patience: float) -> None:
            try:
                examine(path, patience)
            except sqlite3.DatabaseError:
                early.put_many(records(1), space=b"s")
                raise

        monkeypatch.setattr(late, "_examine", examine_meanwhile)
        late.put_many(records(2), space=b"s")
        assert late.get_many([key(1), key(2)]) == records(1, 2)
        assert (early.events(), late.events()) == ({"quarantined": 1}, {})
    assert len(set_aside(tmp_path)) == 1
