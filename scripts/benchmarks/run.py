"""The processes of a run: the folder they work in, the servers, and one fresh process a measurement."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType, TracebackType

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = {
    "ours": Path(sys.executable),
    "limits": Path(sys.executable),
    "peers": ROOT / ".venv-peers/bin/python",
    "litellm": ROOT / ".venv-peers-litellm/bin/python",
}
MODULES = {"litellm": "peers"}
TOLD = ("EMBCACHE_", "NOVITA_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_", "REDIS_", "PYTHON")
PROXIES = frozenset({"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
SECONDS_FOR_ALL = 3600


class Failed(Exception):
    """A measurement ended in an error; holds the last line that it said."""


class Interrupts:
    """Ctrl-C and a polite kill end the run, but never between the start of a process and its being noted."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._holding = False
        self._came: int | None = None

    def listen(self) -> None:
        """Take the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._come)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Have an interrupt wait for the end of the block."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._came is not None:
            self._come(self._came, None)

    def _come(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        self._came = number
        if not self._holding:
            sys.exit(128 + number)


class Machine:
    """Everything that is begun for a run, and ended with it."""

    def __init__(self, *, cpu: bool = False) -> None:
        """Make the folder; nothing is started before it is needed. With ``cpu``, processor time is measured."""
        self.cpu = cpu
        self.folder = Path(tempfile.mkdtemp(prefix="embcache-bench-"))
        self._begun: list[subprocess.Popen[str]] = []
        self._interrupts = Interrupts()
        self._url: str | None = None
        self._redis: str | None = None
        home = self.folder / "home"
        home.mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(TOLD) and name.upper() not in PROXIES
        } | {
            "HOME": str(home),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it is fetched when LiteLLM is imported
            "PYTHONWARNINGS": "ignore",  # the peers' own
            "BENCHMARK_CLOCK": "cpu" if cpu else "wall",
        }

    def __enter__(self) -> Self:
        """Return it; leaving the block ends every process and removes the folder, also when it is interrupted."""
        self._interrupts.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was begun, by its own handle, and remove the folder."""
        with self._interrupts.held_back():
            self._end()

    def _end(self) -> None:
        for process in reversed(self._begun):
            if process.poll() is None:
                process.terminate()
        for process in self._begun:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Return a path in the folder of the run."""
        return self.folder / name

    def has(self, room: str) -> bool:
        """Whether what a room needs is installed."""
        return PYTHONS[room].exists()

    @property
    def url(self) -> str:
        """The base URL of the server that answers at once; started when first asked for."""
        if self._url is None:
            server = self._begin([sys.executable, "-m", "scripts.benchmarks.server"], stdin=subprocess.PIPE)
            self._url = f"http://127.0.0.1:{_line(server)}/v1"
        return self._url

    def slow_url(self, milliseconds: int) -> str:
        """Return the base URL of the server that takes so long a request."""
        return self.url.replace("/v1", f"/{milliseconds}/v1")

    @property
    def redis(self) -> str | None:
        """The URL of a Redis server of our own; started when first asked for. None where none is installed."""
        if self._redis is None and (program := shutil.which("redis-server")):
            port = _free_port()
            folder = self.path("redis")
            folder.mkdir()
            settings = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
            self._begin([program, *settings, "--dir", str(folder), "--daemonize", "no"], stdout=subprocess.DEVNULL)
            _wait_for_port(port)
            self._redis = f"redis://127.0.0.1:{port}"
        return self._redis

    def do(self, job: str, **arguments: object) -> dict[str, Any]:
        """Do a job, named ``room.name``, in a fresh process, and return what it measured.

        Raises:
            Failed: it ended in an error.
        """
        process = self.start(job, **arguments)
        return self.finish(process)

    def start(self, job: str, **arguments: object) -> subprocess.Popen[str]:
        """Begin a job in a fresh process, and return the process."""
        room, name = job.split(".")
        command = [PYTHONS[room], "-m", f"scripts.benchmarks.{MODULES.get(room, room)}", name]
        given = json.dumps(arguments, default=str)
        return self._begin([*map(str, command), given], stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Return what a job measured that was begun with :meth:`start`.

        Raises:
            Failed: it ended in an error.
        """
        said, complained = process.communicate(timeout=SECONDS_FOR_ALL)
        self._begun.remove(process)
        if process.returncode:
            raise Failed(_last_line(complained) or f"ended with {process.returncode}")
        facts: dict[str, Any] = json.loads(_last_line(said))
        return facts

    def together(self, job: str, processes: int, /, **arguments: object) -> list[dict[str, Any]]:
        """Do a job in so many fresh processes that begin their timing together."""
        begun = [self.start(job, **arguments) for _ in range(processes)]
        for process in begun:
            _line(process)  # it says that it is ready, or ends
        for process in begun:
            if process.stdin is not None and process.poll() is None:
                process.stdin.write("go\n")
                process.stdin.flush()
        return [self.finish(process) for process in begun]

    def whole(self, command: Sequence[str | Path], **variables: str) -> float:
        """Return how many seconds a whole process takes, from nothing to its end.

        Raises:
            Failed: it ended in an error.
        """
        start = self._clock()
        done = subprocess.run(  # noqa: S603 - our own commands
            list(map(str, command)),
            env=self.environment | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = self._clock() - start
        if done.returncode:
            raise Failed(_last_line(done.stderr) or f"ended with {done.returncode}")
        return seconds

    def _clock(self) -> float:
        if not self.cpu:
            return time.perf_counter()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def _begin(
        self,
        command: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int | None = None,
    ) -> subprocess.Popen[str]:
        with self._interrupts.held_back():
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command, env=self.environment, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stderr, text=True
            )
            self._begun.append(process)
        return process


def _line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip() if process.stdout else ""


def _last_line(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    message = "redis-server did not start"
    raise Failed(message)


def interleaved(
    sides: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return what each side measured in each round. In a round every side has its turn, each time another one first."""
    names = list(sides)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(sides[name]())
    return measured
