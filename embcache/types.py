"""The nouns: what is asked, what came back, what it cost. Frozen, without behaviour beyond showing themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from embcache.show import html_table, printable, show_bytes, show_money, show_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.errors import InputRejected, ProviderError

Vectors = NDArray[np.float32]
"""An array of little-endian float32: ``(n, dims)`` for many inputs, ``(dims,)`` for one."""

Item = str | list[int]
"""One input as it is sent: a text, or the token ids of one."""

Kind = Literal["text", "tokens"]


@dataclass(frozen=True, slots=True)
class Space:
    """What, besides the input itself, decides which vector comes back: the namespace of a key.

    Attributes:
        provider: who computes it, such as ``novita`` or ``127.0.0.1:8080/v1``.
        model: the model as it is asked for.
        format: ``encoding_format`` as it is asked for, ``base64`` or ``float``.
        fields: every further thing that changes the vector, as (name, canonical value), sorted by name.
    """

    provider: str
    model: str
    format: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to a provider: what is sent, and how long it may take.

    Attributes:
        items: the inputs, all texts or all lists of token ids; never empty.
        model: the model to ask.
        encoding_format: ``base64`` or ``float``.
        dimensions: the length of vector to ask for; None sends nothing.
        extra_body: further fields of the request, sent as they are.
        timeout: seconds for the request as a whole.
    """

    items: Sequence[Item]
    model: str
    encoding_format: str
    dimensions: int | None
    extra_body: Mapping[str, Any]
    timeout: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider answered, read but not yet judged.

    Attributes:
        rows: one vector an entry of the answer, as little-endian float32 bytes; None where it could not be read as one.
        indexes: the ``index`` of each row; None where the answer gave none.
        model: the model as answered, None where the answer named none.
        prompt_tokens: tokens billed as the server tells them, None where it told nothing usable.
        total_tokens: the same for the whole request; what the accounts use.
    """

    rows: Sequence[bytes | None]
    indexes: Sequence[int | None]
    model: str | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the provider counts them.

    Attributes:
        prompt_tokens: billed for this call, as the server told.
        total_tokens: billed for this call in all, as the server told; equal to ``prompt_tokens`` for embeddings.
        saved_tokens: what the inputs that were not sent had been billed when they were bought.
        unknown_requests: requests of this call that may have been billed without the server telling how much.
    """

    prompt_tokens: int = 0
    total_tokens: int = 0
    saved_tokens: int = 0
    unknown_requests: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class EmbedResult:
    """The answer to one call, with what it took. ``hits + misses + duplicates`` is the number of inputs.

    Attributes:
        vectors: float32, shape ``(n, dims)``, or ``(dims,)`` where one text was given; yours to write to.
        usage: tokens billed and saved.
        hits: inputs answered without a request of this call: from the store, or from another caller's request.
        misses: distinct inputs that this call sent.
        duplicates: further occurrences of a miss in the same call.
        requests: requests this call started, refused and repeated ones included.
        model: the model as the provider named it when it computed the vectors; the one asked for where it named none.
        rejected: with ``errors="mask"``, the error of each input that has no vector but a row of NaN, by its position.
    """

    vectors: Vectors
    usage: Usage
    hits: int
    misses: int
    duplicates: int
    requests: int
    model: str
    rejected: Mapping[int, InputRejected | ProviderError] = field(default_factory=lambda: MappingProxyType({}))

    def _repr_html_(self) -> str:
        """Return what the call took as a small table for a notebook; of the vectors, only what they are."""
        rows = [
            ("vectors", f"{self.vectors.dtype.name} {self.vectors.shape}"),
            ("hits", f"{self.hits:,}"),
            ("misses", f"{self.misses:,}"),
            ("duplicates", f"{self.duplicates:,}"),
            ("requests", f"{self.requests:,}"),
            ("tokens billed", f"{self.usage.total_tokens:,}"),
            ("tokens saved", f"{self.usage.saved_tokens:,}"),
        ]
        if self.usage.unknown_requests:
            rows.append(("requests of unknown cost", f"{self.usage.unknown_requests:,}"))
        if self.rejected:
            rows.append(("inputs refused", f"{len(self.rejected):,}"))
        return html_table(rows, caption=self.model)


Number = TypeVar("Number", int, float)


class Range(NamedTuple, Generic[Number]):
    """An amount that is not known: the least it may be, what it is expected to be, the most it may be."""

    low: Number
    expected: Number
    high: Number


Basis = Literal["measured", "assumed", "counted"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call would find, send and cost. ``hits + misses + duplicates + refused`` is ``inputs``.

    Attributes:
        model: the model that would be asked.
        inputs: how many were looked at.
        hits: inputs that need no request.
        misses: distinct inputs that would be sent.
        duplicates: further occurrences of a miss.
        refused: inputs that the server refused as such within a day, and would not be asked for again.
        requests: requests that it takes, if none is refused and none repeated.
        tokens: what they would be billed.
        cost: the same in the currency of the prices; None where the price is not known.
        basis: what ``tokens`` rests on: ``"measured"``, on what earlier requests for this model were billed;
            ``"assumed"``, on nothing but what is usual, so that the range is wide; ``"counted"``, on token ids.
    """

    model: str
    inputs: int
    hits: int
    misses: int
    duplicates: int
    refused: int
    requests: int
    tokens: Range[int]
    cost: Range[float] | None
    basis: Basis

    def __str__(self) -> str:
        """Return the plan as lines of text."""
        return "\n".join(f"{name}: {amount}" for name, amount in plan_rows(self))

    def _repr_html_(self) -> str:
        """Return the plan as a small table for a notebook."""
        _, *rows = plan_rows(self)
        return html_table(rows, caption=printable(self.model))


BASES = {
    "measured": "from what earlier requests were billed",
    "assumed": "assumed: nothing was bought of this model yet",
    "counted": "counted: each token id is one",
}


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return a plan for people, as (what, how much)."""
    low, expected, high = plan.tokens
    rows = [
        ("model", printable(plan.model)),
        ("inputs", f"{plan.inputs:,}"),
        ("hits", f"{plan.hits:,}"),
        ("misses", f"{plan.misses:,}"),
        ("duplicates", f"{plan.duplicates:,}"),
        ("requests", f"{plan.requests:,}"),
        ("tokens", f"{expected:,} ({low:,} to {high:,})" if high else "0"),
    ]
    if plan.cost is None:
        rows.append(("cost", show_money(None)))
    else:
        least, cost, most = map(show_money, plan.cost)
        rows.append(("cost", f"{cost} ({least} to {most})" if plan.cost.high else cost))
    if high:
        rows.append(("estimate", BASES[plan.basis]))
    if plan.refused:
        rows.insert(5, ("refused before", f"{plan.refused:,}"))
    return rows


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What was paid and what was saved: of a whole store since its beginning, or of one embedder.

    Attributes:
        entries: vectors in the store (of a session: stored by it).
        bytes_on_disk: bytes of the store's files; of a part of them and in a session, of the entries alone.
        hits: inputs answered without a request.
        misses: distinct inputs sent.
        duplicates: further occurrences of a miss in the same call.
        requests: requests sent, refused and repeated ones included.
        billed_tokens: tokens billed, as the server told them.
        saved_tokens: tokens that hits and duplicates would have been billed again.
        cost: what the billed tokens cost, in the currency of the prices; None where a price is unknown.
        saved_cost: the same for the saved tokens.
        saved_exact: how many of ``saved_tokens`` are exact; the rest is a request's bill divided by length.
        unknown_requests: requests that may have been billed without the server telling how much.
        corrupt: entries that failed their checksum or form, and were fetched again.
        wrong_text: entries that belonged to another input than their key says, and were not used.
        bad_version: entries of a version this embcache does not read.
        store_errors: vectors that could not be read or stored because the store failed.
        store_busy: the same because somebody else held it.
        evicted: entries removed to keep ``size_limit``.
        quarantined: times a damaged file was set aside.
        reopened: times the file was replaced under an open store.
        by_model: the same figures for each model, one of an epoch by itself.
        by_project: for each project, ``""`` being what was done for none. Entries belong to no project, and count 0.
        by_day: for each day (UTC) of which anything is booked, by its ISO date, in order. Entries count 0.

    The parts have no parts of their own, and a session has none.
    """

    entries: int = 0
    bytes_on_disk: int = 0
    hits: int = 0
    misses: int = 0
    duplicates: int = 0
    requests: int = 0
    billed_tokens: int = 0
    saved_tokens: int = 0
    cost: float | None = 0.0
    saved_cost: float | None = 0.0
    saved_exact: int = 0
    unknown_requests: int = 0
    corrupt: int = 0
    wrong_text: int = 0
    bad_version: int = 0
    store_errors: int = 0
    store_busy: int = 0
    evicted: int = 0
    quarantined: int = 0
    reopened: int = 0
    by_model: Mapping[str, CacheStats] = field(default_factory=lambda: MappingProxyType({}))
    by_project: Mapping[str, CacheStats] = field(default_factory=lambda: MappingProxyType({}))
    by_day: Mapping[str, CacheStats] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        """Return what was paid and what was saved, as lines of text."""
        asked = self.hits + self.misses + self.duplicates
        spared = self.hits + self.duplicates
        lines = [
            f"{self.entries:,} entries, {self.bytes_on_disk:,} bytes",
            f"{asked:,} inputs asked for, {spared:,} of them not sent; {self.requests:,} requests",
            f"{self.billed_tokens:,} tokens billed ({show_money(self.cost)})",
            f"{self.saved_tokens:,} tokens saved ({show_money(self.saved_cost)})",
        ]
        if self.unknown_requests:
            lines.append(f"{self.unknown_requests:,} requests of unknown cost")
        lines += [f"{name}: {getattr(self, name):,}" for name in FAULT_COUNTERS if getattr(self, name)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return what was paid and what was saved as small tables for a notebook."""
        tables = [html_table(as_rows(self), caption="embcache")]
        if self.by_model:
            head, *rows = part_table("model", self.by_model, OF_MODELS)
            tables.append(html_table(rows, head))
        return "".join(tables)


FAULT_COUNTERS = (
    "corrupt",
    "wrong_text",
    "bad_version",
    "store_errors",
    "store_busy",
    "evicted",
    "quarantined",
    "reopened",
)
"""The counters of what went wrong without failing, in the order they are shown."""
HELD = ("entries", "on disk")
"""What is told of the store, and belongs to no project and no day."""
MONEY = ("billed", "cost", "saved", "saving")
OF_MODELS = (*HELD, "hit rate", *MONEY)
OF_SPENDING = ("hits", "misses", "hit rate", *MONEY)


def hit_rate(stats: CacheStats) -> float | None:
    """Return the share of inputs that were answered without a request; None where none was asked for.

    Repetitions within a call are no hits: nothing was stored for them yet.
    """
    asked = stats.hits + stats.misses + stats.duplicates
    return stats.hits / asked if asked else None


def as_rows(stats: CacheStats) -> list[tuple[str, str]]:
    """Return figures for people, as (what, how much); counters of faults only where something went wrong."""
    rows = [
        ("entries", f"{stats.entries:,}"),
        ("on disk", show_bytes(stats.bytes_on_disk)),
        ("hits", f"{stats.hits:,}"),
        ("misses", f"{stats.misses:,}"),
        ("duplicates", f"{stats.duplicates:,}"),
        ("hit rate", show_rate(hit_rate(stats))),
        ("requests", f"{stats.requests:,}"),
        ("tokens billed", f"{stats.billed_tokens:,}"),
        ("cost", show_money(stats.cost)),
        ("tokens saved", f"{stats.saved_tokens:,}"),
    ]
    if stats.saved_tokens:
        rows.append(("saved exactly", f"{stats.saved_exact:,}"))
        rows.append(("saved, apportioned", f"{stats.saved_tokens - stats.saved_exact:,}"))
    rows.append(("saving", show_money(stats.saved_cost)))
    if stats.unknown_requests:
        rows.append(("requests of unknown cost", f"{stats.unknown_requests:,}"))
    return rows + [
        (name.replace("_", " "), f"{getattr(stats, name):,}") for name in FAULT_COUNTERS if getattr(stats, name)
    ]


def part_table(first: str, parts: Mapping[str, CacheStats], columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the figures of each part for people, below their names; a part without a name is ``(none)``."""
    table = [(first, *columns)]
    for name, part in parts.items():
        cells = {
            "entries": f"{part.entries:,}",
            "on disk": show_bytes(part.bytes_on_disk),
            "hits": f"{part.hits:,}",
            "misses": f"{part.misses:,}",
            "hit rate": show_rate(hit_rate(part)),
            "billed": f"{part.billed_tokens:,}",
            "cost": "unknown" if part.cost is None else show_money(part.cost),
            "saved": f"{part.saved_tokens:,}",
            "saving": "unknown" if part.saved_cost is None else show_money(part.saved_cost),
        }
        table.append((printable(name) or "(none)", *(cells[column] for column in columns)))
    return table
