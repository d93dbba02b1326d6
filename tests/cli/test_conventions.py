"""What holds for every command alike, those to come included: help, quietness, completion, colours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from embcache.cli import app

from tests.cli.commands import KEY, Terminal, embcache, passages, started
from tests.programs import ROOT, tool
from tests.upstream import Upstream, hang

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [str(command.name) for command in app.registered_commands]
TOLD_IN_JSON = [["doctor"], ["plan", "-"], ["stats"], ["verify"]]


def lines(texts: list[str]) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(tmp_path: Path, command: str) -> None:
    """Every command explains its options, has `--quiet`, and names the exit codes."""
    run = embcache(tmp_path, command, "-h")
    assert (run.code, run.err) == (0, "")
    shown = run.out.decode()
    assert "-q, --quiet" in shown
    assert "Exit codes: 0 done" in shown
    options = shown.partition("Options:\n")[2].partition("\n\n")[0]
    # An option, then what it does: beside it, or on the next line where there is no room.
    assert [one for one in re.split(r"\n(?=  -)", options) if not re.match(r"  -\S.*?\s{2,}\w", one)] == []


@pytest.mark.parametrize("arguments", TOLD_IN_JSON, ids=" ".join)
def test_json_begins_with_its_version(folder: Path, arguments: list[str]) -> None:
    """`--json` prints one object, which begins with the version of its shape, and nothing on standard error."""
    run = embcache(folder, *arguments, "--json")
    assert (run.code, run.err) == (0, "")
    told = json.loads(run.out)
    assert next(iter(told)) == "version"
    assert told["version"] == 1


@pytest.mark.parametrize("command", ["doctor", "stats", "verify"])
def test_json_is_documented(folder: Path, command: str) -> None:
    """The page on `--json` names what is printed, in its order, and nothing else."""
    page = (ROOT / "docs/json-output.md").read_text()
    section = page.partition(f"## embcache {command}\n")[2].partition("\n## ")[0]
    tables = [re.findall(r"^\| `(\w[\w-]*)` \|", part, re.MULTILINE) for part in section.split("Each of `findings`")]
    told = json.loads(embcache(folder, command, "--json").out)
    assert tables[0] == list(told)
    if command == "doctor":
        assert tables[1] == list(told["findings"][0])
        named = section.partition("| `check` | ")[2].partition(";")[0]
        assert {one["check"] for one in told["findings"]} <= set(re.findall(r"`([\w-]+)`", named))


def test_quiet(folder: Path) -> None:
    """`--quiet` leaves the summary out; the vectors come all the same."""
    aloud = embcache(folder, "embed", "-", "-o", "-", stdin=lines(passages(3)) + b"\n")
    quiet = embcache(folder, "embed", "-", "-o", "-", "--quiet", stdin=lines(passages(3)) + b"\n")
    assert (aloud.code, quiet.code) == (0, 0)
    assert [line.split(":")[1] for line in aloud.lines] == [" 1 blank line skipped", " 3 texts"]
    assert quiet.err == ""
    assert quiet.out == aloud.out != b""


def test_quiet_keeps_errors(folder: Path, server: Upstream) -> None:
    """`--quiet` silences neither an error nor a warning."""
    server.require_key = "another"
    run = embcache(folder, "embed", "-q", "-", stdin=lines(passages(1)))
    assert run.code == 1
    assert "401" in run.err
    server.require_key = KEY
    (folder / "file").touch()
    warned = embcache(folder, "embed", "-q", "-", "-o", "-", "--cache-dir", "file/x", stdin=lines(passages(1)))
    assert warned.code == 0
    assert warned.err.startswith("embcache: warning: ")


def test_quiet_shows_no_bar(folder: Path, server: Upstream) -> None:
    """On a terminal `--quiet` shows no bar either, however long it takes."""
    shown: list[str] = []
    for options in ([], ["-q"]):
        server.play(hang(3.5))
        with Terminal() as screen, started(folder, "embed", "-", *options, stderr=screen.end) as run:
            assert run.end(lines(passages(3, start=len(shown) * 10))).code == 0
            shown.append(screen.shown())
    assert "embedding" in shown[0]
    assert shown[1] == ""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color(folder: Path, no_color: str) -> None:
    """On a terminal findings have colours, and with `NO_COLOR` none."""
    env = {"NO_COLOR": no_color or None, "TERM": "xterm-256color"}
    with Terminal() as screen, started(folder, "doctor", env=env, stdout=screen.end) as run:
        assert run.end().code == 0
        assert "versions" in screen.shown()
        coloured = re.search(rb"\x1b\[[\d;]*3\d", screen.raw())
    assert bool(coloured) is not bool(no_color)


# Completion


def test_completion_in_bash(tmp_path: Path) -> None:
    """In a real bash the script that the command prints completes commands and their options."""
    (tmp_path / "embcache").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m embcache "$@"\n')
    (tmp_path / "embcache").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = """
        eval "$(embcache --show-completion bash)"
        complete -p embcache >/dev/null || exit 9
        for line in "embcache ver" "embcache verify --re"; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _embcache_completion embcache
            echo "${COMPREPLY[@]}"
        done
    """
    arguments = [tool("bash"), "--norc", "-c", script]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.split(), done.stderr) == (["verify", "--repair"], "")
