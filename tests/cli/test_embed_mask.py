"""`embcache embed --errors`: what becomes of texts that the provider refuses, in every form of output."""

from __future__ import annotations

import importlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import EmbedResult, Usage
from embcache.cli.common import Fault
from embcache.cli.outputs import opened

from tests.cli.commands import MARK, embcache, passages
from tests.upstream import Upstream, edit, status, vector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.cli.commands import Run

pa: Any = importlib.import_module("pyarrow")  # has no types
pq: Any = importlib.import_module("pyarrow.parquet")
CHUNK = 8192
"""Texts that the command works on at a time."""
CODE = "INVALID_REQUEST_BODY"
OUTPUTS = ["out.npy", "out.jsonl", "-", "out.parquet"]


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        upstream.echo_text_in_error = True
        yield upstream


def write(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(text + "\n" for text in texts))


def masked(folder: Path, *arguments: object) -> Run:
    """A run with `--errors mask` that ended well."""
    run = embcache(folder, "embed", *arguments, "--errors", "mask")
    assert run.code == 0, run.err
    return run


def rows(folder: Path, out: str, run: Run) -> list[bytes | None]:
    """The bytes of the vectors of an output, None for one that is not there; no row is NaN in part."""
    if out == "out.npy":
        array = np.load(folder / out)
        assert np.array_equal(np.isnan(array).any(axis=1), np.isnan(array).all(axis=1))
        return [None if np.isnan(row).any() else row.tobytes() for row in array]
    if out == "out.parquet":
        found: list[Any] = pq.read_table(folder / out)["embedding"].to_pylist()
    else:
        lines = (run.out if out == "-" else (folder / out).read_bytes()).splitlines()
        found = [json.loads(line)["embedding"] for line in lines]
    return [None if row is None else np.array(row, "<f4").tobytes() for row in found]


def expected(texts: Sequence[str], refused: set[str]) -> list[bytes | None]:
    return [None if text in refused else vector(text).tobytes() for text in texts]


@pytest.mark.parametrize("out", OUTPUTS)
def test_refused_texts_have_no_vector(folder: Path, server: Upstream, out: str) -> None:
    """Each is marked where it stands, wherever it occurs, and named by its line; bought or remembered alike."""
    texts = [*passages(20), *passages(6)]
    refused = {texts[4], texts[13]}
    server.poison = refused
    write(folder / "a.txt", texts[:12])
    (folder / "b.txt").write_text("\n" + "\n".join(texts[12:]))
    named = ", ".join(f"{place} (refused 400 {CODE})" for place in ("a.txt line 5", "b.txt line 3", "b.txt line 14"))
    for hits in (0, 23):
        run = masked(folder, "a.txt", "b.txt", "-o", out)
        assert rows(folder, out, run) == expected(texts, refused)
        assert run.lines[:2] == [
            "embcache: 1 blank line skipped",
            f"embcache: warning: no vector for 3 texts: {named}",
        ]
        assert run.lines[2].startswith(f"embcache: 26 texts: {hits} hits, ")
        assert len(run.lines) == 3


@pytest.mark.parametrize("out", ["out.jsonl", "-"])
def test_why_in_json_lines(folder: Path, server: Upstream, out: str) -> None:
    """JSON Lines tell status and code of each refusal, and nothing that the server said in words."""
    server.poison = {passages(3)[1]}
    write(folder / "in.txt", passages(3))
    run = masked(folder, "in.txt", "-o", out)
    lines = (run.out if out == "-" else (folder / out).read_bytes()).splitlines()
    told = [json.loads(line) for line in lines]
    assert [list(one) for one in told[::2]] == [["index", "embedding"]] * 2
    assert list(told[1]) == ["index", "embedding", "error"]
    assert told[1] == {"index": 1, "embedding": None, "error": {"status": 400, "code": CODE}}


def test_some_are_named(folder: Path, server: Upstream) -> None:
    """Of many refused texts the first are named, over all parts of the work, and all are counted."""
    texts = [f"{MARK} {number % 10}" for number in range(CHUNK)] + passages(9)
    server.poison = {texts[7], *texts[CHUNK + 5 :]}
    count = sum(text in server.poison for text in texts)
    write(folder / "in.txt", texts)
    run = masked(folder, "in.txt", "-q")
    named = ", ".join(f"in.txt line {line} (refused 400 {CODE})" for line in (8, 18, 28, 38, 48))
    assert run.lines == [f"embcache: warning: no vector for {count} texts: {named} and {count - 5} more"]


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_part_without_a_vector(folder: Path, server: Upstream, out: str) -> None:
    """Where all of the first part is refused, its rows are as long as those that come after."""
    texts = [f"{MARK} bad"] * (CHUNK + 2) + passages(5) + [f"{MARK} bad"]
    server.poison = {texts[0]}
    write(folder / "in.txt", texts)
    run = masked(folder, "in.txt", "-o", out)
    assert rows(folder, out, run) == expected(texts, {texts[0]})


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_last_part_without_a_vector(folder: Path, server: Upstream, out: str) -> None:
    """Where all of a later part is refused, its rows are as long as those that came before."""
    texts = passages(2) * (CHUNK // 2) + [f"{MARK} bad"] * 3
    server.poison = {texts[-1]}
    write(folder / "in.txt", texts)
    run = masked(folder, "in.txt", "-o", out)
    assert rows(folder, out, run) == expected(texts, {texts[-1]})


@pytest.mark.parametrize("out", OUTPUTS)
def test_no_vector_at_all(folder: Path, server: Upstream, out: str) -> None:
    """Where the one text there is, is refused, there is a row wherever it stands; how long, nobody knows."""
    server.poison = set(passages(1))
    write(folder / "in.txt", passages(1) * 3)
    run = masked(folder, "in.txt", "-o", out)
    assert "no vector for 3 texts: " in run.err
    if out == "out.npy":
        assert np.load(folder / out).shape == (3, 0)
    else:
        assert rows(folder, out, run) == [None] * 3


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("dims", [0, 4, 16])
def test_vectors_of_several_lengths(tmp_path: Path, kind: str, dims: int) -> None:
    """No file is made of vectors that fit in no array together, however they came about."""

    def part(dims: int) -> EmbedResult:
        return EmbedResult(np.ones((3, dims), np.float32), Usage(), 3, 0, 0, 0, "m")

    def both() -> None:
        with opened(str(tmp_path / f"out.{kind}"), []) as output:
            output.write(part(8))
            output.write(part(dims))
            output.end()

    with pytest.raises(Fault):
        both()
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_no_use(folder: Path, server: Upstream) -> None:
    """A text whose vector cannot be used is treated as one that was refused."""

    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        body["data"][1]["embedding"] = [math.nan] * 8
        return body

    server.answer_format = "float"
    server.always = edit(spoil)
    write(folder / "in.txt", passages(3))
    run = masked(folder, "in.txt", "-o", "out.jsonl")
    assert rows(folder, "out.jsonl", run) == expected(passages(3), {passages(3)[1]})
    assert run.lines[0] == "embcache: warning: no vector for 1 text: in.txt line 2 (what came was none)"


def test_other_columns_stay(folder: Path, server: Upstream) -> None:
    """In a table, the row of a refused text keeps its other columns."""
    pq.write_table(pa.table({"text": passages(3), "n": [1, 2, 3]}), folder / "in.parquet")
    server.poison = {passages(3)[1]}
    run = masked(folder, "in.parquet", "-o", "out.parquet")
    assert "no vector for 1 text: in.parquet row 2 (refused 400" in run.err
    out = pq.read_table(folder / "out.parquet")
    assert out["n"].to_pylist() == [1, 2, 3]
    assert out["embedding"].null_count == 1
    assert rows(folder, "out.parquet", run) == expected(passages(3), server.poison)


@pytest.mark.parametrize("choice", [[], ["--errors", "raise"]])
def test_raise(folder: Path, server: Upstream, choice: list[str]) -> None:
    """Without `mask` a refused text is exit code 1 and no output."""
    server.poison = {passages(3)[1]}
    write(folder / "in.txt", passages(3))
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy", *choice)
    assert run.code == 1
    assert run.err.startswith("embcache: in.txt line 2: the provider answered 400")
    assert not (folder / "out.npy").exists()


def test_other_failures(folder: Path, server: Upstream) -> None:
    """`mask` is about single texts: a provider that fails is an error all the same."""
    write(folder / "in.txt", passages(3))
    server.play(status(401))
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy", "--errors", "mask")
    assert run.code == 1
    assert "the provider answered 401" in run.err
    assert not (folder / "out.npy").exists()


def test_a_wrong_request(folder: Path, server: Upstream) -> None:
    """Where every one of several texts is refused it is the request that is wrong: an error, not a mask of all."""
    server.always = status(400)
    write(folder / "in.txt", passages(300))
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy", "--errors", "mask")
    assert run.code == 1
    assert "every input is refused, so that the request itself must be wrong" in run.err
    assert not (folder / "out.npy").exists()
