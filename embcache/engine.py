"""What one ``embed()`` does, from inputs to result: look up, send for what is missing, put together.

The synchronous and the asynchronous face share it: ``begin()`` answers at once, and the call's ``wake`` is called when
everything is there; how a face waits for that is the face's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from embcache.buyer import Buyer
from embcache.codec import FLOAT32
from embcache.errors import (
    BudgetExceeded,
    CacheMiss,
    EmbcacheError,
    InputRejected,
    InvalidInput,
    ProviderError,
    StoreError,
)
from embcache.flight import Call, Flight
from embcache.inputs import Inputs, in_parts
from embcache.keeper import Keeper
from embcache.keys import fingerprint, fingerprints
from embcache.memory import Memory
from embcache.planning import READ, Planner
from embcache.report import begin_progress, read_stats
from embcache.types import CacheStats, EmbedResult, Usage
from embcache.usage import figures

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from embcache.codec import Entry
    from embcache.config import Parts
    from embcache.flight import Missing
    from embcache.types import Plan, Vectors

LOOK_UP = 256
"""Inputs looked up, proved and placed at a time: about a megabyte, which stays in the processor's cache."""
FEW = 32
"""The same of single texts, whose vectors are arrays of their own: little memory to be touched for the first time."""


OF_A_CALL = ("hits", "misses", "duplicates", "saved_tokens", "saved_exact")
"""What is counted when a call is done; the rest is counted as it happens."""


class Engine:
    """The work behind an embedder."""

    def __init__(self, parts: Parts) -> None:
        """Take ``parts`` into service; nothing is opened and no thread started yet."""
        self.settings = parts.settings
        self._provider = parts.provider
        self._store = parts.store
        self._owns_store = parts.owns_store
        self.keeper = Keeper(parts.settings, parts.store)
        self._memory: Memory | None = None
        self._buyer = Buyer(parts.settings, parts.provider, self.keeper)

    def begin(self, inputs: Inputs, *, refresh: bool, mask: bool, wake: Callable[[], None]) -> Call:
        """Look up ``inputs``, send for what is missing, and return the call without waiting for that.

        Args:
            inputs: what is asked.
            refresh: send for all of it, whatever the store has.
            mask: whether refused inputs become rows of NaN.
            wake: called on a thread of the engine once all is there; never, if the call is not ``pending``.

        Raises:
            InvalidInput: an input cannot be embedded.
            CacheMiss: something is missing, with ``offline=True``.
            StoreError: the store cannot be read, with ``on_store_error="raise"``.
        """
        if self._buyer.closed:
            message = "this embedder is closed; make a new one"
            raise EmbcacheError(message)
        call = Call(inputs, refresh=refresh, mask=mask, wake=wake)
        rest = range(call.size) if refresh or self._memory is None else self._recall(call, self._memory)
        if rest:
            inputs.check(rest)
            call.number(rest)
            missing = self._look_up(call)
            if missing and not refresh:
                missing = self._leave_out_refused(call, missing)
            if missing and self.settings.offline:
                raise CacheMiss(call.positions([number for number, *_ in missing]))
            if missing:
                call.progress = begin_progress(len(missing), wanted=self.settings.progress)
                call.pending = True
                self._buyer.order(call, missing, anew=refresh)
        return call

    def recall(self, text: str) -> Vectors | None:
        """Return the vector of a single text if it is held in memory: the shortest of calls."""
        found = None if self._memory is None or self._buyer.closed else self._memory.find_one(text)
        return None if found is None else self._count_hit(*found)

    def find_one(self, text: str) -> Vectors | None:
        """Return the vector of a single text if memory or the store has it: the short way of a call that finds.

        Whatever else there is to say of it, that it is missing, damaged or no text, a whole call says.
        """
        if self.settings.memory_size is not None or self._buyer.closed:
            return self.recall(text)
        try:
            key, digest = fingerprint(self.settings.space, "text", text.encode())
        except UnicodeEncodeError:
            return None
        found = self.keeper.find_one(key, digest)
        return None if found is None else self._count_hit(*found)

    def _count_hit(self, vector: Vectors, entry: Entry) -> Vectors:
        if self.keeper.ledger.add_hits((entry,)):
            self._buyer.nudge()
        return vector

    def peek(self, texts: Sequence[str]) -> list[tuple[Vectors, Entry] | None]:
        """Return the vectors of single texts that the store has, looked up together; None for each of the others.

        Nothing is sent, and nothing raised: what is not answered here is asked for by itself.
        """
        found: list[tuple[Vectors, Entry] | None] = [None] * len(texts)
        if self._buyer.closed:
            return found
        nudge, dims = False, self.keeper.dims
        room = None if dims is None else np.empty((min(len(texts), FEW), dims), dtype=FLOAT32)
        for start in range(0, len(texts), FEW):
            some = texts[start : start + FEW]
            inputs = Inputs(some, some, "text", single=False)
            try:
                inputs.check(range(len(some)))
                keys, digests = fingerprints(self.settings.space, "text", inputs.payloads(range(len(some))))
                places, opened, _ = self.keeper.look_up(keys, digests, again=True, out=room)
            except (InvalidInput, StoreError):
                continue
            for place, vector, entry in zip(places, opened.vectors, opened.entries, strict=True):
                found[start + place] = vector.copy(), entry
            if places and self.keeper.ledger.add_hits(opened.entries):
                nudge = True
            self._memorise([some[place] for place in places], opened.vectors, opened.entries, replace=False)
        if nudge:
            self._buyer.nudge()
        return found

    def finish(self, call: Call) -> EmbedResult:
        """Return what a call that is done gives, or raise what went wrong.

        Raises:
            InputRejected, ProviderError, BudgetExceeded, ConfigError: see :mod:`embcache.errors`.
            StoreError: the store failed, with ``on_store_error="raise"``.
        """
        if call.progress is not None:
            call.progress.close()
        self._settle(call)
        if call.flights:
            self._receive(call)
        if call.store_error is not None and self.settings.raise_store_errors:
            raise StoreError(str(call.store_error)) from None
        call.repeat()
        vectors = np.empty((0, self.keeper.dims or 0), dtype=FLOAT32) if call.out is None else call.out
        get = call.counts.get
        return EmbedResult(
            vectors[0] if call.inputs.single else vectors,
            Usage(get("prompt_tokens", 0), get("billed_tokens", 0), get("saved_tokens", 0), get("unknown_requests", 0)),
            get("hits", 0),
            get("misses", 0),
            get("duplicates", 0),
            get("requests", 0),
            call.model or self.settings.space.model,
            call.rejected,
        )

    def plan(self, given: object, *, refresh: bool, batch_size: int | None) -> Plan:
        """Return what it would take to embed what is given, in one call or ``batch_size`` inputs at a time.

        Raises:
            InvalidInput: an input cannot be embedded.
            StoreError: the store cannot be read.
        """
        if self._buyer.closed:
            message = "this embedder is closed; make a new one"
            raise EmbcacheError(message)
        planner = Planner(self.settings, self.keeper, self._memory, refresh=refresh)
        return planner.read(in_parts(given, batch_size or READ), calls=batch_size is not None)

    def forget(self, inputs: Inputs) -> int:
        """Remove what is stored for ``inputs``; return how many entries that were.

        Raises:
            StoreError: it could not be removed.
        """
        names = inputs.names
        inputs.check(range(len(names)))
        positions = list({name: position for position, name in enumerate(names)}.values())
        keys, _ = fingerprints(self.settings.space, inputs.kind, inputs.payloads(positions))
        if self._memory is not None:
            self._memory.forget(names)
        return self._store.delete_many(keys)

    def stats(self) -> CacheStats:
        """Return the figures of the whole store.

        Raises:
            StoreError: the store cannot be read.
        """
        self.keeper.flush()
        return read_stats(self._store, self.settings.prices)

    def session(self) -> CacheStats:
        """Return the figures of this embedder alone."""
        space = self.settings.space
        return figures(self.keeper.ledger.session(), space.provider, space.model, self.settings.prices)

    def close(self, patience: float | None = None) -> None:
        """Wait for what is being bought, tell the store the rest, and end the threads.

        Args:
            patience: seconds to wait at most; None waits until all is bought.
        """
        self._buyer.close(patience, self._give_back)

    def _give_back(self) -> None:
        self.keeper.flush()  # what was counted since
        self._provider.close()
        if self._owns_store:
            self._store.close()

    def _recall(self, call: Call, memory: Memory) -> Sequence[int]:
        """Place what memory has; return the positions of the others."""
        which, vectors, entries = memory.find(call.inputs.names)
        if not entries:
            return range(call.size)
        call.place(range(call.size) if which is None else which, vectors)
        call.model = entries[0].model
        call.credit_all(entries, ())
        return () if which is None else sorted(set(range(call.size)).difference(which))

    def _look_up(self, call: Call) -> list[Missing]:
        """Place what the store has of a call's distinct inputs; return the others."""
        inputs, space = call.inputs, self.settings.space
        missing: list[Missing] = []
        for start in range(0, len(call.first), LOOK_UP):
            positions = call.first[start : start + LOOK_UP]
            payloads = inputs.payloads(positions)
            keys, digests = fingerprints(space, inputs.kind, payloads)
            found: Sequence[int] = ()
            if not call.refresh:
                # Where the length of vectors is known, each is copied once: from its record to its place.
                dims, where = self.keeper.dims, _place_of(positions)
                out = None if dims is None or where is None else call.room(dims)[where]
                found, opened, failure = self.keeper.look_up(keys, digests, out=out)
                call.store_error = call.store_error or failure
                if found:
                    held = [positions[place] for place in found] if len(found) < len(positions) else positions
                    self._memorise([inputs.names[p] for p in held], opened.vectors, opened.entries, replace=False)
                    # Last, since the vectors lie in the result: those that others' places are between move within it.
                    if out is None or len(found) < len(positions):
                        call.place(held, opened.vectors)
                    call.model = call.model or opened.entries[0].model
                    call.credit_all(opened.entries, [start + place for place in found])
            if len(found) < len(positions):
                lacking = sorted(set(range(len(positions))).difference(found))
                missing += [(start + place, keys[place], digests[place], len(payloads[place])) for place in lacking]
        return missing

    def _leave_out_refused(self, call: Call, missing: Sequence[Missing]) -> list[Missing]:
        """Return what is missing and not known to be refused; what is known ends there."""
        refusals = self.keeper.refusals(missing)
        for number, key, digest, weight in missing if refusals else ():
            if number in refusals:
                flight = Flight(key, digest, call.inputs.items[call.first[number]], weight, call)
                flight.error = refusals[number]
                call.flights[number] = flight
        return [one for one in missing if one[0] not in refusals]

    def _receive(self, call: Call) -> None:
        """Place what has landed, or raise why it has not."""
        failed = {number: flight.error for number, flight in call.flights.items() if flight.error is not None}
        refused = {number: error for number, error in failed.items() if _is_of_inputs(error)}
        if failed and not (call.mask and len(refused) == len(failed)):
            raise _error_of(call, failed) from None
        landed: list[int] = []
        rows: list[bytes] = []
        entries: list[Entry] = []
        for number, flight in call.flights.items():
            if flight.row is not None and flight.entry is not None:
                landed.append(number)
                rows.append(flight.row)
                entries.append(flight.entry)
        if landed:
            positions = [call.first[number] for number in landed]
            call.place_rows(positions, rows)
            call.model = entries[-1].model
            if call.out is not None and self.settings.memory_size is not None:
                names = [call.inputs.names[position] for position in positions]
                self._memorise(names, call.out[positions], entries, replace=call.refresh)
        for number, error in refused.items():
            call.mask_out(number, error, self.keeper.dims or 0)

    def _memorise(
        self, names: Sequence[Hashable], vectors: Vectors, entries: Sequence[Entry], *, replace: bool
    ) -> None:
        """Hold in memory what was read or bought, if there is a memory tier."""
        if self.settings.memory_size is None or not names:
            return
        if self._memory is None:
            self._memory = Memory(self.settings.memory_size, vectors.shape[1])
        self._memory.keep(names, vectors, entries, replace=replace)

    def _settle(self, call: Call) -> None:
        """Count what a call that is done took and spared."""
        hits, misses, duplicates = call.size, 0, 0
        for number, flight in call.flights.items():
            times = call.times(number)
            if flight.bought and flight.calls[0] is call:
                misses, duplicates, hits, times = misses + 1, duplicates + times - 1, hits - times, times - 1
            elif flight.error is not None:
                hits -= times
            if flight.entry is not None and times:
                call.credit(flight.entry, times)
        call.count(hits=hits, misses=misses, duplicates=duplicates)
        if self.keeper.ledger.add({name: call.counts[name] for name in OF_A_CALL if name in call.counts}):
            self._buyer.nudge()


def _place_of(positions: Sequence[int]) -> slice | None:
    """Return ascending positions as a slice, None where there are gaps between them."""
    start, stop = positions[0], positions[-1] + 1
    return slice(start, stop) if stop - start == len(positions) else None


def _error_of(call: Call, failed: Mapping[int, Exception]) -> Exception:
    """Return the one error that tells a caller what went wrong with its call.

    1. A failure that concerns the provider, the budget or the configuration: it says why nothing more was sent.
    2. Otherwise the inputs at fault, all of one kind by index: those the server refused, or those whose vectors were
    unusable.
    """
    kept = call.size - len(call.positions(list(failed)))
    unsent = [n for n, e in failed.items() if isinstance(e, BudgetExceeded)]
    of_inputs = {n: e for n, e in failed.items() if isinstance(e, ProviderError) and e.of_inputs}
    rejected = {n: e for n, e in failed.items() if isinstance(e, InputRejected)}
    for error in failed.values():
        if isinstance(error, BudgetExceeded):
            return error.at(call.positions(unsent), kept)
        if not _is_of_inputs(error):
            return error.at((), kept) if isinstance(error, ProviderError) else type(error)(*error.args)
    named: Mapping[int, InputRejected | ProviderError] = rejected or of_inputs
    return next(iter(named.values())).at(call.positions(list(named)), kept)


def _is_of_inputs(error: Exception) -> TypeGuard[InputRejected | ProviderError]:
    """Return whether an error concerns single inputs, the others of the request being sound."""
    return isinstance(error, InputRejected) or (isinstance(error, ProviderError) and error.of_inputs)
