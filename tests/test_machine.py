"""Random walks through all that may happen to a cache, against the simplest of models: what was paid for is kept.

The model knows the server's own function, and which inputs a call has stored with nothing going wrong since. Whatever
is done to the cache, every vector is right and no call fails but as documented; and what is kept costs no request.
`scripts/stress --only machine` walks longer.
"""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from embcache import CachedEmbedder, CacheMiss, EmbcacheWarning, StoreError
from embcache.stores import DiskStore
from embcache.stores.upkeep import verify
from scripts.stressing.kills import embed_until_killed
from scripts.stressing.world import World

from tests.upstream import Upstream, vector

DIMS = 64
ALL = [f"text {n}" for n in range(41)]
TEXTS = st.lists(st.sampled_from(ALL), min_size=1, max_size=12) | st.just(ALL)
SETTINGS = st.fixed_dictionaries(
    {"batch_size": st.sampled_from([3, 2048]), "memory_size": st.sampled_from([None, 1 << 20])}
)
DAMAGES = st.sampled_from(
    [
        *(("cache.db", "records", 1), ("cache.db", "records", 64), ("cache.db-wal", "records", 2)),
        *(("cache.db", "flip", 16), ("cache.db", "flip", 128), ("cache.db-wal", "flip", 1)),
        *(("cache.db", "garbage", 100), ("cache.db", "garbage", 40_000), ("cache.db-wal", "garbage", 40_000)),
        *(("cache.db", "truncate", 0), ("cache.db", "replace", 0), ("cache.db", "replace", 1000)),
    ]
)
"""A file, what is done to it, and how much or which bits; of records one bit of each, for one alone is seldom met."""
MIB = 1 << 20
WALKS = partial(
    settings,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Writes to a file without opening it in this process, whose locks of that file SQLite would lose with the descriptor.
OVERWRITE = """
import os, re, sys
file = os.open(sys.argv[1], os.O_RDWR)
part, how, amount = float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
content = os.pread(file, os.fstat(file).st_size, 0)
if how == "garbage":
    os.pwrite(file, os.urandom(amount), int(part * len(content)))
else:
    records = [found.start() + 150 for found in re.finditer(b"ECV1", content)]
    for place in records if how == "records" else [int(part * len(content))]:
        if place < len(content):
            os.pwrite(file, bytes([content[place] ^ amount]), place)
"""


class Machine(RuleBasedStateMachine):
    """One server, one cache folder, one embedder that is reopened now and then, and what others do to them."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Upstream(dims=DIMS)
        self.server.__enter__()
        self.world = World(self.server.base_url, Path(tempfile.mkdtemp(prefix="embcache-machine-")))
        self.path = self.world.cache_dir / "cache.db"
        # How long a write waits for a lock is the store's own matter; here it only takes time.
        self.patience = patch("embcache.stores.disk.LOCK_PATIENCE", 0.05)
        self.patience.start()
        self.kept: set[str] = set()
        self.damaged = False
        self.holder: sqlite3.Connection | None = None
        self.killed = 0
        self.embedder: CachedEmbedder

    @initialize(settings=SETTINGS)
    def begin(self, settings: dict[str, Any]) -> None:
        self.embedder = self.world.open(**settings)

    # What the user does

    @rule(texts=TEXTS)
    def embed(self, texts: list[str]) -> None:
        self.ask(texts)

    @rule(texts=TEXTS)
    def refresh(self, texts: list[str]) -> None:
        self.ask(texts, refresh=True)

    @rule(settings=SETTINGS)
    def reopen(self, settings: dict[str, Any]) -> None:
        self.quietly(self.embedder.close)
        self.embedder = self.world.open(**settings)

    @rule(texts=TEXTS)
    def forget(self, texts: list[str]) -> None:
        forgotten = set(texts)
        try:
            removed = self.quietly(lambda: self.embedder.forget(texts))
        except StoreError:
            assert self.holder is not None or self.damaged
            self.kept -= forgotten  # whether they are gone is not told
        else:
            assert self.damaged or removed >= len(forgotten & self.kept)
            self.kept -= forgotten

    @rule(texts=TEXTS)
    def offline(self, texts: list[str]) -> None:
        with self.quiet(), self.world.open(offline=True) as embedder:
            sent = len(self.server.requests)
            try:
                vectors = embedder.embed(texts)
            except CacheMiss as miss:
                missed = {texts[index] for index in miss.indexes}
                assert missed
                assert self.damaged or not missed & self.kept
            else:
                self.are_right(texts, vectors)
            assert len(self.server.requests) == sent

    # What happens to the cache

    @rule()
    def fill(self) -> None:
        """An embedder with a limit stores more than that: the oldest go, and which these are is not the model's."""
        texts = [f"filler {n}" for n in range(300)]
        with self.quiet(), self.world.open(size_limit=MIB, dimensions=1024) as embedder:
            vectors = embedder.embed(texts, refresh=True)
        assert np.array_equal(vectors, np.stack([vector(text, 1024) for text in texts]))
        self.kept.clear()

    @rule(texts=TEXTS, room=st.integers(0, 200_000))
    def full_disk(self, texts: list[str], room: int) -> None:
        """No file grows beyond so many bytes, as on a disk that has no more: what fails is counted."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            self.ask(texts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @precondition(lambda self: self.holder is None and self.path.is_file())
    @rule()
    def lock(self) -> None:
        """Somebody else begins to write, and does not end."""
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            assert self.damaged
            connection.close()
        else:
            self.holder = connection

    @precondition(lambda self: self.holder is not None)
    @rule()
    def release(self) -> None:
        assert self.holder is not None
        self.holder.close()
        self.holder = None

    @precondition(lambda self: self.holder is None and not self.damaged)
    @rule(acknowledged=st.integers(0, 3), seed=st.integers(0, 2**32))
    def kill(self, acknowledged: int, seed: int) -> None:
        """Another process is killed while it embeds: what it had acknowledged is there."""
        self.killed += 1
        with self.world.start(embed_until_killed, self.killed, seed) as child:
            said = [child.receive() for _ in range(acknowledged + 1)][1:]
            child.kill()
            said += [one for one in child.rest() if one != "begins"]
        assert not sum(wrong for _, wrong in said)
        texts = [text for some, _ in said for text in some]
        if texts:
            with self.quiet(), self.world.open(offline=True) as embedder:
                self.are_right(texts, embedder.embed(texts))

    @precondition(lambda self: self.path.is_file())
    @rule(closed=st.booleans(), damage=DAMAGES, place=st.floats(0, 1, exclude_max=True), asked=st.booleans())
    def corrupt(self, closed: bool, damage: tuple[str, str, int], place: float, asked: bool) -> None:
        """A file is damaged under an open embedder, or before it looks; most is noticed by who asks for everything."""
        if closed:
            self.reopen({})
        self.damaged = True
        name, how, amount = damage
        path = self.world.cache_dir / name
        if how == "truncate":
            os.truncate(path, int(place * path.stat().st_size))
        elif how == "replace":  # by a file of nobody's making
            other = self.world.folder / "other"
            other.write_bytes(os.urandom(amount))
            other.chmod(0o600)
            other.replace(path)
        elif path.exists():
            words = map(str, (path, place, how, amount))
            subprocess.run([sys.executable, "-I", "-S", "-c", OVERWRITE, *words], check=True)
        if asked:
            self.ask(ALL)

    @precondition(lambda self: self.damaged and self.holder is None)
    @rule()
    def repair(self) -> None:
        """After a repair nothing is damaged any more; what was saved is as good as what is bought from now on."""
        self.quietly(self.embedder.close)
        store = DiskStore(self.world.cache_dir)
        verify(store, repair=True)
        assert verify(store, repair=False).is_clean
        store.close()
        self.embedder = self.world.open()
        self.damaged = False
        self.kept.clear()

    # What holds

    def ask(self, texts: list[str], *, refresh: bool = False) -> None:
        """Embed: the vectors are right, what is kept is not sent for, and what was stored is kept from now on."""
        sent, failed = len(self.server.requests), self.failures()
        vectors = self.quietly(lambda: self.embedder.embed(texts, refresh=refresh))
        self.are_right(texts, vectors)
        asked = [str(item) for request in self.server.requests[sent:] for item in request.inputs]
        assert len(set(asked)) == len(asked)
        assert set(asked) <= set(texts)
        if refresh:
            assert set(asked) == set(texts)
        elif not self.damaged:
            assert not set(asked) & self.kept
        if not self.damaged and self.failures() == failed:
            self.kept |= set(asked)

    def are_right(self, texts: list[str], vectors: np.ndarray) -> None:
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, np.stack([vector(text, DIMS) for text in texts]))

    def failures(self) -> int:
        session = self.embedder.session
        return session.store_errors + session.store_busy

    def quiet(self) -> warnings.catch_warnings[Any]:
        return warnings.catch_warnings(action="ignore", category=EmbcacheWarning)

    def quietly(self, action: Any) -> Any:  # noqa: ANN401 - what it returns
        """Warnings of the cache are what a user is told; here they would fail the test."""
        with self.quiet():
            return action()

    def teardown(self) -> None:
        """In the end all that is kept is there for whoever opens the cache next."""
        try:
            if self.holder is not None:
                self.release()
            if hasattr(self, "embedder"):
                self.quietly(self.embedder.close)
            if self.kept and not self.damaged:
                self.offline(sorted(self.kept))
                store = DiskStore(self.world.cache_dir)
                assert verify(store, repair=False).is_clean
                store.close()
        finally:
            self.patience.stop()
            self.server.close()
            shutil.rmtree(self.world.folder)


TestMachine = Machine.TestCase
# A walk takes far longer than what else Hypothesis tries out here.
TestMachine.settings = WALKS(max_examples=settings().max_examples // 20)
