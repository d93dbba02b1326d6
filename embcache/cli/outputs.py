"""Where ``embcache embed`` puts vectors: beside the file wanted while they come, renamed when all are there."""

from __future__ import annotations

import json
import os
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from numpy.lib import format as npy

from embcache.cli.common import Code, Fault, write_out
from embcache.cli.inputs import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from embcache.cli.inputs import Source
    from embcache.cli.tables import Rows
    from embcache.errors import InputRejected, ProviderError
    from embcache.types import EmbedResult

STDOUT = "-"
FLOAT32 = "<f4"
LINES = 64
"""Lines written at a time."""


class Output(Protocol):
    """Takes vectors, in order."""

    @property
    def rows(self) -> Rows | None:
        """What is given the rows of the tables that texts come from; None where only vectors are written."""
        ...

    def write(self, result: EmbedResult) -> None:
        """Put the next rows."""
        ...

    def end(self) -> None:
        """Do what is left when all rows are there."""
        ...


class Nowhere:
    """Keeps nothing: the cache does."""

    rows = None

    def write(self, result: EmbedResult) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Npy:
    """NumPy's own format: float32, shape (n, dims); NaN where a text was refused."""

    rows = None

    def __init__(self, file: BinaryIO) -> None:
        """Write to ``file``, which can seek."""
        self._file = file
        self._shape = (0, 0)
        self._head()

    def write(self, result: EmbedResult) -> None:
        """Put the next rows; those that came before it was known how long a vector is, all refused, come with them.

        Raises:
            Fault: they are of another length than those before, and there is no array of both.
        """
        (before, known), (count, dims) = self._shape, result.vectors.shape
        if dims != known:
            if known:
                raise Fault(f"vectors of {known} and of {dims} dimensions make no array")
            self._file.write(np.full((before, dims), np.nan, dtype=FLOAT32).data)
        self._shape = before + count, dims
        self._file.write(np.ascontiguousarray(result.vectors, dtype=FLOAT32).data)

    def end(self) -> None:
        """Tell the shape, for which the header has room."""
        end = self._file.tell()
        self._file.seek(0)
        self._head()
        self._file.seek(end)

    def _head(self) -> None:
        npy.write_array_header_1_0(self._file, {"descr": FLOAT32, "fortran_order": False, "shape": self._shape})


class JsonLines:
    """One object a line: ``{"index": 0, "embedding": [...]}``; reading the numbers gives the same float32 again.

    Of a text that was refused: ``{"index": 1, "embedding": null, "error": {"status": 400, "code": "..."}}``.
    """

    rows = None

    def __init__(self, put: Callable[[bytes], object]) -> None:
        """Hand the lines to ``put``."""
        self._put = put
        self._count = 0

    def write(self, result: EmbedResult) -> None:
        """Put the next rows."""
        for start in range(0, len(result.vectors), LINES):
            vectors = result.vectors[start : start + LINES].tolist()
            told = [_told(vector, result.rejected.get(place)) for place, vector in enumerate(vectors, start)]
            lines = [json.dumps({"index": index, **one}) + "\n" for index, one in enumerate(told, self._count)]
            self._put("".join(lines).encode())
            self._count += len(lines)

    def end(self) -> None:
        """Do nothing: every line stands alone."""


def _told(vector: list[float], error: InputRejected | ProviderError | None) -> Mapping[str, object]:
    if error is None:
        return {"embedding": vector}
    return {"embedding": None, "error": {"status": error.status, "code": error.code}}


def check_target(out: str | None, sources: Sequence[Source]) -> None:
    """See to it that ``out`` can be written, before anything is paid for.

    Raises:
        Fault: it cannot.
    """
    if out is None or out == STDOUT:
        return
    path = Path(out)
    if path.suffix.lower() not in (".npy", ".jsonl", TABLE):
        reason = "give a file that ends in .npy, .jsonl or .parquet, or - for JSON Lines on standard output"
        raise Fault(f"{out}: {reason}", Code.USAGE)
    if path.is_dir():
        raise Fault(f"{out}: is a folder", Code.USAGE)
    if not path.resolve().parent.is_dir():
        raise Fault(f"{out}: its folder is not there", Code.USAGE)
    if not os.access(path.resolve().parent, os.W_OK):
        raise Fault(f"{out}: its folder cannot be written", Code.USAGE)
    if path.exists() and any(source.path is not None and path.samefile(source.path) for source in sources):
        raise Fault(f"{out}: is one of the inputs", Code.USAGE)
    if path.suffix.lower() == TABLE:
        from embcache.cli.tables import check_columns

        check_columns(out, sources)


@contextmanager
def opened(out: str | None, sources: Sequence[Source]) -> Generator[Output]:
    """Give the output for ``out``; the file of that name appears, or is replaced, when the block ends well.

    Args:
        out: as it was given, and checked.
        sources: where the texts come from.

    Raises:
        Fault: it cannot be written.
    """
    if out is None:
        yield Nowhere()
        return
    if out == STDOUT:
        yield JsonLines(write_out)
        return
    with replacing(out) as file:
        kind = Path(out).suffix.lower()
        if kind == TABLE:
            from embcache.cli.tables import Table

            with closing(Table(file, out, sources)) as table:
                yield table
        else:
            yield Npy(file) if kind == ".npy" else JsonLines(file.write)


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
