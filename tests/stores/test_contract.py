"""What every store does, whatever it is made of. A new store joins by one line in `STORES`."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType] - partly typed
)

from embcache.stores import DiskStore, MemoryStore, Store
from embcache.stores.base import PinConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

STORES: Mapping[str, Callable[[Path, int | None], Store]] = {
    "disk": DiskStore,
    "memory": lambda _, size_limit: MemoryStore(size_limit),
}


class Make(Protocol):
    def __call__(self, size_limit: int | None = None) -> Store: ...


@pytest.fixture(params=sorted(STORES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Store] = []

    def make(size_limit: int | None = None) -> Store:
        made.append(STORES[request.param](tmp_path / str(len(made)), size_limit))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> Store:
    return make()


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()[:16]


def record(number: int, size: int = 60) -> bytes:
    """The one right record of a key, so that a mix-up cannot look right."""
    return sha256(b"record %d" % number).digest() * (size // 32) + bytes(size % 32)


def records(*numbers: int, size: int = 60) -> dict[bytes, bytes]:
    return {key(number): record(number, size) for number in numbers}


def held(store: Store) -> dict[bytes, tuple[int, int]]:
    """Entries and bytes of the spaces that have any."""
    return {space: counts for space, counts in store.totals().spaces.items() if counts != (0, 0)}


def accounts(store: Store) -> dict[bytes, dict[str, int]]:
    return {account: dict(counts) for account, counts in store.totals().accounts.items()}


# Records


def test_it_is_a_store(store: Store) -> None:
    """Every method of the protocol is there."""
    assert isinstance(store, Store)


def test_what_was_put_is_got(store: Store) -> None:
    """A record comes back as the bytes it was put as, also an empty one; a key that is not held is absent."""
    put = records(1, 2) | {key(3): b"", key(4): bytes(range(256)) * 300}
    store.put_many(put, space=b"s")
    got = store.get_many([*put, key(5)])
    assert got == put
    assert all(type(value) is bytes for value in got.values())


def test_keys_are_compared_whole(store: Store) -> None:
    """Keys that differ in one bit, or hold zeros or text, are different keys."""
    keys = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"space:0123456789", b"note:01234567890", b"\xff" * 16]
    put = {name: b"record of %d" % place for place, name in enumerate(keys)}
    store.put_many(put, space=b"s")
    assert store.get_many(keys) == put
    assert held(store) == {b"s": (len(keys), sum(map(len, put.values())))}


def test_nothing_asked_nothing_done(store: Store) -> None:
    """Empty arguments are allowed everywhere, and change nothing."""
    assert store.get_many([]) == {}
    store.put_many({}, {}, space=b"s", notes={})
    assert store.delete_many([]) == 0
    assert store.claim([], b"me", 60) == set()
    store.release([], b"me")
    assert list(store.scan()) == []
    assert (store.totals().spaces, accounts(store), dict(store.events())) == ({}, {}, {})


def test_a_record_is_replaced(store: Store) -> None:
    """The same key again replaces the record, and what the store holds in all stays right, also across spaces."""
    store.put_many(records(1, 2, 3), space=b"a")
    store.put_many({key(1): b"shorter", key(2): b"x" * 500}, space=b"a")
    assert store.get_many([key(1), key(2), key(3)]) == {key(1): b"shorter", key(2): b"x" * 500, key(3): record(3)}
    assert held(store) == {b"a": (3, 7 + 500 + 60)}
    store.put_many({key(2): b"moved"}, space=b"b")
    assert held(store) == {b"a": (2, 7 + 60), b"b": (1, 5)}
    assert sorted(store.scan()) == sorted(
        [(key(1), b"shorter", b"a"), (key(2), b"moved", b"b"), (key(3), record(3), b"a")]
    )


def test_many_keys_at_once(store: Store) -> None:
    """5,000 keys are put, got among 5,000 others, scanned and deleted, each in one call; a repeated key counts once."""
    put = records(*range(5_000))
    others = [key(number) for number in range(5_000, 10_000)]
    store.put_many(put, {b"account": {"requests": 1}}, space=b"s")
    assert store.get_many([*put, *others, *put]) == put
    assert {(k, r) for k, r, space in store.scan() if space == b"s"} == set(put.items())
    assert held(store) == {b"s": (5_000, 5_000 * 60)}
    assert store.delete_many([*put, *others, *put]) == 5_000
    assert store.get_many(list(put)) == {}
    assert held(store) == {}


def test_deleting(store: Store) -> None:
    """What is deleted is gone from everywhere, its neighbours stay, and only what was held is counted."""
    store.put_many(records(1, 2), space=b"a", notes={b"note of the space": b"n"})
    store.put_many(records(3), space=b"b")
    assert store.delete_many([key(1), key(3), key(9), b"note of the space"]) == 3
    assert store.get_many([key(1), key(2), key(3), b"note of the space"]) == records(2)
    assert list(store.scan()) == [(key(2), record(2), b"a")]
    assert held(store) == {b"a": (1, 60)}
    assert store.delete_many([key(1), key(3)]) == 0


def test_scanning_and_deleting_what_comes(store: Store) -> None:
    """A scan yields every entry once, although those it yielded are deleted under it: so a store is pruned."""
    put = records(*range(1_300))
    store.put_many(put, space=b"s", notes={b"note of the space": b"n"})
    seen: list[bytes] = []
    for k, r, space in store.scan():
        assert (r, space) == (put[k], b"s")
        seen.append(k)
        if len(seen) % 100 == 0:
            assert store.delete_many(seen[-100:]) == 100
    assert sorted(seen) == sorted(put)
    assert held(store) == {}


# Notes and the pin


def test_notes_are_no_entries(store: Store) -> None:
    """Notes are got like records and replaced like them, but are neither scanned nor counted."""
    store.put_many({}, notes={b"note one of a space": b"1", b"note two of a space": b"2"})
    store.put_many(records(1), space=b"s", notes={b"note one of a space": b"one"})
    assert store.get_many([b"note one of a space", b"note two of a space"]) == {
        b"note one of a space": b"one",
        b"note two of a space": b"2",
    }
    assert [k for k, _, _ in store.scan()] == [key(1)]
    assert held(store) == {b"s": (1, 60)}


def test_the_pin_is_kept_or_confirmed(store: Store) -> None:
    """A pin that is absent is kept as a note; the same value again is no conflict."""
    store.put_many(records(1), space=b"s", pin=(b"the pin of a space", b"8"))
    store.put_many(records(2), space=b"s", pin=(b"the pin of a space", b"8"))
    assert store.get_many([b"the pin of a space"]) == {b"the pin of a space": b"8"}
    assert held(store) == {b"s": (2, 120)}


def test_another_pin_stops_the_whole_commit(store: Store) -> None:
    """A pin with another value raises, and neither records nor notes nor usage of that commit are kept."""
    store.put_many({}, pin=(b"the pin of a space", b"8"))
    with pytest.raises(PinConflict):
        store.put_many(
            records(1),
            {b"account": {"requests": 1}},
            space=b"s",
            notes={b"note of the space": b"n"},
            pin=(b"the pin of a space", b"16"),
        )
    assert store.get_many([key(1), b"note of the space", b"the pin of a space"]) == {b"the pin of a space": b"8"}
    assert (held(store), accounts(store)) == ({}, {})


# Accounts


def test_usage_is_added_up(store: Store) -> None:
    """Counters of an account sum over commits, with records or without; new names and accounts join."""
    store.put_many(records(1), {b"a": {"requests": 1, "billed_tokens": 7}}, space=b"s")
    store.put_many({}, {b"a": {"billed_tokens": 2**40, "hits": 3}, b"b": {"hits": 1}})
    store.put_many({}, {b"a": {"requests": 1}})
    assert accounts(store) == {b"a": {"requests": 2, "billed_tokens": 2**40 + 7, "hits": 3}, b"b": {"hits": 1}}


def test_accounts_outlive_entries(store: Store) -> None:
    """Deleting every entry leaves the accounts as they are: the money is spent all the same."""
    store.put_many(records(1, 2), {b"a": {"billed_tokens": 7}}, space=b"s")
    store.delete_many([key(1), key(2)])
    assert accounts(store) == {b"a": {"billed_tokens": 7}}


# Leases


def test_a_lease_keeps_others_out(store: Store) -> None:
    """A key is leased to one owner at a time; others are given what is free, the owner what is its own."""
    first, second, third = key(1), key(2), key(3)
    assert store.claim([first, second], b"me", 60) == {first, second}
    assert store.claim([second, third], b"you", 60) == {third}
    assert store.claim([first, second, third], b"me", 60) == {first, second}


def test_a_lease_is_given_back(store: Store) -> None:
    """Release frees the keys it names, all others stay leased, and nobody can release what is not theirs."""
    first, second = key(1), key(2)
    store.claim([first, second], b"me", 60)
    store.release([first, second], b"you")
    assert store.claim([first, second], b"you", 60) == set()
    store.release([first], b"me")
    assert store.claim([first, second], b"you", 60) == {first}


def test_a_lease_expires(store: Store) -> None:
    """The lease of an owner that died is free after its seconds, and not before."""
    assert store.claim([key(1)], b"me", 30) == {key(1)}
    assert store.claim([key(2)], b"dead", 0.2) == {key(2)}
    time.sleep(0.3)
    assert store.claim([key(1), key(2)], b"you", 30) == {key(2)}


def test_a_lease_is_renewed(store: Store) -> None:
    """An owner that claims again what it has keeps it for the new time, and one release ends it."""
    store.claim([key(1), key(2)], b"me", 0.2)
    assert store.claim([key(1)], b"me", 30) == {key(1)}
    time.sleep(0.3)
    assert store.claim([key(1), key(2)], b"you", 30) == {key(2)}
    store.release([key(1)], b"me")
    assert store.claim([key(1)], b"you", 30) == {key(1)}


def test_a_lease_lasts_as_it_was_asked_for(store: Store) -> None:
    """A shorter or longer claim of other keys by the same owner does not change how long a lease lasts."""
    store.claim([key(1)], b"me", 30)
    store.claim([key(2)], b"me", 0.2)
    store.claim([key(3)], b"she", 0.2)
    store.claim([key(4)], b"she", 30)
    time.sleep(0.3)
    free = store.claim([key(1), key(2), key(3), key(4)], b"you", 30)
    assert key(1) not in free, "ended early"
    assert free == {key(2), key(3)}


def test_a_lease_is_neither_entry_nor_note(store: Store) -> None:
    """Leases of many keys show nowhere else, and no entry is touched by them."""
    store.put_many(records(1), space=b"s")
    keys = [key(number) for number in range(3_000)]
    assert store.claim(keys, b"me", 60) == set(keys)
    assert store.claim(keys, b"you", 60) == set()
    assert store.get_many(keys) == records(1)
    assert [k for k, _, _ in store.scan()] == [key(1)]
    assert (held(store), accounts(store)) == ({b"s": (1, 60)}, {})
    store.release(keys, b"me")
    assert store.claim(keys, b"you", 60) == set(keys)


# Closing


def test_a_closed_store_opens_again(store: Store) -> None:
    """After close() everything is still there and may be added to; closing twice, or before any use, is allowed."""
    store.close()
    store.put_many(records(1), {b"a": {"hits": 1}}, space=b"s", notes={b"note of the space": b"n"})
    store.close()
    store.close()
    assert store.get_many([key(1), b"note of the space"]) == records(1) | {b"note of the space": b"n"}
    store.put_many(records(2), {b"a": {"hits": 1}}, space=b"s")
    assert (held(store), accounts(store)) == ({b"s": (2, 120)}, {b"a": {"hits": 2}})


# Threads


def test_threads_at_once(store: Store) -> None:
    """Eight threads that put, get, count and delete at once lose nothing, mix nothing up and count right."""
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(12):
            mine = range(1_000 * thread + 10 * turn, 1_000 * thread + 10 * turn + 10)
            store.put_many(records(*mine, turn), {b"account": {"requests": 1}}, space=b"%d" % (thread % 2))
            got = store.get_many([key(number) for number in (*mine, turn, 999_999)])
            assert got == records(*mine, turn)
            assert store.delete_many([key(mine[0])]) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(1, 9)))
    assert accounts(store) == {b"account": {"requests": 96}}
    entries = list(store.scan())
    assert len(entries) == len({k for k, _, _ in entries}) == 8 * 12 * 9 + 12
    counted = Counter(space for _, _, space in entries)
    assert held(store) == {space: (count, count * 60) for space, count in counted.items()}


def test_one_owner_of_a_lease_among_threads(store: Store) -> None:
    """Of eight threads that claim the same keys at once, each key goes to exactly one."""
    keys = [key(number) for number in range(50)]
    start = threading.Barrier(8)

    def claim(thread: int) -> set[bytes]:
        start.wait()
        return store.claim(keys[thread:] + keys[:thread], b"%d" % thread, 60)

    with ThreadPoolExecutor(8) as pool:
        given = Counter(k for got in pool.map(claim, range(8)) for k in got)
    assert given == Counter(keys)


# Eviction

SIZE = 4_200
LIMIT = 4 << 20


def test_without_a_limit_nothing_goes(store: Store) -> None:
    """size_limit=None never evicts."""
    for start in range(0, 3_000, 500):
        store.put_many(records(*range(start, start + 500), size=SIZE), space=b"s")
    assert held(store) == {b"s": (3_000, 3_000 * SIZE)}
    assert dict(store.events()) == {}


def test_the_oldest_go_first(make: Make) -> None:
    """Beyond its limit a store drops what was stored longest ago, tells how many, and counts what is left."""
    store = make(LIMIT)
    for start in range(0, 3_000, 100):
        space = b"odd" if start % 200 else b"even"
        store.put_many(records(*range(start, start + 100), size=SIZE), {b"a": {"requests": 1}}, space=space)
        assert store.get_many([key(start + 99)]), "what was put last was evicted for itself"
    kept = [number for number in range(3_000) if store.get_many([key(number)])]
    assert kept == list(range(kept[0], 3_000)), "younger ones went before older ones"
    assert 0.7 * LIMIT < len(kept) * SIZE <= LIMIT
    assert dict(store.events()) == {"evicted": 3_000 - len(kept)}
    assert dict(store.events()) == {}, "told twice"
    odd = sum(number // 100 % 2 for number in kept)
    assert held(store) == {b"odd": (odd, odd * SIZE), b"even": (len(kept) - odd, (len(kept) - odd) * SIZE)}
    assert {k for k, _, _ in store.scan()} == {key(number) for number in kept}
    assert accounts(store) == {b"a": {"requests": 30}}


def test_a_replaced_record_is_young_again(make: Make) -> None:
    """What was fetched anew counts as stored now, not as stored when it was first."""
    store = make(LIMIT)
    for start in range(0, 900, 100):
        store.put_many(records(*range(start, start + 100), size=SIZE), space=b"s")
    store.put_many(records(0, size=SIZE), space=b"s")
    for start in range(900, 1_300, 100):
        store.put_many(records(*range(start, start + 100), size=SIZE), space=b"s")
    assert list(store.get_many([key(0), key(1), key(2)])) == [key(0)]


def test_notes_and_accounts_are_never_evicted(make: Make) -> None:
    """Eviction takes entries only: notes, pins and accounts stay however old they are."""
    store = make(LIMIT)
    store.put_many({}, {b"a": {"hits": 1}}, notes={b"note of the space": b"n"}, pin=(b"the pin of a space", b"8"))
    for start in range(0, 2_000, 500):
        store.put_many(records(*range(start, start + 500), size=SIZE), space=b"s")
    assert sum(store.events().values()) > 0
    assert store.get_many([b"note of the space", b"the pin of a space"]) == {
        b"note of the space": b"n",
        b"the pin of a space": b"8",
    }
    assert accounts(store) == {b"a": {"hits": 1}}


# Any sequence

NUMBERS = st.integers(0, 11)
SPACES = st.sampled_from([b"", b"a", b"b"])
NOTES = [b"a note of the space %d" % number for number in range(3)]


class Machine(RuleBasedStateMachine):
    """A store beside plain dicts that are told the same."""

    made: Callable[[Path, int | None], Store]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.made(Path(self.folder.name), None)
        self.records: dict[bytes, tuple[bytes, bytes]] = {}
        self.notes: dict[bytes, bytes] = {}
        self.accounts: dict[bytes, Counter[str]] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(
        put=st.dictionaries(NUMBERS.map(key), st.binary(max_size=80), max_size=6),
        space=SPACES,
        usage=st.dictionaries(
            st.sampled_from([b"x", b"y"]), st.dictionaries(st.sampled_from(["hits", "misses"]), st.integers(0, 9))
        ),
        notes=st.dictionaries(st.sampled_from(NOTES), st.binary(max_size=9)),
    )
    def put(
        self, put: dict[bytes, bytes], space: bytes, usage: dict[bytes, dict[str, int]], notes: dict[bytes, bytes]
    ) -> None:
        self.store.put_many(put, usage, space=space, notes=notes)
        self.records |= {name: (value, space) for name, value in put.items()}
        self.notes |= notes
        for account, counts in usage.items():
            self.accounts.setdefault(account, Counter()).update(counts)

    @rule(numbers=st.lists(NUMBERS), notes=st.lists(st.sampled_from(NOTES)))
    def delete(self, numbers: list[int], notes: list[bytes]) -> None:
        keys = [key(number) for number in numbers] + notes
        there = {name for name in keys if name in self.records or name in self.notes}
        assert self.store.delete_many(keys) == len(there)
        for name in there:
            self.records.pop(name, None)
            self.notes.pop(name, None)

    @rule(numbers=st.lists(NUMBERS), notes=st.lists(st.sampled_from(NOTES)))
    def get(self, numbers: list[int], notes: list[bytes]) -> None:
        got = self.store.get_many([key(number) for number in numbers] + notes)
        assert got == {
            **{key(number): self.records[key(number)][0] for number in numbers if key(number) in self.records},
            **{name: self.notes[name] for name in notes if name in self.notes},
        }

    @rule(value=st.sampled_from([b"8", b"16"]))
    def pin(self, value: bytes) -> None:
        if self.notes.get(NOTES[0], value) == value:
            self.store.put_many({}, pin=(NOTES[0], value))
            self.notes[NOTES[0]] = value
        else:
            with pytest.raises(PinConflict):
                self.store.put_many({key(0): b"never"}, {b"x": {"hits": 1}}, space=b"a", pin=(NOTES[0], value))

    @rule()
    def close(self) -> None:
        self.store.close()

    @invariant()
    def totals_are_right(self) -> None:
        sizes: dict[bytes, tuple[int, int]] = {}
        for value, space in self.records.values():
            entries, size = sizes.get(space, (0, 0))
            sizes[space] = entries + 1, size + len(value)
        assert held(self.store) == sizes
        assert accounts(self.store) == {account: dict(counts) for account, counts in self.accounts.items()}
        assert {k: (r, space) for k, r, space in self.store.scan()} == self.records


@pytest.mark.parametrize("kind", sorted(STORES))
def test_any_sequence(kind: str) -> None:
    """After any sequence of calls a store holds what plain dicts would hold, and its totals say so."""

    class MachineOf(Machine):
        made = staticmethod(STORES[kind])

    examples = settings.default.max_examples // 2 if settings.default else 50
    run_state_machine_as_test(
        MachineOf, settings=settings(max_examples=examples, stateful_step_count=15, deadline=None)
    )
