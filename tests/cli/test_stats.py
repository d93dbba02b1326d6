"""`embcache stats`: the real command, in processes of its own, on caches that real runs have filled."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from embcache import CacheStats
from embcache._version import __version__
from embcache.types import FAULT_COUNTERS

from tests.cli.commands import MARK, PLENTY, Terminal, embcache, passages, started
from tests.upstream import Upstream, tokens

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [field.name for field in fields(CacheStats)]
PARTS = ["by_model", "by_project", "by_day"]
OF_A_PART = [name for name in NAMES if name not in PARTS]
NOTHING: dict[str, Any] = {"version": 1, **dict.fromkeys(NAMES, 0), **{by: {} for by in PARTS}}


def fill(folder: Path, *texts: str, model: str = "a/model", project: str | None = None, **env: str) -> None:
    """Embed `texts`, so that there is something to tell."""
    lines = "".join(text + "\n" for text in texts).encode()
    options = ["--model", model, *(["--project", project] if project else [])]
    assert embcache(folder, "embed", "-", *options, stdin=lines, env=env).code == 0


def figures(folder: Path, *options: str) -> dict[str, Any]:
    run = embcache(folder, "stats", "--json", *options)
    assert (run.code, run.err) == (0, "")
    printed: dict[str, Any] = json.loads(run.out)
    return printed


def test_json(folder: Path, server: Upstream) -> None:
    """`--json` prints the names of `CacheStats` in order, after a version, with the figures of the server's account."""
    old, new = passages(10), passages(4, start=10)
    fill(folder, *old)
    fill(folder, *old[:7], *new, *new[:2])

    stats = figures(folder)

    assert stats["bytes_on_disk"] >= (folder / "cache/cache.db").stat().st_size
    assert list(stats) == ["version", *NAMES]
    assert (list(stats["by_model"]), list(stats["by_project"])) == (["a/model"], [""])
    assert all(list(part) == OF_A_PART for by in PARTS for part in stats[by].values())
    assert stats == {
        **NOTHING,
        "entries": 14,
        "bytes_on_disk": stats["bytes_on_disk"],
        "hits": 7,
        "misses": 14,
        "duplicates": 2,
        "requests": 2,
        "billed_tokens": server.billed_tokens,
        "saved_tokens": sum(map(tokens, [*old[:7], *new[:2]])),
        "cost": None,
        "saved_cost": None,
        **{by: stats[by] for by in PARTS},
    }
    part = stats["by_model"]["a/model"]
    assert 0 < part["bytes_on_disk"] < stats["bytes_on_disk"]
    assert part | {"bytes_on_disk": 0} == {name: stats[name] for name in OF_A_PART} | {"bytes_on_disk": 0}
    assert stats["by_project"][""] == part | {"entries": 0, "bytes_on_disk": 0}
    for name in ("hits", "misses", "duplicates", "requests", "billed_tokens", "saved_tokens"):
        assert sum(day[name] for day in stats["by_day"].values()) == stats[name] > 0


@pytest.mark.parametrize("json_wanted", [True, False])
def test_no_cache(folder: Path, json_wanted: bool) -> None:
    """Where there is no cache all is zero, and none is made."""
    run = embcache(folder, "stats", *["--json"] * json_wanted)
    assert (run.code, run.err) == (0, "")
    assert list(folder.iterdir()) == []
    if json_wanted:
        assert json.loads(run.out) == NOTHING
    else:
        assert re.search(rb"^entries +0$", run.out, re.MULTILINE)


def test_lines(folder: Path, server: Upstream) -> None:
    """Into a pipe go plain lines: all figures, then tables of models and days; faults only where there were some."""
    again = [*passages(6), *passages(1)]
    fill(folder, *passages(8), passages(1)[0])
    fill(folder, *passages(6))
    fill(folder, *passages(3), model="b")

    run = embcache(folder, "stats")

    assert (run.code, run.err) == (0, "")
    lines = [re.split(r"  +", line) for line in run.out.decode().splitlines()]
    gap = lines.index([""])
    told = dict(lines[:gap])
    assert re.fullmatch(r"[\d.]+ kB", told.pop("on disk"))
    assert told == {
        "cache": str(folder / "cache"),
        "entries": "11",
        "hits": "6",
        "misses": "11",
        "duplicates": "1",
        "hit rate": "33.3%",
        "requests": "2",
        "tokens billed": str(server.billed_tokens),
        "cost": "price unknown",
        "tokens saved": str(sum(map(tokens, again))),
        "saved exactly": "0",
        "saved, apportioned": str(sum(map(tokens, again))),
        "saving": "price unknown",
    }
    assert lines[gap + 1] == ["model", "entries", "on disk", "hit rate", "billed", "cost", "saved", "saving"]
    assert [line[0] for line in lines[gap + 2 : gap + 5]] == ["a/model", "b", ""]
    assert lines[gap + 2][3] == "40.0%"
    assert lines[gap + 5] == ["day", "hits", "misses", "hit rate", "billed", "cost", "saved", "saving"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", line[0]) for line in lines[gap + 6 :])
    assert [sum(int(line[column]) for line in lines[gap + 6 :]) for column in (1, 2)] == [6, 11]
    assert not set(FAULT_COUNTERS) & {line[0].replace(" ", "_") for line in lines}


def test_faults_are_shown(folder: Path) -> None:
    """A counter of faults that is not zero is shown."""
    fill(folder, *passages(3))
    with closing(sqlite3.connect(folder / "cache/cache.db")) as database:
        one = "(SELECT max(rowid) FROM Cache WHERE length(key) = 16)"
        database.execute(f"UPDATE Cache SET value = zeroblob(length(value)) WHERE rowid = {one}")  # noqa: S608
        database.commit()
    fill(folder, *passages(3))
    stats = figures(folder)
    shown = {name.replace("_", " "): stats[name] for name in FAULT_COUNTERS if stats[name]}
    assert sum(shown.values()) == 1
    out = embcache(folder, "stats").out.decode()
    assert re.search(rf"^{next(iter(shown))} +1$", out, re.MULTILINE)


def test_local_is_free(folder: Path) -> None:
    """What a model in the process computed costs nothing, and that is known."""
    pytest.importorskip("wordllama")
    fill(folder, f"{MARK} a cat", model="wordllama-l2-supercat-256", EMBCACHE_PROVIDER="local", EMBCACHE_BASE_URL="")
    assert figures(folder)["cost"] == 0
    assert b"$0.00" in embcache(folder, "stats").out


def test_terminal(folder: Path) -> None:
    """On a terminal the same figures stand in tables that fit it, and names are no markup."""
    fill(folder, *passages(4), model="an/[bold]extremely-long-name-of-a-model-that-does-not-fit")
    (folder / "cache").rename(folder / "[red]")
    options = ["--cache-dir", "[red]"]
    with Terminal(columns=80) as screen, started(folder, "stats", *options, stdout=screen.end) as run:
        ended = run.end()
        shown = screen.shown()
    assert (ended.code, ended.err) == (0, "")
    assert "[red]" in re.sub(r"\s", "", shown)
    assert re.search(r"^entries +4 *$", shown, re.MULTILINE)
    assert re.search(r"^model +entries +on disk ", shown, re.MULTILINE)
    assert "an/[bold]" in shown
    assert "by day (UTC)" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("no_colour", [True, False])
def test_no_color(folder: Path, no_colour: bool) -> None:
    """On a terminal hits and misses are told apart by colour, with NO_COLOR by their filling."""
    fill(folder, *passages(4))
    fill(folder, *passages(4))
    env = {"TERM": "xterm", "NO_COLOR": "1" if no_colour else None}
    with Terminal() as screen, started(folder, "stats", env=env, stdout=screen.end) as run:
        assert run.end().code == 0
        coloured = re.search(rb"\x1b\[[0-9;]*3[0-7]", screen.raw())
    assert (coloured is None) == no_colour
    assert ("░" in screen.shown()) == no_colour
    assert "█" in screen.shown()


def test_reads_only(folder: Path) -> None:
    """Looking at a cache leaves every byte of its files as it was."""
    fill(folder, *passages(5))
    cache = folder / "cache"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    for _ in range(2):
        assert embcache(folder, "stats").code == 0
    after = {path.name: path.read_bytes() for path in cache.iterdir()}
    # What SQLite needs to read beside a writer: a log without content, and its index.
    assert after.pop("cache.db-wal", b"") == b""
    after.pop("cache.db-shm", None)
    assert after == before


def test_one_model(folder: Path) -> None:
    """`--model` limits all figures to that model; one that is unknown has none."""
    fill(folder, *passages(5), model="a")
    fill(folder, *passages(3), model="b")
    everything = figures(folder)
    one = figures(folder, "--model", "b")
    assert list(one["by_model"]) == ["b"]
    assert one["by_model"]["b"] == everything["by_model"]["b"]
    assert {name: one[name] for name in OF_A_PART} == everything["by_model"]["b"]
    assert sum(day["misses"] for day in one["by_day"].values()) == 3
    assert figures(folder, "--model", "c") == NOTHING


def test_one_provider(folder: Path, server: Upstream) -> None:
    """`--base-url` limits the figures to the server there, `--provider` to Novita or the model in the process."""
    fill(folder, *passages(5))
    with Upstream() as other:
        fill(folder, *passages(2), EMBCACHE_BASE_URL=other.base_url)
    assert figures(folder)["entries"] == 7
    assert figures(folder, "--base-url", server.base_url + "/")["entries"] == 5
    assert figures(folder, "--provider", "novita")["misses"] == 0


def test_one_project(folder: Path) -> None:
    """`embed --project` books for a project, and `stats --project` shows what was, without what belongs to nobody."""
    fill(folder, *passages(5))
    fill(folder, *passages(4), passages(3)[2], project="p")
    everything, one = figures(folder), figures(folder, "--project", "p")
    assert {name: part["hits"] for name, part in everything["by_project"].items()} == {"": 0, "p": 5}
    assert {name: one[name] for name in OF_A_PART} == everything["by_project"]["p"]
    assert (everything["entries"], one["entries"], list(one["by_project"])) == (5, 0, ["p"])
    shown = {" ".join(line.split()) for line in embcache(folder, "stats", "--project", "p").out.decode().splitlines()}
    assert "hits 5" in shown
    assert not {line for line in shown if line.startswith(("entries", "on disk"))}
    heads = {line for line in shown if line.startswith(("model", "project"))}
    assert heads == {f"{by} hits misses hit rate billed cost saved saving" for by in ("model", "project")}
    assert figures(folder, "--project", "q") == NOTHING


def test_cache_dir(folder: Path) -> None:
    """`--cache-dir` wins over the environment."""
    fill(folder, *passages(5))
    (folder / "cache").rename(folder / "elsewhere")
    assert figures(folder)["entries"] == 0
    assert figures(folder, "--cache-dir", "elsewhere")["entries"] == 5


def test_needs_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are shown without a key and without a server."""
    fill(folder, *passages(5))
    monkeypatch.delenv("NOVITA_API_KEY")
    monkeypatch.setenv("EMBCACHE_BASE_URL", "http://127.0.0.1:9/v1")
    assert figures(folder)["entries"] == 5


@pytest.mark.parametrize("options", [["--json"], []])
def test_unreadable(folder: Path, options: list[str]) -> None:
    """A cache that cannot be read is exit code 3 and one line."""
    (folder / "cache").mkdir()
    (folder / "cache/cache.db").write_bytes(b"This is no database. " * 100)
    run = embcache(folder, "stats", *options)
    assert (run.code, run.out) == (3, b"")
    assert len(run.lines) == 1
    assert "cache.db" in run.err


@pytest.mark.parametrize(
    "options",
    [
        ["--nope"],
        ["file"],
        ["--provider", "nope"],
        ["--base-url", "nope"],
        ["--provider", "local", "--base-url", "http://x"],
    ],
)
def test_wrong_usage(folder: Path, options: list[str]) -> None:
    """A mistake in the command is exit code 2."""
    run = embcache(folder, "stats", *options)
    assert (run.code, run.out) == (2, b"")


@pytest.mark.parametrize("options", [["--json"], [], ["--help"]])
def test_c02_nobody_listens(folder: Path, options: list[str]) -> None:
    """A standard output whose reader has left ends the command without a word."""
    fill(folder, *passages(1))
    with started(folder, "stats", *options) as run:
        run.out.close()
        assert run.process.wait(PLENTY) in (0, 1)
        assert run.told() == ""


def test_light(folder: Path) -> None:
    """Into a pipe neither the HTTP client nor rich, a bar or a model is loaded for it."""
    fill(folder, *passages(1))
    with started(folder, "stats", env={"PYTHONPROFILEIMPORTTIME": "1"}) as verbose:
        _, err = verbose.process.communicate(timeout=PLENTY)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.decode().splitlines()}
    assert "typer" in loaded
    assert not loaded & {"asyncio", "httpx", "pyarrow", "redis", "rich", "tqdm", "wordllama"}


def test_version(folder: Path) -> None:
    """`--version` tells the version of the package."""
    run = embcache(folder, "--version")
    assert (run.code, run.out.decode(), run.err) == (0, f"embcache {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["stats", "-h"]])
def test_help(folder: Path, arguments: list[str]) -> None:
    """Help goes to standard output, names the exit codes, and is no error."""
    run = embcache(folder, *arguments)
    assert (run.code, run.err) == (0, "")
    assert b"Exit codes: 0 done" in run.out


def test_nothing_asked(folder: Path) -> None:
    """Without a command the help is shown, as wrong usage."""
    run = embcache(folder)
    assert run.code == 2
    assert "Commands:" in run.out.decode() + run.err
