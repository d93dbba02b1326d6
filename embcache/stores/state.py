"""What a store on disk looks like from outside: its folder, its files, and whether they can be read.

Nothing is written, not even what SQLite would leave behind where a file is only read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embcache.errors import StoreError
from embcache.stores.disk import VERSION
from embcache.stores.folder import (
    ASIDE,
    BESIDES,
    MARKER,
    Damaged,
    check,
    database_of,
    file_system,
    look_over,
    network_file_system,
)

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class FolderState:
    """What was seen of the folder of a store.

    Attributes:
        path: the folder, printable.
        exists: whether there is one.
        refused: why it is not used, such as that others can write to it; None where it is.
        owner: who it belongs to; None where it is not there.
        mode: its rights, such as ``0o700``; None where it is not there.
        writable: whether this user may write to it or, where it is not there, make it.
        file_system: the kind of file system it is on; None where nobody can tell.
        over_network: whether that is a network's.
        free: bytes that this user may still write there; None where nobody can tell.
    """

    path: str
    exists: bool = False
    refused: str | None = None
    owner: str | None = None
    mode: int | None = None
    writable: bool = True
    file_system: str | None = None
    over_network: bool = False
    free: int | None = None


@dataclass(frozen=True, slots=True)
class FilesState:
    """What was seen of the database and the files beside it.

    Attributes:
        size: bytes of the database; None where there is none.
        unreadable: why it cannot be read; None where it can.
        is_ours: whether the folder carries embcache's mark.
        is_newer: whether a newer embcache made it.
        log: bytes of its log (``-wal``).
        aside: how many damaged databases have been set aside.
        aside_size: bytes of these, with what belongs to them.
    """

    size: int | None = None
    unreadable: str | None = None
    is_ours: bool = True
    is_newer: bool = False
    log: int = 0
    aside: int = 0
    aside_size: int = 0


def see_folder(directory: Path) -> FolderState:
    """Look at the folder of a store, which need not be there."""
    # A folder's name need not be text: what cannot be spelled is shown with escapes.
    path = str(directory).encode(errors="backslashreplace").decode()
    mode = owner = None
    try:
        check(directory)
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(directory.stat().st_mode)
            owner = _owner(directory)
    except StoreError as error:
        return FolderState(path, refused=str(error))
    except OSError as error:
        return FolderState(path, refused=f"the cache folder {path} cannot be examined: {error.strerror}")
    there = next(one for one in (directory, *directory.parents) if os.path.lexists(one))
    free = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(there).free
    return FolderState(
        path,
        exists=mode is not None,
        owner=owner,
        mode=mode,
        writable=there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        file_system=file_system(directory),
        over_network=network_file_system(directory) is not None,
        free=free,
    )


def see_files(directory: Path) -> FilesState:
    """Look at the files of a store whose folder is one that embcache uses."""
    path = database_of(directory)
    size = _size(path)
    unreadable, version = (None, 0) if size is None else _look_into(path)
    aside = [one for one in directory.glob(ASIDE + "*") if one.name.removeprefix(ASIDE).isdigit()]
    return FilesState(
        size=size,
        unreadable=unreadable,
        is_ours=size is None or directory.joinpath(MARKER).exists(),
        is_newer=version > VERSION,
        log=_size(path.with_name(path.name + "-wal")) or 0,
        aside=len(aside),
        aside_size=sum(_size(one.with_name(one.name + suffix)) or 0 for one in aside for suffix in BESIDES),
    )


def _owner(directory: Path) -> str:
    try:
        return directory.owner()
    except (KeyError, NotImplementedError):
        return f"uid {directory.stat().st_uid}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _look_into(path: Path) -> tuple[str | None, int]:
    """Return why the database cannot be read, None where it can; and which version of ours it is."""
    # A reader leaves an index of the log behind, unless it is told that nobody writes. Where there is no log that is
    # true, but for somebody who begins this instant: what goes wrong then is looked at once more.
    log = path.with_name(path.name + "-wal").exists()
    error: Exception | None = None
    for how in ("mode=ro",) if log else ("mode=ro&immutable=1", "mode=ro"):
        try:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=1.0)) as connection:
                version: int = connection.execute("PRAGMA user_version").fetchone()[0]
                if look_over(connection) or not version:
                    return None, version
                error = Damaged("its table is missing")
        except (sqlite3.Error, Damaged) as this:
            error = this
    return f"the cache {path} cannot be read: {error}", 0
