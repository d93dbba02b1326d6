"""What `embed` sends and what it gives back, on both faces."""

from __future__ import annotations

import array
import asyncio
import enum
import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache import AsyncCachedEmbedder, EmbcacheError
from embcache.keys import digest_of, key_of, preimage
from embcache.stores import MemoryStore
from embcache.usage import apportion

from tests import twins
from tests.twins import SECONDS, Bench, files_of, right, same, soon
from tests.upstream import Upstream, edit, hold, status, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from tests.upstream import Exchange, Item

bench = twins.bench
at_once = twins.at_once

Order: TypeAlias = Literal["as_is", "reversed", "shuffled"]
Index: TypeAlias = Literal["present", "absent", "zero_absent"]

TEXTS = [f"passage {n}" for n in range(7)]


def counts(result: Any) -> tuple[int, int, int, int]:  # noqa: ANN401 - an EmbedResult or a CacheStats
    return result.hits, result.misses, result.duplicates, result.requests


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_one_request_holds_exactly_the_new_texts(bench: Bench, memory_size: int | None) -> None:
    """What is stored and what occurs twice is not sent: one request holds the new texts, each of them once."""
    with bench.open(memory_size=memory_size) as embedder:
        embedder.embed(["b", "d"])
        bench.server.forget()
        asked = ["a", "b", "a", "c", "d", "c", "a"]
        result = embedder.embed_result(asked)
        again = embedder.embed_result(asked)
    assert [request.inputs for request in bench.server.requests] == [["a", "c"]]
    assert same(result.vectors, right(asked))
    assert same(again.vectors, right(asked))
    assert counts(result) == (2, 2, 3, 1)
    assert counts(again) == (7, 0, 0, 0)


def test_a_request_carries_what_was_set_and_no_more(bench: Bench) -> None:
    """The body has input, model and format, further fields only where they were set, and the key as a bearer token."""
    with bench.open(api_key="sk-test") as plain, bench.open(**FURTHER) as further:
        plain.embed("a")
        further.embed([[1, 2], [3]])
    one, other = bench.server.requests
    assert one.body == {"input": ["a"], "model": "baai/bge-m3", "encoding_format": "base64"}
    assert other.body == {
        "input": [[1, 2], [3]],
        "model": "m",
        "encoding_format": "float",
        "dimensions": 4,
        "user": "u",
        "nested": {"b": [1, None], "a": 2.5},
    }
    assert (one.method, one.path) == ("POST", "/v1/embeddings")
    assert {one.headers["authorization"], other.headers["authorization"]} == {"Bearer sk-test"}
    assert one.headers["accept-encoding"] == "identity"


FURTHER: dict[str, Any] = {
    "model": "m",
    "api_key": "sk-test",
    "encoding_format": "float",
    "dimensions": 4,
    "extra_body": {"user": "u", "nested": {"b": [1, None], "a": 2.5}},
}


@pytest.mark.parametrize(
    ("order", "index"),
    [
        ("reversed", "present"),
        ("shuffled", "present"),
        ("as_is", "absent"),
        ("as_is", "zero_absent"),
        ("reversed", "zero_absent"),
        ("shuffled", "zero_absent"),
    ],
)
def test_order(bench: Bench, order: Order, index: Index) -> None:
    """Each text gets its own vector, in whatever order the answer has them, with and without an index."""
    bench.server.order, bench.server.index = order, index
    with bench.open() as embedder:
        first, second = embedder.embed(TEXTS), embedder.embed(TEXTS[::-1])
    assert same(first, right(TEXTS))
    assert same(second, right(TEXTS[::-1]))
    assert len(bench.server.requests) == 1


def test_another_process_finds_everything(bench: Bench) -> None:
    """A second process over the same folder sends nothing, and gives the same bytes."""
    bench.server.jitter_last_bits = True  # so that the bytes can only have come from the folder
    with bench.open() as embedder:
        mine = embedder.embed(TEXTS)
    bench.server.forget()
    told = bench.run(f"print(embedder.embed({TEXTS!r}).tobytes().hex()); embedder.close()")
    assert told.strip() == mine.tobytes().hex()
    assert bench.server.requests == []


@pytest.mark.parametrize(
    "other",
    [
        {"encoding_format": "float"},
        {"model": "another"},
        {"dimensions": 8},
        {"extra_body": {"user": "u"}},
        {"provider_name": "elsewhere"},
        {"epoch": "2"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_changes_the_vector_is_in_the_key(bench: Bench, other: dict[str, Any]) -> None:
    """Embedders that ask for another format, model, length or field share a folder and no entry."""
    with bench.open() as one, bench.open(**other) as two:
        first, second = one.embed("a"), two.embed("a")
        assert preimage(one.space, "a") != preimage(two.space, "a")
        assert two.stats().entries == 2
    assert same(first, second)
    assert [request.inputs for request in bench.server.requests] == [["a"], ["a"]]


def test_a_server_that_moves_keeps_its_cache(bench: Bench) -> None:
    """`provider_name` stands in keys for host and port, so that the same name at another address hits."""
    with bench.open(provider_name="ours") as embedder:
        embedder.embed(TEXTS)
    with bench.open(provider_name="ours", base_url="http://127.0.0.1:1/v1") as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))


def test_many_requests(bench: Bench) -> None:
    """Thousands of inputs go out `batch_size` at a time, each once, and are all found again."""
    texts = [f"{n % 4500}" for n in range(9000)]
    with bench.open(batch_size=1000) as embedder:
        result, again = embedder.embed_result(texts), embedder.embed_result(texts)
    assert same(result.vectors, right(texts))
    assert same(again.vectors, result.vectors)
    assert counts(result) == (0, 4500, 4500, 5)
    assert counts(again) == (9000, 0, 0, 0)
    assert sorted(len(request.inputs) for request in bench.server.requests) == [500, 1000, 1000, 1000, 1000]
    assert sorted(map(str, bench.server.sent_inputs)) == sorted(set(texts))


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


class Word(str):
    __slots__ = ()


class Words(enum.StrEnum):
    A = "a"
    B = "b"


class Column:
    """A column as pandas has them: iterable, with `tolist`, and no Sequence."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def __iter__(self) -> Iterator[object]:
        return iter(self._values)

    def tolist(self) -> list[object]:
        return list(self._values)


@dataclass
class Form:
    """One way to hand inputs over; made anew for each test, since some can be read only once."""

    make: Callable[[], object]
    items: list[Item]
    single: bool = False


FORMS = {
    "text": Form(lambda: "a", ["a"], single=True),
    "texts": Form(lambda: ["a", "b"], ["a", "b"]),
    "ids": Form(lambda: [1, 2, 3], [[1, 2, 3]], single=True),
    "lists of ids": Form(lambda: [[1], [2, 3]], [[1], [2, 3]]),
    "one text in a list": Form(lambda: ["a"], ["a"]),
    "one list of ids in a list": Form(lambda: [[1, 2]], [[1, 2]]),
    "tuple": Form(lambda: ("a", "b"), ["a", "b"]),
    "generator": Form(lambda: (chr(code) for code in b"ab"), ["a", "b"]),
    "deque": Form(lambda: deque("ab"), ["a", "b"]),
    "values of a mapping": Form({1: "a", 2: "b"}.values, ["a", "b"]),
    "strings of a class of their own": Form(lambda: [Word("a"), Word("b")], ["a", "b"]),
    "a string of a class of its own": Form(lambda: Word("a"), ["a"], single=True),
    "enumeration": Form(lambda: list(Words), ["a", "b"]),
    "column": Form(lambda: Column("a", "b"), ["a", "b"]),
    "column of ids": Form(lambda: Column([1], [2, 3]), [[1], [2, 3]]),
    "array of str": Form(lambda: np.array(["a", "b"]), ["a", "b"]),
    "array of objects": Form(lambda: np.array(["a", "b"], dtype=object), ["a", "b"]),
    "list of NumPy's str": Form(lambda: list(np.array(["a", "b"])), ["a", "b"]),
    "array of ids": Form(lambda: np.array([1, 2, 3]), [[1, 2, 3]], single=True),
    "list of NumPy's ids": Form(lambda: list(np.array([1, 2, 3])), [[1, 2, 3]], single=True),
    "array of small ids": Form(lambda: np.array([1, 2, 3], dtype=np.uint16), [[1, 2, 3]], single=True),
    "two rows of ids": Form(lambda: np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "list of arrays": Form(lambda: [np.array([1]), np.array([2, 3])], [[1], [2, 3]]),
    "array.array": Form(lambda: array.array("q", [1, 2, 3]), [[1, 2, 3]], single=True),
    "range": Form(lambda: range(1, 4), [[1, 2, 3]], single=True),
    "tuples of ids": Form(lambda: ((1,), (2, 3)), [[1], [2, 3]]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_input(bench: Bench, form: Form) -> None:
    """A text, texts, ids and lists of ids are taken in every usual container; ONE input gives one vector."""
    with bench.open() as embedder:
        first, second = embedder.embed(form.make()), embedder.embed(form.make())
    expected = right(form.items)[0] if form.single else right(form.items)
    assert same(first, expected)
    assert same(second, expected)
    assert [request.body["input"] for request in bench.server.requests] == [form.items]


def test_texts_and_ids_of_the_same_bytes(bench: Bench) -> None:
    """A text and token ids are two inputs, even where the bytes that are hashed are the same."""
    with bench.open() as embedder:
        assert same(embedder.embed("abcd"), vector("abcd"))
        assert same(embedder.embed([int.from_bytes(b"abcd", "little")]), vector([0x64636261]))


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_the_list_may_change_meanwhile(bench: Bench, memory_size: int | None) -> None:
    """What is done to the caller's list while the call is under way changes nothing of the call."""
    gate = threading.Event()
    bench.server.play(hold(gate))
    asked = TEXTS.copy()
    with bench.open(memory_size=memory_size) as embedder:
        answer = embedder.begin(asked)
        assert bench.server.wait_for(1, SECONDS)
        asked.clear()
        gate.set()
        result = answer.result(SECONDS)
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert same(result.vectors, right(TEXTS))
    assert counts(result) == (0, 7, 0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("memory_size", [None, 1 << 20])
async def test_the_list_may_change_at_once(tmp_path: Path, memory_size: int | None) -> None:
    """A list that changes as soon as a task has begun brings no text another one's vector, now or later."""
    with Upstream() as server:
        async with AsyncCachedEmbedder(
            base_url=server.base_url, cache_dir=tmp_path, memory_size=memory_size
        ) as embedder:
            for n in range(20):
                texts = [f"{n} {k}" for k in range(9)]
                asked = texts.copy()
                task = asyncio.create_task(embedder.embed(asked))
                await asyncio.sleep(0)
                asked.reverse()
                assert same(await asyncio.wait_for(task, SECONDS), right(texts))
                assert same(await asyncio.wait_for(embedder.embed(texts), SECONDS), right(texts))
        assert len(server.requests) == 20


def test_a_generator_that_fails(bench: Bench) -> None:
    """What the caller's generator raises reaches the caller, and nothing is sent."""

    def texts() -> Iterator[str]:
        yield "a"
        raise LookupError

    with bench.open() as embedder, pytest.raises(LookupError):
        embedder.embed(texts())
    assert bench.server.requests == []


def test_no_inputs(bench: Bench) -> None:
    """An empty list costs nothing and gives no rows, as long as the space's vectors are where that is known."""
    with bench.open() as embedder:
        assert embedder.embed([]).shape == (0, 0)
        assert embedder.embed(iter(())).dtype == np.float32
        embedder.embed("a")
        assert embedder.embed([]).shape == (0, 8)
    with bench.open() as embedder:
        result = embedder.embed_result([])
        assert result.vectors.shape == (0, 8)
        assert counts(result) == (0, 0, 0, 0)
    with bench.open(dimensions=4) as embedder:
        assert embedder.embed(np.array([])).shape == (0, 4)
    assert len(bench.server.requests) == 1


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_arrays_belong_to_the_caller(bench: Bench, memory_size: int | None) -> None:
    """What a caller writes into an array is seen in no other row, no other array and no later answer."""
    with bench.open(memory_size=memory_size) as embedder:
        first = embedder.embed(["a", "b", "a"])  # bought
        second = embedder.embed(["a", "b", "a"])  # found
        one = embedder.embed("a")
        for mine in (first, second):
            mine[0] = 1e9
            assert same(mine[1:], right(["b", "a"]))
        one *= 0
        assert same(embedder.embed("a"), vector("a"))
        assert same(embedder.embed(["a", "b", "a"]), right(["a", "b", "a"]))


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


def test_fifty_callers(bench: Bench) -> None:
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


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_refresh(bench: Bench, memory_size: int | None) -> None:
    """`refresh` asks for all again, once each, and replaces what is stored."""
    bench.server.jitter_last_bits = True
    with bench.open(memory_size=memory_size) as embedder:
        old = embedder.embed(["a", "b"])
        result = embedder.embed_result(["a", "b", "a"], refresh=True)
        assert counts(result) == (0, 2, 1, 1)
        assert not same(result.vectors[:2], old)
        assert same(embedder.embed(["a", "b", "a"]), result.vectors)
        assert embedder.stats().entries == 2
    with bench.open() as embedder:
        assert same(embedder.embed(["a", "b", "a"]), result.vectors)
    assert [request.inputs for request in bench.server.requests] == [["a", "b"], ["a", "b"]]


def test_refresh_that_fails(bench: Bench) -> None:
    """What is stored stays where it could not be bought anew."""
    with bench.open(max_retries=0) as embedder:
        embedder.embed("a")
        bench.server.play(status(500))
        with pytest.raises(EmbcacheError):
            embedder.embed("a", refresh=True)
        assert same(embedder.embed("a"), vector("a"))
    assert len(bench.server.requests) == 2


@pytest.mark.parametrize("memory_size", [None, 1 << 20])
def test_forget(bench: Bench, memory_size: int | None) -> None:
    """What is forgotten is sent again when it is next asked for; the rest is not."""
    with bench.open(memory_size=memory_size) as embedder:
        embedder.embed(TEXTS)
        embedder.embed([[1], [2]])
        assert embedder.forget([*TEXTS[:2], TEXTS[0], "never asked for"]) == 2
        assert embedder.forget([2]) == 1
        assert embedder.forget([]) == 0
        assert embedder.stats().entries == 6
        bench.server.forget()
        assert same(embedder.embed(TEXTS), right(TEXTS))
        assert same(embedder.embed([[1], [2]]), right([[1], [2]]))
    assert [request.inputs for request in bench.server.requests] == [TEXTS[:2], [[2]]]


def test_forget_in_an_empty_folder(bench: Bench) -> None:
    """Where there is no cache, there is nothing to forget."""
    with bench.open() as embedder:
        assert embedder.forget("a") == 0


def test_nothing_is_left_of_what_is_forgotten(bench: Bench) -> None:
    """Of a forgotten text no file holds key, digest or vector, even where it was replaced before."""
    texts = [f"text {n}" for n in range(400)]
    gone = texts[5:300:7]
    with bench.open(batch_size=20) as embedder:
        embedder.embed(texts)
        embedder.embed(texts[:50], refresh=True)
        told = [preimage(embedder.space, text) for text in gone]
        traces = [*map(digest_of, told), *map(key_of, told), *(vector(text).tobytes() for text in gone)]
        held = files_of(bench.folder)
        assert all(trace in held for trace in traces)
        assert embedder.forget(gone) == len(gone)
        held = files_of(bench.folder)
        assert not any(trace in held for trace in traces)
    held = files_of(bench.folder)
    assert not any(trace in held for trace in traces)


def test_dimensions_are_pinned(bench: Bench) -> None:
    """A server whose vectors change their length is refused, also by later embedders; what is stored stays good."""
    with bench.open() as embedder:
        embedder.embed(["a", "b"])
        bench.server.dims = 4
        check_refused(embedder)
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
    with bench.open() as embedder:
        check_refused(embedder)
        assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
        assert embedder.stats().entries == 2
        bench.server.dims = 8
        assert same(embedder.embed(["c", "d"]), right(["c", "d"]))


def test_dimensions_are_pinned_by_whoever_was_first(bench: Bench) -> None:
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


def test_dimensions_that_flip_between_two_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_dimensions_asked_for(bench: Bench) -> None:
    """Vectors of the length that was asked for are taken; a server that ignores it is an error that says so."""
    with bench.open(dimensions=4) as embedder:
        assert same(embedder.embed(["a", "b"]), right(["a", "b"], 4))
    bench.server.ignore_dimensions = True
    with bench.open(dimensions=3) as embedder:
        with pytest.raises(EmbcacheError, match="8 dimensions instead of 3"):
            embedder.embed(["a", "b"])
        assert embedder.stats().entries == 2


def check_refused(embedder: twins.Twin) -> None:
    with pytest.raises(EmbcacheError, match="4 dimensions instead of 8") as caught:
        embedder.embed(["a", "c", "d"])
    assert caught.value.indexes == (1, 2)  # type: ignore[attr-defined]


def test_repr(bench: Bench) -> None:
    """An embedder shows what it asks where, and not its key."""
    with bench.open(model="m", api_key="sk-canary") as embedder:
        assert "'m'" in repr(embedder.face)
        assert f"127.0.0.1:{bench.server.port}/v1" in repr(embedder.face)
        assert "canary" not in repr(embedder.face)


names = (f"example {n}" for n in itertools.count())
anything = st.one_of(
    st.lists(st.text(st.sampled_from("ab ")), max_size=12).map(lambda texts: [text for text in texts if text]),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=12),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=12),
)


@given(st.data(), anything, st.sampled_from(["as_is", "reversed", "shuffled"]), st.integers(1, 13))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])  # one bench for all of them
def test_the_same_as_without_a_cache(
    bench: Bench, data: st.DataObject, items: list[Item], order: Order, size: int
) -> None:
    """Any inputs, any of them stored before, any order of answers: what comes back is what the model says."""
    bench.server.order, bench.server.seed = order, size
    before = data.draw(st.lists(st.sampled_from(items), max_size=6)) if items else []
    how: dict[str, Any] = {
        "encoding_format": data.draw(st.sampled_from(["float", "base64"])),
        "provider_name": next(names),
        "batch_size": size,
        "memory_size": data.draw(st.sampled_from([None, 1 << 20])),
    }
    with bench.open(**how) as one, bench.open(**how) as two:
        one.embed(before)
        bench.server.forget()
        result = data.draw(st.sampled_from([one, two])).embed_result(items)
    assert same(result.vectors, right(items) if items else np.empty((0, 0), np.float32))
    known, new = {repr(item) for item in before}, {repr(item) for item in items if item not in before}
    hits = sum(repr(item) in known for item in items)
    assert counts(result)[:3] == (hits, len(new), len(items) - hits - len(new))
    assert sorted(map(repr, bench.server.sent_inputs)) == sorted(new)
