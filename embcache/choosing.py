"""Which entries are meant: those of a space, of an age, or the oldest until the rest fits. Decided without a store."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from embcache.keys import EPOCH
from embcache.types import CacheStats
from embcache.usage import add, figures, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from embcache.codec import Entry
    from embcache.types import Space

PROJECT = "project"
MINUTE = 60
"""Seconds within which the order of age is that of the store: what is held of a store's ages stays small."""
SECONDS = {"h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
LARGEST = 2**62
EMPTY = 262_144
"""Bytes of a database that holds nothing."""
INDEXED = 40
"""Bytes an entry takes in the index, which does not shrink as surely as the entries do."""
SLACK = 131_072
"""Bytes in pages that stay for what is left on them."""
NOTHING_OLDER = -math.inf


def parse_age(text: str) -> int:
    """Return the seconds of an age such as ``12h``, ``90d``, ``8w`` or ``1y`` (365 days).

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9})([hdwy])", text.strip().lower(), re.ASCII)
    if found is None:
        raise ValueError("give an age such as 12h, 90d, 8w or 1y")
    return int(found[1]) * SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``500MB``, ``5GB`` or ``4GiB``; a number alone is bytes.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in BYTES or float(found[1]) * BYTES[found[2]] > LARGEST:
        raise ValueError("give a size such as 500MB, 5GB or 4GiB")
    return math.floor(float(found[1]) * BYTES[found[2]])


@dataclass(frozen=True, slots=True)
class Choice:
    """Of which spaces entries are meant; None leaves a side open.

    Attributes:
        model: as it is asked for.
        provider: as keys call it.
        epoch: the name of one.
    """

    model: str | None = None
    provider: str | None = None
    epoch: str | None = None

    def takes(self, space: Space) -> bool:
        """Return whether entries of ``space`` are meant."""
        return (
            self.model in (None, space.model)
            and self.provider in (None, space.provider)
            and self.epoch in (None, epoch_of(space))
        )


def epoch_of(space: Space) -> str | None:
    """Return the epoch of a space, None where it has none."""
    return dict(space.fields).get(EPOCH)


def accounts_of(project: str, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return those of the ``names`` of accounts that are of a project, with what they are called without it."""
    found: dict[bytes, bytes] = {}
    for name in names:
        *fields, more = json.loads(name)
        told = cast("dict[str, object]", more) if isinstance(more, dict) else {}
        if told.get(PROJECT) == project:
            rest = {key: value for key, value in told.items() if key != PROJECT}
            found[name] = json.dumps([*fields, rest] if rest else fields).encode()
    return found


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of the entries that are meant go, by when they were bought (seconds since 1970).

    Attributes:
        older: those bought before this.
        before: those bought before this, which makes room.
        rest: of those bought in the minute from ``before`` on, as many bytes as they come.
    """

    older: float = NOTHING_OLDER
    before: float = NOTHING_OLDER
    rest: int = 0

    def taker(self) -> Callable[[int, int], bool]:
        """Return what tells of entry after entry, given when it was bought and its bytes, whether it goes."""
        left = self.rest

        def goes(created: int, size: int) -> bool:
            nonlocal left
            if self.before <= created < self.before + MINUTE and left > 0:
                left -= size
                return True
            return created < self.before or created < self.older

        return goes


EVERYTHING = Cut(older=math.inf)


def excess(used: int, held: int, entries: int, limit: int) -> int:
    """Return how many bytes of entries must go for a file to fit.

    Args:
        used: bytes of the file that are in use.
        held: bytes of all entries in it.
        entries: how many there are.
        limit: bytes that the file may take.
    """
    if used <= limit:
        return 0
    shrinking = used - EMPTY - entries * INDEXED
    return min(held, math.ceil((used - limit + SLACK) * held / shrinking)) if shrinking > 0 else held


def make_room(ages: Mapping[int, int], size: int, older: float = NOTHING_OLDER) -> Cut:
    """Return the cut that takes the oldest entries, ``size`` bytes or a little more, and all the ``older`` ones.

    Args:
        ages: bytes of entries by the minute (since 1970) in which they were bought.
        size: bytes that are to go.
        older: seconds since 1970; what was bought before goes in any case.
    """
    before = NOTHING_OLDER
    for minute in sorted(ages):
        if size <= 0:
            break
        if ages[minute] > size:
            return Cut(older, minute * MINUTE, size)
        before = (minute + 1) * MINUTE
        size -= ages[minute]
    return Cut(older, before)


@dataclass(slots=True)
class Part:
    """What some entries are worth.

    Attributes:
        entries: how many.
        size: their bytes.
        tokens: what they were billed, and would be again.
        exact: how many of these tokens are the server's own figure for an input; the rest are shares of a request's.
        unknown: entries of which nobody told what they were billed.
    """

    entries: int = 0
    size: int = 0
    tokens: int = 0
    exact: int = 0
    unknown: int = 0

    def count(self, entry: Entry, size: int) -> None:
        """Count one entry more."""
        self.entries += 1
        self.size += size
        self.tokens += entry.tokens or 0
        self.exact += (entry.tokens or 0) * entry.exact
        self.unknown += entry.tokens is None

    def add(self, other: Part) -> None:
        """Count those of ``other`` too."""
        self.entries += other.entries
        self.size += other.size
        self.tokens += other.tokens
        self.exact += other.exact
        self.unknown += other.unknown


@dataclass(slots=True)
class Survey:
    """What entries are worth, by provider and by what figures call their model.

    Attributes:
        parts: by provider, model and label.
        damaged: entries that do not prove themselves, and are counted nowhere else.
    """

    parts: dict[tuple[str, str, str], Part] = field(default_factory=dict[tuple[str, str, str], Part])
    damaged: int = 0

    def count(self, space: Space, entry: Entry, size: int) -> None:
        """Count one entry more."""
        named = space.provider, space.model, label_of(space.model, epoch_of(space))
        self.parts.setdefault(named, Part()).count(entry, size)

    def total(self) -> Part:
        """Return all of it together."""
        total = Part()
        for part in self.parts.values():
            total.add(part)
        return total

    def by_label(self) -> dict[str, tuple[Part, float | None]]:
        """Return what each label's entries are worth, and what they would cost again; None where a price is unknown."""
        labels: dict[str, tuple[Part, CacheStats]] = {}
        for (provider, model, label), part in sorted(self.parts.items()):
            total, sum_ = labels.setdefault(label, (Part(), CacheStats()))
            total.add(part)
            labels[label] = total, add(sum_, _priced(provider, model, part))
        return {label: (part, sum_.cost) for label, (part, sum_) in labels.items()}

    def cost(self) -> float | None:
        """Return what all of it would cost again, by the prices of today; None where one is unknown."""
        total = CacheStats()
        for (provider, model, _), part in self.parts.items():
            total = add(total, _priced(provider, model, part))
        return total.cost


def _priced(provider: str, model: str, part: Part) -> CacheStats:
    return figures({"billed_tokens": part.tokens}, provider, model, {})
