"""`embcache embed` with tables of Parquet: the real command, real files, against a real server."""

from __future__ import annotations

import datetime as dt
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.cli.commands import MARK, PLENTY, embcache, passages, started
from tests.programs import output, python, unable
from tests.upstream import Upstream, proper, status, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cli.commands import Run

pa: Any = importlib.import_module("pyarrow")  # has no types
pq: Any = importlib.import_module("pyarrow.parquet")
CHUNK = 8192
"""Texts that the command works on at a time."""
DIMS = 8


def write(path: Path, columns: dict[str, Any], **options: object) -> Any:  # noqa: ANN401 - pyarrow has no types
    table = pa.table(columns)
    pq.write_table(table, path, **options)
    return table


def vectors(path: Path) -> list[bytes | None]:
    """The bytes of the vectors of a table, None for null."""
    column = pq.read_table(path)["embedding"]
    return [None if row is None else np.array(row, "<f4").tobytes() for row in column.to_pylist()]


def expected(texts: Sequence[str]) -> list[bytes | None]:
    return [vector(text).tobytes() for text in texts]


def ended(run: Run) -> str:
    """The last line of a run that went well."""
    assert run.code == 0, run.err
    return run.lines[-1]


# What comes in and what goes out


def test_other_columns_are_kept(folder: Path, server: Upstream) -> None:
    """The output is the input, in all its columns and kinds and what it says of them, with a column of vectors."""
    texts = [*passages(40), *passages(5)]
    count = len(texts)
    day = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    schema = pa.schema(
        [
            pa.field("id", pa.int32(), nullable=False),
            pa.field("body", pa.large_string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("at", pa.timestamp("us", tz="UTC")),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("place", pa.struct([("x", pa.float64()), ("y", pa.float32())])),
            pa.field("price", pa.decimal128(9, 2)),
            pa.field("text", pa.binary()),
            pa.field("nothing", pa.null()),
        ],
        metadata={"told": "by its maker"},
    )
    rows = [
        {
            "id": number,
            "body": text,
            "tags": None if number % 3 else ["a", None, "b"],
            "at": day,
            "kind": "odd" if number % 2 else "even",
            "place": {"x": number / 3, "y": None},
            "price": number,
            "text": b"\xff",
        }
        for number, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "in.parquet", row_group_size=7)

    run = embcache(folder, "embed", "in.parquet", "--field", "body", "-o", "out.parquet")

    assert ended(run).startswith(f"embcache: {count} texts: 0 hits, 40 misses, 5 duplicates, 1 request; ")
    assert len(run.lines) == 1
    given, out = (pq.read_table(folder / name) for name in ("in.parquet", "out.parquet"))
    assert out.drop_columns(["embedding"]).equals(given, check_metadata=True)
    assert out.schema.metadata == {b"told": b"by its maker"}
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), DIMS)
    assert out.column_names[-1] == "embedding"
    assert vectors(folder / "out.parquet") == expected(texts)
    assert server.sent_inputs == texts[:40]


def test_again(folder: Path, server: Upstream) -> None:
    """A second run sends nothing and makes the same file."""
    write(folder / "in.parquet", {"text": passages(30), "n": range(30)})
    ended(embcache(folder, "embed", "in.parquet", "-o", "one.parquet"))
    server.forget()
    assert ": 30 hits, 0 misses" in ended(embcache(folder, "embed", "in.parquet", "-o", "two.parquet"))
    assert server.connections == 0
    assert (folder / "one.parquet").read_bytes() == (folder / "two.parquet").read_bytes()


def test_in_parts(folder: Path, server: Upstream) -> None:
    """Several tables of one kind, cut in row groups of any size, become one: every row with the vector of its text."""
    texts = [f"{MARK} {number % 97}" for number in range(CHUNK + 5000)]
    cuts = [0, 3000, 3000, 3001, CHUNK - 100, len(texts)]
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        columns = {"n": pa.array(range(start, end), pa.int64()), "text": pa.array(texts[start:end], pa.string())}
        write(folder / f"{number}.parquet", columns, row_group_size=1111)
    files = [f"{number}.parquet" for number in range(len(cuts) - 1)]

    ended(embcache(folder, "embed", *files, "-o", "out.parquet"))

    out = pq.read_table(folder / "out.parquet")
    assert out["n"].to_pylist() == list(range(len(texts)))
    assert out["text"].to_pylist() == texts
    of = {text: vector(text).tobytes() for text in set(texts)}
    assert vectors(folder / "out.parquet") == [of[text] for text in texts]
    sizes = pq.ParquetFile(folder / "out.parquet").metadata
    assert [sizes.row_group(n).num_rows for n in range(sizes.num_row_groups)] == [CHUNK, 5000]
    assert len(server.sent_inputs) == 97


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_kinds_of_text(folder: Path, server: Upstream, kind: object) -> None:
    """A text is a text however the table holds it, and goes out as it stands."""
    texts = [f"{MARK} one", f" {MARK} two ", f"{MARK}\nthr\0ee", f"{MARK} fi🙂ve", f"{MARK} one"]
    given = write(folder / "in.parquet", {"a.text": pa.array(["no"] * 5), "text": pa.array(texts).cast(kind)})
    ended(embcache(folder, "embed", "in.parquet", "-o", "out.parquet"))
    assert server.sent_inputs == texts[:4]
    assert vectors(folder / "out.parquet") == expected(texts)
    assert pq.read_table(folder / "out.parquet").drop_columns(["embedding"]).equals(given)


def test_names_with_a_point(folder: Path, server: Upstream) -> None:
    """A column is found by its whole name, whatever others begin like it."""
    texts = passages(2)
    write(folder / "in.parquet", {"a": [{"b": "no"}] * 2, "a.b": texts, "a.b.c": ["no"] * 2})
    ended(embcache(folder, "embed", "in.parquet", "--field", "a.b", "-o", "out.npy"))
    assert server.sent_inputs == texts


@pytest.mark.parametrize("out", ["out.npy", "out.jsonl", "-"])
def test_to_other_forms(folder: Path, server: Upstream, out: str) -> None:
    """Tables go with files of all kinds into every other form of output, in the order given."""
    one, two, three, four = passages(4)
    write(folder / "b.parquet", {"text": [two, three]})
    (folder / "a.txt").write_text(one)
    (folder / "c.csv").write_text(f"text\n{four}\n")
    run = embcache(folder, "embed", "a.txt", "b.parquet", "c.csv", "-o", out)
    assert ended(run).startswith("embcache: 4 texts: 0 hits, 4 misses")
    assert [request.inputs for request in server.requests] == [passages(4)]
    if out == "out.npy":
        assert np.load(folder / out).tobytes() == b"".join(vector(text).tobytes() for text in passages(4))
    else:
        lines = (run.out if out == "-" else (folder / out).read_bytes()).splitlines()
        assert [np.array(json.loads(line)["embedding"], "<f4").tobytes() for line in lines] == expected(passages(4))


def test_from_other_forms(folder: Path) -> None:
    """Texts of files without columns are numbered beside their vectors, and are not written."""
    texts = passages(4)
    (folder / "a.txt").write_text(f"{texts[0]}\n\n{texts[1]}\n")
    (folder / "b.jsonl").write_text(json.dumps({"text": texts[2]}))
    (folder / "c.csv").write_text(f"text,id\n{texts[3]},7\n")
    run = embcache(folder, "embed", "a.txt", "b.jsonl", "c.csv", "-", "-o", "out.PARQUET", stdin=texts[0].encode())
    ended(run)
    out = pq.read_table(folder / "out.PARQUET")
    assert out.schema.names == ["index", "embedding"]
    assert out["index"].type == pa.int64()
    assert out["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert vectors(folder / "out.PARQUET") == expected([*texts, texts[0]])
    assert MARK.encode() not in (folder / "out.PARQUET").read_bytes()


def test_numbers_go_on(folder: Path) -> None:
    """The numbers of texts are those of all of them, not of the part that is worked on."""
    (folder / "in.txt").write_text("".join(f"{MARK} {number % 3}\n" for number in range(CHUNK + 2)))
    ended(embcache(folder, "embed", "in.txt", "-o", "out.parquet"))
    assert pq.read_table(folder / "out.parquet")["index"].to_pylist() == list(range(CHUNK + 2))


@pytest.mark.parametrize("kind", ["parquet", "txt"])
def test_nothing_in(folder: Path, server: Upstream, kind: str) -> None:
    """A table without rows gives one without rows, at no cost; its vectors have the length that the cache knows."""
    (folder / "in.txt").write_text("")
    write(folder / "in.parquet", {"text": pa.array([], pa.string())})
    ended(embcache(folder, "embed", f"in.{kind}", "-o", "out.parquet"))
    assert pq.read_table(folder / "out.parquet").num_rows == 0
    assert server.connections == 0

    embcache(folder, "embed", "-", stdin=passages(1)[0].encode())
    ended(embcache(folder, "embed", f"in.{kind}", "-o", "out.parquet"))
    out = pq.read_table(folder / "out.parquet")
    assert out.schema.names == ["text" if kind == "parquet" else "index", "embedding"]
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), DIMS)


# How it is written


def test_out_is_replaced_whole(folder: Path, server: Upstream) -> None:
    """An output stays as it was until the new one is whole; what was bought by then is not bought again."""
    texts = passages(CHUNK + 10)
    write(folder / "in.parquet", {"text": texts})
    (folder / "out.parquet").write_bytes(b"old")
    server.play(*[proper()] * 4, status(401))
    run = embcache(folder, "embed", "in.parquet", "-o", "out.parquet")
    assert run.code == 1
    assert f"; {CHUNK:,} of {len(texts):,} texts done, {CHUNK:,} new vectors kept, " in run.err
    assert len(run.lines) == 1
    assert (folder / "out.parquet").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == {"in.parquet", "out.parquet", "cache"}
    server.forget()

    assert f": {CHUNK:,} hits, 10 misses" in ended(embcache(folder, "embed", "in.parquet", "-o", "out.parquet"))
    assert server.sent_inputs == texts[CHUNK:]
    assert vectors(folder / "out.parquet") == expected(texts)


def test_stopped(folder: Path, server: Upstream) -> None:
    """Ctrl-C leaves no part of an output, and one line says how far it came."""
    texts = passages(CHUNK + 10)
    write(folder / "in.parquet", {"text": texts})
    embcache(folder, "embed", "-", stdin="".join(text + "\n" for text in texts[:CHUNK]).encode())
    server.forget()
    server.delay = 1.0
    with started(folder, "embed", "in.parquet", "-o", "out.parquet") as run:
        assert server.wait_for(1, PLENTY)
        run.process.send_signal(signal.SIGINT)
        stopped = run.end()
    assert stopped.code == 130
    assert f"interrupted: {CHUNK:,} of {len(texts):,} texts done, 10 new vectors kept" in stopped.lines[-1]
    assert {path.name for path in folder.iterdir()} == {"in.parquet", "cache"}


def test_disk_full(folder: Path, server: Upstream) -> None:
    """Where the output does not fit, one line says so; what was there stays, and nothing half-written is left."""
    write(folder / "in.parquet", {"text": passages(CHUNK)})
    assert embcache(folder, "embed", "in.parquet").code == 0
    server.forget()
    (folder / "out.parquet").write_bytes(b"old")
    run = embcache(folder, "embed", "in.parquet", "-o", "out.parquet", first="ulimit -f 200")
    assert run.code == 1
    assert run.lines[-1] == "embcache: out.parquet: File too large"
    assert (folder / "out.parquet").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == {"in.parquet", "out.parquet", "cache"}
    assert server.connections == 0


MEASURED = """
import sys
from pathlib import Path
from embcache.cli import main

sys.argv[1:] = ["embed", "--quiet", "in.parquet", "-o", "out.parquet"]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_memory_is_flat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table in one row group that is 213 MB larger than another, not half of that is held in memory."""
    if not Path("/proc/self/status").exists():
        unable("the most memory that a process has taken is read in /proc")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMBCACHE_DIR", "cache")
    size = 2000
    peaks: list[int] = []
    for count in (3 * CHUNK, 1 << 17):
        load = pa.py_buffer(os.urandom(count * size))
        columns = {
            "text": pa.array([f"{MARK} {number % 50}" for number in range(count)]),
            "load": pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, load]),
        }
        write(folder / "in.parquet", columns, row_group_size=count, use_dictionary=False, compression="none")
        peaks.append(int(output(python(MEASURED))) * 1024)
    more = peaks[1] - peaks[0]
    assert (folder / "out.parquet").stat().st_size > 250_000_000
    # What is let go of comes back to the system as it pleases; one that held the column would take 200 MB more.
    assert more < 100_000_000, f"{more:,} bytes more for 213,000,000 more"


# What is wrong with the files


def not_utf8() -> Any:  # noqa: ANN401 - pyarrow has no types
    return pa.array([b"CANARY", b"CANARY \xff"]).view(pa.string())


FAULTY = {
    "null": (["CANARY", None], "row 2: the field 'text' holds null, not a text"),
    "empty": (["CANARY", "CANARY", ""], "row 3: the text is empty"),
    "all null": (pa.nulls(3), "row 1: the field 'text' holds null, not a text"),
    "not UTF-8": (not_utf8(), "row 2: not UTF-8"),
    "not UTF-8, in a dictionary": (not_utf8().dictionary_encode(), "row 2: not UTF-8"),
    "far down": (["CANARY"] * (CHUNK + 3) + [None], f"row {CHUNK + 4}: the field 'text' holds null"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_cell(folder: Path, server: Upstream, fault: str) -> None:
    """A cell without a text is told by file and row, never by what it holds, before anything is sent or written."""
    cells, message = FAULTY[fault]
    write(folder / "in.parquet", {"text": cells}, row_group_size=1000)
    run = embcache(folder, "embed", "in.parquet", "-o", "out.parquet")
    assert (run.code, len(run.lines)) == (1, 1)
    assert run.err.startswith(f"embcache: in.parquet {message}")
    assert server.connections == 0
    assert {path.name for path in folder.iterdir()} == {"in.parquet"}


def test_unsound_tables(folder: Path, server: Upstream) -> None:
    """What is no table, or a damaged one, is one line and exit code 1, and nothing is written."""
    write(folder / "whole.parquet", {"text": passages(5000)}, compression="snappy", use_dictionary=False)
    whole = (folder / "whole.parquet").read_bytes()
    middle = len(whole) // 2
    unsound = {
        "empty": b"",
        "text": b"CANARY" * 100,
        "cut": whole[:middle],
        "damaged": whole[:20] + bytes(middle) + whole[20 + middle :],
    }
    for name, content in unsound.items():
        (folder / "in.parquet").write_bytes(content)
        run = embcache(folder, "embed", "in.parquet", "-o", "out.parquet")
        assert (name, run.code, run.err) == (name, 1, "embcache: in.parquet: damaged, or not Parquet\n")
    assert server.connections == 0
    assert not (folder / "out.parquet").exists()


USAGE = {
    "no such column": (["in.parquet", "--field", "nope"], "in.parquet: has no column 'nope'; name the one"),
    "two such columns": (["twice.parquet"], "twice.parquet: has several columns 'text'; name the one"),
    "no texts": (["in.parquet", "--field", "n"], "in.parquet: the column 'n' holds no texts, but int64; name the one"),
    "bytes": (["in.parquet", "--field", "b"], "in.parquet: the column 'b' holds no texts, but binary; name the one"),
    "a folder": (["folder.parquet"], "folder.parquet: give a .parquet file itself, no folder and no pipe"),
    "a pipe": (["pipe.parquet"], "pipe.parquet: give a .parquet file itself, no folder and no pipe"),
    "not there": (["none.parquet"], "none.parquet: No such file"),
    "the column is there": (
        ["done.parquet", "-o", "out.parquet"],
        "done.parquet: has a column 'embedding' already, and the vectors would be put in one of that name; rename it",
    ),
    "files with and without columns": (
        ["in.parquet", "in.txt", "-o", "out.parquet"],
        "out.parquet: give it .parquet files alone, whose columns it keeps, or none",
    ),
    "other columns": (
        ["in.parquet", "twice.parquet", "-o", "out.parquet"],
        "twice.parquet: its columns are not those of in.parquet; give each an output",
    ),
    "output is an input": (["in.parquet", "-o", "./in.parquet"], "./in.parquet: is one of the inputs"),
}


@pytest.mark.parametrize("mistake", USAGE)
def test_wrong_usage(folder: Path, server: Upstream, mistake: str) -> None:
    """A mistake in the command is exit code 2 and a line that says what it is; nothing was sent or written."""
    arguments, message = USAGE[mistake]
    write(folder / "in.parquet", {"text": passages(2), "n": [1, 2], "b": [b"CANARY", b""]})
    write(folder / "done.parquet", {"text": passages(2), "embedding": [[0.5], [0.5]]})
    twice = pa.Table.from_arrays([pa.array(passages(2))] * 2, names=["text", "text"])
    pq.write_table(twice, folder / "twice.parquet")
    (folder / "in.txt").write_text(MARK)
    (folder / "folder.parquet").mkdir()
    os.mkfifo(folder / "pipe.parquet")
    before = {path.name for path in folder.iterdir()}
    run = embcache(folder, "embed", *arguments)
    assert run.code == 2
    assert run.err.startswith(f"embcache: {message}")
    assert len(run.lines) == 1
    assert server.connections == 0
    assert {path.name for path in folder.iterdir()} == before


def test_a_column_of_vectors_is_in_nobodys_way(folder: Path) -> None:
    """A table that has vectors already can be embedded into every form that does not keep its columns."""
    write(folder / "done.parquet", {"text": passages(2), "embedding": [[0.5], [0.5]]})
    ended(embcache(folder, "embed", "done.parquet", "-o", "out.npy"))
    assert np.load(folder / "out.npy").tobytes() == b"".join(vector(text).tobytes() for text in passages(2))


# Without pyarrow


@pytest.mark.parametrize("arguments", [["in.parquet"], ["in.txt", "-o", "out.parquet"]], ids=" ".join)
def test_without_pyarrow(folder: Path, server: Upstream, arguments: list[str]) -> None:
    """Where pyarrow is not installed, one line says how it is, with exit code 2, before anything is bought."""
    write(folder / "in.parquet", {"text": passages(1)})
    (folder / "in.txt").write_text(MARK)
    # Not the real lack of it, which the tests' own environment cannot have; to Python it is the same.
    program = (
        "import sys; sys.modules['pyarrow'] = None; sys.argv[1:] = ['embed', *sys.argv[1:]]\n"
        "from embcache.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == f'embcache: {arguments[-1]}: .parquet needs pyarrow: pip install "embcache[parquet]"\n'
    assert server.connections == 0


@pytest.mark.parametrize(("name", "loaded"), [("in.txt", False), ("in.parquet", True)])
def test_only_who_needs_it_loads_it(folder: Path, name: str, loaded: bool) -> None:
    """Pyarrow, which takes its time, is loaded where a .parquet is named and nowhere else."""
    write(folder / "in.parquet", {"text": passages(1)})
    (folder / "in.txt").write_text(MARK)
    with started(folder, "embed", name, "-o", "out.npy", env={"PYTHONPROFILEIMPORTTIME": "1"}) as verbose:
        _, err = verbose.process.communicate(timeout=PLENTY)
    assert verbose.process.returncode == 0
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.decode().splitlines()}
    assert "typer" in modules
    assert ("pyarrow" in modules) is loaded
