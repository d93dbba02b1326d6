"""Keys: what decides a vector, as bytes; three hands (golden file, reference, library) must agree on them."""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache import keys
from embcache.types import Item, Kind, Space

from tests import reference

if TYPE_CHECKING:
    from random import Random

VECTORS = reference.golden("keys")

# Few letters, so that fields of two examples meet, and with bytes that look like lengths.
TEXTS = st.one_of(st.text("ab\0\x01\x04é", max_size=4), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
PAIRS = st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))
SPACES = st.builds(Space, TEXTS, TEXTS, TEXTS, PAIRS)
IDS = st.lists(st.one_of(st.integers(0, 2), st.integers(0, 2**32 - 1)), max_size=4)
ITEMS = st.one_of(TEXTS, IDS)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def space_of(told: dict[str, Any]) -> Space:
    return Space(
        told["provider"], told["model"], told["format"], tuple((name, value) for name, value in told["fields"])
    )


def spell(space: Space) -> tuple[str, str, str, reference.Fields]:
    return space.provider, space.model, space.format, space.fields


def sort_names(value: object) -> object:
    """The same value with the names of its objects in order, so that two of them look alike."""
    if isinstance(value, dict):
        return {name: sort_names(told) for name, told in sorted(cast("dict[str, object]", value).items())}
    return [sort_names(told) for told in cast("list[object]", value)] if isinstance(value, list) else value


def read_back(preimage: bytes) -> tuple[Space, str, Item]:
    """What a pre-image says, read by the rule alone: this it can only do if no two inputs have the same."""
    assert preimage[:9] == b"embcache\x01"
    fields: list[bytes] = []
    at = 9
    while at < len(preimage):
        (length,) = struct.unpack_from("<Q", preimage, at)
        fields.append(preimage[at + 8 : at + 8 + length])
        assert len(fields[-1]) == length
        at += 8 + length
    provider, model, form, *pairs, kind, payload = fields
    told = [field.decode() for field in pairs]
    space = Space(provider.decode(), model.decode(), form.decode(), tuple(zip(told[::2], told[1::2], strict=True)))
    item = payload.decode() if kind == b"text" else list(struct.unpack(f"<{len(payload) // 4}I", payload))
    return space, kind.decode(), item


@pytest.mark.parametrize("vector", VECTORS["inputs"], ids=lambda vector: vector["name"])
def test_golden_inputs(vector: dict[str, Any]) -> None:
    """Pre-image, key and digest are what the golden file says, and what the reference makes of the format's page."""
    space, item = space_of(vector["space"]), vector["input"]
    told = bytes.fromhex(vector["preimage"]), bytes.fromhex(vector["key"]), bytes.fromhex(vector["digest"])
    again = reference.preimage(*spell(space), item)
    assert (again, reference.key(again), reference.digest(again)) == told
    preimage = keys.preimage(space, item)
    assert (preimage, keys.key_of(preimage), keys.digest_of(preimage)) == told
    assert preimage.endswith(reference.payload(item))


@pytest.mark.parametrize(
    "vector", [vector for vector in VECTORS["inputs"] if vector["settings"]], ids=lambda vector: vector["name"]
)
def test_golden_settings(vector: dict[str, Any]) -> None:
    """What a user sets becomes the space of the golden file, and of the reference."""
    settings = dict(vector["settings"])
    fields = reference.space_fields(settings["dimensions"], settings["extra_body"], settings.get("epoch"))
    assert [list(pair) for pair in fields] == vector["space"]["fields"]
    names = settings.pop("provider"), settings.pop("model"), settings.pop("encoding_format")
    assert keys.make_space(*names, **settings) == space_of(vector["space"])


@pytest.mark.parametrize("vector", VECTORS["spaces"], ids=lambda vector: vector["name"])
def test_golden_space_names(vector: dict[str, Any]) -> None:
    """The name by which a store knows a space is what the golden file and the reference say, and can be read back."""
    space = space_of(vector["space"])
    assert reference.space_name(*spell(space)) == bytes.fromhex(vector["bytes"])
    assert keys.encode_space(space) == bytes.fromhex(vector["bytes"])
    assert keys.decode_space(bytes.fromhex(vector["bytes"])) == space


@pytest.mark.parametrize("vector", VECTORS["notes"], ids=lambda vector: vector["name"])
def test_golden_note_keys(vector: dict[str, Any]) -> None:
    """The key of a note about a space is what the golden file and the reference say."""
    space = space_of(vector["space"])
    assert reference.note_key(*spell(space), vector["note"]) == bytes.fromhex(vector["key"])
    assert keys.note_key(space, vector["note"]) == bytes.fromhex(vector["key"])


def test_documented_example() -> None:
    """The example of docs/key-format.md is a golden vector, and its key and digest are told beside it."""
    vector = next(vector for vector in VECTORS["inputs"] if vector["name"] == "the worked example")
    assert reference.example("key-format.md").hex() == vector["preimage"]
    page = (reference.ROOT / "docs/key-format.md").read_text("utf-8")
    assert re.findall(r"`([0-9a-f]{32,})`", page) == [vector["key"], vector["digest"]]


def test_golden_vectors_are_worth_having() -> None:
    """No two golden inputs share a key, and what can change the key does: format, normal form, kind, each pair."""
    told = VECTORS["inputs"]
    assert len({vector["name"] for vector in told}) == len(told)
    assert len({vector["key"] for vector in told}) == len({vector["digest"] for vector in told}) == len(told)


@given(SPACES, ITEMS)
def test_preimage_can_be_read_back(space: Space, item: Item) -> None:
    """A pre-image says which space, kind and input it was made of, so that no two can have the same."""
    kind = "text" if isinstance(item, str) else "tokens"
    assert read_back(keys.preimage(space, item)) == (space, kind, item)


@given(SPACES, ITEMS, SPACES, ITEMS)
def test_preimage_is_injective(space: Space, item: Item, other: Space, another: Item) -> None:
    """Two pre-images are equal only if space, kind and input are, however small the difference."""
    for one, two in (
        ((space, item), (other, another)),
        ((space, item), (space, another)),
        ((space, item), (other, item)),
    ):
        assert (keys.preimage(*one) == keys.preimage(*two)) == (one == two)


@given(SPACES, ITEMS)
def test_preimage_agrees_with_the_reference(space: Space, item: Item) -> None:
    """Library and reference make the same pre-image of whatever is asked, and of whatever pairs a space has."""
    assert keys.preimage(space, item) == reference.preimage(*spell(space), item)


@given(SPACES, st.lists(TEXTS, max_size=5) | st.lists(IDS, max_size=5))
def test_many_at_once(space: Space, items: list[Item]) -> None:
    """Keys and digests made in bulk, on hashes begun once, are those of each pre-image by itself."""
    kind: Kind = "text" if all(isinstance(item, str) for item in items) else "tokens"
    found = keys.fingerprints(space, kind, [keys.encode_item(item) for item in items])
    wholes = [reference.preimage(*spell(space), item) for item in items]
    assert found == ([reference.key(whole) for whole in wholes], [reference.digest(whole) for whole in wholes])


@given(SPACES, TEXTS)
def test_note_keys_agree_with_the_reference(space: Space, name: str) -> None:
    """A note's key is the reference's, and longer than any entry's, so that neither is taken for the other."""
    assert keys.note_key(space, name) == reference.note_key(*spell(space), name)
    assert len(keys.note_key(space, name)) > keys.KEY_BYTES == len(keys.key_of(b""))


@given(SPACES)
def test_space_names_can_be_read_back(space: Space) -> None:
    """A store's name of a space is the reference's, and tells the space again."""
    assert keys.encode_space(space) == reference.space_name(*spell(space))
    assert keys.decode_space(keys.encode_space(space)) == space


@given(JSON)
def test_canonical_json_agrees_with_the_reference(value: object) -> None:
    """Canonical JSON is the reference's spelling, and says what it was made of, floats told from whole numbers."""
    written = keys.canonical_json(value)
    assert written == reference.canonical_json(value)
    assert repr(sort_names(json.loads(written))) == repr(sort_names(value))


@given(st.dictionaries(TEXTS, JSON, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_order_of_names_means_nothing(value: dict[str, object], random: Random) -> None:
    """The same fields in another order are the same space."""
    names = list(value)
    random.shuffle(names)
    space = keys.make_space("p", "m", "float", extra_body=value)
    assert keys.make_space("p", "m", "float", extra_body={name: value[name] for name in names}) == space
    assert [name for name, _ in space.fields] == sorted("body." + name for name in names)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": float("-inf")}, {1, 2}, object(), b"bytes"])
def test_what_is_not_json_has_no_spelling(value: object) -> None:
    """NaN, infinities and what JSON cannot hold are refused, not spelled in some way of our own."""
    with pytest.raises((TypeError, ValueError)):
        keys.canonical_json(value)


def test_unset_is_not_empty() -> None:
    """A setting that is not given has no pair, and one given as empty has: they are two spaces."""
    bare = keys.make_space("p", "m", "base64")
    assert bare.fields == ()
    assert keys.make_space("p", "m", "base64", extra_body={}) == bare
    assert keys.make_space("p", "m", "base64", extra_body={"user": None}).fields == (("body.user", "null"),)
    assert keys.make_space("p", "m", "base64", extra_body={"user": ""}).fields == (("body.user", '""'),)
    assert keys.make_space("p", "m", "base64", epoch="").fields == (("epoch", ""),)


@pytest.mark.parametrize("item", ["\ud800", "a\udfff", [-1], [2**32], [0, 2**64]])
def test_inputs_without_bytes(item: Item) -> None:
    """A lone surrogate and a token id beyond four bytes are errors, never somebody else's bytes."""
    with pytest.raises((UnicodeEncodeError, struct.error)):
        keys.preimage(Space("p", "m", "base64"), item)


def test_crafted_collision() -> None:
    """Two texts made to share a key have different digests, by which an entry of the one is told from the other's."""
    space = keys.make_space("novita", "baai/bge-m3", "base64")
    one, other = reference.colliding_texts(*spell(space))
    assert one != other
    first, second = keys.preimage(space, one), keys.preimage(space, other)
    assert keys.key_of(first) == keys.key_of(second)
    assert keys.digest_of(first) != keys.digest_of(second)
