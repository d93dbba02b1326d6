"""Somebody who follows the documentation: a folder, an environment, and a server that stands for Novita's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.programs import ROOT
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream(dims=1024, require_key="sk-made-up") as upstream:
        yield upstream


@pytest.fixture
def user(server: Upstream, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has set what the README says, and asks `server` instead of Novita."""
    command = tmp_path / "bin/embcache"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m embcache "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "EMBCACHE_BASE_URL": server.base_url,
        "EMBCACHE_DIR": str(tmp_path / "cache"),
        "NOVITA_API_KEY": "sk-made-up",
        "PATH": os.pathsep.join([str(command.parent), os.path.dirname(sys.executable), os.environ["PATH"]]),  # noqa: PTH120 - a link stays one
        "PYTHONPATH": str(ROOT),
    }
