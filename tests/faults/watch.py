"""What every row of the fault matrix asserts beside its own promise, and the embedders that are watched for it.

    def test_s99_something(watch: Watch) -> None:
        with watch.open() as one:
            watch.embed(one, watch.texts(9))      # each vector is the server's own
            ...                                   # the fault
            watch.embed(one, watch.texts(9))
            assert moved(one) == {"corrupt": 1}   # this counter, and no other
            ...                                   # the fault is lifted
            watch.works(one)                      # as before, in the same process

After the test the fixture sees to the rest: no API key and no text anywhere but in the requests, no thread and no
descriptor left over, and no warning that is none of embcache's.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embcache import CachedEmbedder, EmbcacheWarning, codec
from embcache.types import FAULT_COUNTERS

from tests.twins import everything, files_of, right, same, soon
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import pytest

    from embcache import CacheStats, EmbedResult

KEY = "sk-CANARY"
CANARY = "TEXT-CANARY"
DESCRIPTORS = Path("/proc/self/fd")


def moved(one: CachedEmbedder) -> dict[str, int]:
    """The counters of faults that have moved since the embedder was made."""
    return faults(one.session)


def faults(figures: CacheStats) -> dict[str, int]:
    """The counters of faults that are not zero."""
    return {name: getattr(figures, name) for name in FAULT_COUNTERS if getattr(figures, name)}


def believing(records: Sequence[bytes], digests: Sequence[bytes], *rest: Any) -> codec.Opened:  # noqa: ANN401 - as is
    """Open entries as a cache does that believes whatever bytes it finds: each is sealed anew before it is proved.

    Put in place of `keeper.open_entries` it shows that a test fails where nothing is proved.
    """
    sealed = [codec.seal(digest, record[codec.HEAD :]) for record, digest in zip(records, digests, strict=True)]
    return codec.open_entries(sealed, digests, *rest)


@dataclass
class Watch:
    """A server, a cache folder, and whatever embedders between them have said."""

    server: Upstream
    folder: Path
    warned: list[warnings.WarningMessage]
    told: list[str] = field(default_factory=list[str])
    opened: list[CachedEmbedder] = field(default_factory=list[CachedEmbedder])
    numbers: count[int] = field(default_factory=count)

    def texts(self, number: int) -> list[str]:
        """Texts that must be seen nowhere."""
        return [f"{CANARY} {n}" for n in range(number)]

    def open(self, **settings: Any) -> CachedEmbedder:  # noqa: ANN401 - any setting
        """An embedder of the server and the folder, with a key that must be seen nowhere."""
        given: dict[str, Any] = {"base_url": self.server.base_url, "api_key": KEY, "cache_dir": self.folder, **settings}
        one = CachedEmbedder("m", **given)
        self.opened.append(one)
        return one

    def embed(self, one: CachedEmbedder, texts: Sequence[str], **how: Any) -> EmbedResult:  # noqa: ANN401 - as it takes
        """Embed, and see that every vector is the server's own for that very text."""
        result = one.embed_result(list(texts), **how)
        assert same(result.vectors, right(texts, self.server.dims)), "a wrong vector"
        return result

    def hits(self, one: CachedEmbedder, texts: Sequence[str]) -> None:
        """See that all of these are served, each right, and that nothing is sent."""
        before = len(self.server.requests)
        result = self.embed(one, texts)
        assert (result.hits, result.misses, len(self.server.requests) - before) == (len(texts), 0, 0)

    def works(self, one: CachedEmbedder) -> None:
        """See that the embedder buys what is new, once, keeps it, and has nothing further to complain of."""
        fresh = [f"{CANARY} afterwards {next(self.numbers)}" for _ in range(3)]
        before = moved(one)
        assert self.embed(one, fresh).misses == len(fresh)
        self.hits(one, fresh)
        with self.open(offline=True) as other:  # kept, and not only held by the first one
            self.embed(other, fresh)
        assert moved(one) == before

    @contextmanager
    def raises(self, kind: type[Exception]) -> Generator[list[Exception]]:
        """Take the error that is expected, and look at all it shows when the test is over."""
        caught: list[Exception] = []
        try:
            yield caught
        except kind as error:
            caught.append(error)
            self.told.extend(everything(error))
        else:
            raise AssertionError(f"no {kind.__name__} was raised")

    def warnings(self) -> list[str]:
        """What was warned of since last asked."""
        given = [str(warning.message) for warning in self.warned if warning.category is EmbcacheWarning]
        self.told.extend(given)
        self.warned[:] = [warning for warning in self.warned if warning.category is not EmbcacheWarning]
        return given

    def check_secrets(self, logged: str) -> None:
        """See that neither key nor text is in anything that was logged, warned of, raised, counted or kept."""
        self.warnings()
        for one in self.opened:
            self.told += [repr(one), repr(one.session), str(one.session)]
        for secret in (KEY, CANARY):
            assert secret not in "\n".join([logged, *self.told])
            assert secret.encode() not in (files_of(self.folder) if self.folder.is_dir() else b"")

    def close(self) -> None:
        """Close what the test has left open, as where it failed."""
        for one in self.opened:
            one._end()


def descriptors() -> Counter[str]:
    """What this process holds open, as far as that can be known."""
    found: Counter[str] = Counter()
    for entry in DESCRIPTORS.iterdir() if DESCRIPTORS.exists() else ():
        with suppress(OSError):  # the folder's own, which is closed by now
            # By kind where there is no name: a socket, a pipe, or a temporary file, as pytest has for what is printed.
            found[re.sub(r":\[\d+\]|#\d+", "", str(entry.readlink()))] += 1
    found.pop(f"/proc/{os.getpid()}/fd", None)
    return found


@contextmanager
def watching(folder: Path, logs: pytest.LogCaptureFixture, prints: pytest.CaptureFixture[str]) -> Generator[Watch]:
    """Watch embedders over `folder` from here to the end, and assert what holds whatever happens."""
    threads, held = set(threading.enumerate()), descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with Upstream(dims=64) as server:
            watch = Watch(server, folder, warned)
            try:
                yield watch
            finally:
                watch.close()
        printed = prints.readouterr()
        # `logs.text` is of the phase that runs, which is the end of the test by now.
        logged = [f"{logs.handler.format(record)} {record.args!r}" for record in logs.get_records("call")]
        watch.check_secrets("\n".join([*logged, printed.out, printed.err]))
    strange = [str(one.message) for one in warned if one.category is not EmbcacheWarning]
    assert strange == []
    assert soon(lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    assert soon(lambda: not descriptors() - held), descriptors() - held
