"""``embcache clear``: the whole cache is removed, and nothing else."""

from pathlib import Path
from typing import Annotated, Any

import typer

from embcache.cli.common import AsJson, CacheDir, many, say, write_json, write_out
from embcache.cli.confirm import check_can_ask, confirm


def clear(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove the whole cache: entries, accounts, and files that were set aside.

    Asks on a terminal. Of the cache folder only files that embcache made are removed, and only where its marker lies;
    what else is there stays, and so does the folder.
    """
    from embcache.config import cache_folder
    from embcache.stores.folder import ours, remove_all

    check_can_ask(yes=yes)
    folder = cache_folder(cache_dir)
    files = ours(folder)
    told = _worth(folder, files)
    line = _line(told)
    if not as_json:
        write_out(f"{line}\n".encode())
    elif not yes:
        say(line, always=True)
    if files:
        confirm("Remove it all?", yes=yes)
        remove_all(folder)
    if as_json:
        write_json({**told, "removed": bool(files)})
    elif files:
        write_out(b"removed\n")


def _worth(folder: Path, files: list[Path]) -> dict[str, Any]:
    """Return what is about to go; what cannot be read of it is None."""
    from embcache.config import disk_store
    from embcache.errors import StoreError
    from embcache.keys import decode_space
    from embcache.usage import summarise

    told: dict[str, Any] = {"files": len(files), "bytes_on_disk": sum(path.stat().st_size for path in files)}
    store = disk_store(folder, read_only=True)
    try:
        totals = store.totals()
    except StoreError:  # damaged: reason enough to remove it
        return told | {"entries": None, "billed_tokens": None, "cost": None}
    finally:
        store.close()
    spaces = [(decode_space(name), entries, size) for name, (entries, size) in totals.spaces.items()]
    figures = summarise(totals.accounts, spaces, {}, totals.bytes_on_disk)
    return told | {"entries": figures.entries, "billed_tokens": figures.billed_tokens, "cost": figures.cost}


def _line(told: dict[str, Any]) -> str:
    from embcache.show import show_bytes, show_money

    if not told["files"]:
        return "there is no cache"
    line = f"to remove: {many(told['files'], 'file')}, {show_bytes(told['bytes_on_disk'])}"
    if told["entries"] is None:
        return f"{line}; what it holds cannot be read"
    paid = f"{many(told['billed_tokens'], 'token')} ({show_money(told['cost'])})"
    return f"{line}, with {many(told['entries'], 'entry', 'entries')} and accounts of {paid}"
