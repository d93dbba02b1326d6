"""What tests of commands work with: a server, and a folder where it is the one that is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.commands import asking
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def folder(tmp_path: Path, server: Upstream, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where `server` is the one that is asked."""
    for name, value in asking(server).items():
        monkeypatch.setenv(name, value)
    return tmp_path
