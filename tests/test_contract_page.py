"""The contract page, row by row: what other OpenAI-compatible servers do, and what follows from it.

Each test is named after its row of the page's last two tables, behind the rows of the fault matrix that it proves. The
file is long because the page is.
"""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import pytest

from embcache import BadReply, EmbcacheWarning, InputRejected, InvalidInput, ProviderError, ProviderUnavailable

from tests import twins
from tests.twins import Bench, right, same
from tests.upstream import edit, status, tokens, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.upstream import Body, Exchange, Item, Vector

Format: TypeAlias = Literal["float", "base64"]
Order: TypeAlias = Literal["as_is", "reversed", "shuffled"]
Index: TypeAlias = Literal["present", "zero_absent"]
Told: TypeAlias = Literal["missing", "null", "negative", "string", "huge"]

bench = twins.bench
at_once = twins.at_once

TEXTS = ["alpha", "beta", "gamma", "delta", "epsilon"]
ALL_NAN = {"embedding": [float("nan")] * 8}


def change_item(number: int, **changes: object) -> Callable[[dict[str, Any]], Body]:
    """Change single fields of one entry of an answer; `...` leaves a field out."""

    def change(body: dict[str, Any]) -> Body:
        entry = body["data"][number] | changes
        body["data"][number] = {name: value for name, value in entry.items() if value is not ...}
        return body

    return change


def change_data(change: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], Body]:
    """Change the list of entries in place."""

    def changed(body: dict[str, Any]) -> Body:
        change(body["data"])
        return body

    return changed


def check_one_refused(bench: Bench, number: int, reason: str, **settings: Any) -> None:  # noqa: ANN401 - any setting
    """Ask for TEXTS, of which one comes back unusable: it is named, and the others are there to stay."""
    others = TEXTS[:number] + TEXTS[number + 1 :]
    with bench.open(**settings) as embedder:
        with pytest.raises(BadReply, match=reason) as caught:
            embedder.embed(TEXTS)
        assert (caught.value.indexes, caught.value.kept) == ((number,), 4)
        assert embedder.stats().entries == 4
        assert embedder.stats().billed_tokens == bench.server.billed_tokens == sum(map(tokens, TEXTS))
        bench.server.forget()
        assert same(embedder.embed(others), right(others))
        assert bench.server.requests == []
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert [request.inputs for request in bench.server.requests] == [[TEXTS[number]]]


def check_nothing_kept(bench: Bench, answer: Callable[[Exchange], None], reason: str) -> None:
    """Ask for TEXTS and have nothing but unusable answers: two are paid for at most, and nothing of them is stored."""
    bench.server.play(*[answer] * 6)
    with bench.open() as embedder:
        with pytest.raises(BadReply, match=reason) as caught:
            embedder.embed(TEXTS)
        assert (caught.value.indexes, caught.value.kept) == ((), 0)
        assert len(bench.server.requests) == 2
        assert embedder.stats().entries == 0
        bench.server.script.clear()
        assert same(embedder.embed(TEXTS), right(TEXTS))


# What other OpenAI-compatible servers do


@pytest.mark.parametrize(
    ("cap", "code"),
    [(cap, (400, 413, 422)[n % 3]) for n, cap in enumerate([1, 10, 16, 25, 32, 64, 96, 100, 512, 1000, 1024])],
)
def test_batch_caps(bench: Bench, cap: int, code: int) -> None:
    """Whatever cap a server has, and however it says so: all vectors come, and the refusals are few."""
    bench.server.cap, bench.server.cap_status = cap, code
    texts = [f"text {n}" for n in range(2 * cap + 30)]
    with bench.open() as embedder:
        assert same(embedder.embed(texts), right(texts))
    assert sorted(map(str, bench.server.accepted_inputs)) == sorted(texts)
    assert 1 <= bench.server.refused <= 2 * math.ceil(math.log2(len(texts))) + 2


@pytest.mark.parametrize(("asked", "answered"), [("base64", "float"), ("float", "base64")])
def test_u21_another_format_than_asked(bench: Bench, asked: str, answered: Format) -> None:
    """Floats are understood where base64 was asked for, and base64 where floats were, bit for bit."""
    bench.server.answer_format = answered
    with bench.open(encoding_format=asked) as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert [request.body["encoding_format"] for request in bench.server.requests] == [asked]


def test_encoding_format_is_refused(bench: Bench) -> None:
    """A server that refuses the field is told of in its own words, after few requests, and nothing is billed."""
    bench.server.refuse_fields = {"encoding_format"}
    with bench.open() as embedder:
        with pytest.raises(ProviderError, match="encoding_format"):
            embedder.embed(TEXTS)
        with pytest.raises(InputRejected, match="encoding_format"):
            embedder.embed("a")
        assert (embedder.stats().entries, embedder.stats().billed_tokens) == (0, 0)
    assert len(bench.server.requests) <= 8


@pytest.mark.parametrize("order", ["as_is", "reversed", "shuffled"])
@pytest.mark.parametrize("index", ["present", "zero_absent"])
def test_u07_items_out_of_order_or_index_0_missing(bench: Bench, order: Order, index: Index) -> None:
    """Vectors are placed by their index; where that of the first is left out, it is the one left over."""
    bench.server.order, bench.server.index = order, index
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))


def test_index_missing(bench: Bench) -> None:
    """Where no vector has an index, they stand in the order asked."""
    bench.server.index = "absent"
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))


COUNTS: dict[str, Callable[[list[Any]], object]] = {
    "one fewer": lambda data: data.pop(),
    "one more": lambda data: data.append(data[0]),
    "one more with an index of its own": lambda data: data.append(data[0] | {"index": len(data)}),
    "none": lambda data: data.clear(),
}


@pytest.mark.parametrize("change", COUNTS.values(), ids=COUNTS)
def test_u07_fewer_or_more_items_than_inputs(
    bench: Bench, at_once: None, change: Callable[[list[Any]], object]
) -> None:
    """Another number of vectors than inputs cannot be trusted at all, not even where each has an index."""
    check_nothing_kept(bench, edit(change_data(change)), "vectors for 5 inputs")


@pytest.mark.parametrize("usage", ["missing", "null", "negative", "string", "huge"])
def test_u20_usage_missing(bench: Bench, usage: Told) -> None:
    """Without a usable account of tokens the vectors are good, and the request counts as one of unknown cost."""
    bench.server.usage = usage
    with bench.open() as embedder:
        result = embedder.embed_result([*TEXTS, TEXTS[0]])
        assert same(result.vectors, right([*TEXTS, TEXTS[0]]))
        assert (result.usage.total_tokens, result.usage.saved_tokens, result.usage.unknown_requests) == (0, 0, 1)
        assert embedder.embed_result(TEXTS).usage.saved_tokens == 0
        stats = embedder.stats()
    assert (stats.billed_tokens, stats.saved_tokens, stats.unknown_requests, stats.requests) == (0, 0, 1, 1)


WORTHLESS: dict[str, tuple[Mapping[str, object], str]] = {
    "null": ({"embedding": None}, "could not be read"),
    "null among numbers": ({"embedding": [1.0, None, 2.0, 0, 0, 0, 0, 0]}, "could not be read"),
    "NaN": (ALL_NAN, "holds NaN"),
    "one NaN": ({"embedding": [float("nan"), 1, 1, 1, 1, 1, 1, 1]}, "holds NaN"),
    "infinity": ({"embedding": [float("inf"), 1, 1, 1, 1, 1, 1, 1]}, "infinite"),
    "too large for float32": ({"embedding": [1e300, 1, 1, 1, 1, 1, 1, 1]}, "infinite"),
    "all zero": ({"embedding": [0.0] * 8}, "all zero"),
    "all zero in base64": ({"embedding": "A" * 43 + "="}, "all zero"),
}


@pytest.mark.parametrize(("changes", "reason"), WORTHLESS.values(), ids=WORTHLESS)
def test_u09_null_nan_and_all_zero_vectors(bench: Bench, changes: Mapping[str, object], reason: str) -> None:
    """A vector that says nothing is refused and its input named; its neighbours were paid for and are stored."""
    bench.server.play(edit(change_item(2, **changes)))
    check_one_refused(bench, 2, reason)


def test_500_on_particular_texts(bench: Bench, at_once: None) -> None:
    """A server that fails on one text ends in one clear error; what other requests brought is stored, and stays."""
    bench.server.poison, bench.server.poison_status = {"gamma"}, 500
    with bench.open(batch_size=2, max_concurrency=1, max_retries=2) as embedder:
        with pytest.raises(ProviderUnavailable) as caught:
            embedder.embed(TEXTS)
        assert (caught.value.status, caught.value.retryable, caught.value.kept) == (500, True, 2)
        assert len(bench.server.requests) == 1 + 3
        assert same(embedder.embed(TEXTS[:2]), right(TEXTS[:2]))
        assert same(embedder.embed(TEXTS[3:]), right(TEXTS[3:]))
    assert [request.inputs for request in bench.server.requests[4:]] == [TEXTS[3:]]


def test_400_on_user_or_dimensions(bench: Bench) -> None:
    """Fields the caller did not set are not sent; those that were set and are refused are told of."""
    bench.server.refuse_fields = {"user", "dimensions", "truncate", "input_type"}
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))
    assert set(bench.server.requests[0].body) == {"input", "model", "encoding_format"}
    with bench.open(dimensions=4) as embedder, pytest.raises(ProviderError, match="dimensions"):
        embedder.embed(TEXTS)


def test_whitespace_stripped_silently(bench: Bench) -> None:
    """Texts that a server takes for the same are sent verbatim and kept apart, so that a better server is noticed."""
    texts = [" a", "a", "a ", "a\n", "\ta"]
    with bench.open() as embedder:
        bench.server.play(seen_as(str.strip))
        assert same(embedder.embed(texts), right(["a"] * 5))
        assert embedder.stats().entries == 5
        assert embedder.forget(texts[0]) == 1
        assert same(embedder.embed(texts), right([" a", *["a"] * 4]))
    assert [request.inputs for request in bench.server.requests] == [texts, [" a"]]


def test_long_input_truncated_silently(bench: Bench) -> None:
    """A long text is sent and keyed whole, even where the server reads its beginning alone."""
    texts = ["long " * 9000 + end for end in "xy"]
    with bench.open() as embedder:
        bench.server.play(seen_as(lambda text: text[:20]))
        assert same(embedder.embed(texts), right([texts[0][:20]] * 2))
        assert embedder.stats().entries == 2
    assert bench.server.sent_inputs == texts


def seen_as(change: Callable[[str], str]) -> Callable[[Exchange], None]:
    """Answer as a server does that changes texts before the model sees them."""

    def step(exchange: Exchange) -> None:
        changed = iter([change(cast("str", item)) for item in exchange.request.inputs])

        def change_all(body: dict[str, Any]) -> Body:
            for entry in body["data"]:
                entry["embedding"] = vector(next(changed)).tolist()
            return body

        edit(change_all)(exchange)

    return step


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "overloaded", "type": "server_error"}},
        {"code": 500, "reason": "INTERNAL", "message": "overloaded"},
        {"data": None},
        {"data": [1, 2, 3, 4, 5]},
        {"object": "list"},
        ["overloaded"],
        "<html>overloaded</html>",
        "",
        '{"data": [',
        b"\xff\xfe\xfa",
    ],
    ids=["wrapped", "flat", "null", "numbers", "no data", "a list", "HTML", "empty", "truncated", "no UTF-8"],
)
def test_u12_200_with_an_error_body(bench: Bench, at_once: None, body: Body) -> None:
    """An answer of 200 without vectors is an error all the same; it may have been billed, so one more try at most."""
    check_nothing_kept(bench, status(200, body=body), "the provider answered 200 with")


def test_u12_200_with_an_error_body_once(bench: Bench, at_once: None) -> None:
    """Where the second answer is good, the caller gets its vectors, and the first counts as of unknown cost."""
    bench.server.play(status(200, body={"error": {"message": "overloaded"}}))
    with bench.open() as embedder:
        result = embedder.embed_result(TEXTS)
    assert same(result.vectors, right(TEXTS))
    assert (result.requests, result.usage.unknown_requests) == (2, 1)
    assert result.usage.total_tokens == bench.server.billed_tokens


WAITS: dict[str, tuple[dict[str, str], float]] = {
    "seconds": ({"Retry-After": "0.3"}, 0.3),
    "milliseconds": ({"retry-after-ms": "300", "Retry-After": "0"}, 0.3),
    "a date": ({"Retry-After": "date"}, 0.4),
    "absurdly long": ({"Retry-After": "1000000000"}, 0.4),
    "endless": ({"Retry-After": "inf"}, 0.4),
    "absent": ({}, 0.0),
    "negative": ({"Retry-After": "-5"}, 0.0),
    "nonsense": ({"Retry-After": "soon"}, 0.0),
}


@pytest.mark.parametrize(("headers", "least"), WAITS.values(), ids=WAITS)
def test_u04_retry_after(
    bench: Bench, at_once: None, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], least: float
) -> None:
    """A request is repeated no sooner than the server asks, in whichever form, up to a limit, and then succeeds."""
    # Half a minute would be a long test: what is obeyed at most is the same rule with another number.
    monkeypatch.setattr("embcache.retry.LONGEST_OBEYED", 0.4)
    if headers.get("Retry-After") == "date":
        headers = {"Retry-After": formatdate(time.time() + 3600, usegmt=True)}
    bench.server.play(status(429, headers=headers))
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))
    first, second = bench.server.requests
    assert least <= second.at - first.at < 20


def test_u23_another_model_in_the_answer(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The vectors of a model that calls itself otherwise are taken: one warning, each time a line in the log."""
    bench.server.model_name = "bge-m3-turbo"
    with bench.open(model="baai/bge-m3") as embedder:
        with pytest.warns(EmbcacheWarning, match="'bge-m3-turbo'") as told:
            result = embedder.embed_result("a")
        assert same(result.vectors, vector("a"))
        assert result.model == "bge-m3-turbo"
        embedder.embed("b")  # a second warning would be an error
        assert embedder.embed_result("a").model == "bge-m3-turbo"  # of the entry, without a request
        assert embedder.face._engine.keeper.ledger.session()["model_changes"] == 2
    assert len(told) == 1
    assert len([record for record in caplog.records if "bge-m3-turbo" in record.getMessage()]) == 2
    assert {record.name for record in caplog.records if record.levelname == "WARNING"} == {"embcache"}


def test_vectors_that_differ_between_calls(bench: Bench) -> None:
    """A server whose last bits change from call to call is asked once, and the first vector is replayed for ever."""
    bench.server.jitter_last_bits = True
    with bench.open() as embedder:
        first = embedder.embed(TEXTS)
        assert same(embedder.embed(TEXTS), first)
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), first)
    assert len(bench.server.requests) == 1
    assert not same(first, right(TEXTS))  # or else the server did not do what is shown here


# What follows


@pytest.mark.parametrize("answered", ["float", "base64"])
def test_1_a_hit_replays(bench: Bench, answered: Format) -> None:
    """The first call and every later one agree bit for bit, and are little-endian float32."""
    floats = [0.1, 1 / 3, 1e-45, 3.4e38, -0.0, 1e-300, 16777217.0, -1.0]

    def odd(body: dict[str, Any]) -> Body:
        body["data"][0]["embedding"] = floats
        return body

    bench.server.play(*[edit(odd)] * (answered == "float"))
    bench.server.answer_format = answered
    with bench.open() as embedder:
        first, second = embedder.embed("a"), embedder.embed("a")
    with bench.open() as embedder:
        third = embedder.embed("a")
    assert first.dtype == "<f4"
    assert first.tobytes() == second.tobytes() == third.tobytes()
    if answered == "float":
        assert first.tolist() == [float(np.float32(number)) for number in floats]
    assert len(bench.server.requests) == 1


@pytest.mark.parametrize("wrong", [0, 5, -1, 10**30, "1", 1.0, True, [1]], ids=repr)
def test_u07_2_place_by_index(bench: Bench, at_once: None, wrong: object) -> None:
    """An index that is there twice, out of range or no whole number makes a reply worthless: nothing is stored."""
    check_nothing_kept(bench, edit(change_item(1, index=wrong)), "index")


def test_2_one_index_missing(bench: Bench) -> None:
    """Where a single index is missing, it is the one left over, wherever the vector stands."""
    bench.server.order = "reversed"
    bench.server.play(edit(change_item(1, index=...)))
    with bench.open() as embedder:
        assert same(embedder.embed(TEXTS), right(TEXTS))


def test_u07_2_two_indexes_missing(bench: Bench, at_once: None) -> None:
    """Two missing indexes leave it open which is which, and that is not guessed."""

    def change(body: dict[str, Any]) -> Body:
        del body["data"][1]["index"], body["data"][3]["index"]
        return body

    check_nothing_kept(bench, edit(change), "index")


UNUSABLE: dict[str, tuple[Mapping[str, object], str]] = {
    "shorter than its neighbours": ({"embedding": [1.0] * 7}, "7 dimensions instead of 8"),
    "longer than its neighbours": ({"embedding": [1.0] * 9}, "9 dimensions instead of 8"),
    "empty": ({"embedding": []}, "could not be read"),
    "empty base64": ({"embedding": ""}, "could not be read"),
    "base64 of no whole floats": ({"embedding": "AAAAAAA="}, "could not be read"),
    "base64 with junk in it": ({"embedding": "A" * 20 + "\n" + "B" * 23 + "="}, "could not be read"),
    "text": ({"embedding": "no base64!"}, "could not be read"),
    "texts": ({"embedding": ["1.5"] * 8}, "could not be read"),
    "booleans": ({"embedding": [True] * 8}, "could not be read"),
    "nested": ({"embedding": [[1.0] * 8]}, "could not be read"),
    "a mapping": ({"embedding": {"0": 1.0}}, "could not be read"),
    "missing": ({"embedding": ...}, "could not be read"),
    "a number beyond any float": ({"embedding": [10**400] * 8}, "could not be read"),
}


@pytest.mark.parametrize(("changes", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_u08_u09_u21_3_check_before_storing(bench: Bench, changes: Mapping[str, object], reason: str) -> None:
    """A vector that cannot be decoded, or is of another length, is refused and named; its neighbours are stored."""
    bench.server.play(edit(change_item(4, **changes)))
    check_one_refused(bench, 4, reason)


def test_3_several_faults_in_one_reply(bench: Bench) -> None:
    """All inputs whose vectors are unusable are named, duplicates too."""

    def change(body: dict[str, Any]) -> Body:
        return change_item(3, embedding=[0.0] * 8)(cast("dict[str, Any]", change_item(1, **ALL_NAN)(body)))

    bench.server.play(edit(change))
    with bench.open() as embedder:
        with pytest.raises(BadReply) as caught:
            embedder.embed([*TEXTS, TEXTS[3]])
        assert (caught.value.indexes, caught.value.kept) == ((1, 3, 5), 3)


def test_u08_3_nobody_can_say_which_length_is_right(bench: Bench) -> None:
    """Where two vectors have two lengths and none is known, neither is stored."""
    bench.server.play(edit(change_item(1, embedding=[1.0] * 7)))
    with bench.open() as embedder:
        with pytest.raises(BadReply) as caught:
            embedder.embed(TEXTS[:2])
        assert (caught.value.indexes, caught.value.kept) == ((0, 1), 0)
        assert embedder.stats().entries == 0


def test_4_adapt_the_batch(bench: Bench) -> None:
    """A cap and a bad input are told apart by halving: both are found, and neither is taken for the other."""
    bench.server.cap = 16
    bench.server.poison = {"text 33"}
    texts = [f"text {n}" for n in range(400)]
    with bench.open(max_concurrency=1) as embedder:
        with pytest.raises(InputRejected) as caught:
            embedder.embed(texts)
        assert (caught.value.indexes, caught.value.kept) == ((33,), 399)
        assert bench.server.refused <= 4 * math.ceil(math.log2(400))
        cap = embedder.face._engine.keeper.cap
        assert (cap.good, cap.bad) == (16, 17)


VERBATIM = [
    "a",
    " a",
    "a ",
    "a\n",
    "a\r\n",
    "A",
    "é",
    "e\u0301",  # the same letter, decomposed
    "ﬁ",
    "fi",
    "\0",
    "a\0",
    "\ufeffa",
    "\u2028",
    "\u00a0",
    " ",
    "\n",
    "🙂",
    '"\\/',
    "</s>",
]


def test_5_text_verbatim(bench: Bench) -> None:
    """Nothing is stripped, normalised or replaced: every text is sent as it is, and has an entry of its own."""
    with bench.open() as embedder:
        assert same(embedder.embed(VERBATIM), right(VERBATIM))
        assert same(embedder.embed(VERBATIM), right(VERBATIM))
        assert embedder.stats().entries == len(VERBATIM)
    assert bench.server.sent_inputs == VERBATIM


def test_5_a_lone_surrogate(bench: Bench) -> None:
    """What is not text is the caller's error, named by its index, before anything is sent."""
    with bench.open() as embedder, pytest.raises(InvalidInput) as caught:
        embedder.embed(["a", "\ud83d", "b"])
    assert caught.value.indexes == (1,)
    assert bench.server.requests == []


def test_6_the_key_is_injective(bench: Bench) -> None:
    """No two settings share an entry, not even where one field's end looks like another one's beginning."""
    every: list[dict[str, Any]] = [
        {},
        {"encoding_format": "float"},
        {"model": "a", "provider_name": "bc"},
        {"model": "ca", "provider_name": "b"},
        {"model": "afloat", "provider_name": "bc", "dimensions": 8},
        {"model": "a", "provider_name": "bc", "epoch": "8"},
        {"dimensions": 8},
        {"extra_body": {"user": "8"}},
        {"extra_body": {"user": 8}},
        {"extra_body": {"user": None}},
        {"extra_body": {"a": {"b": 1}}},
        {"extra_body": {"a": '{"b":1}'}},
        {"extra_body": {"a": 1, "b": 2}},
        {"extra_body": {"a": 12}},
    ]
    inputs: list[Item] = ["a", [97]]
    for settings in every:
        with bench.open(**settings) as embedder:
            for item in inputs:
                assert embedder.embed_result(item).hits == 0
    with bench.open() as embedder:
        assert embedder.stats().entries == len(every) * len(inputs)
    # The order of an object's names is no difference.
    with bench.open(extra_body={"b": 2, "a": 1}) as embedder:
        assert embedder.embed_result("a").hits == 1


def test_6_bits_of_vector(bench: Bench) -> None:
    """Vectors of two spaces stay apart, whoever is asked."""
    answers: list[Vector] = []
    for dims in (8, 5, 3):
        with bench.open(dimensions=dims) as embedder:
            answers.append(embedder.embed("a"))
    assert [answer.shape for answer in answers] == [(8,), (5,), (3,)]
