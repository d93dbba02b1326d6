"""``embcache verify``: every row of the cache read and proved."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import CacheDir, Code, write_out

if TYPE_CHECKING:
    from embcache.stores.upkeep import Findings


def verify(
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what fails, set a damaged file aside, and save what can be saved of it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Read every entry of the cache and prove it.

    Without --repair nothing is changed. What is removed is bought again when it is next asked for.
    """
    from embcache.config import disk_store
    from embcache.stores.upkeep import verify as prove

    store = disk_store(cache_dir)
    try:
        findings = prove(store, repair=repair)
    finally:
        store.close()
    if as_json:
        told = asdict(findings) | {"faults": dict(findings.faults), "clean": findings.is_clean}
        write_out(json.dumps(told, indent=2).encode() + b"\n")
    else:
        write_out("".join(line + "\n" for line in _lines(findings, repair=repair)).encode())
    if not findings.is_clean:
        raise typer.Exit(Code.FAILED)


def _lines(findings: "Findings", *, repair: bool) -> list[str]:
    """Return what was found, as sentences."""
    lines = [f"{findings.entries:,} entries and {findings.notes:,} notes proved themselves"]
    lines += [f"{count:,} rows did not: {kind}" for kind, count in sorted(findings.faults.items())]
    if findings.damage is not None:
        lines.append(f"the file is damaged: {' '.join(findings.damage.split())}")
    if findings.removed:
        lines.append(f"{findings.removed:,} rows were removed")
    if findings.salvaged:
        lines.append(f"{findings.salvaged:,} entries were saved from files set aside")
    if not findings.is_clean and not repair:
        lines.append("embcache verify --repair removes what fails and saves what can be saved")
    return lines
