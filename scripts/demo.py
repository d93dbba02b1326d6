"""The Python part of `scripts/demo`: real passages to embed, and a question that they answer.

demo.py collect PASSAGES                       write the docstrings of the standard library as .jsonl
demo.py ask PASSAGES VECTORS QUESTION OPTION…  print the three nearest; OPTIONs as those of `embcache embed`
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embcache import CachedEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORTEST, LONGEST = 60, 1500
"""Characters of a docstring that says something, and is about one thing."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "distutils"}
NEAREST = 3
WIDTH = 88
INDENT = " " * 6


def docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the docstring of a module and of all that is in it. Nothing is imported or run."""
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, ast.get_docstring(node) or ""
            waiting += [
                (f"{name}.{child.name}", child)
                for child in reversed(node.body)
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ]


def passages() -> Iterator[tuple[str, str]]:
    """Yield name and docstring, as one line, of all that is public in the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if LEFT_OUT.intersection(inside.parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        for name, docstring in docstrings(tree, module):
            private = any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
            text = " ".join(docstring.split())
            if SHORTEST <= len(text) <= LONGEST and not private:
                yield name, text


def collect(target: Path) -> None:
    """Write the passages, and tell how many there are."""
    found = list(passages())
    lines = (json.dumps({"where": where, "text": text}) + "\n" for where, text in found)
    target.write_text("".join(lines), encoding="utf-8")
    different = len({text for _, text in found})
    print(f"{len(found):,} docstrings of Python's standard library, {different:,} of them different")


def ask(source: Path, vectors: Path, question: str, options: dict[str, str]) -> None:
    """Print the passages whose vectors point most nearly where the question's does."""
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    known = np.load(vectors)
    with CachedEmbedder(**options) as embedder:  # type: ignore[arg-type]  # all of them texts
        asked = embedder.embed(question)
    cosines = known @ asked / (np.linalg.norm(known, axis=1) * np.linalg.norm(asked))
    shown: set[str] = set()
    for number in np.argsort(-cosines):
        text = records[number]["text"]
        if text not in shown:
            shown.add(text)
            print(f"{cosines[number]:.2f}  {records[number]['where']}")
            print(textwrap.fill(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, max_lines=3))
        if len(shown) == NEAREST:
            break


def main() -> None:
    """Do what is asked on the command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("passages", type=Path)
    asking = commands.add_parser("ask")
    asking.add_argument("passages", type=Path)
    asking.add_argument("vectors", type=Path)
    asking.add_argument("question")
    for option in ("--provider", "--base-url", "--model", "--cache-dir"):
        asking.add_argument(option)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if given.pop("command") == "collect":
        collect(given["passages"])
    else:
        ask(given.pop("passages"), given.pop("vectors"), given.pop("question"), given)


if __name__ == "__main__":
    main()
