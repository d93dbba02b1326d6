"""Given what went wrong and how often: wait how long, or give up. No clock and no randomness of its own."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embcache.errors import ProviderError

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0
LONGEST_OBEYED = 30.0
"""Seconds of a ``Retry-After`` that are obeyed at most."""
TRIES_WHEN_MAYBE_BILLED = 2
"""Times a request is sent in all when an attempt may have been billed: one that timed out, whose connection broke once
it was sent, or whose answer of 200 cannot be used."""
SERVER_ERROR = 500
OK = 200


def is_retryable(status: int) -> bool:
    """Return whether a server that answered ``status`` may answer otherwise later."""
    return status in RETRYABLE_STATUSES or status >= SERVER_ERROR


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds a server asks to wait, never negative; None where it asks for nothing that can be understood.

    Understands ``retry-after-ms``, and ``retry-after`` in seconds or as an HTTP date (RFC 9110, 10.2.3).

    Args:
        headers: of the answer, looked up by lower-case name.
        now: seconds since 1970.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if seconds == seconds:  # not NaN  # noqa: PLR0124 - floor 1 has no reason to import math for one test
            return max(0.0, seconds)
    from email.utils import parsedate_to_datetime  # seldom needed, and slow to import

    try:
        told = parsedate_to_datetime(headers["retry-after"])
        # An HTTP date is GMT, also in those old forms that do not say so (RFC 9110, 5.6.7).
        return max(0.0, (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() - now)
    except (KeyError, ValueError, OverflowError):
        return None


def is_worth_another(error: ProviderError, tries: int, max_retries: int) -> bool:
    """Return whether to ask again after ``error``.

    Args:
        error: what the last attempt met.
        tries: attempts made so far, at least 1.
        max_retries: attempts allowed after the first.
    """
    if not error.retryable or tries > max_retries:
        return False
    maybe_billed = error.timed_out or error.unaccounted or error.status == OK
    return not maybe_billed or tries < TRIES_WHEN_MAYBE_BILLED


def seconds_before_next(error: ProviderError, tries: int, chance: float) -> float:
    """Return how long to wait before the next attempt.

    Exponential backoff with jitter, and never less than the server asked for, up to ``LONGEST_OBEYED``.

    Args:
        error: what the last attempt met.
        tries: attempts made so far, at least 1.
        chance: a random number within [0, 1).
    """
    backoff = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries - 1, 10)) * (0.5 + chance / 2)
    asked = min(error.retry_after or 0.0, LONGEST_OBEYED)
    return max(backoff, asked * (1 + chance / 10))
