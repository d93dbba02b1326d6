"""What an embedder may spend, and has spent: asked before each request, told what it was billed after it."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embcache.errors import BudgetExceeded, StoreError
from embcache.estimate import estimate, may_spend, measure, tokens_for
from embcache.usage import MILLION, price_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from embcache.config import Settings
    from embcache.types import Kind


@dataclass(frozen=True, slots=True)
class _Limit:
    """What may be spent, in tokens and as it was given: as money where there is a price, else as tokens."""

    tokens: int
    given: float
    price: float | None

    def exceeded(self, spent: int, wanted: int) -> BudgetExceeded:
        if self.price is None:
            return BudgetExceeded("tokens", self.given, spent, wanted)
        return BudgetExceeded("dollars", self.given, spent * self.price / MILLION, wanted * self.price / MILLION)


@dataclass(slots=True)
class Bill:
    """What one request was billed; as long as nobody has told, the most that was expected."""

    tokens: int
    told: bool = False

    def tell(self, tokens: int) -> None:
        """Tell that it was billed ``tokens``."""
        self.tokens, self.told = tokens, True


class Purse:
    """Holds requests back that would spend more than ``settings`` allow.

    A request under way counts with the most it is expected to be billed, so that several together cannot spend what
    none may alone. One that would fit once those are billed waits for that.

    Args:
        settings: what is allowed, and the model's price.
        before: tells the sums of what was measured before this embedder (see :mod:`embcache.estimate`).
        spent: tokens spent already.
    """

    def __init__(self, settings: Settings, before: Callable[[], Mapping[str, int]], spent: int = 0) -> None:
        """Begin; nothing is read yet."""
        self._settings = settings
        self._before = before
        self._measured: Counter[str] = Counter()
        self._limit = _limit_of(settings)
        self._changed = threading.Condition()
        self._spent = spent
        self._under_way = 0
        self._closed = False

    @contextmanager
    def paying(self, kind: Kind, inputs: int, size: int) -> Generator[Bill]:
        """Send a request for ``inputs`` inputs of ``size`` bytes in all within the block, and tell its bill there.

        Raises:
            BudgetExceeded: it may not be sent.
        """
        wanted = 0 if self._limit is None else self._reserve(self._limit, kind, inputs, size)
        bill = Bill(wanted)
        try:
            yield bill
        finally:
            with self._changed:
                self._under_way -= wanted
                self._spent += bill.tokens
                if bill.told:
                    self._measured.update(measure(kind, inputs, size, bill.tokens))
                self._changed.notify_all()

    def close(self) -> None:
        """Have nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def of_child(self) -> Purse:
        """Return the purse of a child of a fork: what is under way is the parent's, what was spent stays spent."""
        return Purse(self._settings, self._before, self._spent)

    def _reserve(self, limit: _Limit, kind: Kind, inputs: int, size: int) -> int:
        """Return the most that a request is expected to be billed, once that may be spent."""
        before: Counter[str] = Counter()
        with suppress(StoreError):  # the write of what is bought meets the same, and says so
            before.update(self._before())
        with self._changed:
            while True:
                wanted = estimate(kind, inputs, size, self._measured + before).high
                answer = may_spend(wanted, self._spent, self._under_way, limit.tokens)
                if answer == "send":
                    self._under_way += wanted
                    return wanted
                if answer == "stop" or self._closed:
                    raise limit.exceeded(self._spent, wanted)
                self._changed.wait()  # by then more is known of what requests are billed, too


def _limit_of(settings: Settings) -> _Limit | None:
    """Return the narrower of the limits there are."""
    limits: list[_Limit] = []
    if settings.max_tokens is not None:
        limits.append(_Limit(settings.max_tokens, settings.max_tokens, None))
    price = price_of(settings.space.provider, settings.space.model, settings.prices)
    if settings.max_cost is not None and price:  # what costs nothing needs no limit
        limits.append(_Limit(tokens_for(settings.max_cost, price), settings.max_cost, price))
    return min(limits, key=lambda limit: limit.tokens, default=None)
