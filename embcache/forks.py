"""What must begin anew in a child process: whoever holds threads, locks or connections is told after a fork."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that cannot be carried over a fork as it is."""

    def after_fork(self) -> None:
        """Forget, in the child, what belongs to the parent, without closing it; and begin anew."""
        ...


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()


def tell_after_fork(thing: Forkable) -> None:
    """Have ``thing`` told in every child that is forked while it lives."""
    _all.add(thing)


def _after_fork() -> None:
    for thing in list(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
