"""A server that refuses requests: for their size, for one input in them, or for good."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest

from embcache import InputRejected, ProviderError

from tests import twins
from tests.twins import SECONDS, Bench, right, same
from tests.upstream import status, tokens

if TYPE_CHECKING:
    from tests.upstream import Item, Upstream

bench = twins.bench


def some(count: int, kind: str = "text") -> list[str]:
    return [f"{kind} {n}" for n in range(count)]


def accepted(server: Upstream) -> int:
    return sum(request.accepted for request in server.requests)


def halvings(count: int) -> int:
    return math.ceil(math.log2(count))


@pytest.mark.parametrize("cap", [1, 10, 32, 100])
def test_the_cap_is_found_without_waste(bench: Bench, cap: int) -> None:
    """A server's cap is found in O(log n) refusals, nearly all requests are full, and the next embedder knows it."""
    bench.server.cap = cap
    texts = some(60 * cap)
    with bench.open() as embedder:
        result = embedder.embed_result(texts)
    assert same(result.vectors, right(texts))
    assert sorted(map(str, bench.server.accepted_inputs)) == sorted(texts)
    assert (result.misses, result.requests) == (len(texts), len(bench.server.requests))
    assert bench.server.refused <= 2 * halvings(len(texts)) + 2
    # While the cap is being found, four requests side by side are smaller than they could be.
    assert accepted(bench.server) <= 60 + 4 * halvings(len(texts))
    bench.server.forget()
    more = some(60 * cap, "another")
    with bench.open() as embedder:
        assert same(embedder.embed(more), right(more))
    assert (bench.server.refused, accepted(bench.server)) == (0, 60)


def test_the_cap_is_found_over_many_calls(bench: Bench) -> None:
    """Calls that each hold a few texts more than the server takes learn together: no more refusals than one call's."""
    bench.server.cap = 10
    with bench.open() as embedder:
        for n in range(30):
            texts = some(50, f"call {n}")
            assert same(embedder.embed(texts), right(texts))
    assert bench.server.refused <= 2 * halvings(50) + 2
    assert accepted(bench.server) <= 30 * 5 + 4 * halvings(50)


def test_the_cap_is_found_by_callers_side_by_side(bench: Bench) -> None:
    """Eight callers at one time meet the same cap, and do not each find it anew."""
    bench.server.cap = 10
    with bench.open() as embedder:
        answers = [(texts, embedder.begin(texts)) for texts in (some(200, f"caller {n}") for n in range(8))]
        for texts, answer in answers:
            assert same(answer.result(60).vectors, right(texts))
    assert bench.server.refused <= 4 * halvings(200)
    assert accepted(bench.server) <= 160 + 4 * 4 * halvings(200)


def test_a_cap_that_is_raised(bench: Bench) -> None:
    """A server that takes as much as before, and more, is not asked for less than it is known to take."""
    bench.server.cap = 10
    with bench.open() as embedder:
        embedder.embed(some(600))
        bench.server.forget()
        bench.server.cap = 2048
        texts = some(600, "another")
        assert same(embedder.embed(texts), right(texts))
    assert bench.server.refused == 0
    assert accepted(bench.server) <= 60


def test_a_cap_that_is_lowered(bench: Bench) -> None:
    """A server that takes less than before is found out again in O(log n) refusals, and nothing is lost."""
    bench.server.cap = 100
    with bench.open() as embedder:
        embedder.embed(some(6000))
    bench.server.forget()
    bench.server.cap = 7
    with bench.open() as embedder:
        texts = some(420, "another")
        assert same(embedder.embed(texts), right(texts))
        assert bench.server.billed_tokens == sum(map(tokens, texts))
        assert bench.server.refused <= 4 * halvings(420)
        bench.server.forget()
        texts = some(420, "third")
        assert same(embedder.embed(texts), right(texts))
    assert bench.server.refused <= 2
    assert accepted(bench.server) <= 60 + 12


@pytest.mark.parametrize("code", [400, 413, 422])
def test_u22_one_poisoned_input(bench: Bench, code: int) -> None:
    """One refused input among 500 costs its neighbours nothing: they are bought once, and not for it again."""
    texts = some(500)
    bad = random.Random(code).randrange(500)
    bench.server.poison, bench.server.poison_status = {texts[bad]}, code
    others = texts[:bad] + texts[bad + 1 :]
    with bench.open() as embedder:
        with pytest.raises(InputRejected) as caught:
            embedder.embed([*texts, texts[bad]])
        assert (caught.value.indexes, caught.value.kept, caught.value.status) == ((bad, 500), 499, code)
        assert "an input cannot be embedded" in str(caught.value)
        assert embedder.stats().entries == 499
        assert embedder.stats().billed_tokens == bench.server.billed_tokens == sum(map(tokens, others))
        assert sorted(map(str, bench.server.accepted_inputs)) == sorted(others)
        assert bench.server.refused <= halvings(500) + 1
        assert accepted(bench.server) <= halvings(500) + 1

        bench.server.forget()
        for again in (embedder, bench.open()):  # the refusal is remembered, by the embedder and by the store
            with again, pytest.raises(InputRejected) as caught:
                again.embed(texts)
            assert (caught.value.indexes, caught.value.kept, caught.value.status) == ((bad,), 499, code)
        assert bench.server.requests == []

    with bench.open() as embedder:
        assert same(embedder.embed(others), right(others))
        with pytest.raises(InputRejected) as caught:
            embedder.embed(texts[bad], refresh=True)  # which asks again
        embedder.embed(some(500, "another"))
    # The bad one has taught nothing of the size: 500 others go out as one request.
    assert [request.inputs for request in bench.server.requests] == [[texts[bad]], some(500, "another")]


def test_u22_several_poisoned_inputs(bench: Bench) -> None:
    """Five refused inputs among 500 are all named, and everything else is stored and billed once."""
    texts = some(500)
    bad = sorted(random.Random(5).sample(range(500), 5))
    bench.server.poison = {texts[index] for index in bad}
    others = [text for text in texts if text not in bench.server.poison]
    with bench.open() as embedder:
        with pytest.raises(InputRejected) as caught:
            embedder.embed(texts)
        assert (caught.value.indexes, caught.value.kept) == (tuple(bad), 495)
        bench.server.forget()
        assert same(embedder.embed(others), right(others))
        with pytest.raises(InputRejected) as caught:
            embedder.embed(texts)
        assert caught.value.indexes == tuple(bad)
        assert bench.server.requests == []


def test_a_poisoned_input_and_a_cap(bench: Bench) -> None:
    """Where both are at work, the input is named, the cap is found, and the input does not lower it."""
    texts = some(1200)
    bench.server.cap = 32
    bench.server.poison = {texts[700]}
    others = texts[:700] + texts[701:]
    with bench.open() as embedder:
        with pytest.raises(InputRejected) as caught:
            embedder.embed(texts)
        assert (caught.value.indexes, caught.value.kept) == ((700,), 1199)
        assert sorted(map(str, bench.server.accepted_inputs)) == sorted(others)
        assert bench.server.refused <= 4 * halvings(1200)
        bench.server.forget()
        embedder.embed(some(1200, "another"))
    assert accepted(bench.server) <= math.ceil(1200 / 32) + 4 * halvings(1200)
    assert bench.server.refused <= halvings(32) + 1


def test_every_input_is_refused(bench: Bench) -> None:
    """Two single inputs refused and none taken: it is the request, so one error, and no asking on."""
    bench.server.refuse_fields = {"user"}
    with bench.open(extra_body={"user": "u"}) as embedder:
        with pytest.raises(ProviderError, match="unknown fields") as caught:
            embedder.embed(some(500))
        assert (caught.value.indexes, caught.value.kept, caught.value.status) == ((), 0, 400)
        assert not caught.value.retryable
        assert embedder.stats().entries == 0
    assert len(bench.server.requests) <= 4 * halvings(500)


def test_the_only_input_is_refused(bench: Bench) -> None:
    """One input refused alone is told of as that input, with the facts of the refusal."""
    bench.server.play(status(422, headers={"x-request-id": "req-7"}))
    with bench.open() as embedder, pytest.raises(InputRejected) as caught:
        embedder.embed("a")
    assert (caught.value.indexes, caught.value.kept) == ((0,), 0)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (422, "INVALID_REQUEST_BODY", "req-7")
    assert len(bench.server.requests) == 1


@pytest.mark.parametrize("texts", [["bad"], ["bad", "a", "b", "c"], ["a", "b", "c", "bad"]], ids=len)
def test_a_refusal_keeps_nobody_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """What was refused can be asked for at once by another embedder, and again by the same."""
    # A lease that is left behind ends by itself after seconds: here never, so that it cannot go unnoticed.
    monkeypatch.setattr("embcache.buyer.LEASE_SECONDS", 3600.0)
    bench.server.poison = {"bad"}
    with bench.open() as one, bench.open() as two:
        for embedder in (one, two, one):
            assert isinstance(embedder.begin(texts).exception(SECONDS), InputRejected)
        assert one.stats().entries == len(texts) - 1


def test_refused_token_ids(bench: Bench) -> None:
    """Lists of token ids are isolated as texts are."""

    def poison(item: Item) -> bool:
        return item == [3]

    bench.server.poison = poison
    with bench.open() as embedder, pytest.raises(InputRejected) as caught:
        embedder.embed([[n] for n in range(9)])
    assert (caught.value.indexes, caught.value.kept) == ((3,), 8)
