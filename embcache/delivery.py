"""Hands what was bought to the store, and then to those who wait for it, while the next request is under way already.

One thread does it, in the order in which answers came. So nobody is told of a vector before its commit, a request
thread need not wait for the disk, and the leases of a job end after everything that it bought was stored.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embcache.errors import EmbcacheError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embcache.flight import Flight
    from embcache.keeper import Keeper

    Land = Callable[[Sequence[Flight], EmbcacheError | None], None]

ROOM = 2
"""Outcomes that may wait for the store, for each request in flight: more, and the buying waits for a slow disk."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What other processes are told when a job has ended.

    Attributes:
        owner: in whose name its inputs were leased, None where they were not.
        keys: which were.
        refused: inputs that the server refused as such.
    """

    owner: bytes | None
    keys: Sequence[bytes]
    refused: Sequence[Flight]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request.

    Attributes:
        flights: what ends with it, with a vector or an error each.
        bill: what it was billed, by the names of the accounts; None where there is nothing to store.
        cap_news: whether more is known of how much the server takes at once.
        ending: what to tell other processes, where its job ended with it.
    """

    flights: Sequence[Flight]
    bill: Mapping[str, int] | None
    cap_news: bool
    ending: Ending | None


class Delivery:
    """The thread that stores and lands.

    Args:
        keeper: stores what came.
        land: called with flights whose vectors are stored, or have an error, and what went wrong with the store.
        requests: requests in flight at most.
    """

    def __init__(self, keeper: Keeper, land: Land, requests: int) -> None:
        """Be ready; the thread starts with the first outcome."""
        self._keeper = keeper
        self._land = land
        self._room = threading.Semaphore(ROOM * requests)
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._then: Callable[[], None] | None = None

    def wait_for_room(self) -> None:
        """Wait until one more outcome may be put. Not with a lock held that ``land`` takes."""
        self._room.acquire()

    def put(self, outcome: Outcome) -> None:
        """Have an outcome stored and landed, after those put before; there must be room for it."""
        with self._changing:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="embcache-delivery", daemon=True)
                self._thread.start()
        self._outcomes.put(outcome)

    def end(self) -> None:
        """End the thread once all is delivered; nothing may be put any more."""
        if self._thread is None:
            self._say_ended()
        else:
            self._outcomes.put(None)

    def join(self, patience: float | None) -> None:
        """Wait for the thread's end, ``patience`` seconds at most."""
        if self._thread is not None:
            self._thread.join(patience)

    def when_ended(self, then: Callable[[], None]) -> None:
        """Have ``then`` called when all is delivered, at once if it is."""
        with self._changing:
            if not self._ended:
                self._then = then
                return
        then()

    def _say_ended(self) -> None:
        with self._changing:
            self._ended, then = True, self._then
        if then is not None:
            then()

    def _work(self) -> None:
        while (outcome := self._outcomes.get()) is not None:
            try:
                error = self._store(outcome)
            except Exception as fault:  # noqa: BLE001 - a store may be anybody's, and somebody waits for these flights
                error = StoreError(f"the store raised {type(fault).__name__}")
            self._land(outcome.flights, error)
            self._room.release()
        self._say_ended()

    def _store(self, outcome: Outcome) -> StoreError | None:
        """Store what came with its bill in one commit, and tell other processes; return what went wrong."""
        error, ending = None, outcome.ending
        owner = ending.owner if ending else None
        if outcome.bill is not None:
            error = self._keeper.keep(outcome.flights, outcome.bill, owner)
        if ending and ending.refused:
            self._keeper.remember_refusals(ending.refused)
        if ending and owner is not None and (outcome.bill is None or error is not None):
            self._keeper.release(ending.keys, owner)
        if outcome.cap_news:
            self._keeper.remember_cap()
        return error
