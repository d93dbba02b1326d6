"""The wire: what is asked as JSON, and whatever a server may answer read as vectors, or refused in one way."""

from __future__ import annotations

import base64
import json
import struct
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache import wire
from embcache.decide import judge
from embcache.errors import BadReply
from embcache.types import Ask, Item, Reply

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(FLOATS, min_size=1, max_size=6)
DEEP = 100_000


def ask(*items: Item, form: str = "base64", dimensions: int | None = None, **extra_body: Any) -> Ask:  # noqa: ANN401
    return Ask(items, "baai/bge-m3", form, dimensions, extra_body, 60.0)


def row(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def packed(*values: float) -> str:
    return base64.b64encode(row(*values)).decode()


def answer(*embeddings: object, **told: object) -> dict[str, Any]:
    """A proper answer with these embeddings."""
    data = [{"object": "embedding", "index": index, "embedding": told} for index, told in enumerate(embeddings)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"object": "list", "data": data, "model": "baai/bge-m3", "usage": usage, **told}


def decode(told: object) -> Reply:
    return wire.decode_reply(json.dumps(told).encode())


def spliced(told: str) -> bytes:
    """An answer whose second of three embeddings is this JSON, or what only looks like it."""
    return json.dumps(answer([0.5, 1.0], "HERE", [1.5, 2.0])).replace('"HERE"', told).encode()


# What is asked


def test_request() -> None:
    """A request says model, input and format, the input as a list even if it is one, and nothing that was not set."""
    assert json.loads(wire.encode_request(ask("a text"))) == {
        "model": "baai/bge-m3",
        "input": ["a text"],
        "encoding_format": "base64",
    }


def test_request_with_everything() -> None:
    """Dimensions are sent if they were given, and each field of `extra_body` beside them, as it is."""
    extra: dict[str, Any] = {"user": "u", "options": {"b": [1, 1.0, None, True], "a": {}}, "nothing": None}
    assert json.loads(wire.encode_request(ask([1, 2], [3], form="float", dimensions=8, **extra))) == {
        "model": "baai/bge-m3",
        "input": [[1, 2], [3]],
        "encoding_format": "float",
        "dimensions": 8,
        **extra,
    }


@given(st.lists(TEXTS, min_size=1) | st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1), min_size=1))
def test_inputs_are_sent_verbatim(items: list[Item]) -> None:
    """A server reads just the texts and token ids that were given, in order, with every control sign and blank."""
    assert json.loads(wire.encode_request(ask(*items)).decode("utf-8"))["input"] == items


# What is answered


@given(st.lists(ROWS, min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_floats_and_base64_say_the_same(rows: list[list[float]], in_base64: list[bool]) -> None:
    """Any float32 vector is read bit for bit, as numbers or as base64, whatever was asked and even side by side."""
    told = [packed(*values) if short else values for values, short in zip(rows, in_base64, strict=False)]
    reply = decode(answer(*told))
    assert reply.rows == [row(*values) for values in rows]
    assert reply.indexes == list(range(len(rows)))
    assert (reply.model, reply.prompt_tokens, reply.total_tokens) == ("baai/bge-m3", 7, 7)


def test_numbers_are_rounded_to_float32() -> None:
    """A number that float32 does not have is the nearest one that it has; a whole number is a number."""
    assert decode(answer([0.1, 1, -0.0, 1e-50])).rows == [struct.pack("<4f", 0.1, 1.0, -0.0, 0.0)]


@pytest.mark.parametrize("index", [None, 0, 1, -1, 7, 10**30])
def test_indexes_are_passed_on(index: int | None) -> None:
    """An index is what the server says, possible or not, and None where it says nothing."""
    told = {"data": [{"embedding": [1.0], **({} if index is None else {"index": index})}]}
    assert decode(told).indexes == [index]
    assert decode({"data": [{"embedding": [1.0], "index": None}]}).indexes == [None]


def test_what_else_is_said_is_ignored() -> None:
    """A bare answer is enough, and fields that nobody knows do no harm."""
    assert decode({"data": [{"embedding": [1.0]}]}) == Reply([row(1.0)], [None])
    told = answer([1.0], error=None, extra={"data": []})
    told["data"][0]["embeddings"] = [[1.0]]
    assert decode(told).rows == [row(1.0)]


# A fault of one value


UNREADABLE = [
    "null",
    "true",
    "1.0",
    '""',
    "[]",
    "{}",
    '{"values":[1.0,2.0]}',
    "[[1.0,2.0]]",
    "[1.0,null]",
    "[1.0,true]",
    '["1.5","2.5"]',
    '[1.0,"2.5"]',
    "[1.0,{}]",
    "[1.0," + "9" * 400 + "]",
    '"not base64"',
    '"AACAPwAAAEA"',
    '"AACAPwAAAEA=="',
    '"AACAPwAAAEA=\\n"',
    '"AACA PwAAAEA="',
    '"_-CAPwAAAEA="',
    '"AACAPwAA"',
    '"AAAA"',
    '"\\u00e9"',
    '"\\ud800"',
    "[" * 500 + "1.0" + "]" * 500,
]
NOT_FINITE = [
    "[NaN,1.0]",
    "[1.0,Infinity]",
    "[1.0,-Infinity]",
    "[1e999,1.0]",
    "[1.0,-1e999]",
    "[1e300,1.0]",
    "[1.0,3.5e38]",
    json.dumps(packed(float("nan"), 1.0)),
    json.dumps(packed(1.0, float("inf"))),
]


@pytest.mark.parametrize("told", UNREADABLE, ids=lambda told: told[:30])
def test_an_unreadable_vector(told: str) -> None:
    """A vector that is none is nothing; its neighbours, which were paid for, are read all the same."""
    reply = wire.decode_reply(spliced(told))
    assert reply.rows == [row(0.5, 1.0), None, row(1.5, 2.0)]
    assert (reply.indexes, reply.total_tokens) == ([0, 1, 2], 7)


@pytest.mark.parametrize("told", NOT_FINITE, ids=lambda told: told[:30])
def test_a_vector_that_is_not_finite(told: str) -> None:
    """NaN and what is too large for float32 never become a vector; the neighbours are kept."""
    verdict = judge(wire.decode_reply(spliced(told)), 3, 2)
    assert verdict.rows == [row(0.5, 1.0), None, row(1.5, 2.0)]
    assert list(verdict.faults) == [1]


def test_a_vector_left_out() -> None:
    """An entry without a vector is one that could not be read."""
    told = answer([1.0], [2.0])
    del told["data"][0]["embedding"]
    assert decode(told).rows == [None, row(2.0)]


@pytest.mark.parametrize(
    "told", [[0.1, -2.5], packed(0.1, -2.5), [1, 2], "AACAPwAAAEA", [None], ["1"], [True], None, [], "", [[1.0]], {}]
)
def test_slow_and_fast_agree(told: object) -> None:
    """What a vector is does not depend on whether another one of the reply has a fault."""
    alone, beside = decode(answer(told)), decode(answer(told, None))
    assert beside.rows == [*alone.rows, None]
    assert (beside.model, beside.total_tokens) == (alone.model, alone.total_tokens)


# A fault of structure


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"secret",
        b"<html>secret</html>",
        b"null",
        b"7",
        b'"secret"',
        b"[]",
        b"[[1.0]]",
        b"{}",
        b'{"data":null}',
        b'{"data":{}}',
        b'{"data":"secret"}',
        b'{"data":[[1.0,2.0]]}',
        b'{"data":[null]}',
        b'{"data":["secret"]}',
        b'{"error":{"message":"secret"}}',
        b'{"error":"secret"}',
        b'{"code":500,"message":"secret"}',
        b'{"data":[{"embedding":[1.0],"index":"0"}]}',
        b'{"data":[{"embedding":[1.0],"index":0.5}]}',
        b'{"data":[{"embedding":[1.0],"index":true}]}',
        b'{"data":[{"embedding":[1.0],"index":[0]}]}',
        json.dumps(answer([1.0])).encode()[:-1],
        json.dumps(answer([1.0])).encode() + b"x",
        json.dumps(answer([1.0])).encode("utf-8-sig"),
        json.dumps(answer([1.0])).encode("utf-16"),
        b'{"data":[{"embedding":[1.0],"index":0}],"model":"\xff\xfe"}',
        b"\xff\xfe\xfd",
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"data":' * DEEP,
        b'{"data":[{"embedding":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        b'{"data":[{"embedding":[1.0],"more":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        b'{"data":[{"embedding":[1.0]}],"usage":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"data":[{"embedding":[1.0]}],"more":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"data":[{"embedding":[1.0],"index":' + b"9" * 5000 + b"}]}",
        b'{"data":[{"embedding":[1.0]}],"usage":{"total_tokens":' + b"9" * 5000 + b"}}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_reply_that_is_none(body: bytes) -> None:
    """Whatever is not a list of embeddings is one error, which says nothing of the body and that it may be billed."""
    with pytest.raises(BadReply) as caught:
        wire.decode_reply(body)
    assert (caught.value.status, caught.value.retryable, caught.value.unaccounted) == (200, True, True)
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value, limit=0))


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes(body: bytes) -> None:
    """Bytes that a server might send raise the one error, or are a reply, and never anything else."""
    try:
        wire.decode_reply(body)
    except BadReply as error:
        assert error.unaccounted  # noqa: PT017 - either way is right


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["", "AACAPw==", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["embedding", "index", "data", "model", "usage", "total_tokens"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.lists(st.dictionaries(st.sampled_from(["embedding", "index", "object"]), JSON), max_size=3))
def test_any_json(told: object, data: list[object]) -> None:
    """The same for JSON of every shape; and each entry of the list has a row and an index."""
    for body in (told, {"data": told}, {"data": data, "model": told, "usage": told}):
        try:
            reply = decode(body)
        except BadReply:
            continue
        assert len(reply.rows) == len(reply.indexes)
        assert all(index is None or type(index) is int for index in reply.indexes)
        assert all(vector is None or (vector and len(vector) % 4 == 0) for vector in reply.rows)
        assert reply.total_tokens is None or reply.total_tokens >= 0


def test_duplicate_names() -> None:
    """Of a name that stands twice the last one holds, whether or not a vector has a fault."""
    for other in ("[2.0]", "null"):
        told = f'{{"data":[],"data":[{{"embedding":null,"embedding":[1.0]}},{{"embedding":{other}}}]}}'
        assert wire.decode_reply(told.encode()).rows[0] == row(1.0)


# What it cost, and who made it


@pytest.mark.parametrize(
    ("usage", "prompt", "total"),
    [
        ({"prompt_tokens": 5, "total_tokens": 6}, 5, 6),
        ({"prompt_tokens": 0, "total_tokens": 0}, 0, 0),
        ({"prompt_tokens": 5}, 5, 5),
        ({"total_tokens": 6}, 6, 6),
        ({"prompt_tokens": None, "total_tokens": 6}, 6, 6),
        ({"prompt_tokens": 5, "total_tokens": -1}, 5, 5),
        ({"prompt_tokens": "5", "total_tokens": "6"}, None, None),
        ({"prompt_tokens": 5.0, "total_tokens": 6.5}, None, None),
        ({"prompt_tokens": True, "total_tokens": True}, None, None),
        ({"prompt_tokens": -5, "total_tokens": -5}, None, None),
        ({"prompt_tokens": 10**30, "total_tokens": 10**30}, None, None),
        ({"prompt_tokens": [5]}, None, None),
        ({}, None, None),
        (None, None, None),
        ([], None, None),
        ("7", None, None),
        (7, None, None),
        ([{"total_tokens": 7}], None, None),
    ],
)
@pytest.mark.parametrize("neighbour", [[2.0], None], ids=["fast", "slow"])
def test_usage(usage: object, prompt: int | None, total: int | None, neighbour: object) -> None:
    """Tokens are believed if they can be tokens; one of the two figures stands for the other; vectors never suffer."""
    reply = decode(answer([1.0], neighbour, usage=usage))
    assert (reply.prompt_tokens, reply.total_tokens) == (prompt, total)
    assert reply.rows[0] == row(1.0)


def test_no_usage() -> None:
    """A server that tells no usage has told none, not nought."""
    told = answer([1.0])
    del told["usage"]
    assert (decode(told).prompt_tokens, decode(told).total_tokens) == (None, None)


@pytest.mark.parametrize(
    ("model", "read"),
    [("m", "m"), ("\u5927", "\u5927"), ("", None), (None, None), (7, None), (["m"], None), ({}, None)],
)
def test_model(model: object, read: str | None) -> None:
    """The model is what the server calls it, if it calls it anything."""
    assert decode(answer([1.0], model=model)).model == read
    assert decode(answer([1.0], None, model=model)).model == read


@pytest.mark.parametrize("model", ["\ud800", "m\udfff" * 3, "m" * 1_000_000], ids=["surrogate", "surrogates", "long"])
def test_a_model_that_cannot_be_kept(model: str) -> None:
    """A name that is no text, or a book, is cut to what can be kept beside a vector, or to nothing; nothing is lost."""
    reply = decode(answer([1.0], model=model))
    assert reply.rows == [row(1.0)]
    assert len((reply.model or "").encode("utf-8")) <= 4096


# What went wrong, in the server's words


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"code": 401, "reason": "FAILED_TO_AUTH", "message": "no key", "metadata": {}}, "FAILED_TO_AUTH", "no key"),
        ({"error": {"message": "wait", "type": "requests", "param": None, "code": "rate_limit"}}, "rate_limit", "wait"),
        ({"error": {"message": "pay", "type": "insufficient_quota", "code": None}}, "insufficient_quota", "pay"),
        ({"error": {"message": "no", "code": 400}}, None, "no"),
        ({"error": "words alone"}, None, "words alone"),
        ({"detail": "Not Found"}, None, "Not Found"),
        (
            {"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]},
            "missing",
            "Field required",
        ),
        ({"detail": [{"msg": "first"}, {"msg": "second"}]}, None, "first"),
        ({"detail": [], "message": "no"}, None, "no"),
        ({"message": 7, "msg": "words"}, None, "words"),
        ({"object": "error", "message": "vLLM's", "type": "BadRequestError", "code": 400}, "BadRequestError", "vLLM's"),
        ({"error": "batch too large", "error_type": "Validation"}, "Validation", "batch too large"),
        ({}, None, "{}"),
        ("words", None, "words"),
        (["words"], None, "['words']"),
        (None, None, "None"),
    ],
)
def test_error_in_json(body: object, code: str | None, words: str) -> None:
    """Novita's flat form, OpenAI's wrapped one, FastAPI's list and those of other servers are understood."""
    assert wire.read_error(json.dumps(body).encode()) == (code, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"404 page not found\n", "404 page not found"),
        (b"<html>502</html>", "<html>502</html>"),
        (b"", ""),
        (b"  \r\n", ""),
        (b"\xff no UTF-8", "\ufffd no UTF-8"),
        ("\ufeff{}".encode(), "\ufeff{}"),
        (b'{"message": "cut of', '{"message": "cut of'),
    ],
)
def test_error_in_words(body: bytes, words: str) -> None:
    """What is not JSON is said as it is."""
    assert wire.read_error(body) == (None, words)


@pytest.mark.parametrize("body", [b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"error":' * DEEP, b"9" * 5000])
def test_error_made_to_hurt(body: bytes) -> None:
    """JSON beyond all bounds is not understood, and that is all."""
    code, _ = wire.read_error(body)
    assert code is None


@given(JSON, st.sampled_from(["error", "message", "reason", "code", "detail"]))
def test_any_error(told: object, name: str) -> None:
    """Whatever a server says went wrong, there is a short code or none, and there are words, if only none."""
    for body in (told, {name: told}, {"error": {name: told}}):
        code, words = wire.read_error(json.dumps(body).encode())
        assert code is None or 0 < len(code) <= wire.MAX_CODE
        assert isinstance(words, str)


def test_a_long_code() -> None:
    """A code is short."""
    code, _ = wire.read_error(json.dumps({"code": "x" * 1000}).encode())
    assert code == "x" * 64
