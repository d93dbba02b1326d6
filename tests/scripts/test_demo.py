"""`scripts/demo`: it shows what it says it shows, with the model in the process and with a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.programs import ROOT, unable
from tests.upstream import Upstream

NAMES = ("docstrings.*different", "First run", "Second run", "how do I read a compressed file", "embcache stats")


def demo(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the demo; in the venv it would make otherwise, which is only there where `scripts/test` was run."""
    if not (ROOT / ".venv/.installed-test").exists():
        unable("scripts/test has not made .venv here")
    command = [str(ROOT / "scripts/demo"), *options]
    environment = {**os.environ, **env, "CI": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)


def seconds(out: str) -> list[float]:
    return [float(found) for found in re.findall(r"^([\d.]+) s\b", out, re.MULTILINE)]


def sent(out: str) -> list[tuple[int, int]]:
    """The misses and requests of each run."""
    return [(int(m.replace(",", "")), int(r)) for m, r in re.findall(r"([\d,]+) misses, .* (\d+) requests?;", out)]


def shows_everything(out: str) -> bool:
    return bool(re.search(".*".join(NAMES), out, re.DOTALL))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the local model has no wheels for this Python")
def test_local() -> None:
    """Without a key the second run computes nothing, and the answers are about compressed files."""
    done = demo()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert shows_everything(done.stdout)
    found = re.search(r"([\d,]+) docstrings .* ([\d,]+) of them different", done.stdout)
    assert found
    passages, different = (int(number.replace(",", "")) for number in found.groups())
    (first, _), second = sent(done.stdout)
    assert 2000 < first == different < passages
    assert second == (0, 0)
    assert len(seconds(done.stdout)) == 2
    answers = re.findall(r"^0\.\d\d  ([\w.]+)$", done.stdout, re.MULTILINE)
    assert len(answers) == 3
    assert {name.partition(".")[0] for name in answers} & {"bz2", "gzip", "lzma", "tarfile", "zipfile"}


def test_with_a_server() -> None:
    """With a key and a URL it asks that server: every passage once, and the question."""
    with Upstream(dims=16, require_key="sk-made-up") as server:
        done = demo("--provider", "novita", "--base-url", server.base_url, NOVITA_API_KEY="sk-made-up")
        assert done.returncode == 0, done.stderr
        inputs = [str(item) for item in server.sent_inputs]
    assert shows_everything(done.stdout)
    assert len(inputs) == len(set(inputs)) > 2000
    assert inputs[-1] == "how do I read a compressed file?"


@pytest.mark.parametrize(
    ("options", "missing"),
    [(["--provider", "novita"], "needs NOVITA_API_KEY"), (["--provider"], "needs a value"), (["--nope"], "not --nope")],
)
def test_what_is_missing(options: list[str], missing: str) -> None:
    """What is missing is told in one line."""
    done = demo(*options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert missing in done.stderr
    assert len(done.stderr.splitlines()) == 1
