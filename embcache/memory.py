"""The memory tier: vectors of one space in memory, found by the input itself, so that equality is the proof.

Nothing is hashed but what Python hashes, and nothing is decoded: a hit is a row of an array, copied out. Bounded in
bytes; the oldest make room.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from embcache.codec import FLOAT32
from embcache.forks import wait_before_fork

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from embcache.codec import Entry
    from embcache.types import Vectors

OVERHEAD = 300
"""Bytes a row takes besides its vector and its name: its places in tables, and what is kept beside the vector."""


class Memory:
    """Rows of one array, and where each input's row is.

    A caller may be interrupted between any two steps. Their order sees to it that a name leads to its own vector at
    every instant, or nowhere: a row is given to another only after its name was forgotten, and a name is remembered
    only after its row was written.

    Args:
        size: bytes to hold at most.
        dims: length of the vectors.
    """

    def __init__(self, size: int, dims: int) -> None:
        """Reserve the array; the system gives memory for it as it is written."""
        self._size = size
        self._row_bytes = dims * FLOAT32.itemsize + OVERHEAD
        rows = max(1, size // self._row_bytes)
        self._rows: Vectors = np.empty((rows, dims), dtype=FLOAT32)
        self._entries: dict[int, Entry] = {}
        self._free = list(range(rows - 1, -1, -1))
        self._places: dict[Hashable, int] = {}
        self._held: deque[tuple[Hashable, int, int]] = deque()
        self._used = 0
        self._lock = threading.Lock()
        wait_before_fork(self)

    def locks(self) -> list[threading.Lock]:
        """Return what is locked by whoever reads or changes it."""
        return [self._lock]

    def find(self, names: Sequence[Hashable]) -> tuple[list[int] | None, Vectors, list[Entry]]:
        """Return the vectors of those ``names`` that are held.

        Returns:
            Which of them are held (None for all), their vectors as float32 ``(held, dims)``, the caller's own, and what
            is kept beside each.
        """
        with self._lock:
            places = self._places
            which = None
            try:
                rows = [places[name] for name in names]
            except KeyError:
                which = [position for position, name in enumerate(names) if name in places]
                rows = [places[names[position]] for position in which]
            return which, self._rows[rows], [self._entries[row] for row in rows]

    def find_one(self, name: Hashable) -> tuple[Vectors, Entry] | None:
        """Return one vector, the caller's own, and what is kept beside it; None if it is not held."""
        with self._lock:
            row = self._places.get(name)
            return None if row is None else (self._rows[row].copy(), self._entries[row])

    def keep(self, names: Sequence[Hashable], vectors: Vectors, entries: Sequence[Entry], *, replace: bool) -> None:
        """Hold these vectors, and let the oldest go for them; ``replace`` those held under the same names."""
        with self._lock:
            for name, vector, entry in zip(names, vectors, entries, strict=True):
                if name in self._places:
                    if not replace:
                        continue
                    del self._places[name]
                cost = self._row_bytes + sys.getsizeof(name)
                while self._held and (not self._free or self._used + cost > self._size):
                    self._let_go()
                row = self._free.pop()
                self._rows[row] = vector
                self._entries[row] = entry
                self._places[name] = row
                self._held.append((name, row, cost))
                self._used += cost

    def forget(self, names: Sequence[Hashable]) -> None:
        """Hold these no longer."""
        with self._lock:
            for name in names:
                self._places.pop(name, None)

    def _let_go(self) -> None:
        """Make the oldest row free."""
        name, row, cost = self._held.popleft()
        if self._places.get(name) == row:
            del self._places[name]
        self._free.append(row)
        self._used -= cost
