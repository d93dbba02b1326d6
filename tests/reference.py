"""A second implementation of docs/key-format.md and docs/entry-format.md, written from those pages.

The golden files and the library are compared with it. Nothing here comes from embcache, and of what embcache is made of
only the hashes: what two hands wrote from one page, and agree upon, is what the page says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import xxhash

Item: TypeAlias = str | list[int]
Fields: TypeAlias = Sequence[tuple[str, str]]
Packable: TypeAlias = "Mapping[str, Packable] | str | bytes | int | bool | None"

ROOT = Path(__file__).parent.parent
NOVITA = {"/openai/v1", "/openai", "/v3/openai"}
# The public secret of XXH3, from its specification.
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def golden(name: str) -> dict[str, list[dict[str, Any]]]:
    """The test vectors of `tests/golden/{name}.json`, by section."""
    read: dict[str, Any] = json.loads((ROOT / "tests/golden" / f"{name}.json").read_text("ascii"))
    return {section: cast("list[dict[str, Any]]", told) for section, told in read.items() if isinstance(told, list)}


def example(page: str) -> bytes:
    """The bytes of the worked example of a page: what stands in its ```hex block, without the words to the right."""
    block = (ROOT / "docs" / page).read_text("utf-8").split("```hex\n")[1].split("```")[0]
    return b"".join(bytes.fromhex(line.partition("  ")[0]) for line in block.splitlines())


# docs/key-format.md


def frame(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def payload(item: Item) -> bytes:
    return item.encode("utf-8") if isinstance(item, str) else struct.pack(f"<{len(item)}I", *item)


def opening(provider: str, model: str, form: str, fields: Fields, kind: str) -> bytes:
    told = [provider, model, form, *itertools.chain.from_iterable(fields), kind]
    return b"embcache\x01" + b"".join(frame(text.encode("utf-8")) for text in told)


def preimage(provider: str, model: str, form: str, fields: Fields, item: Item) -> bytes:
    kind = "text" if isinstance(item, str) else "tokens"
    return opening(provider, model, form, fields, kind) + frame(payload(item))


def key(preimage: bytes) -> bytes:
    return xxhash.xxh3_128_intdigest(preimage).to_bytes(16, "big")


def digest(preimage: bytes) -> bytes:
    return hashlib.sha256(preimage).digest()


def note_key(provider: str, model: str, form: str, fields: Fields, name: str) -> bytes:
    return b"note:" + digest(opening(provider, model, form, fields, "text") + frame(name.encode("utf-8")))


def colliding_texts(provider: str, model: str, form: str, fields: Fields) -> tuple[str, str]:
    """Two texts of 1,500 letters that were made to share a key in this space, and differ in two of them.

    XXH3 adds up products: of 64 bytes after 64 bytes, each time the lower half of a lane of 8 bytes, disguised by a
    public secret, times its upper half. Where the lower halves of two lanes are alike in disguise, a bit set in the
    upper half of one and cleared in the other leaves the sum as it was.
    """
    size = 1500
    start = opening(provider, model, form, fields, "text") + struct.pack("<Q", size)
    pad = -len(start) % 64
    for lane, (one, other) in itertools.product(
        range(8), itertools.combinations(range((len(start) + pad) // 64, 16), 2)
    ):
        secrets = [struct.unpack_from("<II", SECRET, 8 * (stripe + lane)) for stripe in (one, other)]
        low = bytes(
            left ^ right ^ ord("a")
            for left, right in zip(*(struct.pack("<I", told[0]) for told in secrets), strict=True)
        )
        # The bit that tells "p" from "t", where the secret hides it in both or in neither.
        if low.isascii() and low.decode().isprintable() and not (secrets[0][1] ^ secrets[1][1]) & 4:
            text = bytearray(b"a" * size)
            first, second = (64 * stripe + 8 * lane - len(start) for stripe in (one, other))
            text[second : second + 4] = low
            pair: list[str] = []
            for signs in (b"pt", b"tp"):
                text[first + 4], text[second + 4] = signs
                pair.append(text.decode("ascii"))
            return pair[0], pair[1]
    raise ValueError("the fields are too long")


def space_fields(dimensions: int | None, extra_body: Mapping[str, Any] | None, epoch: str | None = None) -> Fields:
    told = [("body." + name, canonical_json(value)) for name, value in (extra_body or {}).items()]
    if dimensions is not None:
        told.append(("dimensions", canonical_json(dimensions)))
    if epoch is not None:
        told.append(("epoch", epoch))
    return sorted(told)


def space_name(provider: str, model: str, form: str, fields: Fields) -> bytes:
    return canonical_json([provider, model, form, [list(pair) for pair in fields]]).encode("utf-8")


def provider_id(base_url: str) -> str:
    parts = urlsplit(base_url.lower())
    path = parts.path.rstrip("/")
    if parts.hostname == "api.novita.ai" and path in NOVITA:
        return "novita"
    return parts.netloc + path


def canonical_json(value: object) -> str:  # noqa: PLR0911 - one for each kind of value
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _number(value)
        case str():
            return _string(value)
        case list():
            return "[" + ",".join(map(canonical_json, cast("list[object]", value))) + "]"
        case dict():
            pairs = sorted(cast("dict[str, object]", value).items(), key=lambda pair: [ord(sign) for sign in pair[0]])
            return "{" + ",".join(_string(name) + ":" + canonical_json(told) for name, told in pairs) + "}"
        case _:
            raise TypeError(type(value))


def _string(text: str) -> str:
    return '"' + "".join(ESCAPES.get(sign, f"\\u{ord(sign):04x}" if sign < " " else sign) for sign in text) + '"'


def _number(value: float) -> str:
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    if value == 0:
        return sign + "0.0"
    digits, exponent = _shortest(abs(value))
    if -4 <= exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    if 0 <= exponent < 16:
        whole = digits[: exponent + 1].ljust(exponent + 1, "0")
        return f"{sign}{whole}.{digits[exponent + 1 :] or '0'}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"


def _shortest(value: float) -> tuple[str, int]:
    """The fewest digits that read back as the same number, d.ddd without its point, and the power of ten behind it."""
    for places in range(17):
        mantissa, _, power = f"{value:.{places}e}".partition("e")
        nearest = int(mantissa.replace(".", ""))
        # Below a power of two the numbers lie twice as dense as above it: the nearest digits may be those of another.
        for digits in (nearest, nearest + 1):
            if float(f"{digits}e{int(power) - places}") == value:
                return str(digits), int(power)
    raise ValueError(value)


# docs/entry-format.md


def seal(identity: bytes, body: bytes) -> bytes:
    sealed = identity + body
    return b"ECV1" + xxhash.xxh3_64_intdigest(sealed).to_bytes(8, "big") + sealed


def seal_note(key: bytes, note: Mapping[str, Packable]) -> bytes:
    return seal(hashlib.sha256(key).digest(), pack(note))


def seal_entry(  # noqa: PLR0913 - an entry has so many fields
    digest: bytes, row: bytes, *, model: str, tokens: int | None, created: int, exact: bool
) -> bytes:
    body: dict[str, Packable] = {"d": len(row) // 4, "m": model, "n": tokens, "t": created, "x": exact, "v": row}
    return seal(digest, pack(body))


def pack(value: Packable) -> bytes:  # noqa: PLR0911 - as canonical_json
    """Msgpack, as much of it as records hold: https://github.com/msgpack/msgpack/blob/master/spec.md."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            if 0 <= value < 128:
                return bytes([value])
            if value < 0:
                raise ValueError(value)
            code, form = next(
                (code, form)
                for code, form, bits in ((0xCC, ">B", 8), (0xCD, ">H", 16), (0xCE, ">I", 32), (0xCF, ">Q", 64))
                if value < 1 << bits
            )
            return bytes([code]) + struct.pack(form, value)
        case str():
            text = value.encode("utf-8")
            return _head(len(text), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + text
        case bytes():
            return _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
        case _:
            body = b"".join(pack(name) + pack(told) for name, told in value.items())
            if len(value) > 15:
                raise ValueError(len(value))
            return bytes([0x80 + len(value)]) + body


def _head(length: int, short: int, below: int, codes: tuple[int, int, int]) -> bytes:
    if length < below:
        return bytes([short + length])
    for code, form, bits in zip(codes, (">B", ">H", ">I"), (8, 16, 32), strict=True):
        if length < 1 << bits:
            return bytes([code]) + struct.pack(form, length)
    raise ValueError(length)
