"""Print the reference of the command line, made of what `--help` says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

HEAD = """# The command line

Made by `scripts/reference` from what `--help` says. Results go to standard output, everything else in lines that begin
with `embcache:` to standard error; no line ever holds a text or an API key.
"""


def told(*command: str) -> str:
    """Return the help of a command."""
    # As wide as typer's help gets, whatever the terminal; plain, whatever the environment wants.
    env = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [sys.executable, "-m", "embcache", *command, "--help"]
    done = subprocess.run(arguments, env=env, capture_output=True, check=True, text=True)  # noqa: S603 - our own command
    return done.stdout.strip()


def main() -> None:
    """Print the help of `embcache` and of each of its commands."""
    root = told()
    _, _, listed = root.partition("Commands:\n")
    commands = re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE)
    print(HEAD)
    for command in [(), *((name,) for name in commands)]:
        print(f"## {' '.join(['embcache', *command])}\n\n```text\n{told(*command)}\n```\n")


if __name__ == "__main__":
    main()
