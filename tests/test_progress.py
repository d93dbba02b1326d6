"""The bar, and what a notebook shows by itself. The notebook's kernel is a real one."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jupyter_client.manager import start_new_kernel

from embcache.report import begin_progress, in_notebook

from tests.programs import ROOT
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import pytest

SECONDS = 60.0
SHOWN = {"stream", "display_data", "execute_result", "error"}
CELL = """
from embcache import CachedEmbedder
with CachedEmbedder("m", base_url={url!r}, cache_dir={folder!r}, max_concurrency=1, batch_size=2) as embedder:
    result = embedder.embed_result([f"{what} {{n}}" for n in range(20)])
"""


@contextmanager
def notebook(folder: Path) -> Generator[Callable[[str], str]]:
    """Run code in a kernel as a notebook does, and return what would be shown below its cell."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    manager, client = start_new_kernel(startup_timeout=SECONDS, env=env, cwd=str(folder))

    def run(code: str) -> str:
        shown: list[str] = []

        def see(message: dict[str, Any]) -> None:
            if message["msg_type"] in SHOWN:
                content = message["content"]
                shown.append(content.get("text") or content.get("data", {}).get("text/html") or str(content))

        reply = client.execute_interactive(code, timeout=SECONDS, output_hook=see, allow_stdin=False)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(shown)

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_notebook(tmp_path: Path) -> None:
    """In a notebook long work shows a bar by itself, and work that is soon done nothing; figures are tables there."""
    with Upstream() as server, notebook(tmp_path) as run:
        given = {"url": server.base_url, "folder": str(tmp_path / "cache")}
        # A busy machine may take two seconds for anything: here, work that takes less than a minute is soon done.
        assert run("import embcache.report as room; usual, room.SECONDS_BEFORE_BAR = room.SECONDS_BEFORE_BAR, 60") == ""
        assert run(CELL.format(what="soon", **given)) == ""
        assert run("room.SECONDS_BEFORE_BAR = usual; print(usual)") == "2.0\n"
        server.delay = 0.4  # ten requests one after the other
        late = run(CELL.format(what="late", **given))
        again = run(CELL.format(what="late", **given))
        result, stats = run("result"), run("embedder.session")
    assert "/20 [" in late
    assert "100%" in late
    assert "Warning" not in late
    assert again == ""
    assert result.startswith("<table")
    assert "float32 (20, 8)" in result
    assert stats.startswith("<table")


def test_a_script_is_no_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal and a kernel nobody looks: no bar, unless one is asked for."""
    assert not in_notebook()
    # IPython on a terminal has a shell, and no kernel.
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert not in_notebook()
    assert begin_progress(3, wanted=None) is None
    assert begin_progress(3, wanted=False) is None
    bar = begin_progress(3, wanted=True)
    assert bar is not None
    bar.update(2)
    bar.close()
    assert "2/3" in capsys.readouterr().err
