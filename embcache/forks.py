"""What must begin anew in a child process: whoever holds threads, locks or connections is told after a fork.

SQLite forbids a child to use or close a connection of its parent's. A child closes what its vanished threads held,
unless something else holds it too: so connections are held here from the moment before a fork, in the child for good.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that cannot be carried over a fork as it is."""

    def connections(self) -> list[object]:
        """Return what a child must neither use nor close."""
        ...

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        ...


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()
_held: list[object] = []


def tell_after_fork(thing: Forkable) -> None:
    """Have ``thing`` told in every child that is forked while it lives."""
    _all.add(thing)


def _before_fork() -> None:
    for thing in list(_all):
        _held.extend(thing.connections())


def _after_fork() -> None:
    for thing in list(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_held.clear, after_in_child=_after_fork)
