"""Asks the provider for some inputs: retried, judged and billed; one request at a time."""

from __future__ import annotations

import random
import threading
import time
import traceback
from typing import TYPE_CHECKING

from embcache.codec import FLOAT32, Entry
from embcache.decide import judge
from embcache.errors import BadReply, ConfigError, EmbcacheError, ProviderError
from embcache.estimate import measure
from embcache.retry import is_worth_another, seconds_before_next
from embcache.types import Ask
from embcache.usage import apportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tenacity

    from embcache.config import Settings
    from embcache.flight import Call, Flight
    from embcache.keeper import Keeper
    from embcache.providers.base import Provider
    from embcache.purse import Purse
    from embcache.types import Reply


class Unwanted(EmbcacheError):
    """Nobody waits any more for what was to be sent."""


class Asker:
    """Asks ``provider`` and hands to ``keeper``.

    Attributes:
        stopping: set when nothing is to be tried again any more.
    """

    def __init__(self, settings: Settings, provider: Provider, keeper: Keeper, purse: Purse) -> None:
        """Be ready to ask, as far as ``purse`` reaches."""
        import tenacity  # brings asyncio, for which ``import embcache`` has no room

        self._tenacity = tenacity
        self._settings = settings
        self._provider = provider
        self._keeper = keeper
        self._purse = purse
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def ask(self, flights: Sequence[Flight]) -> dict[str, int]:
        """Send one request until it is answered; give its flights what came; return the bill, which is not booked yet.

        Raises:
            InputRejected: the request was refused for what it holds.
            BudgetExceeded: it may not be sent.
            EmbcacheError: anything else that went wrong.
        """
        settings = self._settings
        if not any(flight.is_wanted for flight in flights):
            raise Unwanted("the caller went away before this was sent")

        def enough(state: tenacity.RetryCallState) -> bool:
            error = _error_in(state)
            unwanted = self.stopping.is_set() or not any(flight.is_wanted for flight in flights)
            return unwanted or not is_worth_another(error, state.attempt_number, settings.max_retries)

        def pause(state: tenacity.RetryCallState) -> float:
            return seconds_before_next(_error_in(state), state.attempt_number, random.random())  # noqa: S311 - jitter

        ask = Ask(
            [flight.item for flight in flights],
            settings.space.model,
            settings.space.format,
            settings.dimensions,
            settings.extra_body,
            settings.timeout,
        )
        retrying = self._tenacity.Retrying(
            retry=self._tenacity.retry_if_exception_type(ProviderError),
            stop=enough,
            wait=pause,
            sleep=self._tenacity.sleep_using_event(self.stopping),
            reraise=True,
        )
        try:
            return retrying(self._attempt, ask, flights)
        except EmbcacheError:
            raise
        except Exception as error:  # noqa: BLE001 - a provider may be anybody's, and somebody waits for these flights
            raise _foreign(error) from None

    def _attempt(self, ask: Ask, flights: Sequence[Flight]) -> dict[str, int]:
        """Send one request once, and judge the answer; return what it was billed."""
        owner = flights[0].calls[0]
        kind, size = owner.inputs.kind, sum(flight.weight for flight in flights)
        with self._purse.paying(kind, len(flights), size) as paid:
            try:
                reply = self._provider.embed(ask)
            except ConfigError:  # nothing was sent
                paid.tell(0)
                raise
            except Exception as error:
                self._sent(flights)
                if getattr(error, "unaccounted", False):
                    self._keeper.ledger.add({"unknown_requests": 1})
                    self._count(owner, unknown_requests=1)
                else:
                    paid.tell(0)
                raise
            told = reply.total_tokens
            if told is not None:
                paid.tell(told)
        self._sent(flights)
        bill = {"unknown_requests": 1}
        if told is not None:
            bill = {"billed_tokens": told} | measure(kind, len(flights), size, told)
        shares = self._share(reply, flights)
        self._check_model(reply)
        try:
            verdict = judge(reply, len(flights), self._keeper.dims)
        except BadReply:
            self._keeper.keep([], bill)
            raise
        model, created, exact = reply.model or ask.model, int(time.time()), len(flights) == 1
        for place, (flight, row, share) in enumerate(zip(flights, verdict.rows, shares, strict=True)):
            if row is None:
                reason = f"the provider's vector {verdict.faults[place]}; it was not stored"
                flight.error = BadReply(reason, status=200, of_inputs=True)
            else:
                flight.row = row
                flight.entry = Entry(len(row) // FLOAT32.itemsize, model, share, exact, created)
        return bill

    def _sent(self, flights: Sequence[Flight]) -> None:
        """Count a request."""
        self._keeper.ledger.add({"requests": 1})
        self._count(flights[0].calls[0], requests=1)
        for flight in flights:
            flight.bought = True

    def _share(self, reply: Reply, flights: Sequence[Flight]) -> Sequence[int | None]:
        """Bill those who asked for ``flights`` with their parts; return each flight's, None where nothing was told."""
        if reply.total_tokens is None:
            self._count(flights[0].calls[0], unknown_requests=1)
            return [None] * len(flights)
        weights = [flight.weight for flight in flights]
        shares = apportion(reply.total_tokens, weights)
        told = reply.prompt_tokens
        prompts = shares if told in (None, reply.total_tokens) else apportion(told, weights)
        bills: dict[Call, tuple[int, int]] = {}
        for flight, share, prompt in zip(flights, shares, prompts, strict=True):
            billed, prompted = bills.get(flight.calls[0], (0, 0))
            bills[flight.calls[0]] = billed + share, prompted + prompt
        for call, (billed, prompted) in bills.items():
            self._count(call, billed_tokens=billed, prompt_tokens=prompted)
        return shares

    def _count(self, owner: Call, **counts: int) -> None:
        with self._lock:  # a call may have several requests under way
            owner.count(**counts)

    def _check_model(self, reply: Reply) -> None:
        asked = self._settings.space.model
        if reply.model is not None and reply.model != asked:
            self._keeper.ledger.add_to_session({"model_changes": 1})
            self._keeper.note("model", f"asked for the model {asked!r}, the provider answered as {reply.model[:80]!r}")


def _error_in(state: tenacity.RetryCallState) -> ProviderError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, ProviderError)  # noqa: S101 - the only kind that is retried
    return error


def _foreign(error: Exception) -> EmbcacheError:
    """Return an error of somebody's own provider as ours: its kind and place, not its words, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return ProviderError(f"the provider raised {type(error).__name__}{place}")
