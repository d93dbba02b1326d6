"""Records: what was stored comes back bit for bit or not at all, whatever became of its bytes meanwhile."""

from __future__ import annotations

import struct
import tracemalloc
from collections import Counter
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import codec, keys
from embcache.codec import Entry, Opened

from tests import reference

RECORDS = reference.golden("records")
MINE, OTHER = b"\x01" * 32, b"\x02" * 32

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Few different ones, so that what precedes the vector is often alike: it is then understood once for many.
ENTRIES = st.tuples(
    st.sampled_from(["", "m", "baai/bge-m3"]) | NAMES,
    st.none() | st.sampled_from([0, 1, 127, 128]) | st.integers(0, 2**40),
    st.sampled_from([0, 1_770_000_000, 1_770_000_001]) | st.integers(0, 2**33),
    st.booleans(),
)


# Those that msgpack spells in one, three, five and nine bytes, and the last and first of each.
TIMES = st.sampled_from([0, 127, 128, 2**16 - 1, 2**16, 1_770_000_000, 1_770_000_001, 2**32 - 1, 2**32, 2**33])


def rows(dims: int) -> st.SearchStrategy[bytes]:
    return st.lists(FLOATS, min_size=dims, max_size=dims).map(lambda row: struct.pack(f"<{dims}f", *row))


def make(row: bytes, told: tuple[str, int | None, int, bool]) -> Entry:
    model, tokens, created, exact = told
    return Entry(len(row) // 4, model, tokens, exact, created)


def opened(record: bytes, digest: bytes = MINE, dims: int | None = None) -> Opened:
    """What comes of one record; the short way for one must find the same."""
    found = codec.open_entries([record], [digest], dims)
    expected = dims or (found.entries[0].dims if found.hits else 2)
    short = codec.open_entry(record, digest, expected, {})
    told = [] if short is None else [(short[0].tobytes(), short[0].flags.writeable, short[1])]
    assert told == [(v.tobytes(), True, e) for v, e in zip(found.vectors, found.entries, strict=True)]
    return found


def fault_of(record: bytes, digest: bytes = MINE, dims: int | None = None) -> str:
    """The one counter that a record which does not prove itself moves; it must give no vector."""
    found = opened(record, digest, dims)
    assert (found.hits, found.entries, len(found.vectors)) == ([], [], 0)
    assert sum(found.faults.values()) == 1
    return next(iter(found.faults))


def body(**changes: reference.Packable) -> dict[str, reference.Packable]:
    return {"d": 2, "m": "m", "n": 7, "t": 1, "x": False, "v": struct.pack("<2f", 1.0, 2.0), **changes}


RECORD = reference.seal(MINE, reference.pack(body()))


# What was published


@pytest.mark.parametrize("vector", RECORDS["entries"], ids=lambda vector: vector["name"])
def test_golden_entries(vector: dict[str, Any]) -> None:
    """An entry is written as the golden file and the reference have it, and read from these bytes as what it was."""
    digest, row, record = (bytes.fromhex(vector[name]) for name in ("digest", "vector", "record"))
    told = {name: vector[name] for name in ("model", "tokens", "created", "exact")}
    entry = Entry(dims=vector["dims"], **told)
    assert reference.seal_entry(digest, row, **told) == record
    assert codec.seal_entry(digest, row, entry) == record
    for dims in (None, entry.dims):
        found = opened(record, digest, dims)
        assert (found.hits, found.entries, found.vectors.tobytes(), found.faults) == ([0], [entry], row, Counter())


@pytest.mark.parametrize("vector", RECORDS["notes"], ids=lambda vector: vector["name"])
def test_golden_notes(vector: dict[str, Any]) -> None:
    """A note is sealed as the golden file and the reference have it, and read from these bytes as what it was."""
    key, record = bytes.fromhex(vector["key"]), bytes.fromhex(vector["record"])
    assert reference.seal_note(key, vector["note"]) == record
    assert codec.seal_note(key, vector["note"]) == record
    assert codec.open_note(key, record) == vector["note"]


@pytest.mark.parametrize("vector", RECORDS["faults"], ids=lambda vector: vector["name"])
def test_golden_faults(vector: dict[str, Any]) -> None:
    """What proves nothing is a miss under the name that the golden file gives it."""
    assert fault_of(bytes.fromhex(vector["record"]), bytes.fromhex(vector["digest"]), vector["dims"]) == vector["fault"]


@pytest.mark.parametrize(
    "vector", [*RECORDS["entries"], *RECORDS["faults"], *RECORDS["notes"]], ids=lambda vector: vector["name"]
)
def test_examining(vector: dict[str, Any]) -> None:
    """Without knowing whose an entry should be, all else is found that is wrong with it; a note is no entry."""
    told = vector.get("fault", None if "vector" in vector else "corrupt")
    own = {"another input's": None, "sealed: other dimensions than the space": None}
    assert codec.examine(bytes.fromhex(vector["record"])) == own.get(vector["name"], told)


def test_documented_example() -> None:
    """The example of docs/entry-format.md is a golden record, of the golden input that docs/key-format.md shows."""
    vector = next(vector for vector in RECORDS["entries"] if vector["name"] == "the worked example")
    assert reference.example("entry-format.md").hex() == vector["record"]
    assert vector["digest"] == keys.digest_of(reference.example("key-format.md")).hex()


# What goes in comes out


@given(st.data(), st.integers(1, 40))
def test_round_trip(data: st.DataObject, dims: int) -> None:
    """Any finite float32 rows, with whatever is kept beside them, come back bit for bit and in order."""
    stored = data.draw(st.lists(st.tuples(rows(dims), ENTRIES), max_size=5))
    digests = [bytes([number]) * 32 for number in range(len(stored))]
    entries = [make(row, told) for row, told in stored]
    sealed = [codec.seal_entry(*each) for each in zip(digests, (row for row, _ in stored), entries, strict=True)]
    for asked in (None, dims):
        found = codec.open_entries(sealed, digests, asked)
        assert found.hits == list(range(len(stored)))
        assert found.entries == entries
        assert found.vectors.tobytes() == b"".join(row for row, _ in stored)
        assert found.vectors.shape == (len(stored), dims if stored or asked else 0)
        assert found.faults == {}


@given(rows(3), ENTRIES)
def test_records_agree_with_the_reference(row: bytes, told: tuple[str, int | None, int, bool]) -> None:
    """Library and reference seal the same bytes, whatever is kept beside the vector."""
    model, tokens, created, exact = told
    again = reference.seal_entry(MINE, row, model=model, tokens=tokens, created=created, exact=exact)
    assert codec.seal_entry(MINE, row, make(row, told)) == again


def test_vectors_are_the_callers_own() -> None:
    """Opened vectors may be written to, and are no view of the record they came from."""
    kept = bytes(bytearray(RECORD))
    found = opened(RECORD)
    found.vectors[:] = 0
    assert kept == RECORD
    assert opened(RECORD).vectors.tolist() == [[1.0, 2.0]]


PLAIN = st.none() | st.booleans() | st.integers(0, 2**64 - 1) | NAMES | st.binary()
NOTES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"a": PLAIN, "": PLAIN}, optional={"b": PLAIN, "c": st.dictionaries(NAMES, PLAIN, max_size=15)}
)


@given(st.binary(), NOTES)
def test_notes_round_trip(key: bytes, note: dict[str, Any]) -> None:
    """A note comes back as it was, under its own key and no other."""
    record = codec.seal_note(key, note)
    assert record == reference.seal_note(key, note)
    assert codec.open_note(key, record) == note
    assert codec.open_note(key + b"\0", record) is None
    assert codec.open_note(key, None) is None


@pytest.mark.parametrize("inner", [0, 3, 4])
def test_maps_in_a_note(inner: int) -> None:
    """A note of more than four maps, itself counted, is no note of ours."""
    note: dict[str, reference.Packable] = {str(number): {"a": number} for number in range(inner)}
    opened_note = codec.open_note(b"key", reference.seal_note(b"key", note))
    assert opened_note == (note if inner < 4 else None)


# What was damaged


@given(st.binary(max_size=200), st.sampled_from([b"", b"ECV", b"ECV1"]), st.none() | st.integers(1, 4))
def test_junk_is_a_miss(junk: bytes, start: bytes, dims: int | None) -> None:
    """Any bytes that nobody sealed are a miss: damage, or another version if that is what they say they are."""
    record = start + junk
    other_version = record[:3] == b"ECV" and record[3:4].isalnum() and record[3:4] != b"1"
    assert fault_of(record, dims=dims) == ("bad_version" if other_version else "corrupt")
    assert codec.open_note(b"key", record) is None


@given(st.binary(max_size=200), st.none() | st.integers(1, 4))
def test_sealed_junk_is_a_miss(junk: bytes, dims: int | None) -> None:
    """Bytes that are no entry are a miss even where checksum and identity are right."""
    assert fault_of(reference.seal(MINE, junk), dims=dims) == "corrupt"


@pytest.mark.parametrize("cut", range(len(RECORD)))
def test_truncated(cut: int) -> None:
    """An entry that ends early, wherever, is a miss."""
    assert fault_of(RECORD[:cut]) == "corrupt"
    assert fault_of(RECORD[: len(RECORD) - cut] + bytes(cut) if cut else RECORD + b"\0") == "corrupt"


def test_flipped_bits() -> None:
    """An entry or note with any single bit flipped is a miss: never another vector, never taken for another input's."""
    key, note = b"note:" + MINE, reference.seal_note(b"note:" + MINE, {"d": 1024})
    for bit in range(8 * len(RECORD)):
        damaged = bytearray(RECORD)
        damaged[bit // 8] ^= 1 << bit % 8
        version_is_another = bit // 8 == 3 and damaged[3:4].isalnum()
        assert fault_of(bytes(damaged)) == ("bad_version" if version_is_another else "corrupt")
    for bit in range(8 * len(note)):
        damaged = bytearray(note)
        damaged[bit // 8] ^= 1 << bit % 8
        assert codec.open_note(key, bytes(damaged)) is None


@given(rows(3), ENTRIES, st.binary(min_size=32, max_size=32))
def test_entry_of_another_input(row: bytes, told: tuple[str, int | None, int, bool], digest: bytes) -> None:
    """A sound entry found where another input's should be is a miss, and is told from damage."""
    record = codec.seal_entry(digest, row, make(row, told))
    assert fault_of(record, bytes([digest[0] ^ 1]) + digest[1:]) == "wrong_text"


def test_entry_of_a_colliding_input() -> None:
    """Of two texts made to share a key, the entry of the one is never served for the other."""
    space = keys.make_space("novita", "baai/bge-m3", "base64")
    one, other = reference.colliding_texts(space.provider, space.model, space.format, space.fields)
    (key, same), (mine, others) = keys.fingerprints(space, "text", [one.encode(), other.encode()])
    assert key == same
    record = codec.seal_entry(mine, struct.pack("<f", 1.0), Entry(1, "m", 1, exact=True, created=0))
    assert opened(record, mine).hits == [0]
    assert fault_of(record, others) == "wrong_text"


@pytest.mark.parametrize("version", "023456789AZaz")
def test_later_versions(version: str) -> None:
    """A record of another version is told from damage, whatever its form."""
    assert fault_of(b"ECV" + version.encode() + RECORD[4:]) == "bad_version"
    assert fault_of(b"ECV" + version.encode()) == "bad_version"
    assert codec.open_note(b"key", b"ECV" + version.encode() + reference.seal_note(b"key", {})[4:]) is None


# What was sealed all the same


@pytest.mark.parametrize(
    "wrong",
    [
        body(d=True, v=struct.pack("<f", 1.0)),
        body(d=0, v=b""),
        body(d=1),
        body(d=3),
        body(d="2"),
        body(d=None),
        body(d=2**62),
        body(m=b"m"),
        body(m=None),
        body(n="7"),
        body(n=True),
        body(t=None),
        body(t=True),
        body(x=0),
        body(x=None),
        body(v="12345678"),
        body(v=None),
        body(v=b"1234567"),
        body(y=1),
        {name: value for name, value in body().items() if name != "m"},
        dict(sorted(body().items())),
        {name.upper(): value for name, value in body().items()},
        {},
    ],
    ids=repr,
)
def test_sealed_with_wrong_fields(wrong: dict[str, reference.Packable]) -> None:
    """An entry whose fields are not precisely those of the format is a miss."""
    for dims in (None, 2):
        assert fault_of(reference.seal(MINE, reference.pack(wrong)), dims=dims) == "corrupt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_sealed_but_not_finite(value: float, place: int) -> None:
    """An entry that holds NaN or an infinite value is a miss, and its neighbours are not."""
    row = [1.0, 2.0]
    row[place] = value
    wrong = reference.seal(MINE, reference.pack(body(v=struct.pack("<2f", *row))))
    assert fault_of(wrong) == "corrupt"
    found = codec.open_entries([RECORD, wrong, RECORD], [MINE] * 3, None)
    assert found.hits == [0, 2]
    assert len(found.entries) == 2
    assert found.vectors.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert found.faults == {"corrupt": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(reference.pack(body()) + b"\xc0", id="something behind"),
        pytest.param(reference.pack(body()) * 2, id="the same twice"),
        pytest.param(
            b"\x87" + reference.pack(body())[1:] + b"\xa1d\xce\0\0\0\2", id="a name twice, the vector not last"
        ),
        pytest.param(b"\x87" + reference.pack(body())[1:] + b"\xa1v\xc4\x08" + bytes(8), id="two vectors"),
        pytest.param(b"\x87\xa1d\x02" + reference.pack(body())[1:], id="the first name twice"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xd4\x01\x00"), id="an extension type"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xc7\x00\x05"), id="an empty extension type"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xd6\xff" + bytes(4)), id="a timestamp"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xff"), id="negative tokens"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xca" + bytes(4)), id="tokens as a float"),
        pytest.param(reference.pack(body()).replace(b"\xa1m", b"\xa1\xff"), id="a name that is not UTF-8"),
        pytest.param(reference.pack(body()).replace(b"\xa1d", b"\x01", 1), id="a number as name"),
        pytest.param(b"\x91" + reference.pack(body()), id="a list"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\xcc\x07"), id="a longer form of a number"),
        pytest.param(b"\xde\0\6" + reference.pack(body())[1:], id="a longer form of a length"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\x90"), id="an array"),
        pytest.param(reference.pack(body()).replace(b"\xa1n\x07", b"\xa1n\x80"), id="a map"),
    ],
)
def test_sealed_with_wrong_msgpack(wrong: bytes) -> None:
    """An entry that msgpack could read in some way, but not as one map of the format and nothing else, is a miss."""
    assert wrong != reference.pack(body())
    for dims in (None, 2):
        assert fault_of(reference.seal(MINE, wrong), dims=dims) == "corrupt"


def _array(length: int, item: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", length) + item * length


def _tree(depth: int) -> bytes:
    inner = _tree(depth - 1) if depth else b"\xc0"
    return b"\x86" + b"".join(b"\xa1%c" % name + inner for name in b"dmntxv")


HUGE = b"\xff\xff\xff\xff"
BOMBS = {
    "arrays in arrays": b"\x91" * 1_000_000,
    "maps in maps": b"\x81\xa1d" * 300_000,
    "an array of 4 billion": b"\x86\xa1d\xdd" + HUGE + bytes(900_000),
    "a map of 4 billion": b"\xdf" + HUGE + b"\xa1d\xc0" * 300_000,
    "a str of 4 GB": b"\x86\xa1d\xdb" + HUGE + bytes(900_000),
    "a bin of 4 GB": b"\x86\xa1d\xc6" + HUGE + bytes(900_000),
    "an extension of 4 GB": b"\x86\xa1d\xc9" + HUGE + bytes(900_000),
    "a million empty maps": b"\x86\xa1d" + _array(1_000_000, b"\x80"),
    "a thousand times a thousand empty maps": b"\x86\xa1d" + _array(1000, _array(1000, b"\x80")),
    "a tree of maps": _tree(6),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_s03_sealed_bombs(bomb: bytes) -> None:
    """A record made to fill the memory, sealed as it should be, is a miss that takes no more than a few megabytes."""
    entry, note = reference.seal(MINE, bomb), reference.seal(sha256(b"key").digest(), bomb)
    assert len(entry) <= codec.MAX_RECORD
    tracemalloc.start()
    try:
        fault, told = fault_of(entry), codec.open_note(b"key", note)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (fault, told) == ("corrupt", None)
    assert peak < 5 << 20


def test_largest_record() -> None:
    """A record of more than a mebibyte is damage, one of just as much is not."""
    row = bytes(4 * ((codec.MAX_RECORD - 80) // 4))
    spare = codec.MAX_RECORD - len(reference.seal(MINE, reference.pack(body(d=len(row) // 4, v=row))))
    fits, too_long = (
        reference.seal(MINE, reference.pack(body(d=len(row) // 4, v=row, m="m" * (1 + spare + more))))
        for more in (0, 1)
    )
    assert (len(fits), len(too_long)) == (codec.MAX_RECORD, codec.MAX_RECORD + 1) == (1_048_576, 1_048_577)
    assert opened(fits).hits == [0]
    assert fault_of(too_long) == "corrupt"


def test_longest_model() -> None:
    """A model's name of more than 4,096 bytes is damage, one of just as many is not."""
    assert opened(reference.seal(MINE, reference.pack(body(m="m" * 4096)))).entries[0].model == "m" * 4096
    assert fault_of(reference.seal(MINE, reference.pack(body(m="m" * 4097)))) == "corrupt"


# Many at once


@settings(max_examples=300)
@given(st.data())
def test_good_among_bad(data: st.DataObject) -> None:
    """Of any mixture of records the sound ones come back, each with its own vector; the others move their counters."""
    kinds = ["good", "good", "wrong_text", "bad_version", "flipped", "other dims", "nan", "junk"]
    records: list[bytes] = []
    digests: list[bytes] = []
    expected: list[tuple[int, bytes, Entry]] = []
    faults: Counter[str] = Counter()
    for number, kind in enumerate(data.draw(st.lists(st.sampled_from(kinds), max_size=8))):
        row, told = data.draw(rows(2)), data.draw(ENTRIES)
        if kind == "nan":
            row = row[:4] + struct.pack("<f", float("nan"))
        if kind == "other dims":
            row = row[:4] if data.draw(st.booleans()) else row + row
        digest = bytes([number]) * 32
        record = codec.seal_entry(digest, row, make(row, told))
        if kind == "flipped":
            record = record[:-1] + bytes([record[-1] ^ 1])
        if kind == "bad_version":
            record = b"ECV2" + record[4:]
        if kind == "junk":
            record = reference.seal(digest, data.draw(st.binary(max_size=30)))
        if kind == "good":
            expected.append((number, row, make(row, told)))
        else:
            faults[kind if kind in {"wrong_text", "bad_version"} else "corrupt"] += 1
        records.append(record)
        digests.append(OTHER[:31] + b"\xff" if kind == "wrong_text" else digest)
    found = codec.open_entries(records, digests, 2)
    told_back = zip(found.hits, (row.tobytes() for row in found.vectors), found.entries, strict=True)
    assert list(told_back) == expected
    assert found.faults == faults
    assert found.vectors.shape == (len(expected), 2)


@given(st.data())
def test_what_was_understood_before_changes_nothing(data: st.DataObject) -> None:
    """Records are read the same by who has read others before, of whatever length, time and form."""
    understood: codec.Understood = {}
    for _ in range(data.draw(st.integers(1, 4))):
        dims = data.draw(st.sampled_from([None, 1, 2]))
        records: list[bytes] = []
        for length, surplus in data.draw(
            st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from([0, 0, 4, 8])), max_size=5)
        ):
            told = data.draw(st.tuples(st.just("m"), st.sampled_from([None, 7]), TIMES, st.booleans()))
            sound = codec.seal_entry(MINE, data.draw(rows(length)), make(bytes(4 * length), told))
            records.append(reference.seal(MINE, sound[44:] + data.draw(st.binary(min_size=surplus, max_size=surplus))))
        fresh = codec.open_entries(records, [MINE] * len(records), dims)
        found = codec.open_entries(records, [MINE] * len(records), dims, understood)
        assert (found.hits, found.entries, found.faults) == (fresh.hits, fresh.entries, fresh.faults)
        assert found.vectors.tobytes() == fresh.vectors.tobytes()


def test_something_behind_a_vector_of_another_length() -> None:
    """Bytes behind a vector are no longer vector, also where all that precedes them was read before."""
    understood: codec.Understood = {}
    short = codec.seal_entry(MINE, struct.pack("<f", 1.0), Entry(1, "m", 7, exact=True, created=1_770_000_000))
    longer = reference.seal(MINE, short[44:] + struct.pack("<f", 2.0))
    assert codec.open_entries([short], [MINE], 1, understood).hits == [0]
    for dims in (1, 2, None):
        assert codec.open_entries([longer], [MINE], dims, understood).faults == {"corrupt": 1}


@pytest.mark.parametrize("time", [0, 1, 127, 128, 2**16 - 1])
def test_a_longer_form_of_the_time(time: int) -> None:
    """A time in more bytes than it needs is damage, also where all that surrounds it was read before."""
    understood: codec.Understood = {}
    sound = codec.seal_entry(MINE, struct.pack("<f", 1.0), Entry(1, "m", 7, exact=True, created=1_770_000_000))
    assert codec.open_entries([sound], [MINE], 1, understood).hits == [0]
    told = sound[44:].replace(struct.pack(">I", 1_770_000_000), struct.pack(">I", time))
    assert len(told) == len(sound[44:])
    assert codec.open_entries([reference.seal(MINE, told)], [MINE], 1, understood).faults == {"corrupt": 1}


def test_what_is_understood_is_bounded() -> None:
    """However many different entries are read, what is remembered of them stays within its bound."""
    understood: codec.Understood = {}
    row = struct.pack("<f", 1.0)
    entries = [Entry(1, "m", number, exact=True, created=1_770_000_000 + number) for number in range(7000)]
    records = [codec.seal_entry(MINE, row, entry) for entry in entries]
    assert codec.open_entries(records, [MINE] * len(records), 1, understood).entries == entries
    assert len(understood) <= codec.MAX_UNDERSTOOD + 2


@pytest.mark.parametrize("first", [1, 2, 3])
def test_mixed_dimensions(first: int) -> None:
    """Where no length is known, the first sound entry sets it; entries of another length are damage then."""
    lengths = [first, 1, 2, 3, first]
    stored = [np.full(dims, dims, dtype="<f4").tobytes() for dims in lengths]
    records = [reference.seal(OTHER, b"\xc0")]
    records += [codec.seal_entry(MINE, row, Entry(len(row) // 4, "m", 1, exact=True, created=0)) for row in stored]
    found = codec.open_entries(records, [MINE] * len(records), None)
    assert found.hits == [1 + place for place, dims in enumerate(lengths) if dims == first]
    assert found.vectors.tolist() == [[float(first)] * first] * 3
    assert found.faults == {"wrong_text": 1, "corrupt": 2}


@pytest.mark.parametrize("dims", [None, 1024])
def test_nothing_to_open(dims: int | None) -> None:
    """No records give no vectors, of the length that is known."""
    found = codec.open_entries([], [], dims)
    assert (found.hits, found.entries, found.faults) == ([], [], Counter())
    assert found.vectors.shape == (0, dims or 0)
    assert found.vectors.dtype == np.float32
