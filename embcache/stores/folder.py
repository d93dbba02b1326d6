"""The folder of a store on disk: made private, marked as ours, and never more than our own files touched in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from embcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; SQLite's own locks still hold there
    fcntl = None  # type: ignore[assignment]

MARKER = "embcache.marker"
MARKER_TEXT = "This folder is a cache of embeddings made by embcache. cache.db and the files beside it belong to it.\n"
DATABASE = "cache.db"
PAGE_SIZE = 32_768
"""Bytes of a database page. Seven records of 1024 dimensions share one; with SQLite's 4 KiB each would waste half."""


def database_of(directory: Path) -> Path:
    """Return the path of the database in a store's folder."""
    return directory / DATABASE


def disk_usage(directory: Path) -> int:
    """Return the bytes of the store's files: the database with its log and index of the log."""
    total = 0
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            total += directory.joinpath(DATABASE + suffix).stat().st_size
    return total


@contextlib.contextmanager
def exclusive(directory: Path) -> Generator[None]:
    """Hold the folder's marker locked, so that of many processes one makes the database. Makes folder and marker."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    marker = os.open(directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(marker, fcntl.LOCK_EX)
        if not os.fstat(marker).st_size:
            os.write(marker, MARKER_TEXT.encode())
        yield
    finally:
        os.close(marker)


def prepare(directory: Path) -> Path:
    """Return the path of the database of ``directory``, made with our page size if there was none.

    Page size and vacuum mode are fixed when the first page is written, which is why it happens before diskcache opens
    the file.

    Raises:
        StoreError: the folder or the file cannot be made.
    """
    path = database_of(directory)
    if path.exists() and directory.joinpath(MARKER).exists():
        return path
    try:
        with exclusive(directory):
            if not path.exists():
                # Nobody can hold this file open yet, so closing our descriptor drops no lock of SQLite's.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                with contextlib.closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
                    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
                    connection.execute("PRAGMA auto_vacuum = 2")
                    connection.execute("PRAGMA journal_mode = wal").fetchall()
    except (OSError, sqlite3.Error) as error:
        message = f"the cache folder {directory} cannot be prepared: {error}"
        raise StoreError(message) from error
    return path
