"""Callers side by side, and requests side by side: what they share, and what they never mix up."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

from embcache import EmbcacheError
from embcache.stores import MemoryStore
from embcache.usage import apportion

from tests import twins
from tests.twins import SECONDS, Bench, counts, right, same, soon
from tests.upstream import edit, hold, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import pytest

    from tests.upstream import Exchange

bench = twins.bench

TEXTS = [f"passage {n}" for n in range(7)]


def test_requests_in_flight(bench: Bench) -> None:
    """As many requests are under way at one time as `max_concurrency` says, and never more."""
    gate = threading.Event()
    bench.server.always = hold(gate)
    with bench.open(batch_size=1, max_concurrency=3) as embedder:
        answer = embedder.begin(TEXTS)
        assert bench.server.wait_for(3, SECONDS)
        assert not bench.server.wait_for(4, 0.3)
        gate.set()
        assert same(answer.result(SECONDS).vectors, right(TEXTS))
    assert bench.server.max_in_flight == 3


def test_arrays_of_callers_who_met_are_not_shared(bench: Bench) -> None:
    """Two callers who waited for one request each get an array of their own."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.open() as embedder:
        first = embedder.begin(["a", "b"])
        assert bench.server.wait_for(1, SECONDS)
        second = embedder.begin(["a", "b", "c"])
        assert bench.server.wait_for(2, SECONDS)
        gate.set()
        first.result(SECONDS).vectors[:] = 0
        assert same(second.result(SECONDS).vectors, right(["a", "b", "c"]))


def test_callers_who_meet_share_a_request(bench: Bench) -> None:
    """What another caller's request is about to bring is not sent again, and counts as a hit with what it saved."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    with bench.open() as embedder:
        first = embedder.begin(["a", "bbbbbbbb", "a"])
        assert bench.server.wait_for(1, SECONDS)
        second = embedder.begin(["bbbbbbbb", "c", "bbbbbbbb", "c"])
        assert bench.server.wait_for(2, SECONDS)  # by then the second has looked at what is under way
        gate.set()
        mine, yours = first.result(SECONDS), second.result(SECONDS)
        session = embedder.session
    assert [request.inputs for request in bench.server.requests] == [["a", "bbbbbbbb"], ["c"]]
    assert same(mine.vectors, right(["a", "bbbbbbbb", "a"]))
    assert same(yours.vectors, right(["bbbbbbbb", "c", "bbbbbbbb", "c"]))
    assert counts(mine) == (0, 2, 1, 1)
    assert counts(yours) == (2, 1, 1, 1)
    assert counts(session) == (2, 3, 2, 2)
    assert mine.usage.total_tokens == tokens("a") + tokens("bbbbbbbb")
    assert yours.usage.total_tokens == tokens("c")
    # Four tokens for nine bytes: the long one was billed all four of them, and it is spared twice.
    assert yours.usage.saved_tokens == 2 * 4 + tokens("c")


def test_u24_fifty_callers(bench: Bench) -> None:
    """Fifty callers of the same twenty texts have each text sent once."""
    texts = [f"text {n}" for n in range(20)]
    bench.server.delay = 0.02
    with bench.open(batch_size=7) as embedder:
        answers = [embedder.begin(texts[n % 20 :] + texts[: n % 20]) for n in range(50)]
        results = [answer.result(SECONDS) for answer in answers]
    assert sorted(map(str, bench.server.sent_inputs)) == sorted(texts)
    for n, result in enumerate(results):
        assert same(result.vectors, right(texts[n % 20 :] + texts[: n % 20]))
        assert result.hits + result.misses == 20
    assert sum(result.misses for result in results) == 20
    assert sum(result.requests for result in results) == len(bench.server.requests)


def test_single_texts_side_by_side(bench: Bench) -> None:
    """Forty callers of one text each, a few of them the same, share requests; warm, each is answered as well."""
    texts = [f"text {n % 35}" for n in range(40)]
    bench.server.delay = 0.05
    with bench.open() as embedder:
        for _ in range(2):
            answers = [embedder.begin(text) for text in texts]
            for text, answer in zip(texts, answers, strict=True):
                assert same(answer.result(SECONDS).vectors, vector(text))
        session = embedder.session
    assert sorted(map(str, bench.server.sent_inputs)) == sorted(set(texts))
    assert len(bench.server.requests) < 20
    assert (session.hits, session.misses, session.duplicates) == (45, 35, 0)


class LateStore(MemoryStore):
    """A store that, when told to, is late with one answer: what it says then is what was so when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.asked, self.go = False, threading.Event(), threading.Event()

    def get_many(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        found = super().get_many(keys)
        if self.late:
            self.late = False
            self.asked.set()
            assert self.go.wait(SECONDS)
        return found


def test_callers_who_miss_each_other(bench: Bench) -> None:
    """What another caller's request brought between looking for it and sending for it is not sent again."""
    gate, store = threading.Event(), LateStore()
    bench.server.play(hold(gate))
    with bench.open(store=store, cache_dir=None) as embedder:
        first = embedder.begin(["a", "b"])
        assert bench.server.wait_for(1, SECONDS)
        store.late = True
        second = embedder.begin(["b", "a", "b"])
        assert store.asked.wait(SECONDS)
        gate.set()
        assert soon(lambda: len(list(store.scan())) == 2)
        assert soon(lambda: not embedder.face._engine._buyer._flights)
        store.go.set()
        mine, yours = first.result(SECONDS), second.result(SECONDS)
    assert same(mine.vectors, right(["a", "b"]))
    assert same(yours.vectors, right(["b", "a", "b"]))
    assert counts(yours) == (3, 0, 0, 0)
    assert len(bench.server.requests) == 1


def test_callers_who_meet_share_a_failure(bench: Bench) -> None:
    """Each caller of a request that fails is told so of its own inputs, by an error of its own."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    bench.server.poison = {"bad"}
    with bench.open() as embedder:
        first = embedder.begin(["bad"])
        assert bench.server.wait_for(1, SECONDS)
        second = embedder.begin(["a", "b", "bad"])
        assert bench.server.wait_for(2, SECONDS)
        gate.set()
        mine, yours = first.exception(SECONDS), second.exception(SECONDS)
    assert isinstance(mine, EmbcacheError)
    assert isinstance(yours, EmbcacheError)
    assert mine is not yours
    assert ((mine.indexes, mine.kept), (yours.indexes, yours.kept)) == (((0,), 0), ((2,), 2))  # type: ignore[attr-defined]
    assert counts(embedder.session)[:3] == (0, 3, 0)  # what failed is no hit


def test_u23_dimensions_are_pinned_by_whoever_was_first(bench: Bench) -> None:
    """Two embedders that both know no length yet agree on that of the first answer stored, and the other is told."""
    gate = threading.Event()
    with bench.open() as one, bench.open() as two:
        bench.server.play(hold(gate))
        late = two.begin(["c", "d"])
        assert bench.server.wait_for(1, SECONDS)
        one.embed(["a", "b"])
        bench.server.dims = 4
        gate.set()
        error = late.exception(SECONDS)
        assert isinstance(error, EmbcacheError)
        assert "4 dimensions instead of 8" in str(error)
        assert two.stats().entries == 2
        assert two.stats().billed_tokens == bench.server.billed_tokens
        assert same(two.embed(["a", "b"]), right(["a", "b"]))


def test_u23_dimensions_that_flip_between_two_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two first answers with vectors of two lengths one is taken; the other is refused, however they race."""
    gate, turns = threading.Event(), itertools.count()

    def late(dims: int) -> Callable[[Exchange], None]:
        def step(exchange: Exchange) -> None:
            while not gate.wait(0.001):
                exchange.pause(0)
            edit(lambda body: body | {"data": [{"index": 0, "embedding": [1.0] * dims}]})(exchange)

        return step

    def slowly(total: int, weights: Sequence[int]) -> list[int]:
        if next(turns):
            time.sleep(0.1)
        return apportion(total, weights)

    # Holds one of the two threads up between judging its answer and storing it, as a busy machine may.
    monkeypatch.setattr("embcache.asking.apportion", slowly)
    bench.server.play(late(8), late(4))
    with bench.open(batch_size=1) as embedder:
        answer = embedder.begin(["a", "b"])
        assert bench.server.wait_for(2, SECONDS)
        gate.set()
        error = answer.exception(SECONDS)
        assert isinstance(error, EmbcacheError)
        assert "dimensions instead of" in str(error)
        assert embedder.stats().entries == 1
        assert embedder.stats().billed_tokens == bench.server.billed_tokens == 2
