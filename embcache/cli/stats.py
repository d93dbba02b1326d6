"""``embcache stats``: what the cache holds, what was paid, what was saved."""

import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import AsJson, CacheDir, Code, Fault, ProviderName, write_json, write_out
from embcache.cli.spaces import provider_of

if TYPE_CHECKING:
    from embcache.types import CacheStats
    from embcache.usage import Wanted


def stats(  # noqa: PLR0913 - its options
    *,
    as_json: AsJson = False,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write FILE, a page to look at that needs nothing else."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Only what concerns this model.")
    ] = None,
    provider: Annotated[
        ProviderName | None, typer.Option("--provider", help="Only what concerns Novita's API, or local models.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Only what concerns the server there.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="NAME", help="Only what was booked for this project.")
    ] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Show what was paid and what was saved.

    Of the whole cache since its beginning, by model and by project; and by day (UTC), the last 30 of them. Reads the
    cache and changes nothing.
    """
    from embcache.config import disk_store
    from embcache.report import read_stats
    from embcache.usage import Wanted

    if html is not None and Path(html).is_dir():
        raise Fault(f"{html}: is a folder; give the name of a file", Code.USAGE)
    wanted = Wanted(provider_of(provider, base_url), model, project)
    store = disk_store(cache_dir)
    try:
        figures = read_stats(store, {}, wanted)
    finally:
        store.close()
    today = datetime.now(UTC).date()
    if html is not None:
        _write_page(html, figures, wanted, today)
    if as_json:
        from embcache import report

        write_json(report.as_json(figures))
    elif html is None:
        _show(figures, wanted, today, cache_dir)


def _write_page(name: str, figures: "CacheStats", wanted: "Wanted", today: date) -> None:
    from embcache.cli.outputs import replacing
    from embcache.page import page

    with replacing(name) as file:
        file.write(page(figures, wanted, today).encode())


def _show(figures: "CacheStats", wanted: "Wanted", today: date, cache_dir: Path | None) -> None:
    """Print figures for people: in colour and with a chart on a terminal, as plain aligned lines elsewhere."""
    from embcache.config import cache_folder
    from embcache.report import aligned, day_table, is_terminal, last_days, part_tables, total_rows

    # A folder's name need not be text: what cannot be spelled is shown with escapes.
    folder = str(cache_folder(cache_dir)).encode(errors="backslashreplace").decode()
    rows = [("cache", folder), *total_rows(figures, wanted)]
    tables, days = part_tables(figures, wanted), last_days(figures, today)
    if is_terminal(sys.stdout) and sys.stdout.encoding.lower().startswith("utf"):
        from embcache.cli.terminal import make_console, show

        show(make_console(), rows, tables, days)
        return
    lines = aligned(rows, numbers=False)
    for table in (*tables, day_table(days)):
        if len(table) > 1:
            lines += ["", *aligned(table)]
    write_out("".join(line + "\n" for line in lines).encode())
