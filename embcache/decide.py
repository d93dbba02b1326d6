"""What a reply is worth: which vector belongs to which input, and which of them may be kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embcache.codec import FLOAT32
from embcache.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.types import Reply


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged reply.

    Attributes:
        rows: the vector of each input in the order asked, as little-endian float32 bytes; None where it is refused.
        faults: why, for each that is refused, by its place in the request.
        dims: the length that all kept vectors have; None where none is kept and none was expected.
    """

    rows: list[bytes | None]
    faults: Mapping[int, str]
    dims: int | None


def place(indexes: Sequence[int | None], count: int) -> list[int]:
    """Return, for each entry of a reply, the input it belongs to.

    1. ``index`` on all: that is it. 2. On none: they stand in the order asked. 3. On all but one, as a server does
    that leaves out zeros: the missing one is the one left over. Whatever it is, each input must come exactly once.

    Raises:
        BadReply: another number of entries than inputs, or indexes that are not a permutation.
    """
    if len(indexes) != count:
        message = f"the provider answered {len(indexes)} vectors for {count} inputs; nothing of it was stored"
        raise BadReply(message, status=200, retryable=True)
    told = [index for index in indexes if index is not None]
    if not told:
        return list(range(count))
    left_over = set(range(count)).difference(told)
    placed = [min(left_over, default=-1) if index is None else index for index in indexes]
    if len(set(placed)) != count or min(placed) != 0 or max(placed) != count - 1:
        message = "the provider answered with an index missing, twice or out of range; nothing of it was stored"
        raise BadReply(message, status=200, retryable=True)
    return placed


def judge(reply: Reply, count: int, dims: int | None) -> Verdict:
    """Return what may be kept of ``reply`` to a request of ``count`` inputs.

    A vector is refused if it could not be read, is not finite, is all zero, or has another length than ``dims``; where
    ``dims`` is None, another length than most of its neighbours.

    Raises:
        BadReply: the reply as a whole cannot be trusted: see :func:`place`.
    """
    rows: list[bytes | None] = [None] * count
    for row, position in zip(reply.rows, place(reply.indexes, count), strict=True):
        rows[position] = row if row and len(row) % FLOAT32.itemsize == 0 else None
    faults: dict[int, str] = {position: "could not be read" for position, row in enumerate(rows) if row is None}
    widths = Counter(len(row) // FLOAT32.itemsize for row in rows if row is not None)
    if dims is None and widths:
        (dims, most), *others = widths.most_common(2)
        if others and others[0][1] == most:  # no majority: nobody can say which is right
            dims = None
    for position, row in enumerate(rows):
        if row is not None and dims != len(row) // FLOAT32.itemsize:
            expected = f"instead of {dims}" if dims else "and others of other lengths"
            faults[position] = f"has {len(row) // FLOAT32.itemsize} dimensions {expected}"
    sound = [position for position in range(count) if position not in faults]
    if sound and dims:
        matrix = np.frombuffer(b"".join(rows[p] or b"" for p in sound), dtype=FLOAT32).reshape(len(sound), dims)
        for place_in_matrix in np.flatnonzero(~np.isfinite(matrix).all(axis=1)):
            faults[sound[place_in_matrix]] = "holds NaN or an infinite value"
        for place_in_matrix in np.flatnonzero(~matrix.any(axis=1)):
            faults[sound[place_in_matrix]] = "is all zero"
    for position in faults:
        rows[position] = None
    return Verdict(rows, faults, dims)
