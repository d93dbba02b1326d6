"""What was paid and what was saved: the figures agree with the server's own account, whatever happens."""

from __future__ import annotations

import json
import pickle
import random
import time
from collections import Counter
from dataclasses import fields
from datetime import date, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from embcache import CacheStats, EmbcacheError
from embcache.report import as_json

from tests import twins
from tests.twins import Bench, right, same, say, soon
from tests.upstream import edit, proper, reset_midway, short_body, status, tokens

if TYPE_CHECKING:
    import subprocess

    from tests.upstream import Body, Step

bench = twins.bench
at_once = twins.at_once

NAMES = [
    "entries",
    "bytes_on_disk",
    "hits",
    "misses",
    "duplicates",
    "requests",
    "billed_tokens",
    "saved_tokens",
    "cost",
    "saved_cost",
    "saved_exact",
    "unknown_requests",
    "corrupt",
    "wrong_text",
    "bad_version",
    "store_errors",
    "store_busy",
    "evicted",
    "quarantined",
    "reopened",
    "by_model",
    "by_project",
    "by_day",
]


def some(stats: CacheStats, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(stats, name) for name in names)


def test_names() -> None:
    """The figures have exactly the names that are promised, as attributes and as JSON."""
    assert [field.name for field in fields(CacheStats)] == NAMES
    assert list(as_json(CacheStats())) == NAMES


def test_an_empty_cache(bench: Bench) -> None:
    """Before anything was bought every figure is zero, and to ask makes no folder."""
    with bench.open() as embedder:
        assert embedder.stats() == embedder.session == CacheStats()
        assert not bench.folder.exists()


def test_one_by_one(bench: Bench) -> None:
    """Where requests held one input each, what a hit saves is known exactly: what that input was billed."""
    with bench.open() as embedder:
        usage = [embedder.embed_result(text).usage for text in ("a", "b" * 100)]
        assert [(u.prompt_tokens, u.total_tokens, u.saved_tokens) for u in usage] == [(1, 1, 0), (26, 26, 0)]
        result = embedder.embed_result(["b" * 100, "a", "b" * 100])
        assert (result.usage.total_tokens, result.usage.saved_tokens) == (0, 53)
        stats = embedder.stats()
    assert some(stats, "billed_tokens", "saved_tokens", "saved_exact", "hits") == (27, 53, 53, 3)


def test_a_request_of_many(bench: Bench) -> None:
    """A request's bill is divided among its inputs so that it comes out even, and is told apart from what is exact."""
    texts = ["a", "bb" * 50, "c" * 7, "é" * 20]
    with bench.open() as embedder:
        paid = embedder.embed_result(texts).usage.total_tokens
        assert paid == bench.server.billed_tokens == sum(map(tokens, texts))
        saved = [embedder.embed_result(text).usage.saved_tokens for text in texts]
        assert sum(saved) == paid
        assert saved[1] > saved[3] > saved[2] >= saved[0]
        assert some(embedder.stats(), "saved_tokens", "saved_exact") == (paid, 0)


def test_duplicates_are_savings(bench: Bench) -> None:
    """A further occurrence in one call saves what the first was billed there."""
    with bench.open() as embedder:
        result = embedder.embed_result(["abcdefgh"] * 4)
        assert (result.usage.total_tokens, result.usage.saved_tokens) == (3, 9)
        names = "hits", "misses", "duplicates", "billed_tokens", "saved_tokens", "saved_exact"
        assert some(embedder.stats(), *names) == (0, 1, 3, 3, 9, 9)


def test_what_a_refresh_costs_is_what_is_saved_afterwards(bench: Bench) -> None:
    """A hit saves what the entry it found was billed, which after a refresh is the newer price."""

    def dearer(body: dict[str, Any]) -> Body:
        return body | {"usage": {"prompt_tokens": 40, "total_tokens": 50}}

    with bench.open() as embedder:
        embedder.embed("a")
        bench.server.play(edit(dearer))
        usage = embedder.embed_result("a", refresh=True).usage
        assert (usage.prompt_tokens, usage.total_tokens, usage.saved_tokens) == (40, 50, 0)
        assert embedder.embed_result("a").usage.saved_tokens == 50
        assert embedder.stats().billed_tokens == 1 + 50


def test_half_an_account(bench: Bench) -> None:
    """A server that tells only one of the two counts of tokens is believed for the other."""

    def half(name: str) -> Step:
        return edit(lambda body: body | {"usage": {name: 7}})

    with bench.open() as embedder:
        for text, name in (("a", "prompt_tokens"), ("b", "total_tokens")):
            bench.server.play(half(name))
            usage = embedder.embed_result(text).usage
            assert (usage.prompt_tokens, usage.total_tokens, usage.unknown_requests) == (7, 7, 0)


def test_no_tokens_are_not_an_unknown_number(bench: Bench) -> None:
    """A server that bills nothing and says so is no request of unknown cost."""
    bench.server.play(edit(lambda body: body | {"usage": {"prompt_tokens": 0, "total_tokens": 0}}))
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
        assert some(embedder.stats(), "billed_tokens", "unknown_requests", "entries") == (0, 0, 2)


def test_prices(bench: Bench) -> None:
    """Prices are the user's, else Novita's for its models, else unknown; nothing bought costs nothing."""
    with bench.open(provider_name="novita") as known, bench.open() as unknown, bench.open(**PRICED) as given:
        assert some(unknown.stats(), "cost", "saved_cost") == (0.0, 0.0)
        for embedder in (known, given):
            embedder.embed("a" * 4000)
            embedder.embed(["a" * 4000] * 3)
            embedder.stats()  # writes what this one has counted
        assert some(known.session, "cost", "saved_cost") == pytest.approx((1001e-8, 3003e-8))
        assert some(given.session, "cost", "saved_cost") == pytest.approx((1001e-6, 3003e-6))
        # Each applies its own prices to the one store.
        assert some(known.stats(), "cost", "saved_cost") == (None, None)
        assert some(given.stats(), "cost", "saved_cost") == pytest.approx((1001e-8 + 1001e-6, 3003e-8 + 3003e-6))
        assert some(known.stats().by_model["mine"], "cost", "saved_cost") == (None, None)
        assert known.stats().by_model["baai/bge-m3"].cost == pytest.approx(1001e-8)
    with bench.open(provider_name="novita", prices={"baai/bge-m3": 5, "mine": 0}) as embedder:
        assert some(embedder.stats(), "cost", "saved_cost") == pytest.approx((5005e-6, 15015e-6))


PRICED: dict[str, Any] = {"model": "mine", "prices": {"mine": 1.0}}


def test_by_model(bench: Bench) -> None:
    """The figures of the whole store are the sums of those by model, across embedders and formats."""
    with bench.open(model="one") as one, bench.open(model="two") as two:
        one.embed(["a", "b", "a"])
        two.embed(["a", "b", "c"])
        two.embed("a")
    with bench.open(model="two", encoding_format="float") as embedder:
        embedder.embed(["c", "d", "e"])
        stats, session = embedder.stats(), embedder.session
    assert list(stats.by_model) == ["one", "two"]
    assert some(stats.by_model["one"], "entries", "hits", "misses", "duplicates", "requests") == (2, 0, 2, 1, 1)
    assert some(stats.by_model["two"], "entries", "hits", "misses", "duplicates", "requests") == (6, 1, 6, 0, 2)
    assert some(stats, "entries", "hits", "misses", "duplicates", "requests") == (8, 1, 8, 1, 3)
    assert stats.billed_tokens == bench.server.billed_tokens == 8
    assert [part.billed_tokens for part in stats.by_model.values()] == [2, 6]
    assert stats.saved_tokens == sum(part.saved_tokens for part in stats.by_model.values()) == 2
    assert all(part.by_model == {} for part in stats.by_model.values())
    # A session is this embedder's alone.
    assert some(session, "entries", "hits", "misses", "requests", "billed_tokens") == (3, 0, 3, 1, 3)


def test_by_project(bench: Bench) -> None:
    """Projects share what is stored and have accounts of their own, and so has what is done for none."""
    with bench.open(project="one") as one, bench.open(project="two", model="m") as two, bench.open() as none:
        one.embed(["a", "b", "a"])
        two.embed(["a", "b", "c"])
    with bench.open() as none:
        none.embed(["a", "b", "d"])
        stats = none.stats()
    figures = {name: some(part, "hits", "misses", "duplicates", "requests") for name, part in stats.by_project.items()}
    assert figures == {"": (2, 1, 0, 1), "one": (0, 2, 1, 1), "two": (0, 3, 0, 1)}
    assert sum(part.billed_tokens for part in stats.by_project.values()) == bench.server.billed_tokens == 6
    assert {part.entries for part in stats.by_project.values()} == {0}
    assert all(part.by_project == part.by_day == {} for part in stats.by_project.values())


def test_a_project_travels(bench: Bench) -> None:
    """An embedder that is made anew in another process books for the same project."""
    with bench.open(project="one") as embedder:
        again = pickle.loads(pickle.dumps(embedder.face))  # noqa: S301 - our own
        assert again._engine.settings.project == "one"


def test_by_day(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on a day (UTC) is told of that day, also where an embedder outlives it."""
    now = 1_000_000 * 86_400.0 - 1  # the last second of a day
    monkeypatch.setattr("embcache.ledger.time", SimpleNamespace(time=lambda: now, monotonic=time.monotonic))
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
        before = embedder.stats().by_day
        now += 1
        embedder.embed(["a", "c"])
        after = embedder.stats().by_day
    yesterday, today = after
    assert date.fromisoformat(today) - date.fromisoformat(yesterday) == timedelta(days=1)
    assert before == {yesterday: after[yesterday]}
    assert some(after[yesterday], "hits", "misses", "requests") == (0, 2, 1)
    assert some(after[today], "hits", "misses", "requests") == (1, 1, 1)
    assert sum(part.billed_tokens for part in after.values()) == bench.server.billed_tokens


def test_bytes(bench: Bench) -> None:
    """`bytes_on_disk` is what the files take; by model it is what its entries take."""
    with bench.open(model="one") as one, bench.open(model="two") as two:
        one.embed([f"text {n}" for n in range(100)])
        two.embed(["a"])
        stats = one.stats()
        files = sum(path.stat().st_size for path in bench.folder.glob("cache.db*"))
        assert stats.bytes_on_disk == files
        single = stats.by_model["two"].bytes_on_disk
        assert 8 * 4 < single < 300
        assert stats.by_model["one"].bytes_on_disk == pytest.approx(100 * single, rel=0.1)
        assert two.session.bytes_on_disk == single


def test_what_is_counted_is_written_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hits reach the store by themselves after a while, though nothing is bought and nothing closed."""
    monkeypatch.setattr("embcache.ledger.FLUSH_SECONDS", 0.05)  # a second, or this test would wait for it
    with bench.open() as embedder:
        embedder.embed("a")
    with bench.open() as embedder, bench.open() as other:
        embedder.embed(["a"] * 5)
        assert soon(lambda: other.stats().hits == 5)


def test_what_is_counted_is_written_on_close(bench: Bench) -> None:
    """Nothing that was counted is lost by closing."""
    with bench.open() as embedder:
        embedder.embed("a")
        embedder.embed(["a"] * 5)
    with bench.open() as embedder:
        assert embedder.stats().hits == 5


def test_a_request_that_was_refused(bench: Bench, at_once: None) -> None:
    """What was refused, or failed before an answer, counts as a request and costs nothing."""
    bench.server.play(status(500), status(429))
    with bench.open() as embedder:
        result = embedder.embed_result("a")
        assert (result.requests, result.usage.total_tokens, result.usage.unknown_requests) == (3, 1, 0)
        assert some(embedder.stats(), "requests", "billed_tokens", "unknown_requests") == (3, 1, 0)


def test_an_answer_that_was_cut_off(bench: Bench, at_once: None) -> None:
    """An answer that did not come whole was perhaps billed: one request of unknown cost."""
    bench.server.play(reset_midway())
    with bench.open() as embedder:
        result = embedder.embed_result("a")
        assert (result.requests, result.usage.total_tokens, result.usage.unknown_requests) == (2, 1, 1)
        assert some(embedder.stats(), "requests", "billed_tokens", "unknown_requests") == (2, 1, 1)
    assert bench.server.billed_but_broken == 1


def test_an_answer_that_is_of_no_use_is_billed(bench: Bench, at_once: None) -> None:
    """A bill is a bill: what the server told is booked, also where nothing of its answer could be kept."""

    def fewer(body: dict[str, Any]) -> Body:
        body["data"].pop()
        return body

    bench.server.play(edit(fewer), edit(fewer))
    with bench.open() as embedder:
        with pytest.raises(EmbcacheError):
            embedder.embed(["a", "b"])
        assert some(embedder.stats(), "entries", "requests", "billed_tokens") == (0, 2, 4)
    assert bench.server.billed_tokens == 4


# Whatever happens


def nan(body: dict[str, Any]) -> Body:
    body["data"][0]["embedding"] = [float("nan")] * 8
    return body


def twice(body: dict[str, Any]) -> Body:
    body["data"].append(body["data"][0])
    return body


MISHAPS: list[Step] = [
    proper(),
    status(429),
    status(503),
    status(400),
    status(401),
    status(200, body={"error": {"message": "overloaded"}}),
    reset_midway(),
    short_body(),
    edit(nan),
    edit(twice),
]

CHILD = """
import embcache.retry
embcache.retry.FIRST_WAIT = 0.0  # there are many retries here, and their backoff only takes time
print("ready", flush=True)
for line in sys.stdin:
    texts, refresh = json.loads(line)
    try:
        embedder.embed(texts, refresh=refresh)
    except Exception as error:
        print(type(error).__name__, flush=True)
    else:
        print("done", flush=True)
"""


def ask(child: subprocess.Popen[str], texts: list[str], *, refresh: bool) -> str:
    say(child, json.dumps([texts, refresh]))
    assert child.stdout
    return child.stdout.readline().strip()


def test_billed_tokens_are_the_servers(bench: Bench) -> None:
    """Through refusals, failures, useless answers and `kill -9` between calls, the books agree to the token."""
    chance = random.Random(11)
    texts = [f"{n}" * chance.randrange(1, 30) for n in range(60)]
    bench.server.poison = {texts[7], texts[31]}
    told = Counter[str]()
    for _ in range(4):
        child = bench.start(CHILD, batch_size=5, max_retries=3)
        try:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            for _ in range(6):
                bench.server.script.clear()
                bench.server.play(*chance.choices(MISHAPS, k=chance.randrange(4)))
                told[ask(child, chance.sample(texts, 15), refresh=chance.random() < 0.2)] += 1
        finally:
            child.kill()
            child.communicate()
        with bench.open() as embedder:
            assert embedder.stats().billed_tokens == bench.server.billed_tokens
    # Or else the calls were no mixture: some must have ended well, and some in different kinds of error.
    assert told["done"] > 0
    assert len(told) > 2
    assert bench.server.billed_but_broken > 0

    bench.server.script.clear()
    good = [text for text in texts if text not in bench.server.poison]
    with bench.open() as embedder:
        assert same(embedder.embed(good), right(good))
        assert embedder.stats().entries == len(good)
        assert embedder.stats().billed_tokens == bench.server.billed_tokens
