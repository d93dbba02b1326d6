"""Usage: whole tokens that add up, and money that is told only where a price is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.types import CacheStats, Space
from embcache.usage import (
    COUNTERS,
    Account,
    Wanted,
    account_of,
    add,
    apportion,
    believed,
    day_name,
    figures,
    price_of,
    read_account,
    summarise,
)

COUNTS = st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 2**50))


def account(  # noqa: PLR0913, PLR0917 - all that makes a name
    provider: str,
    model: str,
    form: str = "base64",
    day: int = 0,
    epoch: str | None = None,
    project: str | None = None,
) -> bytes:
    fields = () if epoch is None else (("epoch", epoch),)
    return account_of(Space(provider, model, form, fields), day * 86_400, project)


def without_money(told: CacheStats) -> CacheStats:
    return replace(told, cost=0.0, saved_cost=0.0)


# Apportioning


@given(st.integers(0, 2**41), st.lists(st.integers(0, 2**20), min_size=1, max_size=50))
def test_apportioned_tokens_add_up(total: int, weights: list[int]) -> None:
    """The shares of a request's tokens are whole, none is negative, and they sum to what was billed."""
    shares = apportion(total, weights)
    assert len(shares) == len(weights)
    assert all(type(share) is int and share >= 0 for share in shares)
    assert sum(shares) == total


@given(st.integers(0, 10_000), st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_longer_inputs_bear_no_less(total: int, weights: list[int]) -> None:
    """Each share is within one token of its exact part, and a longer input never bears less than a shorter one."""
    shares = apportion(total, weights)
    for one, (share, weight) in enumerate(zip(shares, weights, strict=True)):
        if sum(weights):
            assert abs(share * sum(weights) - total * weight) < sum(weights)
        else:
            assert abs(share * len(weights) - total) < len(weights)
        for other, another in zip(shares[one:], weights[one:], strict=True):
            assert share >= other if weight >= another else share <= other


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (7, [1], [7]),
        (0, [3, 4], [0, 0]),
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),  # equal parts: the odd token goes to the first
        (1, [1, 2, 3], [0, 0, 1]),
        (100, [1, 1, 8], [10, 10, 80]),
        (5, [0, 0], [3, 2]),  # no lengths to go by: in equal parts
        (3, [0, 1], [0, 3]),
        (2**40, [2**40, 1], [2**40 - 1, 1]),  # no floats on the way
    ],
)
def test_apportion(total: int, weights: list[int], shares: list[int]) -> None:
    """Tokens are divided by length, and what is left over goes where the largest part was cut off."""
    assert apportion(total, weights) == shares


@pytest.mark.parametrize("tokens", [0, 1, 300_000, 2**40])
def test_believed(tokens: int) -> None:
    """A whole number of tokens is believed, nought included."""
    assert believed(tokens) == tokens


@pytest.mark.parametrize(
    "tokens", [None, -1, 2**40 + 1, 10**30, 1.0, 1.5, float("nan"), float("inf"), True, False, "7", [7], {"tokens": 7}]
)
def test_not_believed(tokens: object) -> None:
    """Whatever else a server says of tokens is as if it had said nothing."""
    assert believed(tokens) is None


# Accounts


def test_accounts_are_kept_by_day_provider_model_format_epoch_and_project() -> None:
    """Two things are booked on one account if all of these are the same; other fields do not matter."""
    noon = 20_000 * 86_400 + 43_200
    space = Space("novita", "baai/bge-m3", "base64")
    assert json.loads(account_of(space, noon)) == [20_000, "novita", "baai/bge-m3", "base64"]
    assert account_of(space, noon + 43_199) == account_of(space, noon)
    assert account_of(Space("novita", "baai/bge-m3", "base64", (("dimensions", "8"),)), noon) == account_of(space, noon)
    names = {
        account_of(space, noon),
        account_of(space, noon + 43_200),
        account_of(Space("novita", "baai/bge-m3", "float"), noon),
        account_of(Space("novita", "other", "base64"), noon),
        account_of(Space("other", "baai/bge-m3", "base64"), noon),
        account_of(Space("novita", "baai/bge-m3", "base64", (("dimensions", "8"), ("epoch", "2"))), noon),
        account_of(Space("novita", "baai/bge-m3", "base64", (("epoch", ""),)), noon),
        account_of(Space("novita", "baai/bge-m3", "base64", (("body.epoch", '"2"'),)), noon),
        account_of(space, noon, "2"),
        account_of(Space("novita", "baai/bge-m3", "base64", (("epoch", "2"),)), noon, "2"),
    }
    assert len(names) == 9


NAMES = st.text(min_size=1)


@given(st.integers(0, 10**5), NAMES, NAMES, st.none() | NAMES, st.none() | NAMES)
def test_account_names_are_read_back(
    day: int, provider: str, model: str, epoch: str | None, project: str | None
) -> None:
    """Whatever an account is kept by is read back from its name, whatever the names."""
    name = account(provider, model, day=day, epoch=epoch, project=project)
    assert read_account(name) == Account(day, provider, model, epoch, project)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b'[20000, "novita", "m", "base64"]', Account(20_000, "novita", "m", None, None)),
        (b'[20000, "novita", "m", "base64", {"epoch": "2"}]', Account(20_000, "novita", "m", "2", None)),
        (b'[20000, "novita", "m", "base64", {"project": "p"}]', Account(20_000, "novita", "m", None, "p")),
    ],
)
def test_old_names_are_read(name: bytes, read: Account) -> None:
    """Names as they were written before there were projects are read, and are written so where there is none."""
    assert read_account(name) == read
    assert account(read.provider, read.model, day=read.day, epoch=read.epoch, project=read.project) == name


@pytest.mark.parametrize(
    ("day", "name"),
    [
        (0, "1970-01-01"),
        (20_000, "2024-10-04"),
        (-1, "1969-12-31"),
        (10**9, "9999-12-31"),
        (-(10**9), "0001-01-01"),
    ],
)
def test_day_names(day: int, name: str) -> None:
    """A day has its ISO date; a clock beyond the calendar makes no figures unreadable."""
    assert day_name(day) == name


# Money


@pytest.mark.parametrize(
    ("provider", "model", "price"),
    [
        ("novita", "baai/bge-m3", 0.01),
        ("novita", "qwen/qwen3-embedding-8b", 0.07),
        ("novita", "of another name", None),
        ("somebody.example/v1", "baai/bge-m3", None),
        ("local", "any", 0.0),
    ],
)
def test_known_prices(provider: str, model: str, price: float | None) -> None:
    """Novita's models have known prices, a model in the process costs nothing, all else is unknown."""
    assert price_of(provider, model, {}) == price
    assert price_of(provider, model, {"another": 5.0}) == price


@pytest.mark.parametrize("provider", ["novita", "somebody.example/v1", "local"])
@pytest.mark.parametrize("price", [0.0, 0.5])
def test_given_prices_win(provider: str, price: float) -> None:
    """A price the user gives holds for the model wherever it runs, also if it is nothing."""
    assert price_of(provider, "baai/bge-m3", {"baai/bge-m3": price}) == price


def test_figures() -> None:
    """Counters become figures with their cost at today's price; what a later embcache counts is left out."""
    counts = {"billed_tokens": 3_000_000, "saved_tokens": 500_000, "hits": 2, "corrupt": 1, "of_a_later_version": 9}
    told = figures(counts, "novita", "baai/bge-m3", {})
    assert told.cost == pytest.approx(0.03, rel=1e-12)
    assert told.saved_cost == pytest.approx(0.005, rel=1e-12)
    assert without_money(told) == CacheStats(hits=2, corrupt=1, billed_tokens=3_000_000, saved_tokens=500_000)


@pytest.mark.parametrize(
    ("counts", "cost", "saved_cost"),
    [
        ({}, 0.0, 0.0),
        ({"billed_tokens": 1}, None, 0.0),
        ({"saved_tokens": 1}, 0.0, None),
        ({"billed_tokens": 0, "saved_tokens": 0}, 0.0, 0.0),
    ],
)
def test_unknown_price(counts: dict[str, int], cost: float | None, saved_cost: float | None) -> None:
    """Without a price the cost of any token is unknown, and that of none is nothing."""
    told = figures(counts, "somebody.example/v1", "m", {})
    assert (told.cost, told.saved_cost) == (cost, saved_cost)


@given(COUNTS, COUNTS)
def test_add(one: dict[str, int], other: dict[str, int]) -> None:
    """The sum of two sets of figures is the sum of each figure."""
    total = add(figures(one, "novita", "baai/bge-m3", {}), figures(other, "novita", "baai/bge-m3", {}))
    for name in COUNTERS:
        assert getattr(total, name) == one.get(name, 0) + other.get(name, 0)
    billed = one.get("billed_tokens", 0) + other.get("billed_tokens", 0)
    assert total.cost == pytest.approx(billed * 0.01 / 1_000_000)


def test_an_unknown_amount_makes_the_sum_unknown() -> None:
    """What is unknown in one part is unknown in the whole, each amount by itself."""
    known, unknown = CacheStats(cost=1.0, saved_cost=2.0), CacheStats(cost=None, saved_cost=3.0)
    for total in (add(known, unknown), add(unknown, known)):
        assert (total.cost, total.saved_cost) == (None, 5.0)


# The whole


def test_summarise() -> None:
    """Accounts of all days and formats and the entries of all spaces are told by model, and in all."""
    accounts = {
        account("novita", "baai/bge-m3"): {"requests": 1, "misses": 3, "billed_tokens": 1_000_000},
        account("novita", "baai/bge-m3", day=1): {"hits": 4, "saved_tokens": 2_000_000, "saved_exact": 5},
        account("novita", "baai/bge-m3", "float"): {"requests": 2, "billed_tokens": 10_000_000, "duplicates": 1},
        account("novita", "qwen/qwen3-embedding-8b"): {"billed_tokens": 1_000_000, "unknown_requests": 1},
    }
    spaces = [
        (Space("novita", "baai/bge-m3", "base64"), 3, 300),
        (Space("novita", "baai/bge-m3", "float", (("dimensions", "8"),)), 4, 40),
        (Space("novita", "of no account", "base64"), 5, 5000),
    ]
    told = summarise(accounts, spaces, {}, 9999)
    assert list(told.by_model) == ["baai/bge-m3", "of no account", "qwen/qwen3-embedding-8b"]
    bge = told.by_model["baai/bge-m3"]
    assert bge.cost == pytest.approx(0.11)
    assert bge.saved_cost == pytest.approx(0.02)
    assert without_money(bge) == CacheStats(
        entries=7,
        bytes_on_disk=340,
        hits=4,
        misses=3,
        duplicates=1,
        requests=3,
        billed_tokens=11_000_000,
        saved_tokens=2_000_000,
        saved_exact=5,
    )
    assert told.by_model["of no account"] == CacheStats(entries=5, bytes_on_disk=5000)
    assert told.by_model["qwen/qwen3-embedding-8b"].cost == pytest.approx(0.07)
    assert (told.entries, told.bytes_on_disk, told.requests, told.billed_tokens) == (12, 9999, 3, 12_000_000)
    assert told.unknown_requests == 1
    assert told.cost == pytest.approx(0.18)
    assert told.saved_cost == pytest.approx(0.02)
    assert list(told.by_day) == ["1970-01-01", "1970-01-02"]
    assert told.by_day["1970-01-01"].cost == pytest.approx(0.18)
    assert without_money(told.by_day["1970-01-02"]) == CacheStats(hits=4, saved_tokens=2_000_000, saved_exact=5)
    assert list(told.by_project) == [""]


PROJECTS = {
    account("novita", "baai/bge-m3", project="p"): {"hits": 1, "billed_tokens": 1_000_000},
    account("local", "baai/bge-m3", day=1, project="p"): {"hits": 2, "billed_tokens": 1_000_000},
    account("novita", "m", project="q", epoch="2"): {"hits": 4, "billed_tokens": 1},
    account("novita", "m", day=1): {"hits": 8},
}


def test_projects() -> None:
    """Each project has its figures, each model in it at its own price; what belongs to none comes first."""
    told = summarise(PROJECTS, [(Space("novita", "m", "base64"), 3, 300)], {}, 999)
    assert {name: (part.hits, part.entries) for name, part in told.by_project.items()} == {
        "": (8, 0),
        "p": (3, 0),
        "q": (4, 0),
    }
    assert told.by_project["p"].cost == pytest.approx(0.01)
    assert told.by_project["q"].cost is None
    assert (told.hits, told.entries, told.cost) == (15, 3, None)


@pytest.mark.parametrize(
    ("wanted", "hits", "held"),
    [
        (Wanted(), 15, (5, 999)),
        (Wanted(project="p"), 3, (0, 0)),
        (Wanted(project="p", provider="local"), 2, (0, 0)),
        (Wanted(model="m"), 12, (3, 300)),
        (Wanted(provider="novita"), 13, (3, 300)),
        (Wanted(provider="novita", model="baai/bge-m3"), 1, (0, 0)),
        (Wanted(model="m", project="q"), 4, (0, 0)),
        (Wanted(project="nobody"), 0, (0, 0)),
    ],
)
def test_wanted(wanted: Wanted, hits: int, held: tuple[int, int]) -> None:
    """Only what is wanted is counted, in all and in each part; what the files take belongs to the whole alone."""
    spaces = [(Space("novita", "m", "base64"), 3, 300), (Space("local", "baai/bge-m3", "base64"), 2, 20)]
    told = summarise(PROJECTS, spaces, {}, 999, wanted)
    assert told.hits == hits
    assert (told.entries, told.bytes_on_disk) == held
    for parts in (told.by_model, told.by_project, told.by_day):
        assert sum(part.hits for part in parts.values()) == hits


def test_one_model_of_two_providers() -> None:
    """A model that two providers serve is told once, each part at its own price: unknown if one of them is."""
    accounts = {
        account("novita", "baai/bge-m3"): {"billed_tokens": 1_000_000},
        account("local", "baai/bge-m3"): {"billed_tokens": 1_000_000},
    }
    spaces = [(Space("somebody.example/v1", "baai/bge-m3", "base64"), 1, 10)]
    told = summarise(accounts, spaces, {}, 0)
    assert told.by_model["baai/bge-m3"].cost == pytest.approx(0.01)
    accounts[account("somebody.example/v1", "baai/bge-m3")] = {"billed_tokens": 1}
    told = summarise(accounts, spaces, {}, 0)
    assert (told.by_model["baai/bge-m3"].cost, told.cost) == (None, None)
    assert summarise(accounts, spaces, {"baai/bge-m3": 1.0}, 0).cost == pytest.approx(2.000001)


def test_epochs() -> None:
    """What was bought in an epoch is told by itself, at the price of its model."""
    fields = (("dimensions", "8"), ("epoch", "2026-11"))
    accounts = {
        account("novita", "baai/bge-m3"): {"billed_tokens": 1_000_000},
        account("novita", "baai/bge-m3", epoch="2026-11"): {"billed_tokens": 2_000_000},
        account("novita", "baai/bge-m3", epoch="2026-11", day=1): {"hits": 3},
    }
    spaces = [
        (Space("novita", "baai/bge-m3", "base64"), 1, 10),
        (Space("novita", "baai/bge-m3", "base64", fields), 2, 20),
    ]
    told = summarise(accounts, spaces, {}, 0)
    assert list(told.by_model) == ["baai/bge-m3", "baai/bge-m3 (epoch 2026-11)"]
    without, within = told.by_model.values()
    assert [(part.entries, part.hits) for part in (without, within, told)] == [(1, 0), (2, 3), (3, 3)]
    assert without.cost == pytest.approx(0.01)
    assert within.cost == pytest.approx(0.02)
    assert told.cost == pytest.approx(0.03)


def test_nothing_to_summarise() -> None:
    """An empty store has figures, all nought and no amount unknown."""
    assert summarise({}, [], {}, 0) == CacheStats()


def test_accounts_of_a_later_version() -> None:
    """An account that says more than we know is booked on what we know of it, and a counter we do not know left out."""
    for more in (["tenant"], [{"tenant": "t"}], [None, 1], [{"tenant": "t"}, "more"]):
        name = json.dumps([0, "novita", "baai/bge-m3", "base64", *more]).encode()
        told = summarise({name: {"hits": 2, "of_a_later_version": 1}}, [], {}, 0)
        assert told.by_model == {"baai/bge-m3": CacheStats(hits=2)}


WHOSE = st.tuples(
    st.sampled_from(["novita", "local", "x"]),
    st.sampled_from(["m", "n"]),
    st.just("base64"),
    st.integers(0, 3),
    st.sampled_from([None, "1", "2"]),
    st.sampled_from([None, "p", "q"]),
)


@given(st.dictionaries(WHOSE, COUNTS))
def test_the_whole_is_the_sum_of_its_parts(counts: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Every counter of the whole is the sum of that counter over the models, over the projects and over the days."""
    told = summarise({account(*names): each for names, each in counts.items()}, [], {}, 0)
    for name in COUNTERS:
        if name != "bytes_on_disk":
            assert getattr(told, name) == sum(each.get(name, 0) for each in counts.values())
            for parts in (told.by_model, told.by_project, told.by_day):
                assert getattr(told, name) == sum(getattr(part, name) for part in parts.values())
