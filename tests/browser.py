"""A real browser that looks at a page: Chromium without a window, with a new profile each time."""

from __future__ import annotations

import subprocess
import tempfile
import zlib
from typing import TYPE_CHECKING, Literal

from tests.programs import tool

if TYPE_CHECKING:
    from pathlib import Path

Scheme = Literal["light", "dark"]
SCHEMES: dict[Scheme, str] = {"dark": "preferredColorScheme=0", "light": "preferredColorScheme=1"}
SECONDS = 60
# Nothing that a browser does of its own accord: it asks nobody anything but what the page has it ask.
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def _look(page: Path, *options: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [tool("chromium"), *QUIET, f"--user-data-dir={profile}", *options, page.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout


def dom(page: Path) -> str:
    """The document as the browser has it once it is loaded."""
    return _look(page, "--dump-dom")


def picture(page: Path, to: Path, *, size: tuple[int, int], scheme: Scheme = "light") -> None:
    """Write what is to be seen as a PNG; `size` is the width and height of the window."""
    shown = f"--blink-settings={SCHEMES[scheme]}"
    _look(page, f"--screenshot={to.absolute()}", "--window-size={},{}".format(*size), shown)


def corner(png: Path) -> str:
    """The colour of a picture's first pixel: `#ffffff`."""
    data, at, packed = png.read_bytes(), 8, b""
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += length + 12
    return "#" + zlib.decompress(packed)[1:4].hex()  # after the filter's number; the first pixel is never filtered
