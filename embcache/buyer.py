"""Buys what is missing: requests on threads of its own, retried, halved where refused, shared by all who wait.

What is being bought belongs to the buyer, not to the caller. A caller may be interrupted or go away: the request ends,
is paid once, and what it brings is stored.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
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
    from embcache.flight import Call, Missing
    from embcache.keeper import Keeper
    from embcache.providers.base import Provider
    from embcache.types import Kind, Reply


GRACE = 1.0
"""Seconds the desk may take to answer that it has closed, beyond what it was given."""


class _Job:
    """Misses on their way in one or more requests: those of one call, or single ones of many calls, gathered."""

    def __init__(self, flights: list[Flight], cutter: Cutter, gathers: Kind | None) -> None:
        self.flights = flights
        self.cutter = cutter
        self.gathers: Kind | None = gathers
        self.refused: list[Flight] = []


@dataclass(frozen=True, slots=True)
class _Order:
    """What a caller wants bought."""

    call: Call
    missing: Sequence[Missing]
    landings: int | None


@dataclass(frozen=True, slots=True)
class _Close:
    """A wish to end, with the time (on the monotonic clock) until which what is under way may take."""

    deadline: float | None
    done: queue.SimpleQueue[None]


class Buyer:
    """The desk that takes orders, and the threads that carry them out.

    A caller's thread may be interrupted at any instant, and a lock it held then would stay locked. So it only ever puts
    a message on a queue; everything else happens on threads of the buyer, where no signal arrives.
    """

    def __init__(self, settings: Settings, provider: Provider, keeper: Keeper) -> None:
        """Be ready to buy from ``provider`` and hand to ``keeper``; starts the desk's thread."""
        self._settings = settings
        self._provider = provider
        self._keeper = keeper
        self._changed = threading.Condition()
        self._flights: dict[bytes, Flight] = {}
        self._jobs: deque[_Job] = deque()
        # Single inputs that wait for the gathered request of their kind to end; no list where none is under way.
        self._gathered: dict[Kind, list[Flight]] = {}
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = threading.Event()
        self._orders: queue.SimpleQueue[_Order | _Close | None] = queue.SimpleQueue()
        self.landings = 0
        """How many requests have ended so far."""
        self.closed = False
        """Whether nothing is bought any more."""
        threading.Thread(target=self._serve, name="embcache-desk", daemon=True).start()

    # On a caller's thread

    def order(self, call: Call, missing: Sequence[Missing], landings: int | None) -> None:
        """Have ``missing`` bought; ``call.wake`` is called once all is there.

        Args:
            call: who asks.
            missing: what to buy.
            landings: how many requests had ended when the store was looked up; None to buy whatever the store has.
        """
        self._orders.put(_Order(call, missing, landings))

    def nudge(self) -> None:
        """Have what was counted written in a while."""
        self._orders.put(None)

    def close(self, patience: float | None) -> None:
        """Wait until all is bought, ``patience`` seconds at most, then end the threads."""
        if self.closed:
            return
        self.closed = True
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._orders.put(_Close(None if patience is None else time.monotonic() + patience, done))
        with contextlib.suppress(queue.Empty):
            done.get(timeout=None if patience is None else patience + GRACE)

    # On the desk's thread

    def _serve(self) -> None:
        """Take orders until one says to close; between them, see to it that what was counted is written."""
        while True:
            try:
                order = self._orders.get(timeout=self._keeper.ledger.seconds_until_flush())
            except queue.Empty:
                self._keeper.flush()
                continue
            if isinstance(order, _Order):
                self._take(order)
            elif isinstance(order, _Close):
                self._shut(order.deadline)
                order.done.put(None)
                return

    def _take(self, order: _Order) -> None:
        call = order.call
        new = self._board(call, order.missing)
        if new and order.landings is not None and order.landings != self.landings:
            # Since the caller looked, a request was stored, perhaps with what we are about to send for.
            new = self._look_again(new)
        call.sent.update(number for number, _ in new)
        with self._changed:
            if len(new) == 1:
                self._gather(call.inputs.kind, new[0][1])
            elif new:
                self._start([flight for _, flight in new])

    def _gather(self, kind: Kind, flight: Flight) -> None:
        """Send for a single input at once, or together with others when the request under way has ended. Locked."""
        if kind in self._gathered:
            self._gathered[kind].append(flight)
        else:
            self._gathered[kind] = []
            self._start([flight], kind)

    def _start(self, flights: list[Flight], gathers: Kind | None = None) -> None:
        """Have these flights sent for. Locked."""
        cutter = Cutter(len(flights), self._settings.batch_size, self._keeper.cap)
        self._jobs.append(_Job(flights, cutter, gathers))
        self._staff()

    def _end(self, job: _Job) -> None:
        """Take leave of a job that is done, and send for what was gathered meanwhile. Locked."""
        self._jobs.remove(job)
        if job.gathers is not None:
            waiting = self._gathered.pop(job.gathers)
            if waiting:
                self._gathered[job.gathers] = []
                self._start(waiting, job.gathers)

    def _board(self, call: Call, missing: Sequence[Missing]) -> list[tuple[int, Flight]]:
        """Make a flight of each missing input, or join the one under way; return those that are new."""
        new: list[tuple[int, Flight]] = []
        with self._changed:
            for which, key, digest, weight in missing:
                flight = self._flights.get(key)
                # Two inputs made to share a key are two flights all the same.
                if flight is not None and flight.digest == digest:
                    flight.calls.append(call)
                else:
                    flight = Flight(key, digest, call.inputs.items[call.first[which]], weight, call)
                    self._flights[key] = flight
                    new.append((which, flight))
                call.flights[which] = flight
            call.waiting += len(missing)
        return new

    def _look_again(self, new: Sequence[tuple[int, Flight]]) -> list[tuple[int, Flight]]:
        """Return which of these boarded inputs are still missing; the others land without a request."""
        flights = [flight for _, flight in new]
        found = self._keeper.look_up_again(flights)
        if found:
            self._land(found)
        return [(number, flight) for number, flight in new if flight.row is None]

    def _shut(self, deadline: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._flights, _until(deadline))
            self._closing.set()
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(_until(deadline))

    # On the threads that ask

    def _staff(self) -> None:
        """See to it that somebody works: wake one, or start one if none is idle and not all are there. Locked."""
        self._changed.notify()
        if not self._idle and len(self._threads) < self._settings.max_concurrency:
            thread = threading.Thread(target=self._work, name=f"embcache-request-{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _work(self) -> None:
        """Send requests until the buyer closes."""
        while True:
            with self._changed:
                while (task := self._next_task()) is None:
                    if self._closing.is_set():
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                self._staff()
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
        failure: EmbcacheError | None = None
        store_error: EmbcacheError | None = None
        news = False
        try:
            store_error = self._ask(flights)
        except InputRejected as refusal:
            flights, failure, news = self._refused(job, part, refusal)
        except Exception as error:  # noqa: BLE001 - a provider may be anybody's, and somebody waits for these flights
            failure = error if isinstance(error, EmbcacheError) else _foreign(error)
            with self._changed:
                job.cutter.failed(part)
        else:
            with self._changed:
                news = job.cutter.taken(part)
        with self._changed:
            if failure is not None:  # asking on would meet the same
                for left in job.cutter.drop_waiting():
                    flights += job.flights[left.start : left.stop]
            if job.cutter.finished and job in self._jobs:
                self._end(job)
        if failure is not None:
            for flight in [*flights, *job.refused]:  # those refused before were not at fault themselves
                flight.error = failure
        self._land(flights, store_error)
        if news and self._keeper.cap.bad is not None:
            self._keeper.remember_cap()

    def _refused(
        self, job: _Job, part: Part, refusal: InputRejected
    ) -> tuple[list[Flight], EmbcacheError | None, bool]:
        """Note that ``part`` was refused; return which flights that ends, why the job ends with it, and cap news."""
        with self._changed:
            news = job.cutter.refused(part)
            if part.size > 1:
                return [], None, news  # they are asked for again, in two halves
            flight = job.flights[part.start]
            flight.error = refusal
            job.refused.append(flight)
            # Of single inputs gathered from many callers, some may be bad without the request being wrong.
            hopeless = job.cutter.hopeless and not (job.gathers is not None and self._keeper.cap.good)
            return [flight], _hopeless(refusal) if hopeless else None, news

    def _land(self, flights: Sequence[Flight], store_error: EmbcacheError | None = None) -> None:
        """Tell all who wait for ``flights`` that these are there, with a vector or an error."""
        landed: dict[Call, int] = {}
        with self._changed:
            self.landings += 1
            for flight in flights:
                if self._flights.get(flight.key) is flight:
                    del self._flights[flight.key]
                for call in flight.calls:
                    landed[call] = landed.get(call, 0) + 1
            for call, count in landed.items():
                call.waiting -= count
                call.store_error = call.store_error or store_error
            done = [call for call in landed if not call.waiting]
            self._changed.notify_all()
        for call, count in landed.items():
            if call.progress is not None:
                call.progress.update(count)
        for call in done:
            call.wake()

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
        self._keeper.ledger.add({"requests": 1})
        self._count(owner, requests=1)
        try:
            reply = self._provider.embed(ask)
        except ProviderError as error:
            if error.unaccounted:
                self._keeper.ledger.add({"unknown_requests": 1})
                self._count(owner, unknown_requests=1)
            raise
        told = reply.total_tokens
        bill = {"unknown_requests": 1} if told is None else {"billed_tokens": told}
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
        return self._keeper.keep(flights, bill)

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
        with self._changed:  # a call may have several requests under way
            owner.count(**counts)

    def _check_model(self, reply: Reply) -> None:
        asked = self._settings.space.model
        if reply.model is not None and reply.model != asked:
            self._keeper.ledger.add_to_session({"model_changes": 1})
            self._keeper.note("model", f"asked for the model {asked!r}, the provider answered as {reply.model[:80]!r}")


def _until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


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
