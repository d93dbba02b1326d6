"""The OpenAI-style JSON of an embeddings call, to and from our nouns."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from embcache.errors import BadReply
from embcache.types import Reply
from embcache.usage import believed

if TYPE_CHECKING:
    from embcache.types import Ask

MAX_CODE = 64
MAX_MODEL = 256


class _Datum(msgspec.Struct):
    embedding: bytes | list[float]  # msgspec reads bytes from strict base64
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Datum]
    model: Any = None
    usage: Any = None


_decoder = msgspec.json.Decoder(_Answer)


def encode_request(ask: Ask) -> bytes:
    """Return the JSON body of ``ask``: ``input`` always as a list, and nothing that was not set."""
    body: dict[str, Any] = {
        "model": ask.model,
        "input": list(ask.items),
        "encoding_format": ask.encoding_format,
    }
    if ask.dimensions is not None:
        body["dimensions"] = ask.dimensions
    return msgspec.json.encode(body | dict(ask.extra_body))


def decode_reply(body: bytes | bytearray) -> Reply:
    """Return what an answer with status 200 says, floats and base64 alike.

    A vector that cannot be read makes its row None; the others are read all the same, since they were paid for.

    Raises:
        BadReply: it is not JSON, or not a list of embeddings.
    """
    answer = None
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        answer = _decoder.decode(body)
    if answer is None:
        return _decode_slowly(body)
    rows = [_floats(d.embedding) if isinstance(d.embedding, list) else _whole(d.embedding) for d in answer.data]
    return _reply(rows, [d.index for d in answer.data], answer.model, answer.usage)


def read_error(body: bytes | bytearray) -> tuple[str | None, str]:
    """Return code and words of an answer that is not 200.

    Novita's flat form is read, OpenAI's wrapped one, the first of FastAPI's list of details, and plain text.
    """
    try:
        answer: object = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None, body.decode(errors="replace").strip()
    told = _map(answer)
    told = _map(told.get("error")) or _first(told.get("detail")) or told
    codes = (told.get(name) for name in ("reason", "code", "type", "error_type"))
    code = next((code for code in codes if isinstance(code, str) and code), None)
    words = (told.get(name) for name in ("message", "detail", "error", "msg"))
    said = next((text for text in words if isinstance(text, str)), "" if told else str(answer))
    return code and code[:MAX_CODE].encode(errors="replace").decode(), said.encode(errors="replace").decode()


def _map(value: object) -> dict[str, Any]:
    """Return a JSON object as what it is, anything else as an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _first(value: object) -> dict[str, Any]:
    return _map(next(iter(_list(value) or ()), None))


def _list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def _reply(rows: list[bytes | None], indexes: list[int | None], model: object, usage: object) -> Reply:
    told = _map(usage)
    prompt, total = believed(told.get("prompt_tokens")), believed(told.get("total_tokens"))
    return Reply(
        rows,
        indexes,
        _name(model),
        total if prompt is None else prompt,
        prompt if total is None else total,
    )


def _name(model: object) -> str | None:
    """Return the name of a model as it can be kept beside a vector."""
    if not isinstance(model, str) or not model:
        return None
    return model[:MAX_MODEL].encode(errors="replace").decode()


def _bad(reason: str) -> BadReply:
    # The server answered 200, so it probably billed; what it said of that could not be read.
    return BadReply(reason, status=200, retryable=True, unaccounted=True)


def _decode_slowly(body: bytes | bytearray) -> Reply:
    """Read an answer item by item, for the sake of those items that can be read."""
    try:
        answer = _map(json.loads(body.decode()))  # takes NaN and Infinity, which some servers write
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number or a nesting beyond bounds
        # The cause would quote the body.
        raise _bad("the provider answered 200 with something that is not JSON; nothing of it was stored") from None
    data = _list(answer.get("data"))
    if data is None or not all(isinstance(datum, dict) for datum in data):
        told = "an error" if answer.get("error") else "no list of embeddings"
        raise _bad(f"the provider answered 200 with {told}; nothing of it was stored")
    indexes: list[int | None] = [_map(datum).get("index") for datum in data]
    if not all(index is None or type(index) is int for index in indexes):
        raise _bad("the provider answered with an index that is not a whole number; nothing of it was stored")
    rows = [_any_row(_map(datum).get("embedding")) for datum in data]
    return _reply(rows, indexes, answer.get("model"), answer.get("usage"))


def _whole(row: bytes) -> bytes | None:
    return row if row and len(row) % 4 == 0 else None


def _floats(values: list[float]) -> bytes | None:
    with np.errstate(over="ignore"):  # 1e300 becomes infinite, and is refused for that
        return np.array(values, dtype="<f4").tobytes() or None


def _any_row(value: object) -> bytes | None:
    if isinstance(value, str):
        try:
            return _whole(base64.b64decode(value, validate=True))
        except ValueError:
            return None
    numbers = _list(value)
    if numbers is not None and all(type(number) in (int, float) for number in numbers):
        try:
            return _floats(cast("list[float]", numbers))
        except OverflowError:  # a whole number too large for a float
            return None
    return None
