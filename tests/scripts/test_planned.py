"""`scripts/planned`: a plan for real texts beside what a real tokenizer had them billed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.programs import ROOT, unable

PAGE = (ROOT / "docs/plan.md").read_text()
CASES = 10


def table(text: str) -> list[list[str]]:
    """The cells below the headings, row by row."""
    lines = text[text.index("| planned ") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def check(rows: list[list[str]]) -> None:
    """Whatever was planned is what came: misses and requests exactly, tokens within the range."""
    assert len(rows) == CASES
    for planned, before, _, misses, requests, tokens, billed, off, in_range in rows:
        for figures in (misses, requests):
            expected, came = figures.split(" / ")
            assert expected == came
        assert in_range == "yes"
        if before == "all of them":
            assert (misses, tokens, billed, off) == ("0 / 0", "0", "0", "-")
        else:
            low, high = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+)", tokens)[1:])
            assert 0 < low <= int(billed.replace(",", "")) <= high, planned


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the tokenizer comes with the local model, see pyproject.toml")
def test_small() -> None:
    """With some texts of each kind it plans what then happens."""
    if not (ROOT / ".venv/.installed-test").exists():
        unable("scripts/test has not made .venv here")
    command = [str(ROOT / "scripts/planned"), "120"]
    done = subprocess.run(
        command, env={**os.environ, "CI": ""}, capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    check(table(done.stdout))


def test_the_page() -> None:
    """What `docs/plan.md` shows is the whole of it, and says the same."""
    rows = table(PAGE)
    check(rows)
    assert all(int(row[2].replace(",", "")) > 3000 for row in rows)
