"""``embcache info``: whether a text is in the cache, since when, and what it cost."""

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embcache.choosing import Part
from embcache.cli.common import AsJson, CacheDir, Code, Fault, many, write_json, write_out
from embcache.cli.spaces import BaseUrl, Dimensions, Epoch, Format, FormatName, Model, Provider, space_of

if TYPE_CHECKING:
    from embcache.cli.inputs import Source
    from embcache.codec import Entry
    from embcache.stores.base import Store
    from embcache.types import Space

CHUNK = 2048


def info(  # noqa: PLR0913 - its options
    what: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE",
            help="A text, or a file of texts: .txt, .jsonl, .csv, or - for lines of standard input.",
        ),
    ],
    *,
    field_name: Annotated[
        str, typer.Option("--field", metavar="NAME", help="The field or column of FILE that holds the text.")
    ] = "text",
    model: Model = None,
    provider: Provider = None,
    base_url: BaseUrl = None,
    epoch: Epoch = None,
    dimensions: Dimensions = None,
    encoding_format: Format = FormatName.BASE64,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Tell whether a text is in the cache, since when, and what it cost; or how many texts of a file are.

    For the model and the settings that the options name, as for embcache embed. Sends nothing and changes nothing;
    a text is never printed.
    """
    from embcache.cli.inputs import sources_of
    from embcache.config import disk_store

    space = space_of(
        model=model,
        provider=provider,
        base_url=base_url,
        dimensions=dimensions,
        encoding_format=encoding_format,
        epoch=epoch,
        cache_dir=cache_dir,
    )
    source = sources_of([what], field_name)[0] if _is_file(what) else None
    store = disk_store(cache_dir, read_only=True)
    try:
        found = _look_up(store, space, source, what)
    finally:
        store.close()
    facts = _facts(space, found, one=source is None)
    if as_json:
        write_json(facts)
    else:
        write_out("".join(line + "\n" for line in _lines(facts, found, one=source is None)).encode())


def _is_file(what: str) -> bool:
    """Return whether a file is meant: one that is there, or what can hardly be anything else."""
    from embcache.cli.inputs import KINDS, STDIN

    looks_so = what.lower().endswith(KINDS) and not any(character.isspace() for character in what)
    return what == STDIN or looks_so or os.path.isfile(what)  # noqa: PTH113 - a text may be no path at all


@dataclass(slots=True)
class _Found:
    """What was found of some texts."""

    texts: int = 0
    distinct: int = 0
    worth: Part = field(default_factory=Part)
    oldest: int | None = None
    newest: int | None = None
    models: Counter[str] = field(default_factory=Counter[str])
    dims: int | None = None
    faults: Counter[str] = field(default_factory=Counter[str])

    def count(self, entry: "Entry", size: int) -> None:
        self.worth.count(entry, size)
        self.models[entry.model] += 1
        self.dims = entry.dims
        self.oldest = entry.created if self.oldest is None else min(self.oldest, entry.created)
        self.newest = entry.created if self.newest is None else max(self.newest, entry.created)


def _look_up(store: "Store", space: "Space", source: "Source | None", text: str) -> _Found:
    from itertools import islice

    from embcache.codec import open_entries
    from embcache.keys import fingerprints
    from embcache.stores.exchange import pinned

    found = _Found()
    seen: set[bytes] = set()  # 16 bytes a text, so that the texts themselves need not be held
    dims = pinned(store, space)
    texts = iter([_checked(text)]) if source is None else (one.encode() for _, one in source.texts())
    while chunk := list(islice(texts, CHUNK)):
        found.texts += len(chunk)
        fresh = zip(*fingerprints(space, "text", chunk), strict=True)
        digests = {key: digest for key, digest in fresh if key not in seen}
        seen.update(digests)
        held = store.get_many(digests.keys())
        keys = [key for key in digests if key in held]
        opened = open_entries([held[key] for key in keys], [digests[key] for key in keys], dims)
        for place, entry in zip(opened.hits, opened.entries, strict=True):
            found.count(entry, len(held[keys[place]]))
        found.faults.update({str(fault): count for fault, count in opened.faults.items()})
    found.distinct = len(seen)
    return found


def _checked(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Fault("the text is not UTF-8", Code.USAGE) from None
    if not data:
        raise Fault("the text is empty, and an empty text cannot be embedded", Code.USAGE)
    return data


def _time(seconds: int | None) -> str | None:
    """Return a time as ISO 8601, in UTC; a clock beyond the calendar is told in seconds."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _facts(space: "Space", found: _Found, *, one: bool) -> dict[str, Any]:
    from embcache.usage import figures

    cost = figures({"billed_tokens": found.worth.tokens}, space.provider, space.model, {}).cost
    asked = {"provider": space.provider, "model": space.model, "encoding_format": space.format, **dict(space.fields)}
    told = {"tokens": found.worth.tokens, "tokens_exact": found.worth.exact}
    if one:
        is_cached = bool(found.worth.entries)
        known = is_cached and not found.worth.unknown
        return {
            "asked": asked,
            "cached": is_cached,
            "created": _time(found.oldest),
            "answered_by": next(iter(found.models), None),
            "dimensions": found.dims,
            "tokens": found.worth.tokens if known else None,
            "exact": found.worth.exact == found.worth.tokens if known else None,
            "cost": cost if known else None,
            "faults": dict(found.faults),
        }
    return {
        "asked": asked,
        "texts": found.texts,
        "distinct": found.distinct,
        "cached": found.worth.entries,
        "oldest": _time(found.oldest),
        "newest": _time(found.newest),
        "answered_by": dict(found.models),
        "dimensions": found.dims,
        **told,
        "entries_of_unknown_tokens": found.worth.unknown,
        "cost": cost,
        "faults": dict(found.faults),
    }


def _lines(facts: dict[str, Any], found: _Found, *, one: bool) -> list[str]:
    """Return what was found, as lines."""
    from embcache.show import show_money

    asked = ", ".join(f"{name} {value}" for name, value in facts["asked"].items())
    if one:
        lines = ["cached" if facts["cached"] else "not cached"]
    else:
        distinct = f"{many(found.distinct, 'distinct text')} ({found.texts:,} in all)"
        lines = [f"{found.worth.entries:,} of {distinct} cached"]
    lines.append(f"asked for: {asked}")
    worth = found.worth
    if worth.entries:
        since = dict.fromkeys(str(_time(when)) for when in (found.oldest, found.newest))
        exact = "the server's own figure" if worth.exact == worth.tokens else "with shares of requests' bills"
        cost = f"{many(worth.tokens, 'token')} ({show_money(facts['cost'])}), {exact}"
        if worth.unknown:
            cost = f"unknown for {many(worth.unknown, 'entry', 'entries')}; else {cost}"
        lines += [
            f"bought: {' to '.join(since)}",
            f"cost: {'unknown' if worth.unknown == worth.entries else cost}",
            f"answered by: {', '.join(sorted(found.models))}, {many(found.dims or 0, 'dimension')}",
        ]
    lines += [f"{many(count, 'entry', 'entries')} unusable: {fault}" for fault, count in sorted(found.faults.items())]
    return lines
