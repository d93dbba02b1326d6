"""The notebook of the book, run by a real kernel: twice over one cache, and the second run sends nothing."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.notebooks import NOTEBOOK, Notebook, read, run, shown, without_tokens

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)  # two kernels are started, on a machine that may be busy

TEXTS = 10_000
RECORD = "import json; print(json.dumps(server.received))"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Notebook]:
    """Two runs, each in a new kernel, with the server's own record as one more cell."""
    folder = tmp_path_factory.mktemp("notebook")
    # The kernels' own files and settings lie there too, whoever runs the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("PYTHONWARNINGS", "error:::embcache")
        return [run(folder / "place", further=RECORD) for _ in range(2)]


def figures(notebook: Notebook) -> dict[str, str]:
    """The first table that the notebook shows: what the call took."""
    tables = [text for cell in shown(notebook) for text in cell if text.startswith("<table")]
    return dict(re.findall(r"<th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", tables[0]))


def test_the_second_run_sends_nothing(runs: list[Notebook]) -> None:
    """The first run sends each text once; the second one nothing, as the notebook says and as the server has it."""
    first, second = [json.loads(shown(notebook)[-1][0]) for notebook in runs]
    assert sum(first) == TEXTS
    assert second == []
    told = [figures(notebook) for notebook in runs]
    assert [part["misses"] for part in told] == ["10,000", "0"]
    assert [part["hits"] for part in told] == ["0", "10,000"]
    assert [part["requests"] for part in told] == [str(len(first)), "0"]
    assert told[1]["tokens billed"] == "0"
    assert told[1]["tokens saved"] == told[0]["tokens billed"] != "0"


def test_what_is_kept_is_what_a_run_shows(runs: list[Notebook]) -> None:
    """The notebook shows what its second run gives, apart from times and sizes; else run `scripts/notebook`."""
    kept = read()
    made, now = shown(kept), shown(runs[1])[:-1]
    # The docstrings of another Python have other words, and so another bill.
    if kept["metadata"]["language_info"]["version"] != ".".join(map(str, sys.version_info[:2])):
        made, now = without_tokens(made), without_tokens(now)
    assert made == now


def test_the_notebook_holds_nothing_of_a_machine(tmp_path: Path) -> None:
    """No path, no user, no time of a kernel is in the notebook, and its cells have names that stay."""
    text = NOTEBOOK.read_text()
    assert re.findall(r"/(?:home|root|tmp|usr|Users|work)\b|iopub|site-packages|127\.0\.0\.1", text) == []
    kept = read()
    assert [cell["id"] for cell in kept["cells"]] == [f"cell-{number}" for number in range(1, len(kept["cells"]) + 1)]
    assert all(cell["metadata"] == {} for cell in kept["cells"])
