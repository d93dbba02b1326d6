"""Packs: what was written comes back, whatever happened to the file is found, and nothing unproved comes in."""

from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache.codec import Entry, seal_entry, seal_note
from embcache.keys import encode_space, make_space, note_key
from embcache.stores import MemoryStore
from embcache.stores.exchange import Imported, entries_under, import_pack, pinned
from embcache.stores.pack import MAGIC, Packed, PackError, PackSpace, PackWriter, read_pack, write_pack

from tests.reference import golden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from embcache.types import Space

SPACE, OTHER = make_space("novita", "m", "base64"), make_space("novita", "m", "base64", epoch="autumn")
DIMS = 3


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()[:16]


def record(number: int, *, created: int = 1_770_000_000, dims: int = DIMS, tokens: int | None = 7) -> bytes:
    row = struct.pack(f"<{dims}f", *[float(number)] * dims)
    return seal_entry(
        sha256(b"text %d" % number).digest(), row, Entry(dims, "told", tokens, exact=True, created=created)
    )


def packed(rows: Mapping[bytes, bytes], space: Space = SPACE, dims: int | None = DIMS) -> bytes:
    """A pack of these records, all of one space."""
    name = encode_space(space)
    return packed_rows([(k, r, name) for k, r in sorted(rows.items())], [PackSpace(name, dims)])


def packed_rows(rows: Sequence[tuple[bytes, bytes, bytes]], spaces: Sequence[PackSpace]) -> bytes:
    file = io.BytesIO()
    writer = PackWriter(file, spaces)
    writer.begin()
    for row in rows:
        writer.add(*row)
    writer.end()
    return file.getvalue()


def read(data: bytes) -> list[Packed]:
    return list(read_pack(io.BytesIO(data)))


def records(*numbers: int, **told: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - as record() takes them
    return {key(number): record(number, **told) for number in numbers}


def imported(store: MemoryStore, data: bytes) -> Imported:
    told = Imported()
    import_pack(io.BytesIO(data), store, told)
    return told


def holding(rows: Mapping[bytes, bytes], space: Space = SPACE, dims: int = DIMS) -> MemoryStore:
    store = MemoryStore()
    pin = note_key(space, "dimensions")
    store.put_many(rows, space=encode_space(space), pin=(pin, seal_note(pin, {"d": dims})))
    return store


def content(store: MemoryStore) -> dict[bytes, bytes]:
    return {k: r for k, r, _ in store.scan()}


# The form


def by_the_page(data: bytes) -> tuple[list[Any], list[Any]]:
    """The spaces and the records of a pack, read as docs/pack-format.md says, by nothing of embcache."""
    assert data[:8] == b"EMBPACK1"
    end, count, index_at, whole = struct.unpack(">8sQQ32s", data[-56:])
    frames: list[tuple[int, bytes, Any]] = []
    proofs, at = b"", 8
    while at < len(data) - 56:
        kind, length, proof = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big"), data[at + 5 : at + 21]
        body = data[at + 21 : at + 21 + length]
        assert sha256(data[at : at + 5] + body).digest()[:16] == proof
        frames.append((at, kind, msgpack.unpackb(body)))
        proofs += proof
        at += 21 + length
    assert at == len(data) - 56
    assert [kind for _, kind, _ in frames] == [b"S", *[b"R"] * (len(frames) - 2), b"I"]
    assert (end, index_at) == (b"EMBPEND1", frames[-1][0])
    assert whole == sha256(b"EMBPACK1" + proofs + data[-48:-32]).digest()
    assert frames[-1][2] == [[rows[0][0], at] for at, _, rows in frames[1:-1]]
    rows = [row for _, _, rows in frames[1:-1] for row in rows]
    assert len(rows) == count
    return frames[0][2], rows


def test_golden() -> None:
    """The golden pack is written and read as it always was; the page alone is enough to read it."""
    told = golden("pack")
    data = bytes.fromhex(told["packs"][0]["pack"])
    spaces = [PackSpace(one["name"].encode(), one["dims"]) for one in told["spaces"]]
    right = [
        Packed(bytes.fromhex(one["key"]), bytes.fromhex(one["record"]), spaces[int(one["space"])])
        for one in told["records"]
    ]
    assert packed_rows([(one.key, one.record, one.space.name) for one in right], spaces) == data
    assert read(data) == right
    names, rows = by_the_page(data)
    assert names == [[space.name, space.dims] for space in spaces]
    assert rows == [[one.key, spaces.index(one.space), one.record] for one in right]


SPACES = [PackSpace(encode_space(SPACE), DIMS), PackSpace(encode_space(OTHER), None)]
ROWS = st.dictionaries(
    st.binary(min_size=16, max_size=16), st.tuples(st.binary(max_size=3_000), st.sampled_from(SPACES)), max_size=150
)


@given(ROWS, st.integers(1, 100_000))
@settings(max_examples=50)
def test_round_trip(rows: dict[bytes, tuple[bytes, PackSpace]], at_once: int) -> None:
    """Whatever records there are come back in order, with their space; by whatever pieces the file is read."""
    data = packed_rows([(k, r, space.name) for k, (r, space) in sorted(rows.items())], SPACES)

    class Drip(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(at_once if size is None or size < 0 else min(size, at_once))

    assert list(read_pack(Drip(data))) == [Packed(k, r, space) for k, (r, space) in sorted(rows.items())]
    by_the_page(data)


def test_a_key_is_found_by_the_index() -> None:
    """Through trailer and index one frame is enough to find a key, so that a pack need not be read as a whole."""
    rows = records(*range(300))
    data = packed(rows)
    index_at = int.from_bytes(data[-40:-32], "big")
    index = msgpack.unpackb(data[index_at + 21 : -56])
    assert len(index) == 5
    for wanted, right in rows.items():
        at = max(offset for first, offset in index if first <= wanted)
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        assert {row[0]: row[2] for row in msgpack.unpackb(data[at + 21 : at + 21 + length])}[wanted] == right


def test_keys_ascend() -> None:
    """A writer given keys out of order, or one twice, says so and writes no such pack."""
    for keys in ([key(2), key(1)], [key(1), key(1)]):
        rows = [(k, b"r", SPACES[0].name) for k in sorted(keys, reverse=True)]
        with pytest.raises(ValueError, match="ascend"):
            packed_rows(rows, SPACES)


# Damage

SOUND = packed(records(*range(70)))
BEFORE = {row.key: row.record for row in read(SOUND)}


def fill(came: dict[bytes, bytes], data: bytes) -> None:
    """Read a pack, and note what comes before it ends."""
    for row in read_pack(io.BytesIO(data)):
        came[row.key] = row.record


def test_cut_anywhere() -> None:
    """A pack that ends early, wherever it does, is an error that says so; what came before is what was written."""
    for end in range(len(SOUND)):
        came: dict[bytes, bytes] = {}
        with pytest.raises(PackError) as caught:
            fill(came, SOUND[:end])
        assert ("cut short" in str(caught.value)) == (end >= len(MAGIC))
        assert came.items() <= BEFORE.items()


@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
@settings(max_examples=500)
def test_a_byte_changed_anywhere(place: int, change: int) -> None:
    """No byte of a pack can change without being found, and nothing that is yielded before is wrong."""
    data = bytearray(SOUND)
    data[place] ^= change
    came: dict[bytes, bytes] = {}
    with pytest.raises(PackError):
        fill(came, bytes(data))
    assert came.items() <= BEFORE.items()


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300)
def test_junk(junk: bytes, is_marked: bool) -> None:
    """Any bytes at all give a PackError and no other exception, and import nothing."""
    store = MemoryStore()
    with pytest.raises(PackError):
        imported(store, (MAGIC if is_marked else b"") + junk)
    assert content(store) == {}


def framed(kind: bytes, value: object) -> bytes:
    body = msgpack.packb(value)
    head = kind + len(body).to_bytes(4, "big")
    return head + sha256(head + body).digest()[:16] + body


def whole(*frames: bytes, count: int = 0, index_at: int | None = None) -> bytes:
    """Frames with a trailer that proves them."""
    data = MAGIC + b"".join(frames)
    at = len(data) - len(frames[-1]) if index_at is None else index_at
    middle = count.to_bytes(8, "big") + at.to_bytes(8, "big")
    proofs = b"".join(frame[5:21] for frame in frames)
    return data + b"EMBPEND1" + middle + sha256(MAGIC + proofs + middle).digest()


NAME = encode_space(SPACE)
S = framed(b"S", [[NAME, 3]])
R = framed(b"R", [[bytes(16), 0, b"r"]])
FIRST = len(MAGIC) + len(S)


def test_what_the_next_is_about_is_sound() -> None:
    """The pack that is bent below is a pack before it is."""
    assert read(whole(S, R, framed(b"I", [[bytes(16), FIRST]]), count=1)) == [
        Packed(bytes(16), b"r", PackSpace(NAME, 3))
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.sampled_from("SRI"))
def test_sealed_and_out_of_form(value: object, kind: str) -> None:
    """A frame that proves itself and holds something else is a PackError, whatever it holds."""
    frames = {"S": S, "R": R, "I": framed(b"I", [[bytes(16), FIRST]])}
    if value in ([], [[bytes(16), FIRST]]):
        return
    frames[kind] = framed(kind.encode(), value)
    with pytest.raises(PackError):
        read(whole(*frames.values(), count=1))


@pytest.mark.parametrize(
    "data",
    [
        whole(S, framed(b"I", []), count=1),
        whole(S, framed(b"I", []), index_at=0),
        whole(S, framed(b"I", [])) + b"\0",
        whole(framed(b"I", [])),
        whole(S, S, framed(b"I", [])),
        whole(S, R, framed(b"I", []), count=1),
        whole(S, framed(b"R", []), framed(b"I", [])),
        whole(S, R, R, framed(b"I", [[bytes(16), FIRST], [bytes(16), FIRST + len(R)]]), count=2),
        whole(S, framed(b"R", [[bytes(16), 1, b"r"]]), framed(b"I", [[bytes(16), FIRST]]), count=1),
        whole(S, framed(b"R", [[bytes(15), 0, b"r"]]), framed(b"I", [[bytes(15), FIRST]]), count=1),
        whole(framed(b"S", [[NAME, 0]]), framed(b"I", [])),
        whole(framed(b"S", [[NAME, True]]), framed(b"I", [])),
        whole(framed(b"S", [["a text", 3]]), framed(b"I", [])),
        MAGIC + b"S" + b"\xff\xff\xff\xff" + bytes(100),
        b"EMBPACK2" + SOUND[8:],
    ],
)
def test_packs_that_are_none(data: bytes) -> None:
    """Counts, order, kinds, numbers and lengths that do not fit are found, each proof in itself being right."""
    with pytest.raises(PackError):
        read(data)


# On the way in


def test_into_an_empty_store() -> None:
    """Entries come in with their spaces, and their lengths are pinned as if they had been bought here."""
    mine, other = records(1, 2, 3), {key(9): record(9, dims=5)}
    names = [PackSpace(encode_space(SPACE), 3), PackSpace(encode_space(OTHER), None)]
    rows = [*((k, r, names[0].name) for k, r in mine.items()), *((k, r, names[1].name) for k, r in other.items())]
    store = MemoryStore()
    told = imported(store, packed_rows(sorted(rows), names))
    assert told == Imported(added=4)
    assert sorted(store.scan()) == sorted(rows)
    assert (pinned(store, SPACE), pinned(store, OTHER)) == (3, 5)
    assert store.totals().accounts == {}
    assert imported(store, packed_rows(sorted(rows), names)) == Imported(there=4)


def test_the_older_stays() -> None:
    """Of two entries for one input the one that was bought earlier is there afterwards, whichever came first."""
    old, new = records(1, created=1_000), records(1, created=2_000)
    for first, second, told in (
        (old, new, Imported(there=1)),
        (new, old, Imported(replaced=1)),
        (old, old, Imported(there=1)),
    ):
        store = holding(first)
        assert imported(store, packed(second)) == told
        assert content(store) == old
    same_age = records(1, created=1_000, tokens=99)
    store = holding(old)
    assert imported(store, packed(same_age)) == Imported(there=1)
    assert content(store) == old


def test_a_damaged_entry_is_healed_and_another_texts_is_not_touched() -> None:
    """What is damaged here is replaced; what proves itself as another input's is not ours to judge."""
    store = holding({key(1): record(1)[:-1] + b"\xff", key(2): record(99)})
    assert imported(store, packed(records(1, 2, created=5))) == Imported(replaced=1, there=1)
    assert content(store) == {key(1): record(1, created=5), key(2): record(99)}


def test_what_fails_its_proof_stays_out() -> None:
    """A record that is sealed in its frame and fails its own proof is refused by name; the others come in."""
    good = records(1, 2)
    nan = seal_entry(bytes(32), struct.pack("<3f", 1.0, float("nan"), 2.0), Entry(3, "m", 1, exact=True, created=1))
    bad = {key(3): b"", key(4): record(4)[:-1], key(5): b"ECV2" + record(5)[4:], key(6): nan, key(7): record(7, dims=4)}
    store = MemoryStore()
    told = imported(store, packed(good | bad))
    assert told == Imported(added=2, refused=Counter(corrupt=3, bad_version=1, dimensions=1))
    assert content(store) == good


@pytest.mark.parametrize("told_dims", [4, None])
def test_another_length_than_here(told_dims: int | None) -> None:
    """A space that is pinned to another length here is refused as a whole, and the others of the pack come in."""
    store = holding(records(1))
    mine, other = records(*range(100, 110), dims=4), records(*range(200, 210), dims=4)
    names = [PackSpace(encode_space(SPACE), told_dims), PackSpace(encode_space(OTHER), 4)]
    rows = [*((k, r, names[0].name) for k, r in mine.items()), *((k, r, names[1].name) for k, r in other.items())]
    told = imported(store, packed_rows(sorted(rows), names))
    assert told == Imported(added=10, refused=Counter(dimensions=10))
    assert content(store) == records(1) | other


def test_another_length_than_asked_for() -> None:
    """A space says which length it asks for: what is longer is not its entry, whatever the pack tells."""
    asking = make_space("novita", "m", "base64", dimensions=4)
    store = MemoryStore()
    assert imported(store, packed(records(1, 2), asking)) == Imported(refused=Counter(dimensions=2))
    assert imported(store, packed(records(1, 2), asking, dims=None)) == Imported(refused=Counter(dimensions=2))
    assert imported(store, packed(records(1, dims=4), asking, dims=4)) == Imported(added=1)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"s",
        b"[]",
        b'"abcd"',
        b'["novita","m","base64"]',
        b'["novita", "m", "base64", []]',
        b'["novita",1,"base64",[]]',
        b'["novita","m","base64",[["epoch"]]]',
        b'["novita","m","base64",[["dimensions","1e999"]]]',
        b'["novita","m","base64",[["dimensions","x"]]]',
        b'["novita","\\ud800","base64",[]]',
        b"[" * 5_000,
        b"\xff",
    ],
)
def test_a_space_of_no_name_of_ours(name: bytes) -> None:
    """A space that is not spelled as we spell one is refused, and never makes the figures unreadable."""
    store = MemoryStore()
    told = imported(store, packed_rows([(key(1), record(1), name)], [PackSpace(name, 3)]))
    assert told == Imported(refused=Counter(space=1))
    assert store.totals().spaces == {}


def test_what_came_before_the_damage_is_in() -> None:
    """Of a pack that is damaged at its end, whole commits of proved records are in, and nothing else."""
    rows = records(*range(1_200))
    data = bytearray(packed(rows))
    data[-1] ^= 1
    store = MemoryStore()
    told = Imported()
    with pytest.raises(PackError):
        import_pack(io.BytesIO(bytes(data)), store, told)
    assert told.added == len(content(store)) == 1_000
    assert content(store).items() <= rows.items()


def test_there_and_back() -> None:
    """What is exported of a store and imported into another is the same, and exports to the same bytes."""
    rows = records(*range(500))
    data = packed(rows)
    store = MemoryStore()
    imported(store, data)
    left: Counter[str] = Counter()
    out = entries_under(store, PackSpace(encode_space(SPACE), 3), [*rows, key(9_999)], left)
    assert packed_rows([row[:3] for row in out], [PackSpace(encode_space(SPACE), 3)]) == data
    assert not left


def test_damaged_entries_do_not_go_out() -> None:
    """What does not prove itself is left out and counted by name."""
    store = holding({key(1): record(1), key(2): b"junk", key(3): record(3, dims=4)})
    left: Counter[str] = Counter()
    out = list(entries_under(store, PackSpace(encode_space(SPACE), 3), [key(1), key(2), key(3)], left))
    assert [row.key for row in out] == [key(1)]
    assert left == Counter(corrupt=1, dimensions=1)


# The file


def test_the_file(tmp_path: Path) -> None:
    """A pack is private whatever the umask, appears when it is whole, and replaces what had its name."""
    path = tmp_path / "a.pack"
    path.write_bytes(b"what was there")
    path.chmod(0o644)
    umask = os.umask(0)
    try:
        assert write_pack(path, SPACES, [(key(1), b"r", SPACES[0].name)]) == 1
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as file:
        assert [row.record for row in read_pack(file)] == [b"r"]


def test_a_write_that_fails(tmp_path: Path) -> None:
    """Where writing ends early what had the name stays, and nothing is left beside it."""
    path = tmp_path / "a.pack"
    path.write_bytes(b"what was there")

    def rows() -> Iterator[tuple[bytes, bytes, bytes]]:
        yield key(1), b"r", SPACES[0].name
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        write_pack(path, SPACES, rows())
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a.pack", b"what was there")]


def test_memory_is_flat(tmp_path: Path) -> None:
    """40,000 records of 4 KB are written and read with a few MB of memory: nothing holds them all."""
    path = tmp_path / "a.pack"
    rows = ((number.to_bytes(16, "big"), bytes(4_096), SPACES[0].name) for number in range(1, 40_001))
    tracemalloc.start()
    try:
        assert write_pack(path, SPACES, rows) == 40_000
        with path.open("rb") as file:
            assert sum(1 for _ in read_pack(file)) == 40_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 160_000_000
    assert peak < 8 << 20
