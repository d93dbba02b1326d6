"""`scripts/stress` in the small: with all guards nothing is lost, wrong or stuck; without one, its part finds it.

Without the second half nobody would know whether the parts can find anything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import tool

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("acknowledged", "lost", "wrong", "stuck")


def stress(*arguments: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    """Run what `scripts/stress` runs once everything is installed, with `tmp` as the folder for temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.stressing", "--seed", "4", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def table(printed: str) -> dict[str, dict[str, int]]:
    """Return the counts of each part."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    found = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    return {part: {name: int(row[name].replace(",", "")) for name in COUNTS} for part, row in found.items()}


@pytest.mark.parametrize(
    ("part", "count"), [("kills", 4), ("interrupts", 100), ("flips", 10), ("processes", 3), ("pairs", 2)]
)
def test_with_all_guards(part: str, count: int, tmp_path: Path) -> None:
    """Each part acknowledges something, loses nothing, and finds nothing wrong or stuck; and leaves nothing behind."""
    done = stress("--only", part, "--count", str(count), tmp=tmp_path)
    counts = table(done.stdout)[part]
    assert counts.pop("acknowledged") > 0
    assert counts == {"lost": 0, "wrong": 0, "stuck": 0}, done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_failing_writes(tmp_path: Path) -> None:
    """Where one of the first writes fails, and later ones, vectors are right and what was acknowledged is there."""
    tool("strace")
    done = stress("--only", "writes", "--count", "1", tmp=tmp_path)
    counts = table(done.stdout)["writes"]
    assert counts.pop("acknowledged") > 0
    assert counts == {"lost": 0, "wrong": 0, "stuck": 0}, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("guard", "part", "count", "fault"),
    [
        ("checksum", "flips", 10, "wrong"),
        ("identity", "pairs", 2, "wrong"),
        ("commit", "kills", 6, "lost"),
        ("writer-thread", "interrupts", 1500, "stuck"),  # ends with the first that it finds
    ],
    ids=["s01", "s02", "s07", "s08"],
)
def test_without_a_guard(guard: str, part: str, count: int, fault: str, tmp_path: Path) -> None:
    """Where one guard is taken away, the fault that it is for is found, and the exit code says so."""
    done = stress("--without", guard, "--count", str(count), tmp=tmp_path)
    assert table(done.stdout)[part][fault] > 0, done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [("--only", "nothing"), ("--count", "0"), ("--without", "nothing"), ("--without", "commit", "--only", "flips")],
)
def test_wrong_arguments(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A part or a guard that is not there, or a number that does nothing, is refused before anything is begun."""
    done = stress(*arguments, tmp=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
