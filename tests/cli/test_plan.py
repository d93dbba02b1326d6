"""`embcache plan`, and the limits of `embcache embed`: the real commands, against a real server."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.commands import embcache, passages
from tests.programs import ROOT
from tests.twins import files_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

CHUNK = 8192
"""Texts that `embcache embed` works on at a time."""
PAGE = (ROOT / "docs/json-output.md").read_text().partition("## embcache plan\n")[2].partition("\n## ")[0]
NAMES = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
"""What `--json` prints, as its page names it."""


def write(folder: Path, *texts: str) -> str:
    (folder / "texts.txt").write_text("".join(text + "\n" for text in texts))
    return "texts.txt"


def planned(folder: Path, *args: str) -> dict[str, Any]:
    run = embcache(folder, "plan", "--json", *args)
    assert (run.code, run.err) == (0, "")
    told: dict[str, Any] = json.loads(run.out)
    return told


def test_a_plan_and_then_the_run(folder: Path, server: Upstream) -> None:
    """What is planned is what the same `embed` does; planning sends nothing and changes no byte."""
    embcache(folder, "embed", write(folder, *passages(100)))
    texts = [*passages(CHUNK + 50, start=50), *passages(10, start=3000), *passages(5)]
    file = write(folder, *texts)
    before, sent = files_of(folder / "cache"), len(server.requests)
    told = planned(folder, file)
    assert list(told) == NAMES
    assert (told["version"], told["model"], told["basis"], told["cost"]) == (1, "baai/bge-m3", "measured", None)
    assert [told[name] for name in NAMES[2:8]] == [CHUNK + 65, 55, CHUNK, 10, 0, 5]
    assert (files_of(folder / "cache"), len(server.requests)) == (before, sent)
    billed = server.billed_tokens
    run = embcache(folder, "embed", file)
    assert run.code == 0
    assert f"{CHUNK:,} misses" in run.err
    assert len(server.requests) - sent == told["requests"]
    assert told["tokens"]["low"] <= server.billed_tokens - billed <= told["tokens"]["high"]
    assert told["tokens"]["expected"] == pytest.approx(server.billed_tokens - billed, rel=0.15)


def test_for_people(folder: Path) -> None:
    """Without `--json` it is a table, and blank lines are told as `embed` tells them."""
    run = embcache(folder, "plan", write(folder, *passages(3), "", passages(1)[0]))
    assert run.code == 0
    assert run.lines == ["embcache: 1 blank line skipped"]
    rows = dict(line.split(maxsplit=1) for line in run.out.decode().splitlines())
    assert (rows["inputs"], rows["hits"], rows["misses"], rows["duplicates"], rows["requests"]) == (
        "4",
        "0",
        "3",
        "1",
        "1",
    )
    assert rows["cost"] == "price unknown"
    assert "assumed" in rows["estimate"]
    assert not (folder / "cache").exists()


def test_without_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning for Novita needs no key, knows its price, and takes texts from standard input."""
    monkeypatch.delenv("NOVITA_API_KEY")
    monkeypatch.delenv("EMBCACHE_BASE_URL")
    run = embcache(folder, "plan", "--json", "-", stdin=b"CANARY " * 1000)
    told = json.loads(run.out)
    assert (run.code, told["misses"]) == (0, 1)
    assert told["cost"]["expected"] == pytest.approx(told["tokens"]["expected"] * 1e-8)
    local = embcache(folder, "plan", "--json", "--provider", "local", "-", stdin=b"CANARY\n")
    assert json.loads(local.out)["cost"] == {"low": 0.0, "expected": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nowhere.txt"], 2),
        ([], 2),
        (["texts.txt", "--provider", "nope"], 2),
        (["texts.txt", "--base-url", "nope"], 2),
        (["bad.jsonl"], 1),
    ],
)
def test_what_is_wrong(folder: Path, args: list[str], code: int) -> None:
    """A mistake in the command is exit code 2, one in a file 1, as with `embed`."""
    write(folder, *passages(1))
    (folder / "bad.jsonl").write_text('{"text": "CANARY"}\n{"text": 5}\n')
    run = embcache(folder, "plan", *args)
    assert (run.code, run.out) == (code, b"")
    assert run.code == embcache(folder, "embed", *args).code


def test_unreadable(folder: Path) -> None:
    """A cache that cannot be read is exit code 3 and one line."""
    (folder / "cache").mkdir()
    (folder / "cache/cache.db").write_bytes(b"This is no database. " * 100)
    run = embcache(folder, "plan", write(folder, *passages(1)))
    assert (run.code, run.out, len(run.lines)) == (3, b"", 1)


# The limits of `embed`


def test_max_tokens(folder: Path, server: Upstream) -> None:
    """The run ends with exit code 1 before it passes the limit, says how far it came, and the next one goes on."""
    texts = [f"{text} {'words ' * 40}" for text in passages(3 * CHUNK)]
    file = write(folder, *texts)
    size = sum(len(text) // 4 + 1 for text in texts)
    limit = size // 2
    run = embcache(folder, "embed", file, "--max-tokens", limit, "-o", "out.npy")
    assert run.code == 1
    assert f"would pass the limit of {limit:,} tokens" in run.lines[-1]
    assert f"{server.billed_tokens:,} tokens billed" in run.lines[-1]
    assert f"{len(server.accepted_inputs):,} new vectors kept" in run.lines[-1]
    assert "the same command again pays only for the rest" in run.lines[-1]
    assert not (folder / "out.npy").exists()
    assert limit * 0.7 < server.billed_tokens <= limit
    again = embcache(folder, "embed", file, "--max-tokens", size, "-o", "out.npy")
    assert again.code == 0, again.err
    assert sorted(map(str, server.accepted_inputs)) == sorted(texts)


def test_max_cost(folder: Path, server: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """In dollars a limit needs a price: without one it is a mistake in the command, and nothing is sent."""
    file = write(folder, *passages(1))
    run = embcache(folder, "embed", file, "--max-cost", "10.00")
    assert run.code == 2
    assert "max_cost: the price of 'baai/bge-m3' is not known" in run.err
    for value in ("0", "-1", "nan"):
        assert embcache(folder, "embed", file, "--max-cost", value).code == 2
    assert not server.requests
    # A model in the process costs nothing, so that no limit is ever met.
    free = embcache(folder, "embed", file, "--provider", "local", "--max-cost", "0.01", env={"EMBCACHE_BASE_URL": None})
    assert free.code == 0, free.err
