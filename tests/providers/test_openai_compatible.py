"""The HTTP door: what is sent, what is taken, and what a server that is not as it should be comes to."""

from __future__ import annotations

import gzip
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from embcache import __version__
from embcache.errors import (
    AuthenticationError,
    BadReply,
    ConfigError,
    EmbcacheError,
    InputRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)

from tests import upstream
from tests.programs import output, python
from tests.providers.asking import KEY, TEXT, ask, make, rows, told
from tests.upstream import Reply, Upstream, vector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embcache.providers import OpenAICompatibleProvider

    from tests.upstream import Exchange, Step


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def provider(server: Upstream) -> Iterator[OpenAICompatibleProvider]:
    with closing(make(server.base_url)) as provider:
        yield provider


# What is sent


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
def test_an_answer(server: Upstream, provider: OpenAICompatibleProvider, encoding_format: str) -> None:
    """Texts and token ids are answered with the server's vectors, its name for the model, and its bill."""
    for items in (["a", "b", TEXT], [[1, 2, 3]], [[1], [2]]):
        reply = provider.embed(ask(*items, encoding_format=encoding_format))
        assert np.array_equal(rows(reply), [vector(item) for item in items])
        assert list(reply.indexes) == list(range(len(items)))
        assert reply.model == "some-model"
        assert reply.total_tokens == reply.prompt_tokens == server.requests[-1].tokens
        assert server.requests[-1].body["encoding_format"] == encoding_format


def test_nothing_is_sent_that_was_not_set(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """The body holds model, input and format; dimensions and further fields only where they were given."""
    provider.embed(ask(TEXT))
    provider.embed(ask(TEXT, dimensions=4, user="u", nested={"a": [1, None]}))
    plain, full = (request.body for request in server.requests)
    assert plain == {"model": "some-model", "input": [TEXT], "encoding_format": "base64"}
    assert full == plain | {"dimensions": 4, "user": "u", "nested": {"a": [1, None]}}
    assert {(request.method, request.path) for request in server.requests} == {("POST", "/v1/embeddings")}


def test_the_headers(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """The key goes as a bearer token, the client names itself, and no compression is asked for."""
    provider.embed(ask())
    headers = server.requests[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["user-agent"] == f"embcache/{__version__}"
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"
    assert set(headers) == {
        "authorization",
        "user-agent",
        "accept-encoding",
        "content-type",
        "accept",
        "host",
        "connection",
        "content-length",
    }


def test_without_a_key_no_key_is_sent(server: Upstream) -> None:
    """With api_key=None there is no Authorization header."""
    with closing(make(server.base_url, None)) as provider:
        provider.embed(ask())
    assert "authorization" not in server.requests[0].headers


def test_no_cookie_is_kept(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A cookie that a server sets is not sent to it again: each request is on its own."""
    server.play(upstream.edit(lambda answer: answer, headers={"Set-Cookie": "who=you; Path=/"}))
    provider.embed(ask())
    provider.embed(ask())
    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


def test_a_provider_that_was_never_told_a_key(server: Upstream) -> None:
    """Where a key is needed and there is none, the hint is raised and nothing is sent."""
    from embcache.providers import OpenAICompatibleProvider

    provider = OpenAICompatibleProvider(server.base_url, None, provider_id="x", model="m", key_hint="do this")
    with pytest.raises(ConfigError, match=r"^do this$"):
        provider.embed(ask())
    assert server.connections == 0


@pytest.mark.parametrize(
    "key", ["sk-canary\n0123456789abcdef", "sk-canary-schlüssel-0123", "sk-canary 0123456789ab", ""]
)
def test_u16_a_key_that_cannot_be_sent(server: Upstream, key: str) -> None:
    """A key with a line break, a space or letters that no header holds is a ConfigError that does not show it."""
    with pytest.raises(ConfigError) as caught, closing(make(server.base_url, key)) as provider:
        provider.embed(ask())
    assert "canary" not in f"{caught.value} {caught.value!r} {vars(caught.value)}"
    assert server.connections == 0


def test_it_shows_itself_without_its_key(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """Neither repr nor str of a provider holds the key, before and after it was used."""
    assert KEY not in f"{provider!r} {provider}"
    provider.embed(ask())
    assert KEY not in f"{provider!r} {provider}"


# Connections


def test_one_connection_serves_many_requests(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """Requests one after the other share a connection, also after a refusal."""
    provider.embed(ask())
    server.play(upstream.status(400), upstream.status(503))
    for _ in range(2):
        with pytest.raises(EmbcacheError):
            provider.embed(ask())
    for _ in range(5):
        provider.embed(ask())
    assert len(server.requests) == 8
    assert server.connections == 1


def test_u18_a_stale_connection(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A kept connection that the server has closed is found out before it is used: nothing is sent twice."""
    for number in range(4):
        server.play(upstream.close_after_reply())
        assert np.array_equal(rows(provider.embed(ask(f"text {number}"))), [vector(f"text {number}")])
        transport: Any = provider._open()._transport
        deadline = time.monotonic() + 3  # before it expires of age
        while not all(connection.has_expired() for connection in transport._pool.connections):
            assert time.monotonic() < deadline, "the end of the connection did not arrive"
            time.sleep(0.002)
    assert len(server.requests) == server.connections == 4


def test_a_closed_provider_opens_again(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """close() ends the connections, also twice; a later request opens one."""
    provider.embed(ask())
    provider.close()
    provider.close()
    provider.embed(ask())
    assert server.connections == 2


def test_many_threads(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """Threads that ask at once each get their own answer, over a connection each."""
    start = threading.Barrier(8)
    wrong: list[str] = []

    def work(thread: int) -> None:
        start.wait()
        for turn in range(10):
            text = f"text {thread} {turn}"
            if not np.array_equal(rows(provider.embed(ask(text))), [vector(text)]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(server.requests) == 80
    assert server.connections <= 8


# What is not followed, not unpacked, not read to its end


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_u14_redirects_are_not_followed(server: Upstream, provider: OpenAICompatibleProvider, code: int) -> None:
    """A server that points elsewhere gets an error, which names the host; elsewhere nobody is called."""
    with Upstream() as elsewhere:
        server.play(upstream.redirect(elsewhere.base_url + "/embeddings", code))
        with pytest.raises(ProviderError) as caught:
            provider.embed(ask())
        assert elsewhere.connections == 0
    assert (caught.value.status, caught.value.retryable) == (code, False)
    assert "redirect to 127.0.0.1" in told(caught.value)


@pytest.mark.parametrize("location", ["http://[bad", "//", "", "http://a:b:c/", "http://\u00b2.invalid/"])
def test_a_redirect_to_nowhere(server: Upstream, provider: OpenAICompatibleProvider, location: str) -> None:
    """A Location that is no URL is a ProviderError like any other redirect, and no foreign error."""
    server.play(upstream.redirect(location))
    with pytest.raises(ProviderError) as caught:
        provider.embed(ask())
    told(caught.value)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "identity, gzip", "nonsense"])
def test_u15_a_compressed_answer_is_refused(
    server: Upstream, provider: OpenAICompatibleProvider, encoding: str
) -> None:
    """An answer that is compressed although none was asked for is refused unread, whatever it is called."""
    packed = upstream.edit(lambda _: gzip.compress(b"[]"), headers={"Content-Encoding": encoding})
    server.play(packed)
    with pytest.raises(BadReply) as caught:
        provider.embed(ask())
    assert (caught.value.status, caught.value.unaccounted, caught.value.retryable) == (200, True, False)


def test_an_answer_that_says_it_is_not_compressed(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """`Content-Encoding: identity` is what was asked for."""
    server.play(upstream.edit(lambda answer: answer, headers={"Content-Encoding": "Identity"}))
    assert np.array_equal(rows(provider.embed(ask())), [vector(TEXT)])


def test_a_compressed_refusal(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A refusal with a compressed body is still that refusal, without words."""
    words = gzip.compress(b'{"message": "secret"}')
    server.play(upstream.status(400, headers={"Content-Encoding": "gzip"}, body=words))
    with pytest.raises(InputRejected) as caught:
        provider.embed(ask())
    assert caught.value.status == 400
    assert "secret" not in told(caught.value)


# Asks a server that answers too much, and says how much memory that took at most, in MiB.
GREEDY = """
    import resource, sys, time
    from pathlib import Path
    from embcache.errors import EmbcacheError
    from tests.providers.asking import ask, make

    def peak():
        if sys.platform == "linux":  # where getrusage() begins with the peak of the process that started this one
            told = Path("/proc/self/status").read_text()
            return int(told.partition("VmHWM:")[2].split()[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)

    provider = make(sys.argv[1])
    provider.embed(ask())
    before, began = peak(), time.monotonic()
    try:
        provider.embed(ask(timeout=60))
        told = "taken", 200
    except EmbcacheError as error:
        told = type(error).__name__, error.status
    print(*told, peak() - before, time.monotonic() - began)
    provider.close()
"""


def long_refusal(exchange: Exchange) -> None:
    """Status 500 and a body without end."""
    exchange.request.status = 500
    exchange.write(Reply(500, "").head({"Content-Length": None, "Transfer-Encoding": "chunked"}))
    while True:
        exchange.write(b"10000\r\n" + bytes(65536) + b"\r\n")


@pytest.mark.parametrize(
    ("step", "kind", "status", "most"),
    [
        (upstream.gzip_bomb(300 << 20), "BadReply", 200, 16),
        (upstream.endless(), "BadReply", 200, 76),
        (upstream.long_body(1 << 30), "BadReply", 200, 16),
        (upstream.long_body((64 << 20) - 4096), "taken", 200, 76),
        (long_refusal, "ProviderUnavailable", 500, 16),
    ],
    ids=["gzip bomb", "endless", "a gigabyte", "as much as is read", "endless refusal"],
)
def test_u15_a_body_without_end(server: Upstream, step: Step, kind: str, status: int, most: int) -> None:
    """However much a server answers, no more than 80 MB of it are held, and what says its size is not read."""
    pytest.importorskip("resource")
    server.play(upstream.proper(), step)
    name, code, mebibytes, seconds = output(python(GREEDY, server.base_url)).split()
    assert (name, int(code)) == (kind, status)
    assert float(mebibytes) < most
    assert float(seconds) < 20
    assert len(server.requests) == 2


def test_an_answer_as_long_as_is_read(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """What is long but below the cap is read whole: 24 MiB of white space and then the answer."""
    server.play(upstream.long_body(24 << 20))
    assert np.array_equal(rows(provider.embed(ask())), [vector(TEXT)])


# What goes wrong


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (400, InputRejected, False),
        (401, AuthenticationError, False),
        (402, QuotaExceeded, False),
        (403, AuthenticationError, False),
        (404, ProviderError, False),
        (405, ProviderError, False),
        (408, ProviderUnavailable, True),
        (409, ProviderUnavailable, True),
        (413, InputRejected, False),
        (422, InputRejected, False),
        (425, ProviderUnavailable, True),
        (429, RateLimited, True),
        (500, ProviderUnavailable, True),
        (502, ProviderUnavailable, True),
        (503, ProviderUnavailable, True),
        (504, ProviderUnavailable, True),
        (529, ProviderUnavailable, True),
        (204, ProviderError, False),
        (304, ProviderError, False),
        (418, ProviderError, False),
    ],
)
def test_what_a_status_means(
    server: Upstream, provider: OpenAICompatibleProvider, code: int, kind: type[EmbcacheError], retryable: bool
) -> None:
    """Each status is the error that a caller can act on, with its facts, and sent once."""
    body = b"" if code in (204, 304) else {"code": code, "reason": "SOME_REASON", "message": "some words"}
    server.play(upstream.status(code, headers={"X-Request-Id": "req-1", "Retry-After": "7"}, body=body))
    with pytest.raises((InputRejected, ProviderError)) as caught:
        provider.embed(ask())
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.retryable, error.request_id, error.retry_after) == (code, retryable, "req-1", 7.0)
    assert not error.timed_out
    assert not error.unaccounted
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (429, {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": None}}),
        (429, {"error": {"message": "no more", "type": "requests", "code": "insufficient_quota"}}),
        (403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance", "metadata": {}}),
        (400, {"code": 400, "reason": "NOT_ENOUGH_BALANCE", "message": "x", "metadata": {}}),
    ],
)
def test_an_empty_account(
    server: Upstream, provider: OpenAICompatibleProvider, code: int, body: dict[str, Any]
) -> None:
    """Where money is what is missing, that is what is said, and it is not to be tried again."""
    server.play(upstream.status(code, body=body))
    with pytest.raises(QuotaExceeded) as caught:
        provider.embed(ask())
    assert (caught.value.status, caught.value.retryable) == (code, False)


def test_a_limit_of_the_rate_is_not_an_empty_account(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A 429 whose words are of the rate is worth waiting for, although its advice is to pay more."""
    words = "Rate limit reached on requests per min. Visit https://elsewhere.invalid/account/billing to raise it."
    server.play(upstream.status(429, body={"error": {"message": words, "type": "requests", "code": "rate_limit"}}))
    with pytest.raises(RateLimited) as caught:
        provider.embed(ask())
    assert caught.value.retryable


STYLES: tuple[Literal["flat", "openai", "text"], ...] = ("flat", "openai", "text")


@pytest.mark.parametrize("code", [400, 401, 404, 429, 500])
def test_a_server_that_quotes(server: Upstream, provider: OpenAICompatibleProvider, code: int) -> None:
    """Errors of a server that quotes the key and the texts, in any style, say what it said without them."""
    server.echo_text_in_error = True
    for style in STYLES:
        server.error_style = style
        server.play(upstream.status(code))
        with pytest.raises(EmbcacheError) as caught:
            provider.embed(ask(TEXT, "short"))
        assert f"scripted {code}" in told(caught.value)
        assert "short" not in str(caught.value)


def test_a_long_refusal_of_a_large_request(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """That the words of a refusal are searched for all that was sent does not take long, even for much of both."""
    texts = [" ".join(f"word{(number * 7919 + place) % 99_991}" for place in range(400)) for number in range(2_048)]
    words = " ".join(f"term{number}" for number in range(200))
    server.play(upstream.status(400, body={"code": 400, "reason": "X", "message": words}))
    began = time.monotonic()
    with pytest.raises(InputRejected):
        provider.embed(ask(*texts, timeout=60))
    assert time.monotonic() - began < 8


def test_headers_that_quote(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A request id that quotes the key or a text is shown without it."""
    server.play(upstream.status(500, headers={"X-Request-Id": f"{KEY} {TEXT} 1234"}))
    with pytest.raises(ProviderUnavailable) as caught:
        provider.embed(ask())
    assert "1234" in told(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        upstream.reset_midway(),
        upstream.short_body(),
        upstream.broken_chunk(),
        upstream.raw(b""),
        upstream.raw(b"SSH-2.0-server\r\n\r\n"),
        upstream.raw(b"HTTP/1.1 abc OK\r\n\r\n"),
        upstream.header_flood(),
        upstream.header_flood(1, 200_000),
    ],
    ids=["reset", "short", "bad chunk", "dropped", "not HTTP", "bad status", "many headers", "long header"],
)
def test_u13_u17_a_connection_that_breaks(server: Upstream, provider: OpenAICompatibleProvider, step: Step) -> None:
    """Whatever breaks on the way is a ProviderUnavailable that may be tried again and may have cost money."""
    server.play(step)
    with pytest.raises(ProviderUnavailable) as caught:
        provider.embed(ask())
    error = caught.value
    assert (error.status, error.retryable, error.unaccounted, error.timed_out) == (None, True, True, False)
    assert f"127.0.0.1:{server.port}" in told(error)
    assert len(server.requests) == 1
    assert np.array_equal(rows(provider.embed(ask())), [vector(TEXT)]), "the next one suffers from it"


@pytest.mark.parametrize(
    "step",
    [
        upstream.cut_without_length(),
        upstream.edit(lambda _: b""),
        upstream.edit(lambda _: "<html>welcome</html>"),
        upstream.edit(lambda _: {"error": {"message": "overloaded"}}),
        upstream.edit(lambda _: b"[" * 100_000),
        upstream.edit(lambda _: b'{"data": ' + b"1" * 5_000 + b"}"),
        upstream.edit(lambda _: b"\xff\xfe{}"),
    ],
    ids=["cut", "empty", "HTML", "an error", "deep", "a long number", "not UTF-8"],
)
def test_u12_u19_an_answer_that_is_none(server: Upstream, provider: OpenAICompatibleProvider, step: Step) -> None:
    """A 200 that holds no embeddings is a BadReply that may be tried again and may have cost money."""
    server.play(step)
    with pytest.raises(BadReply) as caught:
        provider.embed(ask())
    assert (caught.value.status, caught.value.retryable, caught.value.unaccounted) == (200, True, True)
    told(caught.value)


def test_u01_nobody_listens(server: Upstream, provider: OpenAICompatibleProvider) -> None:
    """A refused connection cost nothing, may be tried again, and names the server; later the same provider works."""
    server.close()
    with pytest.raises(ProviderUnavailable) as caught:
        provider.embed(ask())
    assert (caught.value.retryable, caught.value.unaccounted, caught.value.timed_out) == (True, False, False)
    assert f"cannot connect to 127.0.0.1:{server.port}" in told(caught.value)
    with server:
        provider.embed(ask())


# Proxies of the environment. Everything stays on this machine: a proxy is asked for a name that does not exist.

ELSEWHERE = "http://embeddings.invalid/v1"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://127.0.0.1:{port}/"])
def test_u27_a_proxy_is_used(server: Upstream, monkeypatch: pytest.MonkeyPatch, variable: str, form: str) -> None:
    """The proxy that the environment names is asked, in every spelling that other clients take."""
    monkeypatch.setenv(variable, form.format(port=server.port))
    with closing(make(ELSEWHERE)) as provider:
        assert np.array_equal(rows(provider.embed(ask())), [vector(TEXT)])
        provider.embed(ask())
    assert server.requests[0].path == "http://embeddings.invalid/v1/embeddings"
    assert server.requests[0].headers["host"] == "embeddings.invalid"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}", "as the README says of plain http"
    assert server.connections == 1


@pytest.mark.parametrize(
    ("exception", "proxied"),
    [
        ("127.0.0.1", False),
        ("localhost,127.0.0.1,other.invalid", False),
        ("*", False),
        ("127.0.0.1:{port}", False),
        ("127.0.0.1:1", True),
        ("embeddings.invalid", True),
        ("", True),
    ],
)
def test_u27_no_proxy(monkeypatch: pytest.MonkeyPatch, exception: str, proxied: bool) -> None:
    """NO_PROXY names the hosts that are asked directly, with or without their port; all others go by the proxy."""
    with Upstream() as server, Upstream() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", exception.format(port=server.port))
        with closing(make(server.base_url)) as provider:
            provider.embed(ask())
        assert (server.connections, proxy.connections) == ((0, 1) if proxied else (1, 0))


def test_u27_the_key_is_not_shown_to_a_proxy_of_https(server: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """For https a proxy is only asked to connect: it sees the host, and neither key nor texts."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
    with closing(make("https://embeddings.invalid/v1")) as provider, pytest.raises(ProviderUnavailable) as caught:
        provider.embed(ask())
    (request,) = server.requests
    assert (request.method, request.path) == ("CONNECT", "embeddings.invalid:443")
    assert KEY not in str(request.headers)
    assert request.raw == b""
    assert not caught.value.unaccounted, "nothing was asked that could cost"
    told(caught.value)


def test_a_proxy_with_a_password(server: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's user and password go to the proxy, and into no message when it is not there."""
    monkeypatch.setenv("HTTP_PROXY", f"http://someone:pw-canary-987@127.0.0.1:{server.port}")
    with closing(make(ELSEWHERE)) as provider:
        provider.embed(ask())
        assert server.requests[0].headers["proxy-authorization"].startswith("Basic ")
        provider.close()
        server.close()
        with pytest.raises(ProviderUnavailable) as caught:
            provider.embed(ask())
    told(caught.value, [KEY, TEXT, "pw-canary-987"])


@pytest.mark.parametrize("proxy", ["nonsense://127.0.0.1:9", "http://[bad", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A proxy that we cannot use is an error of ours which names the setting, not one of the client's own."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with (
        closing(make(ELSEWHERE)) as provider,
        pytest.raises(EmbcacheError, match=r"(?i)proxy|cannot connect") as caught,
    ):
        provider.embed(ask())
    assert not getattr(caught.value, "unaccounted", False)


def test_an_authority_that_is_not_there(server: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of certificates that the environment names and that is not there is told of, and nothing was sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    with closing(make(server.base_url)) as provider, pytest.raises(EmbcacheError) as caught:
        provider.embed(ask())
    assert server.connections == 0
    assert not getattr(caught.value, "unaccounted", False), "counted as if it may have been billed"
    assert not getattr(caught.value, "retryable", False), "it will be missing the next time as well"
