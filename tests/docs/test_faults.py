"""The page of faults: every row is on it, every test it names is there, and every test of a row is named."""

from __future__ import annotations

import ast
import re

import pytest

from tests.programs import ROOT

PAGE = (ROOT / "docs" / "faults.md").read_text()
SECTIONS = {
    "Store": [f"S{number:02}" for number in range(1, 28)],
    "Upstream": [f"U{number:02}" for number in range(1, 28)],
    "Process": [f"C{number:02}" for number in range(1, 8)],
}
HEAD = ["| row | fault | promise | test |", "| --- | --- | --- | --- |"]
TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")
ROWS_OF_A_TEST = re.compile(r"test((?:_[a-z]\d\d)+)_")
"""`test_s04_…` is a test of S04, `test_s04_u11_…` of S04 and U11."""


def table(section: str) -> list[list[str]]:
    """The cells of a section's table: row, fault, promise, tests."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[:2] == HEAD
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def listed() -> set[tuple[str, str]]:
    """(row, test) as the page has them."""
    return {(cells[0], test) for section in SECTIONS for cells in table(section) for test in TEST.findall(cells[-1])}


def written() -> set[tuple[str, str]]:
    """(row, test) as the names of the tests have them. The files are read and not run."""
    found: set[tuple[str, str]] = set()
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (rows := ROWS_OF_A_TEST.match(node.name)):
                test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                found.update((row.upper(), test) for row in rows[1].split("_") if row)
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_is_listed(section: str) -> None:
    """A section has all its rows, each once and in order, and each says something in every cell."""
    rows = table(section)
    assert [cells[0] for cells in rows] == SECTIONS[section]
    assert [cells[0] for cells in rows if len(cells) != len(HEAD[0].split(" | ")) or not all(cells)] == []


def test_every_test_of_a_row_is_listed_and_every_listed_test_is_there() -> None:
    """Page and tests name each other: whatever test carries the number of a row stands in that row, and no other."""
    named, there = listed(), written()
    assert sorted(named - there) == [], "listed, but no such test carries the number of the row"
    assert sorted(there - named) == [], "a test carries the number of a row that does not list it"


def test_every_row_has_a_test() -> None:
    """No row stands there as a promise alone, and what stands in a test's cell is tests."""
    for section in SECTIONS:
        for cells in table(section):
            assert TEST.sub("", cells[-1]).strip(" ,") == "", cells[0]
            assert TEST.search(cells[-1]), cells[0]
