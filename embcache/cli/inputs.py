"""The files of ``embcache embed``: read as a stream, every text checked, every fault named by its file and line."""

from __future__ import annotations

import csv
import json
import stat
import sys
from codecs import BOM_UTF8
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from embcache.cli.common import Code, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from embcache.cli.tables import Rows

STDIN = "-"
TABLE = ".parquet"
KINDS = (".txt", ".jsonl", ".csv", TABLE)
LONGEST_CELL = 2**31 - 1
"""Characters of a .csv cell; Python's own limit is lower than the length of some texts."""
JSON_NAMES: Mapping[type[object], str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
}


class Source:
    """One input file.

    Attributes:
        name: how messages call it.
        is_table: whether it is a .parquet, whose rows have columns of a kind each.
        blank: blank lines skipped when it was last read.
    """

    def __init__(self, argument: str, field: str) -> None:
        """Take a FILE as it was given; ``field`` names what holds the text where there are fields.

        Raises:
            Fault: it is of no known kind, or not there.
        """
        self.path = None if argument == STDIN else Path(argument)
        self.name = "standard input" if self.path is None else argument
        self.blank = 0
        self._field = field
        self._kind = ".txt" if self.path is None else self.path.suffix.lower()
        if self._kind not in KINDS:
            raise Fault(f"{self.name}: give .txt, .jsonl, .csv or .parquet files, or - for standard input", Code.USAGE)
        self.is_table = self._kind == TABLE
        try:
            self._stat = None if self.path is None else self.path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        if self.is_table:
            from embcache.cli.tables import pyarrow

            pyarrow(self.name)
            if not self.can_be_read_twice:
                raise Fault(f"{self.name}: give a .parquet file itself, no folder and no pipe", Code.USAGE)

    @property
    def can_be_read_twice(self) -> bool:
        """Whether it is a file at rest, and no pipe."""
        return self._stat is not None and stat.S_ISREG(self._stat.st_mode)

    def texts(self, rows: Rows | None = None) -> Iterator[tuple[int, str]]:
        """Yield the number of the line, or of the row, and the text on it, for every text.

        Args:
            rows: is given what is read of a table with all its columns, for whoever is to write them.

        Raises:
            Fault: the file cannot be read, or a line holds no text that can be embedded.
        """
        self.blank = 0
        try:
            with self.opened() as file:
                if self.is_table:
                    yield from self._of_table(file, rows)
                else:
                    read = {".txt": self._of_txt, ".jsonl": self._of_jsonl, ".csv": self._of_csv}[self._kind]
                    yield from read(self._lines(file))
        except OSError as error:
            raise self._unreadable(error) from error

    def fault(self, line: int, message: str) -> Fault:
        """Return what is wrong with a line or row."""
        return Fault(f"{self.at(line)}: {message}")

    def at(self, line: int) -> str:
        """Return how messages call a line or row."""
        return f"{self.name} {'row' if self.is_table else 'line'} {line}"

    def opened(self) -> AbstractContextManager[BinaryIO]:
        """Open the file.

        Raises:
            Fault: standard input is closed.
            OSError: it cannot be opened.
        """
        if self.path is not None:
            return self.path.open("rb")
        if not sys.stdin:  # None where it is closed, whatever its type says
            raise Fault(f"{self.name}: closed", Code.USAGE)
        return nullcontext(sys.stdin.buffer)

    def _unreadable(self, error: OSError) -> Fault:
        return Fault(f"{self.name}: {error.strerror or 'cannot be read'}", Code.USAGE)

    def _lines(self, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each line, with its end."""
        for number, line in enumerate(file, 1):
            try:
                # The mark that some editors put at the start of a file is no part of its first text.
                text = (line.removeprefix(BOM_UTF8) if number == 1 else line).decode()
            except UnicodeDecodeError:
                raise self.fault(number, "not UTF-8") from None
            yield number, text

    def _of_txt(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        for number, line in lines:
            if line.strip():
                yield number, line.removesuffix("\n").removesuffix("\r")
            else:
                self.blank += 1

    def _of_jsonl(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        for number, line in lines:
            if not line.strip():
                self.blank += 1
                continue
            try:
                record: object = json.loads(line)
            except (ValueError, RecursionError):
                raise self.fault(number, "not JSON") from None  # the cause would show the line
            if not isinstance(record, dict):
                raise self.fault(number, "not a JSON object")
            fields = cast("dict[str, object]", record)
            if self._field not in fields:
                raise self.fault(number, f"has no field {self._field!r}; name the one with the text with --field")
            yield number, self._checked(number, fields[self._field])

    def _of_csv(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.reader((line for _, line in lines), strict=True)
        column = -1
        try:
            for row in rows:
                if not row:
                    self.blank += 1
                elif column < 0:
                    if self._field not in row:
                        reason = f"has no column {self._field!r}; name the one with the texts with --field"
                        raise Fault(f"{self.name}: {reason}", Code.USAGE)
                    column = row.index(self._field)
                elif column >= len(row):
                    raise self.fault(rows.line_num, f"has no cell in the column {self._field!r}")
                else:
                    yield rows.line_num, self._checked(rows.line_num, row[column])
        except csv.Error as error:
            raise self.fault(rows.line_num, f"not CSV: {error}") from None

    def _of_table(self, file: BinaryIO, rows: Rows | None) -> Iterator[tuple[int, str]]:
        from embcache.cli.tables import read_cells

        for number, cell in enumerate(read_cells(file, self.name, self._field, rows), 1):
            if isinstance(cell, bytes):
                raise self.fault(number, "not UTF-8")
            yield number, self._checked(number, cell)

    def _checked(self, number: int, value: object) -> str:
        if not isinstance(value, str):
            what = JSON_NAMES.get(type(value), "an object")
            raise self.fault(number, f"the field {self._field!r} holds {what}, not a text")
        if not value:
            raise self.fault(number, "the text is empty, and an empty text cannot be embedded")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.fault(number, "the text holds half of a surrogate pair, which is no character") from None
        return value


def sources_of(arguments: Iterable[str], field: str) -> list[Source]:
    """Return the files given, in order.

    Raises:
        Fault: one cannot be used.
    """
    sources = [Source(argument, field) for argument in arguments]
    if sum(source.path is None for source in sources) > 1:
        raise Fault("standard input can be read once only", Code.USAGE)
    return sources


def count(sources: Iterable[Source]) -> int | None:
    """Check every file that can be read twice; return how many texts there are, None where that is not known.

    So that a fault in the last line is told before anything is paid for.

    Raises:
        Fault: a file holds what cannot be embedded.
    """
    total, known = 0, True
    for source in sources:
        if source.can_be_read_twice:
            total += sum(1 for _ in source.texts())
        else:
            known = False
    return total if known else None
