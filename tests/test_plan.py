"""`plan()`: what the call after it does, told before, and nothing changed by telling."""

from __future__ import annotations

import random
import re
import sqlite3
import tracemalloc
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embcache import EmbcacheError, InvalidInput, Plan, StoreError
from embcache.planning import READ
from embcache.types import plan_rows

from tests import twins
from tests.twins import Bench, counts, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator

bench = twins.bench


def some(plan: Plan) -> tuple[int, int, int, int]:
    return plan.hits, plan.misses, plan.duplicates, plan.requests


def within(tokens: int, plan: Plan) -> bool:
    return plan.tokens.low <= tokens <= plan.tokens.high


def test_a_plan_and_then_the_run(bench: Bench) -> None:
    """Hits, misses, duplicates and requests are those of the call that follows, and its bill lies within the range."""
    chance = random.Random(5)
    texts = [f"{n} {'word ' * chance.randrange(1, 60)}" for n in range(150)]
    with bench.open(batch_size=7) as embedder:
        for size in (1, 40, 40, 90, 90):
            asked = chance.choices(texts, k=size)
            plan = embedder.plan(asked)
            result = embedder.embed_result(asked)
            assert some(plan) == counts(result)
            assert plan.inputs == size
            assert within(result.usage.total_tokens, plan)
            assert plan.basis == ("assumed" if size == 1 else "measured")
            again = embedder.plan(asked)
            assert (*some(again), again.tokens) == (size, 0, 0, 0, (0, 0, 0))


FORMS: list[Any] = [
    "one",
    [1, 2, 3],
    [[1, 2], [3], [1, 2]],
    ["a", "b", "a"],
    np.array([4, 5]),
    np.array(["a", "b"]),
    [],
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_whatever_can_be_embedded(bench: Bench, form: object) -> None:
    """It takes what `embed` takes, and says the same of it."""
    with bench.open() as embedder:
        plan = embedder.plan(form)
        result = embedder.embed_result(form)
        assert some(plan) == counts(result)
        assert within(result.usage.total_tokens, plan)


def test_it_changes_nothing(bench: Bench) -> None:
    """A plan sends nothing, changes no byte of the cache and no figure; without a cache it makes none."""
    with bench.open() as embedder:
        embedder.plan(["a", "b"])
        assert not bench.folder.exists()
        embedder.embed(["a", "b"])
        embedder.stats()
        before, sent, figures = files_of(bench.folder), len(bench.server.requests), embedder.session
        for refresh in (False, True):
            embedder.plan(["a", "b", "c", "c"], refresh=refresh)
        assert (files_of(bench.folder), len(bench.server.requests), embedder.session) == (before, sent, figures)
        assert embedder.embed_result(["a", "c"]).hits == 1


@pytest.mark.parametrize(
    "settings", [{"offline": True}, {"read_only": True}, {"base_url": None, "provider_name": None}], ids=" ".join
)
def test_without_leave_to_buy(bench: Bench, settings: dict[str, Any]) -> None:
    """It needs no key and no leave to send or store."""
    with bench.open(provider_name="novita") as embedder:
        embedder.embed(["a" * 100, "b" * 100])
    sent = len(bench.server.requests)
    with bench.open(**({"provider_name": "novita"} | settings)) as embedder:
        plan = embedder.plan(["a" * 100, "c" * 100])
        assert (*some(plan), plan.basis) == (1, 1, 0, 1, "measured")
        assert plan.tokens.expected == 26
    assert len(bench.server.requests) == sent


def test_what_was_measured_is_for_all_who_ask_that_model(bench: Bench) -> None:
    """What one embedder was billed tells later ones what to expect, in any format, but not of another model."""
    texts = ["x" * 400, "y" * 800]
    with bench.open() as embedder:
        assert embedder.plan(texts).basis == "assumed"
        for text in texts:
            embedder.embed(text)
        assert embedder.plan(["z" * 400]).tokens.expected in {101, 100}
    with bench.open(encoding_format="float") as other, bench.open(model="another") as stranger:
        assert other.plan(["z" * 400]).tokens.expected in {101, 100}
        assert stranger.plan(["z" * 400]).basis == "assumed"
    with bench.open(read_only=True) as reader:
        reader.embed("z" * 40)
        assert reader.plan(["w" * 400]).basis == "measured"
        assert reader.face._engine.keeper.measured()["measured_requests"] == 3


def test_nothing_is_measured_twice(bench: Bench) -> None:
    """What an embedder bought is in the store and in its own books; it counts once, whenever it first plans."""
    with bench.open() as embedder:
        embedder.embed("x" * 400)
    with bench.open() as embedder:
        for number in range(2):
            embedder.embed(f"{number}" * 400)
        embedder.plan("a")
        embedder.embed("y" * 400)
        assert embedder.face._engine.keeper.measured()["measured_requests"] == 4


def test_a_damaged_entry(bench: Bench) -> None:
    """An entry that does not prove itself is a miss, which is for the call that buys it again to count and to tell."""
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
    with closing(sqlite3.connect(bench.folder / "cache.db")) as database, database:
        database.execute("UPDATE Cache SET value = zeroblob(length(value)) WHERE length(key) = 16")
    with bench.open() as embedder:
        assert some(embedder.plan(["a", "b"])) == (0, 2, 0, 1)
        assert embedder.session.corrupt == 0


def test_duplicates_far_apart(bench: Bench) -> None:
    """Repetitions are known across all parts that are read, and the order of reading is no matter."""
    texts = [f"text {n % 6000}" for n in range(3 * READ)]
    with bench.open() as embedder:
        embedder.embed(texts[:1000])
        plan = embedder.plan(iter(texts))
    occurrences = sum(n % 6000 < 1000 for n in range(3 * READ))
    assert some(plan) == (occurrences, 5000, 3 * READ - occurrences - 5000, 3)


def test_some_at_a_time(bench: Bench) -> None:
    """With `batch_size`, requests are those of so many calls, as `embed_iter` makes them."""
    with bench.open(batch_size=4) as embedder:
        embedder.embed(["b", "c"])
        assert some(embedder.plan(["a", "b", "c", "d", "e", "a"], batch_size=3)) == (2, 3, 1, 2)
        assert some(embedder.plan(["a", "b", "c", "d", "e", "a"])) == (2, 3, 1, 1)


def test_a_server_that_takes_less(bench: Bench) -> None:
    """What was found out of the server's own limit counts, not the size that was wished for."""
    bench.server.cap = 8
    with bench.open(batch_size=64) as embedder:
        embedder.embed([f"a {n}" for n in range(100)])
    texts = [f"b {n}" for n in range(100)]
    with bench.open(batch_size=64) as embedder:
        plan = embedder.plan(texts)
        assert embedder.plan(texts, refresh=True).requests == plan.requests
        assert plan.requests == embedder.embed_result(texts).requests == 13


def test_refresh(bench: Bench) -> None:
    """With `refresh` nothing is a hit."""
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
        assert some(embedder.plan(["a", "b", "a"], refresh=True)) == (0, 2, 1, 1)


def test_inputs_refused_before(bench: Bench) -> None:
    """What the server is known to refuse is told apart, since it would not be asked for."""
    bench.server.poison = {"bad"}
    with bench.open() as embedder:
        with pytest.raises(EmbcacheError):
            embedder.embed(["good", "bad", "better"])
        plan = embedder.plan(["good", "bad", "bad", "new"])
        assert (*some(plan), plan.refused) == (1, 1, 0, 1, 2)
        assert ("refused before", "2") in plan_rows(plan)


def test_the_memory_tier(bench: Bench) -> None:
    """What is held in memory is a hit, also where the store has nothing of it."""
    with bench.open(memory_size=1 << 20, read_only=True) as embedder:
        embedder.embed(["a", "b"])
        assert some(embedder.plan(["a", "b", "b", "c"])) == (3, 1, 0, 1)
        assert embedder.plan(["a", "b"], refresh=True).misses == 2


def test_in_a_notebook(bench: Bench) -> None:
    """A plan shows itself as a table there, and a model's name is text in it, whatever it holds."""
    with bench.open(model="<b>\x1b") as embedder:
        shown = embedder.plan(["a", "b", "a"])._repr_html_()
    assert "&lt;b&gt; <" in shown
    assert "<b>" not in shown
    assert re.search(r"misses</th><td[^>]*>2<", shown)


def test_prices(bench: Bench) -> None:
    """The range in tokens has its price; where there is none the cost is unknown, not nothing."""
    with bench.open(prices={"baai/bge-m3": 2.0}) as priced, bench.open() as unpriced:
        plan = priced.plan(["a" * 12])
        assert plan.tokens == (2, 3, 8)
        assert plan.cost == pytest.approx((4e-6, 6e-6, 16e-6))
        assert unpriced.plan(["a" * 12]).cost is None
        assert "cost: price unknown" in str(unpriced.plan(["a" * 12])).splitlines()
        assert unpriced.plan([]).cost == (0, 0, 0)


@pytest.mark.parametrize(
    ("inputs", "indexes"),
    [
        (["a"] * 5000 + [""], (5000,)),
        (["a"] * 5000 + [5], (5000,)),
        (["a"] * READ + [[1]], (READ,)),
        ([[1]] * READ + ["a"], (READ,)),
        (["a", "\ud800"], (1,)),
        (5, ()),
        (b"a", ()),
    ],
    ids=["empty", "number", "ids after texts", "texts after ids", "surrogate", "no iterable", "bytes"],
)
def test_what_cannot_be_embedded(bench: Bench, inputs: Any, indexes: tuple[int, ...]) -> None:  # noqa: ANN401 - wrong on purpose
    """What cannot be embedded is named by its index, counted from the first."""
    with bench.open() as embedder, pytest.raises(InvalidInput) as caught:
        embedder.plan(inputs)
    assert caught.value.indexes == indexes


def test_a_cache_that_cannot_be_read(bench: Bench) -> None:
    """A plan without the cache would be wrong: that it cannot be read is an error, whatever `on_store_error` says."""
    bench.folder.mkdir()
    (bench.folder / "cache.db").write_bytes(b"This is no database. " * 100)
    before = files_of(bench.folder)
    with bench.open(read_only=True) as embedder, pytest.raises(StoreError):
        embedder.plan(["a"])
    with bench.open() as embedder, pytest.raises(StoreError):
        embedder.plan(["a"])
    assert files_of(bench.folder) == before


def test_after_the_end(bench: Bench) -> None:
    """A closed embedder plans nothing."""
    embedder = bench.open()
    embedder.close()
    with pytest.raises(EmbcacheError, match="closed"):
        embedder.plan(["a"])


def test_memory_is_bounded(bench: Bench) -> None:
    """Of an iterable only a part is held at a time, and of each miss no more than its name."""

    def texts() -> Iterator[str]:
        for n in range(20_000):
            yield f"{n:07}" * 300  # 2 kB

    with bench.open() as embedder:
        embedder.plan(["to load what is loaded once"])
        tracemalloc.start()
        plan = embedder.plan(texts())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert plan.misses == 20_000
    assert peak < READ * 2100 * 2 + 20_000 * 150  # a part and the next one; the whole would be 42 MB
