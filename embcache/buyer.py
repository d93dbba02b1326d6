"""Buys what is missing: orders taken at a desk, requests on threads, flights shared by all who wait, in all processes.

A request that was sent belongs to the buyer, not to the caller. A caller may be interrupted or go away: the request
ends, is paid once, and what it brings is stored; what was not sent yet, and nobody else waits for, is not sent.

Over 400 lines, since desk, jobs and request threads change the same few tables under one lock, and are to be read
side by side.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embcache.asking import Asker, Unwanted
from embcache.batching import Cutter
from embcache.delivery import Delivery, Ending, Outcome
from embcache.errors import BudgetExceeded, EmbcacheError, InputRejected, ProviderError
from embcache.flight import Flight
from embcache.forks import tell_after_fork
from embcache.purse import Purse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embcache.batching import Part
    from embcache.config import Settings
    from embcache.flight import Call, Missing
    from embcache.keeper import Keeper
    from embcache.providers.base import Provider
    from embcache.types import Kind

GRACE = 1.0
"""Seconds the desk may take to answer that it has closed, beyond what it was given."""
LEASE_SECONDS = 5.0
"""How long other processes wait for one that died with what it was about to buy."""
RENEW_SECONDS = LEASE_SECONDS / 3
FIRST_LOOK_SECONDS = 0.03
LAST_LOOK_SECONDS = 0.5
"""How often to look whether another process has bought what it leased: soon at first, then less and less often."""


class _Job:
    """Misses on their way in one or more requests: those of one call, or single ones of many calls, gathered.

    Attributes:
        flights: what is to be bought; after ``claimed``, what this process buys of it.
        gathers: the kind of single inputs it was gathered from, None for a call's own.
        leases: whether to ask other processes before sending.
        since: when it began to wait for others, on the monotonic clock.
        pause: seconds until it looks again whether others have bought what they leased.
        owner: in whose name its inputs are leased.
        cutter: how its flights are cut into requests; None before it is known which it sends.
        refused: flights the server refused as such.
    """

    def __init__(self, flights: list[Flight], gathers: Kind | None, *, leases: bool) -> None:
        self.flights = flights
        self.gathers: Kind | None = gathers
        self.leases = leases
        self.since = time.monotonic()
        self.pause = FIRST_LOOK_SECONDS
        self.owner = os.urandom(16)
        self.cutter: Cutter | None = None
        self.claiming = False
        self.refused: list[Flight] = []


@dataclass(frozen=True, slots=True)
class _Order:
    """What a caller wants bought."""

    call: Call
    missing: Sequence[Missing]
    anew: bool


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
        self.closed = False
        """Whether nothing is bought any more."""
        self._begin(Purse(settings, keeper.measured_before))
        tell_after_fork(self)

    def _begin(self, purse: Purse) -> None:
        self._purse = purse
        self._asker = Asker(self._settings, self._provider, self._keeper, purse)
        self._delivery = Delivery(self._keeper, self._land, self._settings.max_concurrency)
        self._changed = threading.Condition()
        self._flights: dict[bytes, Flight] = {}
        self._jobs: deque[_Job] = deque()
        # Single inputs that wait for the gathered request of their kind to end; no list where none is under way.
        self._gathered: dict[Kind, list[Flight]] = {}
        # What other processes have leased, and when to look for it again.
        self._elsewhere: list[tuple[float, _Job]] = []
        self._renewal = 0.0
        self._threads: list[threading.Thread] = []
        self._working = 0
        self._idle = 0
        self._took_any = False
        self._closing = False
        self._ended = False
        self._orders: queue.SimpleQueue[_Order | _Close | None] = queue.SimpleQueue()
        if not self.closed:
            threading.Thread(target=self._serve, name="embcache-desk", daemon=True).start()

    def connections(self) -> list[object]:
        """Return what a child of a fork must neither use nor close: none of its own."""
        return []

    def after_fork(self) -> None:
        """Begin anew in a child: what is under way is the parent's to end."""
        self._begin(self._purse.of_child())

    # On a caller's thread

    def order(self, call: Call, missing: Sequence[Missing], *, anew: bool) -> None:
        """Have ``missing`` bought; ``call.wake`` is called once all is there.

        Args:
            call: who asks.
            missing: what to buy.
            anew: whether to buy it even if the store has it.
        """
        self._orders.put(_Order(call, missing, anew))
        if self._ended:  # the desk has gone home, and reads no more orders
            self._turn_away()

    def nudge(self) -> None:
        """Have what was counted written in a while."""
        self._orders.put(None)

    def close(self, patience: float | None, then: Callable[[], None]) -> None:
        """Wait until all is bought, ``patience`` seconds at most, and end the threads.

        Args:
            patience: how long; None waits until all is bought.
            then: called when nothing is under way any more: before this returns, or when what takes longer has ended
                too, since what was sent is paid for, and is stored however long it takes.
        """
        if self.closed:
            return
        self.closed = True
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._orders.put(_Close(None if patience is None else time.monotonic() + patience, done))
        with contextlib.suppress(queue.Empty):
            done.get(timeout=None if patience is None else patience + GRACE)
        self._keeper.flush()
        if self._threads:
            self._delivery.when_ended(then)
        else:
            then()

    # On the desk's thread

    def _serve(self) -> None:
        """Take orders until one says to close; between them, see to what has its time."""
        while True:
            try:
                order = self._orders.get(timeout=self._seconds_until_due())
            except queue.Empty:
                self._see_to_what_is_due()
                continue
            if isinstance(order, _Order):
                self._take(order)
            elif isinstance(order, _Close):
                self._shut(order)
                return

    def _take(self, order: _Order) -> None:
        new = self._board(order.call, order.missing)
        with self._changed:
            if len(new) == 1 and not order.anew:
                self._gather(order.call.inputs.kind, new[0])
            elif new:
                self._start(_Job(new, None, leases=not order.anew))

    def _board(self, call: Call, missing: Sequence[Missing]) -> list[Flight]:
        """Make a flight of each missing input, or join the one under way; return those that are new."""
        new: list[Flight] = []
        with self._changed:
            for number, key, digest, weight in missing:
                flight = self._flights.get(key)
                # Two inputs made to share a key are two flights all the same.
                if flight is not None and flight.digest == digest:
                    flight.calls.append(call)
                else:
                    flight = Flight(key, digest, call.inputs.items[call.first[number]], weight, call)
                    self._flights[key] = flight
                    new.append(flight)
                call.flights[number] = flight
            call.waiting += len(missing)
        return new

    def _seconds_until_due(self) -> float | None:
        """Return how long the desk may wait for an order, None for ever."""
        now = time.monotonic()
        with self._changed:
            times = [at - now for at, _ in self._elsewhere]
            if any(job.cutter is not None and job.leases for job in self._jobs):
                times.append(self._renewal - now)
        flush = self._keeper.ledger.seconds_until_flush()
        if flush is not None:
            times.append(flush)
        return max(0.0, min(times)) if times else None

    def _see_to_what_is_due(self) -> None:
        now = time.monotonic()
        if self._keeper.ledger.seconds_until_flush() == 0.0:
            self._keeper.flush()
        with self._changed:
            due = [job for at, job in self._elsewhere if at <= now]
            self._elsewhere = [(at, job) for at, job in self._elsewhere if at > now]
            leased = (
                [job for job in self._jobs if job.cutter is not None and job.leases] if self._renewal <= now else []
            )
        for job in due:
            self._land(self._keeper.look_up_again(job.flights))
            job.flights = [flight for flight in job.flights if flight.row is None]
            # One that waited as long as a request may take goes on without asking others.
            job.leases = now - job.since < self._settings.timeout
            if job.flights:
                with self._changed:
                    self._start(job)
        for job in leased:
            self._keeper.claim([flight.key for flight in job.flights], job.owner, LEASE_SECONDS)
        if leased:
            self._renewal = now + RENEW_SECONDS

    def _shut(self, order: _Close) -> None:
        def is_done() -> bool:
            return not self._flights

        deadline = order.deadline
        while not is_done() and (deadline is None or time.monotonic() < deadline):
            # What other processes have leased still has its time.
            self._see_to_what_is_due()
            wait = min(0.1, self._seconds_until_due() or 0.1, _until(deadline) or 0.1)
            with self._changed:
                self._changed.wait_for(is_done, wait)
        self._asker.stopping.set()
        self._purse.close()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(_until(deadline))
        self._delivery.join(_until(deadline))
        self._ended = True
        self._turn_away()
        order.done.put(None)

    def _turn_away(self) -> None:
        """Fail the orders that came too late. Called by the desk when it ends, and by whoever orders after that."""
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            if isinstance(order, _Order):
                call = order.call
                for number, key, digest, weight in order.missing:
                    flight = Flight(key, digest, call.inputs.items[call.first[number]], weight, call)
                    flight.error = EmbcacheError("this embedder is closed; make a new one")
                    call.flights[number] = flight
                call.wake()

    # Jobs, with the lock held

    def _gather(self, kind: Kind, flight: Flight) -> None:
        """Send for a single input at once, or together with others when the request under way has ended."""
        if kind in self._gathered:
            self._gathered[kind].append(flight)
        else:
            self._gathered[kind] = []
            self._start(_Job([flight], kind, leases=True))

    def _start(self, job: _Job) -> None:
        job.cutter = None if job.leases else Cutter(len(job.flights), self._settings.batch_size, self._keeper.cap)
        self._jobs.append(job)
        self._staff()

    def _end(self, job: _Job) -> None:
        """Take leave of a job that is done, and send for what was gathered meanwhile."""
        self._jobs.remove(job)
        if job.gathers is not None:
            waiting = self._gathered.pop(job.gathers)
            if waiting:
                self._gathered[job.gathers] = []
                self._start(_Job(waiting, job.gathers, leases=True))

    def _staff(self) -> None:
        """See to it that somebody works: wake one, or start one if none is idle and not all are there."""
        self._changed.notify()
        if not self._idle and len(self._threads) < self._settings.max_concurrency:
            thread = threading.Thread(target=self._work, name=f"embcache-request-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._working += 1
            thread.start()

    def _next_task(self) -> tuple[_Job, Part | None] | None:
        """Return a job to claim, or the next request of the oldest job that has one to send now."""
        for job in self._jobs:
            if job.cutter is None:
                if not job.claiming:
                    job.claiming = True
                    return job, None
            elif (part := job.cutter.next()) is not None:
                return job, part
        return None

    # On the threads that ask

    def _work(self) -> None:
        """Send requests until the buyer closes."""
        while True:
            with self._changed:
                while (task := self._next_task()) is None:
                    if self._closing:
                        self._working -= 1
                        if not self._working:  # only now will nothing come any more, however long it took
                            self._delivery.end()
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                self._staff()
            job, part = task
            if part is None:
                self._claim(job)
            elif job.cutter is not None:
                self._buy(job, job.cutter, part)

    def _claim(self, job: _Job) -> None:
        """Find out which inputs of a job nobody else is buying, nor has bought meanwhile."""
        claimed = self._keeper.claim([flight.key for flight in job.flights], job.owner, LEASE_SECONDS)
        mine = [flight for flight in job.flights if flight.key in claimed]
        theirs = [flight for flight in job.flights if flight.key not in claimed]
        found = self._keeper.look_up_again(mine)
        mine = [flight for flight in mine if flight.row is None]
        with self._changed:
            if theirs:
                other = _Job(theirs, None, leases=True)
                other.since, other.pause = job.since, min(job.pause * 2, LAST_LOOK_SECONDS)
                self._elsewhere.append((time.monotonic() + job.pause, other))
                self._orders.put(None)  # the desk has something to see to
            job.flights, job.claiming = mine, False
            job.cutter = Cutter(len(mine), self._settings.batch_size, self._keeper.cap)
            if mine:
                self._renewal = self._renewal or time.monotonic() + RENEW_SECONDS
                self._orders.put(None)
                self._staff()
            else:
                self._end(job)
        if not mine and claimed:
            self._keeper.release(list(claimed), job.owner)
        if found:
            self._land(found)

    def _buy(self, job: _Job, cutter: Cutter, part: Part) -> None:
        """Send one request, with its retries, and hand on whatever came of it; the next one need not wait for that."""
        flights = job.flights[part.start : part.stop]
        bill: dict[str, int] | None = None
        wrong: EmbcacheError | None = None
        try:
            bill = self._asker.ask(flights)
        except EmbcacheError as error:
            wrong = error
        self._delivery.wait_for_room()
        with self._changed:
            failure: EmbcacheError | None = None
            news = False
            if wrong is None:
                news, self._took_any = cutter.taken(part), True
            elif isinstance(wrong, InputRejected):
                flights, failure, news = self._refused(job, cutter, part, wrong)
            elif isinstance(wrong, Unwanted):
                flights = self._leave_unsent(cutter, part, flights, wrong)
            else:
                failure = wrong
                cutter.failed(part)
            if failure is not None:
                flights += self._give_up(job, cutter, failure)
                for flight in flights:
                    flight.error = failure
            ending = None
            if cutter.finished and job in self._jobs:
                self._end(job)
                keys = [flight.key for flight in job.flights]
                refused = job.refused if cutter.took_any else ()
                ending = Ending(job.owner if job.leases else None, keys, refused)
            # With the lock held: what ends a job is delivered after all else of it.
            self._delivery.put(Outcome(flights, bill, news and self._keeper.cap.bad is not None, ending))

    def _leave_unsent(self, cutter: Cutter, part: Part, flights: list[Flight], error: Unwanted) -> list[Flight]:
        """Return those flights that nobody waits for; whoever has joined another one meanwhile is sent for."""
        cutter.failed(part)
        wanted = [flight for flight in flights if flight.is_wanted]
        unwanted = [flight for flight in flights if not flight.is_wanted]
        for flight in unwanted:
            flight.error = error
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]  # so that nobody joins it any more
        if wanted:
            self._start(_Job(wanted, None, leases=False))
        return unwanted

    def _give_up(self, job: _Job, cutter: Cutter, failure: EmbcacheError) -> list[Flight]:
        """Return what is not sent any more, since asking on would meet the same ``failure``."""
        left = [flight for part in cutter.drop_waiting() for flight in job.flights[part.start : part.stop]]
        if not isinstance(failure, BudgetExceeded):
            for flight in job.refused:  # it was not these inputs that were at fault
                flight.error = failure
        return left

    def _refused(
        self, job: _Job, cutter: Cutter, part: Part, refusal: InputRejected
    ) -> tuple[list[Flight], EmbcacheError | None, bool]:
        """Note that ``part`` was refused; return which flights that ends, why the job ends with it, and cap news."""
        news = cutter.refused(part)
        if part.size > 1:
            return [], None, news  # they are asked for again, in two halves
        flight = job.flights[part.start]
        flight.error = refusal
        job.refused.append(flight)
        # As it was taken before, a request is not wrong; and of inputs gathered from many callers some may be bad.
        hopeless = cutter.hopeless and not (self._took_any or (job.gathers is not None and self._keeper.cap.good))
        return [flight], _hopeless(refusal) if hopeless else None, news

    def _land(self, flights: Sequence[Flight], store_error: EmbcacheError | None = None) -> None:
        """Tell all who wait for ``flights`` that these are there, with a vector or an error."""
        landed: dict[Call, int] = {}
        with self._changed:
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


def _until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _hopeless(refusal: InputRejected) -> ProviderError:
    """Return what it means that single inputs are refused and none is taken."""
    reason = f"every input is refused, so that the request itself must be wrong: {refusal.reason}"
    return ProviderError(reason, status=refusal.status, code=refusal.code, request_id=refusal.request_id)
