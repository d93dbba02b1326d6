"""A small embeddings server on this machine, which stands for an API in `rerun.ipynb`."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DIMENSIONS = 1024


def vector(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a vector that is always the same for `text`, and means nothing."""
    words = np.frombuffer(hashlib.shake_256(text.encode()).digest(4 * DIMENSIONS), dtype="<u4")
    return (words / 2.0**31 - 1.0).astype(np.float32)


class Server:
    """Answers until the process ends.

    Attributes:
        received: how many texts each request brought.
        base_url: where it is to be asked.
    """

    def __init__(self) -> None:
        """Begin to answer, at any port that is free."""
        self.received: list[int] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts = asked["input"]
                received.append(len(texts))
                tokens = sum(len(text.split()) for text in texts)
                data = [
                    {"object": "embedding", "index": n, "embedding": base64.b64encode(vector(text)).decode()}
                    for n, text in enumerate(texts)
                ]
                usage = {"prompt_tokens": tokens, "total_tokens": tokens}
                body = json.dumps({"object": "list", "data": data, "model": asked["model"], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
