"""Which entries are meant: ages and sizes as people write them, and the oldest that make room, whatever they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.choosing import (
    EVERYTHING,
    MINUTE,
    NOTHING_OLDER,
    Choice,
    Cut,
    Survey,
    accounts_of,
    make_room,
    parse_age,
    parse_size,
)
from embcache.codec import Entry
from embcache.keys import make_space
from embcache.usage import DAY_SECONDS, account_of

ROWS = st.lists(st.tuples(st.integers(-200, 2_000), st.integers(1, 50)), max_size=60)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12h", 43_200), ("90d", 7_776_000), (" 8W ", 4_838_400), ("1y", 31_536_000), ("0d", 0)]
)
def test_ages(text: str, seconds: int) -> None:
    """An age is a whole number of hours, days, weeks or years of 365 days."""
    assert parse_age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "90", "90m", "90s", "-1d", "1.5d", "90 d", "9d9", "٣d", "1e3d", "9" * 40 + "d"]
)
def test_no_ages(text: str) -> None:
    """Whatever else is a mistake; minutes and months share a letter, and so have none."""
    with pytest.raises(ValueError, match="90d"):
        parse_age(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 kB", 1_500), ("4GiB", 2**32), ("123", 123), ("7B", 7), ("0", 0)],
)
def test_sizes(text: str, count: int) -> None:
    """A size is a number with a unit in powers of 1000, or of 1024 with an i; a number alone is bytes."""
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "5 apples", "5G B", "1e9", "inf", "nan", "5,000", "99999999999999TB"]
)
def test_no_sizes(text: str) -> None:
    """Whatever else is a mistake."""
    with pytest.raises(ValueError, match="5GB"):
        parse_size(text)


def test_choice() -> None:
    """What is named must fit, what is left open fits all; a space without an epoch is of none."""
    plain, autumn = make_space("novita", "m", "float"), make_space("novita", "m", "float", epoch="autumn")
    assert Choice().takes(plain)
    assert Choice("m", "novita").takes(autumn)
    assert Choice(epoch="autumn").takes(autumn)
    assert not Choice(epoch="autumn").takes(plain)
    assert not Choice(model="n").takes(plain)
    assert not Choice(provider="local").takes(plain)


def test_accounts_without_their_project() -> None:
    """An account of a project is called, without it, as an account of none is; others are left alone."""
    plain, autumn = make_space("novita", "m", "float"), make_space("novita", "m", "float", epoch="autumn")
    names = {
        b'[5, "novita", "m", "float", {"project": "p"}]': account_of(plain, 5 * DAY_SECONDS),
        b'[5, "novita", "m", "float", {"epoch": "autumn", "project": "p"}]': account_of(autumn, 5 * DAY_SECONDS),
    }
    others = [*names.values(), b'[5, "novita", "p", "float", {"project": "q"}]', b'[5, "p", "p", "p"]']
    assert accounts_of("p", [*names, *others]) == names
    assert accounts_of("none", names) == {}


def taken(cut: Cut, rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    goes = cut.taker()
    return [row for row in rows if goes(*row)]


def ages_of(rows: list[tuple[int, int]]) -> dict[int, int]:
    ages: dict[int, int] = {}
    for created, size in rows:
        ages[created // MINUTE] = ages.get(created // MINUTE, 0) + size
    return ages


@given(ROWS, st.integers(-100, 4_000))
def test_room_is_made_by_the_oldest(rows: list[tuple[int, int]], size: int) -> None:
    """What goes is enough or everything, one entry less would not be enough, and nothing older than a minute stays."""
    gone = taken(make_room(ages_of(rows), size), rows)
    freed, everything = sum(size for _, size in gone), sum(size for _, size in rows)
    if size <= 0:
        assert gone == []
        return
    assert freed >= min(size, everything)
    if gone and freed < everything:
        assert freed - max(size for _, size in gone) < size
    left = [created // MINUTE for created, _ in rows]
    for created, _ in gone:
        left.remove(created // MINUTE)
    assert not gone or not left or min(left) >= max(created // MINUTE for created, _ in gone)


@given(ROWS, st.integers(0, 2_000), st.integers(-300, 2_100))
def test_what_is_older_goes_in_any_case(rows: list[tuple[int, int]], size: int, older: int) -> None:
    """With both, what goes is what either would take, and the older ones count as room made."""
    room = taken(make_room(ages_of(rows), size), rows)
    both = taken(make_room(ages_of(rows), size, older), rows)
    assert sorted(both) == sorted([*[r for r in rows if r[0] < older], *[r for r in room if r[0] >= older]])


def test_simple_cuts() -> None:
    """Everything is everything, an age takes what is older and not what is as old, and no cut takes nothing."""
    rows = [(-5, 1), (0, 1), (99, 1), (100, 1)]
    assert taken(EVERYTHING, rows) == rows
    assert taken(Cut(100), rows) == rows[:3]
    assert taken(Cut(), rows) == []
    assert math.isinf(NOTHING_OLDER)


def test_what_it_is_worth() -> None:
    """Entries are priced by provider and model, and added up by label; one unknown price makes a sum unknown."""
    survey = Survey()
    bge, qwen, other = (
        make_space("novita", "baai/bge-m3", "base64"),
        make_space("novita", "qwen/qwen3-embedding-8b", "base64"),
        make_space("elsewhere", "baai/bge-m3", "base64"),
    )
    survey.count(bge, Entry(1, "m", 1_000_000, exact=True, created=0), 100)
    survey.count(bge, Entry(1, "m", 500_000, exact=False, created=0), 50)
    survey.count(qwen, Entry(1, "m", 2_000_000, exact=False, created=0), 10)
    survey.count(qwen, Entry(1, "m", None, exact=False, created=0), 10)
    assert survey.cost() == pytest.approx(0.015 + 0.14)
    total = survey.total()
    assert (total.entries, total.size, total.tokens, total.exact, total.unknown) == (4, 170, 3_500_000, 1_000_000, 1)
    survey.count(other, Entry(1, "m", 1, exact=False, created=0), 1)
    assert survey.cost() is None
    assert {label: cost for label, (_, cost) in survey.by_label().items()} == {
        "baai/bge-m3": None,
        "qwen/qwen3-embedding-8b": pytest.approx(0.14),
    }
    assert survey.by_label()["baai/bge-m3"][0].entries == 3
