"""``embcache stats``: what the cache holds, what was paid, what was saved."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import CacheDir, ProviderName, write_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embcache.types import CacheStats


def stats(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with the names of embcache.CacheStats.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Only what concerns this model.")
    ] = None,
    provider: Annotated[
        ProviderName | None, typer.Option("--provider", help="Only what concerns Novita's API, or local models.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Only what concerns the server there.")
    ] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Show what was paid and what was saved.

    Of the whole cache since its beginning, and by model. Reads the cache and changes nothing.
    """
    figures = _read(cache_dir, model, _provider_id(provider, base_url))
    if as_json:
        from embcache import report

        write_out(json.dumps(report.as_json(figures), indent=2).encode() + b"\n")
    else:
        _show(figures, cache_dir)


def _provider_id(provider: ProviderName | None, base_url: str | None) -> str | None:
    """Return what keys and accounts call the provider wanted; None where all are."""
    from embcache import config
    from embcache.errors import ConfigError

    if base_url is not None:
        if provider is ProviderName.LOCAL:
            raise ConfigError("the local provider has no server; leave out --base-url")
        return config.provider_id(config.checked_url(base_url))
    return None if provider is None else provider.value


def _read(cache_dir: Path | None, model: str | None, provider: str | None) -> "CacheStats":
    """Return the figures of the store, of all that is in it or of one model or provider."""
    from embcache.config import disk_store
    from embcache.keys import decode_space
    from embcache.usage import summarise

    def wanted(its_provider: str, its_model: str) -> bool:
        return provider in (None, its_provider) and model in (None, its_model)

    store = disk_store(cache_dir)
    try:
        totals = store.totals()
    finally:
        store.close()
    spaces = [(decode_space(name), entries, size) for name, (entries, size) in totals.spaces.items()]
    if provider is None and model is None:
        return summarise(totals.accounts, spaces, {}, totals.bytes_on_disk)
    accounts = {name: counts for name, counts in totals.accounts.items() if wanted(*json.loads(name)[1:3])}
    chosen = [part for part in spaces if wanted(part[0].provider, part[0].model)]
    return summarise(accounts, chosen, {}, sum(size for _, _, size in chosen))


def _show(figures: "CacheStats", cache_dir: Path | None) -> None:
    """Print figures for people: in tables on a terminal, as plain aligned lines elsewhere."""
    from embcache.config import cache_folder
    from embcache.report import MODEL_COLUMNS, as_rows, by_model_rows

    # A folder's name need not be text: what cannot be spelled is shown with escapes.
    folder = str(cache_folder(cache_dir)).encode(errors="backslashreplace").decode()
    rows = [("cache", folder), *as_rows(figures)]
    models = [MODEL_COLUMNS, *by_model_rows(figures)] if figures.by_model else []
    if sys.stdout.isatty():
        _show_tables(rows, models)
    else:
        lines = [*_aligned(rows, "ll"), *([""] if models else []), *_aligned(models, "l" + "r" * len(MODEL_COLUMNS))]
        write_out("".join(line + "\n" for line in lines).encode())


def _show_tables(rows: "Sequence[Sequence[str]]", models: "Sequence[Sequence[str]]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    totals = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    totals.add_column(style="bold")
    totals.add_column(overflow="fold")
    for row in rows:
        totals.add_row(*map(Text, row))  # as Text: a name in brackets is no markup
    console.print(totals)
    if models:
        by_model = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
        for number, column in enumerate(models[0]):
            by_model.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
        for row in models[1:]:
            by_model.add_row(*map(Text, row))
        console.print()
        console.print(by_model)


def _aligned(rows: "Sequence[Sequence[str]]", sides: str) -> list[str]:
    """Return rows as lines, each column to the left (``l``) or right (``r``)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    adjust = [str.ljust if side == "l" else str.rjust for side in sides]
    return [
        "  ".join(put(cell, width) for put, cell, width in zip(adjust, row, widths, strict=False)).rstrip()
        for row in rows
    ]
