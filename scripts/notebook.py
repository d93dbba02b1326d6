"""The Python part of `scripts/notebook`: the notebook run twice, its outputs kept, and pictures of it."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

from tests import browser
from tests.notebooks import NOTEBOOK, run, text_of

PICTURES = Path(__file__).parents[1] / "docs/pictures"
SIZE = (1000, 2190)


def tidy(notebook: dict[str, Any]) -> None:
    """Take out what belongs to this machine's kernel."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "version": ".".join(map(str, sys.version_info[:2]))},
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {}


def seconds(notebook: dict[str, Any]) -> str:
    """What the notebook printed of its time."""
    told = " ".join(text_of(output) for cell in notebook["cells"] for output in cell.get("outputs", ()))
    found = re.search(r"\d+\.\d\d seconds", told)
    return found[0] if found else "no time told"


def main() -> None:
    """Run it twice, keep the second run, and make the pictures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "notebook"
        first = run(folder)
        second = run(folder)
        tidy(second)
        nbformat.write(nbformat.from_dict(second), NOTEBOOK)
        print(f"first run: {seconds(first)}; second run, in a new kernel: {seconds(second)}")
        page = Path(place) / "rerun.html"
        for scheme in browser.SCHEMES:
            html, _ = HTMLExporter(theme=scheme).from_notebook_node(second)
            page.write_text(html, encoding="utf-8")
            browser.picture(page, PICTURES / f"notebook-{scheme}.png", size=SIZE, scheme=scheme)


if __name__ == "__main__":
    main()
