"""embcache itself, measured as a user calls it. Runs in .venv."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import time
from itertools import islice
from typing import TYPE_CHECKING, Any
from zlib import crc32

from embcache import AsyncCachedEmbedder, CachedEmbedder, StoreBusy
from embcache.codec import Entry, seal_entry
from embcache.keys import encode_space, fingerprints, make_space
from embcache.stores import DiskStore
from embcache.usage import DAY_SECONDS, account_of
from scripts.benchmarks import corpus
from scripts.benchmarks.worker import Facts, clock, main, peak_bytes, timed, typical, wait_for_go

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

MODEL = "baai/bge-m3"
PROVIDER = "benchmark"
SPACE = make_space(PROVIDER, MODEL, "base64")
NOBODY = "http://127.0.0.1:9/v1"
"""Where nobody answers: a warm cache asks nobody."""
TIER = 1 << 30
"""Bytes of the memory tier, enough for all that is asked for here."""
PUT, ATTEMPTS = 500, 10
BOOK_ROWS = 20_000
CALLS = 5
"""Calls whose median is taken where a call takes milliseconds."""


def has(name: str) -> bool:
    """Whether the embedder has this argument or method yet."""
    return name in inspect.signature(CachedEmbedder.__init__).parameters or hasattr(CachedEmbedder, name)


def _settings(folder: str, url: str = NOBODY, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - as the constructor
    return {
        "base_url": url,
        "api_key": "none",
        "provider_name": PROVIDER,
        "cache_dir": folder,
        "on_store_error": "raise",  # what is not stored would be measured as fast
        "progress": False,
    } | more


def _all_hits(embedder: CachedEmbedder | AsyncCachedEmbedder) -> None:
    if embedder.session.misses or embedder.session.requests:
        message = "a warm cache asked for an embedding"
        raise AssertionError(message)


def fill(texts: str, folder: str, url: str) -> Facts:
    """Buy and store all texts."""
    of = corpus.load(texts)
    with CachedEmbedder(MODEL, **_settings(folder, url, max_concurrency=1)) as embedder:
        corpus.check(of, embedder.embed(of))
        if embedder.stats().entries != len(of):
            message = "not everything was stored"
            raise AssertionError(message)
    return {}


def fill_book(folder: str, entries: int, days: int, models: int) -> Facts:
    """Store the accounts of a long life, and rows that are entries to whoever counts them; nobody reads them here."""
    now = 20_000 * DAY_SECONDS
    spaces = [make_space(PROVIDER, f"model {number}", "base64") for number in range(models)]
    counts = {"hits": 900, "misses": 100, "requests": 3, "billed_tokens": 12_000, "saved_tokens": 99_000}
    store = DiskStore(folder)
    store.put_many({}, {account_of(space, now + day * DAY_SECONDS): counts for space in spaces for day in range(days)})
    for start in range(0, entries, BOOK_ROWS):
        rows = {number.to_bytes(16, "big"): bytes(64) for number in range(start, min(start + BOOK_ROWS, entries))}
        store.put_many(rows, space=encode_space(spaces[0]))
    store.close()
    return {}


def fill_large(texts: str, folder: str, count: int) -> Facts:
    """Store the first ``count`` texts as embedders do, but without a server."""
    store, pool = DiskStore(folder), corpus.pool()
    stream = corpus.stream(texts, count)
    while part := list(islice(stream, PUT)):
        keys, digests = fingerprints(SPACE, "text", [text.encode() for text in part])
        records = {
            key: seal_entry(digest, pool[corpus.place(text)].tobytes(), _entry(text))
            for key, digest, text in zip(keys, digests, part, strict=True)
        }
        for _ in range(ATTEMPTS):
            with contextlib.suppress(StoreBusy):
                store.put_many(records, space=encode_space(SPACE))
                break
            time.sleep(1)  # other work keeps the disk busy
    held = sum(entries for entries, _ in store.totals().spaces.values())
    store.close()
    if held != count:
        message = f"{held} of {count} entries were stored"
        raise AssertionError(message)
    return {}


def _entry(text: str) -> Entry:
    """Return what stands beside the vector of ``text``, in a cache that was filled by small calls over some months."""
    return Entry(corpus.DIMS, MODEL, len(text) // 4, exact=False, created=1_800_000_000 + crc32(text.encode()) // 400)


def warm(texts: str, folder: str, count: int) -> Facts:
    """Read many texts in one call, the first of the process."""
    of = corpus.load(texts, count)
    with CachedEmbedder(MODEL, **_settings(folder)) as embedder:
        seconds, answer = timed(lambda: embedder.embed(of))
        corpus.check(of, answer)
        _all_hits(embedder)
    return {"seconds": seconds, "n": count}


def one(texts: str, folder: str, count: int, memory_size: int | None = None) -> Facts:
    """Read texts one by one, and take the median."""
    of = corpus.load(texts, count)
    more: dict[str, Any] = {} if memory_size is None else {"memory_size": memory_size}
    with CachedEmbedder(MODEL, **_settings(folder, **more)) as embedder:
        embedder.embed(of)
        seconds = typical(embedder.embed, of)
        _all_hits(embedder)
    return {"seconds": seconds, "n": count}


def tier(texts: str, folder: str, count: int) -> Facts:
    """Read many texts in one call, all of them held in memory."""
    of = corpus.load(texts, count)
    with CachedEmbedder(MODEL, **_settings(folder, memory_size=TIER)) as embedder:
        embedder.embed(of)
        seconds = sorted(timed(lambda: embedder.embed(of))[0] for _ in range(CALLS))[CALLS // 2]
        corpus.check(of, embedder.embed(of))
        _all_hits(embedder)
    return {"seconds": seconds, "n": count}


def cold(texts: str, folder: str, url: str, count: int) -> Facts:
    """Buy many texts in one call; twice, the first time with what a first call in a process has to do."""
    of = corpus.load(texts)
    embedder = CachedEmbedder(MODEL, **_settings(folder, url))
    first, answer = timed(lambda: embedder.embed(of[:count]))
    corpus.check(of[:count], answer)
    del answer
    seconds, answer = timed(lambda: embedder.embed(of[count : 2 * count]))
    corpus.check(of[count : 2 * count], answer)
    if embedder.stats().entries != 2 * count:
        message = "not everything was stored"
        raise AssertionError(message)
    return {"first": first, "seconds": seconds, "close": timed(embedder.close)[0], "n": count}


def slow(texts: str, folder: str, url: str, count: int, batch_size: int) -> Facts:
    """Buy many texts in many requests of a server that takes its time."""
    of = corpus.load(texts, count + 1)
    with CachedEmbedder(MODEL, **_settings(folder, url, batch_size=batch_size)) as embedder:
        embedder.embed(of.pop())
        seconds, answer = timed(lambda: embedder.embed(of))
        corpus.check(of, answer)
        return {"seconds": seconds, "n": count, "requests": embedder.session.requests - 1}


def memory(texts: str, folder: str, count: int) -> Facts:
    """Measure by how much a call that reads many texts raises the memory above its result."""
    of = corpus.load(texts, count)
    with CachedEmbedder(MODEL, **_settings(folder)) as embedder:
        embedder.embed(of[:10])
        peak, answer = peak_bytes(lambda: embedder.embed(of))
        corpus.check(of, answer)
        _all_hits(embedder)
    return {"bytes": peak - answer.nbytes, "n": count}


def stream(texts: str, folder: str, count: int) -> Facts:
    """Measure by how much `embed_iter` over an iterator raises the memory, whatever it yields being dropped."""
    with CachedEmbedder(MODEL, **_settings(folder)) as embedder:
        embedder.embed(corpus.load(texts, 10))

        def read() -> int:
            arrays: Iterator[np.ndarray] = embedder.embed_iter(corpus.stream(texts, count))
            return sum(len(array) for array in arrays)

        peak, read_in_all = peak_bytes(read)
        if read_in_all != count:
            message = f"{read_in_all} vectors for {count} texts"
            raise AssertionError(message)
        _all_hits(embedder)
    return {"bytes": peak, "n": count}


def reader(texts: str, folder: str, count: int, times: int) -> Facts:
    """Read many texts again and again, beginning when told to."""
    of = corpus.load(texts, count)
    with CachedEmbedder(MODEL, **_settings(folder)) as embedder:
        corpus.check(of, embedder.embed(of))
        wait_for_go()
        seconds, _ = timed(lambda: [len(embedder.embed(of)) for _ in range(times)])
        _all_hits(embedder)
    return {"seconds": seconds, "n": count * times}


def singles(texts: str, folder: str, count: int) -> Facts:
    """Read texts one after the other."""
    of = corpus.load(texts, count)
    with CachedEmbedder(MODEL, **_settings(folder)) as embedder:
        embedder.embed(of[0])
        seconds, answer = timed(lambda: [embedder.embed(text) for text in of])
        corpus.check(of, answer)
        _all_hits(embedder)
    return {"seconds": seconds, "n": count}


def tasks(texts: str, folder: str, count: int, url: str = NOBODY) -> Facts:
    """Ask for texts in as many tasks at the same time, and count the requests."""
    of = corpus.load(texts, count + 1)

    async def ask() -> Facts:
        async with AsyncCachedEmbedder(MODEL, **_settings(folder, url)) as embedder:
            await embedder.embed(of.pop())
            before = embedder.session.requests

            async def gather() -> list[np.ndarray]:
                return await asyncio.gather(*[embedder.embed(text) for text in of])

            gc.collect()  # as `timed` does
            begun = clock()
            answer = await gather()
            seconds = clock() - begun
            corpus.check(of, answer)
            return {"seconds": seconds, "n": count, "requests": embedder.session.requests - before}

    return asyncio.run(ask())


JOBS: dict[str, Callable[..., Facts]] = {
    "fill": fill,
    "fill_book": fill_book,
    "fill_large": fill_large,
    "warm": warm,
    "one": one,
    "tier": tier,
    "cold": cold,
    "slow": slow,
    "memory": memory,
    "stream": stream,
    "reader": reader,
    "singles": singles,
    "tasks": tasks,
}

if __name__ == "__main__":
    main(JOBS)
