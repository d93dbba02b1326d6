"""The real command in processes of its own, and what holds for each of its runs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

from tests.programs import ROOT

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from tests.upstream import Upstream

KEY = "sk-CANARY-0123456789"
MARK = "CANARY"
"""Stands in the key and in every text: no run may ever print it."""
PLENTY = 60.0
"""Seconds within which any run here ends; most take one."""


def passages(count: int, start: int = 0) -> list[str]:
    """Distinct texts that must never be seen in an output."""
    return [f"{MARK} passage {number}" for number in range(start, start + count)]


def asking(server: Upstream) -> dict[str, str]:
    """The environment of a user of `server`."""
    server.require_key = KEY
    return {"NOVITA_API_KEY": KEY, "EMBCACHE_BASE_URL": server.base_url}


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """What it told on standard error."""
        return self.err.splitlines()


class Started:
    """A run that goes on: it is waited for with `end()`, or killed when the block ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def out(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def told(self) -> str:
        """The next line on standard error, waited for."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().decode()

    def end(self, stdin: bytes = b"") -> Run:
        """Wait for its end; whatever it was, it told nothing secret and nothing only a programmer understands."""
        out, err = self.process.communicate(stdin or None, timeout=PLENTY)
        return _checked(Run(self.process.returncode, out or b"", (err or b"").decode()))


def _checked(run: Run) -> Run:
    assert MARK not in run.out.decode() + run.err
    assert "Traceback" not in run.err
    assert "Exception ignored" not in run.err
    assert "embcache/" not in run.err.replace(str(ROOT), ""), "a line of our source"
    usage = run.code == 2 and run.err.startswith("Usage: ")
    assert usage or all(line.startswith("embcache: ") for line in run.lines), run.err
    return run


@contextmanager
def started(  # noqa: PLR0913 - all by keyword
    folder: Path,
    *args: object,
    env: Mapping[str, str | None] | None = None,
    first: str = "",
    stdin: int = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> Generator[Started]:
    """Start `embcache args...` in `folder`, with warnings of others as errors; the cache is `folder/cache`.

    `env` changes the environment, None takes a variable away. `first` is what a shell does before.
    """
    ours = {
        "EMBCACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error,default::UserWarning",
    }
    within = ["sh", "-c", f'{first}; exec "$@"', "sh"] if first else []
    process = subprocess.Popen(
        [*within, sys.executable, "-m", "embcache", *map(str, args)],
        cwd=folder,
        env={name: value for name, value in {**os.environ, **ours, **(env or {})}.items() if value is not None},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield Started(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def embcache(
    folder: Path, *args: object, env: Mapping[str, str | None] | None = None, first: str = "", stdin: bytes = b""
) -> Run:
    """Run `embcache args...` in `folder` to its end; as `started()`."""
    with started(folder, *args, env=env, first=first) as run:
        return run.end(stdin)


class Terminal:
    """A terminal of its own: `end` is given to a process, `shown()` is what one would have seen."""

    def __init__(self, columns: int = 100) -> None:
        self._ours, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._data = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shown()

    def _read(self) -> None:
        with suppress(OSError):  # how a terminal ends whose last process has ended
            while part := os.read(self._ours, 1 << 16):
                self._data += part
        os.close(self._ours)

    def type(self, keys: str) -> None:
        """Press keys; whoever reads from `end` gets them."""
        os.write(self._ours, keys.encode())

    def raw(self) -> bytes:
        """All that was written to it, once its process has ended."""
        if self._reader.is_alive():
            os.close(self.end)
            self._reader.join()
        return bytes(self._data)

    def shown(self) -> str:
        """All that was shown, without its colours, once its process has ended."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw().decode().replace("\r\n", "\n"))
