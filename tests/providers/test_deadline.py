"""The deadline of a request is one for the whole of it, whatever the server does to be slow."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
import numpy as np
import pytest

from embcache.errors import ProviderUnavailable
from embcache.providers import openai_compatible

from tests import upstream
from tests.providers.asking import TEXT, ask, make, rows, told
from tests.upstream import Upstream, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from embcache.providers import OpenAICompatibleProvider

    from tests.upstream import Exchange, Step

TIMEOUT = 0.7
SLACK = 0.5


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def provider(server: Upstream) -> Iterator[OpenAICompatibleProvider]:
    with closing(make(server.base_url)) as provider:
        yield provider


def times_out(provider: OpenAICompatibleProvider, *items: upstream.Item, connected: bool = True) -> None:
    """A request ends with its deadline: neither before nor much later, and says that it did."""
    began = time.monotonic()
    with pytest.raises(ProviderUnavailable) as caught:
        provider.embed(ask(*items, timeout=TIMEOUT))
    elapsed = time.monotonic() - began
    assert TIMEOUT - 0.05 <= elapsed <= TIMEOUT + SLACK
    error = caught.value
    assert (error.timed_out, error.retryable, error.status) == (True, True, None)
    assert error.unaccounted == connected, "what was sent may have been billed, what was not cannot"
    assert "within 0.7 s" in told(error)


@upstream._step
def informing(exchange: Exchange) -> None:
    """Interim answers without end: each is whole, and none is the answer."""
    while True:
        exchange.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        exchange.pause(0.05)


@upstream._step
def dripping_headers(exchange: Exchange) -> None:
    """A good status line, and then one header after the other."""
    exchange.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.write(b"X-More: 1\r\n")
        exchange.pause(0.05)


@upstream._step
def dripping_refusal(exchange: Exchange) -> None:
    """A refusal whose body comes byte by byte."""
    exchange.write(upstream.Reply(500, b"").head({"Content-Length": "1000"}))
    while True:
        exchange.write(b"x")
        exchange.pause(0.05)


def test_u02_silence(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A server that never answers is waited for until the deadline and no longer."""
    provider.embed(ask())
    server.play(upstream.hang(30))
    times_out(provider)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "step",
    [
        upstream.drip(0.05),
        upstream.drip(0.05, start="status"),
        informing(),
        dripping_headers(),
        dripping_refusal(),
    ],
    ids=["the body", "everything", "interim answers", "headers", "a refusal"],
)
def test_u03_drips(server: Upstream, provider: OpenAICompatibleProvider, step: Step) -> None:
    """A server that sends a little again and again is waited for until the deadline and no longer."""
    provider.embed(ask())
    server.play(step)
    times_out(provider)
    assert len(server.requests) == 2


def test_the_next_request_has_its_own_answer(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """The answer of a request that timed out comes too late for everybody: the next one gets its own."""
    server.play(upstream.hang(1.0))
    times_out(provider, "late")
    for number in range(3):
        assert np.array_equal(rows(provider.embed(ask(f"text {number}"))), [vector(f"text {number}")])
        time.sleep(0.2)


def test_a_deadline_is_of_one_request(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A deadline that passed does not hasten later requests, nor those of other threads at the same time."""
    release = threading.Event()
    answers: list[Any] = []
    server.play(upstream.hold(release))
    patient = threading.Thread(target=lambda: answers.append(rows(provider.embed(ask("patient", timeout=30)))))
    patient.start()
    assert server.wait_for(1)
    server.play(upstream.hang(30))
    times_out(provider)
    time.sleep(0.1)
    release.set()
    patient.join()
    assert np.array_equal(answers, [[vector("patient")]])
    assert np.array_equal(rows(provider.embed(ask(timeout=30))), [vector(TEXT)])


@contextmanager
def listener(talk: Callable[[socket.socket, threading.Event], None]) -> Generator[int]:
    """A plain listener on a port of its own; `talk` is given each connection, and the event that ends it."""
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        listening.settimeout(20)

        def listen() -> None:
            sock, _ = listening.accept()
            with sock:
                talk(sock, ending)

        thread = threading.Thread(target=listen)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ending.set)
        yield listening.getsockname()[1]


def never_reads(_: socket.socket, ending: threading.Event) -> None:
    ending.wait(20)


def reads_slowly(sock: socket.socket, ending: threading.Event) -> None:
    # Fast enough for every single wait to be short, and much too slow for the whole.
    while not ending.wait(0.02) and sock.recv(100_000):
        pass


@pytest.mark.parametrize("talk", [never_reads, reads_slowly])
def test_u02_u03_a_slow_upload(talk: Callable[[socket.socket, threading.Event], None]) -> None:
    """A server that does not take what it is sent, or takes a little again and again, is given up at the deadline."""
    with listener(talk) as port, closing(make(f"http://127.0.0.1:{port}/v1")) as provider:
        provider._open()  # not what is measured
        times_out(provider, "many words " * 2_000_000)


def test_a_slow_handshake() -> None:
    """A server that accepts a connection and never answers the TLS handshake is given up at the deadline."""
    with listener(never_reads) as port, closing(make(f"https://127.0.0.1:{port}/v1")) as provider:
        provider._open()
        times_out(provider, connected=False)


def test_u02_a_slow_connection() -> None:
    """A server whose queue of connections is full is given up at the deadline, and nothing can have been billed."""
    with ExitStack() as stack:
        listening = stack.enter_context(closing(socket.socket()))
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(16):
            filling = stack.enter_context(closing(socket.socket()))
            filling.settimeout(0.2)
            try:
                filling.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            pytest.skip("this system takes connections that nobody accepts")
        provider = stack.enter_context(closing(make(f"http://127.0.0.1:{port}/v1")))
        provider._open()
        times_out(provider, connected=False)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("step", [upstream.hang(30), dripping_headers()], ids=["silence", "drips"])
def test_a_slow_proxy(server: Upstream, monkeypatch: pytest.MonkeyPatch, scheme: str, step: Step) -> None:
    """The deadline holds through a proxy too, while it is asked to connect as well as afterwards."""
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{server.port}")
    server.play(step)
    with closing(make(f"{scheme}://embeddings.invalid/v1")) as provider:
        provider._open()
        began = time.monotonic()
        with pytest.raises(ProviderUnavailable) as caught:
            provider.embed(ask(timeout=TIMEOUT))
        assert TIMEOUT - 0.05 <= time.monotonic() - began <= TIMEOUT + SLACK
        assert caught.value.timed_out


# What is relied on of httpx and httpcore


def backend_of(provider: OpenAICompatibleProvider) -> object:
    transport: Any = provider._open()._transport
    backend: object = transport._pool._network_backend
    return backend


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_the_private_names_of_httpx(server: Upstream, monkeypatch: pytest.MonkeyPatch, proxy: str | None) -> None:
    """An HTTPTransport has its pool, and the pool its network backend, where ours is put in its place."""
    plain: Any = httpx.HTTPTransport(proxy=proxy)
    assert isinstance(plain._pool, httpcore.ConnectionPool)
    assert isinstance(plain._pool._network_backend, httpcore.NetworkBackend)
    plain.close()
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    with closing(make(server.base_url)) as provider:
        assert isinstance(backend_of(provider), openai_compatible._Backend)


def test_our_backend_is_asked_for_every_wait(
    server: Upstream, provider: OpenAICompatibleProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connecting, writing and reading of a request all come by our backend, which cuts each wait to what is left."""
    waits: list[tuple[float | None, str]] = []

    def left(timeout: float | None, exceeded: type[Exception]) -> float:
        waits.append((timeout, exceeded.__name__))
        return cut(timeout, exceeded)

    cut = openai_compatible._left
    monkeypatch.setattr(openai_compatible, "_left", left)
    provider.embed(ask(timeout=7))
    assert {name for _, name in waits} == {"ConnectTimeout", "WriteTimeout", "ReadTimeout"}
    assert {timeout for timeout, _ in waits} == {7}, "httpx's own time-outs are on as well"


def test_a_deadline_that_has_passed_sends_nothing(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """Where the deadline has passed before anything was sent, nothing is, not even a connection made."""
    openai_compatible._deadline.at = time.monotonic() - 1
    try:
        with pytest.raises(httpx.ConnectTimeout):
            provider._open().post(server.base_url + "/embeddings", json={}, timeout=30)
    finally:
        del openai_compatible._deadline.at
    assert server.connections == 0
