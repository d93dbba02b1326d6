"""TLS as it is: a server that cannot prove its name gets no byte of a request, and there is no way around that."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trustme

from embcache.errors import ProviderUnavailable

from tests.papers import server_context
from tests.providers.asking import KEY, TEXT, ask, make, rows, told
from tests.upstream import Upstream, vector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@dataclass
class Papers:
    """Authorities and certificates of our own.

    Attributes:
        trusted: the file of the authority that the user trusts, for SSL_CERT_FILE.
        held: by what is to be said of them, certificates that servers hold.
    """

    trusted: Path
    held: dict[str, trustme.LeafCert]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    ours, others = trustme.CA(), trustme.CA()
    path = tmp_path_factory.mktemp("papers") / "authority.pem"
    ours.cert_pem.write_to_path(path)
    held = {
        "good": ours.issue_cert("127.0.0.1"),
        "expired": ours.issue_cert("127.0.0.1", not_before=YESTERDAY - timedelta(days=9), not_after=YESTERDAY),
        "not valid yet": ours.issue_cert("127.0.0.1", not_before=YESTERDAY + timedelta(days=9)),
        "of another host": ours.issue_cert("elsewhere.invalid"),
        "of another address": ours.issue_cert("127.0.0.2"),
        "of an unknown authority": others.issue_cert("127.0.0.1"),
        "signed by itself": trustme.LeafCert(others.private_key_pem.bytes(), others.cert_pem.bytes(), []),
    }
    return Papers(path, held)


BAD = {
    "expired": "expired",
    "not valid yet": "not yet valid",
    "of another host": "not valid for '127.0.0.1'",
    "of another address": "not valid for '127.0.0.1'",
    "of an unknown authority": "unable to get local issuer",
    "signed by itself": "self.signed",
}


def test_u26_a_good_certificate(papers: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate is for its address, signed by an authority that SSL_CERT_FILE names, is asked."""
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.trusted))
    context = server_context(papers.held["good"])
    with Upstream(ssl_context=context) as server, closing(make(server.base_url)) as provider:
        for _ in range(2):
            assert np.array_equal(rows(provider.embed(ask())), [vector(TEXT)])
        assert server.connections == 1


def test_u26_no_authority_of_our_own(papers: Papers) -> None:
    """The same server is not asked where nothing names its authority: only those of the system are trusted."""
    context = server_context(papers.held["good"])
    with Upstream(ssl_context=context) as server, closing(make(server.base_url)) as provider:
        with pytest.raises(ProviderUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            provider.embed(ask())
        assert server.requests == []


@pytest.mark.parametrize(("certificate", "says"), BAD.items(), ids=BAD)
def test_u26_a_bad_certificate(papers: Papers, monkeypatch: pytest.MonkeyPatch, certificate: str, says: str) -> None:
    """Whatever is wrong with a certificate is an error that says so, and is not tried again; no byte was sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.trusted))
    seen: list[bytes] = []
    context = server_context(papers.held[certificate])

    def talk(sock: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(sock, server_side=True) as secure:
            seen.append(secure.recv(65536))

    def attempt(url: str) -> None:
        with closing(make(url)) as provider, pytest.raises(ProviderUnavailable, match=says) as caught:
            provider.embed(ask())
        assert (caught.value.retryable, caught.value.unaccounted) == (False, False)
        assert "CERTIFICATE_VERIFY_FAILED" in told(caught.value)
        assert "SSL_CERT_FILE" in str(caught.value)

    with_listener(talk, attempt)
    assert b"".join(seen) == b""


def with_listener(talk: Callable[[socket.socket], None], attempt: Callable[[str], None]) -> None:
    """Have `attempt` ask the https URL of a listener that gives its one connection to `talk`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def listen() -> None:
            sock, _ = listener.accept()
            sock.settimeout(20)
            with sock:
                talk(sock)

        thread = threading.Thread(target=listen)
        thread.start()
        attempt(f"https://127.0.0.1:{listener.getsockname()[1]}/v1")
        thread.join()


def test_u26_no_byte_of_a_key_goes_out_before_the_handshake() -> None:
    """What a listener sees that never answers a handshake holds neither key nor text."""
    seen: list[bytes] = []

    def attempt(url: str) -> None:
        with closing(make(url)) as provider, pytest.raises(ProviderUnavailable):
            provider.embed(ask())

    with_listener(lambda sock: seen.append(sock.recv(65536)), attempt)
    assert seen[0]
    assert KEY.encode() not in seen[0]
    assert TEXT.encode() not in seen[0]


def test_u26_https_to_a_server_without_tls() -> None:
    """Nothing is sent in the clear where https was asked for."""
    with Upstream() as server:
        url = server.base_url.replace("http:", "https:")
        with closing(make(url)) as provider, pytest.raises(ProviderUnavailable) as caught:
            provider.embed(ask())
        assert server.requests == []
    told(caught.value)
