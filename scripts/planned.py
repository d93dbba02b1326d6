"""The Python part of `scripts/planned`: real text, a plan for it, the run, and both side by side.

planned.py [COUNT]      of each kind of text so many at most
"""

from __future__ import annotations

import logging
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import passages
from tokenizers import Tokenizer

from embcache import CachedEmbedder

from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from embcache import EmbedResult, Plan

    from tests.upstream import Exchange

BATCH = 256
SHORTEST_PART = 20
"""Characters of a part of a program that is worth embedding."""
HEAD = ("planned", "bought before", "inputs", "misses", "requests", "tokens planned", "billed", "off by", "in range")


def tokenizer() -> Tokenizer:
    """Return the tokenizer of the local model, a real one of 32,000 words that puts one token before each text."""
    import wordllama

    (file,) = Path(str(wordllama.__file__)).parent.rglob("l2_supercat_tokenizer_config.json")
    made = Tokenizer.from_file(str(file))
    made.no_truncation()
    made.no_padding()
    return made


def programs() -> Iterator[str]:
    """Yield the parts of the standard library's programs, as blank lines part them."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for part in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if len(part.strip()) >= SHORTEST_PART:
                yield part


@dataclass
class Row:
    """One corpus, planned and then embedded, after another one was bought."""

    planned: str
    before: str
    plan: Plan
    result: EmbedResult

    def cells(self) -> tuple[str, ...]:
        """Return what was planned beside what came of it."""
        (low, expected, high), billed = self.plan.tokens, self.result.usage.total_tokens
        return (
            self.planned,
            self.before,
            f"{self.plan.inputs:,}",
            f"{self.plan.misses:,} / {self.result.misses:,}",
            f"{self.plan.requests:,} / {self.result.requests:,}",
            f"{expected:,} ({low:,} to {high:,})" if high else "0",
            f"{billed:,}",
            f"{(expected - billed) / billed:+.1%}" if billed else "-",
            "yes" if low <= billed <= high else "NO",
        )


def compare(count: int | None) -> Iterator[Row]:
    """Yield rows: of each kind of text, after nothing, after some of it, and after others."""
    prose = list(islice((text for _, text in passages()), count))
    short = [text.split(". ")[0] for text in prose]
    code = list(islice(programs(), count))
    few = max(2, len(prose) // 20)
    cases: tuple[tuple[str, Sequence[str], str, Sequence[str]], ...] = (
        ("docstrings", prose, "nothing", []),
        ("docstrings", prose, f"{few} of them", prose[:: len(prose) // few][:few]),
        ("docstrings", prose, "first sentences", short),
        ("docstrings", prose, "programs", code),
        ("docstrings", prose, "all of them", prose),
        ("first sentences", short, "nothing", []),
        ("first sentences", short, "docstrings", prose),
        ("programs", code, "nothing", []),
        ("programs", code, f"{few} of them", code[:: len(code) // few][:few]),
        ("programs", code, "docstrings", prose),
    )
    count_tokens = tokenizer()

    def billing(exchange: Exchange) -> None:
        reply = exchange.decide()
        body: Any = reply.body
        encoded = count_tokens.encode_batch([str(item) for item in exchange.request.inputs])
        tokens = exchange.request.tokens = sum(len(each.ids) for each in encoded)
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        exchange.send(reply)

    with Upstream(always=billing) as server, tempfile.TemporaryDirectory() as folder:
        for number, (name, texts, before_name, before) in enumerate(cases):
            where = {"base_url": server.base_url, "cache_dir": f"{folder}/{number}"}
            with CachedEmbedder(batch_size=BATCH, **where) as embedder:
                embedder.embed(before)
            with CachedEmbedder(batch_size=BATCH, **where) as embedder:
                sent = len(server.requests)
                plan = embedder.plan(texts)
                if len(server.requests) != sent:
                    raise SystemExit("the plan sent something")
                yield Row(name, before_name, plan, embedder.embed_result(texts))


def main() -> None:
    """Print the table."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # wordllama has everything logged on the terminal
    rows = [row.cells() for row in compare(int(sys.argv[1]) if len(sys.argv) > 1 else None)]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        sides = (str.ljust, str.ljust, *[str.rjust] * len(cells))
        return (
            "| " + " | ".join(put(cell, width) for put, cell, width in zip(sides, cells, widths, strict=False)) + " |"
        )

    print(line(HEAD), flush=True)
    print("| " + " | ".join(("-" * (w - 1) + (":" if n > 1 else "-")) for n, w in enumerate(widths)) + " |")
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
