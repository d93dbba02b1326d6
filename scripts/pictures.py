"""The Python part of `scripts/pictures`: a cache with some weeks behind it, and pictures of its figures."""

from __future__ import annotations

import io
import random
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from embcache import CachedEmbedder
from embcache.cli.terminal import show
from embcache.page import page
from embcache.report import last_days, part_tables, total_rows
from embcache.usage import EVERYTHING

from tests import browser
from tests.upstream import Upstream, edit

PICTURES = Path(__file__).parents[1] / "docs/pictures"
TODAY = date(2026, 11, 24)
WEEKS = 6
SATURDAY = 5
JOBS = (
    # model, project, texts that the job begins with, new texts a day, share of the old ones asked for a day
    ("baai/bge-m3", "search", 1500, 60, 0.5),
    ("baai/bge-m3", "support-bot", 90, 25, 1.2),
    ("qwen/qwen3-embedding-8b", "search", 500, 30, 0.4),
    ("baai/bge-m3", None, 100, 15, 0.3),
)
QUESTIONS = "support-bot"
COLUMNS = 100
PAGE = (1060, 1490)
TERMINAL = (830, 590)
TERMINAL_PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 18px 22px; background: {background}; color: {foreground}; }}
pre {{ margin: 0; font: 13px/1.165 "DejaVu Sans Mono", monospace; }}
</style><pre>{code}</pre>
"""


def fill(folder: Path, server: Upstream) -> CachedEmbedder:
    """Do six weeks' work within seconds, and return an embedder of the cache."""
    chance = random.Random(6)  # noqa: S311 - made-up work, always the same
    known: dict[int, list[str]] = {number: [] for number in range(len(JOBS))}
    for back in reversed(range(WEEKS * 7)):
        day = TODAY - timedelta(days=back)
        # The account book takes this for today. Nothing else has a date that is shown.
        noon = datetime.combine(day, datetime.min.time(), UTC).timestamp() + 43_200
        clock = SimpleNamespace(time=lambda noon=noon: noon, monotonic=time.monotonic)
        with mock.patch("embcache.ledger.time", clock):
            for number, (model, project, first, new, share) in enumerate(JOBS):
                if day.weekday() >= SATURDAY and chance.random() < 0.8:  # noqa: PLR2004 - most do not work then
                    continue
                texts = known[number]
                asked = chance.sample(texts, int(len(texts) * min(1.0, share * chance.uniform(0.3, 1.0))))
                fresh = first if not texts else int(new * chance.uniform(0.4, 1.8))
                added = [f"{project} {model} {len(texts) + n} {'word ' * chance.randint(8, 220)}" for n in range(fresh)]
                if back == WEEKS and number == 0:
                    server.play(edit(lambda body: {name: body[name] for name in body if name != "usage"}))
                with embedder(folder, server, model, project) as one:
                    if project == QUESTIONS:  # which come one by one, and so have a bill each
                        for single in added:
                            one.embed(single)
                    one.embed([*asked, *added, *added[:3]])
                texts += added
    return embedder(folder, server)


def embedder(folder: Path, server: Upstream, model: str | None = None, project: str | None = None) -> CachedEmbedder:
    """Return an embedder that asks this machine's server as if it were Novita's."""
    return CachedEmbedder(
        model, project=project, base_url=server.base_url, provider_name="novita", cache_dir=folder, progress=False
    )


def main() -> None:
    """Make the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, Upstream(dims=256) as server:
        with fill(Path(place) / "cache", server) as one:
            stats = one.stats()
        made = Path(place) / "stats.html"
        made.write_text(page(stats, EVERYTHING, TODAY), encoding="utf-8")
        for scheme in browser.SCHEMES:
            browser.picture(made, PICTURES / f"stats-{scheme}.png", size=PAGE, scheme=scheme)
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
        rows = [("cache", "~/.cache/embcache"), *total_rows(stats, EVERYTHING)]
        show(console, rows, part_tables(stats, EVERYTHING), last_days(stats, TODAY))
        shown = console.export_html(theme=DIMMED_MONOKAI, code_format=TERMINAL_PAGE, inline_styles=True)
        made.write_text(shown, encoding="utf-8")
        browser.picture(made, PICTURES / "stats-terminal.png", size=TERMINAL)
    for picture in sorted(PICTURES.glob("stats-*.png")):
        print(f"{picture.name}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
