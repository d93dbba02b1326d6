"""`embcache info`: what the cache knows of a text or of a file's texts, told without the texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from embcache.keys import fingerprints

from tests.cli.caches import BGE, content, documented, space, stock
from tests.cli.commands import MARK, asking, embcache, passages
from tests.stores.files import database
from tests.upstream import Upstream, tokens

if TYPE_CHECKING:
    from pathlib import Path

ASKED = {"provider": "novita", "model": BGE, "encoding_format": "base64"}
NOTHING = {"created": None, "answered_by": None, "dimensions": None, "tokens": None, "exact": None, "cost": None}


def info(folder: Path, *args: str, stdin: bytes = b"") -> dict[str, Any]:
    run = embcache(folder, "info", "--json", *args, stdin=stdin)
    assert (run.code, run.err) == (0, "")
    told: dict[str, Any] = json.loads(run.out)
    return told


def test_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that a real run has bought it tells when, for how much and by which model, and sends nothing."""
    with Upstream() as server:
        for name, value in asking(server).items():
            monkeypatch.setenv(name, value)
        text = passages(1)[0]
        assert embcache(tmp_path, "embed", "-", stdin=text.encode()).code == 0
        told = info(tmp_path, text)
        assert told.pop("created").startswith("20")
        assert told == {
            "version": 1,
            "asked": ASKED | {"provider": server.base_url.removeprefix("http://")},
            "cached": True,
            "answered_by": BGE,
            "dimensions": 8,
            "tokens": tokens(text),
            "exact": True,
            "cost": None,
            "faults": {},
        }
        assert len(server.requests) == 1


def test_what_is_told(tmp_path: Path) -> None:
    """Every fact comes from the entry; what nobody told is null, and a share of a bill is no exact figure."""
    stock(tmp_path, space(), [f"{MARK} a"], tokens=2_000_000, exact=True)
    stock(tmp_path, space(), [f"{MARK} b"], tokens=100)
    stock(tmp_path, space(), [f"{MARK} c"], tokens=None)
    told = {name: info(tmp_path, f"{MARK} {name}") for name in "abcd"}
    assert list(told["a"]) == ["version", "asked", "cached", *NOTHING, "faults"] == documented("info")
    assert [told[name]["cached"] for name in "abcd"] == [True, True, True, False]
    assert [told[name]["tokens"] for name in "abcd"] == [2_000_000, 100, None, None]
    assert [told[name]["exact"] for name in "abcd"] == [True, False, None, None]
    assert [told[name]["cost"] for name in "abcd"] == [pytest.approx(0.02), pytest.approx(0.000001), None, None]
    assert told["d"] | NOTHING == told["d"]
    assert told["a"]["answered_by"] == "told/model"


def test_the_very_space(tmp_path: Path) -> None:
    """The options name one space, and an entry of another is none of this one."""
    where = space("m", "127.0.0.1:80/v1", epoch="autumn", encoding_format="float")
    stock(tmp_path, where, passages(1))
    right = ["--model", "m", "--base-url", "http://127.0.0.1:80/v1", "--epoch", "autumn", "--encoding-format", "float"]
    assert info(tmp_path, passages(1)[0], *right)["cached"]
    for place in range(0, len(right), 2):
        assert not info(tmp_path, passages(1)[0], *right[:place], *right[place + 2 :])["cached"]
    assert not info(tmp_path, passages(1)[0], *right, "--dimensions", "8")["cached"]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", "-"])
def test_a_file(tmp_path: Path, kind: str) -> None:
    """Of a file it tells how many of its distinct texts are cached, from when to when, and what they cost."""
    stock(tmp_path, space(), passages(3), days=10, tokens=1_000_000)
    stock(tmp_path, space(), passages(2, 3), days=5, tokens=500_000, exact=True)
    stock(tmp_path, space(), passages(1, 5), days=7, tokens=None)
    texts = [*passages(10), *passages(4)]
    lines = {
        ".txt": "".join(text + "\n" for text in texts),
        ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        ".csv": "text\n" + "".join(text + "\n" for text in texts),
        "-": "".join(text + "\n" for text in texts),
    }[kind]
    name = kind if kind == "-" else f"a{kind}"
    if kind != "-":
        (tmp_path / name).write_text(lines)
    told = info(tmp_path, name, stdin=lines.encode() if kind == "-" else b"")
    assert list(told) == documented("info", 1)
    one, other = (info(tmp_path, passages(1, place)[0])["created"] for place in (0, 3))
    assert told == {
        "version": 1,
        "asked": ASKED,
        "texts": 14,
        "distinct": 10,
        "cached": 6,
        "oldest": one,
        "newest": other,
        "answered_by": {"told/model": 6},
        "dimensions": 8,
        "tokens": 4_000_000,
        "tokens_exact": 1_000_000,
        "entries_of_unknown_tokens": 1,
        "cost": pytest.approx(0.04),
        "faults": {},
    }


def test_many_texts(tmp_path: Path) -> None:
    """A file of more texts than are looked up at a time is counted right."""
    stock(tmp_path, space(), passages(3_000))
    (tmp_path / "a.txt").write_text("\n".join([*passages(5_000), *passages(5_000)]))
    told = info(tmp_path, "a.txt")
    assert (told["texts"], told["distinct"], told["cached"]) == (10_000, 5_000, 3_000)


def test_lines(tmp_path: Path) -> None:
    """Without `--json` the same stands in lines, and no text among them."""
    stock(tmp_path, space(), passages(2), tokens=50_000)
    (tmp_path / "a.txt").write_text("\n".join(passages(3)))
    run = embcache(tmp_path, "info", "a.txt")
    assert (run.code, run.err) == (0, "")
    lines = run.out.decode().splitlines()
    assert lines[:2] == [
        "2 of 3 distinct texts (3 in all) cached",
        f"asked for: provider novita, model {BGE}, encoding_format base64",
    ]
    assert lines[2].startswith("bought: 20")
    assert lines[3:] == [
        "cost: 100,000 tokens ($0.001), with shares of requests' bills",
        "answered by: told/model, 8 dimensions",
    ]
    run = embcache(tmp_path, "info", passages(1, 9)[0])
    assert run.out.decode().splitlines() == ["not cached", lines[1]]


def test_a_damaged_entry(tmp_path: Path) -> None:
    """An entry that does not prove itself to be of this very text is not cached, and it is said why."""
    made = stock(tmp_path, space(), passages(2))
    (first, second), _ = fingerprints(space(), "text", [text.encode() for text in passages(2)])
    with database(tmp_path / "cache") as connection:
        connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (made[second], first))
    told = info(tmp_path, passages(1)[0])
    assert (told["cached"], told["faults"]) == (False, {"wrong_text": 1})
    assert b"unusable: wrong_text" in embcache(tmp_path, "info", passages(1)[0]).out


def test_changes_nothing(tmp_path: Path) -> None:
    """Asking makes no cache where there is none, needs no key and no server, and counts no hit."""
    assert not info(tmp_path, f"{MARK} a text")["cached"]
    assert list(tmp_path.iterdir()) == []
    made = stock(tmp_path, space(), passages(1))
    info(tmp_path, passages(1)[0])
    assert content(tmp_path) == made
    assert json.loads(embcache(tmp_path, "stats", "--json").out)["hits"] == 0


@pytest.mark.parametrize("args", [[], [""], ["none.txt"], ["a.parquet.zip"], ["a", "b"], ["a", "--dimensions", "0"]])
def test_wrong_usage(tmp_path: Path, args: list[str]) -> None:
    """A mistake in the command is exit code 2: also a file that is of no known kind, or not there."""
    (tmp_path / "a.parquet.zip").touch()
    run = embcache(tmp_path, "info", *args)
    assert (run.code, run.out) == (2, b"")


@pytest.mark.parametrize("text", [f"{MARK} names a file.txt", f"{MARK}\nlines.csv", "-".join([MARK] * 2_000)])
def test_what_looks_like_a_file(tmp_path: Path, text: str) -> None:
    """A text with white space in it is a text, whatever it ends with; so is one too long to be a path."""
    stock(tmp_path, space(), [text])
    assert info(tmp_path, text)["cached"]
