"""What the tests of the store on disk share: its folder, its records, and a plain look into its file."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MARKER = "embcache.marker"
PAGE = 32_768


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()[:16]


def records(*numbers: int, size: int = 64) -> dict[bytes, bytes]:
    """The one right record of each key."""
    return {key(number): (sha256(b"%d" % number).digest() * (size // 32 + 1))[:size] for number in numbers}


@contextmanager
def database(folder: Path) -> Generator[sqlite3.Connection]:
    """A plain connection to a store's file."""
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        yield connection


def one(folder: Path, statement: str) -> object:
    with database(folder) as connection:
        value: object = connection.execute(statement).fetchone()[0]
    return value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
