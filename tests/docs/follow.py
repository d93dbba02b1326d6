"""Do what a page of documentation says, from its first block to its last: run as a program, with the blocks as JSON.

The blocks share one interpreter and one folder, as for somebody who types them in. The first that fails ends it.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Block = tuple[str, str, str]
"""What to do, its argument, and the text of the block."""


def follow(blocks: list[Block]) -> None:
    """Do `blocks` one after the other."""
    known: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for number, (kind, argument, text) in enumerate(blocks, 1):
        if kind == "python":
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                exec(compile(text, f"<block {number}>", "exec"), known)  # noqa: S102 - the page's own words
            printed = shown.getvalue()
        elif kind == "sh":
            subprocess.run(["/bin/sh", "-ec", text], check=True)
        elif kind == "file":
            Path(argument).write_text(text)
        else:
            assert kind == "prints", kind
            assert printed == text, f"block {number}: the page says {text!r}, and it printed {printed!r}"


if __name__ == "__main__":
    follow([tuple(block) for block in json.load(sys.stdin)])
