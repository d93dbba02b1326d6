"""What `scripts/docs` looks for in the built book is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts.docs import faults

if TYPE_CHECKING:
    from pathlib import Path

SOUND = '<h1 id="top">A page</h1><a href="other.html#there">x</a><a href="https://elsewhere.example/">y</a>'
OTHER = '<h1 id="there">Another</h1><img src="a.png"><a href="../index.html">back</a><a href="#there">z</a>'


def make(site: Path, page: str) -> None:
    """A site of two pages, one of them sound."""
    (site / "below").mkdir(parents=True)
    (site / "index.html").write_text(page.replace("other.html", "below/other.html"))
    (site / "below/other.html").write_text(OTHER)
    (site / "below/a.png").write_bytes(b"a picture")


def test_a_sound_site(tmp_path: Path) -> None:
    """A site whose links lead somewhere, and which only links to other hosts, is sound."""
    make(tmp_path / "site", SOUND)
    assert faults(tmp_path / "site") == []


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ('<a href="gone.html">x</a>', "leads nowhere"),
        ('<img src="gone.png">', "leads nowhere"),
        ('<a href="other.html#gone">x</a>', "names nothing"),
        ('<a href="../outside.html">x</a>', "leads nowhere"),
        ('<img src="https://elsewhere.example/a.png">', "loads"),
        ('<script src="//elsewhere.example/a.js"></script>', "loads"),
        ('<link rel="stylesheet" href="https://elsewhere.example/a.css">', "loads"),
        ('<pre class="mermaid">a diagram</pre>', "loads"),
        ('<p style="background: url(https://elsewhere.example/a.png)">x</p>', "loads"),
    ],
)
def test_a_fault(page: str, told: str, tmp_path: Path) -> None:
    """A link to nowhere, and anything that is loaded from another host, is told."""
    make(tmp_path / "site", page)
    found = faults(tmp_path / "site")
    assert len(found) == 1
    assert told in found[0]


def test_a_style_sheet(tmp_path: Path) -> None:
    """A font that a style sheet would load from another host is told."""
    make(tmp_path / "site", SOUND)
    (tmp_path / "site/a.css").write_text("@font-face { src: url('https://elsewhere.example/a.woff2') }")
    assert len(faults(tmp_path / "site")) == 1
