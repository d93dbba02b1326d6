"""How amounts, sizes, shares and small tables are written for people; knows no noun, so that the nouns can use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KILO = 1000
SMALLEST = 0.000001
"""The smallest amount of money that is shown as it is."""
NOTHING = "-"


def show_money(amount: float | None) -> str:
    """Return an amount for people: two decimals, more where it is small, and ``price unknown`` for None."""
    if amount is None:
        return "price unknown"
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    if amount < SMALLEST:
        return f"under ${SMALLEST:f}"
    whole, _, decimals = f"{amount:f}".rstrip("0").partition(".")
    return f"${whole}.{decimals:0<2}"


def show_bytes(count: int) -> str:
    """Return a number of bytes for people, in powers of ten."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < KILO:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= KILO
    return f"{size:,.1f} TB"


def show_rate(rate: float | None) -> str:
    """Return a share in per cent; a dash where there is none."""
    return NOTHING if rate is None else f"{rate:.1%}"


def printable(text: str) -> str:
    """Return ``text`` on one line, without what could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


# A notebook's theme is its own, and no style sheet can ask for it: a table takes colour and font from around it. Styles
# stand at the cells themselves, so that none reaches what else is in the notebook.
TABLE = (
    "border:0;border-collapse:collapse;margin:0.5em 0;background:transparent;color:inherit;"
    "font-variant-numeric:tabular-nums"
)
CELL = "border:0;padding:0.15em 1em 0.15em 0;background:transparent;color:inherit;text-align:"
FAINT = "opacity:0.75;font-weight:normal;"
LINE = "border-bottom:1px solid currentColor;"


def html_table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), caption: str = "") -> str:
    """Return a small table as HTML for a notebook, in light and dark; whatever the cells hold is shown as text.

    Args:
        rows: the cells, all rows equally many; the first of a row names it, the others are to the right.
        head: the names of the columns, if they have any.
        caption: a line above.
    """
    from html import escape

    def line(cells: Sequence[str], kind: str, style: str) -> str:
        first, *others = cells
        named = f'<th style="{CELL}left;{style or FAINT}">{escape(first)}</th>'
        figure = f'{kind} style="{CELL}right;white-space:nowrap;{style}"'
        return named + "".join(f"<{figure}>{escape(cell)}</{kind}>" for cell in others)

    above = f'<caption style="{CELL}left;caption-side:top;font-weight:bold">{escape(caption)}</caption>'
    top = f"<thead><tr>{line(head, 'th', FAINT + LINE)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{line(row, 'td', '')}</tr>" for row in rows)
    return f'<table style="{TABLE}">{above if caption else ""}{top}<tbody>{body}</tbody></table>'
