"""Judging replies: each vector where it belongs, a doubtful one refused by name, the others kept as they are."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.decide import judge, place
from embcache.errors import BadReply
from embcache.types import Reply

NAN, INF = float("nan"), float("inf")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def row(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def in_order(*rows: bytes | None) -> Reply:
    return Reply(rows, list(range(len(rows))))


# Whose vector is it?


@given(st.integers(1, 30).flatmap(lambda count: st.permutations(range(count))))
def test_place_by_index(order: list[int]) -> None:
    """Every permutation of indexes is understood as what it says."""
    assert place(order, len(order)) == order


@pytest.mark.parametrize("count", [1, 2, 2048])
def test_place_without_index(count: int) -> None:
    """Where no entry tells an index they stand in the order asked."""
    assert place([None] * count, count) == list(range(count))


@given(st.integers(1, 30).flatmap(lambda count: st.permutations(range(count))), st.data())
def test_place_with_one_index_missing(order: list[int], data: st.DataObject) -> None:
    """A server that leaves out one index, as many do with 0, means the one left over."""
    missing = data.draw(st.sampled_from(order))
    assert place([None if index == missing else index for index in order], len(order)) == order


@pytest.mark.parametrize(
    ("indexes", "count"),
    [
        ([0, 0], 2),
        ([0, 2], 2),
        ([1, 2], 2),
        ([-1, 0], 2),
        ([0, 10**30], 2),
        ([None, None, 2], 3),
        ([0, None, None], 3),
        ([None, 2], 2),
        ([None, 0, 0], 3),
        ([0], 2),
        ([0, 1, 2], 2),
        ([None], 2),
        ([], 1),
        ([1], 1),
    ],
)
def test_no_permutation(indexes: list[int | None], count: int) -> None:
    """Too few, too many, twice, out of range, unclear: the reply is refused as a whole, and may be asked for again."""
    with pytest.raises(BadReply) as caught:
        place(indexes, count)
    assert (caught.value.status, caught.value.retryable) == (200, True)
    with pytest.raises(BadReply):
        judge(Reply([row(1.0)] * len(indexes), indexes), count, None)


@given(st.lists(st.none() | st.integers(-2, 6) | st.integers(), max_size=6), st.integers(1, 6))
def test_u07_any_indexes(indexes: list[int | None], count: int) -> None:
    """Whatever the indexes say, each input gets exactly one entry, and its own where it is named; or the reply none."""
    try:
        placed = place(indexes, count)
    except BadReply:
        return
    assert sorted(placed) == list(range(count))
    assert all(index in (None, position) for index, position in zip(indexes, placed, strict=True))


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_faults_are_named_by_input(order: list[int], spoilt: set[int]) -> None:
    """A refused vector is named by its input's place in the request, wherever it stood in the reply."""
    rows = [row(NAN, 1.0) if index in spoilt else row(float(index), 1.0) for index in order]
    verdict = judge(Reply(rows, order), 6, 2)
    assert set(verdict.faults) == spoilt
    assert verdict.rows == [None if number in spoilt else row(float(number), 1.0) for number in range(6)]


# Is it worth keeping?


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (None, "could not be read"),
        (b"", "could not be read"),
        (b"1234567", "could not be read"),
        (row(NAN, 1.0), "NaN or an infinite value"),
        (row(1.0, INF), "NaN or an infinite value"),
        (row(-INF, 1.0), "NaN or an infinite value"),
        (row(INF, NAN), "NaN or an infinite value"),
        (row(0.0, 0.0), "all zero"),
        (row(0.0, -0.0), "all zero"),
        (row(1.0), "1 dimensions instead of 2"),
        (row(1.0, 2.0, 3.0), "3 dimensions instead of 2"),
    ],
)
@pytest.mark.parametrize("dims", [None, 2])
def test_one_vector_refused(bad: bytes | None, why: str, dims: int | None) -> None:
    """A vector that cannot be used is refused and named with its reason; its neighbours are kept bit for bit."""
    good = [row(1.0, 2.0), row(-0.0, 1e-45), row(3.4e38, -3.4e38)]
    for position in range(4):
        rows: list[bytes | None] = [*good[:position], bad, *good[position:]]
        verdict = judge(in_order(*rows), 4, dims)
        assert list(verdict.faults) == [position]
        assert why in verdict.faults[position]
        assert verdict.rows == [*good[:position], None, *good[position:]]


@pytest.mark.parametrize("bad", [None, b"", b"123", row(NAN), row(INF, 1.0), row(0.0, 0.0)])
def test_the_only_vector_refused(bad: bytes | None) -> None:
    """A reply whose one vector cannot be used gives nothing to keep, whether or not a length is known."""
    for dims in (None, 2):
        verdict = judge(in_order(bad), 1, dims)
        assert verdict.rows == [None]
        assert list(verdict.faults) == [0]


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ([2, 2, 2], 2),
        ([1], 1),
        ([2, 3, 2], 2),
        ([3, 2, 2], 2),
        ([3, 3, 3, 2, 2], 3),
        ([1, 2, 3, 3], 3),
        ([2, 3], None),
        ([2, 2, 3, 3], None),
        ([1, 2, 3], None),
        ([4, 4, 2, 2, 1], None),
    ],
)
def test_lengths_of_neighbours(lengths: list[int], kept: int | None) -> None:
    """Where no length is known that of most vectors holds; where there is no most, none is kept."""
    verdict = judge(in_order(*(row(*[1.0] * length) for length in lengths)), len(lengths), None)
    assert [told is not None for told in verdict.rows] == [length == kept for length in lengths]
    assert set(verdict.faults) == {number for number, length in enumerate(lengths) if length != kept}


@pytest.mark.parametrize("lengths", [[3, 3, 3], [3, 3, 2], [3]])
def test_the_length_that_is_known(lengths: list[int]) -> None:
    """A length that is known holds against any majority."""
    verdict = judge(in_order(*(row(*[1.0] * length) for length in lengths)), len(lengths), 2)
    assert set(verdict.faults) == {number for number, length in enumerate(lengths) if length != 2}


def test_unreadable_vectors_have_no_say() -> None:
    """What could not be read does not count when the length of most vectors is looked for."""
    verdict = judge(in_order(None, b"", None, b"", row(1.0, 2.0)), 5, None)
    assert verdict.rows == [None, None, None, None, row(1.0, 2.0)]


VALUES = FLOATS | st.sampled_from([0.0, -0.0, NAN, INF, -INF])
ROWS = st.none() | st.binary(max_size=9) | st.lists(VALUES, max_size=3).map(lambda values: row(*values))


@given(st.lists(ROWS, min_size=1, max_size=8), st.none() | st.integers(1, 3))
def test_any_reply(rows: list[bytes | None], dims: int | None) -> None:
    """Of any vectors just those are kept that are readable, of the one length, finite and not all zero."""
    verdict = judge(in_order(*rows), len(rows), dims)
    readable = {n: told for n, told in enumerate(rows) if told and len(told) % 4 == 0}
    if dims is None:
        lengths = Counter(len(told) // 4 for told in readable.values()).most_common()
        if len(lengths) == 1 or (len(lengths) > 1 and lengths[0][1] > lengths[1][1]):
            dims = lengths[0][0]
    for number, told in enumerate(rows):
        values = struct.unpack(f"<{len(told) // 4}f", told) if told and number in readable else ()
        sound = len(values) == dims and all(abs(value) < INF for value in values) and any(values)
        assert verdict.rows[number] == (told if sound else None)
        assert (number in verdict.faults) == (not sound)
