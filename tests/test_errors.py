"""What goes wrong is told by a class, with the facts, and without a word of what was sent."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

import embcache
from embcache import (
    AuthenticationError,
    BadReply,
    BudgetExceeded,
    CacheMiss,
    ConfigError,
    EmbcacheError,
    InputRejected,
    InvalidInput,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    StoreBusy,
    StoreError,
)

from tests import twins
from tests.twins import Bench, everything, files_of, right, same
from tests.upstream import (
    Upstream,
    broken_chunk,
    drip,
    edit,
    hang,
    header_flood,
    raw,
    redirect,
    reset_midway,
    short_body,
    status,
)

if TYPE_CHECKING:
    from tests.upstream import Body, Step

bench = twins.bench
at_once = twins.at_once

KEY = "sk-canary-6b1f0e9d77"
SECRET = "the canary sang of gold and nobody heard it"
TREE = {
    ConfigError: EmbcacheError,
    InvalidInput: EmbcacheError,
    InputRejected: EmbcacheError,
    ProviderError: EmbcacheError,
    AuthenticationError: ProviderError,
    RateLimited: ProviderError,
    QuotaExceeded: ProviderError,
    ProviderUnavailable: ProviderError,
    BadReply: ProviderError,
    StoreError: EmbcacheError,
    StoreBusy: StoreError,
    CacheMiss: EmbcacheError,
    BudgetExceeded: EmbcacheError,
}


def test_the_tree() -> None:
    """Every error has its place below one root, and a wrong value is a ValueError."""
    for error, parent in TREE.items():
        assert issubclass(error, parent)
        assert getattr(embcache, error.__name__) is error
    public = [getattr(embcache, name) for name in embcache.__all__]
    errors = [thing for thing in public if isinstance(thing, type) and issubclass(thing, Exception)]
    assert set(errors) - {EmbcacheError, embcache.EmbcacheWarning} == set(TREE)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(InvalidInput, ValueError)
    assert not issubclass(InputRejected, ProviderError)


@dataclass
class Case:
    """An answer, what it means, and how often the request is sent with two retries allowed."""

    code: int
    means: type[EmbcacheError]
    requests: int = 1
    body: Body | None = None
    says: str | None = None
    facts: dict[str, object] = field(default_factory=dict[str, object])


def flat(code: int, reason: str) -> Body:
    return {"code": code, "reason": reason, "message": "see there", "metadata": {}}


def wrapped(kind: str) -> Body:
    return {"error": {"message": "see there", "type": kind, "param": None, "code": kind}}


CASES = {
    "400": Case(400, InputRejected, facts={"code": "INVALID_REQUEST_BODY"}),
    "401": Case(401, AuthenticationError, says="API key", facts={"code": "FAILED_TO_AUTH"}),
    "402": Case(402, QuotaExceeded, says="Top up"),
    "403": Case(403, AuthenticationError, body=flat(403, "PERMISSION_DENIED"), facts={"code": "PERMISSION_DENIED"}),
    "403 for want of money": Case(403, QuotaExceeded, facts={"code": "NOT_ENOUGH_BALANCE"}),
    "404 for a model": Case(404, ProviderError, says="model's name", facts={"code": "MODEL_NOT_FOUND"}),
    "404 for a path": Case(404, ProviderError, body="404 page not found", says="page not found", facts={"code": None}),
    "405": Case(405, ProviderError),
    "408": Case(408, ProviderUnavailable, requests=3),
    "409": Case(409, ProviderUnavailable, requests=3),
    "413": Case(413, InputRejected),
    "422": Case(422, InputRejected),
    "425": Case(425, ProviderUnavailable, requests=3),
    "429": Case(429, RateLimited, requests=3, facts={"retryable": True, "code": "RATE_LIMIT_EXCEEDED"}),
    "429 for want of quota": Case(429, QuotaExceeded, body=wrapped("insufficient_quota"), facts={"retryable": False}),
    "429 for want of money": Case(429, QuotaExceeded, body=flat(429, "NOT_ENOUGH_BALANCE")),
    "500": Case(500, ProviderUnavailable, requests=3, facts={"retryable": True}),
    "502": Case(502, ProviderUnavailable, requests=3, body="<html>bad gateway</html>", says="bad gateway"),
    "503": Case(503, ProviderUnavailable, requests=3),
    "504": Case(504, ProviderUnavailable, requests=3),
    "529": Case(529, ProviderUnavailable, requests=3),
    "204": Case(204, ProviderError),
    "304": Case(304, ProviderError),
}


FINAL = {name: case for name, case in CASES.items() if case.requests == 1}
PASSING = {name: case for name, case in CASES.items() if case.requests > 1}


@pytest.mark.parametrize("case", FINAL.values(), ids=FINAL)
def test_u06_what_is_refused_for_good(bench: Bench, at_once: None, case: Case) -> None:
    """Each status that will not pass is an error of its class with the facts, after a single request."""
    check_case(bench, case)


@pytest.mark.parametrize("case", PASSING.values(), ids=PASSING)
def test_u04_u05_what_does_not_pass(bench: Bench, at_once: None, case: Case) -> None:
    """Each status that may pass is asked again as often as is allowed; then it is an error of its class."""
    check_case(bench, case)


def check_case(bench: Bench, case: Case) -> None:
    """Ask a server that always answers so."""
    bench.server.always = status(case.code, body=case.body, headers={"x-request-id": "req-1"})
    with bench.open(max_retries=2) as embedder:
        with pytest.raises(EmbcacheError, match=case.says) as caught:
            embedder.embed("a")
        assert type(caught.value) is case.means
        told = vars(caught.value)
        assert (told["status"], told["request_id"], told["kept"]) == (case.code, "req-1", 0)
        assert case.facts.items() <= told.items()
        assert str(case.code) in str(caught.value)
        assert "req-1" in str(caught.value)
        assert len(bench.server.requests) == embedder.session.requests == case.requests
        assert embedder.stats().entries == 0


@pytest.mark.parametrize("style", ["flat", "openai", "text"])
def test_the_servers_words(bench: Bench, style: Literal["flat", "openai", "text"]) -> None:
    """What the server says is told, in whichever of the usual forms it says it."""
    bench.server.error_style = style
    bench.server.require_key = "another"
    with bench.open(api_key=KEY) as embedder, pytest.raises(AuthenticationError, match=r"401.*: no such key"):
        embedder.embed("a")


def test_u04_rate_limited_for_a_while(bench: Bench, at_once: None) -> None:
    """What is refused for its rate alone is asked again until it is answered."""
    bench.server.play(status(429), status(429, headers={"Retry-After": "0"}))
    with bench.open() as embedder:
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
    assert [request.status for request in bench.server.requests] == [429, 429, 200]


def test_u04_how_long_to_wait_is_told(bench: Bench) -> None:
    """Where waiting did not help, the error has what the server asked for, as it said it."""
    bench.server.play(status(429, headers={"Retry-After": "3600"}))
    with bench.open(max_retries=0) as embedder, pytest.raises(RateLimited) as caught:
        embedder.embed("a")
    assert caught.value.retry_after == 3600


def test_u04_the_backoff_grows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without advice a retry waits, and the next one about twice as long."""
    monkeypatch.setattr("embcache.retry.FIRST_WAIT", 0.1)  # half a second, or this test would take four
    bench.server.play(status(503), status(503), status(503))
    with bench.open() as embedder:
        embedder.embed("a")
    times = [request.at for request in bench.server.requests]
    assert times[1] - times[0] >= 0.05  # half of it is chance
    assert times[2] - times[1] >= 0.1
    assert times[3] - times[2] >= 0.2


@pytest.mark.parametrize("location", ["", "/elsewhere", "http://[", "https://user:pass@elsewhere.invalid/x?key=1"])
def test_u14_strange_redirects(bench: Bench, location: str) -> None:
    """A redirect to wherever is an error with its status, that tells the host at most."""
    bench.server.play(redirect(location))
    with bench.open() as embedder, pytest.raises(ProviderError, match="redirect") as caught:
        embedder.embed("a")
    assert caught.value.status == 307
    assert "pass" not in str(caught.value)
    assert "key=1" not in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_u14_redirects_are_not_followed(bench: Bench, code: int) -> None:
    """A server that points elsewhere is an error that names the other host, which sees no connection."""
    with Upstream() as other:
        bench.server.play(redirect(other.base_url, code))
        with bench.open(api_key=KEY) as embedder, pytest.raises(ProviderError, match=r"redirect to 127\.0\.0\.1"):
            embedder.embed("a")
        assert other.connections == 0
    assert len(bench.server.requests) == 1


def test_u01_no_server(bench: Bench, at_once: None) -> None:
    """Where nobody listens, hits are served all the same, and a miss says where it could not connect."""
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
        bench.server.close()
        assert same(embedder.embed(["b", "a"]), right(["b", "a"]))
        with pytest.raises(ProviderUnavailable, match=f"127.0.0.1:{bench.server.port}") as caught:
            embedder.embed("c")
        assert caught.value.retryable
        assert caught.value.status is None
        assert embedder.session.requests == 1 + 6
    with bench.server, bench.open() as embedder:  # back on the same port
        assert same(embedder.embed(["c", "a"]), right(["c", "a"]))


def test_u03_no_answer_in_time(bench: Bench, at_once: None) -> None:
    """`timeout` bounds a request as a whole, and one that timed out is sent once more at most."""
    bench.server.always = drip(0.05)  # each single byte comes soon enough
    with bench.open(timeout=0.5) as embedder, pytest.raises(ProviderUnavailable, match=r"within 0\.5 s") as caught:
        embedder.embed(["a"] * 3)
    assert caught.value.timed_out
    assert len(bench.server.requests) == 2
    assert embedder.session.unknown_requests == 2


BREAKS = {
    "reset midway": reset_midway(),
    "short body": short_body(),
    "broken chunk": broken_chunk(),
    "dropped": raw(b""),
}
NO_HTTP = {
    "another protocol": raw(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "a bad status": raw(b"HTTP/1.1 abc OK\r\n\r\n"),
    "a flood of headers": header_flood(),
    "a long header": header_flood(1, 200_000),
}


@pytest.mark.parametrize("step", BREAKS.values(), ids=BREAKS)
def test_u13_broken_connections(bench: Bench, at_once: None, step: Step) -> None:
    """A connection that breaks once is tried again, and all is well."""
    check_broken(bench, step)


@pytest.mark.parametrize("step", NO_HTTP.values(), ids=NO_HTTP)
def test_u17_no_http(bench: Bench, at_once: None, step: Step) -> None:
    """What is no HTTP, or too much of it, is treated as a connection that broke; nobody waits for more of it."""
    check_broken(bench, step)


def check_broken(bench: Bench, step: Step) -> None:
    """Where two requests break, which may both have been billed, the error is the provider's; where one does, none."""
    with bench.open() as embedder:
        bench.server.play(step, step)
        with pytest.raises(ProviderUnavailable) as caught:
            embedder.embed(["a", "b"])
        assert (caught.value.retryable, caught.value.timed_out) == (True, False)
        assert len(bench.server.requests) == embedder.session.unknown_requests == 2
        assert embedder.stats().entries == 0
        bench.server.play(step)
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
        assert embedder.session.unknown_requests == 3
    assert len(bench.server.requests) == 4


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_u05_a_server_that_fails_once(bench: Bench, at_once: None, code: int) -> None:
    """A failure that passes costs a second request, and the caller sees nothing of it."""
    bench.server.play(status(code))
    with bench.open(max_retries=1) as embedder:
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
        assert embedder.stats().unknown_requests == 0
    assert [request.status for request in bench.server.requests] == [code, 200]


# Nothing of what was sent


def model_is(name: str) -> Step:
    def change(body: dict[str, Any]) -> Body:
        return body | {"model": name}

    return edit(change)


LEAKS: dict[str, Step] = {
    **{str(code): status(code) for code in (400, 401, 402, 403, 404, 413, 422, 429, 500, 503)},
    "in the code": status(400, body={"code": KEY, "message": "no", "reason": SECRET}),
    "as plain text": status(500, body=f"Traceback: embed({SECRET!r}) with Bearer {KEY}"),
    "as a request id": status(500, headers={"x-request-id": KEY, "request-id": SECRET}),
    "behind many words": status(400, body={"message": "x" * 900 + SECRET + KEY}),
    "cut short": status(400, body={"message": f"{SECRET[:30]}... and {KEY[:12]}***"}),
    "in 200": status(200, body={"error": {"message": f"{SECRET} {KEY}"}}),
    "in 200 as text": status(200, body=f"{SECRET} {KEY}"),
    "in a redirect": status(307, headers={"Location": f"http://elsewhere.invalid/{KEY}?text={SECRET[:10]}"}),
    "in a header": raw(f"HTTP/1.1 200 OK\r\nBad Header {KEY} {SECRET}\r\n\r\n".encode()),
    "in the status line": raw(f"{SECRET} {KEY}\r\n\r\n".encode()),
    "no answer": hang(30),
}


@pytest.mark.parametrize("step", LEAKS.values(), ids=LEAKS)
def test_u06_neither_key_nor_text_is_told(
    bench: Bench, at_once: None, caplog: pytest.LogCaptureFixture, step: Step
) -> None:
    """However a server quotes what it was sent: neither key nor text is in an error, the log or a file."""
    caplog.set_level(logging.DEBUG)
    bench.server.echo_text_in_error = True
    bench.server.always = step
    with bench.open(api_key=KEY, max_retries=1, timeout=0.5) as embedder:
        with pytest.raises(EmbcacheError) as caught:
            embedder.embed([SECRET, f"{SECRET} again"])
        embedder.stats()
    # httpcore's own DEBUG log shows the headers of an answer, whatever they hold; nobody else's may.
    records = [record for record in caplog.records if not record.name.startswith("httpcore")]
    told = [*everything(caught.value), *(f"{record.getMessage()} {record.args}" for record in records)]
    for piece in ("canary", "sang of gold", KEY[3:]):
        assert not [line for line in told if piece in line]
        assert piece.encode() not in files_of(bench.folder)
    assert bench.server.requests  # or else nothing was quoted


def test_neither_key_nor_text_is_told_in_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers with a text as its model's name brings neither text nor key into warning, log or file."""
    bench.server.play(model_is(f"{SECRET} {KEY}"))
    with bench.open(api_key=KEY) as embedder, pytest.warns(embcache.EmbcacheWarning) as told:
        embedder.embed(SECRET)
    for piece in ("canary", "sang of gold", KEY[3:]):
        assert piece not in "".join(str(warning.message) for warning in told) + caplog.text
        assert piece.encode() not in files_of(bench.folder)


def test_no_text_in_files_and_logs(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What is kept of a text is its vector and its digest: neither text nor key is in any file, nor in any log."""
    caplog.set_level(logging.DEBUG)
    with bench.open(api_key=KEY) as embedder:
        embedder.embed([SECRET, f"{SECRET} again"])
        embedder.embed(SECRET)
        assert len(files_of(bench.folder)) > 1000
        assert b"canary" not in files_of(bench.folder)
    assert b"canary" not in files_of(bench.folder)
    assert caplog.records
    assert "canary" not in "".join(f"{record.getMessage()} {record.args}" for record in caplog.records)


def test_u06_the_words_of_a_refusal_are_few(bench: Bench) -> None:
    """Of a refusal's words 200 characters are told at most."""
    bench.server.play(status(400, body={"code": 400, "reason": "R", "message": "x " * 5000}))
    with bench.open() as embedder, pytest.raises(InputRejected) as caught:
        embedder.embed("a text")
    assert 50 < str(caught.value).count("x") <= 200
    assert len(caught.value.reason) < 250


def test_errors_travel(bench: Bench) -> None:
    """An error goes through pickle, as between processes, and arrives with its facts and words."""
    bench.server.play(status(422, headers={"x-request-id": "req-1"}))
    with bench.open() as embedder:
        with pytest.raises(InputRejected) as caught:
            embedder.embed("a")
        with pytest.raises(InvalidInput) as wrong:
            embedder.embed(["a", ""])
    for error in (caught.value, wrong.value):
        arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
