"""The work: real-looking texts of about 500 characters, and the vector that each of them has. Seeded, so repeatable."""

from __future__ import annotations

import ast
import base64
import json
import sysconfig
import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEED = 2026
DIMS = 1024
POOL = 2048
"""Different vectors. A text has the one that its CRC-32 names, so that every process knows what is right."""
SENTENCES = 6
"""Sentences a text, of 85 characters on average."""
SHORTEST, LONGEST = 40, 160


def sentences() -> list[str]:
    """Return the sentences of the docstrings of the standard library, all different, in alphabetical order."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for sentence in " ".join((ast.get_docstring(node) or "").split()).split(". "):
                    if SHORTEST <= len(sentence) <= LONGEST and sentence.isprintable():
                        found.add(sentence + ".")
    return sorted(found)


def texts(count: int, first: int = 0) -> list[str]:
    """Return texts number ``first`` to ``first + count``; all that are ever made differ."""
    pool = sentences()
    chosen = _mix(np.arange(first * SENTENCES, (first + count) * SENTENCES, dtype=np.uint64)) % np.uint64(len(pool))
    made = [" ".join([pool[place] for place in row]) for row in chosen.reshape(count, SENTENCES).tolist()]
    if len(set(made)) != count:
        message = "two texts of the benchmark are the same"
        raise AssertionError(message)
    return made


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Return 64 random-looking bits for each number (splitmix64)."""
    mixed = (numbers + np.uint64(SEED)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def pool() -> np.ndarray:
    """Return the vectors, float32 ``(POOL, DIMS)``, each of length one."""
    vectors = np.random.default_rng(SEED).standard_normal((POOL, DIMS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def place(text: str) -> int:
    """Return which vector of the pool ``text`` has."""
    return zlib.crc32(text.encode()) % POOL


def vectors(of: Sequence[str]) -> np.ndarray:
    """Return the vectors of these texts."""
    return pool()[[place(text) for text in of]]


def check(texts: Sequence[str], answer: Sequence[object] | np.ndarray) -> None:
    """Complain unless ``answer`` holds the right vector for each text; looks at 200 of them, spread evenly."""
    if len(answer) != len(texts):
        message = f"{len(answer)} vectors for {len(texts)} texts"
        raise AssertionError(message)
    looked_at = range(0, len(texts), max(1, len(texts) // 200))
    right = vectors([texts[number] for number in looked_at])
    given = np.asarray([answer[number] for number in looked_at], dtype=np.float32)
    if not np.array_equal(given, right):
        message = "a wrong vector"
        raise AssertionError(message)


def save(path: Path, made: Sequence[str]) -> Path:
    """Write texts for :func:`load`, one a line."""
    path.write_text("".join(text + "\n" for text in made), encoding="utf-8")
    return path


def load(path: str | Path, count: int | None = None) -> list[str]:
    """Return the texts that :func:`save` wrote, or the first ``count`` of them."""
    return list(stream(path, count))


def stream(path: str | Path, count: int | None = None) -> Iterator[str]:
    """Yield the texts that :func:`save` wrote, or the first ``count``, without holding more than one."""
    with Path(path).open(encoding="utf-8") as lines:
        for line in islice(lines, count):
            yield line.rstrip("\n")


def as_base64() -> list[bytes]:
    """Return each vector of the pool as it travels in base64, with its quotes."""
    return [b'"' + base64.b64encode(row.tobytes()) + b'"' for row in pool()]


def as_floats(row: np.ndarray) -> bytes:
    """Return a vector as it travels as a JSON list."""
    return json.dumps(row.tolist()).encode()
