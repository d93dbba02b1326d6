"""Both faces of the engine behind one set of methods, so that one suite of tests speaks to both.

    bench = twins.bench  # in a test module: the fixture, which runs each of its tests on either face

    def test_something(bench: Bench) -> None:
        with bench.open(batch_size=3) as embedder:
            embedder.embed(["a", "b"])
        assert bench.server.sent_inputs == ["a", "b"]

The asynchronous face lives in an event loop on a thread of its own, where several calls meet as tasks; the calls of
the synchronous one meet as threads. Nothing here knows what a right answer is: that is `right`, the model of
`tests.upstream`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import pytest

from embcache import AsyncCachedEmbedder, CachedEmbedder

from tests.upstream import Item, Upstream, Vector, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from embcache import CacheStats, EmbedResult, Plan, Space

Face: TypeAlias = Literal["sync", "async"]
FACES: tuple[Face, ...] = ("sync", "async")
ROOT = Path(__file__).parents[1]
SECONDS = 30.0
"""Far longer than anything here takes: a test that waits in vain fails instead of hanging."""


class Twin(ABC):
    """An embedder of either face."""

    def __init__(self, face: CachedEmbedder | AsyncCachedEmbedder) -> None:
        self.face = face

    def embed(self, inputs: Any, *, refresh: bool = False) -> Vector:  # noqa: ANN401 - wrong ones are tried, too
        return self.embed_result(inputs, refresh=refresh).vectors

    @abstractmethod
    def embed_result(self, inputs: Any, *, refresh: bool = False) -> EmbedResult: ...  # noqa: ANN401 - as above

    @abstractmethod
    def begin(self, inputs: Any) -> Future[EmbedResult]:  # noqa: ANN401 - as above
        """Ask in a thread or task of its own, and return at once."""

    @abstractmethod
    def plan(self, inputs: Any, **options: Any) -> Plan: ...  # noqa: ANN401 - as above

    @abstractmethod
    def forget(self, inputs: Any) -> int: ...  # noqa: ANN401 - as above

    @abstractmethod
    def stats(self) -> CacheStats: ...

    @abstractmethod
    def close(self) -> None: ...

    @property
    def session(self) -> CacheStats:
        return self.face.session

    @property
    def space(self) -> Space:
        return self.face.space

    def abandon(self) -> None:
        """End it as the interpreter's exit does, which waits two seconds at most."""
        self.face._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SyncTwin(Twin):
    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - wrong ones are tried, too
        self._sync = CachedEmbedder(**settings)
        super().__init__(self._sync)

    def embed(self, inputs: Any, *, refresh: bool = False) -> Vector:  # noqa: ANN401 - as above
        return self._sync.embed(inputs, refresh=refresh)

    def embed_result(self, inputs: Any, *, refresh: bool = False) -> EmbedResult:  # noqa: ANN401 - as above
        return self._sync.embed_result(inputs, refresh=refresh)

    def begin(self, inputs: Any) -> Future[EmbedResult]:  # noqa: ANN401 - as above
        return in_thread(lambda: self._sync.embed_result(inputs))

    def plan(self, inputs: Any, **options: Any) -> Plan:  # noqa: ANN401 - as above
        return self._sync.plan(inputs, **options)

    def forget(self, inputs: Any) -> int:  # noqa: ANN401 - as above
        return self._sync.forget(inputs)

    def stats(self) -> CacheStats:
        return self._sync.stats()

    def close(self) -> None:
        self._sync.close()


class AsyncTwin(Twin):
    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - as above
        self._async = AsyncCachedEmbedder(**settings)
        super().__init__(self._async)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(),), name="twin", daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _live(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._over.wait()

    def _begin(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if not self._thread.is_alive():  # closed: what is asked all the same is asked in a loop of its own
            return in_thread(lambda: asyncio.run(work))
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def embed(self, inputs: Any, *, refresh: bool = False) -> Vector:  # noqa: ANN401 - as above
        return self._begin(self._async.embed(inputs, refresh=refresh)).result()  # type: ignore[no-any-return]

    def embed_result(self, inputs: Any, *, refresh: bool = False) -> EmbedResult:  # noqa: ANN401 - as above
        return self._begin(self._async.embed_result(inputs, refresh=refresh)).result()  # type: ignore[no-any-return]

    def begin(self, inputs: Any) -> Future[EmbedResult]:  # noqa: ANN401 - as above
        return self._begin(self._async.embed_result(inputs))

    def plan(self, inputs: Any, **options: Any) -> Plan:  # noqa: ANN401 - as above
        return self._begin(self._async.plan(inputs, **options)).result()  # type: ignore[no-any-return]

    def forget(self, inputs: Any) -> int:  # noqa: ANN401 - as above
        return self._begin(self._async.forget(inputs)).result()  # type: ignore[no-any-return]

    def stats(self) -> CacheStats:
        return self._begin(self._async.stats()).result()  # type: ignore[no-any-return]

    def close(self) -> None:
        try:
            self._begin(self._async.aclose()).result()
        finally:
            self._end_loop()

    def abandon(self) -> None:
        super().abandon()
        self._end_loop()

    def _end_loop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(SECONDS)


def open_twin(face: Face, **settings: Any) -> Twin:  # noqa: ANN401 - as above
    return SyncTwin(**settings) if face == "sync" else AsyncTwin(**settings)


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Do it on a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def right(items: Iterable[Item], dims: int = 8) -> Vector:
    """What the model makes of many inputs, without any cache."""
    return np.array([vector(item, dims) for item in items], dtype=np.float32).reshape(-1, dims)


def same(one: Vector, other: Vector) -> bool:
    """Whether shape, type and every bit agree."""
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def counts(figures: EmbedResult | CacheStats) -> tuple[int, int, int, int]:
    return figures.hits, figures.misses, figures.duplicates, figures.requests


def soon(condition: Callable[[], object]) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(condition())


def everything(error: BaseException | None) -> Iterator[str]:
    """All that an error shows, and all that those show which it came of."""
    while error is not None:
        yield f"{error}\n{error!r}\n{error.args!r}\n{vars(error)!r}"
        yield from (str(note) for note in getattr(error, "__notes__", ()))
        yield from everything(error.__cause__)
        error = error.__context__


def say(child: subprocess.Popen[str], line: str) -> None:
    """Give a program a line to read."""
    assert child.stdin
    child.stdin.write(line + "\n")
    child.stdin.flush()


def files_of(folder: Path) -> bytes:
    """Return every byte of every file in a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


PROLOGUE = """
import asyncio, json, sys
import embcache.stores.disk
from tests.twins import SECONDS, open_twin
embcache.stores.disk.PATIENCE = SECONDS  # as in `bench`
face, settings = json.loads(sys.argv[1])
embedder = open_twin(face, **settings)

def call(texts):
    "Ask from the main thread, where signals arrive."
    return asyncio.run(embedder.face.embed(texts)) if face == "async" else embedder.embed(texts)
"""


@dataclass
class Bench:
    """A server, a cache folder, and any number of embedders of one face between them."""

    face: Face
    server: Upstream
    folder: Path
    opened: list[Twin] = field(default_factory=list[Twin])

    def settings(self, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        return {"base_url": self.server.base_url, "cache_dir": str(self.folder), **settings}

    def open(self, **settings: Any) -> Twin:  # noqa: ANN401 - as above
        """Open an embedder; the test should close it, which it does anyway where it fails."""
        twin = open_twin(self.face, **self.settings(**settings))
        self.opened.append(twin)
        return twin

    def start(self, program: str, **settings: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - as above
        """Start a program in a process of its own, where `embedder` is open over the same folder and server."""
        return subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + program, json.dumps([self.face, self.settings(**settings)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        )

    def run(self, program: str, **settings: Any) -> str:  # noqa: ANN401 - as above
        """Run a program as `start` does, to its end, and return what it printed."""
        with self.start(program, **settings) as process:
            told, complaints = process.communicate(timeout=60)
        assert (process.returncode, complaints) == (0, ""), complaints
        return told

    def abandon(self) -> None:
        for twin in self.opened:
            twin.abandon()


@pytest.fixture(params=FACES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A server, an empty cache folder and, one after the other, both faces."""
    # A machine so busy that a write takes longer than a second has calls go on without the store, and warn. That is
    # the store's own matter, and not to be met here by chance.
    monkeypatch.setattr("embcache.stores.disk.PATIENCE", SECONDS)
    made = Bench(request.param, Upstream(), tmp_path / "cache")
    with ExitStack() as stack:
        stack.callback(made.abandon)  # after the server's end, so that nobody waits for an answer any more
        stack.enter_context(made.server)
        yield made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without the backoff before the first few retries: it is for the server, and here it only takes time."""
    monkeypatch.setattr("embcache.retry.FIRST_WAIT", 0.0)
