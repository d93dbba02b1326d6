"""What `embed` sends and what it gives back, on both faces."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache import EmbcacheError
from embcache.keys import digest_of, key_of, preimage

from tests import twins
from tests.twins import Bench, counts, files_of, right, same
from tests.upstream import status, vector

if TYPE_CHECKING:
    from tests.upstream import Item

bench = twins.bench

Order: TypeAlias = Literal["as_is", "reversed", "shuffled"]
Index: TypeAlias = Literal["present", "absent", "zero_absent"]

TEXTS = [f"passage {n}" for n in range(7)]


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


def test_u08_u23_dimensions_are_pinned(bench: Bench) -> None:
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


def test_u08_dimensions_asked_for(bench: Bench) -> None:
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


def test_memory_holds_what_belongs_to_each(bench: Bench) -> None:
    """Where only some inputs of a call are stored, the memory tier holds for each its own vector and no neighbour's."""
    texts = [f"text {number}" for number in range(40)]
    stored = texts[1::2]
    with bench.open() as embedder:
        embedder.embed([*stored, "another"])
    with bench.open(memory_size=1 << 20) as embedder:
        embedder.embed("another")  # so that the length of vectors is known
        for _ in range(2):
            assert same(embedder.embed(texts), right(texts))
        assert same(embedder.embed(stored), right(stored))
        assert all(same(embedder.embed(text), right([text])[0]) for text in texts)
