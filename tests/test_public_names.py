"""The front door: what `import embcache` offers, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import embcache

# Slow to load, or not for everybody: each is imported where it is first used.
HEAVY = {"asyncio", "httpx", "pyarrow", "redis", "rich", "tqdm", "typer", "wordllama"}


def test_all_is_sorted() -> None:
    """`__all__` is in order, so that a name has one place and a merge no conflict."""
    assert list(embcache.__all__) == sorted(embcache.__all__)


def test_all_is_what_there_is() -> None:
    """Every name in `__all__` can be imported, and every public name is in `__all__`."""
    found = {
        name
        for name in dir(embcache)
        if not name.startswith("_") and not isinstance(getattr(embcache, name), ModuleType)
    }
    assert set(embcache.__all__) - {"__version__"} == found


def test_docstrings() -> None:
    """Every public class and function has its own docstring, not one inherited or made by `dataclass`."""
    without: list[str] = []
    for name in embcache.__all__:
        thing = getattr(embcache, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue  # a plain value, such as `__version__`, has only the docstring of its type
        doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
        if not doc or doc.startswith(f"{name}("):
            without.append(name)
    assert without == []


def test_import_is_light() -> None:
    """`import embcache` in a fresh interpreter loads nothing slow and nothing optional."""
    program = "import sys; before = set(sys.modules); import embcache; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in run.stdout.split()}
    assert "embcache" in loaded
    assert not loaded & HEAVY
