"""What must begin anew in a child process: whoever holds threads, locks or connections is told after a fork.

SQLite forbids a child to use or close a connection of its parent's. A child closes what its vanished threads held,
unless something else holds it too: so connections are held here from the moment before a fork, in the child for good.

A lock that another thread holds at a fork stays locked in the child for ever, and SQLite has some of its own that
nobody sees. So a fork waits until nobody is in the middle of anything that a child would need.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

PATIENCE = 5.0
"""Seconds a fork waits for those who are in the middle of something: a disk that hangs must not keep it for ever."""


class Forkable(Protocol):
    """Something that cannot be carried over a fork as it is."""

    def connections(self) -> list[object]:
        """Return what a child must neither use nor close."""
        ...

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        ...


class Guarded(Protocol):
    """Something that can be carried over a fork, but not in the middle of what it does."""

    def locks(self) -> list[threading.Lock]:
        """Return what is locked by whoever is in the middle of something."""
        ...


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()
_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()
_held: list[object] = []
_forking = threading.Lock()
_locked: list[threading.Lock] = []


def tell_after_fork(thing: Forkable) -> None:
    """Have ``thing`` told in every child that is forked while it lives."""
    _all.add(thing)


def wait_before_fork(thing: Guarded) -> None:
    """Have every fork wait until nobody is in the middle of something with ``thing``, while it lives."""
    _guarded.add(thing)


def _before_fork() -> None:
    deadline = time.monotonic() + PATIENCE
    locks = [_forking, *(lock for thing in list(_guarded) for lock in thing.locks())]
    _locked.extend(lock for lock in locks if lock.acquire(timeout=max(0.0, deadline - time.monotonic())))
    for thing in list(_all):
        _held.extend(thing.connections())


def _go_on() -> None:
    while _locked:
        _locked.pop().release()


def _after_fork_in_parent() -> None:
    _held.clear()
    _go_on()


def _after_fork_in_child() -> None:
    _go_on()
    for thing in list(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
