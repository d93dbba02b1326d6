"""What is being bought: one flight an input, shared by all who wait for it, and the call of each who waits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embcache.codec import Entry
    from embcache.inputs import Inputs
    from embcache.report import Progress
    from embcache.types import Item, Vectors

COPY_ROWS = 4096
"""Vectors copied at a time where inputs repeat, so that copying takes little memory of its own."""


class Flight:
    """One distinct input on its way.

    Attributes:
        key, digest: where its vector will be kept, and what proves it.
        item: the input as it is sent.
        weight: its length in bytes, by which a request's bill is divided.
        calls: who waits for it; the first one is who asked for it to be sent.
        row: the vector as little-endian float32 bytes, once it is there.
        entry: what is kept beside the vector, once it is there.
        error: why there is none, if it failed.
    """

    __slots__ = ("calls", "digest", "entry", "error", "item", "key", "row", "weight")

    def __init__(self, key: bytes, digest: bytes, item: Item, weight: int, call: Call) -> None:
        """Begin a flight that ``call`` asked for."""
        self.key = key
        self.digest = digest
        self.item = item
        self.weight = weight
        self.calls = [call]
        self.row: bytes | None = None
        self.entry: Entry | None = None
        self.error: Exception | None = None


class Call:
    """One ``embed()``: what was asked, what was found, what is still on its way.

    Attributes:
        inputs: what was asked.
        first: the position of each distinct input.
        same_as: for each input, which of the distinct ones it is; None where all differ.
        wake: what to call when nothing is on its way any more.
        pending: whether there is anything to wait for.
        flights: what the call waits for, by the number of the distinct input.
        sent: which of these it asked for itself.
        counts: what the call took: ``requests``, ``billed_tokens``, ``prompt_tokens``, ``unknown_requests``.
        store_error: what went wrong with the store, if anything did.
        model: the model as answered.
        out: the vectors, one a distinct position so far; None while no vector is known.
    """

    def __init__(self, inputs: Inputs, wake: Callable[[], None]) -> None:
        """Begin a call that asks for ``inputs``."""
        self.inputs = inputs
        self.first, self.same_as = inputs.distinct()
        self.wake = wake
        self.pending = False
        self.progress: Progress | None = None
        self.flights: dict[int, Flight] = {}
        self.sent: set[int] = set()
        self.waiting = 0
        self.counts: Counter[str] = Counter()
        self.store_error: Exception | None = None
        self.model: str | None = None
        self.out: Vectors | None = None
        self._times: Counter[int] = Counter()

    @property
    def size(self) -> int:
        """How many inputs were asked for."""
        return len(self.inputs.items)

    def times(self, which: int) -> int:
        """Return how often a distinct input occurs."""
        if self.same_as is None:
            return 1
        if not self._times:
            self._times = Counter(self.same_as)
        return self._times[which]

    def positions(self, which: Sequence[int]) -> list[int]:
        """Return all positions of these distinct inputs, in order."""
        if self.same_as is None:
            return sorted(which)
        wanted = set(which)
        return [position for position, number in enumerate(self.same_as) if number in wanted]

    def place(self, which: Sequence[int], vectors: Vectors) -> None:
        """Put the vectors of these distinct inputs where they belong."""
        if self.out is None:
            self.out = np.empty((self.size, vectors.shape[1]), dtype="<f4")
        if self.same_as is None and len(which) == self.size:  # all of them, in order
            self.out[:] = vectors
        else:
            self.out[[self.first[number] for number in which]] = vectors

    def repeat(self) -> None:
        """Copy the vectors of inputs that occur again to where they occur again."""
        if self.out is None or self.same_as is None:
            return
        source = np.asarray(self.first)[self.same_as]
        again = np.flatnonzero(source != np.arange(len(source)))
        for start in range(0, len(again), COPY_ROWS):
            rows = again[start : start + COPY_ROWS]
            self.out[rows] = self.out[source[rows]]
