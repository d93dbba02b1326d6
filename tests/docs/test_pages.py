"""The book: what its pages show works as it stands, and prints what they say; every page is in the book."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, TypeAlias

import pytest

import embcache

from tests.programs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.follow import Block
    from tests.upstream import Upstream

Nav: TypeAlias = "str | list[Nav] | dict[str, Nav]"

DOCS = ROOT / "docs"
# A marker before a block says what becomes of it: `file: NAME` is written, `prints` is what the block before prints.
BLOCK = re.compile(r"^(?:<!-- (\w+)(?:: (\S+))? -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = {"python", "sh"}
# `vectors = …  # float32 ndarray (3, 1024)`
PROMISED = re.compile(r"^ *(\w+) = .*# float32 ndarray \(([\d, ]+)\)", re.MULTILINE)
SENT = {
    "index.md": 2,
    "plan.md": 0,
    "recipes/ci.md": 1,
    "recipes/langchain.md": 1,
    "recipes/local-model.md": 1,
    "recipes/pandas.md": 1,
    "recipes/rag.md": 0,
    "recipes/team.md": None,
}
"""The requests that each page with something to run sends; None where it depends on who was first."""


def blocks(page: str) -> list[Block]:
    """What a page has its reader do."""
    found: list[Block] = []
    for marker, argument, language, text in BLOCK.findall((DOCS / page).read_text()):
        if marker:
            found.append((marker, argument, text))
        elif language in RUN:
            promises = PROMISED.findall(text) if language == "python" else []
            proofs = [
                f"assert ({name}.dtype, {name}.shape) == ('float32', ({shape})), ({name}.dtype, {name}.shape)\n"
                for name, shape in promises
            ]
            found.append((language, argument, text + "".join(proofs)))
    return found


def pages() -> list[str]:
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def in_book(nav: Nav) -> list[str]:
    """The pages that a navigation leads to."""
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [page for part in below for page in in_book(part)]


def test_every_page_with_something_to_run_is_run() -> None:
    """The list of pages that are run is that of the pages that have something to run."""
    assert [page for page in pages() if blocks(page)] == list(SENT)


@pytest.mark.parametrize("page", SENT)
def test_page(page: str, tmp_path: Path, user: dict[str, str], server: Upstream) -> None:
    """Whoever does what the page says, from top to bottom, gets what the page says, and sends no more than that."""
    todo = blocks(page)
    if any('provider="local"' in text for _, _, text in todo):
        pytest.importorskip("wordllama")
    arguments = [sys.executable, "-W", "error", "-m", "tests.docs.follow"]
    given = json.dumps(todo)
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run(
        arguments, cwd=folder, env=user, input=given, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if SENT[page] is not None:
        assert len(server.requests) == SENT[page]
    texts = [text for request in server.requests for text in request.inputs]
    assert len(texts) == len({str(text) for text in texts}), "a text was sent twice"


def test_every_page_is_in_the_book() -> None:
    """The navigation leads to every page, and to each once."""
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(in_book(nav)) == pages()


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    """Whatever can be imported from `embcache` has its docstring in the book."""
    shown = set(re.findall(r"^::: embcache\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert set(embcache.__all__) - shown == {"__version__"}
