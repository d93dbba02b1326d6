"""Look at the built book: every link inside it leads somewhere, and nothing is loaded from another host."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a"}
"""What a reader may follow to another host. Everything else that has an address is loaded."""
ADDRESSES = ("href", "src", "srcset", "poster", "data")
IN_STYLE = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")
NOT_LOADED = {"canonical", "next", "prev"}
LOADERS = {"mermaid", "glightbox", "pyodide", "md-source"}
"""Classes for which the pages' own script loads something from another host."""


@dataclass
class Page(HTMLParser):
    """The addresses and the names of a page.

    Attributes:
        loaded: what a browser asks for when it shows the page.
        followed: what a reader may follow.
        names: what can be linked to within it.
    """

    loaded: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Make the parser ready."""
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names and where it leads."""
        given = {name: value or "" for name, value in attrs}
        self.names.update(given[name] for name in ("id", "name") if name in given)
        self.loaded += [first or second for first, second in IN_STYLE.findall(given.get("style", ""))]
        self.loaded += [f"//{used}" for used in LOADERS.intersection(given.get("class", "").split())]
        if given.get("rel") in NOT_LOADED:
            return
        for name in ADDRESSES:
            if name in given:
                (self.followed if tag in LINKS else self.loaded).append(given[name])


def faults(site: Path) -> list[str]:
    """Return what is wrong with the pages of `site`, a line each."""
    pages: dict[Path, Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found: list[str] = []
    for path, page in pages.items():
        found += [f"{path}: loads {address}" for address in page.loaded if elsewhere(address)]
        for address in page.loaded + page.followed:
            if not elsewhere(address) and not address.startswith(("data:", "mailto:", "javascript:")):
                found += lost(site, path, address, pages)
    for path in sorted(site.rglob("*.css")):
        for first, second in IN_STYLE.findall(path.read_text(encoding="utf-8")):
            if elsewhere(first or second):
                found.append(f"{path}: loads {first or second}")
    return found


def elsewhere(address: str) -> bool:
    """Return whether an address is of another host."""
    return bool(urlsplit(address).netloc)


def lost(site: Path, path: Path, address: str, pages: dict[Path, Page]) -> list[str]:
    """Return that a page's link leads nowhere, or nothing."""
    parts = urlsplit(address)
    target = path
    if parts.path:
        # The page of errors is shown at any address, so that its links begin at the root.
        start = site if parts.path.startswith("/") else path.parent
        target = Path(start / unquote(parts.path).lstrip("/")).resolve()
        target = target / "index.html" if target.is_dir() else target
        target = site / target.relative_to(site.resolve()) if target.is_relative_to(site.resolve()) else target
    if not target.is_file():
        return [f"{path}: {address} leads nowhere"]
    name = unquote(parts.fragment)
    if name and target in pages and name not in pages[target].names and not name.startswith("__"):
        return [f"{path}: {address} names nothing in that page"]
    return []


def main() -> None:
    """Look at the site named on the command line."""
    site = Path(sys.argv[1])
    found = faults(site)
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        sys.exit(f"{len(found)} faults in the book")
    print(f"{len(list(site.rglob('*.html')))} pages, none of which loads anything from another host")


if __name__ == "__main__":
    main()
