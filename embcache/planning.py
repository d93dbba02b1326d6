"""What a call would find, send and cost, before it is made: looks, and neither sends nor stores nor counts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embcache.estimate import basis_of, cost_of, estimate
from embcache.keys import fingerprints
from embcache.types import Plan
from embcache.usage import price_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embcache.config import Settings
    from embcache.inputs import Inputs
    from embcache.keeper import Keeper
    from embcache.memory import Memory
    from embcache.types import Kind

READ = 4096
"""Inputs held in memory at a time, where nobody says how many are embedded in one call."""
LOOK_UP = 256
"""Inputs looked up and proved at a time."""
NAME_BYTES = 16
"""Of the digest of a miss, by which it is known when it comes again: enough for no two ever to be the same."""


class Planner:
    """Goes through inputs, some at a time, and adds up what is to be done for them."""

    def __init__(self, settings: Settings, keeper: Keeper, memory: Memory | None, *, refresh: bool) -> None:
        """Plan for ``settings``, with what ``keeper`` and ``memory`` have; with ``refresh``, as if they had nothing."""
        self._settings = settings
        self._keeper = keeper
        self._memory = None if refresh else memory
        self._refresh = refresh
        self._missed: set[bytes] = set()
        self._kind: Kind = "text"
        self._inputs = self._hits = self._duplicates = self._refused = 0
        self._size = self._requests = self._of_call = 0

    def read(self, batches: Iterable[Inputs], *, calls: bool) -> Plan:
        """Return the plan for all of ``batches``; ``calls`` tells that each is a call of its own.

        Raises:
            InvalidInput: an input cannot be embedded.
            StoreError: the store cannot be read.
        """
        for inputs in batches:
            self._add(inputs)
            if calls:
                self._end_call()
        self._end_call()
        settings, misses, known = self._settings, len(self._missed), self._keeper.measured()
        tokens = estimate(self._kind, misses, self._size, known)
        return Plan(
            model=settings.space.model,
            inputs=self._inputs,
            hits=self._hits,
            misses=misses,
            duplicates=self._duplicates,
            refused=self._refused,
            requests=self._requests,
            tokens=tokens,
            cost=cost_of(tokens, price_of(settings.space.provider, settings.space.model, settings.prices)),
            basis=basis_of(self._kind, known),
        )

    def _add(self, inputs: Inputs) -> None:
        self._kind = inputs.kind
        self._inputs += len(inputs.items)
        rest: Sequence[int] = range(len(inputs.items))
        if self._memory is not None:
            held, _, entries = self._memory.find(inputs.names)
            self._hits += len(entries)
            rest = () if held is None else sorted(set(rest).difference(held))
        inputs.check(rest)
        for start in range(0, len(rest), LOOK_UP):
            self._look_up(inputs, rest[start : start + LOOK_UP])

    def _look_up(self, inputs: Inputs, positions: Sequence[int]) -> None:
        payloads = inputs.payloads(positions)
        keys, digests = fingerprints(self._settings.space, inputs.kind, payloads)
        lacking: Sequence[int] = range(len(positions))
        refused: Iterable[int] = ()
        if not self._refresh:
            found, _, failure = self._keeper.look_up(keys, digests, again=True)
            if failure is not None:
                raise failure
            self._hits += len(found)
            lacking = sorted(set(lacking).difference(found))
            refused = self._keeper.refusals([(p, keys[p], digests[p], len(payloads[p])) for p in lacking])
        for place in lacking:
            name = digests[place][:NAME_BYTES]
            if place in refused:
                self._refused += 1
            elif name in self._missed:
                self._duplicates += 1
            else:
                self._missed.add(name)
                self._size += len(payloads[place])
                self._of_call += 1

    def _end_call(self) -> None:
        """Cut what is missing of a call into requests."""
        self._requests += -(-self._of_call // self._keeper.largest_request())
        self._of_call = 0
