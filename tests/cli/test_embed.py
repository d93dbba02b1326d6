"""`embcache embed`: the real command, in processes of its own, against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from tests.cli.commands import KEY, MARK, PLENTY, Run, Terminal, embcache, passages, started
from tests.upstream import Upstream, hang, proper, status, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.upstream import Exchange, Item

CHUNK = 8192
"""Texts that the command works on at a time."""


def expected(texts: Sequence[Item]) -> bytes:
    return b"".join(vector(text).tobytes() for text in texts)


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(text + "\n" for text in texts))
    return path


def saved(path: Path) -> bytes:
    """The bytes of the vectors in an .npy file."""
    array: npt.NDArray[np.float32] = np.load(path)
    assert array.dtype == np.dtype("<f4")
    assert array.ndim == 2
    return array.tobytes()


def counts(run: Run) -> dict[str, int]:
    """The figures of the last line: texts, hits, misses, duplicates, requests, tokens billed and saved."""
    assert run.code == 0, run.err
    number = r"([\d,]+)"
    line = re.fullmatch(
        rf"embcache: {number} texts?: {number} hits?, {number} miss(?:es)?, {number} duplicates?, {number} requests?; "
        rf"{number} tokens? billed \(.*\), {number} saved \(.*\)",
        run.lines[-1],
    )
    assert line, run.err
    names = ("texts", "hits", "misses", "duplicates", "requests", "billed", "saved")
    return dict(zip(names, (int(found.replace(",", "")) for found in line.groups()), strict=True))


# What comes in and what goes out


def test_txt_to_npy(folder: Path, server: Upstream) -> None:
    """Each line of a .txt is one text, sent as it stands; the rows of the .npy are its vectors, bit for bit."""
    texts = [f"{MARK} one", f"  {MARK} two ", f"{MARK}\u2028thr\x85ee\x0b\x1c", f"{MARK} fo\rur", f"{MARK} ﬁve 🙂"]
    (folder / "in.txt").write_bytes("\r\n".join(texts).encode())

    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")

    assert saved(folder / "out.npy") == expected(texts)
    assert server.sent_inputs == texts
    assert counts(run) == {
        "texts": 5,
        "hits": 0,
        "misses": 5,
        "duplicates": 0,
        "requests": 1,
        "billed": sum(map(tokens, texts)),
        "saved": 0,
    }
    assert len(run.lines) == 1
    assert run.out == b""


def test_files_in_order(folder: Path, server: Upstream) -> None:
    """Files of all kinds go into one output in the order given, and one request holds what is new in them."""
    one, two, three, four, five, six = passages(6)
    write(folder / "a.txt", [one, two])
    (folder / "b.jsonl").write_text(json.dumps({"n": 1, "text": three}) + "\n" + json.dumps({"text": one}))
    (folder / "c.CSV").write_bytes(f'id,text\r\n1,"{four}, and\r\n""more"""\r\n2,{five}\r\n'.encode())
    texts = [one, two, three, one, f'{four}, and\r\n"more"', five, six]

    run = embcache(folder, "embed", "a.txt", "b.jsonl", "c.CSV", "-", "-o", "out.npy", stdin=f"{six}\n".encode())

    assert saved(folder / "out.npy") == expected(texts)
    assert [request.inputs for request in server.requests] == [[one, two, three, texts[4], five, six]]
    assert (counts(run)["misses"], counts(run)["duplicates"]) == (6, 1)


def test_again(folder: Path, server: Upstream) -> None:
    """A second run sends nothing, makes the same file, and says what it saved."""
    texts = [*passages(30), *passages(3)]
    write(folder / "in.txt", texts)
    first = embcache(folder, "embed", "in.txt", "-o", "one.npy")
    server.forget()

    again = embcache(folder, "embed", "in.txt", "-o", "two.npy")

    assert server.connections == 0
    assert (folder / "one.npy").read_bytes() == (folder / "two.npy").read_bytes()
    assert counts(first)["saved"] == sum(map(tokens, texts[30:]))
    assert counts(again) | {"saved": 0} == {**dict.fromkeys(counts(again), 0), "texts": 33, "hits": 33}
    assert counts(again)["saved"] == sum(map(tokens, texts))


def test_warming(folder: Path, server: Upstream) -> None:
    """Without an output the cache is filled, so that other commands and other files have it for nothing."""
    write(folder / "in.txt", passages(20))
    assert counts(embcache(folder, "embed", "in.txt"))["misses"] == 20
    assert {path.name for path in folder.iterdir()} == {"in.txt", "cache"}

    write(folder / "other.txt", passages(5, start=10))
    assert counts(embcache(folder, "embed", "other.txt", "-o", "out.npy"))["hits"] == 5
    assert len(server.requests) == 1


@pytest.mark.parametrize("out", ["out.jsonl", "-"])
def test_jsonl(folder: Path, out: str) -> None:
    """JSON Lines, in a file or on standard output, are numbered objects whose numbers are the vectors' bit for bit."""
    texts = [*passages(150), *passages(2)]
    write(folder / "in.txt", texts)

    run = embcache(folder, "embed", "in.txt", "-o", out)

    lines = (run.out if out == "-" else (folder / out).read_bytes()).decode().splitlines()
    records = [json.loads(line) for line in lines]
    assert [list(record) for record in records] == [["index", "embedding"]] * len(texts)
    assert [record["index"] for record in records] == list(range(len(texts)))
    assert np.array([record["embedding"] for record in records], dtype="<f4").tobytes() == expected(texts)
    assert counts(run)["texts"] == len(texts)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_field(folder: Path, server: Upstream, kind: str) -> None:
    """`--field` names what holds the text."""
    text = passages(1)[0]
    lines = {"jsonl": json.dumps({"text": "no", "body": text}), "csv": f"text,body\nno,{text}\n"}
    (folder / f"in.{kind}").write_text(lines[kind])
    assert embcache(folder, "embed", f"in.{kind}", "--field", "body").code == 0
    assert server.sent_inputs == [text]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_byte_order_mark(folder: Path, server: Upstream, kind: str) -> None:
    """The mark that some editors put at the start of a file is no part of a text or of a column's name."""
    text = passages(1)[0]
    lines = {"txt": text, "jsonl": json.dumps({"text": text}), "csv": f"text\n{text}\n"}
    (folder / f"in.{kind}").write_bytes(lines[kind].encode("utf-8-sig"))
    assert embcache(folder, "embed", f"in.{kind}").code == 0
    assert server.sent_inputs == [text]


def test_blank_lines(folder: Path, server: Upstream) -> None:
    """Blank lines are skipped, and how many there were is told."""
    one, two, three = passages(3)
    (folder / "a.txt").write_text(f"\n{one}\n \t\n\n{two}\n\n")
    (folder / "b.jsonl").write_text(f'\n{{"text": "{three}"}}\n\r\n')
    (folder / "c.csv").write_text(f"text\n\n{one}\n")

    run = embcache(folder, "embed", "a.txt", "b.jsonl", "c.csv", "-o", "out.npy")

    assert server.sent_inputs == [one, two, three]
    assert saved(folder / "out.npy") == expected([one, two, three, one])
    assert run.lines[0] == "embcache: 7 blank lines skipped"


def test_nothing_in(folder: Path, server: Upstream) -> None:
    """No text gives an array without rows, at no cost; of the length that the cache knows, if it knows one."""
    (folder / "in.txt").write_text("")
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    assert counts(run)["texts"] == 0
    assert np.load(folder / "out.npy").shape == (0, 0)
    assert server.connections == 0

    embcache(folder, "embed", "-", stdin=passages(1)[0].encode())
    assert embcache(folder, "embed", "in.txt", "-o", "out.npy").code == 0
    assert np.load(folder / "out.npy").shape == (0, server.dims)


def test_long_cell(folder: Path, server: Upstream) -> None:
    """A text in a .csv may be longer than Python's own limit for a cell."""
    text = MARK * 40_000
    (folder / "in.csv").write_text(f"text\n{text}\n")
    assert embcache(folder, "embed", "in.csv").code == 0
    assert server.sent_inputs == [text]


def test_pipe_as_file(folder: Path, server: Upstream) -> None:
    """A named pipe is read once, as it comes."""
    os.mkfifo(folder / "in.txt")
    writer = threading.Thread(target=write, args=(folder / "in.txt", passages(3)))
    writer.start()
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    writer.join()
    assert saved(folder / "out.npy") == expected(passages(3))
    assert counts(run)["misses"] == 3


def test_streaming(folder: Path) -> None:
    """Vectors go out while texts still come in, so that no more than a part of either is held."""
    texts = passages(CHUNK + 1)
    with started(folder, "embed", "-", "-o", "-") as run:
        assert run.process.stdin is not None
        run.process.stdin.write("".join(text + "\n" for text in texts[:-1]).encode())
        run.process.stdin.flush()
        with watchdog(run.process.kill):
            first = [json.loads(run.out.readline()) for _ in texts[:-1]]
        assert np.array([record["embedding"] for record in first], dtype="<f4").tobytes() == expected(texts[:-1])
        ended = run.end(texts[-1].encode())
    assert json.loads(ended.out) == {"index": CHUNK, "embedding": vector(texts[-1]).tolist()}
    assert counts(ended)["texts"] == CHUNK + 1


def test_more_than_a_chunk(folder: Path, server: Upstream) -> None:
    """What is worked on in parts comes out whole and in order, and a text that occurs in two parts is sent once."""
    texts = [*passages(CHUNK), *passages(50), *passages(5, start=CHUNK)]
    write(folder / "in.txt", texts)
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    assert saved(folder / "out.npy") == expected(texts)
    assert sorted(map(str, server.sent_inputs)) == sorted(passages(CHUNK + 5))
    assert (counts(run)["hits"], counts(run)["misses"]) == (50, CHUNK + 5)


class watchdog:  # noqa: N801 - used like a keyword
    """Do something if the block takes longer than anything here does."""

    def __init__(self, action: object) -> None:
        self._timer = threading.Timer(PLENTY, action)  # type: ignore[arg-type]

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


# The file that is written


def test_out_is_replaced_whole(folder: Path, server: Upstream) -> None:
    """An output that is there stays as it was until the new one is complete, and for good if it never is."""
    write(folder / "in.txt", passages(3))
    (folder / "out.npy").write_bytes(b"old")
    server.play(status(401))
    assert embcache(folder, "embed", "in.txt", "-o", "out.npy").code == 1
    assert (folder / "out.npy").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} <= {"in.txt", "out.npy", "cache"}

    with (folder / "out.npy").open("rb") as reader:
        assert embcache(folder, "embed", "in.txt", "-o", "out.npy").code == 0
        assert reader.read() == b"old"  # who has it open goes on reading the old one
    assert saved(folder / "out.npy") == expected(passages(3))


def test_out_through_a_link(folder: Path) -> None:
    """An output that is a link is written where it points to, with the rights that a new file gets."""
    (folder / "there").mkdir()
    (folder / "out.npy").symlink_to("there/real.npy")
    write(folder / "in.txt", passages(1))
    assert embcache(folder, "embed", "in.txt", "-o", "out.npy", first="umask 027").code == 0
    assert (folder / "out.npy").is_symlink()
    assert saved(folder / "there/real.npy") == expected(passages(1))
    assert stat.S_IMODE((folder / "there/real.npy").stat().st_mode) == 0o640


def test_disk_full(folder: Path, server: Upstream) -> None:
    """Where the output does not fit, one line says so; what was there stays, and nothing half-written is left."""
    write(folder / "in.txt", passages(CHUNK))
    assert embcache(folder, "embed", "in.txt").code == 0
    server.forget()
    (folder / "out.npy").write_bytes(b"old")

    # In blocks of 512 or 1024 bytes. The cache, too, may not be able to write its accounts then, which must not matter.
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy", first="ulimit -f 200")

    assert run.code == 1
    assert run.lines[-1] == "embcache: out.npy: File too large"
    assert (folder / "out.npy").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == {"in.txt", "out.npy", "cache"}
    assert server.connections == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_c02_standard_output_full(folder: Path) -> None:
    """A standard output that cannot be written is one line and exit code 1."""
    write(folder / "in.txt", passages(2))
    with Path("/dev/full").open("wb") as full, started(folder, "embed", "in.txt", "-o", "-", stdout=full) as run:
        ended = run.end()
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.err.startswith("embcache: standard output: No space left on device; 0 of 2 texts done, 2 new vectors")


def test_c02_a_reader_that_leaves(folder: Path, server: Upstream) -> None:
    """A reader that leaves, as `head` does, ends the command without a word; what was paid for is kept."""
    texts = passages(2000)
    write(folder / "in.txt", texts)
    with started(folder, "embed", "in.txt", "-o", "-") as run:
        assert json.loads(run.out.readline())["index"] == 0
        run.out.close()
        _, err = run.process.communicate(timeout=PLENTY)
    assert (run.process.returncode, err) == (1, b"")

    server.forget()
    assert counts(embcache(folder, "embed", "in.txt"))["hits"] == 2000
    assert server.connections == 0


# What is wrong with the files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"text": "CANARY"}\n{"text": "CANARY\n', "line 2: not JSON"),
        ("in.csv", b'id,text\n1,"CANARY\nCANARY"\n2,\n', "line 4: the text is empty"),
    ],
)
def test_faulty_line(folder: Path, server: Upstream, name: str, content: bytes, message: str) -> None:
    """A fault in a file is told by file and line, never by its text, and before anything is sent or stored."""
    write(folder / "good.txt", passages(3))
    (folder / name).write_bytes(content)

    run = embcache(folder, "embed", "good.txt", name, "-o", "out.npy")

    assert run.code == 1
    assert len(run.lines) == 1
    assert run.err.startswith(f"embcache: {name} {message}")
    assert server.connections == 0
    assert {path.name for path in folder.iterdir()} == {"good.txt", name}


def test_faulty_line_far_down(folder: Path, server: Upstream) -> None:
    """A fault is told before anything is sent, however far down it is."""
    (folder / "in.txt").write_bytes("".join(text + "\n" for text in passages(CHUNK + 5)).encode() + b"\xff\n")
    run = embcache(folder, "embed", "in.txt")
    assert (run.code, run.err) == (1, f"embcache: in.txt line {CHUNK + 6}: not UTF-8\n")
    assert server.connections == 0


def test_faulty_line_of_a_pipe(folder: Path, server: Upstream) -> None:
    """What cannot be read twice is not checked first: what was bought before the fault is kept, and that is told."""
    lines = "".join(text + "\n" for text in passages(CHUNK + 5)).encode() + b"\xff\n"
    run = embcache(folder, "embed", "-", "-o", "out.npy", stdin=lines)
    billed = sum(map(tokens, passages(CHUNK)))
    assert run.code == 1
    assert len(run.lines) == 1
    assert run.err.startswith(f"embcache: standard input line {CHUNK + 6}: not UTF-8; {CHUNK:,} texts done, ")
    assert f" {CHUNK:,} new vectors kept, {billed:,} tokens billed (price unknown); the same command" in run.err
    assert {path.name for path in folder.iterdir()} == {"cache"}
    assert sorted(map(str, server.sent_inputs)) == sorted(passages(CHUNK))


USAGE = {
    "no file": (["embed"], "Missing argument"),
    "file not there": (["embed", "none.txt"], "none.txt: No such file"),
    "a folder": (["embed", "folder.txt"], "folder.txt: Is a directory"),
    "unknown kind": (["embed", "in.pdf"], "in.pdf: give .txt, .jsonl, .csv or .parquet files"),
    "standard input twice": (["embed", "-", "-"], "standard input can be read once only"),
    "no such column": (["embed", "in.csv", "--field", "nope"], "in.csv: has no column 'nope'"),
    "unknown output": (["embed", "in.txt", "-o", "out.txt"], "out.txt: give a file that ends in .npy, .jsonl or"),
    "output without folder": (["embed", "in.txt", "-o", "no/out.npy"], "no/out.npy: its folder is not there"),
    "output is a folder": (["embed", "in.txt", "-o", "folder.npy"], "folder.npy: is a folder"),
    "output is an input": (["embed", "in.jsonl", "-o", "./in.jsonl"], "./in.jsonl: is one of the inputs"),
    "unknown option": (["embed", "in.txt", "--nope"], "No such option"),
    "unknown provider": (["embed", "in.txt", "--provider", "nope"], "--provider"),
    "bad URL": (["embed", "in.txt", "--base-url", "nope"], "base_url: give an http or https URL"),
    "local with a URL": (["embed", "in.txt", "--provider", "local", "--base-url", "http://x/v1"], "has no server"),
    "empty model": (["embed", "in.txt", "--model", ""], "model: give "),
    "unknown command": (["nope"], "No such command"),
}


@pytest.mark.parametrize("mistake", USAGE)
def test_wrong_usage(folder: Path, server: Upstream, mistake: str) -> None:
    """A mistake in the command is exit code 2 and a line that says what it is; nothing was sent or written."""
    arguments, message = USAGE[mistake]
    for name in ("folder.txt", "folder.npy"):
        (folder / name).mkdir()
    write(folder / "in.txt", passages(1))
    write(folder / "in.pdf", passages(1))
    (folder / "in.jsonl").write_text('{"text": "CANARY"}\n')
    (folder / "in.csv").write_text("text\nCANARY\n")
    before = sorted((path.name, path.stat().st_size) for path in folder.iterdir())

    run = embcache(folder, *arguments)

    assert run.code == 2
    assert message in run.lines[-1]
    assert server.connections == 0
    assert sorted((path.name, path.stat().st_size) for path in folder.iterdir()) == before


def test_no_key(folder: Path) -> None:
    """Without a key for Novita nothing is sent, and one line names both ways out."""
    write(folder / "in.txt", passages(1))
    run = embcache(folder, "embed", "in.txt", env={"NOVITA_API_KEY": None, "EMBCACHE_BASE_URL": None})
    assert run.code == 2
    assert len(run.lines) == 1
    assert "NOVITA_API_KEY" in run.err
    assert "EMBCACHE_PROVIDER=local" in run.err


# What goes wrong with the provider


def test_failing_provider(folder: Path, server: Upstream) -> None:
    """A provider that fails is exit code 1 and one line, which says how far it came; again pays only for the rest."""
    texts = passages(CHUNK + 100)
    write(folder / "in.txt", texts)
    server.echo_text_in_error = True
    server.play(*[proper()] * 4, status(401))

    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")

    assert run.code == 1
    assert len(run.lines) == 1
    assert "the provider answered 401" in run.err
    assert f"; {CHUNK:,} of {len(texts):,} texts done, {CHUNK:,} new vectors kept, " in run.err
    assert not (folder / "out.npy").exists()
    server.forget()
    assert counts(embcache(folder, "embed", "in.txt", "-o", "out.npy"))["misses"] == 100
    assert server.sent_inputs == texts[CHUNK:]
    assert saved(folder / "out.npy") == expected(texts)


def test_rejected_texts(folder: Path, server: Upstream) -> None:
    """Texts that the server refuses are named by file and line; their neighbours are kept."""
    texts = passages(60)
    write(folder / "a.txt", texts[:20])
    (folder / "b.txt").write_text("\n" + "\n".join(texts[20:]) + "\n")
    server.poison = {texts[4], texts[33]}
    server.echo_text_in_error = True

    run = embcache(folder, "embed", "a.txt", "b.txt")

    assert run.code == 1
    assert len(run.lines) == 1
    assert run.err.startswith("embcache: a.txt line 5, b.txt line 15: the provider answered 400")
    assert f"; 0 of 60 texts done, 58 new vectors kept, {server.billed_tokens:,} tokens billed" in run.err
    server.forget()
    write(folder / "good.txt", [text for text in texts if text not in server.poison])
    assert counts(embcache(folder, "embed", "good.txt"))["hits"] == 58
    assert server.connections == 0


def test_changed_model(folder: Path, server: Upstream) -> None:
    """What goes wrong without failing is one line that says it is a warning, and exit code 0."""
    server.model_name = "another"
    write(folder / "in.txt", passages(2))
    run = embcache(folder, "embed", "in.txt", "--model", "asked")
    assert counts(run)["misses"] == 2
    assert len(run.lines) == 2
    assert re.match(r"embcache: warning: .*'asked'.*'another'", run.lines[0])


# What goes wrong with the cache


def test_unreadable_cache(folder: Path, server: Upstream) -> None:
    """A cache that cannot be read is exit code 3 and one line, before anything is bought in vain."""
    write(folder / "in.txt", passages(2))
    (folder / "cache").mkdir()
    (folder / "cache/cache.db").write_bytes(b"This is no database. " * 100)
    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    assert run.code == 3
    assert len(run.lines) == 1
    assert "cache.db" in run.err
    assert server.connections == 0
    assert not (folder / "out.npy").exists()


def test_unwritable_cache(folder: Path) -> None:
    """A cache that cannot be written costs no output, only a warning; to fill it is exit code 3."""
    write(folder / "in.txt", passages(2))
    (folder / "cache").write_text("a file where the folder should be")

    run = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    assert run.code == 0
    assert saved(folder / "out.npy") == expected(passages(2))
    assert run.lines[0].startswith("embcache: warning: ")
    assert "2 vectors could not be read from the cache or kept in it" in run.lines[-1]

    run = embcache(folder, "embed", "in.txt")
    assert run.code == 3
    assert run.lines[-1].startswith("embcache: the cache takes no vectors")
    assert len(run.lines) == 2


def test_cache_is_locked_meanwhile(folder: Path, server: Upstream) -> None:
    """Where the cache could not keep some of what it was to be filled with, that is told, and exit code 3."""
    server.cap = 4
    write(folder / "in.txt", passages(12))
    lock = threading.Lock()
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as nobody:
        holder = [nobody]

        def step(exchange: Exchange) -> None:
            with lock:
                if exchange.server.billed_tokens and holder == [nobody]:
                    cache = sqlite3.connect(folder / "cache/cache.db", isolation_level=None, check_same_thread=False)
                    entries = "SELECT count(*) FROM Cache WHERE tag IS NOT NULL"
                    while not cache.execute(entries).fetchone()[0]:
                        exchange.pause(0.01)
                    cache.execute("BEGIN IMMEDIATE")
                    holder[:] = [cache]
            exchange.send(exchange.decide())

        server.always = step
        run = embcache(folder, "embed", "in.txt")
        holder[0].close()
    assert run.code == 3
    assert re.search(r"; \d vectors could not be read from the cache or kept in it$", run.lines[-1])
    assert all(line.startswith("embcache: warning: ") for line in run.lines[:-1])


# Being stopped


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_c01_stopped(folder: Path, server: Upstream, number: int, code: int, word: str) -> None:
    """A run that is stopped keeps all that was paid for and says how far it came; again pays only for the rest."""
    texts = passages(CHUNK + 100)
    write(folder / "in.txt", texts)
    server.delay = 1.0
    with started(folder, "embed", "in.txt", "-o", "out.npy") as run:
        assert server.wait_for(4, PLENTY)
        run.process.send_signal(number)
        ended = run.end()

    billed = sum(map(tokens, texts[:CHUNK]))
    assert ended.code == code
    assert ended.lines[0].startswith(f"embcache: {word}; waiting for requests under way")
    assert len(ended.lines) == 2
    assert ended.lines[1].startswith(f"embcache: {word}: 0 of {len(texts):,} texts done, {CHUNK:,} new vectors kept, ")
    assert f" {billed:,} tokens billed (price unknown); the same command again pays only for the rest" in ended.err
    assert {path.name for path in folder.iterdir()} == {"in.txt", "cache"}
    assert sorted(map(str, server.accepted_inputs)) == sorted(texts[:CHUNK])

    server.forget()
    server.delay = 0.0
    again = embcache(folder, "embed", "in.txt", "-o", "out.npy")
    assert server.sent_inputs == texts[CHUNK:]
    assert counts(again)["misses"] == 100
    assert saved(folder / "out.npy") == expected(texts)


def test_stopped_sends_no_more(folder: Path, server: Upstream) -> None:
    """A run that is stopped ends what is under way and sends nothing more, however much is waiting."""
    server.cap = 8
    server.delay = 0.2
    texts = passages(800)
    write(folder / "in.txt", texts)
    with started(folder, "embed", "in.txt") as run:
        assert server.wait_for(20, PLENTY)
        sent = len(server.requests)
        run.process.send_signal(signal.SIGINT)
        ended = run.end()
    assert ended.code == 130
    assert len(server.requests) <= sent + 8  # four under way, and four that may have gone out meanwhile


def test_stopped_twice(folder: Path, server: Upstream) -> None:
    """A second Ctrl-C waits for nothing."""
    server.always = hang(10 * PLENTY)
    write(folder / "in.txt", passages(3))
    with started(folder, "embed", "in.txt") as run:
        assert server.wait_for(1, PLENTY)
        run.process.send_signal(signal.SIGINT)
        with watchdog(run.process.kill):
            assert "again: leave them" in run.told()
            run.process.send_signal(signal.SIGINT)
            ended = run.end()
    assert ended.code == 130
    assert ended.err.startswith("embcache: interrupted: 0 of 3 texts done, 0 new vectors kept")


def test_stopped_while_reading(folder: Path) -> None:
    """A run that waits for standard input can be stopped, and has nothing to wait for."""
    with started(folder, "embed", "-", "-o", "-") as run:
        assert run.process.stdin is not None
        # A part of full size is worked on at once; then it waits for more.
        run.process.stdin.write("".join(text + "\n" for text in passages(CHUNK + 1)).encode())
        run.process.stdin.flush()
        with watchdog(run.process.kill):
            assert all(run.out.readline() for _ in range(CHUNK))
        run.process.send_signal(signal.SIGINT)
        ended = run.end()
    assert ended.code == 130
    # The last vectors may have been seen a moment before they were counted.
    assert re.match(rf"embcache: interrupted: (0|{CHUNK:,}) texts done, ", ended.lines[-1])


def test_ignored_interrupt(folder: Path, server: Upstream) -> None:
    """A run whose starter had it ignore Ctrl-C, as a shell does with `&`, goes on."""
    server.delay = 0.5
    write(folder / "in.txt", passages(3))
    with started(folder, "embed", "in.txt", first="trap '' INT") as run:
        assert server.wait_for(1, PLENTY)
        run.process.send_signal(signal.SIGINT)
        assert counts(run.end())["misses"] == 3


# Where and with whom


def test_cache_dir_and_base_url(folder: Path, server: Upstream) -> None:
    """`--cache-dir` and `--base-url` win over the environment, and `--model` is asked for."""
    write(folder / "in.txt", passages(2))
    wrong = {"EMBCACHE_DIR": str(folder / "wrong"), "EMBCACHE_BASE_URL": "http://127.0.0.1:9/v1"}
    options = ["--cache-dir", "right", "--base-url", server.base_url, "--model", "some/model"]
    assert embcache(folder, "embed", "in.txt", *options, env=wrong).code == 0
    assert {path.name for path in folder.iterdir()} == {"in.txt", "right"}
    assert [request.body["model"] for request in server.requests] == ["some/model"]


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new home nothing has to be there: the cache is made where the platform wants it."""
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    write(folder / "in.txt", passages(2))
    assert embcache(folder, "embed", "in.txt", env={"EMBCACHE_DIR": None}).code == 0
    if sys.platform == "linux":
        assert (home / ".cache/embcache/cache.db").exists()
    assert list(home.rglob("cache.db"))
    assert not (folder / "cache").exists()


def test_local_model(folder: Path, server: Upstream) -> None:
    """`--provider local` needs no server and no key, and costs nothing."""
    pytest.importorskip("wordllama")
    write(folder / "in.txt", [f"{MARK} a cat on a mat", f"{MARK} a dog in the fog"])
    run = embcache(folder, "embed", "in.txt", "--provider", "local", "-o", "out.npy", env={"NOVITA_API_KEY": None})
    assert counts(run)["misses"] == 2
    assert "tokens billed ($0.00)" in run.err
    assert np.load(folder / "out.npy").shape == (2, 256)
    assert server.connections == 0


def test_progress(folder: Path, server: Upstream) -> None:
    """On a terminal a bar shows how far it is once it takes more than two seconds; the last line is the same."""
    server.delay = 0.35
    server.cap = 2  # so that there are about ten requests one after the other
    write(folder / "in.txt", passages(24))
    with Terminal() as screen, started(folder, "embed", "in.txt", stdout=screen.end, stderr=screen.end) as run:
        assert run.process.wait(PLENTY) == 0
        shown = screen.shown()
    assert re.search(r"\d+%\|.*\| ([1-9]|1\d|2[0-3])/24 ", shown)
    assert shown.splitlines()[-1].startswith("embcache: 24 texts: 0 hits, 24 misses")
    assert MARK not in shown


def test_key_is_never_shown(folder: Path, server: Upstream) -> None:
    """A server that quotes the key gets it into no message."""
    server.require_key = "sk-another"
    server.echo_text_in_error = True
    write(folder / "in.txt", passages(2))
    run = embcache(folder, "embed", "in.txt")
    assert run.code == 1
    assert "401" in run.err
    assert KEY not in run.err
