"""What a caller may hand to ``embed()``, made uniform: every form of the API's ``input``, checked before it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from embcache.errors import ConfigError, InvalidInput
from embcache.keys import MAX_TOKEN_ID, encode_item

if TYPE_CHECKING:
    from embcache.types import Item, Kind

MAX_TOKEN_IDS = 8192
"""Token ids of one input at most, the limit the API documents."""

NO_INPUTS = (bytes, bytearray, memoryview, Mapping, AbstractSet)
"""What can be iterated over and holds no inputs, or holds them in no order."""

WHAT_IS_TAKEN = "give a text, an iterable of texts, ONE input as a list of token ids, or a list of such lists"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one call.

    Attributes:
        items: each as it is sent.
        names: what equal inputs have in common: the text itself, or the bytes of the token ids.
        kind: whether they are texts or token ids.
        single: whether ONE input was given, so that one vector is wanted and not a list of one.
        offset: how many inputs came before these in what a caller iterates over; added to the indexes of errors.
    """

    items: Sequence[Item]
    names: Sequence[str] | Sequence[bytes]
    kind: Kind
    single: bool
    offset: int = 0

    def check(self, positions: Sequence[int]) -> None:
        """See to it that the inputs at ``positions`` can be sent.

        Raises:
            InvalidInput: some cannot, with all their indexes: a text that is empty or holds a lone surrogate.
        """
        if self.kind == "tokens":  # checked when they were read
            return
        texts = cast("Sequence[str]", self.items)
        if all(texts) and all(map(str.isascii, texts)):
            return
        if wrong := [self.offset + p for p in positions if not texts[p]]:
            raise InvalidInput("empty; the API does not embed an empty text, leave it out", wrong)
        if wrong := [self.offset + p for p in positions if not texts[p].isascii() and not _encodes(texts[p])]:
            raise InvalidInput("holds a lone surrogate, which is no text and cannot be sent", wrong)

    def payloads(self, positions: Sequence[int]) -> list[bytes]:
        """Return the exact bytes of the inputs at ``positions``, which are hashed."""
        if self.kind == "tokens":
            return [cast("bytes", self.names[position]) for position in positions]
        texts = cast("Sequence[str]", self.items)
        return [texts[position].encode() for position in positions]


def read_inputs(given: object) -> Inputs:
    """Return the inputs of a call, whatever form of the API they come in.

    Args:
        given: a text; any iterable of texts (list, tuple, generator, NumPy array or pandas column); ONE input as a
            sequence of token ids; a sequence of such sequences.

    Raises:
        InvalidInput: it is none of these, or an input cannot be embedded; with the indexes.
    """
    if isinstance(given, str):
        text = str.__getitem__(given, slice(None))  # a plain text, whatever class of text was given
        return Inputs((text,), (text,), "text", single=True)
    kind = type(given).__name__
    no_list = isinstance(given, np.ndarray) and not given.ndim
    if no_list or not isinstance(given, Iterable) or isinstance(given, NO_INPUTS):
        raise InvalidInput(f"a {kind} cannot be embedded; {WHAT_IS_TAKEN}")
    items = _to_list(cast("Iterable[object]", given))
    if all(type(item) is str for item in items):
        return Inputs(items, items, "text", single=False)
    items = [_plain(item) for item in items]
    if all(type(item) is str for item in items):
        return Inputs(items, items, "text", single=False)
    if all(type(item) is int for item in items):
        return _tokens([items], single=True)
    if all(_is_list(item) for item in items):
        return _tokens([[_plain(i) for i in _to_list(item)] for item in items], single=False)
    wrong = _odd_ones(items)
    raise InvalidInput(f"neither all texts nor all token ids; {WHAT_IS_TAKEN}", wrong)


def masks(errors: object) -> bool:
    """Return whether refused inputs are to be masked.

    Raises:
        ConfigError: ``errors`` is neither ``"raise"`` nor ``"mask"``.
    """
    if errors not in ("raise", "mask"):
        raise ConfigError(f"errors={errors!r}: give 'raise' or 'mask'")
    return errors == "mask"


def in_batches(given: object, size: int) -> Iterator[Inputs]:
    """Yield the inputs of an iterable, ``size`` at a time; it may be endless, and is read no further than needed.

    Raises:
        InvalidInput: it is no iterable of inputs, or holds what cannot be embedded; indexes count from the first.
    """
    kind = type(given).__name__
    no_list = isinstance(given, np.ndarray) and not given.ndim
    if no_list or not isinstance(given, Iterable) or isinstance(given, (str, *NO_INPUTS)):
        raise InvalidInput(f"a {kind} is no iterable of inputs; give texts, or lists of token ids, one after the other")
    yield from _read_on(iter(cast("Iterable[object]", given)), size, 0)


def in_parts(given: object, size: int) -> Iterator[Inputs]:
    """Yield the inputs of a call, whatever form of the API they come in, ``size`` at a time and read no further.

    Raises:
        InvalidInput: it is none of these, or holds what cannot be embedded; indexes count from the first.
    """
    whole = given
    no_list = isinstance(given, np.ndarray) and not given.ndim
    if no_list or not isinstance(given, Iterable) or isinstance(given, (str, *NO_INPUTS)):
        yield read_inputs(whole)
        return
    source = iter(cast("Iterable[object]", given))
    first = list(islice(source, size))
    inputs = read_inputs(first)
    if inputs.single:
        yield read_inputs([*first, *source])
        return
    offset, kind = len(first), inputs.kind
    del first  # what was read before is no longer held
    yield inputs
    for inputs in _read_on(source, size, offset):
        if inputs.kind != kind:
            raise InvalidInput(f"neither all texts nor all token ids; {WHAT_IS_TAKEN}", [inputs.offset])
        yield inputs


def _read_on(source: Iterator[object], size: int, offset: int) -> Iterator[Inputs]:
    """Yield what is left of ``source``, ``size`` at a time; ``offset`` inputs came before."""
    while batch := list(islice(source, size)):
        try:
            inputs = read_inputs(batch)
        except InvalidInput as error:
            raise InvalidInput(error.reason, [offset + index for index in error.indexes]) from None
        if inputs.single:
            raise InvalidInput("a token id is no input; give lists of them", [offset])
        yield replace(inputs, offset=offset)
        offset += len(batch)


def _is_list(value: object) -> bool:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return False
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, (Sequence, Iterator)) or hasattr(value, "tolist")


def _plain(value: object) -> object:
    """Return a NumPy number, or a text of a class of its own, as the plain number or text that it is."""
    if isinstance(value, np.generic):
        return cast("object", value.item())
    return str.__getitem__(value, slice(None)) if isinstance(value, str) else value


def _to_list(values: Iterable[object]) -> list[Any]:
    """Return a new list, which nobody else can change; an array or a column gives Python's own numbers and texts."""
    tolist = getattr(values, "tolist", None)
    listed: object = tolist() if callable(tolist) else None
    return cast("list[object]", listed) if isinstance(listed, list) else list(values)


def _odd_ones(items: Sequence[object]) -> list[int]:
    """Return the positions to name when inputs are mixed: those unlike the first one that could be an input."""
    shapes = ["text" if isinstance(i, str) else "id" if type(i) is int else "ids" if _is_list(i) else "" for i in items]
    expected = next((shape for shape in shapes if shape), "")
    return [position for position, shape in enumerate(shapes) if shape != expected or not shape]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tokens(lists: Sequence[Sequence[Any]], *, single: bool) -> Inputs:
    cases: tuple[tuple[Callable[[Sequence[Any]], bool], str], ...] = (
        (lambda ids: not ids, "an empty list of token ids"),
        (lambda ids: len(ids) > MAX_TOKEN_IDS, f"more than {MAX_TOKEN_IDS} token ids"),
        (
            lambda ids: any(type(i) is not int or not 0 <= i <= MAX_TOKEN_ID for i in ids),
            f"token ids are whole numbers from 0 to {MAX_TOKEN_ID}; {WHAT_IS_TAKEN}",
        ),
    )
    for is_wrong, reason in cases:
        if wrong := [position for position, ids in enumerate(lists) if is_wrong(ids)]:
            raise InvalidInput(reason, wrong)
    items = [list(ids) for ids in lists]
    return Inputs(items, [encode_item(ids) for ids in items], "tokens", single)
