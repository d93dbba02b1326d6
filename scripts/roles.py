"""For `scripts/docs`: what docstrings say as a role, such as ``:meth:`embed```, becomes a link to the page of the API.

What is not on that page becomes code, and no link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
PAGE = Path(__file__).parents[1] / "docs/api.md"
SHOWN = {path.rpartition(".")[2]: path for path in re.findall(r"^::: ([\w.]+)$", PAGE.read_text(), re.MULTILINE)}
"""The classes on the page, by their own name, whatever else a docstring calls them."""


def found(path: str, within: griffe.Object | griffe.Alias | None) -> str | None:
    """Return what the page calls `path`, which a docstring within a class may have shortened; None if nothing."""
    names = path.split(".")
    if names[-1].startswith("_"):
        return None
    for number, name in enumerate(names):
        if name in SHOWN:
            return ".".join([SHOWN[name], *names[number + 1 :]])
    if within is not None and within.name in SHOWN and path in within.members:
        return f"{SHOWN[within.name]}.{path}"
    return None


class Roles(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:  # noqa: ANN401 - whatever griffe hands over
        """Rewrite the docstrings of a package, all of whose members are known by now."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        def link(role: re.Match[str]) -> str:
            whole = found(role[1], obj if obj.is_class else obj.parent)
            return f"[`{role[1].rpartition('.')[2]}`][{whole}]" if whole else f"`{role[1]}`"

        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(link, obj.docstring.value)
        for member in obj.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)
