"""What one ``embed()`` does, from inputs to result: look up, send for what is missing, put together.

The synchronous and the asynchronous face share it: ``begin()`` answers at once, and the call's future completes when
everything is there; how a face waits for it is the face's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embcache.buyer import Buyer
from embcache.codec import FLOAT32
from embcache.errors import EmbcacheError, InputRejected, ProviderError, StoreError
from embcache.flight import Call
from embcache.keeper import Keeper
from embcache.keys import decode_space, fingerprints
from embcache.report import begin_progress
from embcache.types import CacheStats, EmbedResult, Usage
from embcache.usage import figures, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embcache.codec import Entry
    from embcache.config import Parts
    from embcache.inputs import Inputs

LOOK_UP = 2000
"""Inputs looked up, proved and placed at a time, which bounds the memory it takes."""


class Engine:
    """The work behind an embedder."""

    def __init__(self, parts: Parts) -> None:
        """Take ``parts`` into service; nothing is opened and no thread started yet."""
        self.settings = parts.settings
        self._provider = parts.provider
        self._store = parts.store
        self._owns_store = parts.owns_store
        self.keeper = Keeper(parts.settings, parts.store)
        self._buyer = Buyer(parts.settings, parts.provider, self.keeper)

    def begin(self, inputs: Inputs, *, refresh: bool, wake: Callable[[], None]) -> Call:
        """Look up ``inputs``, send for what is missing, and return the call without waiting for that.

        Args:
            inputs: what is asked.
            refresh: send for all of it, whatever the store has.
            wake: called on a thread of the engine once all is there; never, if the call is not ``pending``.

        Raises:
            StoreError: the store cannot be read, with ``on_store_error="raise"``.
        """
        if self._buyer.closed:
            message = "this embedder is closed; make a new one"
            raise EmbcacheError(message)
        call = Call(inputs, wake)
        landings = self._buyer.landings
        missing = self._look_up(call, skip=refresh)
        if missing:
            call.progress = begin_progress(len(missing), wanted=self.settings.progress)
            call.pending = True
            self._buyer.order(call, missing, None if refresh else landings)
        return call

    def finish(self, call: Call) -> EmbedResult:
        """Return what a call that is done gives, or raise what went wrong.

        Raises:
            InputRejected, ProviderError, ConfigError: see :mod:`embcache.errors`.
            StoreError: the store failed, with ``on_store_error="raise"``.
        """
        if call.progress is not None:
            call.progress.close()
        failed = {which: flight.error for which, flight in call.flights.items() if flight.error is not None}
        self._settle(call)
        if failed:
            raise _error_of(call, failed) from None
        if call.store_error is not None and self.settings.raise_store_errors:
            raise StoreError(str(call.store_error)) from None
        landed = [which for which, flight in call.flights.items() if flight.row is not None]
        if landed:
            rows = bytearray().join(call.flights[which].row or b"" for which in landed)
            call.place(landed, np.frombuffer(rows, dtype=FLOAT32).reshape(len(landed), -1))
        call.repeat()
        vectors = np.empty((0, self.keeper.dims or 0), dtype=FLOAT32) if call.out is None else call.out
        counts = call.counts
        return EmbedResult(
            vectors=vectors[0] if call.inputs.single else vectors,
            usage=Usage(
                counts["prompt_tokens"], counts["billed_tokens"], counts["saved_tokens"], counts["unknown_requests"]
            ),
            hits=counts["hits"],
            misses=counts["misses"],
            duplicates=counts["duplicates"],
            requests=counts["requests"],
            model=call.model or self.settings.space.model,
        )

    def forget(self, inputs: Inputs) -> int:
        """Remove what is stored for ``inputs``; return how many entries that were.

        Raises:
            StoreError: it could not be removed.
        """
        keys, _ = fingerprints(self.settings.space, inputs.kind, list(dict.fromkeys(inputs.payloads)))
        return self._store.delete_many(keys)

    def stats(self) -> CacheStats:
        """Return the figures of the whole store.

        Raises:
            StoreError: the store cannot be read.
        """
        self.keeper.flush()
        totals = self._store.totals()
        spaces = [(decode_space(name), entries, size) for name, (entries, size) in totals.spaces.items()]
        return summarise(totals.accounts, spaces, self.settings.prices, totals.bytes_on_disk)

    def session(self) -> CacheStats:
        """Return the figures of this embedder alone."""
        space = self.settings.space
        return figures(self.keeper.ledger.session(), space.provider, space.model, self.settings.prices)

    def close(self, patience: float | None = None) -> None:
        """Wait for what is being bought, tell the store the rest, and end the threads.

        Args:
            patience: seconds to wait at most; None waits until all is bought.
        """
        self._buyer.close(patience)
        self.keeper.flush()
        self._provider.close()
        if self._owns_store:
            self._store.close()

    def _look_up(self, call: Call, *, skip: bool) -> list[tuple[int, bytes, bytes]]:
        """Place what the store has of a call's distinct inputs; return the others as (number, key, digest)."""
        inputs, space, missing = call.inputs, self.settings.space, list[tuple[int, bytes, bytes]]()
        for start in range(0, len(call.first), LOOK_UP):
            chunk = range(start, min(start + LOOK_UP, len(call.first)))
            keys, digests = fingerprints(space, inputs.kind, [inputs.payloads[call.first[number]] for number in chunk])
            if skip:
                missing += zip(chunk, keys, digests, strict=True)
                continue
            found, opened, failure = self.keeper.look_up(keys, digests)
            call.store_error = call.store_error or failure
            if found:
                held = [chunk[place] for place in found]
                call.place(held, opened.vectors)
                _credit(call, held, opened.entries)
            lacking = set(range(len(chunk))).difference(found)
            missing += [(chunk[place], keys[place], digests[place]) for place in sorted(lacking)]
        return missing

    def _settle(self, call: Call) -> None:
        """Count what a call that is done took and spared."""
        misses = len(call.sent)
        duplicates = sum(call.times(which) for which in call.sent) - misses
        for which, flight in call.flights.items():
            spared = call.times(which) - (which in call.sent)
            if flight.entry is not None and spared:
                _credit(call, [which], [flight.entry], spared)
        call.counts.update(hits=call.size - misses - duplicates, misses=misses, duplicates=duplicates)
        names = ("hits", "misses", "duplicates", "saved_tokens", "saved_exact")
        if self.keeper.ledger.add(**{name: call.counts[name] for name in names}):
            self._buyer.nudge()


def _credit(call: Call, which: Sequence[int], entries: Sequence[Entry], times: int | None = None) -> None:
    """Count what was spared: each occurrence what that very entry was billed."""
    call.model = call.model or entries[0].model
    for number, entry in zip(which, entries, strict=True):
        if entry.tokens:
            saved = entry.tokens * (call.times(number) if times is None else times)
            call.counts["saved_tokens"] += saved
            call.counts["saved_exact"] += saved * entry.exact


def _error_of(call: Call, failed: Mapping[int, Exception]) -> Exception:
    """Return the one error that tells a caller what went wrong with its call.

    1. A failure that concerns the provider or the configuration: it says why nothing more was sent. 2. Otherwise the
    inputs at fault, all of one kind by index: those the server refused, or those whose vectors were unusable.
    """
    kept = call.size - len(call.positions(list(failed)))
    of_inputs = {
        which: error for which, error in failed.items() if isinstance(error, ProviderError) and error.of_inputs
    }
    rejected = {which: error for which, error in failed.items() if isinstance(error, InputRejected)}
    for which, error in failed.items():
        if which not in of_inputs and which not in rejected:
            return error.at((), kept) if isinstance(error, ProviderError) else type(error)(*error.args)
    named: Mapping[int, InputRejected | ProviderError] = rejected or of_inputs
    return next(iter(named.values())).at(call.positions(list(named)), kept)
