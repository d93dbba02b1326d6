"""`max_cost` and `max_tokens`: the request that may pass them is not sent, and what was bought is kept."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import (
    AsyncCachedEmbedder,
    BudgetExceeded,
    CachedEmbedder,
    ConfigError,
    InputRejected,
)

from tests import twins
from tests.twins import Bench, Twin, right, same, say, soon
from tests.upstream import hold, reset_midway, status, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.upstream import Exchange, Vector

bench = twins.bench
at_once = twins.at_once

TEXT = "x" * 399
"""A text of 100 tokens by the server's count, of 202 at most where nothing was measured."""


def texts(count: int, start: int = 0) -> list[str]:
    return [f"{number:03}{TEXT}"[:399] for number in range(start, start + count)]


def under_way(embedder: Twin) -> int:
    return embedder.face._engine._buyer._purse._under_way


def spent(embedder: Twin) -> int:
    return embedder.face._engine._buyer._purse._spent


def test_what_was_bought_is_kept(bench: Bench) -> None:
    """It stops before the limit, tells how far it came, and a call with more to spend pays only for the rest."""
    asked = texts(40)
    with bench.open(max_tokens=1550, batch_size=4) as embedder:
        with pytest.raises(BudgetExceeded) as caught:
            embedder.embed(asked)
        error, kept = caught.value, embedder.stats().entries
        assert bench.server.billed_tokens == error.spent == kept * 100 == 1200
        assert (error.unit, error.limit, error.kept) == ("tokens", 1550, kept)
        assert 400 <= error.wanted <= 500
        left = [position for position in range(40) if asked[position] not in bench.server.sent_inputs]
        assert error.indexes == tuple(left)
        assert str(error).startswith("inputs ")
        assert "1,550 tokens" in str(error)
        assert f"{kept} other inputs of this call are kept" in str(error)
        assert embedder.embed(bench.server.sent_inputs).shape == (kept, 8), "hits cost nothing"
    with bench.open(max_tokens=4000, batch_size=4) as embedder:
        result = embedder.embed_result(asked)
        assert (result.hits, result.misses) == (kept, 40 - kept)
        assert same(result.vectors, right(asked))
    assert len(bench.server.sent_inputs) == 40


def test_a_smaller_request_may_still_be_sent(bench: Bench) -> None:
    """The limit is of tokens, not of calls: what fits into the rest of it is bought."""
    with bench.open(max_tokens=350) as embedder:
        embedder.embed(TEXT)
        with pytest.raises(BudgetExceeded):
            embedder.embed(texts(3))
        assert same(embedder.embed("small"), right(["small"])[0])
        assert embedder.session.billed_tokens == 102


@pytest.mark.parametrize("limit", [1000, 3333, 7000])
def test_together_they_do_not_pass_it(bench: Bench, limit: int) -> None:
    """Many calls at a time, with requests side by side, spend no more than one after the other would."""
    chance = random.Random(limit)
    bench.server.delay = 0.02  # so that requests meet
    asked = [f"{n}" * chance.randrange(1, 200) for n in range(200)]
    with bench.open(max_tokens=limit, batch_size=3, max_concurrency=4) as embedder:
        calls = [embedder.begin(asked[start : start + 20]) for start in range(0, 200, 20)]
        errors = [call.exception(twins.SECONDS) for call in calls]
        assert all(error is None or isinstance(error, BudgetExceeded) for error in errors)
        assert any(errors)
        assert under_way(embedder) == 0
        assert spent(embedder) == embedder.session.billed_tokens
    assert limit / 2 < bench.server.billed_tokens <= limit
    assert bench.server.max_in_flight > 1


def test_one_waits_for_what_is_under_way(bench: Bench) -> None:
    """A request that may pass the limit waits for the bill of those under way, and is sent where that leaves room."""
    until = threading.Event()
    bench.server.play(hold(until))
    one, two = texts(2), texts(2, start=2)
    with bench.open(max_tokens=603) as embedder:  # 403 and 403 at most; 200 and 300 once the first is billed
        first, second = embedder.begin(one), embedder.begin(two)
        assert bench.server.wait_for(1)
        assert not bench.server.wait_for(2, timeout=0.2)
        assert not second.done()
        until.set()
        assert same(first.result(twins.SECONDS).vectors, right(one))
        assert same(second.result(twins.SECONDS).vectors, right(two))
    assert bench.server.max_in_flight == 1


def test_dollars(bench: Bench) -> None:
    """`max_cost` is in dollars at the price of the model, and the error speaks of dollars."""
    with bench.open(prices={"baai/bge-m3": 1000.0}, max_cost=0.35, batch_size=1) as embedder:
        with pytest.raises(BudgetExceeded) as caught:
            embedder.embed(texts(10))
        assert caught.value.unit == "dollars"
        assert caught.value.limit == 0.35
        assert caught.value.spent == pytest.approx(0.3)
        assert "$0.35" in str(caught.value)
        assert "tokens" not in str(caught.value)
        assert embedder.session.cost == pytest.approx(0.3)


def test_the_narrower_limit(bench: Bench) -> None:
    """Of two limits the one that is met first counts."""
    for limits, unit in (
        ({"max_cost": 0.25, "max_tokens": 10**6}, "dollars"),
        ({"max_cost": 9, "max_tokens": 250}, "tokens"),
    ):
        with bench.open(prices={"baai/bge-m3": 1000.0}, **limits) as embedder:
            with pytest.raises(BudgetExceeded) as caught:
                embedder.embed(texts(10))
            assert caught.value.unit == unit


def test_a_price_that_is_not_known(bench: Bench) -> None:
    """Without a price a limit in dollars cannot be held, and is refused at once; one in tokens can."""
    with pytest.raises(ConfigError, match="price of 'mine'"):
        bench.open(model="mine", max_cost=10)
    with bench.open(model="mine", max_tokens=1000) as embedder:
        assert same(embedder.embed("a"), right(["a"])[0])
    with bench.open(model="mine", max_cost=0.001, prices={"mine": 0}) as embedder:
        assert same(embedder.embed(texts(9)), right(texts(9)))


def test_a_bill_nobody_told(bench: Bench) -> None:
    """Requests of unknown cost count with the most that was expected of them."""
    bench.server.usage = "missing"
    with bench.open(max_tokens=610, batch_size=1) as embedder:
        with pytest.raises(BudgetExceeded) as caught:
            embedder.embed(texts(10))
        assert caught.value.spent == spent(embedder) == 606
        assert embedder.session.entries == 3


def test_what_may_have_been_billed(bench: Bench, at_once: None) -> None:
    """An answer that broke off counts as well, and it is not asked for again where that may pass the limit."""
    bench.server.play(reset_midway())
    with bench.open(max_tokens=300) as embedder:
        with pytest.raises(BudgetExceeded) as caught:
            embedder.embed(TEXT)
        assert (caught.value.spent, caught.value.indexes) == (202, (0,))
    assert len(bench.server.requests) == 1


def test_what_was_refused_costs_nothing(bench: Bench, at_once: None) -> None:
    """Failures before an answer, and refusals, leave the whole limit."""
    bench.server.poison = {"bad"}
    bench.server.play(status(500), status(429), status(503))
    with bench.open(max_tokens=205) as embedder:
        assert same(embedder.embed(TEXT), right([TEXT])[0])
        assert spent(embedder) == 100
        with pytest.raises(InputRejected):
            embedder.embed("bad")
        assert (spent(embedder), under_way(embedder)) == (100, 0)


def test_without_a_key_nothing_is_spent(bench: Bench) -> None:
    """What ends before it is sent, for want of a key, takes nothing from the limit."""
    with bench.open(base_url=None, max_tokens=300) as embedder:
        with pytest.raises(ConfigError):
            embedder.embed(TEXT)
        assert (spent(embedder), under_way(embedder)) == (0, 0)


def test_gathered_single_texts(bench: Bench) -> None:
    """Single texts that share requests are held to it as others are, and each caller is told of its own."""
    until = threading.Event()
    bench.server.play(hold(until))
    with bench.open(max_tokens=350) as embedder:
        first = embedder.begin(texts(1)[0])
        assert bench.server.wait_for(1)
        others = [embedder.begin(text) for text in texts(5, start=1)]
        assert soon(lambda: len(embedder.face._engine._buyer._flights) == 6)
        until.set()
        assert same(first.result(twins.SECONDS).vectors, right(texts(1))[0])
        errors = [other.exception(twins.SECONDS) for other in others]
        assert all(isinstance(error, BudgetExceeded) and error.indexes == (0,) for error in errors)
        assert same(embedder.embed("small"), right(["small"])[0])
    assert bench.server.billed_tokens == 102


def test_refresh_and_mask(bench: Bench) -> None:
    """Buying again is buying; and a limit is no matter of single inputs, which could be masked."""
    with bench.open(max_tokens=350, batch_size=1, max_concurrency=1) as embedder:
        embedder.embed(texts(2))
        embedder.embed(texts(2))
        assert spent(embedder) == 200
        with pytest.raises(BudgetExceeded):
            embedder.embed(texts(2), refresh=True)
        assert spent(embedder) == 300
        with pytest.raises(BudgetExceeded):
            masked(embedder, texts(2, start=5))


def masked(embedder: Twin, asked: Sequence[str]) -> Vector:
    if isinstance(embedder.face, CachedEmbedder):
        return embedder.face.embed(asked, errors="mask")
    assert isinstance(embedder, twins.AsyncTwin)
    result: Vector = embedder._begin(embedder._async.embed(asked, errors="mask")).result()
    return result


def test_what_the_server_refused_is_not_called_unsent(bench: Bench) -> None:
    """Of a call that met both, the error names what was not sent, and not what was refused."""
    asked = texts(8)
    bench.server.poison = {asked[0]}
    with bench.open(max_tokens=450, batch_size=1, max_concurrency=1) as embedder:
        with pytest.raises(BudgetExceeded) as caught:
            embedder.embed(asked)
        assert asked[0] in bench.server.sent_inputs
        assert caught.value.indexes == tuple(n for n, text in enumerate(asked) if text not in bench.server.sent_inputs)
        assert caught.value.kept == 8 - 1 - len(caught.value.indexes) > 0


def test_one_after_the_other(bench: Bench) -> None:
    """`embed_iter` yields what was bought, and then raises with indexes counted from the first."""
    got: list[Vector] = []

    def sync(embedder: CachedEmbedder) -> None:
        for vectors in embedder.embed_iter(texts(20), batch_size=2):
            got.append(vectors)  # noqa: PERF402 - it ends with an error, and what came before is looked at

    async def asynchronous(embedder: AsyncCachedEmbedder) -> None:
        async for vectors in embedder.embed_iter(texts(20), batch_size=2):
            got.append(vectors)  # noqa: PERF401 - as above

    def through(embedder: Twin) -> None:
        if isinstance(embedder.face, CachedEmbedder):
            sync(embedder.face)
        else:
            assert isinstance(embedder, twins.AsyncTwin)
            embedder._begin(asynchronous(embedder._async)).result()

    with bench.open(max_tokens=1000, max_concurrency=1) as embedder, pytest.raises(BudgetExceeded) as caught:
        through(embedder)
    together = np.concatenate(got)
    assert same(together, right(texts(len(together))))
    assert len(together) >= 6
    assert caught.value.indexes == (len(together), len(together) + 1)
    assert bench.server.billed_tokens <= 1000


def test_it_knows_what_was_billed_before(bench: Bench) -> None:
    """What the cache knows of earlier bills is what the first request is measured by, in a new embedder, too."""
    with bench.open() as embedder:
        for text in texts(4):
            embedder.embed(text)
    with bench.open(max_tokens=130) as embedder:  # 202 would be too many
        assert same(embedder.embed(texts(1, start=9)), right(texts(1, start=9)))


CHILD = """
try:
    call(json.loads(sys.stdin.readline()))
except (KeyboardInterrupt, asyncio.CancelledError):
    print("interrupted", flush=True)
sys.stdin.readline()
embedder.close()
purse = embedder.face._engine._buyer._purse
print(purse._under_way, purse._spent)
"""


def test_an_interrupt_leaks_nothing(bench: Bench) -> None:
    """What a caller was interrupted at is billed, and what was set aside for it is free again."""
    sent, go_on = threading.Event(), threading.Event()

    def step(exchange: Exchange) -> None:
        sent.set()
        while not go_on.wait(0.005):
            exchange.pause(0)
        exchange.send(exchange.decide())

    bench.server.play(step)
    with bench.start(CHILD, max_tokens=1000, batch_size=1, max_concurrency=1) as child:
        say(child, json.dumps(texts(3)))
        assert sent.wait(twins.SECONDS)
        os.kill(child.pid, signal.SIGINT)
        assert child.stdout
        assert child.stdout.readline() == "interrupted\n"
        go_on.set()
        told, complaints = child.communicate("\n", timeout=60)
    assert (told, complaints) == ("0 100\n", "")
    assert len(bench.server.requests) == 1


def test_the_end_waits_for_nobody(bench: Bench) -> None:
    """An embedder that is given up while requests wait for the bill of another ends, and sends none of them."""
    until = threading.Event()
    bench.server.play(hold(until))
    embedder = bench.open(max_tokens=603)
    first = embedder.begin(texts(2))
    assert bench.server.wait_for(1)
    second = embedder.begin(texts(2, start=2))
    assert soon(lambda: len(embedder.face._engine._buyer._flights) == 4)
    embedder.face._engine.close(0.2)
    assert isinstance(second.exception(twins.SECONDS), BudgetExceeded)
    until.set()
    assert same(first.result(twins.SECONDS).vectors, right(texts(2))), "what was sent is waited for all the same"
    assert soon(lambda: under_way(embedder) == 0)
    assert len(bench.server.requests) == 1


def test_a_child_has_what_is_left(bench: Bench) -> None:
    """In a child of a fork what was spent stays spent, and what is under way is the parent's."""
    with bench.open(max_tokens=250) as embedder:
        embedder.embed(TEXT)
        purse = embedder.face._engine._buyer._purse.of_child()
        assert (purse._spent, purse._under_way) == (100, 0)
        with pytest.raises(BudgetExceeded), purse.paying("text", 1, 600):
            pass


def test_the_error_travels(bench: Bench) -> None:
    """The error is the same in another process, with all its facts."""
    with bench.open(max_tokens=1) as embedder, pytest.raises(BudgetExceeded) as caught:
        embedder.embed(texts(3))
    there: Any = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (str(there), vars(there)) == (str(caught.value), vars(caught.value))
    assert there.indexes == (0, 1, 2)


def test_what_a_text_costs() -> None:
    """The figures above rest on this."""
    assert {tokens(text) for text in [TEXT, *texts(40)]} == {100}
