"""The instrument itself: the server of `tests.upstream` does what it says."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from tests import upstream
from tests.upstream import Exchange, Upstream, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.upstream import Body, Item, Step

Answer = tuple[int, http.client.HTTPMessage, bytes]


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def connect(server: Upstream) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5))


def post(connection: http.client.HTTPConnection, items: object, **fields: object) -> Answer:
    body = json.dumps({"model": "m", "input": items, **fields})
    connection.request("POST", "/v1/embeddings", body, {"Authorization": "Bearer sk-canary"})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def ask(server: Upstream, items: object, **fields: object) -> Answer:
    with connect(server) as connection:
        return post(connection, items, **fields)


def embed(server: Upstream, items: object, **fields: object) -> dict[str, Any]:
    code, _, body = ask(server, items, **fields)
    assert code == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def dial(server: Upstream, items: object) -> socket.socket:
    """Send a request over a plain socket; what comes back is read byte by byte."""
    body = json.dumps({"model": "m", "input": items}).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    sock.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return sock


def until(condition: Callable[[], object]) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(condition())


def test_the_model_is_a_function_of_the_input() -> None:
    """Vectors are finite, nowhere zero, about one long, different for each input, and the same for ever."""
    items: list[Item] = ["", "a", "A", "é", "e\u0301", "\ud800", "[1, 2]", [1, 2], [12], [1, 2, 0]]
    vectors = np.stack([vector(item, 512) for item in items])
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert (vectors != 0).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=0.15)
    assert len({row.tobytes() for row in vectors}) == len(items)
    assert vector("a", 3).tobytes().hex() == "2bc919bfc6c0cd3cf2174c3f"
    assert [tokens("abc"), tokens("abcd"), tokens([7, 7])] == [1, 2, 2]


@pytest.mark.parametrize("shape", ["float", "base64"])
def test_a_good_answer(server: Upstream, shape: str) -> None:
    """Both formats carry the model's vectors bit for bit, in order, with the usage of the whole request."""
    answer = embed(server, ["x", "yyyy"], encoding_format=shape)
    for index, (entry, item) in enumerate(zip(answer["data"], ["x", "yyyy"], strict=True)):
        value = entry["embedding"]
        got = np.frombuffer(base64.b64decode(value), "<f4") if shape == "base64" else np.array(value, np.float32)
        assert entry["index"] == index
        assert got.tobytes() == vector(item).tobytes()
    assert answer["model"] == "m"
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("asked", "inputs"),
    [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([1, 2, 3], [[1, 2, 3]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_the_four_shapes_of_input(server: Upstream, asked: object, inputs: list[Item]) -> None:
    """A string and a list of ids are one input each; lists of either are several."""
    got = [entry["embedding"] for entry in embed(server, asked)["data"]]
    assert got == [vector(item).tolist() for item in inputs]
    assert server.accepted_inputs == inputs


def test_everything_is_recorded(server: Upstream) -> None:
    """Requests are kept whole, with the connection they came on and what they were answered."""
    with connect(server) as connection:
        post(connection, "one")
        post(connection, "")
    ask(server, ["two"])
    first, second, third = server.requests
    assert (first.method, first.path, first.body) == (
        "POST",
        "/v1/embeddings",
        {"model": "m", "input": "one"},
    )
    assert json.loads(first.raw) == first.body
    assert first.headers["authorization"] == "Bearer sk-canary"
    assert [first.status, second.status, third.status] == [200, 400, 200]
    assert [first.connection, second.connection, third.connection] == [1, 1, 2]
    assert first.at < second.at < third.at
    assert (server.sent_inputs, server.accepted_inputs) == (["one", "", "two"], ["one", "two"])
    assert (server.billed_tokens, server.billed_but_broken) == (2, 0)
    assert (server.connections, server.max_in_flight, server.refused) == (2, 1, 1)
    server.forget()
    assert (server.requests, server.connections, server.max_in_flight) == ([], 0, 0)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_cap_and_poison_refuse_the_whole_request(server: Upstream, code: int) -> None:
    """One item too many, or one that cannot be embedded, and nothing of the request is answered or billed."""
    server.cap, server.cap_status, server.poison, server.poison_status = 2, code, {"bad"}, code
    assert ask(server, ["a", "b", "c"])[0] == code
    assert ask(server, ["a", "bad"])[0] == code
    assert ask(server, [[1], [2]])[0] == 200
    server.poison = lambda item: tokens(item) > 8
    assert ask(server, ["a", "long " * 8])[0] == code
    assert (server.refused, server.accepted_inputs, server.billed_tokens) == (3, [[1], [2]], 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"items": []},
        {"items": ["a", ""]},
        {"items": ["a", [1]]},
        {"items": ["a", None]},
        {"items": [[1], []]},
        {"items": [1.5]},
        {"items": {"a": 1}},
        {"items": "a", "model": None},
        {"items": "a", "encoding_format": "int8"},
        {"items": "a", "dimensions": 0},
        {"items": "a", "user": "u"},
    ],
)
def test_a_request_outside_the_contract_is_refused(server: Upstream, fields: dict[str, Any]) -> None:
    """A client that sends nonsense, or a field that this server does not know, is told so."""
    server.refuse_fields = {"user"}
    assert ask(server, **fields)[0] == 400
    assert server.billed_tokens == 0


def test_wrong_doors(server: Upstream) -> None:
    """A wrong path is 404 in plain text, a wrong method 405, a wrong key 401, no JSON 400."""
    with connect(server) as connection:
        for method, path, code in [("POST", "/embeddings", 404), ("GET", "/v1/embeddings", 405)]:
            connection.request(method, path, "{}")
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:4] == b"404 ") == (code, code == 404)
        connection.request("POST", "/v1/embeddings", "{")
        assert connection.getresponse().read().startswith(b'{"code": 400')
    server.require_key = "sk-other"
    assert ask(server, "a")[0] == 401
    server.require_key = "sk-canary"
    assert ask(server, "a")[0] == 200


def test_errors_speak_three_dialects_and_can_leak(server: Upstream) -> None:
    """Refusals are flat, wrapped or plain text; on demand they quote the input and the key."""
    server.poison, server.echo_text_in_error = {"secret words"}, True
    server.error_style = "flat"
    flat = json.loads(ask(server, ["secret words"])[2])
    assert (flat["code"], flat["reason"], flat["metadata"]) == (400, "INVALID_REQUEST_BODY", {})
    server.error_style = "openai"
    wrapped = json.loads(ask(server, ["secret words"])[2])["error"]
    assert wrapped["message"] == flat["message"]
    server.error_style = "text"
    _, headers, text = ask(server, ["secret words"])
    assert headers["content-type"] == "text/plain"
    assert b"secret words" in text
    assert b"sk-canary" in text


def test_order_and_index(server: Upstream) -> None:
    """Items come in any order, each with its own index; or all, or the first, come without one."""
    items = [str(n) for n in range(20)]
    for order in ("reversed", "shuffled"):
        server.order = order
        data = embed(server, items)["data"]
        assert [entry["index"] for entry in data] != list(range(20))
        assert all(entry["embedding"] == vector(items[int(entry["index"])]).tolist() for entry in data)
        assert embed(server, items)["data"] == data
    server.order, server.index = "as_is", "absent"
    assert not any("index" in entry for entry in embed(server, items)["data"])
    server.index = "zero_absent"
    assert [entry.get("index") for entry in embed(server, items)["data"]] == [None, *range(1, 20)]


def test_the_vectors_can_be_of_another_kind(server: Upstream) -> None:
    """Format, number of dimensions, model name and last bits can differ from what was asked."""
    assert embed(server, "a", dimensions=3)["data"][0]["embedding"] == vector("a", 3).tolist()
    server.ignore_dimensions, server.dims, server.model_name = True, 5, "other"
    server.answer_format = "base64"
    answer = embed(server, "a", dimensions=3)
    assert base64.b64decode(answer["data"][0]["embedding"]) == vector("a", 5).tobytes()
    assert answer["model"] == "other"
    server.answer_format, server.jitter_last_bits = "float", True
    first, second = (embed(server, "a")["data"][0]["embedding"] for _ in range(2))
    assert first != second != vector("a", 5).tolist()
    assert np.allclose([first, second], vector("a", 5), rtol=1e-6, atol=0)


def test_usage_can_be_anything(server: Upstream) -> None:
    """The usage told is missing or nonsense, while the server's own account stays right."""
    told: list[object] = []
    for server.usage in ("missing", "null", "negative", "string", "huge"):
        told.append(embed(server, "a" * 8).get("usage", "none"))
    assert told[:2] == ["none", None]
    assert told[2:] == [{"prompt_tokens": n, "total_tokens": n} for n in (-3, "3", 10**30)]
    assert server.billed_tokens == 15


def test_the_script_is_played_once(server: Upstream) -> None:
    """Each step meets one request, in order; then the normal behaviour, or `always`, applies again."""
    server.play(
        upstream.status(429, headers={"Retry-After": "7"}),
        upstream.proper(),
        upstream.redirect("http://127.0.0.1:9/v1/embeddings"),
        upstream.status(200, body="<html>"),
    )
    answers = [ask(server, "a") for _ in range(5)]
    assert [code for code, _, _ in answers] == [429, 200, 307, 200, 200]
    assert answers[0][1]["retry-after"] == "7"
    assert answers[2][1]["location"] == "http://127.0.0.1:9/v1/embeddings"
    assert answers[3][2] == b"<html>"
    server.always = upstream.status(503)
    assert [ask(server, "a")[0] for _ in range(2)] == [503, 503]
    assert [request.accepted for request in server.requests] == [
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert server.billed_tokens == 2


@pytest.mark.parametrize(
    ("made", "sent"),
    [
        ({"v": [float("nan"), float("-inf")]}, b'{"v": [NaN, -Infinity]}'),
        ([None], b"[null]"),
        ('{"v": 1e999}', b'{"v": 1e999}'),
        (b"\xef\xbb\xbf\xff", b"\xef\xbb\xbf\xff"),
        ("", b""),
    ],
)
def test_an_edited_reply(server: Upstream, made: Body, sent: bytes) -> None:
    """Any JSON, text or bytes can stand in for the reply; it is billed, for the model did its work."""
    seen: list[dict[str, Any]] = []

    def change(reply: dict[str, Any]) -> Body:
        seen.append(reply)
        return made

    server.play(upstream.edit(change, headers={"Content-Encoding": "br"}))
    code, headers, body = ask(server, ["a", "b"])
    assert (code, headers["content-encoding"], body) == (200, "br", sent)
    assert seen == [embed(server, ["a", "b"])]
    assert server.billed_tokens == 4


def test_a_refusal_is_not_edited(server: Upstream) -> None:
    """A request that the knobs refuse is refused, whatever the script wanted to make of its reply."""
    server.cap = 1
    server.play(upstream.edit(lambda _: "edited"))
    assert ask(server, ["a", "b"])[0] == 400
    assert ask(server, ["a"])[0] == 200


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (upstream.reset_midway(), ConnectionResetError),
        (upstream.short_body(), http.client.IncompleteRead),
        (upstream.broken_chunk(), http.client.IncompleteRead),
        (upstream.cut_without_length(), json.JSONDecodeError),
        (upstream.header_flood(), http.client.HTTPException),
        (upstream.header_flood(1, 100_000), http.client.LineTooLong),
    ],
    ids=["reset", "short body", "broken chunk", "cut without length", "many headers", "one long header"],
)
def test_a_broken_transport(server: Upstream, step: Step, error: type[Exception]) -> None:
    """The client gets no whole answer; the request is accepted, its tokens are billed but broken."""
    server.play(step)
    with pytest.raises(error):
        embed(server, "a" * 8)
    (request,) = server.requests
    assert (request.status, request.accepted, request.transport_fault) == (200, True, True)
    assert (server.accepted_inputs, server.billed_tokens, server.billed_but_broken) == (["a" * 8], 0, 3)
    embed(server, "a")
    assert server.billed_tokens == 1


def test_raw_bytes_and_a_dropped_request(server: Upstream) -> None:
    """Whatever is given goes out as it is, be it nothing; such a request has no status and no bill."""
    server.play(upstream.raw(b"HTP/9 what\r\n\r\n"), upstream.raw(b""))
    with pytest.raises(http.client.BadStatusLine):
        ask(server, "a")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "a")
    assert [request.status for request in server.requests] == [0, 0]
    assert server.billed_tokens == server.billed_but_broken == 0


def test_a_connection_that_goes_stale(server: Upstream) -> None:
    """The answer is whole and invites to go on, but the connection is closed behind it."""
    server.play(upstream.close_after_reply())
    with dial(server, "a") as sock, sock.makefile("rb") as stream:
        text = stream.read()  # to the end of the stream: it would time out on a connection kept open
    assert b"connection" not in text.lower()
    assert json.loads(text.partition(b"\r\n\r\n")[2])["usage"]["total_tokens"] == 1
    assert server.billed_tokens == 1


def test_a_drip_is_whole_at_the_end(server: Upstream) -> None:
    """The bytes are those of a proper reply; a client that leaves before the last one is not billed."""
    server.play(upstream.drip(0.0001), upstream.drip(0.01, start="status"))
    assert embed(server, "a")["data"][0]["embedding"] == vector("a").tolist()
    assert server.billed_tokens == 1
    with dial(server, "a") as sock:
        sock.recv(1)
    assert until(lambda: not server.in_flight)
    assert (server.billed_tokens, server.billed_but_broken) == (1, 1)


@pytest.mark.parametrize(("start", "first"), [("status", b"H"), ("body", b"\r\n\r\n{")])
def test_a_drip_goes_byte_by_byte(server: Upstream, start: Literal["status", "body"], first: bytes) -> None:
    """One byte of the status line, or the head and one byte of the body, then nothing for the interval."""
    server.play(upstream.drip(60, start=start))
    with dial(server, "a") as sock:
        got = sock.recv(1)
        while not got.endswith(first):
            got += sock.recv(65536)
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_bodies_without_measure(server: Upstream) -> None:
    """A bomb is small on the wire, a long body ends behind its padding, an endless one when nobody reads."""
    size = 3_000_000
    server.play(upstream.gzip_bomb(size), upstream.long_body(size), upstream.endless())
    _, headers, packed = ask(server, "a")
    assert headers["content-encoding"] == "gzip"
    assert len(packed) < size / 200
    plain = zlib.decompress(packed, wbits=31)
    _, headers, long = ask(server, "a")
    assert plain == long
    assert int(headers["content-length"]) == len(long)
    assert long[:size].isspace()
    assert json.loads(long)["data"][0]["embedding"] == vector("a").tolist()
    with dial(server, "a") as sock:
        assert sum(len(sock.recv(1 << 20)) for _ in range(20)) > 20
    assert until(lambda: not server.in_flight)
    assert (server.billed_tokens, server.billed_but_broken) == (0, 3)


def test_a_client_that_leaves_is_billed(server: Upstream) -> None:
    """An answer that nobody waits for any more was made all the same: accepted, and billed but broken."""
    server.play(upstream.hang(0.03))
    dial(server, "a").close()
    assert until(lambda: server.accepted_inputs == ["a"] and server.requests[0].transport_fault)
    assert (server.billed_tokens, server.billed_but_broken) == (0, 1)


def test_requests_meet(server: Upstream) -> None:
    """Requests held back are all in flight at once, and are answered when the test lets them go."""
    gate = threading.Event()
    server.play(*[upstream.hold(gate)] * 4)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(embed, server, str(n)) for n in range(4)]
        assert server.wait_for(4)
        assert not server.wait_for(5, timeout=0.01)
        assert server.accepted_inputs == []
        gate.set()
        for n, answer in enumerate(answers):
            assert answer.result(5)["data"][0]["embedding"] == vector(str(n)).tolist()
    assert (server.max_in_flight, server.billed_tokens, server.connections) == (4, 4, 4)


def test_one_after_another_is_never_two_in_flight(server: Upstream) -> None:
    """A request is over before its client can know, so that a sequence is not taken for a crowd."""
    server.always = upstream.close_after_reply()
    for _ in range(200):
        embed(server, "a")
    assert (server.max_in_flight, server.connections, server.billed_tokens) == (1, 200, 200)


def test_delay(server: Upstream) -> None:
    """Every answer is made to wait, a scripted one like a proper one."""
    server.delay = 0.05
    server.play(upstream.status(500))
    began = time.monotonic()
    assert [ask(server, "a")[0] for _ in range(2)] == [500, 200]
    assert time.monotonic() - began >= 0.1


def test_a_step_may_be_any_function(server: Upstream) -> None:
    """A function of the exchange is a step; it sees the request and decides what is sent."""

    def halve(exchange: Exchange) -> None:
        reply = exchange.decide()
        exchange.send(upstream.Reply(reply.status, {"seen": exchange.request.inputs}))

    server.script.append(halve)
    assert json.loads(ask(server, ["a", "b"])[2]) == {"seen": ["a", "b"]}


def test_a_fault_in_a_step_reaches_the_test() -> None:
    """An exception in a test's own function is not swallowed by the thread that ran it."""
    server = Upstream()
    with server:
        server.play(upstream.edit(lambda reply: reply["no such field"]))
        with pytest.raises(http.client.RemoteDisconnected):
            ask(server, "a")
        with pytest.raises(KeyError, match="no such field"):
            server.close()


def test_nothing_is_left_behind() -> None:
    """Idle, hanging, dripping and flooding connections end with the server at once, its threads too."""
    before = threading.enumerate()
    with Upstream() as server:
        steps = [upstream.hang(60), upstream.hold(threading.Event()), upstream.drip(60), upstream.endless()]
        clients = [socket.create_connection(("127.0.0.1", server.port))]
        for count, step in enumerate(steps, 1):
            server.play(step)
            clients.append(dial(server, "a"))
            assert server.wait_for(count)
        assert len(threading.enumerate()) > len(before) + len(steps)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert not set(threading.enumerate()) - set(before)
    for client in clients:
        client.close()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "a")


def test_a_server_can_come_back() -> None:
    """Entered again, it listens on the same port and goes on with the same account."""
    server = Upstream()
    for _ in range(2):
        with server:
            embed(server, "a")
    assert len({request.connection for request in server.requests}) == 2
    assert server.billed_tokens == 2
