"""Keeps what was bought: the store as one embedder sees it, which never makes a call fail unless it is asked to.

Knows what the store knows of the embedder's space (its dimensions, how much the server takes at once), writes vectors
and accounts in one commit, and tells of what goes wrong: every time in the log, once as a warning.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING

from embcache.batching import Cap
from embcache.codec import open_entries, open_entry, open_note, seal_entry, seal_note
from embcache.errors import BadReply, EmbcacheWarning, InputRejected, StoreBusy, StoreError
from embcache.estimate import SUMS
from embcache.keys import encode_space, note_key
from embcache.ledger import Ledger
from embcache.stores.base import PinConflict
from embcache.usage import counts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.codec import Entry, Opened, Understood
    from embcache.config import Settings
    from embcache.flight import Flight, Missing
    from embcache.ledger import Accounts
    from embcache.stores.base import Store
    from embcache.types import Vectors

log = logging.getLogger("embcache")
log.addHandler(logging.NullHandler())  # what is logged appears where the user's program wants it, or nowhere

CAP_SECONDS = 86_400
"""How long it is remembered that a server refused a number of inputs: a day."""
REFUSAL = b"refusal:"
REFUSAL_SECONDS = 86_400
"""How long it is remembered that a server refused an input as such: a day."""
EVENTS = {
    "evicted": "entries were removed to keep size_limit ({count}); they are bought again when asked for",
    "quarantined": "the cache file was damaged; it was set aside and a new one begun",
    "store_errors": "a write to the cache failed after it had taken longer than a call waits ({count})",
    "store_busy": "a write to the cache was given up after it had taken longer than a call waits ({count})",
    "reopened": "the cache file was replaced while it was open; it was opened anew",
}


class Keeper:
    """The store, the account book and the notices of one embedder.

    Attributes:
        ledger: what was counted.
        cap: how many inputs the server takes at once.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        """Take ``store`` into service; nothing is read yet."""
        self._settings = settings
        self._store = store
        self._space_name = encode_space(settings.space)
        self._pin_key = note_key(settings.space, "dimensions")
        self._cap_key = note_key(settings.space, "largest request")
        self._dims = settings.dimensions
        self._pinned = False
        self._learned = False
        self._told: set[str] = set()
        self._notices: deque[str] = deque()
        self._understood: Understood = {}
        self._measured: Mapping[str, int] | None = None
        self.cap = Cap()
        self.ledger = Ledger(settings.space, settings.project)

    @property
    def dims(self) -> int | None:
        """The length of this space's vectors, None where none is known yet."""
        self._learn()
        return self._dims

    def look_up(
        self, keys: Sequence[bytes], digests: Sequence[bytes], *, again: bool = False, out: Vectors | None = None
    ) -> tuple[list[int], Opened, StoreError | None]:
        """Return which of ``keys`` are held and proved, with their vectors, and what went wrong with the store.

        The vectors are put into ``out``, if there is one: one after the other, as many as are found.

        What goes wrong is counted, unless it was counted before or will be, since it is looked up ``again``.

        Raises:
            StoreError: the store cannot be read, with ``on_store_error="raise"``.
        """
        failure = None
        try:
            held = self._store.get_many(keys)
        except StoreError as error:
            if self._settings.raise_store_errors:
                raise
            if not again:
                self._store_failed(error, len(keys))
            held, failure = {}, error
        there = [place for place, key in enumerate(keys) if key in held]
        records, identities = [held[keys[p]] for p in there], [digests[p] for p in there]
        opened = open_entries(records, identities, self.dims, self._understood, out)
        if opened.faults and not again:
            self.ledger.add({str(fault): count for fault, count in opened.faults.items()})
            for fault, count in opened.faults.items():
                self.note(fault, f"entries of the cache failed their proof ({fault}: {count}); they are bought again")
        if opened.hits:
            self._dims = opened.vectors.shape[1]
        return [there[hit] for hit in opened.hits], opened, failure

    def find_one(self, key: bytes, digest: bytes) -> tuple[Vectors, Entry] | None:
        """Return the vector held under ``key``, the caller's own, with what is kept beside it, if it proves itself.

        Nothing is counted, and nothing raised: what is not answered here is to be looked up by :meth:`look_up`.
        """
        if self._dims is None:
            return None
        try:
            record = self._store.get_many((key,)).get(key)
        except StoreError:
            return None
        return None if record is None else open_entry(record, digest, self._dims, self._understood)

    def look_up_again(self, flights: Sequence[Flight]) -> list[Flight]:
        """Give those of ``flights`` their vectors that the store has by now, and return them."""
        try:
            keys, digests = [flight.key for flight in flights], [flight.digest for flight in flights]
            found, opened, _ = self.look_up(keys, digests, again=True)
        except StoreError:
            return []  # the call has met it when it looked itself
        for place, vector, entry in zip(found, opened.vectors, opened.entries, strict=True):
            flights[place].row, flights[place].entry = vector.tobytes(), entry
        return [flights[place] for place in found]

    def claim(self, keys: Sequence[bytes], owner: bytes, seconds: float) -> set[bytes]:
        """Lease ``keys`` to ``owner``; return those that no other process holds, all of them if the store fails."""
        if self._settings.read_only:
            return set(keys)
        try:
            return self._store.claim(keys, owner, seconds)
        except StoreError:
            return set(keys)  # better bought twice than not at all; the write that follows meets the same, and says so

    def release(self, keys: Sequence[bytes], owner: bytes) -> None:
        """End the leases of ``owner`` on ``keys``, unless the store fails: then they end by themselves."""
        if not self._settings.read_only:
            with contextlib.suppress(StoreError):
                self._store.release(keys, owner)

    def remember_refusals(self, flights: Sequence[Flight]) -> None:
        """Keep that the server refused these inputs as such, so that the next run does not ask again for a day."""
        notes: dict[bytes, bytes] = {}
        for flight in flights:
            if isinstance(flight.error, InputRejected):
                key = REFUSAL + flight.digest
                facts = {"s": flight.error.status, "c": flight.error.code, "t": int(time.time())}
                notes[key] = seal_note(key, facts)
        self._put({}, {}, notes=notes)

    def refusals(self, missing: Sequence[Missing]) -> dict[int, InputRejected]:
        """Return which of these inputs are known to be refused, by their number in the call."""
        try:
            held = self._store.get_many([REFUSAL + digest for _, _, digest, _ in missing])
        except StoreError:
            return {}
        known: dict[int, InputRejected] = {}
        for number, _, digest, _ in missing if held else ():
            note = open_note(REFUSAL + digest, held.get(REFUSAL + digest))
            if note is not None and 0 <= time.time() - note["t"] < REFUSAL_SECONDS:
                told = f"{note['s']}" + (f" {note['c']}" if note["c"] else "")
                reason = f"refused before ({told}); it is not asked for again for a day, unless with refresh=True"
                known[number] = InputRejected(reason, status=note["s"], code=note["c"])
        return known

    def keep(
        self, flights: Sequence[Flight], bill: Mapping[str, int], release: bytes | None = None
    ) -> StoreError | None:
        """Store the vectors of ``flights`` and the ``bill`` of their request in one commit; return what went wrong.

        A flight whose vector has another length than the space's is given that as its error. The leases of ``release``
        end with the commit.
        """
        usage = self.ledger.take(bill)
        sound = [(f, f.row, f.entry) for f in flights if f.row is not None and f.entry is not None]
        records = {flight.key: seal_entry(flight.digest, row, entry) for flight, row, entry in sound}
        dims = sound[0][2].dims if sound else None
        pin = None if self._pinned or dims is None else (self._pin_key, seal_note(self._pin_key, {"d": dims}))
        try:
            failure = self._put(records, usage, pin=pin, release=release)
        except PinConflict:
            # 1. Another process bought the first vectors of this space meanwhile, and they have another length. 2. What
            # is pinned does not prove itself, being damaged or of another version: then it is no pin, and is replaced.
            self._learned, self._dims = False, None
            if pin is None or self.dims is not None or not self._learned:
                for flight, _, _ in sound:
                    reason = f"the provider's vector has {dims} dimensions instead of {self.dims}; it was not stored"
                    flight.row, flight.entry, flight.error = None, None, BadReply(reason, status=200, of_inputs=True)
                return self._put({}, usage, release=release)
            failure = self._put(records, usage, notes=dict([pin]), release=release)
        if records:
            self._dims = dims
        if records and failure is None:
            self._pinned = True
            self.ledger.add_to_session({"entries": len(records), "bytes_on_disk": sum(map(len, records.values()))})
        return failure

    def largest_request(self) -> int:
        """Return how many inputs a request will mostly hold, by what is known of the server."""
        self._learn()
        return self.cap.largest(self._settings.batch_size)

    def measured(self) -> dict[str, int]:
        """Return what requests for texts of this model were billed, by this embedder and before it: the sums of SUMS.

        Raises:
            StoreError: the store cannot be read.
        """
        session, before = self.ledger.session(), self.measured_before()
        return {name: before.get(name, 0) + session.get(name, 0) for name in SUMS}

    def measured_before(self) -> Mapping[str, int]:
        """Return what was measured before this embedder, as the store told when it was first asked.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._measured is None:
            session = self.ledger.session()
            held = counts_of(self._store.totals().accounts, self._settings.space.provider, self._settings.space.model)
            # What this embedder has bought is in there, unless it stores nothing.
            ours = {} if self._settings.read_only else session
            before = {name: held.get(name, 0) - ours.get(name, 0) for name in SUMS}
            # Less than that where a write failed: then what the store has is not told from what is counted here.
            self._measured = before if min(before.values()) >= 0 else {}
        return self._measured

    def remember_cap(self) -> None:
        """Keep what was learned of how much the server takes at once, for the next process."""
        note = {"g": self.cap.good, "b": self.cap.bad, "t": int(time.time())}
        self._put({}, {}, notes={self._cap_key: seal_note(self._cap_key, note)})

    def flush(self) -> None:
        """Tell the store what was counted; what it does not take is kept for the next time."""
        if usage := self.ledger.take({}):
            self._put({}, usage)

    def note(self, kind: str, message: str) -> None:
        """Tell of something that went wrong without failing: in the log, and once of each kind as a warning."""
        log.warning(message)
        if kind not in self._told:
            self._told.add(kind)
            self._notices.append(message)

    def tell(self, stacklevel: int) -> None:
        """Give out the warnings that have come up. Called on a caller's own thread, whose filters apply."""
        while self._notices:
            warnings.warn(self._notices.popleft(), EmbcacheWarning, stacklevel=stacklevel + 1)

    def _learn(self) -> None:
        """Read what the store knows of the space, once."""
        if self._learned:
            return
        try:
            notes = self._store.get_many([self._pin_key, self._cap_key])
        except StoreError:
            return  # the look-up beside it meets the same, and says so
        self._learned = True
        pin = open_note(self._pin_key, notes.get(self._pin_key))
        if pin is not None:
            self._dims, self._pinned = pin["d"], True
        cap = open_note(self._cap_key, notes.get(self._cap_key))
        if cap is not None and 0 <= time.time() - cap["t"] < CAP_SECONDS:
            self.cap.good, self.cap.bad = cap["g"], cap["b"]

    def _put(
        self,
        records: Mapping[bytes, bytes],
        usage: Accounts,
        *,
        notes: Mapping[bytes, bytes] | None = None,
        pin: tuple[bytes, bytes] | None = None,
        release: bytes | None = None,
    ) -> StoreError | None:
        if self._settings.read_only:
            return None
        try:
            self._store.put_many(records, usage, space=self._space_name, notes=notes, pin=pin, release=release)
        except StoreError as error:
            if isinstance(error, StoreBusy) and error.started:
                return None  # it is being written, only not in the time a call may wait; the store tells if it fails
            self.ledger.give_back(usage)
            self._store_failed(error, len(records))
            return error
        for name, count in self._store.events().items():
            self.ledger.add({name: count})
            self.note(name, EVENTS[name].format(count=count))
        return None

    def _store_failed(self, error: StoreError, count: int) -> None:
        counter = "store_busy" if isinstance(error, StoreBusy) else "store_errors"
        self.ledger.add({counter: count})
        if count:  # accounts that wait for better times need no telling
            self.note(counter, f"{error}; it goes on without the cache (vectors concerned: {count})")
