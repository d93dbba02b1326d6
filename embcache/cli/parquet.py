"""Entries as a table of Parquet, a row group at a time."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from embcache.cli.common import Fault
from embcache.cli.tables import pyarrow
from embcache.codec import FLOAT32, vector_of
from embcache.stores.pack import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from embcache.stores.exchange import Exported

ROWS = 4096
"""Rows of a group: what is held in memory at a time."""


def write_parquet(path: Path, entries: Iterable[Exported]) -> int:
    """Write entries to a file that is named ``path`` once it is whole; return how many there are.

    The columns: ``key`` (32 hexadecimal digits), ``model`` (as the provider named it), ``dims``, ``tokens`` (null where
    nobody told), ``created`` (UTC), ``vector`` (float32, a list of fixed size).

    Raises:
        Fault: pyarrow is not there, or the vectors are of several lengths.
        OSError: it cannot be written.
    """
    pa, pq = pyarrow(str(path))
    rest = iter(entries)
    first = list(islice(rest, 1))
    dims = first[0].entry.dims if first else 0
    columns: list[tuple[str, Any]] = [
        ("key", pa.string()),
        ("model", pa.string()),
        ("dims", pa.int32()),
        ("tokens", pa.int64()),
        ("created", pa.timestamp("ms", tz="UTC")),
        ("vector", pa.list_(pa.float32(), dims)),
    ]
    schema = pa.schema([pa.field(name, kind, nullable=name == "tokens") for name, kind in columns])
    count = 0
    rest = chain(first, rest)
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        while rows := list(islice(rest, ROWS)):
            if any(row.entry.dims != dims for row in rows):
                raise Fault(f"{path}: the vectors are of several lengths; choose a --model (and --epoch)")
            flat = pa.array(_vectors(rows).ravel())
            told = [
                [row.key.hex() for row in rows],
                [row.entry.model for row in rows],
                [dims] * len(rows),
                [row.entry.tokens for row in rows],
                [row.entry.created * 1000 for row in rows],
            ]
            made = [pa.array(values, type=kind) for values, (_, kind) in zip(told, columns, strict=False)]
            made.append(pa.FixedSizeListArray.from_arrays(flat, dims))
            writer.write_table(pa.Table.from_arrays(made, schema=schema))
            count += len(rows)
    return count


def _vectors(rows: Sequence[Exported]) -> np.ndarray[Any, np.dtype[np.float32]]:
    joined = b"".join(vector_of(row.record, row.entry) for row in rows)
    return np.frombuffer(joined, dtype=FLOAT32)
