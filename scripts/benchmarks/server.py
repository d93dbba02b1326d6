"""The server of the cold rows, in a process of its own: answers embeddings requests at once, or after a wait.

As little as can be called an HTTP server, so that it is never what is measured: a thread a connection, vectors encoded
beforehand, one write an answer, TCP_NODELAY. It prints its port, and ends when its standard input does.

    POST /v1/embeddings           answers at once
    POST /MILLISECONDS/v1/embeddings  answers after so many milliseconds
    GET  /requests                how many requests for embeddings there were
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from functools import cache

from scripts.benchmarks import corpus

RECEIVE = 1 << 20


class Server:
    """Listens on a loopback port of the system's choice."""

    def __init__(self) -> None:
        """Encode the vectors and listen."""
        self._encoded = corpus.as_base64()
        self._pool = corpus.pool()
        self._requests = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Take connections until the process ends."""
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            received = bytearray()
            while True:
                while (end := received.find(b"\r\n\r\n")) < 0:
                    chunk = connection.recv(RECEIVE)
                    if not chunk:
                        return
                    received += chunk
                head = received[:end].decode("latin-1").split("\r\n")
                fields = (line.partition(":") for line in head)
                length = next((int(value) for name, _, value in fields if name.lower() == "content-length"), 0)
                while len(received) < end + 4 + length:
                    chunk = connection.recv(RECEIVE)
                    if not chunk:
                        return
                    received += chunk
                body = bytes(received[end + 4 : end + 4 + length])
                del received[: end + 4 + length]
                answer = self._answer(head[0].split(" ")[1], body)
                told = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
                connection.sendall(told.encode() + answer)

    def _answer(self, path: str, body: bytes) -> bytes:
        if path == "/requests":
            return json.dumps(self._requests).encode()
        with self._lock:
            self._requests += 1
        wait = path.split("/")[1]
        if wait.isdecimal():
            time.sleep(int(wait) / 1000)
        asked = json.loads(body)
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        encode = self._base64 if asked.get("encoding_format") == "base64" else self._float
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, encode(corpus.place(text)))
            for index, text in enumerate(texts)
        )
        tokens = sum(map(len, texts)) // 4
        rest = {"model": asked["model"], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        return b'{"object":"list","data":[' + data + b"]," + json.dumps(rest).encode()[1:]

    def _base64(self, place: int) -> bytes:
        return self._encoded[place]

    @cache  # noqa: B019 - there is one server, and it lives as long as its process
    def _float(self, place: int) -> bytes:
        return corpus.as_floats(self._pool[place])


def main() -> None:
    """Serve until standard input ends, which it does when the benchmark goes, however it goes."""
    server = Server()
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()
    os._exit(0)  # no connection is waited for


if __name__ == "__main__":
    main()
