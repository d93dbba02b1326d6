"""Removes entries from a store on disk: looked at first, then taken away some hundred at a time, then given back."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from embcache.choosing import MINUTE, Survey, excess, make_room
from embcache.codec import Entry, entry_of
from embcache.errors import StoreBusy
from embcache.keys import decode_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from embcache.choosing import Choice, Cut
    from embcache.stores.disk import DiskStore
    from embcache.types import Space

T = TypeVar("T")

REFUSALS = b"refusal:"
ROWS = 250
"""Entries removed by one transaction: others have their turn after each."""
SECONDS_TO_INSIST = 30.0
"""How long somebody else may hold the cache before we give up."""
SECONDS_BETWEEN = 0.05


def room_for(store: DiskStore, choice: Choice, limit: int, older: float) -> Cut:
    """Return the cut after which the file of ``store`` takes about ``limit`` bytes, or holds nothing of ``choice``.

    Args:
        store: what is to shrink.
        choice: what may go.
        limit: bytes.
        older: seconds since 1970; what was bought before goes in any case.
    """
    ages: dict[int, int] = {}
    for _, record, _, entry in _chosen(store, choice, Survey()):
        minute = entry.created // MINUTE
        ages[minute] = ages.get(minute, 0) + len(record)
    spaces = store.totals().spaces.values()
    entries, held = (sum(counts) for counts in zip((0, 0), *spaces, strict=True))
    return make_room(ages, excess(store.used(), held, entries, limit), older)


def survey(store: DiskStore, choice: Choice, cut: Cut) -> Survey:
    """Return what would go."""
    found = Survey()
    for _, record, space, entry in _going(store, choice, cut, found):
        found.count(space, entry, len(record))
    return found


def remove(store: DiskStore, choice: Choice, cut: Cut, removed: Callable[[int], object]) -> None:
    """Remove what the cut takes, and give the disk back what it took.

    An entry that somebody has bought anew meanwhile stays.

    Args:
        store: where from.
        choice: of which spaces.
        cut: which of their entries.
        removed: told after each transaction how many entries went with it.

    Raises:
        StoreError: the cache cannot be written; what is removed is removed.
    """
    going = ((key, record) for key, record, _, _ in _going(store, choice, cut, Survey()))
    while records := dict(islice(going, ROWS)):
        removed(insist(lambda records=records: store.discard(records)))  # type: ignore[misc]  # bound at once
    insist(store.vacuum)


def remove_refusals(store: DiskStore, removed: Callable[[int], object]) -> None:
    """Remove what is remembered of inputs that a server refused; ``removed`` is told how many, time and again."""
    keys = store.keys_of(REFUSALS)
    for start in range(0, len(keys), ROWS):
        removed(insist(lambda some=keys[start : start + ROWS]: store.delete_many(some)))  # type: ignore[misc]
    insist(store.vacuum)


def move_accounts(store: DiskStore, names: Mapping[bytes, bytes], removed: Callable[[int], object]) -> None:
    """Count what accounts hold to others, by their names, and remove them; ``removed`` is told how many, as above."""
    rest = iter(names.items())
    while some := dict(islice(rest, ROWS)):
        removed(insist(lambda some=some: store.move_accounts(some)))  # type: ignore[misc]  # bound at once


def insist(action: Callable[[], T]) -> T:
    """Return what ``action`` returns, tried again and again while somebody else holds the cache.

    Raises:
        StoreBusy: it was held for too long.
    """
    end = time.monotonic() + SECONDS_TO_INSIST
    while True:
        try:
            return action()
        except StoreBusy as error:
            if error.started or time.monotonic() > end:
                raise
            time.sleep(SECONDS_BETWEEN)


def _going(store: DiskStore, choice: Choice, cut: Cut, found: Survey) -> Iterator[tuple[bytes, bytes, Space, Entry]]:
    """Yield (key, record, space, what stands beside the vector) of what the cut takes."""
    goes = cut.taker()
    for row in _chosen(store, choice, found):
        if goes(row[3].created, len(row[1])):
            yield row


def _chosen(store: DiskStore, choice: Choice, found: Survey) -> Iterator[tuple[bytes, bytes, Space, Entry]]:
    """Yield what proves itself of the spaces chosen; the rest is counted in ``found``, and is for ``verify``."""
    spaces: dict[bytes, Space | None] = {}
    for key, record, name in store.scan():
        if name not in spaces:
            space = decode_space(name) if name else None
            spaces[name] = space if space is not None and choice.takes(space) else None
        space = spaces[name]
        if space is None:
            found.damaged += not name  # whose it is nobody knows any more
            continue
        entry = entry_of(record)
        if isinstance(entry, Entry):
            yield key, record, space, entry
        else:
            found.damaged += 1
