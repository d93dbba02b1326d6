"""Retrying: what is worth another try, and how long to wait for it."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embcache.errors import ProviderError
from embcache.retry import is_retryable, is_worth_another, read_retry_after, seconds_before_next

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
SECONDS = st.floats(0, 1e12) | st.just(math.inf)


def asked(**headers: str) -> float | None:
    return read_retry_after(
        httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}), NOW.timestamp()
    )


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine's time zone, which must make no difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


# Retry-After


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("1e9", 1e9),
        ("-5", 0.0),
        ("inf", math.inf),
        ("-inf", 0.0),
    ],
)
def test_retry_after_in_seconds(told: str, seconds: float) -> None:
    """Seconds are understood, also with a fraction; a time that has passed is none to wait."""
    assert asked(retry_after=told) == seconds


@pytest.mark.parametrize(("told", "seconds"), [("0", 0.0), ("250", 0.25), ("1500.0", 1.5), ("-20", 0.0), ("1e12", 1e9)])
def test_retry_after_in_milliseconds(told: str, seconds: float) -> None:
    """`retry-after-ms` is understood, and wins over the coarser `retry-after`."""
    assert asked(retry_after_ms=told) == pytest.approx(seconds)
    assert asked(retry_after_ms=told, retry_after="77") == pytest.approx(seconds)


@pytest.mark.parametrize("unclear", ["", "soon", "nan"])
def test_unclear_milliseconds(unclear: str) -> None:
    """Where `retry-after-ms` says nothing, `retry-after` is asked."""
    assert asked(retry_after_ms=unclear, retry_after="3") == 3.0
    assert asked(retry_after_ms=unclear) is None


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 UTC", 30.0),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun Nov 22 12:00:30 2026", 30.0),
        ("Sun, 22 Nov 2026 12:00:30", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30.0),
        ("Sun, 22 Nov 2026 11:59:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_as_a_date(told: str, seconds: float) -> None:
    """All three forms of an HTTP date are understood, and mean GMT where they name no zone (RFC 9110, 5.6.7)."""
    assert asked(retry_after=told) == seconds


@given(st.integers(-86_400, 86_400 * 365), st.integers(-12, 12))
def test_any_date(ahead: int, hours: int) -> None:
    """Any date, in any zone, is as many seconds away as it is."""
    date = (NOW + timedelta(seconds=ahead)).astimezone(timezone(timedelta(hours=hours)))
    assert asked(retry_after=format_datetime(date)) == max(0, ahead)


@pytest.mark.parametrize(
    "told",
    [
        "",
        "soon",
        "nan",
        "12 parsecs",
        "Sun, 99 Nov 2026 12:00:30 GMT",
        "Sun, 22 Nov 99999 12:00:30 GMT",
        "Sun, 22 Nov 2026 12:00:30 +99999999",
        ",,,",
    ],
)
def test_unclear_retry_after(told: str) -> None:
    """What cannot be understood is as if nothing had been said."""
    assert asked(retry_after=told) is None


def test_no_retry_after() -> None:
    """Most servers say nothing."""
    assert asked() is None
    assert asked(date="Sun, 22 Nov 2026 12:00:30 GMT") is None


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,5} [\d:]{1,9} [+-]?\w{1,6}"))
def test_any_retry_after(told: str) -> None:
    """Whatever a server says, the answer is nothing or a number of seconds that is not negative."""
    for name in ("retry-after", "retry-after-ms"):
        seconds = read_retry_after({name: told}, NOW.timestamp())
        assert seconds is None or seconds >= 0


# Whether


def test_retryable_statuses() -> None:
    """408, 409, 425, 429 and whatever a server blames itself for may pass; nothing else does by itself."""
    retryable = {status for status in range(100, 600) if is_retryable(status)}
    assert retryable == {408, 409, 425, 429, *range(500, 600)}


@pytest.mark.parametrize("max_retries", [0, 1, 5])
def test_tries(max_retries: int) -> None:
    """What may pass is tried again `max_retries` times, what may not is never."""
    passing, lasting = ProviderError("busy", status=503, retryable=True), ProviderError("no", status=404)
    worth = [is_worth_another(passing, tries, max_retries) for tries in range(1, max_retries + 3)]
    assert worth == [True] * max_retries + [False, False]
    assert not any(is_worth_another(lasting, tries, max_retries) for tries in range(1, max_retries + 3))


@pytest.mark.parametrize(
    "error",
    [
        ProviderError("no answer", timed_out=True, retryable=True, unaccounted=True),
        ProviderError("no connection in time", timed_out=True, retryable=True),
        ProviderError("no JSON", status=200, retryable=True, unaccounted=True),
        ProviderError("too many vectors", status=200, retryable=True),
        ProviderError("broke", retryable=True, unaccounted=True),
    ],
    ids=["timed out", "not connected in time", "unusable 200", "billed 200", "broke"],
)
def test_what_may_have_been_billed(error: ProviderError) -> None:
    """What may have been billed is tried once more at most, and not even that where no retries are wanted."""
    assert is_worth_another(error, 1, 5)
    assert not is_worth_another(error, 2, 5)
    assert not is_worth_another(error, 5, 5)
    assert not is_worth_another(error, 1, 0)


# How long


@pytest.mark.parametrize(
    ("tries", "least", "most"),
    [(1, 0.25, 0.5), (2, 0.5, 1.0), (3, 1.0, 2.0), (5, 4.0, 8.0), (6, 4.0, 8.0), (99, 4.0, 8.0)],
)
def test_backoff(tries: int, least: float, most: float) -> None:
    """Waits double from half a second to eight, and chance takes away up to half of each."""
    error = ProviderError("busy", retryable=True)
    assert seconds_before_next(error, tries, 0.0) == least
    assert seconds_before_next(error, tries, 0.5) == (least + most) / 2
    assert seconds_before_next(error, tries, 1.0 - 2**-53) == pytest.approx(most)


@given(st.none() | SECONDS, st.integers(1, 100_000), st.floats(0, 1, exclude_max=True))
@example(None, 100_000, 0.5)
def test_any_wait(retry_after: float | None, tries: int, chance: float) -> None:
    """No wait is shorter than the server asks, up to 30 seconds, nor longer than 33, however often it was tried."""
    seconds = seconds_before_next(ProviderError("busy", retry_after=retry_after, retryable=True), tries, chance)
    assert min(retry_after or 0.0, 30.0) <= seconds <= 33.0
    assert seconds >= 0.25


def test_retry_after_is_obeyed() -> None:
    """A wait the server asks for is kept, spread over a tenth more so that not all come back at once."""
    error = ProviderError("busy", retry_after=20.0, retryable=True)
    assert seconds_before_next(error, 1, 0.0) == 20.0
    assert seconds_before_next(error, 1, 0.5) == 21.0
    for absurd in (1e9, math.inf):
        assert seconds_before_next(ProviderError("busy", retry_after=absurd, retryable=True), 1, 0.0) == 30.0
