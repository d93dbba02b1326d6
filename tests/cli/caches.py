"""Caches made without a server: entries of any age, model and bill, as an embedder would have stored them."""

from __future__ import annotations

import re
import struct
import time
from contextlib import closing
from typing import TYPE_CHECKING

from embcache.codec import Entry, seal_entry, seal_note
from embcache.keys import encode_space, fingerprints, make_space, note_key
from embcache.stores import DiskStore

from tests.programs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from embcache.types import Space

BGE = "baai/bge-m3"
DAY = 86_400
NOW = int(time.time())


def space(model: str = BGE, provider: str = "novita", **more: str) -> Space:
    return make_space(provider, model, more.pop("encoding_format", "base64"), epoch=more.pop("epoch", None))


def entry(*, days: float = 0, tokens: int | None = 10, exact: bool = False, dims: int = 8) -> Entry:
    return Entry(dims, "told/model", tokens, exact, NOW - int(days * DAY))


def records(where: Space, told: Iterable[tuple[str, Entry]]) -> Iterator[tuple[bytes, bytes]]:
    """The key and the record of each text; its vector counts up from the length of the text."""
    for text, beside in told:
        keys, digests = fingerprints(where, "text", [text.encode()])
        row = struct.pack(f"<{beside.dims}f", *range(len(text), len(text) + beside.dims))
        yield keys[0], seal_entry(digests[0], row, beside)


def stock(folder: Path, where: Space, texts: Iterable[str], **told: object) -> dict[bytes, bytes]:
    """Put an entry of each text into the cache in `folder`, with the pin of its space."""
    beside = {text: entry(**told) for text in texts}  # type: ignore[arg-type]  # as entry() takes them
    made = dict(records(where, beside.items()))
    dims = {one.dims for one in beside.values()}.pop()
    pin = note_key(where, "dimensions")
    with closing(DiskStore(folder / "cache")) as store:
        store.put_many(made, space=encode_space(where), pin=(pin, seal_note(pin, {"d": dims})))
    return made


def content(folder: Path) -> dict[bytes, bytes]:
    """All records by key."""
    with closing(DiskStore(folder / "cache")) as store:
        return {key: record for key, record, _ in store.scan()}


def documented(command: str, part: int = 0) -> list[str]:
    """The names that docs/json-output.md tells of a command, of its first table or another."""
    page = (ROOT / "docs/json-output.md").read_text()
    section = page.partition(f"## embcache {command}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section.split("| --- | --- |")[part + 1], re.MULTILINE)
