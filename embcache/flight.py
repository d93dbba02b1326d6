"""What is being bought: one flight an input, shared by all who wait for it, and the call of each who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embcache.codec import FLOAT32, bytes_of
from embcache.errors import EmbcacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from embcache.codec import Entry
    from embcache.errors import InputRejected, ProviderError
    from embcache.inputs import Inputs
    from embcache.report import Progress
    from embcache.types import Item, Vectors

COPY_ROWS = 4096
"""Vectors copied at a time where inputs repeat, so that copying takes little memory of its own."""


Missing = tuple[int, bytes, bytes, int]
"""A distinct input to buy: its number in the call, its key, its digest and its length in bytes."""


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
        bought: whether a request was sent for it.
    """

    __slots__ = ("bought", "calls", "digest", "entry", "error", "item", "key", "row", "weight")

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
        self.bought = False

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return not all(call.gone for call in self.calls)


class Call:
    """One ``embed()``: what was asked, what was found, what is still on its way.

    The distinct inputs that memory did not answer are numbered; ``first`` tells where each stands.

    Attributes:
        inputs: what was asked.
        wake: what to call when nothing is on its way any more.
        pending: whether there is anything to wait for.
        gone: whether nobody waits any more, because the caller was interrupted or cancelled.
        refresh: whether what is stored is to be bought again.
        mask: whether refused inputs become rows of NaN.
        rejected: why, for those that did, by position.
        first: the position of each distinct input.
        again: the position and number of each input that occurred before in the same call.
        flights: what the call waits for, by number.
        waiting: how many flights have not landed.
        counts: what the call took and what it saved, by the names of the accounts.
        store_error: what went wrong with the store, if anything did.
        model: the model as answered.
        out: the vectors so far, float32 ``(inputs, dims)``; None while none is known.
    """

    __slots__ = (
        "_times",
        "again",
        "counts",
        "first",
        "flights",
        "gone",
        "inputs",
        "mask",
        "model",
        "out",
        "pending",
        "progress",
        "refresh",
        "rejected",
        "size",
        "store_error",
        "waiting",
        "wake",
    )

    def __init__(self, inputs: Inputs, *, refresh: bool, mask: bool, wake: Callable[[], None]) -> None:
        """Begin a call that asks for ``inputs``."""
        self.refresh = refresh
        self.mask = mask
        self.rejected: dict[int, InputRejected | ProviderError] = {}
        self.inputs = inputs
        self.wake = wake
        self.size = len(inputs.items)
        self.pending = False
        self.gone = False
        self.progress: Progress | None = None
        self.first: Sequence[int] = ()
        self.again: list[tuple[int, int]] = []
        self.flights: dict[int, Flight] = {}
        self.waiting = 0
        self.counts: dict[str, int] = {}
        self.store_error: Exception | None = None
        self.model: str | None = None
        self.out: Vectors | None = None
        self._times: dict[int, int] = {}

    def number(self, positions: Sequence[int]) -> None:
        """Number the distinct ones of the inputs at ``positions``."""
        names = self.inputs.names
        if len(positions) == len(names) and len(set(names)) == len(names):
            self.first = positions
            return
        seen: dict[str | bytes, int] = {}
        first: list[int] = []
        for position in positions:
            number = seen.setdefault(names[position], len(first))
            if number == len(first):
                first.append(position)
            else:
                self.again.append((position, number))
                self._times[number] = self._times.get(number, 1) + 1
        self.first = first

    def times(self, number: int) -> int:
        """Return how often a distinct input occurs."""
        return self._times.get(number, 1)

    def positions(self, numbers: Sequence[int]) -> list[int]:
        """Return all positions of these distinct inputs, in order, as a caller counts them."""
        wanted = set(numbers)
        positions = [self.first[n] for n in wanted] + [position for position, n in self.again if n in wanted]
        return sorted(self.inputs.offset + position for position in positions)

    def count(self, **counts: int) -> None:
        """Add to what the call took."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def credit(self, entry: Entry, times: int) -> None:
        """Count what an input spared that occurs so many times: each time what that very entry was billed."""
        if entry.tokens:
            self.count(saved_tokens=entry.tokens * times, saved_exact=entry.tokens * times * entry.exact)

    def credit_all(self, entries: Sequence[Entry], numbers: Sequence[int]) -> None:
        """Count what many inputs spared; ``numbers`` tells which they are, where some may occur more than once."""
        if self._times and numbers:
            for number, entry in zip(numbers, entries, strict=True):
                self.credit(entry, self.times(number))
            return
        tokens = sum([entry.tokens or 0 for entry in entries])
        self.count(saved_tokens=tokens, saved_exact=sum([entry.tokens or 0 for entry in entries if entry.exact]))

    def room(self, dims: int) -> Vectors:
        """Return the array of the result, made if there was none.

        Raises:
            EmbcacheError: it was made for vectors of another length; rows written to it would be nobody's.
        """
        if self.out is None:
            self.out = np.empty((self.size, dims), dtype=FLOAT32)
        elif self.out.shape[1] != dims:
            raise EmbcacheError(
                f"vectors of {self.out.shape[1]} and of {dims} dimensions came for one call; call again"
            )
        return self.out

    def place(self, positions: Sequence[int], vectors: Vectors) -> None:
        """Put vectors where they belong."""
        if self.out is None and len(positions) == self.size == len(vectors) and not self.again:
            self.out = vectors  # all of them at once, in order, and nobody else's
            return
        self.room(vectors.shape[1])[positions] = vectors

    def place_rows(self, positions: Iterable[int], rows: Sequence[bytes]) -> None:
        """Put vectors where they belong, each given as little-endian float32 bytes."""
        width = len(rows[0])
        room = bytes_of(self.room(width // FLOAT32.itemsize))
        for position, row in zip(positions, rows, strict=True):
            room[position * width : (position + 1) * width] = row

    def mask_out(self, number: int, error: InputRejected | ProviderError, dims: int) -> None:
        """Give a refused input, wherever it occurs, a row of NaN, and keep why."""
        out = self.room(dims) if self.out is None else self.out
        out[self.first[number]] = np.nan
        self.rejected |= dict.fromkeys(self.positions([number]), error)

    def repeat(self) -> None:
        """Copy the vectors of inputs that occur again to where they occur again."""
        if self.out is None:
            return
        for start in range(0, len(self.again), COPY_ROWS):
            rows = self.again[start : start + COPY_ROWS]
            self.out[[position for position, _ in rows]] = self.out[[self.first[number] for _, number in rows]]
