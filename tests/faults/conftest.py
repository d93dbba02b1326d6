"""What the tests of the fault matrix share: the watch over what holds in every row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.faults.watch import Watch, watching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def watch(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    """A server and an empty cache folder, watched until the test is over."""
    caplog.set_level(logging.DEBUG)
    with watching(tmp_path / "cache", caplog, capfd) as watch:
        yield watch
