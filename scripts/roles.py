"""For `scripts/docs`: what docstrings say as a role, such as ``:meth:`embed```, becomes a link of the book."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
BOOK = {
    "embcache.stores.base.Store": "embcache.stores.Store",
    "embcache.providers.base.Provider": "embcache.providers.Provider",
    "embed": "embcache.CachedEmbedder.embed",
}
"""Names as the book has them, of those that docstrings call otherwise."""
NOT_IN_BOOK = {"embcache.keys.preimage"}


def linked(docstring: str) -> str:
    """Return `docstring` with its roles as links."""

    def link(role: re.Match[str]) -> str:
        path = role[1]
        whole = BOOK.get(path) or (path if path.startswith("embcache.") else f"embcache.{path}")
        return f"`{path}`" if path in NOT_IN_BOOK else f"[`{path.rpartition('.')[2]}`][{whole}]"

    return ROLE.sub(link, docstring)


class Roles(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - whatever griffe hands over
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value)
