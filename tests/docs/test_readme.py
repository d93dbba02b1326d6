"""The README: what it shows works, what it names is there, and the reference is what `--help` says."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from embcache import CachedEmbedder, config

from tests.programs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

README = (ROOT / "README.md").read_text()
ARGUMENTS = (ROOT / "docs/arguments.md").read_text()
PERFORMANCE = (ROOT / "docs/performance.md").read_text()
# A marker before a block says how it runs: `local` with the model in the process, else against a server.
PYTHON = re.findall(r"(?:<!-- test: (\w+) -->\n)?```python\n(.*?)```", README, re.DOTALL)
SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
COMMANDS = [line.partition("  #")[0].strip() for line in SHELL]
# `vectors = …  # float32 ndarray (3, 1024)`
PROMISED = re.compile(r"^ *(\w+) = .*# float32 ndarray \(([\d, ]+)\)", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| (?:`(\w+)`)? *\| (.*?) \|", re.MULTILINE)


def run(block: str, folder: Path, env: dict[str, str]) -> str:
    """Run an example, prove the shapes that its comments promise, and return what it printed."""
    proofs = [
        f"assert ({name}.dtype, {name}.shape) == ('float32', ({shape})), ({name}.dtype, {name}.shape)"
        for name, shape in PROMISED.findall(block)
    ]
    assert proofs
    program = "\n".join([block, *proofs])
    arguments = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("how", "block"), PYTHON)
def test_examples(how: str, block: str, tmp_path: Path, user: dict[str, str], server: Upstream) -> None:
    """Every example in Python runs as it stands and gives what its comments say."""
    if how == "local":
        pytest.importorskip("wordllama")
        del user["NOVITA_API_KEY"], user["EMBCACHE_BASE_URL"]
    run(block, tmp_path, user)
    assert bool(server.connections) == (how != "local")


def test_first_example(tmp_path: Path, user: dict[str, str], server: Upstream) -> None:
    """The first example sends the two requests that the README tells of, and none when it is run again."""
    block = PYTHON[0][1]
    assert re.search(r"[1-9]\d* tokens billed", run(block, tmp_path, user))
    assert [request.inputs for request in server.requests] == [["a text", "another"], ["new"]]
    server.forget()
    run(block, tmp_path, user)
    assert server.connections == 0


def test_commands(tmp_path: Path, user: dict[str, str]) -> None:
    """Every script named is there to be run; every `embcache` line runs as it stands."""
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    (tmp_path / "records.jsonl").write_text(json.dumps({"body": "three"}))
    pa: Any = importlib.import_module("pyarrow")  # has no types
    pq: Any = importlib.import_module("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["five"]}), tmp_path / "rows.parquet")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"text\nfour of {name}\n")
    ran = 0
    for line in COMMANDS:
        if line.startswith("./scripts/"):
            assert os.access(ROOT / line.split()[0], os.X_OK), line
        elif "--provider local" not in line or sys.version_info < (3, 14):
            ran += 1
            done = subprocess.run(
                ["/bin/sh", "-c", line], cwd=tmp_path, env=user, capture_output=True, timeout=60, check=False
            )
            assert done.returncode == 0, (line, done.stderr)
    assert ran >= 4
    assert {"vectors.npy", "out.jsonl", "out.parquet"} <= {path.name for path in tmp_path.iterdir()}


def test_arguments() -> None:
    """The table names arguments and variables that there are, and their defaults where these are numbers."""
    parameters = inspect.signature(CachedEmbedder).parameters
    rows = ROW.findall(ARGUMENTS)
    assert len(rows) > 10
    for name, variable, default in rows:
        assert name in parameters
        assert variable in (config.__doc__ or "")
        if default.isdecimal():
            assert parameters[name].default == float(default), name


def test_every_argument_is_in_the_table() -> None:
    """No argument is missing from the table."""
    parameters = set(inspect.signature(CachedEmbedder).parameters)
    assert parameters - {name for name, _, _ in ROW.findall(ARGUMENTS)} == set()


def test_figures() -> None:
    """Each figure of the comparison, and its date, are those of the page on performance."""
    table = README.partition("## Beside what people use today")[2].partition("\n- ")[0]
    figures = re.findall(r"\| ([\d.]+)(?= \|)", table)
    assert len(figures) > 10
    assert [figure for figure in figures if f" {figure} µs a text" not in PERFORMANCE] == []
    date = re.search(r"on (\d+ \w+ \d{4})", table)
    assert date is not None
    assert date[1] in PERFORMANCE


def test_links() -> None:
    """Every file that the README links to is there."""
    links = re.findall(r"\]\((?!http)([^)#]+)|(?:src|srcset)=\"([^\"]+)", README)
    links = [inline or loaded for inline, loaded in links]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_reference() -> None:
    """`docs/cli-reference.md` is what the commands' help says now; else run `scripts/reference`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "scripts/reference.py"]
    made = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert made.stdout == (ROOT / "docs/cli-reference.md").read_text()
    assert re.findall(r"^## embcache (\w+)$", made.stdout, re.MULTILINE)[:2] == ["embed", "plan"]
