"""Where ``embcache embed`` puts vectors: beside the file wanted while they come, renamed when all are there."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from numpy.lib import format as npy

from embcache.cli.common import Code, Fault, write_out

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from embcache.cli.inputs import Source
    from embcache.types import Vectors

STDOUT = "-"
FLOAT32 = "<f4"
LINES = 64
"""Lines written at a time."""


class Output(Protocol):
    """Takes vectors, in order."""

    def write(self, vectors: Vectors) -> None:
        """Put the next rows."""
        ...

    def end(self) -> None:
        """Do what is left when all rows are there."""
        ...


class Nowhere:
    """Keeps nothing: the cache does."""

    def write(self, vectors: Vectors) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Npy:
    """NumPy's own format: float32, shape (n, dims)."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to ``file``, which can seek."""
        self._file = file
        self._shape = (0, 0)
        self._head()

    def write(self, vectors: Vectors) -> None:
        """Put the next rows."""
        self._shape = (self._shape[0] + len(vectors), vectors.shape[1])
        self._file.write(np.ascontiguousarray(vectors, dtype=FLOAT32).data)

    def end(self) -> None:
        """Tell the shape, for which the header has room."""
        end = self._file.tell()
        self._file.seek(0)
        self._head()
        self._file.seek(end)

    def _head(self) -> None:
        npy.write_array_header_1_0(self._file, {"descr": FLOAT32, "fortran_order": False, "shape": self._shape})


class JsonLines:
    """One object a line: ``{"index": 0, "embedding": [...]}``; reading the numbers gives the same float32 again."""

    def __init__(self, put: Callable[[bytes], object]) -> None:
        """Hand the lines to ``put``."""
        self._put = put
        self._rows = 0

    def write(self, vectors: Vectors) -> None:
        """Put the next rows."""
        for start in range(0, len(vectors), LINES):
            rows = enumerate(vectors[start : start + LINES], self._rows)
            lines = [json.dumps({"index": index, "embedding": row.tolist()}) + "\n" for index, row in rows]
            self._put("".join(lines).encode())
            self._rows += len(lines)

    def end(self) -> None:
        """Do nothing: every line stands alone."""


def check_target(out: str | None, sources: Iterable[Source]) -> None:
    """See to it that ``out`` can be written, before anything is paid for.

    Raises:
        Fault: it cannot.
    """
    if out is None or out == STDOUT:
        return
    path = Path(out)
    if path.suffix.lower() not in (".npy", ".jsonl"):
        raise Fault(
            f"{out}: give a file that ends in .npy or .jsonl, or - for JSON Lines on standard output", Code.USAGE
        )
    if path.is_dir():
        raise Fault(f"{out}: is a folder", Code.USAGE)
    if not path.resolve().parent.is_dir():
        raise Fault(f"{out}: its folder is not there", Code.USAGE)
    if not os.access(path.resolve().parent, os.W_OK):
        raise Fault(f"{out}: its folder cannot be written", Code.USAGE)
    if path.exists() and any(source.path is not None and path.samefile(source.path) for source in sources):
        raise Fault(f"{out}: is one of the inputs", Code.USAGE)


@contextmanager
def opened(out: str | None) -> Generator[Output]:
    """Give the output for ``out``; the file of that name appears, or is replaced, when the block ends well."""
    if out is None:
        yield Nowhere()
        return
    if out == STDOUT:
        yield JsonLines(write_out)
        return
    with replacing(out) as file:
        yield Npy(file) if Path(out).suffix.lower() == ".npy" else JsonLines(file.write)


@contextmanager
def replacing(out: str) -> Generator[BinaryIO]:
    """Give a file to write; the one of the name ``out`` appears, or is replaced, when the block ends well.

    Raises:
        Fault: it cannot be written.
    """
    path = Path(out).resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Fault(f"{out}: {error.strerror or 'cannot be written'}") from error
    finally:
        part.unlink(missing_ok=True)
