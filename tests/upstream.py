"""A real embeddings server on 127.0.0.1 that can be told to misbehave.

    with Upstream(dims=8) as server:
        server.play(status(429, headers={"Retry-After": "1"}), reset_midway())
        ...  # a client of server.base_url: the first two requests meet the script, later ones a good server
    assert server.billed_tokens == ...

Knobs describe what kind of server it is, and may be changed between requests. `script` says what happens to
the next requests, one step each. The server keeps its own account of what it was sent and would bill.
Nothing here comes from embcache: it is the other opinion that embcache is compared with.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import math
import random
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, Literal, ParamSpec, Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import ssl

Item: TypeAlias = str | list[int]
Vector: TypeAlias = npt.NDArray[np.float32]
Body: TypeAlias = dict[str, Any] | list[Any] | str | bytes
P = ParamSpec("P")

# White space may stand before a JSON value, so that a padded reply has no other fault than its size.
BLANKS = b" " * 65536
CHUNKED = {"Content-Length": None, "Transfer-Encoding": "chunked"}
REASONS = {
    400: "INVALID_REQUEST_BODY",
    401: "FAILED_TO_AUTH",
    403: "NOT_ENOUGH_BALANCE",
    404: "MODEL_NOT_FOUND",
    429: "RATE_LIMIT_EXCEEDED",
}


def vector(item: Item, dims: int = 8) -> Vector:
    """The one right vector of a text or of token ids: finite, no component zero, length about 1."""
    # A lone surrogate has a vector too: a client that sends one is found out by its request, not by a crash.
    name = b"text:" + item.encode("utf-8", "surrogatepass") if isinstance(item, str) else b"ids:%r" % item
    words = np.frombuffer(hashlib.shake_256(name).digest(4 * dims), dtype="<u4")
    odd = words | np.uint32(1)  # so that no component is zero
    # Scaled by the expected length, not by the measured one: a sum may round differently elsewhere.
    return ((odd / 2.0**31 - 1.0) * math.sqrt(3.0 / max(dims, 1))).astype(np.float32)


def tokens(item: Item) -> int:
    """What an input costs: its number of ids, or about a quarter of the bytes of a text."""
    return len(item.encode("utf-8", "surrogatepass")) // 4 + 1 if isinstance(item, str) else len(item)


@dataclass(eq=False)
class Recorded:
    """A request that arrived whole, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes
    connection: int  # the first connection is 1: tells whether two requests shared one
    at: float = field(default_factory=time.monotonic)
    body: Any = None  # None too if it was not JSON
    inputs: list[Item] = field(default_factory=list[Item])  # empty if they were malformed
    status: int = 0  # 0 until answered, and for ever if nothing like an answer was sent
    tokens: int = 0  # what it costs; 0 unless accepted
    accepted: bool = False  # the model made the vectors: an answer of 200, whether or not it arrived
    transport_fault: bool = False  # the answer did not go out whole: on purpose, or the client had left


@dataclass
class Reply:
    """A whole answer, not sent yet."""

    status: int
    body: Body
    headers: Mapping[str, str | None] = field(default_factory=dict[str, str | None])

    @functools.cached_property
    def payload(self) -> bytes:
        """The body as bytes; NaN and Infinity appear bare, as careless servers send them."""
        text = self.body if isinstance(self.body, str | bytes) else json.dumps(self.body, allow_nan=True)
        return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text

    @property
    def half(self) -> bytes:
        """The first half of the body: never valid JSON."""
        return self.payload[: len(self.payload) // 2]

    def head(self, changes: Mapping[str, str | None] | None = None) -> bytes:
        """Status line and headers; a change to None leaves that header out."""
        usual = {"Content-Type": "application/json", "Content-Length": str(len(self.payload))}
        headers = {**usual, **self.headers, **(changes or {})}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
        phrase = responses.get(self.status, "Unknown")
        return f"HTTP/1.1 {self.status} {phrase}\r\n{''.join(lines)}\r\n".encode("latin-1")


@dataclass(eq=False)
class Exchange:
    """One request on its connection: what a step is given to work with. Any function of it is a step."""

    server: Upstream
    sock: socket.socket
    request: Recorded
    closing: threading.Event
    pending: set[Exchange]
    keep_alive: bool = True

    def decide(self, *, broken: bool = False) -> Reply:
        """Make the proper reply and put it on record; `broken` if the step will not deliver it whole."""
        reply = self.server.respond(self.request)
        self.request.transport_fault = broken
        self.request.accepted = reply.status == HTTPStatus.OK
        self.request.tokens = sum(map(tokens, self.request.inputs)) if self.request.accepted else 0
        self.request.status = reply.status
        return reply

    def send(self, reply: Reply) -> None:
        """Deliver a whole reply, or notice that the client has gone (half closed is gone, too)."""
        with suppress(BlockingIOError):
            # The method of the plain socket: the one of a TLS socket takes no flags.
            if not socket.socket.recv(self.sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                raise BrokenPipeError
        self.write(reply.head() + reply.payload, last=True)

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes; with the last ones the request is over, before the client can send another."""
        if last:
            self.pending.discard(self)
        self.sock.sendall(data)

    def hang_up(self, data: bytes = b"", *, reset: bool = False) -> None:
        """Send bytes and close, in good order or with a TCP reset."""
        self.keep_alive = False
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.write(data, last=True)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the closing of the server, which ends the connection."""
        if self.closing.wait(seconds):
            raise ConnectionAbortedError


Step: TypeAlias = Callable[[Exchange], None]


def _step(play: Callable[Concatenate[Exchange, P], None]) -> Callable[P, Step]:
    """Turn a function that plays a step into the step's constructor: hang(exchange, 1) becomes hang(1)."""

    @functools.wraps(play)
    def make(*args: P.args, **kwargs: P.kwargs) -> Step:
        return lambda exchange: play(exchange, *args, **kwargs)

    return make


@_step
def proper(exchange: Exchange) -> None:
    """No fault: to let requests pass before the one that meets a fault."""
    exchange.send(exchange.decide())


@_step
def status(
    exchange: Exchange, code: int, *, headers: Mapping[str, str] | None = None, body: Body | None = None
) -> None:
    """An answer without the model, so not billed: `body`, or an error in the server's style."""
    exchange.request.status = code
    reply = exchange.server.error(code, f"scripted {code}", exchange.request)
    if body is not None:
        reply = Reply(code, body, {"Content-Type": "text/plain"} if isinstance(body, str) else {})
    exchange.send(Reply(code, reply.body, {**reply.headers, **(headers or {})}))


def redirect(url: str, code: int = 307) -> Step:
    """Points elsewhere, for instance to a second Upstream that must then see no connection."""
    return status(code, headers={"Location": url})


@_step
def edit(
    exchange: Exchange, change: Callable[[dict[str, Any]], Body], *, headers: Mapping[str, str] | None = None
) -> None:
    """Status 200 with what `change` makes of the proper body; billed. A refusal stays as it is."""
    reply = exchange.decide()
    if exchange.request.accepted:
        reply = Reply(200, change(cast("dict[str, Any]", reply.body)), headers or {})
    exchange.send(reply)


@_step
def raw(exchange: Exchange, data: bytes) -> None:
    """Exactly these bytes, then a close; nothing billed. With b"" the request is just dropped."""
    exchange.hang_up(data)


@_step
def close_after_reply(exchange: Exchange) -> None:
    """A proper reply, then a close that it did not announce: a stale connection in a client's pool."""
    exchange.keep_alive = False
    exchange.send(exchange.decide())


@_step
def hang(exchange: Exchange, seconds: float) -> None:
    """No byte for so long, then the proper reply. The closing of the server ends it too."""
    exchange.pause(seconds)
    exchange.send(exchange.decide())


@_step
def hold(exchange: Exchange, until: threading.Event) -> None:
    """No byte until the test sets the event, then the proper reply: to have requests meet."""
    while not until.wait(0.005):
        exchange.pause(0)
    exchange.send(exchange.decide())


@_step
def drip(exchange: Exchange, interval: float, *, start: Literal["status", "body"] = "body") -> None:
    """The proper reply, one byte every `interval` seconds, from its body or from the status line on."""
    reply = exchange.decide(broken=True)
    slow = reply.payload if start == "body" else reply.head() + reply.payload
    exchange.write(reply.head() if start == "body" else b"")
    for byte in slow[:-1]:
        exchange.write(bytes([byte]))
        exchange.pause(interval)
    exchange.request.transport_fault = False
    exchange.write(slow[-1:], last=True)


@_step
def reset_midway(exchange: Exchange) -> None:
    """Half of the body, then a TCP reset."""
    reply = exchange.decide(broken=True)
    exchange.hang_up(reply.head() + reply.half, reset=True)


@_step
def short_body(exchange: Exchange) -> None:
    """Half of the body that Content-Length promises, then an orderly close."""
    reply = exchange.decide(broken=True)
    exchange.hang_up(reply.head() + reply.half)


@_step
def cut_without_length(exchange: Exchange) -> None:
    """Half of the body and no Content-Length: truncated, yet in order as far as HTTP can tell."""
    reply = exchange.decide(broken=True)
    exchange.hang_up(reply.head({"Content-Length": None, "Connection": "close"}) + reply.half)


@_step
def broken_chunk(exchange: Exchange) -> None:
    """Half of the body as a good chunk, then a chunk whose size is no number."""
    reply = exchange.decide(broken=True)
    exchange.hang_up(reply.head(CHUNKED) + _chunk(reply.half) + b"zz\r\n")


# The next three go out whole, but a client should not accept them: they count as broken as well.


@_step
def header_flood(exchange: Exchange, count: int = 2000, width: int = 1000) -> None:
    """The proper reply behind `count` headers of `width` bytes; (1, 100_000) is one long line."""
    reply = exchange.decide(broken=True)
    exchange.hang_up(reply.head({f"X-Flood-{n}": "x" * width for n in range(count)}) + reply.payload)


@_step
def gzip_bomb(exchange: Exchange, size: int) -> None:
    """The proper reply behind `size` bytes of white space, packed a thousandfold while it is sent."""
    reply = exchange.decide(broken=True)
    packer = zlib.compressobj(wbits=31)
    exchange.write(reply.head({**CHUNKED, "Content-Encoding": "gzip"}))
    for blanks in _blanks(size):
        exchange.write(_chunk(packer.compress(blanks)))
    exchange.hang_up(_chunk(packer.compress(reply.payload) + packer.flush()) + b"0\r\n\r\n")


@_step
def long_body(exchange: Exchange, size: int) -> None:
    """The proper reply behind `size` bytes of white space, all announced in Content-Length."""
    reply = exchange.decide(broken=True)
    exchange.write(reply.head({"Content-Length": str(size + len(reply.payload))}))
    for blanks in _blanks(size):
        exchange.write(blanks)
    exchange.hang_up(reply.payload)


@_step
def endless(exchange: Exchange) -> None:
    """Chunks of white space until the client leaves or the server is closed."""
    exchange.write(exchange.decide(broken=True).head(CHUNKED))
    while True:
        exchange.write(_chunk(BLANKS))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty chunk would end the body


def _blanks(size: int) -> Iterator[bytes]:
    yield from itertools.repeat(BLANKS, size // len(BLANKS))
    yield BLANKS[: size % len(BLANKS)]


@dataclass(eq=False)
class Upstream:
    """The server: listens from `with` to its end, and then leaves no thread and no open socket behind.

    It may be entered again, to come back on the same port with the same account.
    """

    dims: int = 8
    _: KW_ONLY
    delay: float = 0.0  # seconds before every answer
    cap: int | None = 2048  # more inputs than this in one request are refused with cap_status
    cap_status: int = 400
    poison: Callable[[Item], bool] | Container[str] = ()  # one such input has the whole request refused
    poison_status: int = 400
    require_key: str | None = None  # another key is answered 401
    refuse_fields: Container[str] = ()  # a request with one of these fields is refused with 400
    ignore_dimensions: bool = False  # else a request for `dimensions` gets vectors of that many
    echo_text_in_error: bool = False  # errors quote the inputs and the Authorization header
    error_style: Literal["flat", "openai", "text"] = "flat"
    order: Literal["as_is", "reversed", "shuffled"] = "as_is"
    seed: int = 0  # of the shuffling
    index: Literal["present", "absent", "zero_absent"] = "present"
    answer_format: Literal["asked", "float", "base64"] = "asked"
    usage: Literal["normal", "missing", "null", "negative", "string", "huge"] = "normal"
    model_name: str | None = None  # what the answer calls the model, if not what the request does
    jitter_last_bits: bool = False  # the same text gets a slightly different vector each time
    script: deque[Step] = field(default_factory=deque[Step])  # one step for each of the next requests
    always: Step = field(default_factory=proper)  # the step of every request once the script is played
    ssl_context: ssl.SSLContext | None = None
    port: int = 0  # 0 takes a free one
    connections: int = field(default=0, init=False)  # accepted so far
    max_in_flight: int = field(default=0, init=False)  # most requests that waited for an answer at one time

    def __post_init__(self) -> None:
        self._arrival = threading.Condition()
        self._closing = threading.Event()
        self._requests: list[Recorded] = []
        self._pending: set[Exchange] = set()
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._failures: list[Exception] = []
        self._jitter, self._numbers = itertools.count(1), itertools.count(1)

    def __enter__(self) -> Self:
        self._closing.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._listener.settimeout(0.1)  # where shutdown does not wake accept, it looks up this often
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="upstream-accept", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and thread; raise what a step raised, for a fault in the test itself."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(2)
        self._listener.close()
        for sock in self._threads.values():
            with suppress(OSError):
                # Wakes the thread that reads or writes; it closes the socket. TLS is not said goodbye to.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        deadline = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if leaked := [thread.name for thread in (self._acceptor, *self._threads) if thread.is_alive()]:
            message = f"threads still running: {leaked}"
            raise RuntimeError(message)
        if self._failures:
            raise self._failures.pop()

    @property
    def base_url(self) -> str:
        """For a client; still told after the end, when the port refuses connections."""
        return f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[Recorded]:
        """Every request that arrived whole, in order of arrival."""
        with self._arrival:
            return list(self._requests)

    @property
    def sent_inputs(self) -> list[Item]:
        """The inputs of all requests."""
        return [item for request in self.requests for item in request.inputs]

    @property
    def accepted_inputs(self) -> list[Item]:
        """The inputs that vectors were made for, whether or not those arrived."""
        return [item for request in self.requests if request.accepted for item in request.inputs]

    @property
    def billed_tokens(self) -> int:
        """The tokens of the answers that went out whole."""
        return sum(request.tokens for request in self.requests if not request.transport_fault)

    @property
    def billed_but_broken(self) -> int:
        """The tokens of the answers that did not: providers charge for those as well."""
        return sum(request.tokens for request in self.requests if request.transport_fault)

    @property
    def refused(self) -> int:
        """The number of requests answered 400, 413 or 422."""
        return sum(request.status in {400, 413, 422} for request in self.requests)

    @property
    def in_flight(self) -> int:
        """The number of requests that wait for an answer now."""
        return len(self._pending)

    def play(self, *steps: Step) -> None:
        """Add steps to the script."""
        self.script.extend(steps)

    def wait_for(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until so many requests have arrived; false if they have not in time."""
        with self._arrival:
            return self._arrival.wait_for(lambda: len(self._requests) >= count, timeout)

    def forget(self) -> None:
        """Start the account anew, between two phases of a test."""
        with self._arrival:
            self._requests.clear()
            self.connections = self.max_in_flight = 0

    def respond(self, request: Recorded) -> Reply:
        """The proper reply to a request, as the knobs stand."""
        if not request.path.partition("?")[0].endswith("/v1/embeddings"):
            return Reply(404, "404 page not found", {"Content-Type": "text/plain"})
        for code, message in self._faults(request):
            return self.error(code, message, request)
        return Reply(200, self._embeddings(request.body, request.inputs))

    def error(self, code: int, message: str, request: Recorded) -> Reply:
        """A refusal in the server's style."""
        if self.echo_text_in_error:
            message += f": input {request.inputs}, key {request.headers.get('authorization')}"
        if self.error_style == "text":
            return Reply(code, message, {"Content-Type": "text/plain"})
        reason = REASONS.get(code, "SERVER_ERROR" if code >= 500 else "INVALID_REQUEST_BODY")
        if self.error_style == "flat":
            return Reply(code, {"code": code, "reason": reason, "message": message, "metadata": {}})
        kind = reason.lower()
        return Reply(code, {"error": {"message": message, "type": kind, "param": None, "code": kind}})

    def _faults(self, request: Recorded) -> Iterator[tuple[int, str]]:
        # Only the first is answered, so each may rely on the ones before.
        body, inputs, key = request.body, request.inputs, request.headers.get("authorization")
        if request.method != "POST":
            yield 405, "method not allowed"
        if self.require_key is not None and key != f"Bearer {self.require_key}":
            yield 401, "no such key"
        if not inputs or not all(inputs) or not isinstance(body.get("model"), str):
            yield 400, "input and model must be there, and not empty"
        if refused := [name for name in body if name in self.refuse_fields]:
            yield 400, f"unknown fields: {refused}"
        if body.get("encoding_format", "float") not in {"float", "base64"}:
            yield 400, "encoding_format must be float or base64"
        if "dimensions" in body and (type(body["dimensions"]) is not int or body["dimensions"] < 1):
            yield 400, "dimensions must be a positive integer"
        if self.cap is not None and len(inputs) > self.cap:
            yield self.cap_status, f"at most {self.cap} inputs"
        if any(map(self._poisoned, inputs)):
            yield self.poison_status, "an input cannot be embedded"

    def _poisoned(self, item: Item) -> bool:
        return self.poison(item) if callable(self.poison) else isinstance(item, str) and item in self.poison

    def _embeddings(self, body: dict[str, Any], inputs: list[Item]) -> dict[str, Any]:
        dims = self.dims if self.ignore_dimensions else body.get("dimensions", self.dims)
        shape = body.get("encoding_format", "float") if self.answer_format == "asked" else self.answer_format
        data: list[dict[str, Any]] = []
        for index, item in enumerate(inputs):
            values = vector(item, dims)
            if self.jitter_last_bits:
                change = (next(self._jitter) + np.arange(dims, dtype=np.uint32)) & np.uint32(7)
                values = (values.view(np.uint32) ^ change.astype(np.uint32)).view(np.float32)
            packed = base64.b64encode(values.astype("<f4").tobytes()).decode()
            entry = {"object": "embedding", "embedding": packed if shape == "base64" else values.tolist()}
            if self.index == "present" or (self.index == "zero_absent" and index > 0):
                entry["index"] = index
            data.append(entry)
        if self.order == "reversed":
            data.reverse()
        elif self.order == "shuffled":
            random.Random(self.seed).shuffle(data)
        answer = {"object": "list", "data": data, "model": self.model_name or body["model"]}
        if self.usage == "null":
            answer["usage"] = None
        elif self.usage != "missing":
            total = sum(map(tokens, inputs))
            told = {"normal": total, "negative": -total, "string": str(total), "huge": 10**30}[self.usage]
            answer["usage"] = {"prompt_tokens": told, "total_tokens": told}
        return answer

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
                if self.ssl_context:  # the first read shakes hands, in the connection's own thread
                    sock = self.ssl_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:  # no one came, the client has left already, or the server is closing
                continue
            with self._arrival:
                self.connections += 1
            args = (sock, next(self._numbers))
            thread = threading.Thread(target=self._converse, args=args, name="upstream", daemon=True)
            self._threads = {t: s for t, s in self._threads.items() if t.is_alive()} | {thread: sock}
            thread.start()

    def _converse(self, sock: socket.socket, connection: int) -> None:
        # ValueError: the client does not speak our HTTP. OSError: it has gone, or the server is closing.
        with suppress(OSError, ValueError), sock, sock.makefile("rb") as reader:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (request := _read(reader, connection)) and self._serve(sock, request):
                pass

    def _serve(self, sock: socket.socket, request: Recorded) -> bool:
        exchange = Exchange(self, sock, request, self._closing, self._pending)
        exchange.keep_alive = request.headers.get("connection", "").lower() != "close"
        with self._arrival:  # together, so that the order of requests is the order of the script
            self._requests.append(request)
            step = self.script.popleft() if self.script else self.always
            self._pending.add(exchange)
            self.max_in_flight = max(self.max_in_flight, len(self._pending))
            self._arrival.notify_all()
        try:
            exchange.pause(self.delay)
            step(exchange)
        except OSError:
            request.transport_fault = True
            raise
        except Exception as error:  # noqa: BLE001 - of a test's own function; close() raises it in the test
            self._failures.append(error)
            return False
        finally:
            self._pending.discard(exchange)
        return exchange.keep_alive


def _read(reader: BinaryIO, connection: int) -> Recorded | None:
    """One request, or None if the client has closed the connection, even in the middle of it."""
    lines: list[str] = []
    while (line := reader.readline()) != b"\r\n":
        if not line.endswith(b"\r\n"):
            return None
        lines.append(line.decode("latin-1").strip())
    method, path, _ = " ".join(lines[:1]).split()
    headers: dict[str, str] = {}
    for name, _, value in (text.partition(":") for text in lines[1:]):
        headers[name.lower()] = value.strip()
    # No client here sends chunks: a POST without a length ends the connection, by way of ValueError.
    size = int(headers.get("content-length", "" if method == "POST" else "0"))
    content = reader.read(size)
    if len(content) < size:
        return None
    request = Recorded(method, path, headers, content, connection)
    with suppress(ValueError):
        request.body = json.loads(content)
        request.inputs = _inputs(request.body)
    return request


def _inputs(body: object) -> list[Item]:
    """The inputs of a request: [1, 2] is one, ["a", "b"] and [[1], [2]] are two; none if malformed."""
    asked = cast("dict[str, object]", body).get("input") if isinstance(body, dict) else None
    if isinstance(asked, str) or (asked and _is_ids(asked)):
        asked = [asked]
    items = cast("list[object]", asked) if isinstance(asked, list) else []
    whole = all(isinstance(item, str) for item in items) or all(map(_is_ids, items))
    return cast("list[Item]", items) if whole else []


def _is_ids(item: object) -> bool:
    return isinstance(item, list) and all(type(number) is int for number in cast("list[object]", item))
