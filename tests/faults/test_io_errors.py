"""Writes that fail in a running process: an I/O error, a full disk, no descriptor left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import running
from tests.faults.running import ask, opened, program, set_aside
from tests.programs import output, tool
from tests.twins import right, same

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

server = running.server

CALLS = 16
WRITER = """
    embedder = opened()
    for call in range(16):
        texts = [f"text {call} {n}" for n in range(5)]
        lost = embedder.session.store_errors + embedder.session.store_busy
        assert same(embedder.embed(texts), right(texts))
        kept = embedder.session.store_errors + embedder.session.store_busy == lost
        print("kept" if kept else "not kept", flush=True)
    embedder.close()
"""
INJECTIONS = [
    "pwrite64:error=EIO:when=1..20+3",
    "pwrite64:error=EIO:when=8..40+2",
    "pwrite64:error=ENOSPC:when=12..60",
    "pwrite64:error=ENOSPC:when=25..70+5",
    "fsync,fdatasync:error=EIO:when=1..6",
]


@pytest.mark.parametrize("injection", INJECTIONS)
def test_s14_writes_that_fail(server: Upstream, tmp_path: Path, injection: str) -> None:
    """Whichever write fails, its vectors are returned and counted as not kept; what was kept is there afterwards."""
    calls = injection.partition(":")[0]
    strace = [tool("strace"), "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={injection}"]
    told = output(program(WRITER, server, tmp_path, within=strace)).splitlines()
    assert len(told) == CALLS
    assert "not kept" in told, "no call met a failing write"
    assert told[-1] == "kept", "it did not recover"
    assert ask(tmp_path, "PRAGMA integrity_check") == "ok"
    assert set_aside(tmp_path) == []
    server.forget()
    with opened(server, tmp_path, offline=True) as embedder:
        for call in [call for call, what in enumerate(told) if what == "kept"]:
            texts = [f"text {call} {n}" for n in range(5)]
            assert same(embedder.embed(texts), right(texts))


STARVED = """
    import resource, threading

    def on_another_thread(texts):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(same(embedder.embed(texts), right(texts))))
        thread.start()
        thread.join()
        return answers == [True]

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    embedder = opened(max_concurrency=1)
    for _ in range(2):  # the second time the cache is there, and this thread opens it
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
    held = []
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        print("exhausted", len(held) > 50)
    print(same(embedder.embed(["a", "b", "new"]), right(["a", "b", "new"])), embedder.session.store_errors)
    print(on_another_thread(["a", "newer"]), embedder.session.store_errors)
    for file in held:
        file.close()
    bought = embedder.session.misses
    texts = ["a", "b", "new", "newer"]
    print(on_another_thread(texts), same(embedder.embed(texts), right(texts)), embedder.session.misses - bought)
    embedder.close()
"""


def test_s19_no_descriptor_left(server: Upstream, tmp_path: Path) -> None:
    """Without a free descriptor a thread that cannot open the cache buys instead, and is counted; later all hits."""
    told = output(program(STARVED, server, tmp_path)).splitlines()
    assert told == ["exhausted True", "True 0", "True 2", "True True 0"]
