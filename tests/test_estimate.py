"""Estimates and budgets as rules: ranges in order, ratios that were measured, and a limit that is never passed."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.estimate import SUMS, basis_of, cost_of, estimate, may_spend, measure, tokens_for
from embcache.types import Range

REQUESTS = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 10**7), st.integers(1, 10**7)), max_size=20)
KINDS = st.sampled_from(("text", "tokens"))


def learned(*requests: tuple[int, int, int]) -> Counter[str]:
    """What requests of so many inputs, bytes and tokens add up to."""
    known = Counter[str]()
    for inputs, size, tokens in requests:
        known.update(measure("text", inputs, size, tokens))
    return known


# Estimates


@given(KINDS, st.integers(0, 10**7), st.integers(0, 10**10), REQUESTS)
def test_a_range_is_in_order(kind: str, inputs: int, size: int, requests: list[tuple[int, int, int]]) -> None:
    """Whatever was measured, the least is no more than what is expected, and that no more than the most."""
    low, expected, high = estimate("text" if kind == "text" else "tokens", inputs, size, learned(*requests))
    assert 0 <= low <= expected <= high
    assert (high == 0) == (inputs == 0)
    assert all(type(tokens) is int for tokens in (low, expected, high))


@given(REQUESTS, st.integers(1, 100), st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_bytes_are_never_expected_to_take_less(
    requests: list[tuple[int, int, int]], inputs: int, one: int, other: int
) -> None:
    """Of as many inputs, the longer ones are expected to be billed at least as much."""
    known = learned(*requests)
    less, more = sorted((one, other))
    assert estimate("text", inputs, less, known).expected <= estimate("text", inputs, more, known).expected


@given(st.integers(2, 50), st.integers(1, 2000), st.integers(2, 9), st.integers(1, 10**6))
def test_what_never_varied_is_expected_as_it_was(requests: int, inputs: int, ratio: int, planned: int) -> None:
    """Where each token always took as many bytes, that is the estimate, a quarter more or less the range."""
    known = learned(*[(inputs, inputs * 10 * ratio, inputs * 10)] * requests)
    low, expected, high = estimate("text", planned, planned * 10 * ratio, known)
    assert expected == planned * 10
    assert low == pytest.approx(7.5 * planned, abs=1 + planned * 1e-3)
    assert high == pytest.approx(12.5 * planned, abs=1 + planned * 1e-3)


@given(st.integers(0, 2**32))
def test_what_varies_is_within_the_range(seed: int) -> None:
    """Where texts differ at random, what the rest of them is billed lies within the range that the first ones give."""
    chance = random.Random(seed)

    def request(inputs: int) -> tuple[int, int, int]:
        lengths = [chance.randrange(20, 2000) for _ in range(inputs)]
        return inputs, sum(lengths), sum(int(length * chance.uniform(0.15, 0.4)) + 2 for length in lengths)

    known = learned(*(request(chance.randrange(1, 60)) for _ in range(chance.randrange(3, 12))))
    inputs, size, tokens = request(chance.randrange(1, 300))
    low, _, high = estimate("text", inputs, size, known)
    # Three deviations, which are known from a few requests only: twice as far is beyond chance.
    middle, half = (low + high) / 2, (high - low) / 2
    assert abs(tokens - middle) <= 2 * half


@pytest.mark.parametrize(("short", "long"), [(40, 4000), (30, 300)])
def test_inputs_of_another_length(short: int, long: int) -> None:
    """What tokenizers put around each input weighs more in short ones: the range knows it in both directions."""

    def bill(inputs: int, length: int) -> tuple[int, int, int]:
        return inputs, inputs * length, inputs * (length // 5 + 2)

    for measured, planned in ((short, long), (long, short)):
        known = learned(*[bill(500, measured)] * 5)
        inputs, size, tokens = bill(1000, planned)
        low, _, high = estimate("text", inputs, size, known)
        assert low <= tokens <= high


def test_where_nothing_is_known() -> None:
    """Without a purchase the range is wide and the estimate says that it is assumed; after the first it is measured."""
    low, expected, high = estimate("text", 10, 1200, {})
    assert (low, expected, high) == (200, 300, 620)
    assert basis_of("text", {}) == "assumed"
    one = learned((10, 1200, 240))
    assert basis_of("text", one) == "measured"
    assert estimate("text", 10, 1200, one) == Range(120, 240, 360)
    assert estimate("text", 10, 1200, one + one) == Range(180, 240, 300)


def test_token_ids_are_counted() -> None:
    """Each id is a token whatever was measured of texts; a server may put two around an input."""
    for known in (Counter[str](), learned((10, 1200, 240))):
        assert estimate("tokens", 3, 40, known) == Range(10, 10, 16)
        assert basis_of("tokens", known) == "counted"


@pytest.mark.parametrize(
    ("inputs", "size", "tokens"), [(1, 0, 1), (1, 100, 0), (1, 100, 109), (5, 10, 51), (1, 10, 2**40)]
)
def test_a_bill_to_learn_nothing_from(inputs: int, size: int, tokens: int) -> None:
    """A bill for nothing, of nothing, or of more tokens than there can be is not measured."""
    assert measure("text", inputs, size, tokens) == {}
    assert measure("tokens", 2, 40, 10) == {}
    assert set(measure("text", 1, 100, 108)) == set(SUMS)


@given(REQUESTS)
def test_what_is_measured_can_be_stored(requests: list[tuple[int, int, int]]) -> None:
    """All that a lifetime of requests adds up to fits into the counters of an account."""
    known = learned(*requests)
    assert all(type(count) is int and 0 <= count * 10**6 < 2**63 for count in known.values())


# Money


@given(st.decimals("0.01", 10_000, places=2), st.decimals("0.01", 5, places=3))
def test_what_money_buys(money: object, price: object) -> None:
    """As many tokens as the amount pays for to the last one, in the decimals it was written in."""
    told = tokens_for(float(str(money)), float(str(price)))
    exact = Fraction(str(money)) * 1_000_000 / Fraction(str(price))
    assert told <= exact < told + 1


def test_cost() -> None:
    """Tokens cost by the million; at no known price nothing is known, unless there is nothing."""
    assert cost_of(Range(1, 2, 4), 500_000.0) == (0.5, 1.0, 2.0)
    assert cost_of(Range(1, 2, 4), 0.0) == (0.0, 0.0, 0.0)
    assert cost_of(Range(1, 2, 4), None) is None
    assert cost_of(Range(0, 0, 0), None) == (0.0, 0.0, 0.0)


# Budgets


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 400), st.floats(0, 1), st.booleans()), max_size=60))
def test_a_limit_is_never_passed(limit: int, wishes: list[tuple[int, float, bool]]) -> None:
    """However requests come and end, if none is billed more than was expected, all together are not either."""
    spent, under_way = 0, list[tuple[int, int]]()
    for wanted, part, ends in wishes:
        answer = may_spend(wanted, spent, sum(most for most, _ in under_way), limit)
        if answer == "send":
            under_way.append((wanted, int(wanted * part)))
        # It waits only for what may come of waiting, and stops only what could not be sent after all.
        assert (answer == "stop") == (spent + sum(0 for _ in under_way) + wanted > limit)
        assert answer != "wait" or under_way
        if ends and under_way:
            spent += under_way.pop(0)[1]
        assert spent + sum(most for most, _ in under_way) <= limit
