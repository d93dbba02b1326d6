"""What tests of a running cache share: its server, its embedders, and programs that do the same elsewhere."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing, contextmanager
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from embcache import CachedEmbedder, EmbcacheWarning

from tests.programs import python
from tests.upstream import Upstream

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

PROLOGUE = """
import sys, warnings
import embcache.stores.disk
from embcache import CachedEmbedder
from tests.twins import SECONDS, right, same

warnings.simplefilter("ignore")
# A machine so busy that a write takes a second is not met here by chance.
embcache.stores.disk.PATIENCE = embcache.stores.disk.LOCK_PATIENCE = SECONDS

def opened(folder=sys.argv[2], **settings):
    return CachedEmbedder("m", base_url=sys.argv[1], api_key="k", cache_dir=folder, **settings)
"""


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def opened(server: Upstream, folder: Path, **settings: Any) -> CachedEmbedder:  # noqa: ANN401 - any setting
    """An embedder over this server and folder."""
    return CachedEmbedder("m", base_url=server.base_url, api_key="k", cache_dir=folder, **settings)


def program(
    code: str, server: Upstream, folder: Path, *args: object, first: str = "", within: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start `code` in a process of its own, where `opened()` gives embedders over this server and folder.

    `first` comes before anything is imported, `within` is the command that it runs under.
    """
    return python(first + PROLOGUE + dedent(code), server.base_url, folder, *args, within=within)


@contextmanager
def unwarned() -> Generator[None]:
    """Let the cache's own warnings pass: a test that is about something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmbcacheWarning)
        yield


def ask(folder: Path, statement: str) -> Any:  # noqa: ANN401 - whatever it is
    """The first value that the database in `folder` answers."""
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        return connection.execute(statement).fetchone()[0]


def set_aside(folder: Path) -> list[str]:
    """The databases in `folder` that were set aside."""
    return sorted(p.name for p in folder.glob("cache.db.corrupt-*") if p.name.rpartition("-")[2].isdigit())
