"""What ``embcache doctor`` makes of what it saw: facts to findings, without looking anywhere itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from embcache.cli.common import Code, many
from embcache.show import show_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embcache.stores.state import FilesState, FolderState

SQLiteVersion = tuple[int, int, int]

FAULTY_SQLITE: tuple[tuple[SQLiteVersion, SQLiteVersion], ...] = (
    ((3, 7, 0), (3, 44, 6)),
    ((3, 45, 0), (3, 50, 7)),
    ((3, 51, 0), (3, 51, 3)),
)
"""From the first to before the second of each, SQLite has the WAL-reset bug (https://sqlite.org/wal.html)."""
LAST_ADVISED = (5, 6, 3)
"""The last diskcache that CVE-2025-69872 is known to concern."""
LITTLE_SPACE = 256 << 20
NO_SPACE = 1 << 20
LARGE_LOG = 64 << 20
"""Twice what the log is cut to when nobody holds it."""
OK, REFUSED, FORBIDDEN, TOO_MANY, SERVER_ERROR = 200, 401, 403, 429, 500
REDIRECTS = range(300, 400)


class Level(StrEnum):
    """How much a finding matters; only a problem stops embcache."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at; the same word in every version.
        level: how much it matters.
        message: what was found, in one sentence.
        advice: what to do about it; None where nothing is to be done.
    """

    check: str
    level: Level
    message: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """What was seen of who computes vectors.

    Attributes:
        name: what keys call it, or None where it could not be told.
        is_local: whether it is a model in the process.
        has_key: whether a key is set.
        lacks_key: whether it takes none without one, and there is none.
        status: what the server answered; None where it did not, or was not asked.
        failure: why it cannot be used, or did not answer; None where it did.
    """

    name: str | None
    is_local: bool = False
    has_key: bool = False
    lacks_key: bool = False
    status: int | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was seen.

    Attributes:
        versions: of the packages, by name; None where one is not installed.
        python: the version of Python.
        sqlite: the version of SQLite that Python is linked with.
        folder: the cache folder.
        files: what is in it.
        provider: who computes vectors.
    """

    versions: Mapping[str, str | None]
    python: str
    sqlite: SQLiteVersion
    folder: FolderState
    files: FilesState
    provider: ProviderFacts


def judge(facts: Facts) -> list[Finding]:
    """Return what the facts mean, one finding for each thing that was looked at."""
    folder, files = facts.folder, facts.files
    return [
        _versions(facts.python, facts.versions),
        _sqlite(facts.sqlite),
        _advisory(facts.versions.get("diskcache")),
        _folder(folder),
        *_rights(folder),
        *_file_system(folder),
        *_space(folder),
        _cache(folder, files),
        *_beside(files),
        *_key(facts.provider),
        _provider(facts.provider),
    ]


def worst(findings: Sequence[Finding]) -> Level:
    """Return the level of the gravest finding."""
    return max((finding.level for finding in findings), key=list(Level).index)


def exit_code(facts: Facts, findings: Sequence[Finding]) -> Code:
    """Return what the command exits with: warnings do not count."""
    if facts.folder.refused or facts.files.unreadable:
        return Code.STORE
    return Code.FAILED if worst(findings) is Level.PROBLEM else Code.DONE


def _versions(python: str, versions: Mapping[str, str | None]) -> Finding:
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = [name for name, version in versions.items() if not version]
    if missing:
        message = f"{', '.join(missing)} cannot be found among the packages of this Python {python}"
        return Finding(
            "versions", Level.WARNING, message, "Install embcache again: pip install --force-reinstall embcache"
        )
    return Finding("versions", Level.OK, f"{listed}, Python {python}")


def _sqlite(version: SQLiteVersion) -> Finding:
    name = "SQLite " + ".".join(map(str, version))
    if any(first <= version < fixed for first, fixed in FAULTY_SQLITE):
        message = (
            f"{name} has the WAL-reset bug: very rarely, two processes that write at the same instant damage the file; "
            "embcache then still returns no wrong vector, but may have to buy some again"
        )
        return Finding("sqlite", Level.WARNING, message, "Use a Python with SQLite 3.51.3 or newer, when there is one")
    return Finding("sqlite", Level.OK, f"{name} has no fault that is known to damage a cache")


def _advisory(diskcache: str | None) -> Finding:
    held = (
        "embcache lets diskcache read and write no row, so that nothing is ever unpickled, looks a file's schema and "
        "settings over before diskcache opens it, and uses no folder that others may write to"
    )
    numbers = tuple(int(part) for part in (diskcache or "").split(".")[:3] if part.isdecimal())
    if numbers > LAST_ADVISED:
        return Finding("advisory", Level.OK, f"CVE-2025-69872 names diskcache up to 5.6.3 only; in any case {held}")
    message = f"CVE-2025-69872 (diskcache unpickles what a cache folder holds) is contained: {held}"
    return Finding("advisory", Level.NOTE, message)


def _folder(folder: FolderState) -> Finding:
    if folder.refused:
        return Finding("folder", Level.PROBLEM, folder.refused, "Mend that, or name another folder with --cache-dir")
    if folder.exists:
        return Finding("folder", Level.OK, f"the cache folder is {folder.path}")
    if folder.writable:
        return Finding("folder", Level.NOTE, f"there is no cache folder {folder.path} yet; the first vector makes it")
    message = f"there is no cache folder {folder.path}, and this user may not make it"
    return Finding("folder", Level.PROBLEM, message, "Name another folder with --cache-dir or EMBCACHE_DIR")


def _rights(folder: FolderState) -> Iterator[Finding]:
    if not folder.exists or folder.mode is None:
        return
    seen = f"the folder belongs to {folder.owner} and has the rights {folder.mode:04o}"
    if not folder.writable:
        message = f"{seen}; this user may not write to it, so that hits are served and nothing new is kept"
        yield Finding("rights", Level.WARNING, message, f"To keep what is bought: chmod u+rwx {folder.path}")
    elif folder.mode & 0o077:
        message = f"{seen}; others may look into it, and with a text in hand find out whether it was embedded"
        yield Finding("rights", Level.WARNING, message, f"chmod go-rwx {folder.path}")
    else:
        yield Finding("rights", Level.OK, f"{seen}: for this user alone")


def _file_system(folder: FolderState) -> Iterator[Finding]:
    if folder.over_network:
        message = (
            f"the folder is on a network file system ({folder.file_system}), where SQLite may damage a file; what it "
            "holds is read, and nothing new is kept there unless the embedder was told allow_network_fs=True"
        )
        yield Finding("file-system", Level.WARNING, message, "Name a folder on a local disk with --cache-dir")
    elif folder.file_system is None:
        yield Finding("file-system", Level.NOTE, "nobody here can tell what file system the folder is on")
    else:
        yield Finding("file-system", Level.OK, f"the folder is on a local file system ({folder.file_system})")


def _space(folder: FolderState) -> Iterator[Finding]:
    if folder.free is None:
        return
    seen = f"{show_bytes(folder.free)} are free there"
    if folder.free < NO_SPACE:
        message = f"{seen}: hits are served, and nothing new can be kept"
        yield Finding("space", Level.PROBLEM, message, "Make room, or embcache prune, or another --cache-dir")
    elif folder.free < LITTLE_SPACE:
        message = f"{seen}, which is soon full: a vector of 1024 dimensions takes about 4.7 kB"
        yield Finding("space", Level.WARNING, message, "Make room, or give the embedder a size_limit")
    else:
        yield Finding("space", Level.OK, seen)


def _cache(folder: FolderState, files: FilesState) -> Finding:
    if folder.refused:
        return Finding("cache", Level.NOTE, "what the folder holds was not looked at")
    if files.unreadable:
        advice = "embcache verify tells what is damaged, and --repair saves what can be saved"
        return Finding("cache", Level.PROBLEM, files.unreadable, advice)
    if files.size is None:
        return Finding("cache", Level.OK, "nothing is cached yet")
    if files.is_newer:
        message = "the cache was made by a newer embcache, which this one does not write to"
        return Finding("cache", Level.PROBLEM, message, "Update embcache, or name another folder with --cache-dir")
    if not files.is_ours:
        message = "cache.db in the folder was not made by embcache, which does not write to it"
        return Finding("cache", Level.PROBLEM, message, "Name a folder of its own with --cache-dir")
    message = f"the cache can be read, {show_bytes(files.size)}; embcache verify would prove every entry"
    return Finding("cache", Level.OK, message)


def _beside(files: FilesState) -> Iterator[Finding]:
    if files.size is None and not files.log and not files.aside:
        return
    if files.log > LARGE_LOG:
        message = f"the log is large, {show_bytes(files.log)}: a process that reads or has been stopped holds it up"
        yield Finding(
            "log", Level.WARNING, message, "End that process; the next that closes the cache folds the log in"
        )
    else:
        yield Finding("log", Level.OK, f"the log takes {show_bytes(files.log)}")
    if files.aside:
        message = f"{many(files.aside, 'damaged file')} set aside, {show_bytes(files.aside_size)}"
        yield Finding("set-aside", Level.WARNING, message, "embcache verify --repair saves what they hold")
    else:
        yield Finding("set-aside", Level.OK, "no damaged file has been set aside")


def _key(provider: ProviderFacts) -> Iterator[Finding]:
    if provider.name is None:
        return
    if provider.is_local:
        yield Finding("key", Level.OK, "a model in the process needs no API key")
    elif provider.has_key:
        yield Finding("key", Level.OK, "an API key is set; it is not shown")
    elif provider.lacks_key:
        message = "no API key is set, and without one nothing can be bought; hits are served"
        advice = 'Set NOVITA_API_KEY, or compute here: pip install "embcache[local]" and EMBCACHE_PROVIDER=local'
        yield Finding("key", Level.PROBLEM, message, advice)
    else:
        yield Finding("key", Level.NOTE, "no API key is set; some servers need none")


def _provider(provider: ProviderFacts) -> Finding:
    if provider.failure is not None:
        advice = "Set that right" if provider.name is None else "Hits are served all the same; for the rest, mend that"
        return Finding("provider", Level.PROBLEM, provider.failure, advice)
    if provider.is_local:
        return Finding("provider", Level.OK, "the model in the process can be loaded")
    return _answer(f"{provider.name} answers ({provider.status})", provider.status or 0, has_key=provider.has_key)


def _answer(seen: str, status: int, *, has_key: bool) -> Finding:
    """Return what the status of a server's answer means that was asked for its list of models."""
    level, advice = Level.WARNING, None
    if status == OK:
        level = Level.OK
    elif status == REFUSED:
        level, advice = Level.PROBLEM, "Set the right one as NOVITA_API_KEY"
        seen += "; it does not take the API key that is set" if has_key else "; it wants an API key, and none is set"
    elif status == FORBIDDEN:
        seen += "; it may not let this key do much"
        advice = "Check what the key may do, and the account's balance"
    elif status >= SERVER_ERROR:
        seen += "; it is not well"
        advice = "Wait; embcache tries again by itself"
    elif status in REDIRECTS:
        seen += ", a redirect, which embcache does not follow"
        advice = "Check --base-url or EMBCACHE_BASE_URL"
    elif status == TOO_MANY:
        seen += "; it wants to be asked less often"
        advice = "Wait; embcache tries again by itself"
    else:
        level = Level.NOTE
        seen += "; it shows no list of models, which embcache does not need"
        advice = "Where asking for vectors fails, too, check --base-url or EMBCACHE_BASE_URL"
    return Finding("provider", level, seen, advice)
