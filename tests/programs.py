"""Programs that tests run beside themselves: Python processes, and tools that a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
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


@contextmanager
def mounted(place: Path, *options: str) -> Generator[Path]:
    """Mount a disk of 8 MiB at `place`, or with options of mount(8) what they say."""
    mount, umount = tool("mount"), tool("umount")
    place.mkdir(exist_ok=True)
    given = options or ("-t", "tmpfs", "-o", "size=8m,mode=0700", "embcache-test")
    told = subprocess.run([mount, *given, place], check=False, capture_output=True, text=True)
    if told.returncode:
        unable(f"no disk can be mounted: {told.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([umount, "--lazy", place], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk to the last byte, and return the file that does."""
    with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while filler.write(bytes(size)):
                        pass
            filler.write(b"x")
    return folder / "filler"
