"""The folder of a store: made private, marked as ours, looked over, and never more than our own files touched in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from embcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

try:
    import fcntl
except ImportError:  # Windows has no flock; SQLite's own locks still hold there
    fcntl = None  # type: ignore[assignment]

MARKER = "embcache.marker"
MARKER_TEXT = "This folder is a cache of embeddings made by embcache. cache.db and the files beside it belong to it.\n"
DATABASE = "cache.db"
BESIDES = ("", "-wal", "-shm")
"""What follows the database's name in the names of the files that belong to it."""
ASIDE = DATABASE + ".corrupt-"
KEPT_ASIDE = 2
"""Damaged databases that are kept for ``embcache verify``; older ones go."""
PAGE_SIZE = 32_768
"""Bytes of a database page. Seven records of 1024 dimensions share one; with SQLite's 4 KiB each would waste half."""
OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

# What diskcache makes, by the first bytes of SHA-256 of its SQL. A trigger or a table of somebody else's could change
# what is stored; a name missing means that the file was damaged.
SCHEMA: Mapping[str, str] = {
    "Settings": "7dc3acaeb6bbc0a0",
    "sqlite_autoindex_Settings_1": "e3b0c44298fc1c14",
    "Cache": "b1e287d8264b4cfb",
    "Cache_key_raw": "4f0a5302019317d0",
    "Cache_expire_time": "4a273a1da0f568b2",
    "Settings_count_insert": "0d6ef5b954e42033",
    "Settings_count_delete": "2eb9bf040815f4bc",
    "Settings_size_insert": "404b74ec6db5c3f1",
    "Settings_size_update": "18eb18f5d803b490",
    "Settings_size_delete": "613ef63fc328c3a9",
    # Made where somebody else opened the file with diskcache's own defaults; harmless.
    "Cache_store_time": "964e7803acbcf480",
    "Cache_access_time": "c933d0b42ec6f8d0",
    "Cache_access_count": "7b94f50f8d53cb1e",
    "Cache_tag_rowid": "9c23de077ace54c1",
}
SETTINGS = frozenset(
    {
        *("statistics", "tag_index", "eviction_policy", "size_limit", "cull_limit"),
        *("sqlite_auto_vacuum", "sqlite_cache_size", "sqlite_journal_mode", "sqlite_mmap_size", "sqlite_synchronous"),
        *("disk_min_file_size", "disk_pickle_protocol"),
        *("count", "size", "hits", "misses"),
    }
)


MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph-fuse", "fuse.juicefs"),
    }
)


DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that is damaged, or none of its own."""


class Damaged(Exception):
    """The database cannot be what we made; it is to be set aside."""


def database_of(directory: Path) -> Path:
    """Return the path of the database in a store's folder."""
    return directory / DATABASE


def disk_usage(directory: Path) -> int:
    """Return the bytes of the store's files: the database with its log and the index of the log."""
    total = 0
    for suffix in BESIDES:
        with contextlib.suppress(OSError):
            total += directory.joinpath(DATABASE + suffix).stat().st_size
    return total


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from one that takes its place, None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"the cache {path} cannot be examined: {error}") from error
    return found.st_dev, found.st_ino


def file_system(directory: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of file system that ``directory`` is on, None where nobody can tell.

    Args:
        directory: may not exist yet.
        mounts: the kernel's list of mounts, in the form of Linux's proc(5).
    """
    try:
        mounted = [line.split() for line in mounts.read_text("utf-8", "surrogateescape").splitlines()]
    except OSError:
        return None
    place = os.path.realpath(directory)
    best, kind = -1, None
    for fields in mounted:
        point = fields[4].replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), fields[fields.index("-") + 1]
    return kind


def network_file_system(directory: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of network file system that ``directory`` is on, None where it is on none, or nobody can tell.

    Its arguments are those of ``file_system``.
    """
    kind = file_system(directory, mounts)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def check(directory: Path) -> None:
    """See to it that nobody else can have prepared what is about to be read.

    Raises:
        StoreError: folder or database is a link or somebody else's, or others may write to them.
    """
    if not hasattr(os, "geteuid"):  # Windows: ownership is not what it is elsewhere
        return
    _check_one(directory, stat.S_ISDIR, "folder")
    path = database_of(directory)
    if path.is_dir() and not path.is_symlink():
        return  # no link, but no file either: damage, and set aside as such
    _check_one(path, stat.S_ISREG, "file")


def _check_one(path: Path, is_right: object, kind: str) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"the cache {kind} {path} cannot be examined: {error}") from error
    if stat.S_ISLNK(found.st_mode):
        raise StoreError(f"the cache {kind} {path} is a link; embcache follows none. Name the {kind} itself.")
    if not callable(is_right) or not is_right(found.st_mode):
        raise StoreError(f"the cache {kind} {path} is no {kind}")
    if found.st_uid != os.geteuid():
        raise StoreError(f"the cache {kind} {path} belongs to another user (uid {found.st_uid})")
    if found.st_mode & WRITABLE_BY_OTHERS:
        what = "anyone" if found.st_mode & stat.S_IWOTH else "its group"
        raise StoreError(
            f"the cache {kind} {path} can be written by {what}; chmod go-w {path} if you trust what it holds"
        )


@contextlib.contextmanager
def exclusive(directory: Path) -> Generator[None]:
    """Hold the folder's marker locked, so that of many processes one makes, sets aside or removes the database."""
    marker = _locked(directory / MARKER)
    try:
        if not os.fstat(marker).st_size:
            os.write(marker, MARKER_TEXT.encode())
        yield
    finally:
        os.close(marker)


def _locked(path: Path) -> int:
    """Return a descriptor of the marker, locked; the one that is there then, should it be removed while we wait."""
    while True:
        marker = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(marker, fcntl.LOCK_EX)
            held = os.fstat(marker)
            if identity_of(path) == (held.st_dev, held.st_ino):
                return marker
        except BaseException:
            os.close(marker)
            raise
        os.close(marker)


def prepare(directory: Path, patience: float) -> Path:
    """Return the path of the database of ``directory``, made with our page size if there was none.

    Page size and vacuum mode are fixed when the first page is written, which is why it happens before diskcache opens
    the file. For whoever has locked a file that holds nothing yet it waits so many seconds.

    Raises:
        StoreError: the folder or the file cannot be made, or is not to be trusted.
    """
    path = database_of(directory)
    try:
        if identity_of(path) is None:
            _make_private(directory)
        check(directory)
        if _is_unmade(path):
            with exclusive(directory):
                if _is_unmade(path):
                    _make_database(path, patience)
        elif not directory.joinpath(MARKER).exists():
            raise StoreError(f"{path} was not made by embcache; name a folder of its own as cache_dir")
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the cache folder {directory} cannot be prepared: {error}") from error
    return path


def _make_private(directory: Path) -> None:
    """Make the folder, or take an own one into service; only the user may look into it, whatever the umask."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    found = directory.lstat()
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if stat.S_ISDIR(found.st_mode) and mine and found.st_mode & OPEN_TO_OTHERS:
        directory.chmod(stat.S_IMODE(found.st_mode) & ~OPEN_TO_OTHERS)


def _is_unmade(path: Path) -> bool:
    """Return whether there is no database yet, or one that a process began to make when it was killed."""
    return identity_of(path) is None or (path.is_file() and not path.stat().st_size)


def _make_database(path: Path, patience: float) -> None:
    if not path.exists():
        # Nobody can hold this file open yet, so closing our descriptor drops no lock of SQLite's.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    with contextlib.closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = 2")
        connection.execute("PRAGMA journal_mode = wal").fetchall()


def look_over(connection: sqlite3.Connection) -> bool:
    """Return whether the database holds diskcache's table yet, after seeing that it holds nothing foreign.

    Raises:
        Damaged: something in it was not made by diskcache, or something that it makes is missing.
    """
    connection.execute("PRAGMA trusted_schema = OFF").fetchall()
    try:
        # As bytes: Python refuses text that is none with an error that does not tell of damage.
        rows = connection.execute(
            "SELECT CAST(ifnull(name, '') AS BLOB), CAST(ifnull(sql, '') AS BLOB) FROM sqlite_master"
        ).fetchall()
    except UnicodeDecodeError as error:  # SQLite quotes a schema that it cannot read, and Python cannot read the quote
        raise Damaged("its schema is no text") from error
    except sqlite3.OperationalError as error:
        # Nothing is wrong with the statement, so the file's header names a format that SQLite never had.
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise Damaged("its format is unknown") from None
        raise
    found = {bytes(name).decode(errors="replace"): bytes(sql) for name, sql in rows}
    for name, sql in found.items():
        if sha256(sql).hexdigest()[:16] != SCHEMA.get(name):
            raise Damaged("its schema holds what diskcache does not make")
    if "Settings" in found:
        names = connection.execute("SELECT CAST(ifnull(key, '') AS BLOB) FROM Settings").fetchall()
        if {bytes(name).decode(errors="replace") for (name,) in names} - SETTINGS:
            raise Damaged("its settings hold what diskcache does not write")
    if "Cache" not in found and "Settings_size_delete" in found:
        raise Damaged("its table is missing")
    return "Settings_size_delete" in found


def ours(directory: Path) -> list[Path]:
    """Return the files of a store that are in its folder, the database first, the marker last; or none at all.

    Nothing is ours by the look of its name: only what we would have made ourselves, and never a folder.

    Raises:
        StoreError: the folder is not to be trusted, or holds a database and no marker of ours.
    """
    check(directory)
    names = [DATABASE + suffix for suffix in (*BESIDES, "-journal")]
    for aside in sorted(directory.glob(ASIDE + "*")):
        stamp, _, suffix = aside.name.removeprefix(ASIDE).partition("-")
        if stamp.isdigit() and suffix in ("", "wal", "shm"):
            names.append(aside.name)
    found = [path for path in (directory / name for name in [*names, MARKER]) if _is_file(path)]
    if found and found[-1].name != MARKER:
        raise StoreError(f"{found[0]} was not made by embcache, which leaves a file {MARKER} beside it; it stays")
    return found


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def remove_all(directory: Path) -> None:
    """Remove the files of a store; what else is in its folder stays, and the folder too.

    Raises:
        StoreError: as :func:`ours`, or one of them cannot be removed.
    """
    if not ours(directory):
        return
    try:
        with exclusive(directory):
            for path in ours(directory):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"the cache {directory} cannot be removed: {error}") from error


def set_aside(directory: Path, seen: tuple[int, int] | None) -> bool:
    """Rename the damaged database, with what belongs to it; return False if another process already did.

    Args:
        directory: the store's folder.
        seen: the identity of the file that was found damaged.
    """
    with exclusive(directory):
        path = database_of(directory)
        if seen is None or identity_of(path) != seen:
            return False
        aside = f"{ASIDE}{time.time_ns()}"
        for suffix in reversed(BESIDES):
            with contextlib.suppress(FileNotFoundError):
                directory.joinpath(DATABASE + suffix).rename(directory / (aside + suffix))
        older = sorted(p for p in directory.glob(ASIDE + "*") if p.name.removeprefix(ASIDE).isdigit())
        for old in older[:-KEPT_ASIDE]:
            for suffix in BESIDES:
                with contextlib.suppress(OSError):
                    old.with_name(old.name + suffix).unlink()
        return True
