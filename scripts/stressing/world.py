"""Where a part takes place: a server, a cache folder, a seed, and processes that come and go.

Processes are forked from a clean one that has imported everything, so that hundreds of them cost little. Each begins
with its own embedder; none is forked while one is open.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from embcache import CachedEmbedder, CacheMiss, EmbcacheWarning
from embcache.stores import disk
from scripts.stressing.counts import Counts
from scripts.stressing.guards import take_away

from tests.upstream import Vector, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

DIMS = 64
SILENCE = 60.0
"""Seconds after which a process that says nothing is stuck."""
AT_ONCE = 2_000
"""Texts looked up in one call where many are checked."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["scripts.stressing.parts", "embcache.providers.openai_compatible"])


class Stuck(Exception):
    """A process said nothing for too long, or ended in an error."""


@dataclass(frozen=True)
class World:
    """What every process of a part knows.

    Attributes:
        base_url: of the server.
        folder: for the cache and whatever else the part keeps.
        without: the guard that is taken away, if any.
    """

    base_url: str
    folder: Path
    without: str | None = None

    @property
    def cache_dir(self) -> Path:
        """The cache folder."""
        return self.folder / "cache"

    def open(self, model: str = "model", **settings: Any) -> CachedEmbedder:  # noqa: ANN401 - any setting
        """Open an embedder."""
        return CachedEmbedder(
            model, base_url=self.base_url, api_key="k", **{"cache_dir": self.cache_dir, "progress": False, **settings}
        )

    def start(self, action: Callable[..., None], *arguments: object) -> Child:
        """Begin ``action(world, pipe, *arguments)`` in a process of its own."""
        return Child(self, action, arguments)

    def ask(self, action: Callable[..., None], *arguments: object) -> Any:  # noqa: ANN401 - what it says
        """Return the one thing that ``action`` says in a process of its own, and see it end well."""
        with self.start(action, *arguments) as child:
            answer = child.receive()
            child.join()
        return answer


class Child:
    """A process, and the pipe to it."""

    def __init__(self, world: World, action: Callable[..., None], arguments: Sequence[object]) -> None:
        """Start it."""
        self.pipe, its = _forks.Pipe()
        self._process = _forks.Process(target=_enter, args=(world, its, action, arguments), daemon=True)
        self._process.start()
        its.close()

    def __enter__(self) -> Self:
        """Return the child; it does not outlive the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, however it is."""
        self.kill()
        self.pipe.close()

    def receive(self) -> Any:  # noqa: ANN401 - what it says
        """Return what it says next.

        Raises:
            Stuck: it said nothing, or ended.
        """
        try:
            if not self.pipe.poll(SILENCE):
                raise Stuck(f"a process said nothing for {SILENCE:g} s")
            said = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise Stuck("a process ended before its time") from None
        if isinstance(said, _Failure):
            raise Stuck(said.trace)
        return said

    def rest(self) -> Iterator[Any]:
        """Yield what it had said when it was killed."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                said = self.pipe.recv()
                if isinstance(said, _Failure):
                    raise Stuck(said.trace)
                yield said

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._process.kill()
        self._process.join()

    def join(self) -> None:
        """Wait for its end.

        Raises:
            Stuck: it did not end, or not well.
        """
        self._process.join(SILENCE)
        if self._process.exitcode != 0:
            raise Stuck(f"a process did not end well (exit code {self._process.exitcode})")


@dataclass(frozen=True)
class _Failure:
    trace: str


def _enter(world: World, pipe: Connection, action: Callable[..., None], arguments: Sequence[object]) -> None:
    prepare(world)
    try:
        action(world, pipe, *arguments)
    except BaseException:  # noqa: BLE001 - it is told where somebody waits for it
        pipe.send(_Failure(traceback.format_exc()))


def prepare(world: World) -> None:
    """Have a process see no warnings, wait for a slow machine, and lack the guard that is to be taken away."""
    warnings.simplefilter("ignore", EmbcacheWarning)
    # A write that takes longer than a second is left to itself, and a text is then returned before it is stored. That
    # is promised too, but here the machine may be slow, and what is acknowledged is to be what is stored.
    disk.PATIENCE = SILENCE
    if world.without is not None:
        take_away(world.without)


def right(texts: Sequence[str], dims: int = DIMS) -> Vector:
    """Return what the model makes of ``texts``."""
    return np.stack([vector(text, dims) for text in texts])


def wrong_rows(vectors: Vector, expected: Vector) -> int:
    """Return how many of ``vectors`` differ from ``expected``, by a single bit or more."""
    if vectors.shape != expected.shape or vectors.dtype != np.float32:
        return len(expected)
    return int((vectors.view(np.uint32) != expected.view(np.uint32)).any(axis=1).sum())


def failures(embedder: CachedEmbedder) -> int:
    """Return how many vectors an embedder could not store, as it counted them itself."""
    session = embedder.session
    return session.store_errors + session.store_busy


@contextlib.contextmanager
def counting_stuck(counts: Counts) -> Generator[None]:
    """Count a process that is stuck, and say what it told."""
    try:
        yield
    except Stuck as error:
        counts.stuck += 1
        print(error, file=sys.stderr, flush=True)


def check(world: World, pipe: Connection, texts: Sequence[str], *, integrity: bool = True) -> None:
    """Say what became of ``texts`` that were acknowledged: each is to be there, and right, for a fresh process."""
    counts = Counts(acknowledged=len(texts))
    database = world.cache_dir / disk.database_of(world.cache_dir).name
    if integrity and database.exists():
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            print(f"the database is damaged: {found}", file=sys.stderr, flush=True)
            counts.lost += 1
    with world.open(offline=True) as embedder:
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            try:
                vectors = embedder.embed(some)
            except CacheMiss as miss:
                counts.lost += len(miss.indexes)
                gone = set(miss.indexes)
                some = [text for place, text in enumerate(some) if place not in gone]
                vectors = embedder.embed(some) if some else right([""])[:0]
            counts.wrong += wrong_rows(vectors, right(some)) if some else 0
    pipe.send(counts)


def settle(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Wait for what other threads are about to do; return whether they did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
