"""`embcache prune`: the real command removes what was named, tells what that is worth, and nothing else goes."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from embcache import CachedEmbedder, InputRejected
from embcache.keys import encode_space
from embcache.stores import DiskStore

from tests.cli.caches import BGE, content, documented, space, stock
from tests.cli.commands import MARK, PLENTY, Terminal, asking, embcache, passages, started
from tests.programs import holding
from tests.stores.files import database
from tests.upstream import Upstream

if TYPE_CHECKING:
    from pathlib import Path

QWEN = "qwen/qwen3-embedding-8b"
ENTRY_FACTS = ["entries", "bytes", "tokens", "tokens_exact", "entries_of_unknown_tokens", "cost"]
FACTS = ["version", "dry_run", *ENTRY_FACTS, "by_model", "damaged", "removed", "bytes_on_disk_before", "bytes_on_disk"]


def pruned(folder: Path, *options: str) -> dict[str, Any]:
    """What `prune --json --yes` tells."""
    run = embcache(folder, "prune", "--json", "--yes", *options)
    assert (run.code, run.err) == (0, "")
    told: dict[str, Any] = json.loads(run.out)
    return told


def test_older_than(tmp_path: Path) -> None:
    """What was bought before the age given goes, judged by the entry's own time; what it would cost again is told."""
    old = stock(tmp_path, space(), passages(30), days=100)
    middle = stock(tmp_path, space(), passages(20, 30), days=80, tokens=7, exact=True)
    # Stored last and bought first: the order of the file is not the order of age.
    oldest = stock(tmp_path, space(QWEN), passages(10), days=200, tokens=3_000_000)

    told = pruned(tmp_path, "--older-than", "90d")

    assert list(told) == FACTS == documented("prune")
    assert content(tmp_path) == middle
    assert told | {"bytes_on_disk_before": 0, "bytes_on_disk": 0} == {
        "version": 1,
        "dry_run": False,
        "entries": 40,
        "bytes": sum(map(len, [*old.values(), *oldest.values()])),
        "tokens": 30_000_300,
        "tokens_exact": 0,
        "entries_of_unknown_tokens": 0,
        "cost": pytest.approx(30 * 0.07 + 300 * 0.01 / 1e6),
        "by_model": told["by_model"],
        "damaged": 0,
        "removed": 40,
        "bytes_on_disk_before": 0,
        "bytes_on_disk": 0,
    }
    assert list(told["by_model"]) == [BGE, QWEN]
    assert list(told["by_model"][QWEN]) == ENTRY_FACTS
    assert told["by_model"][QWEN]["cost"] == pytest.approx(30 * 0.07)
    assert pruned(tmp_path, "--older-than", "12w")["removed"] == 0
    assert pruned(tmp_path, "--older-than", "11w")["removed"] == 20


def test_of_one_space(tmp_path: Path) -> None:
    """Model, provider and epoch each limit what goes to their own entries, alone and with an age."""
    spaces = {
        "bge": space(),
        "qwen": space(QWEN),
        "epoch": space(epoch="autumn"),
        "local": space("wordllama", "local"),
        "server": space(provider="127.0.0.1:80/v1"),
    }
    kept = {name: stock(tmp_path, where, passages(5), days=20) for name, where in spaces.items()}
    young = stock(tmp_path, spaces["server"], passages(3, 100))

    def gone(name: str, *options: str) -> None:
        assert pruned(tmp_path, *options)["removed"] == 5
        kept.pop(name)
        assert content(tmp_path) == {key: record for part in [*kept.values(), young] for key, record in part.items()}

    gone("qwen", "--model", QWEN)
    gone("epoch", "--epoch", "autumn")
    gone("local", "--provider", "local")
    gone("server", "--base-url", "http://127.0.0.1:80/v1/", "--older-than", "3h")
    assert pruned(tmp_path, "--model", "wordllama")["removed"] == 0


def test_by_model_knows_epochs(tmp_path: Path) -> None:
    """The figures of an epoch stand apart from those of the model without one."""
    stock(tmp_path, space(), passages(5))
    stock(tmp_path, space(epoch="autumn"), passages(4))
    told = pruned(tmp_path, "--model", BGE, "--dry-run")
    assert {label: part["entries"] for label, part in told["by_model"].items()} == {
        BGE: 5,
        f"{BGE} (epoch autumn)": 4,
    }


def test_max_size(tmp_path: Path) -> None:
    """The oldest go, whatever their place in the file, until the file has the size given, and the disk gets it back."""
    made = {days: stock(tmp_path, space(), passages(500, 1_000 * days), days=days, dims=1024) for days in (2, 9, 1, 5)}
    before = (tmp_path / "cache/cache.db").stat().st_size
    limit = before * 6 // 10

    told = pruned(tmp_path, "--max-size", str(limit))

    after = (tmp_path / "cache/cache.db").stat().st_size
    assert (told["bytes_on_disk_before"], told["bytes_on_disk"]) == (before, after)
    assert 0.95 * limit < after <= limit
    left = content(tmp_path)
    assert left.keys() >= made[1].keys() | made[2].keys()
    assert left.keys().isdisjoint(made[9].keys())
    assert 0 < len(left.keys() & made[5].keys()) < 500
    # The same again finds nothing to do.
    assert pruned(tmp_path, "--max-size", str(limit))["removed"] == 0
    assert content(tmp_path) == left


def test_max_size_of_a_model(tmp_path: Path) -> None:
    """With a model, only its entries make room, all of them at most; with an age, what is older goes in any case."""
    bge = stock(tmp_path, space(), passages(100), days=100)
    stock(tmp_path, space(QWEN), passages(100), days=1)
    assert pruned(tmp_path, "--max-size", "1kB", "--model", QWEN)["removed"] == 100
    assert content(tmp_path) == bge
    assert pruned(tmp_path, "--max-size", "1TB", "--older-than", "99d")["removed"] == 100


def test_dry_run(tmp_path: Path) -> None:
    """`--dry-run` tells the same figures and changes no byte of the cache."""
    stock(tmp_path, space(), passages(30), days=100)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    run = embcache(tmp_path, "prune", "--older-than", "1d", "--dry-run", "--json")
    assert (run.code, run.err) == (0, "")
    after = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    # What SQLite needs to read beside a writer: a log without content, and its index.
    assert after.pop("cache.db-wal", b"") == b""
    after.pop("cache.db-shm", None)
    assert after == before
    dry, done = json.loads(run.out), pruned(tmp_path, "--older-than", "1d")
    assert (dry["dry_run"], dry["removed"], dry["entries"]) == (True, 0, 30)
    changed = {"dry_run": 0, "removed": 0, "bytes_on_disk": 0}
    assert dry | changed == done | changed


def test_lines(tmp_path: Path) -> None:
    """Without `--json` the same is told in sentences, with what is not known said."""
    bge = stock(tmp_path, space(), passages(3), days=10, tokens=10_000)
    other = stock(tmp_path, space("a/model"), passages(1), days=10)
    other |= stock(tmp_path, space("a/model"), passages(2, 5), days=10, tokens=None)

    def size(others: int, ours: int = 0) -> int:
        return sum(map(len, [*list(other.values())[:others], *list(bge.values())[:ours]]))

    unknown = ", and those of 2 entries of unknown cost"
    run = embcache(tmp_path, "prune", "--older-than", "1d", "--yes")
    assert (run.code, run.err) == (0, "")
    lines = run.out.decode().splitlines()
    assert lines[:3] == [
        f"to remove: 6 entries, {size(3, 3)} bytes; to buy again: 30,010 tokens (price unknown){unknown}",
        f"  a/model: 3 entries, {size(3)} bytes; to buy again: 10 tokens (price unknown){unknown}",
        f"  {BGE}: 3 entries, {size(0, 3)} bytes; to buy again: 30,000 tokens ($0.0003)",
    ]
    assert lines[3].startswith("6 removed; on disk: ")
    assert len(lines) == 4


def test_in_a_pipe_nobody_is_asked(tmp_path: Path) -> None:
    """Without a terminal nothing is asked and nothing goes: exit code 2, and a word on --yes."""
    made = stock(tmp_path, space(), passages(3), days=10)
    run = embcache(tmp_path, "prune", "--older-than", "1d", stdin=b"y\n")
    assert (run.code, run.out) == (2, b"")
    assert "--yes" in run.err
    assert content(tmp_path) == made


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 3), ("", 1, 3)])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str, code: int, left: int) -> None:
    """On a terminal it tells what goes, asks, and takes nothing but a yes for one."""
    stock(tmp_path, space(), passages(3), days=10)
    options = ["--older-than", "1d"]
    with (
        Terminal() as screen,
        started(tmp_path, "prune", *options, stdin=screen.end, stdout=screen.end, stderr=screen.end) as run,
    ):
        screen.type(answer + "\n")
        run.process.wait(timeout=PLENTY)
        shown = screen.shown()
    assert run.process.returncode == code
    assert "to remove: 3 entries" in shown
    assert "Remove them? [y/N]" in shown
    assert ("3 removed" in shown) == (code == 0)
    assert MARK not in shown
    assert len(content(tmp_path)) == left


def test_others_go_on(tmp_path: Path) -> None:
    """While a large cache is pruned, another process stores and reads at any time, and what it stores stays."""
    for start in range(0, 12_000, 2_000):
        stock(tmp_path, space(), passages(2_000, start), days=50, dims=256)
    young: dict[bytes, bytes] = {}
    young_space = encode_space(space("young"))
    slowest, turns = 0.0, 0
    with (
        started(tmp_path, "prune", "--older-than", "1d", "--yes", "--json") as run,
        closing(DiskStore(tmp_path / "cache")) as store,
    ):
        while run.process.poll() is None:
            begun = time.monotonic()
            mine = {os.urandom(16): os.urandom(500) for _ in range(20)}
            store.put_many(mine, space=young_space)
            assert store.get_many(mine.keys()) == mine
            slowest = max(slowest, time.monotonic() - begun)
            young |= mine
            turns += 1
        ended = run.end()
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["removed"] == 12_000
    assert turns > 3
    assert content(tmp_path) == young
    with database(tmp_path / "cache") as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_bought_anew_meanwhile(tmp_path: Path) -> None:
    """An entry that is bought anew between the look and the removal stays: only the very record seen is removed."""
    old = stock(tmp_path, space(), passages(2), days=50)
    new = stock(tmp_path, space(), passages(1), days=0)
    with closing(DiskStore(tmp_path / "cache")) as store:
        assert store.discard(old) == 1
    assert content(tmp_path) == new


def test_the_log_is_folded_in(tmp_path: Path) -> None:
    """Afterwards the log takes nothing, and totals say what is left."""
    stock(tmp_path, space(), passages(2_000), days=50, dims=512)
    stock(tmp_path, space(), passages(10, 5_000), dims=512)
    pruned(tmp_path, "--older-than", "1d")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"cache.db", "embcache.marker"}
    assert (tmp_path / "cache/cache.db").stat().st_size < 500_000
    with closing(DiskStore(tmp_path / "cache")) as store:
        assert [counts[0] for counts in store.totals().spaces.values()] == [10]


def test_damaged_entries_stay(tmp_path: Path) -> None:
    """What does not prove itself has no age: it is counted, left alone, and `verify` is named."""
    made = stock(tmp_path, space(), passages(3), days=50)
    with database(tmp_path / "cache") as connection:
        connection.execute("UPDATE Cache SET value = zeroblob(60) WHERE key = ?", (next(iter(made)),))
    told = pruned(tmp_path, "--older-than", "1d", "--dry-run")
    assert (told["entries"], told["damaged"]) == (2, 1)
    run = embcache(tmp_path, "prune", "--older-than", "1d", "--yes")
    assert b"1 damaged entry stays" in run.out
    assert b"embcache verify --repair" in run.out
    assert list(content(tmp_path)) == [next(iter(made))]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--refusals` makes an input that was refused be asked for again, and touches no entry."""
    with Upstream(poison={f"{MARK} bad"}) as server:
        for name, value in asking(server).items():
            monkeypatch.setenv(name, value)

        def refused() -> None:
            with CachedEmbedder("m", cache_dir=tmp_path / "cache") as embedder, pytest.raises(InputRejected):
                embedder.embed([*passages(3), f"{MARK} bad"])

        refused()
        refused()
        sent = len(server.requests)
        refused()
        assert len(server.requests) == sent, "it was asked for again although it was remembered"
        entries = content(tmp_path)
        assert len(entries) == 3
        told = pruned(tmp_path, "--refusals", "--dry-run")
        assert (told["refusals"], told["removed"]) == (1, 0)
        assert pruned(tmp_path, "--refusals")["removed"] == 1
        assert pruned(tmp_path, "--refusals")["refusals"] == 0
        assert content(tmp_path) == entries
        refused()
        assert len(server.requests) > sent


def test_a_project(tmp_path: Path) -> None:
    """`--project` takes the name out of the accounts and nothing from the sums; entries, which projects share, stay."""
    made = stock(tmp_path, space(), passages(3), days=500)
    mine, autumn = b'[5, "novita", "m", "base64", {"project": "p"}]', b'{"epoch": "autumn", "project": "p"}]'
    autumn = mine.replace(b'{"project": "p"}]', autumn)
    plain, other = b'[5, "novita", "m", "base64"]', b'[5, "novita", "m", "base64", {"project": "q"}]'
    usage = {
        mine: {"billed_tokens": 5, "hits": 1},
        autumn: {"billed_tokens": 7},
        plain: {"hits": 2},
        other: {"hits": 4},
    }
    with closing(DiskStore(tmp_path / "cache")) as store:
        store.put_many({}, usage)
    dry = pruned(tmp_path, "--project", "p", "--dry-run")
    assert (dry["accounts"], dry["billed_tokens"], dry["removed"]) == (2, 12, 0)
    run = embcache(tmp_path, "prune", "--project", "p", "--yes")
    assert run.out.decode().startswith(
        "to remove: the project's name from 2 accounts (12 tokens billed), which count to no project then\n2 removed; "
    )
    assert pruned(tmp_path, "--project", "p")["accounts"] == 0
    with closing(DiskStore(tmp_path / "cache")) as store:
        accounts = {name: dict(counts) for name, counts in store.totals().accounts.items()}
    assert accounts == {
        plain: {"billed_tokens": 5, "hits": 3},
        plain[:-1] + b', {"epoch": "autumn"}]': {"billed_tokens": 7},
        other: {"hits": 4},
    }
    assert content(tmp_path) == made


def test_no_cache(tmp_path: Path) -> None:
    """Where there is no cache nothing goes, and none is made."""
    assert pruned(tmp_path, "--older-than", "1d")["entries"] == 0
    assert list(tmp_path.iterdir()) == []


def test_held_for_a_moment(tmp_path: Path) -> None:
    """A cache that somebody else writes to for longer than a call waits is waited for."""
    stock(tmp_path, space(), passages(3), days=10)
    hold = """
        import sqlite3, sys, threading
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        threading.Timer(2.5, connection.rollback).run()
        sys.stdin.read()
    """
    with holding(hold, tmp_path / "cache/cache.db"):
        assert pruned(tmp_path, "--older-than", "1d")["removed"] == 3


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it at once and says how far it came; the same command again does the rest."""
    stock(tmp_path, space(), passages(3), days=10)
    hold = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        sys.stdin.read()
    """
    with (
        holding(hold, tmp_path / "cache/cache.db"),
        started(tmp_path, "prune", "--older-than", "1d", "--yes", "--quiet") as run,
    ):
        assert run.out.readline().startswith(b"to remove: 3 entries")
        run.process.send_signal(signal.SIGINT)
        ended = run.end()
    assert ended.code == 130
    assert ended.lines == ["embcache: 0 of 3 removed; the same command again goes on"]
    assert pruned(tmp_path, "--older-than", "1d")["removed"] == 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--yes"],
        ["--older-than", "90"],
        ["--older-than", "90m"],
        ["--older-than", "-1d"],
        ["--max-size", "5 apples"],
        ["--max-size", "-5GB"],
        ["--refusals", "--model", "m"],
        ["--refusals", "--older-than", "1d"],
        ["--refusals", "--project", "p"],
        ["--project", "p", "--model", "m"],
        ["--provider", "nope"],
        ["--base-url", "nope"],
        ["file"],
    ],
)
def test_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    """A mistake in the command is exit code 2, and nothing goes."""
    made = stock(tmp_path, space(), passages(3), days=500)
    run = embcache(tmp_path, "prune", *options)
    assert (run.code, run.out) == (2, b"")
    assert content(tmp_path) == made


def test_unreadable(tmp_path: Path) -> None:
    """A cache that cannot be read is exit code 3 and one line."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/cache.db").write_bytes(b"This is no database. " * 100)
    run = embcache(tmp_path, "prune", "--older-than", "1d", "--yes")
    assert (run.code, run.out, len(run.lines)) == (3, b"", 1)


def test_foreign_files_stay(tmp_path: Path) -> None:
    """Files of others in the folder are as they were, byte for byte."""
    stock(tmp_path, space(), passages(3), days=500)
    (tmp_path / "cache/thesis.docx").write_bytes(b"years of work")
    (tmp_path / "cache/project/src").mkdir(parents=True)
    (tmp_path / "cache/project/src/main.py").write_text("print()")
    pruned(tmp_path, "--older-than", "1d")
    assert (tmp_path / "cache/thesis.docx").read_bytes() == b"years of work"
    assert (tmp_path / "cache/project/src/main.py").read_text() == "print()"
