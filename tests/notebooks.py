"""The notebook of the book, run from top to bottom in a kernel of its own."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient

from tests.programs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NOTEBOOK = ROOT / "docs/notebooks/rerun.ipynb"
SERVER = ROOT / "docs/notebooks/loopback.py"
SECONDS = 100
# What depends on the machine and the day.
PASSING = re.compile(r"\d+\.\d\d seconds|\d[\d.]* [kM]B")
# What a bar on the standard error of a slow machine looks like.
BAR = re.compile(r"\d+%\|")
TOKENS = re.compile(r"\d{2,3},\d{3}|\$[\d.]+")
Notebook = dict[str, Any]


def read() -> Notebook:
    """The notebook as it is kept."""
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call,no-any-return]


def run(folder: Path, *, further: str = "") -> Notebook:
    """Run the notebook in `folder`, with a cell of code more if there is one, and return it with what it showed."""
    folder.mkdir(exist_ok=True)
    shutil.copy(SERVER, folder)
    notebook = read()
    if further:
        notebook["cells"].append(nbformat.v4.new_code_cell(further))  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,  # type: ignore[arg-type]
        timeout=SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def shown(notebook: Notebook) -> list[list[str]]:
    """What stands below each cell of code, without what only passes: one text an output."""
    cells: list[list[str]] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            texts = [text_of(output) for output in cell["outputs"]]
            cells.append([PASSING.sub("…", text) for text in texts if not BAR.search(text)])
    return cells


def text_of(output: dict[str, Any]) -> str:
    """One output as text: a table as its HTML, else what was printed."""
    data = output.get("data", {})
    return str(output.get("text") or data.get("text/html") or data.get("text/plain") or output)


def without_tokens(cells: list[list[str]]) -> list[list[str]]:
    """The same without numbers of tokens, and what they cost."""
    return [[TOKENS.sub("…", text) for text in texts] for texts in cells]
