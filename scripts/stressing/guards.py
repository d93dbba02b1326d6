"""Takes one guard of embcache away, in the running process: what the parts find then shows that they can find it.

Each is replaced at a seam that does not depend on how the guard is built: a store's methods, or a function in every
module that holds it.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import xxhash

from embcache import codec, keys
from embcache.stores import DiskStore
from embcache.stores.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

LATE = 0.1
"""Seconds by which a commit comes after its acknowledgement, where that guard is taken away."""


def _without_checksum() -> None:
    """Have whatever is read carry a checksum that fits."""
    get_many = DiskStore.get_many

    def get_and_seal(self: DiskStore, wanted: Collection[bytes]) -> dict[bytes, bytes]:
        return {
            key: codec.MAGIC + xxhash.xxh3_64_digest(record[codec.SEAL :]) + record[codec.SEAL :]
            for key, record in get_many(self, wanted).items()
        }

    DiskStore.get_many = get_and_seal  # type: ignore[method-assign]


def _without_identity() -> None:
    """Have all inputs share one digest, so that an entry proves nothing of whose it is."""
    fingerprints = keys.fingerprints

    def alike(*arguments: Any) -> tuple[list[bytes], list[bytes]]:  # noqa: ANN401 - whatever it takes
        found, digests = fingerprints(*arguments)
        return found, [hashlib.sha256().digest()] * len(digests)

    _replace(fingerprints, alike)


def _without_commit() -> None:
    """Have the store say that it has kept what it is about to keep."""
    put_many = DiskStore.put_many

    def put_late(self: DiskStore, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - whatever it takes
        def put() -> None:
            time.sleep(LATE)
            put_many(self, *arguments, **more)

        threading.Thread(target=put, daemon=True).start()

    DiskStore.put_many = put_late  # type: ignore[method-assign]


def _without_writer_thread() -> None:
    """Have everything written on the thread of whoever wants it written."""

    def run(_: Writer, action: Callable[[], Any], patience: float) -> Any:  # noqa: ANN401, ARG001 - what the action returns
        return action()

    Writer.run = run  # type: ignore[method-assign]


GUARDS: dict[str, tuple[str, Callable[[], None]]] = {
    "checksum": ("flips", _without_checksum),
    "identity": ("pairs", _without_identity),
    "commit": ("kills", _without_commit),
    "writer-thread": ("interrupts", _without_writer_thread),
}
"""The part that each guard is for, and what takes it away."""


def take_away(guard: str) -> None:
    """Take a guard away from this process."""
    GUARDS[guard][1]()


def _replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put ``new`` in place of ``old`` in all modules of embcache that hold it."""
    holders: Sequence[tuple[Any, str]] = [
        (module, name)
        for module in list(sys.modules.values())
        if module.__name__.partition(".")[0] == "embcache"
        for name, value in vars(module).items()
        if value is old
    ]
    for module, name in holders:
        setattr(module, name, new)
