"""A server's own words, fit to be shown: short, and without the API key or anything of the inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_WORDS = 200
MAX_READ = 1000
RUN = 8
"""Characters that words and an input have in common from which on they count as quoted."""
KEY_RUN = 6
CUT = "[…]"


def redact(words: str, secret: str | None, inputs: Iterable[object]) -> str:
    """Return ``words`` in one line, at most 200 characters, with every run of ``secret`` or an input cut out.

    Args:
        words: what the server said.
        secret: the API key.
        inputs: what was sent; only texts can be quoted.
    """
    line = " ".join(words[:MAX_READ].encode(errors="replace").decode().split())
    hidden = [False] * len(line)
    if secret:
        _hide(line, secret, min(KEY_RUN, len(secret)), hidden)
    for text in inputs:
        if not isinstance(text, str):
            continue
        quoted = " ".join(text.split())
        if len(quoted) < RUN:
            for found in re.finditer(rf"(?<!\w){re.escape(quoted)}(?!\w)", line):
                hidden[found.start() : found.end()] = [True] * (found.end() - found.start())
        else:
            _hide(line, quoted, RUN, hidden)
    shown: list[str] = []
    was_hidden = False
    for character, hide in zip(line, hidden, strict=True):
        if not hide:
            shown.append(character)
        elif not was_hidden:
            shown.append(CUT)
        was_hidden = hide
    return "".join(shown)[:MAX_WORDS].strip()


def _hide(line: str, secret: str, run: int, hidden: list[bool]) -> None:
    """Mark every character of ``line`` that is part of a run of at least ``run`` characters of ``secret``."""
    for start in range(len(line) - run + 1):
        if line[start : start + run] in secret:
            hidden[start : start + run] = [True] * run
