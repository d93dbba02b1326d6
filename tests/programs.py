"""Programs that tests run beside themselves: Python processes, and tools that a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

ROOT = Path(__file__).parent.parent
NOBODY = 65_534


def unable(reason: str) -> NoReturn:
    """Skip the test where somebody works; fail it in CI, where everything a test needs has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI is missing something: {reason}")
    pytest.skip(reason)


def tool(name: str) -> str:
    """The path of a command."""
    return shutil.which(name) or unable(f"there is no command {name!r}")


def python(
    code: str, *args: object, within: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `code` in a process of its own, with this tree's embcache and with warnings as errors."""
    return subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-c", dedent(code), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str], told: str = "") -> str:
    """What a process prints until it ends, which it does well and within a minute."""
    try:
        printed, _ = process.communicate(told, timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, f"it ended with {process.returncode}: {printed}"
    return printed.strip()


@contextmanager
def holding(code: str, *args: object) -> Generator[None]:
    """Run a process that prints a line once it holds something, reads one, and lets go."""
    process = python(code, *args)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "it ended before it held anything"
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)
