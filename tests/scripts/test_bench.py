"""The benchmark: that it runs, measures what it says, and leaves nothing behind. Its figures are nobody's test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.run import interleaved
from scripts.benchmarks.table import Line, as_table

ROOT = Path(__file__).resolve().parents[2]


def environment(tmp: Path) -> dict[str, str]:
    """Return variables for a process whose temporary files are to lie in `tmp`."""
    return {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp)}


def children(pid: int) -> list[int]:
    """Return the processes that this one has begun."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def bench(*arguments: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    """Run what `scripts/bench` runs once everything is installed, with `tmp` as the folder for temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks", *arguments],
        cwd=ROOT,
        env=environment(tmp),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_small_rows(tmp_path: Path) -> None:
    """Rows without peers are measured in the small: figures that can be true, and no file or folder left behind."""
    done = bench("--rows", "disk,start,stats", "--rounds", "1", "--size", "500", "--json", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    assert [row["row"] for row in rows] == ["disk", "start", "start", "stats"]
    disk, imported, stats, book = rows
    # 1024 float32 are 4,096 bytes; a new file's empty pages weigh much on 500 entries.
    assert 4_096 < disk["median"] < 7_000
    assert disk["at_most"] == 4_900
    assert disk["met"] is (disk["median"] <= 4_900)
    for row in (imported, stats):
        assert row["values"], row["note"]
        assert len(row["values"]) == 2
        assert 0.5 < row["median"] < 50
    assert 0.01 < book["median"] < 50, book["note"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see what was begun")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C or a polite kill in the middle ends the server and removes the folder."""
    command = [sys.executable, "-m", "scripts.benchmarks", "--rows", "slow", "--size", "20000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        begun = any("round 1" in line for line in process.stderr)  # by then the server runs
        assert begun
        servers = children(process.pid)
        assert servers
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert [pid for pid in servers if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.parametrize("arguments", [("--rows", "nothing"), ("--rounds", "0"), ("--size", "1")])
def test_wrong_arguments(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A row that is not there, or a number that measures nothing, is refused before anything is begun."""
    done = bench(*arguments, tmp=tmp_path)
    assert done.returncode == 2
    assert arguments[0].lstrip("-") in done.stderr.replace("there is no row", "rows")
    assert list(tmp_path.iterdir()) == []


def test_what_the_rows_need(tmp_path: Path) -> None:
    """`scripts/bench` installs what the chosen rows need and no more: rows about embcache alone need nothing."""
    assert bench("--needs", "--rows", "disk,start", tmp=tmp_path).stdout.split() == []
    assert bench("--needs", "--rows", "cold", tmp=tmp_path).stdout.split() == ["peers"]
    assert bench("--needs", tmp=tmp_path).stdout.split() == ["litellm", "lmdb", "peers", "redis"]
    assert "litellm" not in bench("--needs", "--quick", tmp=tmp_path).stdout


def test_sides_take_turns() -> None:
    """In every round each side is measured once, and each time another one goes first."""
    turns: list[str] = []

    def side(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    measured = interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 3, lambda _: None)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert measured == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


@pytest.mark.parametrize(
    ("line", "met"),
    [
        (Line("r", "w", values=[1.0, 1.4, 9.0], at_most=1.5), True),
        (Line("r", "w", values=[1.0, 1.6, 1.6], at_most=1.5), False),
        (Line("r", "w", values=[9.0, 50.0, 60.0], at_least=45), True),
        (Line("r", "w", values=[9.0, 40.0, 60.0], at_least=45), False),
        (Line("r", "w", values=[1.0]), None),
        (Line("r", "w", at_most=1.5, note="not installed"), None),
    ],
)
def test_a_goal_is_judged_by_the_median(line: Line, met: bool) -> None:
    """A goal is met if the median meets it, in either direction; without goal or figure there is no verdict."""
    assert line.met is met
    assert (
        line.cells()[-1]
        == {True: "met", False: "**not met**", None: "skipped: not installed" if line.note else ""}[met]
    )


def test_nothing_is_left_out_of_the_table() -> None:
    """The table shows every line, the skipped with the reason, and below it the figures and notes behind the ratios."""
    lines = [
        Line("cold", "embed()", "openai", [0.5, 0.61, 0.7], at_most=0.65, sides="embcache 100 ms, openai 200 ms"),
        Line("tier", "embed()", "dict", at_most=1.5, note="there is none yet"),
        Line("disk", "bytes", "files", [4742.0], "bytes", at_most=4900, note="of 10,000"),
    ]
    shown = as_table(lines).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown if line.startswith("|")]
    assert cells[2:] == [
        ["cold", "embed()", "openai", "at most 0.65", "0.61", "0.50 .. 0.70", "3", "met"],
        ["tier", "embed()", "dict", "at most 1.50", "", "", "", "skipped: there is none yet"],
        ["disk", "bytes", "files", "at most 4,900 bytes", "4,742 bytes", "", "1", "met"],
    ]
    assert shown[-2:] == ["- cold, embed(): embcache 100 ms, openai 200 ms", "- disk, bytes: of 10,000"]
