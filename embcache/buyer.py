"""Buys what is missing: requests on threads of its own, retried, halved where refused, shared by all who wait.

What is being bought belongs to the buyer, not to the caller. A caller may be interrupted or go away: the request ends,
is paid once, and what it brings is stored.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

import tenacity

from embcache.batching import Cutter
from embcache.codec import FLOAT32, Entry
from embcache.decide import judge
from embcache.errors import BadReply, EmbcacheError, InputRejected, ProviderError
from embcache.flight import Flight
from embcache.retry import is_worth_another, seconds_before_next
from embcache.types import Ask
from embcache.usage import apportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embcache.batching import Part
    from embcache.config import Settings
    from embcache.flight import Call
    from embcache.keeper import Keeper
    from embcache.providers.base import Provider
    from embcache.types import Reply


class _Job:
    """The misses of one call, on their way in one or more requests."""

    def __init__(self, flights: list[Flight], cutter: Cutter) -> None:
        self.flights = flights
        self.cutter = cutter
        self.refused: list[Flight] = []


class Buyer:
    """Threads that ask the provider; the first starts at the first miss, and all end with ``close()``."""

    def __init__(self, settings: Settings, provider: Provider, keeper: Keeper) -> None:
        """Be ready to buy from ``provider`` and hand to ``keeper``."""
        self._settings = settings
        self._provider = provider
        self._keeper = keeper
        self._changed = threading.Condition()
        self._flights: dict[bytes, Flight] = {}
        self._jobs: deque[_Job] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = threading.Event()
        self.landings = 0
        """How many requests have ended so far."""

    @property
    def closed(self) -> bool:
        """Whether nothing is bought any more."""
        return self._closing.is_set()

    def board(self, call: Call, missing: Sequence[tuple[int, bytes, bytes]]) -> list[int]:
        """Make a flight of each missing input, or join the one under way; return which are new.

        Args:
            call: who asks.
            missing: the number of the distinct input, its key and its digest.
        """
        new: list[int] = []
        with self._changed:
            for which, key, digest in missing:
                flight = self._flights.get(key)
                # Two inputs made to share a key are two flights all the same.
                if flight is not None and flight.digest == digest:
                    flight.calls.append(call)
                else:
                    position = call.first[which]
                    flight = Flight(key, digest, call.inputs.items[position], len(call.inputs.payloads[position]), call)
                    self._flights[key] = flight
                    new.append(which)
                call.flights[which] = flight
            call.waiting += len(missing)
        return new

    def send(self, call: Call, which: Sequence[int]) -> None:
        """Send for these flights of ``call``, which are new."""
        call.sent.update(which)
        flights = [call.flights[number] for number in which]
        with self._changed:
            self._jobs.append(_Job(flights, Cutter(len(flights), self._settings.batch_size, self._keeper.cap)))
            self._staff()

    def land(self, flights: Sequence[Flight], store_error: EmbcacheError | None = None) -> None:
        """Tell all who wait for ``flights`` that these are there, with a vector or an error."""
        progress: dict[Call, int] = {}
        with self._changed:
            self.landings += 1
            for flight in flights:
                if self._flights.get(flight.key) is flight:
                    del self._flights[flight.key]
                for call in flight.calls:
                    progress[call] = progress.get(call, 0) + 1
            done: list[Call] = []
            for call, count in progress.items():
                call.waiting -= count
                call.store_error = call.store_error or store_error
                if not call.waiting:
                    done.append(call)
            self._changed.notify_all()
        for call, count in progress.items():
            if call.progress is not None:
                call.progress.update(count)
        for call in done:
            call.done.set_result(None)

    def wake(self) -> None:
        """See to it that what was counted is written in a while, even if nothing is ever bought."""
        if not self._threads:
            with self._changed:
                self._staff()

    def close(self, deadline: float | None) -> None:
        """Wait until all is bought or ``deadline`` (on the monotonic clock), then end the threads."""
        with self._changed:
            self._changed.wait_for(lambda: not self._flights, None if deadline is None else _until(deadline))
            self._closing.set()
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(None if deadline is None else _until(deadline))

    # On the threads

    def _staff(self) -> None:
        """See to it that somebody works: wake one, or start one if none is idle and not all are there. Locked."""
        self._changed.notify()
        if not self._idle and len(self._threads) < self._settings.max_concurrency and not self._closing.is_set():
            thread = threading.Thread(target=self._work, name=f"embcache-request-{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                task = self._next_task()
                while task is None:
                    wait = self._keeper.ledger.seconds_until_flush()
                    if self._closing.is_set():
                        self._threads.discard(threading.current_thread())
                        return
                    if wait == 0.0:
                        break
                    self._idle += 1
                    self._changed.wait(wait)
                    self._idle -= 1
                    task = self._next_task()
                if task is not None and self._jobs:
                    self._staff()
            if task is None:
                self._keeper.flush()
            else:
                self._buy(*task)

    def _next_task(self) -> tuple[_Job, Part] | None:
        """Return the next request of the oldest job that has one to send now. Locked."""
        for job in self._jobs:
            part = job.cutter.next()
            if part is not None:
                return job, part
        return None

    def _buy(self, job: _Job, part: Part) -> None:
        """Send one request, with its retries, and land its flights with whatever came of it."""
        flights = job.flights[part.start : part.stop]
        news = False
        try:
            store_error = self._ask(flights)
        except InputRejected as refusal:
            with self._changed:
                news = job.cutter.refused(part)
            if part.size == 1:
                flights[0].error = refusal
                job.refused.append(flights[0])
                self.land(flights)
            if job.cutter.hopeless:
                self._give_up(job, _hopeless(refusal))
        except Exception as error:  # noqa: BLE001 - a provider may be anybody's, and somebody waits for these flights
            told = error if isinstance(error, EmbcacheError) else _foreign(error)
            with self._changed:
                job.cutter.failed(part)
            for flight in flights:
                flight.error = told
            self.land(flights)
            self._give_up(job, told)
        else:
            with self._changed:
                news = job.cutter.taken(part)
            self.land(flights, store_error)
        with self._changed:
            if job.cutter.finished and job in self._jobs:
                self._jobs.remove(job)
            self._changed.notify_all()
        if news:
            self._keeper.remember_cap()

    def _give_up(self, job: _Job, error: EmbcacheError) -> None:
        """Fail what this job has not sent yet: asking on would meet the same."""
        with self._changed:
            left = [flight for part in job.cutter.drop_waiting() for flight in job.flights[part.start : part.stop]]
        for flight in left:
            flight.error = error
        if isinstance(error, ProviderError):
            for flight in job.refused:  # it was not these inputs that were at fault
                flight.error = error
        self.land(left)

    def _ask(self, flights: list[Flight]) -> EmbcacheError | None:
        """Send one request until it is answered; give its flights what came; return what went wrong with the store."""
        settings = self._settings

        def enough(state: tenacity.RetryCallState) -> bool:
            return self._closing.is_set() or not is_worth_another(
                _error(state), state.attempt_number, settings.max_retries
            )

        def pause(state: tenacity.RetryCallState) -> float:
            return seconds_before_next(_error(state), state.attempt_number, random.random())  # noqa: S311

        ask = Ask(
            [flight.item for flight in flights],
            settings.space.model,
            settings.space.format,
            settings.dimensions,
            settings.extra_body,
            settings.timeout,
        )
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ProviderError),
            stop=enough,
            wait=pause,
            sleep=tenacity.sleep_using_event(self._closing),
            reraise=True,
        )
        return retrying(self._attempt, ask, flights)

    def _attempt(self, ask: Ask, flights: list[Flight]) -> EmbcacheError | None:
        """Send one request once: book it, judge the answer, store what is good."""
        owner = flights[0].calls[0]
        self._keeper.ledger.add(requests=1)
        owner.counts["requests"] += 1
        try:
            reply = self._provider.embed(ask)
        except ProviderError as error:
            if error.unaccounted:
                self._keeper.ledger.add(unknown_requests=1)
                owner.counts["unknown_requests"] += 1
            raise
        told = reply.total_tokens
        bill = {"unknown_requests": 1} if told is None else {"billed_tokens": told}
        owner.counts.update(bill)
        owner.counts["prompt_tokens"] += reply.prompt_tokens or 0
        owner.model = reply.model or owner.model
        self._check_model(reply)
        try:
            verdict = judge(reply, len(flights), self._keeper.dims)
        except BadReply:
            self._keeper.keep([], bill)
            raise
        shares = [None] * len(flights) if told is None else apportion(told, [flight.weight for flight in flights])
        model, created, exact = reply.model or ask.model, int(time.time()), len(flights) == 1
        for place, (flight, row, share) in enumerate(zip(flights, verdict.rows, shares, strict=True)):
            if row is None:
                reason = f"the provider's vector {verdict.faults[place]}; it was not stored"
                flight.error = BadReply(reason, status=200, of_inputs=True)
            else:
                flight.row = row
                flight.entry = Entry(len(row) // FLOAT32.itemsize, model, share, exact, created)
        return self._keeper.keep(flights, bill)

    def _check_model(self, reply: Reply) -> None:
        asked = self._settings.space.model
        if reply.model is not None and reply.model != asked:
            self._keeper.ledger.add_to_session(model_changes=1)
            self._keeper.note("model", f"asked for the model {asked!r}, the provider answered as {reply.model[:80]!r}")


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _error(state: tenacity.RetryCallState) -> Any:  # noqa: ANN401 - what it raised, which tenacity calls BaseException
    return state.outcome.exception() if state.outcome else None


def _hopeless(refusal: InputRejected) -> ProviderError:
    """Return what it means that single inputs are refused and none is taken."""
    reason = f"every input is refused, so that the request itself must be wrong: {refusal.reason}"
    return ProviderError(reason, status=refusal.status, code=refusal.code, request_id=refusal.request_id)


def _foreign(error: Exception) -> EmbcacheError:
    """Return an error of somebody's own provider as ours: its kind and place, not its words, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return ProviderError(f"the provider raised {type(error).__name__}{place}")
