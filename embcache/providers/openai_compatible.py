"""Any server that speaks OpenAI's ``POST /embeddings``. The only room that knows the HTTP client.

One client, kept alive; no redirects, no compression, no more of a body than ``MAX_BODY``. The deadline of a request is
one for the whole of it: httpx's own time-outs are pauses between bytes, which a server that drips never exceeds. So
every single wait of the connection is cut to what is left of the deadline, below httpx, in the network backend of
httpcore (``_Transport``); ``tests/providers/test_deadline.py`` fails when a new httpx no longer asks it. Only the
look-up of the server's name is the system's own, and cannot be cut short: it takes what its resolver is set to.
"""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from embcache._version import __version__
from embcache.errors import (
    AuthenticationError,
    BadReply,
    ConfigError,
    InputRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from embcache.forks import tell_after_fork
from embcache.providers.keycheck import checked_key
from embcache.providers.redact import redact
from embcache.retry import is_retryable, read_retry_after
from embcache.wire import decode_reply, encode_request, read_error

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from embcache.types import Ask, Reply

MAX_BODY = 64 << 20
"""Bytes of an answer read at most."""
MAX_ERROR_BODY = 64 << 10
WRITE_SLICE = 64 << 10
OK = 200
REFUSALS = frozenset({400, 413, 422})
OUT_OF_MONEY = ("insufficient_quota", "not_enough_balance", "insufficient_balance", "billing_hard_limit_reached")
# The last is a host that is no name: one with an empty part, or too long a one.
NOT_CONNECTED = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)

_deadline = threading.local()


def _left(timeout: float | None, exceeded: type[Exception]) -> float:
    """Return the seconds one wait may take: ``timeout``, or what is left until this thread's deadline if less."""
    left: float = getattr(_deadline, "at", float("inf")) - time.monotonic()
    if left <= 0:
        raise exceeded
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends at the deadline of the request it serves."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_SLICE):
            self._stream.write(buffer[start : start + WRITE_SLICE], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's own signature
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        seconds = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, seconds, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Transport(httpx.HTTPTransport):
    def __init__(self, proxy: str | None) -> None:
        super().__init__(proxy=proxy)
        pool: Any = self._pool  # its backend has no public door
        pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001


def _proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for ``url`` (``HTTPS_PROXY``, ``NO_PROXY`` and the like)."""
    parts = urlsplit(url)
    proxies = getproxies()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if proxy_bypass(f"{parts.hostname}:{port}"):
        return None
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named:
        return None
    proxy = named if "://" in named else f"http://{named}"
    try:
        usable = urlsplit(proxy).scheme in ("http", "https") and bool(urlsplit(proxy).hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("the proxy of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is no URL of a proxy")
    return proxy


class OpenAICompatibleProvider:
    """A server that speaks OpenAI's embeddings API, Novita's or any other.

    Args:
        base_url: what the ``openai`` client takes, such as ``https://api.novita.ai/openai/v1``.
        api_key: sent as a bearer token to ``base_url`` and nowhere else; None sends none.
        provider_id: what keys call this server.
        model: the model to ask for where the user names none.
        key_hint: what to say to a user whose server wants a key and who has given none.
    """

    fixed = False

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        provider_id: str,
        model: str,
        key_hint: str | None = None,
    ) -> None:
        """Remember where and with which key; nothing is opened before the first request."""
        self.id = provider_id
        self.model = model
        self._url = base_url.rstrip("/") + "/embeddings"
        self._models = base_url.rstrip("/") + "/models"
        self._key = None if api_key is None else checked_key("api_key", api_key)
        self._key_hint = key_hint
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def connections(self) -> list[object]:
        """Return what a child of a fork must neither use nor close."""
        return [self._client]

    def after_fork(self) -> None:
        """Begin anew in a child; the connections are the parent's."""
        self._begin()

    def __repr__(self) -> str:
        """Show the provider without its key."""
        return f"{type(self).__name__}({self.id!r})"

    def embed(self, ask: Ask) -> Reply:
        """See :class:`~embcache.providers.base.Provider`."""
        if self._key is None and self._key_hint is not None:
            raise ConfigError(self._key_hint)
        body = encode_request(ask)
        with self._connected(ask.timeout) as client:
            return self._send(client, body, ask)

    @property
    def has_key(self) -> bool:
        """Whether requests carry an API key."""
        return self._key is not None

    @property
    def lacks_key(self) -> bool:
        """Whether nothing can be bought here without a key, and there is none."""
        return self._key is None and self._key_hint is not None

    def reach(self, timeout: float) -> int:
        """Ask the server for its list of models, which costs nothing, and return the status of the answer.

        Whatever the status, the server is there: not every one has such a list.

        Args:
            timeout: seconds that it may take, but for a resolver of names that hangs.

        Raises:
            ConfigError: the connection cannot be prepared.
            ProviderUnavailable: there is no answer.
        """
        with self._connected(timeout) as client, client.stream("GET", self._models, timeout=timeout) as response:
            return response.status_code

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def _connected(self, timeout: float) -> Generator[httpx.Client]:
        """Give the client to a request that ends within ``timeout``; what its connection meets is translated."""
        try:
            client = self._open()
        except OSError as error:
            raise ConfigError(
                f"the connection cannot be prepared ({error}): check SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None
        _deadline.at = time.monotonic() + timeout
        try:
            yield client
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise self._unavailable(error, timeout) from None  # the cause holds the request, texts and key
        finally:
            del _deadline.at

    def _send(self, client: httpx.Client, body: bytes, ask: Ask) -> Reply:
        # httpx's own time-outs stay on for the wait for a free connection of the pool; all others end sooner.
        with client.stream("POST", self._url, content=body, timeout=ask.timeout) as response:
            encoding = response.headers.get("content-encoding", "identity").lower()
            if response.status_code != OK:
                told = bytearray() if encoding != "identity" else self._read(response, MAX_ERROR_BODY, cut=True)
                self._refuse(response, told, ask)
            if encoding != "identity":
                message = f"the provider compressed its answer ({encoding[:20]}), which it was asked not to do"
                raise BadReply(message, status=OK, unaccounted=True)
            reply = decode_reply(self._read(response, MAX_BODY, cut=False))
            if reply.model in (None, ask.model):
                return reply
            # What a server calls its model is its own words, too.
            return replace(reply, model=redact(str(reply.model), self._key, ask.items) or None)

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                headers = {
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"embcache/{__version__}",
                }
                if self._key is not None:
                    headers["Authorization"] = f"Bearer {self._key}"
                # trust_env=False: no credentials out of a .netrc; the proxies of the environment are honoured above.
                transport = _Transport(_proxy_for(self._url))
                jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # each request is on its own
                self._client = httpx.Client(transport=transport, headers=headers, cookies=jar, trust_env=False)
            return self._client

    @staticmethod
    def _read(response: httpx.Response, most: int, *, cut: bool) -> bytearray:
        """Return the body; of one that is longer than ``most`` the beginning if ``cut``, else raise."""
        told = response.headers.get("content-length", "")
        body = bytearray()
        too_long = told.isdecimal() and int(told[:20]) > most
        if not too_long or cut:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > most:
                    too_long = True
                    break
        if too_long and not cut:
            message = (
                f"the provider's answer is longer than {most >> 20} MiB; nothing of it was stored. "
                'Use a smaller batch_size, or encoding_format="base64".'
            )
            raise BadReply(message, status=OK, unaccounted=True)
        del body[most:]
        return body

    def _refuse(self, response: httpx.Response, body: bytearray, ask: Ask) -> NoReturn:
        """Raise what an answer that is not 200 means."""
        status = response.status_code
        code, words = read_error(body)
        code = redact(code, self._key, ask.items) if code else None
        said = redact(words, self._key, ask.items)
        told = f"the provider answered {status}" + (f" {code}" if code else "") + (f": {said}" if said else "")
        facts: dict[str, Any] = {
            "status": status,
            "code": code,
            "request_id": _request_id(response, self._key, ask),
            "retry_after": read_retry_after(response.headers, time.time()),
        }
        of_money = f"{code} {said}".lower()
        if status == 402 or any(sign in of_money for sign in OUT_OF_MONEY):  # noqa: PLR2004 - Payment Required
            raise QuotaExceeded(f"{told}. Top up the account; asking again does not help.", **facts)
        if status in REFUSALS:
            raise InputRejected(told, **facts)
        if status in (401, 403):
            raise AuthenticationError(f"{told}. Check the API key and what it may use.", **facts)
        if status == 429:  # noqa: PLR2004 - Too Many Requests
            raise RateLimited(told, retryable=True, **facts)
        if is_retryable(status):
            raise ProviderUnavailable(told, retryable=True, **facts)
        if 300 <= status < 400:  # noqa: PLR2004 - the redirects
            told = f"the provider answered {status}, a redirect{_host_in(response)}; redirects are not followed"
            told += ". Check base_url."
        elif status == 404:  # noqa: PLR2004 - Not Found
            told += ". Check the model's name and base_url."
        raise ProviderError(told, **facts)

    def _unavailable(self, error: Exception, timeout: float) -> ProviderError:
        """Return what a failure of the connection means; it says where, and nothing of what was sent."""
        parts = urlsplit(self._url)
        where = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        if isinstance(error, httpx.TimeoutException):
            connected = not isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout))
            reason = f"no answer from {where} within {timeout:g} s"
            return ProviderUnavailable(reason, retryable=True, timed_out=True, unaccounted=connected)
        if isinstance(error, NOT_CONNECTED):
            reason = f"cannot connect to {where}: {redact(str(error), self._key, ())}"
            if _is_of_certificate(error):
                reason += ". Check base_url; an authority of your own is named by SSL_CERT_FILE"
                return ProviderUnavailable(reason)
            return ProviderUnavailable(reason, retryable=isinstance(error, httpx.ConnectError))
        reason = f"the connection to {where} broke: {type(error).__name__}"
        return ProviderUnavailable(reason, retryable=True, unaccounted=True)


def _is_of_certificate(error: BaseException | None) -> bool:
    """Return whether ``error`` came of a certificate that does not hold: it will not hold the next time, either."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__context__  # and not its cause, which httpcore takes away
    return error is not None


def _host_in(response: httpx.Response) -> str:
    """Return where a redirect leads, as words; only the host, since the rest may hold anything."""
    try:
        host = urlsplit(str(response.headers.get("location", ""))).hostname
    except ValueError:
        host = None
    return f" to {host[:100]}" if host and host.isascii() and host.isprintable() else ""


def _request_id(response: httpx.Response, key: str | None, ask: Ask) -> str | None:
    for name in ("x-request-id", "request-id", "x-trace-id"):
        if value := response.headers.get(name):
            return redact(value, key, ask.items)[:80]
    return None
