"""A store on disk, and its folder, which is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embcache.stores import DiskStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(folder: Path) -> Iterator[DiskStore]:
    store = DiskStore(folder)
    yield store
    store.close()
