"""How figures are shown in a notebook: small tables that hold what they should, and touch nothing around them."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache import CacheStats, EmbedResult, Usage
from embcache.errors import InputRejected
from embcache.show import html_table, printable, show_bytes, show_money, show_rate
from embcache.types import as_rows, part_table


def cells(table: str) -> list[list[str]]:
    """The texts of a table, by row."""
    return [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)] for row in table.split("<tr>")[1:]
    ]


def told(table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in cells(table) if len(row) == 2}


RESULT = EmbedResult(
    np.full((3, 4), 0.123456, dtype=np.float32),
    Usage(10, 12, 7, 1),
    1,
    2,
    0,
    1,
    "a<b",
    rejected={1: InputRejected("a secret word")},
)


def test_result() -> None:
    """The answer to a call shows what it took, and of its vectors what they are, not what they hold."""
    shown = RESULT._repr_html_()
    assert told(shown) == {
        "vectors": "float32 (3, 4)",
        "hits": "1",
        "misses": "2",
        "duplicates": "0",
        "requests": "1",
        "tokens billed": "12",
        "tokens saved": "7",
        "requests of unknown cost": "1",
        "inputs refused": "1",
    }
    assert ">a&lt;b</caption>" in shown
    assert "0.123" not in shown
    assert "secret" not in shown


def test_nothing_unknown_is_not_shown() -> None:
    """A call that went well has no lines of what did not."""
    shown = told(EmbedResult(np.zeros(4, dtype=np.float32), Usage(), 1, 0, 0, 0, "m")._repr_html_())
    assert shown["vectors"] == "float32 (4,)"
    assert not {"requests of unknown cost", "inputs refused"} & set(shown)


def test_stats() -> None:
    """Figures show the three kinds apart, then each model."""
    stats = CacheStats(
        hits=3,
        misses=1,
        billed_tokens=1000,
        saved_tokens=3000,
        saved_exact=1000,
        cost=None,
        saved_cost=0.5,
        unknown_requests=2,
        corrupt=1,
    )
    shown = CacheStats(**{name: getattr(stats, name) for name in ("hits", "misses")}, by_model={"m": stats})
    assert told(stats._repr_html_()) == dict(as_rows(stats))
    assert told(stats._repr_html_()) == {
        "entries": "0",
        "on disk": "0 bytes",
        "hits": "3",
        "misses": "1",
        "duplicates": "0",
        "hit rate": "75.0%",
        "requests": "0",
        "tokens billed": "1,000",
        "cost": "price unknown",
        "tokens saved": "3,000",
        "saved exactly": "1,000",
        "saved, apportioned": "2,000",
        "saving": "$0.50",
        "requests of unknown cost": "2",
        "corrupt": "1",
    }
    assert cells(shown._repr_html_())[-2:] == [
        ["model", "entries", "on disk", "hit rate", "billed", "cost", "saved", "saving"],
        ["m", "0", "0 bytes", "75.0%", "1,000", "unknown", "3,000", "$0.50"],
    ]


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1), st.text())
def test_whatever_a_cell_holds_is_text(rows: list[list[str]], caption: str) -> None:
    """No cell and no caption is ever markup, and all of them are there."""
    table = html_table(rows, caption=caption)
    assert cells(table) == rows
    tags = set(re.findall(r"<(/?\w+)", table))
    assert tags <= {f"{end}{name}" for name in ("table", "caption", "tbody", "tr", "th", "td") for end in ("", "/")}


@pytest.mark.parametrize("shown", [RESULT._repr_html_(), CacheStats(by_model={"m": CacheStats()})._repr_html_()])
def test_nothing_leaks(shown: str) -> None:
    """A table brings no rules for what is around it, loads nothing, and has no colours but those it is put into."""
    assert not re.search(r"<style|<script|class=|id=|href|src|url\(|#[0-9a-f]{3}|rgb|:(white|black)", shown)
    assert "color:inherit" in shown


def test_part_without_a_name() -> None:
    """What was done for no project is `(none)`; a name is one line, and cannot steer a terminal."""
    table = part_table("project", {"": CacheStats(), "a\x1b[2J\nb": CacheStats(hits=1)}, ("hits",))
    assert table == [("project", "hits"), ("(none)", "0"), ("a [2J b", "1")]


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (None, "price unknown"),
        (0.0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.5, "$0.50"),
        (0.00012, "$0.00012"),
        (0.9999999, "$1.00"),
        (1e-8, "under $0.000001"),
    ],
)
def test_money(amount: float | None, shown: str) -> None:
    """Small amounts have more decimals, and one that is unknown is no nought."""
    assert show_money(amount) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (10**9, "1.0 GB"), (10**15, "1,000.0 TB")],
)
def test_bytes(count: int, shown: str) -> None:
    """Sizes are told in powers of ten."""
    assert show_bytes(count) == shown


def test_rate() -> None:
    """A share of nothing is a dash."""
    assert [show_rate(rate) for rate in (None, 0.0, 0.4567, 1.0)] == ["-", "0.0%", "45.7%", "100.0%"]


def test_printable() -> None:
    """What could steer a terminal is blank; letters of all scripts stay."""
    assert printable("a\x1b]0;x\x07\u202eß日") == "a ]0;x  ß日"
