"""Entries from a store to a file to hand on, and back: each proved on its way out and on its way in."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from embcache.codec import Entry, entry_of, identity_in, open_note, seal_note
from embcache.keys import decode_space, encode_space, note_key
from embcache.stores.base import PinConflict
from embcache.stores.pack import PackSpace, read_pack
from embcache.stores.pruning import insist

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from embcache.choosing import Choice
    from embcache.stores.base import Store
    from embcache.stores.disk import DiskStore
    from embcache.stores.pack import Packed
    from embcache.types import Space

COMMIT = 500
"""Entries of one commit."""
CHUNK = 250
DIMENSIONS = "dimensions"


class Exported(NamedTuple):
    """An entry on its way out: proved to be what was stored for some input."""

    key: bytes
    record: bytes
    space: bytes
    entry: Entry


def spaces_of(store: DiskStore, choice: Choice) -> list[PackSpace]:
    """Return the spaces of ``store`` that are meant, by name."""
    names = [name for name in sorted(store.totals().spaces) if choice.takes(decode_space(name))]
    return [PackSpace(name, pinned(store, decode_space(name))) for name in names]


def pinned(store: Store, space: Space) -> int | None:
    """Return the length that all vectors of ``space`` have in ``store``, None where it holds none to its knowledge."""
    key = note_key(space, DIMENSIONS)
    note = open_note(key, store.get_many([key]).get(key))
    dims = None if note is None else note.get("d")
    return dims if type(dims) is int else None


def entries_of(store: DiskStore, spaces: Iterable[PackSpace], left_out: Counter[str]) -> Iterator[Exported]:
    """Yield all entries of ``spaces``, ascending by key; what does not prove itself is counted in ``left_out``.

    So are entries whose space nobody knows any more (``space``): they may be of any.
    """
    dims = {space.name: space.dims for space in spaces}

    def chosen() -> Iterator[tuple[bytes, bytes, bytes]]:
        for key, record, name in store.scan_by_key():
            if name in dims:
                yield key, record, name
            elif not name:
                left_out["space"] += 1

    return _proved(chosen(), dims, left_out)


def entries_under(
    store: Store, space: PackSpace, keys: Collection[bytes], left_out: Counter[str]
) -> Iterator[Exported]:
    """Yield the entries of ``space`` that are held under ``keys``, ascending; counts as :func:`entries_of`."""
    ordered = iter(sorted(keys))

    def held() -> Iterator[tuple[bytes, bytes, bytes]]:
        while chunk := list(islice(ordered, CHUNK)):
            found = store.get_many(chunk)
            yield from ((key, found[key], space.name) for key in chunk if key in found)

    return _proved(held(), {space.name: space.dims}, left_out)


def _proved(
    rows: Iterable[tuple[bytes, bytes, bytes]], dims: dict[bytes, int | None], left_out: Counter[str]
) -> Iterator[Exported]:
    for key, record, name in rows:
        entry = entry_of(record)
        if not isinstance(entry, Entry):
            left_out[entry] += 1
        elif dims[name] not in (None, entry.dims):
            left_out[DIMENSIONS] += 1
        else:
            yield Exported(key, record, name, entry)


@dataclass(slots=True)
class Imported:
    """What became of the entries of a pack.

    Attributes:
        added: new here.
        replaced: held here as well, but bought later, or damaged.
        there: held here already, as old or older.
        refused: by reason: the name of the proof it failed, ``dimensions`` (of another length than those of its space
            here), ``space`` (of no space that we know to name).
    """

    added: int = 0
    replaced: int = 0
    there: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])


def import_pack(file: BinaryIO, store: Store, imported: Imported) -> None:
    """Put the entries of a pack into ``store``, which keeps the older of two for one input.

    Args:
        file: the pack.
        store: where to.
        imported: counts what became of them, commit after commit.

    Raises:
        PackError: the pack is cut short or damaged; what was proved before that is in the store, but for the last few.
        StoreError: the store cannot be read or written.
    """
    doors: dict[bytes, _Door] = {}
    entries = read_pack(file)
    while batch := list(islice(entries, COMMIT)):
        by_space: dict[bytes, list[Packed]] = {}
        for packed in batch:
            by_space.setdefault(packed.space.name, []).append(packed)
        for name, some in by_space.items():
            if name not in doors:
                doors[name] = _Door(store, some[0].space)
            doors[name].let_in(some, imported)


class _Door:
    """Where the entries of one space come in."""

    def __init__(self, store: Store, told: PackSpace) -> None:
        self._store = store
        self._name = told.name
        self._refusal: str | None = None
        space = _space_of(told.name)
        if space is None:
            self._refusal = "space"
            return
        self._pin = note_key(space, DIMENSIONS)
        known = {dims for dims in (_asked(space), pinned(store, space), told.dims) if dims is not None}
        self._dims = next(iter(known), None)
        if len(known) > 1:
            self._refusal = DIMENSIONS

    def let_in(self, some: list[Packed], imported: Imported) -> None:
        """Put into the store what is sound and new, in one commit, and count what became of each."""
        if self._refusal is not None:
            imported.refused[self._refusal] += len(some)
            return
        held = self._store.get_many([packed.key for packed in some])
        records: dict[bytes, bytes] = {}
        replaced = 0
        for packed in some:
            entry = entry_of(packed.record)
            if not isinstance(entry, Entry):
                imported.refused[entry] += 1
                continue
            self._dims = self._dims or entry.dims
            if entry.dims != self._dims:
                imported.refused[DIMENSIONS] += 1
            elif packed.key not in held:
                records[packed.key] = packed.record
            elif _is_better(packed.record, entry, held[packed.key]):
                records[packed.key] = packed.record
                replaced += 1
            else:
                imported.there += 1
        if not records:
            return
        pin = self._pin, seal_note(self._pin, {"d": self._dims})
        try:
            insist(lambda: self._store.put_many(records, space=self._name, pin=pin))
        except PinConflict:  # somebody has bought the first of this space meanwhile, and of another length
            self._refusal = DIMENSIONS
            imported.refused[DIMENSIONS] += len(records)
        else:
            imported.added += len(records) - replaced
            imported.replaced += replaced


def _is_better(record: bytes, entry: Entry, held: bytes) -> bool:
    """Return whether a record is to take the place of the one held under its key."""
    other = entry_of(held)
    if not isinstance(other, Entry):
        return True
    return identity_in(record) == identity_in(held) and entry.created < other.created


def _space_of(name: bytes) -> Space | None:
    """Return the space of that name, None where it is none that we would have named so."""
    try:
        space = decode_space(name)
        parts = [space.provider, space.model, space.format, *(part for pair in space.fields for part in pair)]
        _asked(space)
        is_ours = all(type(part) is str for part in parts) and encode_space(space) == name
    except (ValueError, TypeError, RecursionError):
        return None
    return space if is_ours else None


def _asked(space: Space) -> int | None:
    """Return the length of vector that a space asks for, None where it asks for none.

    Raises:
        ValueError: it asks for what is no length.
    """
    asked = dict(space.fields).get(DIMENSIONS)
    dims: object = None if asked is None else json.loads(asked)
    if dims is None or (type(dims) is int and dims > 0):
        return dims
    raise ValueError("no length of a vector")
