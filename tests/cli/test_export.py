"""`embcache export` and `import`: entries leave one cache and come into another, by the real commands."""

from __future__ import annotations

import json
import stat
import struct
from typing import TYPE_CHECKING, Any

import pytest

from embcache.keys import fingerprints

from tests.cli.caches import BGE, NOW, content, documented, space, stock
from tests.cli.commands import MARK, asking, embcache, passages
from tests.programs import output, python, unable
from tests.stores.files import database, names
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EXPORTED = ["version", "entries", "inputs", "missing", "left_out"]
IMPORTED = ["version", "added", "replaced", "there", "refused"]
ELSEWHERE = {"EMBCACHE_DIR": "elsewhere/cache"}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where the other cache is."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def told(
    folder: Path, *args: object, code: int = 0, err: str = "", env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a command prints with `--json`."""
    run = embcache(folder, *args, "--json", env=env)
    assert (run.code, run.err) == (code, err)
    printed: dict[str, Any] = json.loads(run.out)
    return printed


def test_the_whole_cache(tmp_path: Path, there: Path) -> None:
    """All entries go into a private file without a text in it, and come into another cache as they were."""
    rows = stock(tmp_path, space(), passages(300)) | stock(tmp_path, space(epoch="autumn"), passages(5), dims=16)

    out = told(tmp_path, "export", "a.pack")

    assert list(out) == EXPORTED == documented("export")
    assert out == {"version": 1, "entries": 305, "inputs": None, "missing": None, "left_out": {}}
    assert stat.S_IMODE((tmp_path / "a.pack").stat().st_mode) == 0o600
    assert MARK.encode() not in (tmp_path / "a.pack").read_bytes()
    came = told(tmp_path, "import", "a.pack", env=ELSEWHERE)
    assert list(came) == IMPORTED == documented("import")
    assert came == {"version": 1, "added": 305, "replaced": 0, "there": 0, "refused": {}}
    assert content(there) == rows
    assert told(tmp_path, "import", "a.pack", env=ELSEWHERE) | {"there": 0} == came | {"added": 0}
    told(tmp_path, "export", "b.pack", env=ELSEWHERE)
    assert (tmp_path / "a.pack").read_bytes() == (tmp_path / "b.pack").read_bytes()
    assert told(tmp_path, "stats", env=ELSEWHERE)["billed_tokens"] == 0


def test_imported_entries_are_hits(tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else has bought is not bought again here, and its vectors are the same."""
    with Upstream() as server:
        for name, value in asking(server).items():
            monkeypatch.setenv(name, value)
        lines = "\n".join(passages(20)).encode()
        bought = embcache(tmp_path, "embed", "-", "-o", "-", stdin=lines)
        assert bought.code == 0
        assert embcache(tmp_path, "export", "a.pack").lines == ["embcache: 20 entries exported"]
        run = embcache(tmp_path, "import", "a.pack", env=ELSEWHERE)
        assert (run.code, run.out, run.err) == (0, b"20 entries added, 0 already there\n", "")
        sent = len(server.requests)
        again = embcache(tmp_path, "embed", "-", "-o", "-", stdin=lines, env=ELSEWHERE)
        assert (again.code, again.out) == (0, bought.out)
        assert len(server.requests) == sent
    assert names(there / "cache") >= {"cache.db"}


def test_of_some_spaces(tmp_path: Path) -> None:
    """Model, provider, server and epoch choose what goes out."""
    stock(tmp_path, space(), passages(1))
    stock(tmp_path, space("m"), passages(2))
    stock(tmp_path, space("m", epoch="autumn"), passages(3))
    stock(tmp_path, space("m", "local"), passages(4))
    stock(tmp_path, space("m", "127.0.0.1:80/v1"), passages(5))
    choices = (
        (["--model", BGE], 1),
        (["--model", "m"], 14),
        (["--epoch", "autumn"], 3),
        (["--provider", "local"], 4),
        (["--base-url", "http://127.0.0.1:80/v1", "--model", "m"], 5),
        (["--model", "none"], 0),
    )
    for number, (options, count) in enumerate(choices):
        assert told(tmp_path, "export", "a.pack", *options)["entries"] == count
        assert told(tmp_path, "import", "a.pack", env={"EMBCACHE_DIR": f"into-{number}"})["added"] == count


def test_of_some_inputs(tmp_path: Path, there: Path) -> None:
    """`--inputs` takes the entries of these texts alone, asked for as the options say, and counts what is missing."""
    stock(tmp_path, space(), passages(10))
    other = stock(tmp_path, space("m", epoch="autumn", encoding_format="float"), passages(10))
    texts = [*passages(3), *passages(2), *passages(4, 100)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    which = ["--inputs", "t.jsonl", "--field", "body"]
    out = told(tmp_path, "export", "a.pack", *which)
    assert (out["entries"], out["inputs"], out["missing"]) == (3, 7, 4)
    out = told(tmp_path, "export", "b.pack", *which, "--model", "m", "--epoch", "autumn", "--encoding-format", "float")
    assert out["entries"] == 3
    assert embcache(tmp_path, "export", "a.pack", *which).lines == ["embcache: 3 entries of 7 distinct inputs exported"]
    told(tmp_path, "import", "b.pack", env=ELSEWHERE)
    assert content(there).items() <= other.items()
    assert told(tmp_path, "export", "c.pack", *which, "--dimensions", "8")["entries"] == 0


def test_damaged_entries(tmp_path: Path) -> None:
    """What does not prove itself does not go out; it is counted, and `verify` is named."""
    made = stock(tmp_path, space(), passages(3))
    with database(tmp_path / "cache") as connection:
        connection.execute("UPDATE Cache SET value = zeroblob(60) WHERE key = ?", (next(iter(made)),))
    run = embcache(tmp_path, "export", "a.pack", "--json")
    assert (run.code, json.loads(run.out)["left_out"]) == (0, {"corrupt": 1})
    assert run.lines == ["embcache: 1 damaged entry left out; embcache verify tells more"]


def test_entries_of_nobody_knows_what(tmp_path: Path) -> None:
    """Entries whose space can no longer be read are counted, not dropped in silence; nor are they pruned."""
    made = stock(tmp_path, space(), passages(3), days=9)
    with database(tmp_path / "cache") as connection:
        connection.execute("UPDATE Cache SET value = zeroblob(60) WHERE substr(key, 1, 6) = CAST('space:' AS BLOB)")
    run = embcache(tmp_path, "export", "a.pack", "--json")
    assert (json.loads(run.out)["entries"], json.loads(run.out)["left_out"]) == (0, {"space": 3})
    pruned = told(tmp_path, "prune", "--older-than", "1d", "--yes")
    assert (pruned["entries"], pruned["damaged"]) == (0, 3)
    assert content(tmp_path) == made


def test_reads_only(tmp_path: Path) -> None:
    """Exporting leaves every byte of the cache as it was, and works where nothing can be written."""
    stock(tmp_path, space(), passages(5))
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    told(tmp_path, "export", "a.pack")
    after = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    # What SQLite needs to read beside a writer: a log without content, and its index.
    assert after.pop("cache.db-wal", b"") == b""
    after.pop("cache.db-shm", None)
    assert after == before


def test_no_cache(tmp_path: Path) -> None:
    """Of no cache there is an empty pack; it can be imported, and no cache is made of either."""
    assert told(tmp_path, "export", "a.pack")["entries"] == 0
    assert told(tmp_path, "import", "a.pack")["added"] == 0
    assert names(tmp_path) == {"a.pack"}


def test_a_conflict(tmp_path: Path, there: Path) -> None:
    """Entries of another length than the cache has are refused with exit code 1; those of other models come in."""
    stock(tmp_path, space(), passages(3))
    good = stock(tmp_path, space("m"), passages(2))
    mine = stock(there, space(), passages(1, 50), dims=16)
    told(tmp_path, "export", "a.pack")
    run = embcache(tmp_path, "import", "a.pack", env=ELSEWHERE)
    assert (run.code, run.err) == (1, "")
    assert run.out.decode().splitlines() == [
        "2 entries added, 0 already there",
        "3 entries refused: with vectors of another length than theirs here",
    ]
    assert content(there) == good | mine
    assert told(tmp_path, "import", "a.pack", code=1, env=ELSEWHERE)["refused"] == {"dimensions": 3}


def test_the_older_stays(tmp_path: Path, there: Path) -> None:
    """Of two entries for one text the one bought earlier is there afterwards."""
    stock(tmp_path, space(), passages(2), days=5)
    stock(tmp_path, space(), passages(1, 2), days=1)
    newer = stock(there, space(), passages(2), days=2)
    older = stock(there, space(), passages(1, 2), days=9)
    told(tmp_path, "export", "a.pack")
    came = told(tmp_path, "import", "a.pack", env=ELSEWHERE)
    assert (came["added"], came["replaced"], came["there"]) == (0, 2, 1)
    assert content(there) == {**{key: content(tmp_path)[key] for key in newer}, **older}


def test_a_pack_cut_short(tmp_path: Path, there: Path) -> None:
    """A pack that is cut short is exit code 1 and says so; what was whole before is in, and is not sent in vain."""
    rows = stock(tmp_path, space(), passages(2_000))
    told(tmp_path, "export", "a.pack")
    data = (tmp_path / "a.pack").read_bytes()
    (tmp_path / "b.pack").write_bytes(data[: len(data) * 2 // 3])
    run = embcache(tmp_path, "import", "b.pack", env=ELSEWHERE)
    assert (run.code, run.out) == (1, b"")
    assert "1,000 entries imported before it ended early" in run.lines[0]
    assert "cut short" in run.lines[1]
    assert len(content(there)) == 1_000
    assert told(tmp_path, "import", "a.pack", env=ELSEWHERE)["added"] == 1_000
    assert content(there) == rows


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["export"], 2),
        (["export", "a.zip"], 2),
        (["export", "nowhere/a.pack"], 1),
        (["export", "a.pack", "--dimensions", "8"], 2),
        (["export", "a.pack", "--inputs", "none.txt"], 2),
        (["export", "a.pack", "--provider", "local", "--base-url", "http://x"], 2),
        (["import"], 2),
        (["import", "none.pack"], 2),
        (["import", "folder"], 2),
        (["import", "text.txt"], 1),
    ],
)
def test_wrong_usage(tmp_path: Path, args: list[str], code: int) -> None:
    """What cannot be done is one line, and leaves neither a file nor a cache behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text(f"{MARK} no pack\n" * 10)
    run = embcache(tmp_path, *args)
    assert (run.code, run.out) == (code, b"")
    assert names(tmp_path) == {"folder", "text.txt"}


def test_a_full_disk(tmp_path: Path) -> None:
    """Where the disk takes no more, the command says so, and neither a part nor a cut pack is left."""
    stock(tmp_path, space(), passages(500), dims=256)
    # A limit on the size of files stands for a disk that is full: the same system call fails.
    run = embcache(tmp_path, "export", "a.pack", first="trap '' XFSZ; ulimit -f 100")
    assert run.code == 1
    assert len(run.lines) == 1
    assert "a.pack" in run.err
    assert names(tmp_path) == {"cache"}


# Parquet


def parquet(path: Path) -> Any:  # noqa: ANN401 - it has no types
    """A file of Parquet, opened by pyarrow itself."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        unable("pyarrow is not installed")
    return pq.ParquetFile(path)


def test_parquet(tmp_path: Path) -> None:
    """The table has a row an entry, with the vector as it is stored; what nobody told is null."""
    stock(tmp_path, space(), passages(5_000), days=1)
    stock(tmp_path, space(), [f"{MARK} of unknown cost"], tokens=None)
    assert told(tmp_path, "export", "a.parquet")["entries"] == 5_001
    assert stat.S_IMODE((tmp_path / "a.parquet").stat().st_mode) == 0o600
    file = parquet(tmp_path / "a.parquet")
    assert file.metadata.num_row_groups == 2
    table = file.read()
    assert [f"{field.name} {field.type}" for field in table.schema] == [
        "key string",
        "model string",
        "dims int32",
        "tokens int64",
        "created timestamp[ms, tz=UTC]",
        "vector fixed_size_list<element: float>[8]",
    ]
    rows = {bytes.fromhex(row["key"]): row for row in table.to_pylist()}
    right = content(tmp_path)
    assert rows.keys() == right.keys()
    for key, row in rows.items():
        assert struct.pack("<8f", *row["vector"]) == right[key][-32:]
        assert (row["model"], row["dims"]) == ("told/model", 8)
    (unknown,) = fingerprints(space(), "text", [f"{MARK} of unknown cost".encode()])[0]
    assert rows[unknown]["tokens"] is None
    assert int(rows[unknown]["created"].timestamp()) == NOW
    assert MARK.encode() not in (tmp_path / "a.parquet").read_bytes()


def test_parquet_of_several_lengths(tmp_path: Path) -> None:
    """Vectors of several lengths are no column of one type: the command says what to do, and leaves no file."""
    stock(tmp_path, space(), passages(3))
    stock(tmp_path, space("m"), passages(3), dims=16)
    run = embcache(tmp_path, "export", "a.parquet")
    assert (run.code, len(run.lines)) == (1, 1)
    assert "--model" in run.err
    assert names(tmp_path) == {"cache"}
    assert told(tmp_path, "export", "a.parquet", "--model", "m")["entries"] == 3
    assert told(tmp_path, "export", "b.parquet", "--model", "none")["entries"] == 0
    assert parquet(tmp_path / "b.parquet").metadata.num_rows == 0


def test_without_pyarrow(tmp_path: Path) -> None:
    """Where pyarrow is not installed, the command says how to install it; a pack needs none."""
    stock(tmp_path, space(), passages(3))
    code = """
        import os, sys
        os.chdir(sys.argv[1])
        sys.modules["pyarrow"] = None
        sys.argv = ["embcache", "export", sys.argv[2], "--cache-dir", "cache"]
        from embcache.cli import main
        try:
            main()
        except SystemExit as ended:
            sys.stderr.flush()
            print(ended.code)
    """
    told = python(code, tmp_path, "a.parquet", within=["sh", "-c", 'exec "$@" 2>&1', "sh"])
    assert output(told).splitlines() == [
        'embcache: a.parquet: .parquet needs pyarrow: pip install "embcache[parquet]"',
        "2",
    ]
    assert output(python(code, tmp_path, "a.pack", within=["sh", "-c", 'exec "$@" 2>&1', "sh"])).endswith("0")
