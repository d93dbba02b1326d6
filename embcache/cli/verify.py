"""``embcache verify``: every row of the cache read and proved."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import AsJson, CacheDir, Code, many, write_json, write_out

if TYPE_CHECKING:
    from embcache.stores.upkeep import Findings


def verify(
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what fails, set a damaged file aside, and save what can be saved of it."),
    ] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Read every entry of the cache and prove it.

    Without --repair nothing is changed. What is removed is bought again when it is next asked for. Exit code 1 where
    damage was found, even if it was repaired; the next run then ends with 0.
    """
    from embcache.config import disk_store
    from embcache.stores.upkeep import verify as prove

    store = disk_store(cache_dir, read_only=not repair)
    try:
        findings = prove(store, repair=repair)
    finally:
        store.close()
    if as_json:
        write_json(asdict(findings) | {"faults": dict(findings.faults), "clean": findings.is_clean})
    else:
        write_out("".join(line + "\n" for line in _lines(findings, repair=repair)).encode())
    if not findings.is_clean:
        raise typer.Exit(Code.FAILED)


def _lines(findings: "Findings", *, repair: bool) -> list[str]:
    """Return what was found, as sentences."""
    lines = [f"{many(findings.entries, 'entry', 'entries')} and {many(findings.notes, 'note')} proved themselves"]
    lines += [f"{many(count, 'row')} did not: {kind}" for kind, count in sorted(findings.faults.items())]
    if findings.damage is not None:
        lines.append(f"the file is damaged: {' '.join(findings.damage.split())}")
    if findings.removed:
        lines.append(f"removed: {many(findings.removed, 'row')}")
    if findings.salvaged:
        lines.append(f"saved from files set aside: {many(findings.salvaged, 'entry', 'entries')}")
    if findings.unplaced:
        waiting = many(findings.unplaced, "entry", "entries")
        lines.append(f"waiting in a file set aside, which has lost the settings they belong to: {waiting}")
        lines.append("embed something with the same settings, and run embcache verify --repair again to save them")
    if not findings.is_clean and not repair:
        lines.append("embcache verify --repair removes what fails and saves what can be saved")
    return lines
