"""The protocol of a store: bytes in, bytes out, always many at once; records and what they cost in one commit.

A store knows nothing of vectors. It holds *records* under 16-byte keys, each in a *space* (an opaque name); *notes*
under longer keys, small records about a space, which are no entries and never evicted; and *accounts*, opaque names
with counters that it adds up. Whatever it keeps for itself it seals, so that damage is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class PinConflict(Exception):
    """The pinned note of a commit is held with another value; nothing was written."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store holds in all.

    Attributes:
        spaces: entries and their bytes, by space.
        accounts: counters, by account.
        bytes_on_disk: bytes of its files; 0 where it has none.
    """

    spaces: Mapping[bytes, tuple[int, int]] = field(default_factory=dict[bytes, tuple[int, int]])
    accounts: Mapping[bytes, Mapping[str, int]] = field(default_factory=dict[bytes, "Mapping[str, int]"])
    bytes_on_disk: int = 0


@runtime_checkable
class Store(Protocol):
    """What the engine needs of a store. Every method may be called from any thread, and may raise ``StoreError``."""

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the records (or notes) held under ``keys``; one that is not held is absent from the answer."""
        ...

    def put_many(  # noqa: PLR0913 - all that makes one commit
        self,
        records: Mapping[bytes, bytes],
        usage: Mapping[bytes, Mapping[str, int]] | None = None,
        *,
        space: bytes = b"",
        notes: Mapping[bytes, bytes] | None = None,
        pin: tuple[bytes, bytes] | None = None,
        release: bytes | None = None,
    ) -> None:
        """Keep all of it in one commit, or nothing.

        Args:
            records: by key, replacing what is held under the same.
            usage: increments of counters, by account.
            space: what the records belong to; must be given with any.
            notes: by key, replacing what is held under the same.
            pin: a note that must be absent, and is kept then, or held with this very value.
            release: whose leases end with this commit.

        Raises:
            PinConflict: ``pin`` is held with another value.
            StoreBusy: somebody else held the store for too long.
        """
        ...

    def claim(self, keys: Collection[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """Lease to ``owner``, for ``seconds``, those of ``keys`` that nobody else holds a lease of; return them."""
        ...

    def release(self, keys: Collection[bytes], owner: bytes) -> None:
        """End the leases of ``owner`` on ``keys``."""
        ...

    def delete_many(self, keys: Collection[bytes]) -> int:
        """Remove what is held under ``keys``; return how many were held."""
        ...

    def scan(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield (key, record, space) of every entry, in no promised order."""
        ...

    def totals(self) -> Totals:
        """Return what is held in all."""
        ...

    def events(self) -> Mapping[str, int]:
        """Return what happened in the store since last asked: ``evicted``, ``quarantined``, ``reopened``."""
        ...

    def close(self) -> None:
        """Write what is outstanding and give back what is held; a later call opens it again."""
        ...
