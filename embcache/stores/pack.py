"""A pack: entries in one file, to hand on. Bytes in, bytes out, in a stream; the form is in ``docs/pack-format.md``.

Ascending by key, in frames that each prove themselves, with an index of the frames and a trailer that proves the whole.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgpack

from embcache.codec import MAX_RECORD
from embcache.errors import EmbcacheError
from embcache.stores.table import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

MAGIC = b"EMBPACK1"
END = b"EMBPEND1"
SPACES, RECORDS, INDEX = b"S", b"R", b"I"
RECORDS_IN_FRAME = 64
BYTES_IN_FRAME = 1 << 18
"""Bytes of records after which a frame is closed."""
MAX_FRAME = BYTES_IN_FRAME + MAX_RECORD + (1 << 16)
"""Bytes of the largest body read, but for the index: a frame is closed with the record that fills it."""
MAX_SPACES = 4096
PROOF_BYTES = 16
INDEX_ENTRY = 40
"""Bytes that one frame takes in the index, at most."""
MAX_NUMBER = 2**63

_head = Struct(">cI")
_end = Struct(">8sQQ32s")


class PackError(EmbcacheError):
    """A pack is cut short, damaged, or none at all; the message says where."""


@dataclass(frozen=True, slots=True)
class PackSpace:
    """A space of a pack.

    Attributes:
        name: as stores call it.
        dims: the length of all its vectors, None where nobody has told.
    """

    name: bytes
    dims: int | None


@dataclass(frozen=True, slots=True)
class Packed:
    """An entry of a pack.

    Attributes:
        key: 16 bytes.
        record: as it was sealed.
        space: what it belongs to.
    """

    key: bytes
    record: bytes
    space: PackSpace


def _proof(kind: bytes, body: bytes) -> bytes:
    return sha256(_head.pack(kind, len(body)) + body).digest()[:PROOF_BYTES]


@dataclass(slots=True)
class PackWriter:
    """Writes a pack to a file, record after record.

    Attributes:
        count: records so far.
    """

    _file: BinaryIO
    _spaces: Sequence[PackSpace]
    count: int = 0
    _last: bytes = b""
    _offset: int = 0
    _size: int = 0
    _frame: list[tuple[bytes, int, bytes]] = field(default_factory=list[tuple[bytes, int, bytes]])
    _index: list[tuple[bytes, int]] = field(default_factory=list[tuple[bytes, int]])
    _whole: Any = field(default_factory=sha256)
    _numbers: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def begin(self) -> None:
        """Write what comes first.

        Raises:
            PackError: there are more spaces than a pack holds.
        """
        if len(self._spaces) > MAX_SPACES:
            raise PackError(f"a pack holds entries of {MAX_SPACES:,} models and settings at most; choose some")
        self._numbers = {space.name: number for number, space in enumerate(self._spaces)}
        self._put(MAGIC)
        self._whole.update(MAGIC)
        self._write(SPACES, [[space.name, space.dims] for space in self._spaces])

    def add(self, key: bytes, record: bytes, space: bytes) -> None:
        """Write an entry of one of the spaces told before.

        Raises:
            ValueError: its key is not greater than the last one's.
        """
        if not self._last < key:
            raise ValueError("the keys of a pack ascend")
        self._last = key
        self._frame.append((key, self._numbers[space], record))
        self._size += len(record)
        self.count += 1
        if len(self._frame) == RECORDS_IN_FRAME or self._size >= BYTES_IN_FRAME:
            self._close_frame()

    def end(self) -> None:
        """Write what comes last."""
        self._close_frame()
        at = self._offset
        self._write(INDEX, self._index)
        whole = _whole_of(self._whole, self.count, at)
        self._put(_end.pack(END, self.count, at, whole))

    def _close_frame(self) -> None:
        if self._frame:
            self._index.append((self._frame[0][0], self._offset))
            self._write(RECORDS, self._frame)
            self._frame, self._size = [], 0

    def _write(self, kind: bytes, value: object) -> None:
        body: bytes = msgpack.packb(value, use_bin_type=True)
        proof = _proof(kind, body)
        self._whole.update(proof)
        self._put(_head.pack(kind, len(body)) + proof + body)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)


def _whole_of(frames: Any, count: int, index: int) -> bytes:  # noqa: ANN401 - hashlib's objects have no type to name
    """Return what the trailer says of the whole, given the hash of the magic and all frames' proofs."""
    whole = frames.copy()
    whole.update(count.to_bytes(8, "big") + index.to_bytes(8, "big"))
    digest: bytes = whole.digest()
    return digest


def write_pack(path: Path, spaces: Sequence[PackSpace], entries: Iterable[tuple[bytes, bytes, bytes]]) -> int:
    """Write a pack, for its owner's eyes only; return how many entries it holds.

    It appears under its name, or replaces what is there, when all of it is on the disk.

    Args:
        path: of the pack.
        spaces: what its entries may belong to.
        entries: (key, record, space), ascending by key.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        writer = PackWriter(file, spaces)
        writer.begin()
        for entry in entries:
            writer.add(*entry)
        writer.end()
    return writer.count


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Give a private file to write to, which is named ``path`` when the block has ended well and all is on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            os.fchmod(file.fileno(), 0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_pack(file: BinaryIO) -> Iterator[Packed]:
    """Yield the entries of a pack, ascending by key; each is proved to be what was written, but not opened.

    Raises:
        PackError: it is cut short, damaged, or none at all; what was yielded before is sound.
        OSError: it cannot be read.
    """
    frames = _Frames(file)
    spaces = _spaces(frames.read(SPACES, MAX_FRAME))
    last, count = b"", 0
    index: list[list[Any]] = []
    while frames.next_is(RECORDS):
        at = frames.offset
        rows = _rows(frames.read(RECORDS, MAX_FRAME))
        if not 0 < len(rows) <= RECORDS_IN_FRAME:
            raise frames.broken("no list of records")
        entries = [_entry(row, spaces) for row in rows]
        for entry in entries:
            if entry is None or not last < entry.key:
                raise frames.broken("a record out of form or order")
            last = entry.key
        index.append([entries[0].key if entries[0] else b"", at])
        count += len(entries)
        yield from (entry for entry in entries if entry)
    at = frames.offset
    if frames.read(INDEX, INDEX_ENTRY * (len(index) + 1)) != index:
        raise frames.broken("an index of another pack")
    frames.end(count, at)


class _Frames:
    """The frames of a file, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0
        self._kind = b""
        self._whole = sha256(MAGIC)
        magic = self._take(len(MAGIC))
        if magic != MAGIC:
            if magic[:7] == MAGIC[:7] and len(magic) == len(MAGIC):
                raise PackError("this pack is of another version; a newer embcache may read it")
            raise PackError("this is no pack of embcache")

    def broken(self, what: str) -> PackError:
        """Return what is wrong, and where."""
        return PackError(f"the pack is damaged before byte {self.offset:,}: {what}")

    def next_is(self, kind: bytes) -> bool:
        """Return whether a frame of ``kind`` comes next."""
        if not self._kind:
            self._kind = self._file.read(1)
        return self._kind == kind

    def read(self, kind: bytes, most: int) -> object:
        """Return what the next frame holds, which is of ``kind`` and has a body of ``most`` bytes at most."""
        if not self.next_is(kind):
            raise self.broken("another kind of frame") if self._kind else self._cut()
        self._kind = b""
        self.offset += 1
        length = int.from_bytes(self._whole_of(_head.size - 1), "big")
        if length > most:
            raise self.broken("a frame too large")
        proof, body = self._whole_of(PROOF_BYTES), self._whole_of(length)
        if _proof(kind, body) != proof:
            raise self.broken("a frame that does not prove itself")
        self._whole.update(proof)
        try:
            value: object = msgpack.unpackb(
                body,
                raw=False,
                strict_map_key=True,
                max_array_len=max(MAX_SPACES, most // INDEX_ENTRY),
                max_map_len=0,
                max_str_len=0,
                max_bin_len=MAX_RECORD,
                max_ext_len=0,
            )
        except (ValueError, msgpack.exceptions.UnpackException):  # UnicodeDecodeError and ExtraData are ValueErrors
            raise self.broken("a frame out of form") from None
        return value

    def end(self, count: int, index: int) -> None:
        """See to it that the trailer comes next, says what is true, and is the last."""
        if self._whole_of(_end.size) != _end.pack(END, count, index, _whole_of(self._whole, count, index)):
            raise self.broken("a trailer of another pack")
        if self._file.read(1):
            raise self.broken("something behind its end")

    def _take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        data = bytearray()
        while len(data) < count and (part := self._file.read(count - len(data))):
            data += part
        self.offset += len(data)
        return bytes(data)

    def _whole_of(self, count: int) -> bytes:
        data = self._take(count)
        if len(data) < count:
            raise self._cut()
        return data

    def _cut(self) -> PackError:
        return PackError(f"the pack is cut short: it ends at byte {self.offset:,}")


def _rows(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [None]


def _spaces(value: object) -> list[PackSpace]:
    spaces: list[PackSpace] = []
    for row in _rows(value):
        match row:
            case [bytes() as name, None | int() as dims] if type(dims) is not bool and (dims is None or dims > 0):
                spaces.append(PackSpace(name, dims))
            case _:
                raise PackError("the pack is damaged: its spaces are out of form")
    return spaces


def _entry(row: object, spaces: Sequence[PackSpace]) -> Packed | None:
    match row:
        case [bytes() as key, int() as number, bytes() as record] if (
            len(key) == KEY_BYTES and type(number) is int and 0 <= number < len(spaces)
        ):
            return Packed(key, record, spaces[number])
        case _:
            return None
