"""From (space, input) to pre-image, key and digest. The rule is written out in ``docs/key-format.md``.

The pre-image is injective: every field stands behind its length, so no two different lists of fields make the same
bytes. The look-up key is xxh3_128 of it, fast and small; the digest is SHA-256 of it, kept inside the entry, so that an
entry found under a key proves that it belongs to this very input (xxh3 is no defence against crafted collisions).
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any

import xxhash

from embcache.types import Space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embcache.types import Item, Kind

KEY_VERSION = b"embcache\x01"
KEY_BYTES = 16
DIGEST_BYTES = 32
EPOCH = "epoch"
RESERVED_FIELDS = frozenset({"input", "model", "encoding_format", "dimensions"})
"""Fields of a request that have an argument of their own and may not come in ``extra_body``."""
BODY_FIELD = "body."
"""Fields of ``extra_body`` carry this prefix, so that they can never be taken for fields of our own."""

_length = Struct("<Q").pack
_token = Struct("<I").pack
MAX_TOKEN_ID = 2**32 - 1


def _frame(value: bytes) -> bytes:
    return _length(len(value)) + value


def canonical_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the one JSON spelling of ``value``: keys sorted, no white space, no escapes beyond those JSON demands.

    Raises:
        TypeError, ValueError: ``value`` is not JSON (NaN and infinities are not).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def make_space(  # noqa: PLR0913 - all that makes a space
    provider: str,
    model: str,
    encoding_format: str,
    *,
    dimensions: int | None = None,
    extra_body: Mapping[str, Any] | None = None,
    epoch: str | None = None,
) -> Space:
    """Return the space of these settings. A setting that is not given is absent, not empty."""
    given = {} if dimensions is None else {"dimensions": canonical_json(dimensions)}
    if epoch is not None:
        given[EPOCH] = epoch
    given |= {BODY_FIELD + name: canonical_json(value) for name, value in (extra_body or {}).items()}
    return Space(provider, model, encoding_format, tuple(sorted(given.items())))


def encode_space(space: Space) -> bytes:
    """Return ``space`` as bytes that :func:`decode_space` reads, for a store to keep."""
    return canonical_json([space.provider, space.model, space.format, space.fields]).encode()


def decode_space(data: bytes) -> Space:
    """Return the space that :func:`encode_space` wrote."""
    provider, model, encoding_format, fields = json.loads(data)
    return Space(provider, model, encoding_format, tuple((name, value) for name, value in fields))


def encode_item(item: Item) -> bytes:
    """Return the exact bytes of an input: UTF-8 of a text, 4 little-endian bytes a token id.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
        struct.error: a token id is not within 0 and 2**32 - 1.
    """
    return item.encode() if isinstance(item, str) else b"".join(map(_token, item))


def prefix(space: Space, kind: Kind) -> bytes:
    """Return what every pre-image of ``space`` and ``kind`` begins with: all but the input's length and bytes."""
    fields = [space.provider, space.model, space.format]
    for name, value in space.fields:
        fields += [name, value]
    return KEY_VERSION + b"".join(_frame(text.encode()) for text in [*fields, kind])


def preimage(space: Space, input: str | Sequence[int]) -> bytes:  # noqa: A002 - the API's own word for it
    """Return the bytes whose hashes are the key and the digest of ``input`` in ``space``; the input's bytes come last.

    Args:
        space: as ``CachedEmbedder.space`` tells it.
        input: a text, or ONE input as token ids.
    """
    if isinstance(input, str):
        return prefix(space, "text") + _frame(encode_item(input))
    return prefix(space, "tokens") + _frame(encode_item(list(input)))


def note_key(space: Space, name: str) -> bytes:
    """Return the key of something kept about a whole space, such as its dimensions; never equal to an entry's key."""
    return b"note:" + sha256(prefix(space, "text") + _frame(name.encode())).digest()


def key_of(preimage: bytes) -> bytes:
    """Return the 16 bytes under which the input of ``preimage`` is looked up: xxh3_128, big-endian as xxHash prints."""
    return xxhash.xxh3_128_digest(preimage)


def digest_of(preimage: bytes) -> bytes:
    """Return the 32 bytes of SHA-256 that an entry carries to prove whose it is."""
    return sha256(preimage).digest()


@lru_cache(maxsize=64)
def _begun(space: Space, kind: Kind) -> tuple[Any, Any]:
    """Return the state of both hashes after what all inputs of ``space`` and ``kind`` begin with, to be copied only.

    Kept, since for short texts this is most of the work.
    """
    start = prefix(space, kind)
    return xxhash.xxh3_128(start), sha256(start)


def fingerprint(space: Space, kind: Kind, payload: bytes) -> tuple[bytes, bytes]:
    """Return key and digest of one input, given as its exact bytes."""
    hashed, proven = _begun(space, kind)
    framed = _length(len(payload)) + payload
    key, digest = hashed.copy(), proven.copy()
    key.update(framed)
    digest.update(framed)
    return key.digest(), digest.digest()


def fingerprints(space: Space, kind: Kind, payloads: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return keys and digests of many inputs of one space, each given as its exact bytes."""
    hashed, proven = _begun(space, kind)
    keys: list[bytes] = []
    digests: list[bytes] = []
    for payload in payloads:
        framed = _length(len(payload)) + payload
        key, digest = hashed.copy(), proven.copy()
        key.update(framed)
        digest.update(framed)
        keys.append(key.digest())
        digests.append(digest.digest())
    return keys, digests
