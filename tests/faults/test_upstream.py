"""Faults of the server and of the way there, as a caller meets them. Rows of docs/faults.md stand in the names.

Rows whose fault had its place elsewhere are tried there: the page says where.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache import AsyncCachedEmbedder, BadReply, ProviderUnavailable

from tests import twins
from tests.papers import server_context
from tests.twins import SECONDS, Bench, right, same, soon
from tests.upstream import Upstream, cut_without_length, edit, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.upstream import Body, Step

bench = twins.bench
at_once = twins.at_once

TEXTS = ["alpha", "beta", "gamma", "delta", "epsilon"]


# The way there


def test_u01_a_name_that_is_not_found(bench: Bench, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server's name is not found, hits are served all the same, and a miss says so after bounded retries."""
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # for a machine whose resolver does not answer
    with bench.open(provider_name="the server") as embedder:
        embedder.embed(TEXTS)
    with bench.open(provider_name="the server", base_url="http://embeddings.invalid/v1", max_retries=2) as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))
        with pytest.raises(ProviderUnavailable, match=r"cannot connect to embeddings\.invalid") as caught:
            embedder.embed("new")
        assert caught.value.retryable
        assert (embedder.session.requests, embedder.session.unknown_requests) == (3, 0)
    assert len(bench.server.requests) == 1


@pytest.mark.parametrize("host", ["embeddings..invalid", "e" * 64 + ".invalid"], ids=["empty part", "long part"])
def test_u01_a_host_that_is_no_name(bench: Bench, host: str) -> None:
    """A host that cannot be looked up at all is an error of ours, and nothing is tried again."""
    with bench.open(base_url=f"http://{host}/v1") as embedder:
        with pytest.raises(ProviderUnavailable, match="cannot connect to") as caught:
            embedder.embed("a")
        assert not caught.value.retryable
        assert (embedder.session.requests, embedder.session.unknown_requests) == (1, 0)


def test_u26_a_bad_certificate_is_not_tried_again(
    bench: Bench, at_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server whose certificate does not hold is asked to prove itself once; hits are served all the same."""
    with bench.open(provider_name="the server") as embedder:
        embedder.embed(TEXTS)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    for host, connections in (("elsewhere.invalid", 1), ("127.0.0.1", 1)):
        with Upstream(ssl_context=server_context(authority.issue_cert(host))) as server:
            with bench.open(provider_name="the server", base_url=server.base_url) as embedder:
                assert same(embedder.embed(TEXTS), right(TEXTS))
                if host == "127.0.0.1":
                    assert same(embedder.embed("new"), vector("new"))
                else:
                    with pytest.raises(ProviderUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                        embedder.embed("new")
                    assert server.requests == []
            assert server.connections == connections


# Answers that are none


def check_nothing_kept(bench: Bench, step: Step) -> None:
    """Of an answer that is none, nothing is stored; it is tried once more, and the next call works as ever."""
    bench.server.play(*[step] * 6)
    with bench.open() as embedder:
        with pytest.raises(BadReply) as caught:
            embedder.embed(TEXTS)
        assert (caught.value.status, caught.value.indexes, caught.value.kept) == (200, (), 0)
        assert len(bench.server.requests) == 2
        assert embedder.stats().entries == 0
        bench.server.script.clear()
        assert same(embedder.embed(TEXTS), right(TEXTS))


def test_u12_a_body_cut_short(bench: Bench, at_once: None) -> None:
    """A body that ends too soon, in good order as far as HTTP can tell, is no answer."""
    check_nothing_kept(bench, cut_without_length())


def spoilt(change: Callable[[str], str | bytes]) -> Step:
    """Answer with the proper text of the body, changed as text."""
    return edit(lambda body: change(json.dumps(body)))


HURTFUL: dict[str, Step] = {
    "deep": spoilt(lambda _: "[" * 100_000),
    "deep beside the vectors": spoilt(lambda told: told[:-1] + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "a number of 5,000 digits": spoilt(lambda told: told[:-1] + ', "data": ' + "1" * 5_000 + "}"),
    "an index of 5,000 digits": spoilt(lambda told: told.replace('"index": 0', '"index": ' + "1" * 5_000)),
    "names that stand twice": spoilt(lambda told: told[:-1] + ', "data": []}'),
    "an index that stands twice": spoilt(lambda told: told.replace('"index": 1', '"index": 1, "index": 2')),
    "no UTF-8": spoilt(lambda told: told.replace('"model": "', '"model": "\ud800').encode("utf-8", "surrogatepass")),
    "bytes": spoilt(lambda _: bytes(range(256))),
    "a byte order mark": spoilt(lambda told: "\ufeff" + told),
    "UTF-16": spoilt(lambda told: told.encode("utf-16")),
}


@pytest.mark.parametrize("step", HURTFUL.values(), ids=HURTFUL)
def test_u19_json_made_to_hurt(bench: Bench, at_once: None, step: Step) -> None:
    """JSON beyond all bounds, or none, is an error like any other; the process lives, and its next call works."""
    check_nothing_kept(bench, step)


NUMBERS = (f"number {n}" for n in itertools.count())


@given(
    st.permutations(range(5)),
    st.integers(0, 4),
    st.one_of(st.integers(-3, 8), st.just(10**30), st.sampled_from(["0", 1.0, True, None, [0], {}])),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])  # one bench for all of them
@pytest.mark.parametrize("bench", ["sync"], indirect=True)  # what is judged is judged before the faces part
def test_u07_any_order_and_any_index(bench: Bench, at_once: None, order: list[int], which: int, index: object) -> None:
    """Answers in any order are placed by their index; with one index changed, they are right or refused as a whole."""
    texts = list(itertools.islice(NUMBERS, 5))

    def change(body: dict[str, Any]) -> Body:
        data = [body["data"][number] for number in order]
        data[which]["index"] = index
        return body | {"data": data}

    harmless = index is None or (type(index) is int and index == order[which])
    with bench.open() as embedder:
        before = embedder.stats().entries
        bench.server.play(edit(change), edit(change))
        if harmless:
            assert same(embedder.embed(texts), right(texts))
        else:
            with pytest.raises(BadReply, match="index"):
                embedder.embed(texts)
            assert embedder.stats().entries == before
        bench.server.script.clear()
        assert same(embedder.embed(texts), right(texts))


# Vectors and bills


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "-Infinity", "1e300"])
def test_u09_numbers_as_they_are_written(bench: Bench, number: str) -> None:
    """A number that no float32 holds, however it is written, refuses its own vector, and no other."""

    def change(body: dict[str, Any]) -> Body:
        body["data"][2]["embedding"] = ["it", *[1.0] * 7]
        return json.dumps(body).replace('"it"', number)

    bench.server.play(edit(change))
    with bench.open() as embedder:
        with pytest.raises(BadReply, match="infinite") as caught:
            embedder.embed(TEXTS)
        assert (caught.value.indexes, caught.value.kept, embedder.stats().entries) == ((2,), 4, 4)
        bench.server.forget()
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert bench.server.sent_inputs == [TEXTS[2]]


USAGES: dict[str, object] = {
    "null": None,
    "a list": [3],
    "negative": {"prompt_tokens": -5, "total_tokens": -5},
    "text": {"prompt_tokens": "5", "total_tokens": "5"},
    "huge": {"prompt_tokens": 10**30, "total_tokens": 10**30},
    "NaN": {"prompt_tokens": float("nan"), "total_tokens": float("nan")},
    "infinite": {"prompt_tokens": float("inf"), "total_tokens": float("-inf")},
    "a fraction": {"prompt_tokens": 1.5, "total_tokens": 2.5},
    "a boolean": {"prompt_tokens": True, "total_tokens": True},
    "nothing": {},
}


@pytest.mark.parametrize("usage", USAGES.values(), ids=USAGES)
def test_u20_what_was_billed_before_stays(bench: Bench, usage: object) -> None:
    """A bill that cannot be believed leaves the books as they were; the vectors are kept, at an unknown cost."""
    with bench.open() as embedder:
        embedder.embed(TEXTS)
        embedder.embed(TEXTS)
        before = embedder.stats()
        assert before.billed_tokens == before.saved_tokens == sum(map(tokens, TEXTS))
        bench.server.play(edit(lambda body: body | {"usage": usage}))
        result = embedder.embed_result(["new", "newer"])
        assert same(result.vectors, right(["new", "newer"]))
        assert (result.usage.total_tokens, result.usage.prompt_tokens, result.usage.unknown_requests) == (0, 0, 1)
        assert same(embedder.embed(["new", "newer"]), right(["new", "newer"]))
        after = embedder.stats()
    assert (after.billed_tokens, after.saved_tokens) == (before.billed_tokens, before.saved_tokens)
    assert (after.entries, after.unknown_requests, after.requests) == (7, 1, 2)


def test_u21_the_other_byte_order(bench: Bench) -> None:
    """Nobody can tell that floats were packed the wrong way round: what was sent is replayed, to the last bit."""
    packed = np.arange(1, 9, dtype=">f4").tobytes()

    def change(body: dict[str, Any]) -> Body:
        body["data"][0]["embedding"] = base64.b64encode(packed).decode()
        return body

    bench.server.play(edit(change))
    with bench.open() as embedder:
        assert embedder.embed("a").tobytes() == embedder.embed("a").tobytes() == packed
    assert len(bench.server.requests) == 1


NO_ROOM = """
import resource, warnings
from tests.twins import right, same
texts = [f"text {n}" for n in range(300)]
assert same(call(["a"]), right(["a"]))
usual = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, usual[1]))  # every write to a file fails from here on, as on a full disk
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    assert same(call(texts), right(texts))
    assert same(call(["a"]), right(["a"]))
resource.setrlimit(resource.RLIMIT_FSIZE, usual)
assert {warning.category.__name__ for warning in told} == {"EmbcacheWarning"}, told
print(len(told), embedder.session.store_errors)
assert same(call(texts), right(texts))
embedder.close()
"""


def test_u11_what_was_paid_for_is_returned(bench: Bench) -> None:
    """Where an answer cannot be stored it is returned all the same, with a warning; once there is room it is stored."""
    pytest.importorskip("resource")
    warned, errors = map(int, bench.run(NO_ROOM).split())
    assert warned == 1
    assert errors >= 1
    sent = len(bench.server.sent_inputs)
    assert sent == 1 + 300 + 300
    with bench.open(offline=True) as embedder:
        assert same(embedder.embed([f"text {n}" for n in range(300)]), right(f"text {n}" for n in range(300)))


# Callers who go away


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(6))
async def test_u25_cancelled_at_any_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whenever tasks are cancelled or time out: who stays is answered, each text is bought once, nothing left over."""
    monkeypatch.setattr("embcache.stores.disk.PATIENCE", SECONDS)  # as in `bench`
    chance = random.Random(seed)
    everything = [f"text {n}" for n in range(60)]
    with Upstream(delay=0.004) as server:
        async with AsyncCachedEmbedder(
            base_url=server.base_url, cache_dir=tmp_path, batch_size=3, max_concurrency=2
        ) as embedder:
            for turn in range(20):
                texts = chance.sample(everything, chance.randrange(1, 9))
                going = [asyncio.ensure_future(embedder.embed(texts)) for _ in range(3)]
                going.append(asyncio.ensure_future(asyncio.wait_for(embedder.embed(texts), chance.uniform(0, 0.02))))
                staying = [asyncio.ensure_future(embedder.embed(texts[::-1]))] if turn % 2 else []
                await asyncio.sleep(chance.choice([0, chance.uniform(0, 0.02)]))
                for task in going[:3]:
                    task.cancel()
                for outcome in await asyncio.gather(*going, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        assert isinstance(outcome, asyncio.CancelledError | TimeoutError)
                    else:
                        assert same(outcome, right(texts))
                for task in staying:
                    assert same(await task, right(texts[::-1]))
            assert same(await embedder.embed(everything), right(everything))
            engine = embedder._engine
            assert await asyncio.to_thread(soon, lambda: not engine._buyer._flights)
            provider: Any = engine._provider
            connections = provider._client._transport._pool.connections
            assert len(connections) <= 2
            assert all(connection.is_idle() for connection in connections)
            stats = await embedder.stats()
        assert (stats.entries, stats.billed_tokens, stats.unknown_requests) == (60, server.billed_tokens, 0)
        assert sorted(map(str, server.sent_inputs)) == sorted(everything)
        assert server.max_in_flight <= 2
