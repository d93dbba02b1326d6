"""Tables of Parquet, read and written as a stream. The only file that knows pyarrow."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from embcache.cli.common import Code, Fault

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from embcache.cli.inputs import Source
    from embcache.types import EmbedResult, Vectors

VECTORS = "embedding"
"""The column that vectors are put in: float32, a list of fixed size, null where there is none."""
NUMBERS = "index"
"""The column that numbers the texts, from 0, where they come from files without columns."""
ROWS = 1024
"""Rows read at a time; as many as are embedded at a time are written as a row group."""
BUFFER = 1 << 18
"""Bytes of a column read at a time: without it, all of a row group is, however large that is."""


def pyarrow(name: str) -> tuple[Any, Any]:
    """Return pyarrow, which is used without its types, and its room for Parquet.

    Raises:
        Fault: it is not installed, and the file ``name`` needs it.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Fault(f'{name}: .parquet needs pyarrow: pip install "embcache[parquet]"', Code.USAGE) from None
    return pa, pq


class Rows:
    """Rows that were read and are not written yet, with all their columns."""

    def __init__(self) -> None:
        """Begin without any."""
        self._batches: deque[Any] = deque()

    def add(self, batch: Any) -> None:  # noqa: ANN401 - pyarrow's
        """Put what was read behind the others."""
        self._batches.append(batch)

    def take(self, count: int) -> list[Any]:
        """Return the first ``count`` rows, in batches, and let go of them."""
        taken: list[Any] = []
        while count:
            batch = self._batches.popleft()
            if len(batch) > count:
                self._batches.appendleft(batch.slice(count))
                batch = batch.slice(0, count)
            taken.append(batch)
            count -= len(batch)
        return taken


def read_cells(file: BinaryIO, name: str, column: str, rows: Rows | None) -> Iterator[object]:
    """Yield the cells of a column of texts: None where there is none, bytes where it is not UTF-8.

    Args:
        file: the table.
        name: how messages call it.
        column: which of its columns.
        rows: is given the rows as they are read, with all their columns; without it, one column is read.

    Raises:
        Fault: it is no sound table, or has no such column of texts.
        OSError: it cannot be read.
    """
    with _reading(name, file) as table:
        _check_column(table.schema_arrow, name, column)
        for batch in table.iter_batches(ROWS, columns=[column] if rows is None else None):
            if rows is not None:
                rows.add(batch)
            yield from _plain(batch.column(column))


def check_columns(out: str, sources: Sequence[Source]) -> None:
    """See to it that the columns of ``sources`` and one of vectors make a table.

    Raises:
        Fault: they do not.
    """
    pyarrow(out)
    schemas = [(source.name, _schema(source)) for source in sources if source.is_table]
    if schemas and len(schemas) < len(sources):
        reason = "give it .parquet files alone, whose columns it keeps, or none"
        raise Fault(f"{out}: {reason}", Code.USAGE)
    for name, schema in schemas:
        if VECTORS in schema.names:
            reason = f"has a column {VECTORS!r} already, and the vectors would be put in one of that name; rename it"
            raise Fault(f"{name}: {reason}", Code.USAGE)
        if not schema.equals(schemas[0][1]):
            raise Fault(f"{name}: its columns are not those of {schemas[0][0]}; give each an output", Code.USAGE)


class Table:
    """A table of Parquet with a column of vectors, a row group for every ``write()``.

    The other columns are those of the texts' own tables, in their order; or, where these have none, a number.
    """

    def __init__(self, file: BinaryIO, name: str, sources: Iterable[Source]) -> None:
        """Write to ``file``, which messages call ``name``; ``check_columns()`` has looked at ``sources``."""
        self._pa, self._pq = pyarrow(name)
        self._file, self._name = file, name
        schema = next((_schema(source) for source in sources if source.is_table), None)
        self.rows = None if schema is None else Rows()
        self._schema = schema or self._pa.schema([self._pa.field(NUMBERS, self._pa.int64(), nullable=False)])
        self._writer: Any = None
        self._dims = 0
        self._count = 0
        self._waiting: list[Any] = []

    def write(self, result: EmbedResult) -> None:
        """Put the next rows; those whose text was refused have null for a vector."""
        count, dims = result.vectors.shape
        self._dims = self._dims or dims
        if not count:
            return
        with self._writing():
            others = self._others(count)
            if not self._dims:  # all of them refused, and how long a vector is has nobody told yet
                self._waiting.append(others)
                return
            self._put_waiting()
            self._put(others, self._array(result.vectors, result.rejected))

    def end(self) -> None:
        """Write what tells how to read the rest."""
        with self._writing():
            self._put_waiting()
            self._open().close()

    def close(self) -> None:
        """Let go of what was not written to its end."""
        if self._writer is not None:
            with suppress(OSError, self._pa.ArrowException):  # what is told is why it did not come to its end
                self._writer.close()

    def _others(self, count: int) -> Any:  # noqa: ANN401 - pyarrow's
        """Return the next rows without their vectors."""
        if self.rows is not None:
            return self._pa.Table.from_batches(self.rows.take(count), self._schema)
        numbers = np.arange(self._count, self._count + count)
        self._count += count
        return self._pa.Table.from_arrays([self._pa.array(numbers)], schema=self._schema)

    def _array(self, vectors: Vectors, without: Iterable[int]) -> Any:  # noqa: ANN401 - pyarrow's
        lacking = np.zeros(len(vectors), dtype=bool)
        lacking[list(without)] = True
        flat = self._pa.array(np.ascontiguousarray(vectors).reshape(-1))
        return self._pa.FixedSizeListArray.from_arrays(flat, type=self._kind(), mask=self._pa.array(lacking))

    def _put(self, others: Any, vectors: Any) -> None:  # noqa: ANN401 - pyarrow's
        made = self._pa.nulls(len(others), self._kind()) if vectors is None else vectors
        self._open().write_table(others.append_column(VECTORS, made))

    def _put_waiting(self) -> None:
        for others in self._waiting:
            self._put(others, None)
        self._waiting.clear()

    def _open(self) -> Any:  # noqa: ANN401 - pyarrow's
        if self._writer is None:
            schema = self._schema.append(self._pa.field(VECTORS, self._kind()))
            self._writer = self._pq.ParquetWriter(self._file, schema)
        return self._writer

    def _kind(self) -> Any:  # noqa: ANN401 - pyarrow's
        return self._pa.list_(self._pa.float32(), self._dims)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except self._pa.ArrowException as error:  # its message may quote a cell
            raise Fault(f"{self._name}: cannot be written ({type(error).__name__})") from None


@contextmanager
def _reading(name: str, file: BinaryIO) -> Generator[Any]:
    pa, pq = pyarrow(name)
    try:
        with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Fault(f"{name}: damaged, or not Parquet") from None  # the cause may quote a cell


def _schema(source: Source) -> Any:  # noqa: ANN401 - pyarrow's
    with source.opened() as file, _reading(source.name, file) as table:
        return table.schema_arrow


def _check_column(schema: Any, name: str, column: str) -> None:  # noqa: ANN401 - pyarrow's
    pa, _ = pyarrow(name)
    places = schema.get_all_field_indices(column)
    if len(places) != 1:
        has = "has several columns" if places else "has no column"
        raise Fault(f"{name}: {has} {column!r}; name the one with the texts with --field", Code.USAGE)
    kind = schema.field(places[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    of_texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in of_texts):
        reason = f"the column {column!r} holds no texts, but {kind}; name the one with the texts with --field"
        raise Fault(f"{name}: {reason}", Code.USAGE)


def _plain(cells: Any) -> list[object]:  # noqa: ANN401 - pyarrow's
    try:
        plain: list[object] = cells.to_pylist()
    except UnicodeDecodeError:
        plain = [_plain_cell(cell) for cell in cells]
    return plain


def _plain_cell(cell: Any) -> object:  # noqa: ANN401 - pyarrow's
    try:
        plain: object = cell.as_py()
    except UnicodeDecodeError:
        return b""
    return plain
