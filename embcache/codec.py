"""Vectors to sealed records and back, in bulk. Owns the record version; the form is in ``docs/entry-format.md``.

    record = b"ECV1" | xxh3_64 of all that follows, 8 bytes big-endian | identity, 32 bytes | msgpack map

The checksum finds rot, the identity finds a record under a wrong key. Both are proved before msgpack sees a byte, and
whatever fails a proof is a miss with a name, never an exception and never a vector.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast

import msgpack
import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.types import Vectors

MAGIC = b"ECV1"
FAMILY = b"ECV"
SEAL = len(MAGIC) + 8
HEAD = SEAL + 32
MAX_RECORD = 1 << 20
"""Bytes of the largest record read: 262,000 dimensions. More is damage."""
MAX_MAPS = 4
"""Maps in one record: a note has one, and an account another for its counters."""
FLOAT32 = np.dtype("<f4")
_CHECKSUM = slice(len(MAGIC), SEAL)
_IDENTITY = slice(SEAL, HEAD)

Fault = Literal["corrupt", "wrong_text", "bad_version"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept beside a vector.

    Attributes:
        dims: length of the vector.
        model: the model as the provider named it.
        tokens: what the input was billed, None where the server told nothing.
        exact: whether ``tokens`` is the server's own figure for this input, not a share of a request's.
        created: seconds since 1970 when it was bought.
    """

    dims: int
    model: str
    tokens: int | None
    exact: bool
    created: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Records that proved themselves, out of many that were looked at.

    Attributes:
        hits: positions, in what was given, of those that passed; ascending.
        vectors: float32 ``(len(hits), dims)``.
        entries: what is kept beside each vector.
        faults: how many failed, by the name of the proof.
    """

    hits: list[int]
    vectors: Vectors
    entries: list[Entry]
    faults: Counter[Fault]


def seal(identity: bytes, body: bytes) -> bytes:
    """Return ``body`` as a record of ``identity`` (32 bytes)."""
    rest = identity + body
    return MAGIC + xxhash.xxh3_64_digest(rest) + rest


def fault_of(record: bytes, identity: bytes) -> Fault | None:
    """Return which proof ``record`` fails as a record of ``identity``, None where it passes all."""
    if record[:4] != MAGIC:
        return "bad_version" if record[:3] == FAMILY and record[3:4].isalnum() else "corrupt"
    if not HEAD < len(record) <= MAX_RECORD or xxhash.xxh3_64_digest(memoryview(record)[SEAL:]) != record[_CHECKSUM]:
        return "corrupt"
    return None if record[_IDENTITY] == identity else "wrong_text"


def _unpack(body: bytes) -> dict[str, Any] | None:
    """Return the msgpack map that ``body`` is, None where it is anything else, or spelled otherwise than we spell it.

    A spelling has one meaning and a map has one spelling: names that come twice, and what was made to fill the memory,
    are nothing that we write.
    """
    maps = 0

    def limited(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal maps
        maps += 1
        if maps > MAX_MAPS:
            raise ValueError("too many maps")
        return dict(pairs)

    try:
        value = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=limited,
            max_array_len=0,
            max_map_len=128,
            max_str_len=4096,
            max_bin_len=MAX_RECORD,
            max_ext_len=0,
        )
        if type(value) is not dict or msgpack.packb(value, use_bin_type=True) != body:
            return None
    except (ValueError, msgpack.exceptions.UnpackException):  # UnicodeDecodeError and ExtraData are ValueErrors
        return None
    return cast("dict[str, Any]", value)


def seal_note(key: bytes, note: Mapping[str, Any]) -> bytes:
    """Return a small map (of numbers, str, bytes, None and maps of them), sealed as what stands under ``key``."""
    return seal(sha256(key).digest(), msgpack.packb(dict(note), use_bin_type=True))


def open_note(key: bytes, record: bytes | None) -> dict[str, Any] | None:
    """Return the map that :func:`seal_note` sealed under ``key``, None where there is none or it proves nothing."""
    if record is None or fault_of(record, sha256(key).digest()):
        return None
    return _unpack(record[HEAD:])


def seal_entry(digest: bytes, row: bytes, entry: Entry) -> bytes:
    """Return the record of one vector, given as little-endian float32 bytes, for the input with this digest.

    The vector comes last in the map: what precedes it is then the same for many records, and is understood once.
    """
    body = {
        "d": entry.dims,
        "m": entry.model,
        "n": entry.tokens,
        "t": entry.created,
        "x": entry.exact,
        "v": row,
    }
    return seal(digest, msgpack.packb(body, use_bin_type=True))


def _read_entry(body: bytes) -> Entry | None:
    """Return what stands beside the vector in ``body``, None unless every field is there and of its type."""
    value = _unpack(body)
    if value is None or list(value) != ["d", "m", "n", "t", "x", "v"]:
        return None
    dims, model, tokens, created, exact, row = value.values()
    well_formed = (
        type(dims) is int
        and dims > 0
        and type(model) is str
        and (tokens is None or (type(tokens) is int and tokens >= 0))
        and type(created) is int
        and type(exact) is bool
        and type(row) is bytes
        and len(row) == dims * FLOAT32.itemsize
    )
    return Entry(dims, model, tokens, exact, created) if well_formed else None


def examine(record: bytes) -> Fault | None:
    """Return which proof ``record`` fails as an entry of whatever input it says, None where it passes all."""
    told = entry_of(record)
    return None if isinstance(told, Entry) else told


def entry_of(record: bytes) -> Entry | Fault:
    """Return what stands beside the vector of ``record``, whatever input it is of, or which proof it fails."""
    fault = fault_of(record, record[_IDENTITY])
    if fault is not None:
        return fault
    entry = _read_entry(record[HEAD:])
    if entry is None:
        return "corrupt"
    vector = np.frombuffer(record, dtype=FLOAT32, offset=len(record) - entry.dims * FLOAT32.itemsize)
    return entry if np.isfinite(vector).all() else "corrupt"


def vector_of(record: bytes, entry: Entry) -> bytes:
    """Return the vector of a record that proved itself, as little-endian float32 bytes."""
    return record[len(record) - entry.dims * FLOAT32.itemsize :]


def identity_in(record: bytes) -> bytes:
    """Return the 32 bytes that say whose ``record`` is."""
    return record[_IDENTITY]


Understood = dict[bytes, Entry]
"""What was read of the bytes that precede a vector, by these bytes, and by the same without the time."""
MAX_UNDERSTOOD = 10_000
_TIME = 4
_TIMES = range(1 << 16, 1 << 32)
"""What msgpack spells as a uint32: smaller numbers are shorter, larger ones longer."""


def _without_time(before: bytes, width: int) -> tuple[bytes, int]:
    """Return what precedes a vector of ``width`` bytes without the time in it, and the time.

    It is the four bytes of a msgpack uint32, followed by ``x`` and its value, ``v`` and the head of the vector's bytes.
    """
    start = len(before) - 5 - (2 if width < 1 << 8 else 3 if width < 1 << 16 else 5)
    time = before[start - _TIME : start]
    return before[: start - _TIME] + before[start:], int.from_bytes(time, "big")


def _understand(record: bytes, before: bytes, width: int, understood: Understood) -> Entry | None:
    """Return what stands beside the vector of ``record``; None where it is not what it should be.

    Records of one model differ in little but digest, vector, tokens and time. Msgpack reads what precedes the vector
    once for each spelling of all but the time: the same bytes around it, before as many bytes of vector, say the same.
    """
    if len(understood) > MAX_UNDERSTOOD:
        understood.clear()
    timeless, time = _without_time(before, width)
    entry = understood.get(timeless)
    if entry is not None and time in _TIMES:
        entry = Entry(entry.dims, entry.model, entry.tokens, entry.exact, time)
    else:
        entry = _read_entry(record[HEAD:])
        if entry is None or entry.dims * FLOAT32.itemsize != width or entry.created not in _TIMES:
            return entry
        understood[timeless] = entry
    understood[before] = entry
    return entry


def bytes_of(vectors: Vectors) -> memoryview:
    """Return the bytes of a whole array, for rows to be written to: quicker than to join rows and copy them there."""
    return vectors.reshape(-1).view(np.uint8).data


def open_entries(
    records: Sequence[bytes],
    digests: Sequence[bytes],
    dims: int | None,
    understood: Understood | None = None,
    out: Vectors | None = None,
) -> Opened:
    """Return the vectors of those ``records`` that prove themselves to be what ``digests`` name.

    Args:
        records: as they came from the store.
        digests: SHA-256 of the pre-image of the input each record was looked up for.
        dims: the length every vector must have; None takes that of the first one that passes.
        understood: what was read before, for the next call to know.
        out: where the vectors go, one after the other, float32 ``(len(records), dims)``; None makes an array.
    """
    faults: Counter[Fault] = Counter()
    hits: list[int] = []
    entries: list[Entry] = []
    understood = {} if understood is None else understood
    vectors = out
    rows = None if vectors is None else bytes_of(vectors)
    end = 0
    known = understood.get
    checksum = xxhash.xxh3_64_digest
    width = (dims or 0) * FLOAT32.itemsize
    for position, record in enumerate(records):
        # Magic, checksum and identity in one comparison; which of them it was is found out where it fails.
        if record[:HEAD] != MAGIC + checksum(record[SEAL:]) + digests[position] or len(record) > MAX_RECORD:
            faults[fault_of(record, digests[position]) or "corrupt"] += 1
            continue
        before = record[HEAD:-width] if width else b""
        entry = known(before) if before else None
        if entry is None:
            if not width:
                first = _read_entry(record[HEAD:])
                dims, width = (first.dims, first.dims * FLOAT32.itemsize) if first else (dims, 0)
                before = record[HEAD:-width] if width else b""
            entry = _understand(record, before, width, understood) if width else None
        if entry is None or entry.dims != dims:
            faults["corrupt"] += 1
            continue
        hits.append(position)
        entries.append(entry)
        if vectors is None or rows is None:
            vectors = np.empty((len(records), entry.dims), dtype=FLOAT32)
            rows = bytes_of(vectors)
        rows[end : end + width] = memoryview(record)[-width:]
        end += width
    vectors = np.empty((0, dims or 0), dtype=FLOAT32) if vectors is None else vectors[: len(hits)]
    # A vector that is sealed and not finite was stored by something else than this embcache.
    finite = np.isfinite(vectors)
    if not finite.all():
        sound = finite.all(axis=1)
        faults["corrupt"] += int((~sound).sum())
        kept = [int(place) for place in np.flatnonzero(sound)]
        hits, entries, vectors = [hits[i] for i in kept], [entries[i] for i in kept], vectors[kept]
    return Opened(hits, vectors, entries, faults)


def open_entry(record: bytes, digest: bytes, dims: int, understood: Understood) -> tuple[Vectors, Entry] | None:
    """Return the one vector of a record, writable, with what is kept beside it; None where a proof fails.

    The short way of :func:`open_entries`, with the same proofs; which of them failed, that one tells.
    """
    if record[:HEAD] != MAGIC + xxhash.xxh3_64_digest(record[SEAL:]) + digest or len(record) > MAX_RECORD:
        return None
    width = dims * FLOAT32.itemsize
    before = record[HEAD:-width]
    entry = understood.get(before) or _understand(record, before, width, understood)
    if entry is None or entry.dims != dims:
        return None
    vector = np.frombuffer(record, dtype=FLOAT32, offset=len(record) - width).copy()
    return (vector, entry) if np.isfinite(vector).all() else None
