"""What the machine allows: the same work without what makes embcache a cache to rely on, or with another engine below.

Runs in .venv. The rows over LMDB do what embcache does for a hit, with its own keys, codec and proofs, and no more.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import xxhash

from embcache.codec import FLOAT32, Understood, open_entries
from embcache.keys import fingerprints
from embcache.stores import DiskStore
from scripts.benchmarks import corpus
from scripts.benchmarks.ours import CALLS, MODEL, SPACE
from scripts.benchmarks.worker import Facts, main, timed

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 256
"""Texts at a time, over LMDB; tried from 64 to 2,000, this is where it is fastest."""
MAP_SIZE = 1 << 40
FILL = 2000
"""Records in a transaction, where LMDB is filled."""


def lmdb_fill(store: str, folder: str) -> Facts:
    """Copy embcache's own records from its store, in the order of their keys, which LMDB likes best."""
    import lmdb

    source = DiskStore(store)
    keys = sorted(key for key, _, _ in source.scan())
    with lmdb.open(folder, map_size=MAP_SIZE, sync=False) as env:
        for start in range(0, len(keys), FILL):
            part = keys[start : start + FILL]
            records = source.get_many(part)
            with env.begin(write=True) as transaction:
                for key in part:
                    transaction.put(key, records[key], append=True)
        env.sync(True)  # noqa: FBT003 - takes it by position only
    source.close()
    return {"n": len(keys)}


def lmdb_warm(texts: str, folder: str, count: int) -> Facts:
    """Read many texts: hash, look up, prove, gather."""
    import lmdb

    of = corpus.load(texts, count)

    def read() -> np.ndarray:
        out = np.empty((count, corpus.DIMS), dtype=FLOAT32)
        understood: Understood = {}
        with lmdb.open(folder, readonly=True, lock=False, map_size=MAP_SIZE) as env:
            for start in range(0, count, CHUNK):
                keys, digests = fingerprints(SPACE, "text", [text.encode() for text in of[start : start + CHUNK]])
                with env.begin() as transaction:
                    get = transaction.get
                    records = [get(key) or b"" for key in keys]
                    opened = open_entries(records, digests, corpus.DIMS, understood, out[start : start + CHUNK])
                if len(opened.hits) != len(keys):
                    message = "an entry failed its proof"
                    raise AssertionError(message)
        return out

    seconds, answer = timed(read)
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


def mapped_fill(texts: str, folder: str) -> Facts:
    """Write the vectors to a plain file, and the sorted hashes of the texts with their rows to another."""
    of = corpus.load(texts)
    Path(folder).mkdir()
    hashes = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in of], dtype=np.uint64)
    order = np.argsort(hashes)
    np.save(Path(folder, "hashes.npy"), hashes[order])
    np.save(Path(folder, "rows.npy"), order)
    np.save(Path(folder, "vectors.npy"), corpus.vectors(of))
    return {}


def mapped_warm(texts: str, folder: str, count: int) -> Facts:
    """Read many texts: hash and gather, nothing proved."""
    of = corpus.load(texts, count)

    def read() -> np.ndarray:
        hashes, rows, vectors = (
            np.load(Path(folder, f"{name}.npy"), mmap_mode="r") for name in ("hashes", "rows", "vectors")
        )
        asked = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in of], dtype=np.uint64)
        places = np.searchsorted(hashes, asked)
        if not np.array_equal(hashes[places], asked):
            message = "a text was not found"
            raise AssertionError(message)
        return vectors[rows[places]]  # type: ignore[no-any-return]

    seconds, answer = timed(read)
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


def dict_stack(texts: str, count: int) -> Facts:
    """Read many texts from a plain dict of arrays."""
    of = corpus.load(texts, count)
    held = dict(zip(of, corpus.vectors(of), strict=True))
    seconds = sorted(timed(lambda: np.stack([held[text] for text in of]))[0] for _ in range(CALLS))[CALLS // 2]
    corpus.check(of, np.stack([held[text] for text in of]))
    return {"seconds": seconds, "n": count}


def httpx_cold(texts: str, url: str, count: int) -> Facts:
    """Ask for many texts in one request with bare httpx, json and base64, and store nothing."""
    import httpx

    of = corpus.load(texts)
    with httpx.Client() as client:

        def ask(part: list[str]) -> np.ndarray:
            body = {"model": MODEL, "input": part, "encoding_format": "base64"}
            data = json.loads(client.post(f"{url}/embeddings", json=body).content)["data"]
            joined = b"".join(base64.b64decode(datum["embedding"]) for datum in data)
            return np.frombuffer(joined, dtype=FLOAT32).reshape(len(part), -1)

        first, answer = timed(lambda: ask(of[:count]))
        seconds, answer = timed(lambda: ask(of[count : 2 * count]))
    corpus.check(of[count : 2 * count], answer)
    return {"first": first, "seconds": seconds, "n": count}


def bare_slow(texts: str, url: str, count: int, batch_size: int, concurrency: int) -> Facts:
    """Send requests that were encoded beforehand, so many at a time, and drop the answers: what the server needs."""
    of = corpus.load(texts, count)
    target = urlsplit(url)
    waiting: list[bytes] = []
    for start in range(0, count, batch_size):
        asked = {"model": MODEL, "input": of[start : start + batch_size], "encoding_format": "base64"}
        body = json.dumps(asked).encode()
        head = f"POST {target.path}/embeddings HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        waiting.append(head.encode() + body)
    requests = len(waiting)
    with contextlib.ExitStack() as open_connections:
        connections = [
            open_connections.enter_context(socket.create_connection((target.hostname or "", target.port or 80)))
            for _ in range(concurrency)
        ]
        threads = [threading.Thread(target=_exchange, args=(connection, waiting)) for connection in connections]

        def run() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        seconds, _ = timed(run)
    return {"seconds": seconds, "n": count, "requests": requests}


def _exchange(connection: socket.socket, waiting: list[bytes]) -> None:
    """Send what is waiting, one request after the other."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(1 << 20)
    while True:
        try:
            request = waiting.pop()
        except IndexError:  # another connection took the last one
            return
        connection.sendall(request)
        received = connection.recv(4096)
        end = received.index(b"\r\n\r\n") + 4
        length = int(received[:end].lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        left = length - (len(received) - end)
        while left:
            left -= connection.recv_into(buffer, min(left, len(buffer)))


JOBS: dict[str, Callable[..., Facts]] = {
    "lmdb_fill": lmdb_fill,
    "lmdb_warm": lmdb_warm,
    "mapped_fill": mapped_fill,
    "mapped_warm": mapped_warm,
    "dict_stack": dict_stack,
    "httpx_cold": httpx_cold,
    "bare_slow": bare_slow,
}

if __name__ == "__main__":
    main(JOBS)
