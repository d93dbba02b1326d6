"""A server's own words, fit to be shown: short, and without the API key or anything of the inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_WORDS = 200
MAX_READ = 500
RUN = 8
"""Characters that words and an input have in common from which on they count as quoted."""
KEY_RUN = 6
FEW_RUNS = 60
"""Up to so many, each is searched for in a text; of more, the text's own are looked up among them."""
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
        length = min(KEY_RUN, len(secret))
        _hide(_places(line, _runs(line, length) & _runs(secret, length)), hidden)
    runs = _runs(line, RUN)
    for text in inputs:
        if isinstance(text, str) and (plain := " ".join(text.split())):
            _hide(_quoted(line, runs, plain), hidden)
    shown: list[str] = []
    was_hidden = False
    for character, hide in zip(line, hidden, strict=True):
        if not hide:
            shown.append(character)
        elif not was_hidden:
            shown.append(CUT)
        was_hidden = hide
    return "".join(shown)[:MAX_WORDS].strip()


def _quoted(line: str, runs: set[str], text: str) -> Iterable[tuple[int, int]]:
    """Return where ``line``, with these ``runs``, quotes a text: runs of it, or the whole of a short one."""
    if len(text) < RUN:
        return [found.span() for found in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", line)]
    if len(runs) <= FEW_RUNS:
        return _places(line, {run for run in runs if run in text})
    return _places(line, runs.intersection(text[start : start + RUN] for start in range(len(text) - RUN + 1)))


def _runs(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


def _places(line: str, runs: set[str]) -> Iterable[tuple[int, int]]:
    for run in runs:
        start = line.find(run)
        while start >= 0:
            yield start, start + len(run)
            start = line.find(run, start + 1)


def _hide(places: Iterable[tuple[int, int]], hidden: list[bool]) -> None:
    for start, stop in places:
        hidden[start:stop] = [True] * (stop - start)
