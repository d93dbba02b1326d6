"""``embcache import``: the entries of a pack into the cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embcache.cli.common import AsJson, CacheDir, Code, Fault, Stopped, many, say, write_json, write_out
from embcache.errors import EmbcacheError

if TYPE_CHECKING:
    from embcache.stores.exchange import Imported

WHY = {
    "corrupt": "damaged",
    "bad_version": "of a version that this embcache does not read",
    "dimensions": "with vectors of another length than theirs here",
    "space": "of a model that is not named as embcache names one",
}


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pack, as embcache export makes it.")],
    *,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Put the entries of a pack into the cache.

    Every entry is proved on its way in; of two for one input the older stays. What the entries have cost is not added
    to what this cache has paid. Exit code 1 where entries were refused, or the pack is damaged: what was sound is in.
    Take packs only from people you trust: a wrong vector can be sealed as well as a right one.
    """
    from embcache.config import disk_store
    from embcache.stores.exchange import Imported, import_pack

    imported = Imported()
    store = disk_store(cache_dir)
    try:
        with file.open("rb") as pack:
            import_pack(pack, store, imported)
    except (EmbcacheError, Stopped):
        say(
            f"{many(imported.added + imported.replaced, 'entry', 'entries')} imported before it ended early",
            always=True,
        )
        raise
    except OSError as error:
        raise Fault(f"{file}: {error.strerror or 'cannot be read'}", Code.USAGE) from error
    finally:
        store.close()
    if as_json:
        write_json(_facts(imported))
    else:
        write_out("".join(line + "\n" for line in _lines(imported)).encode())
    if imported.refused:
        raise typer.Exit(Code.FAILED)


def _facts(imported: "Imported") -> dict[str, Any]:
    return {
        "added": imported.added,
        "replaced": imported.replaced,
        "there": imported.there,
        "refused": dict(sorted(imported.refused.items())),
    }


def _lines(imported: "Imported") -> list[str]:
    """Return what became of the entries, as sentences."""
    lines = [f"{many(imported.added, 'entry', 'entries')} added, {imported.there:,} already there"]
    if imported.replaced:
        lines.append(f"{many(imported.replaced, 'entry', 'entries')} replaced by older ones, or for being damaged")
    for reason, count in sorted(imported.refused.items()):
        lines.append(f"{many(count, 'entry', 'entries')} refused: {WHY.get(reason, reason)}")
    return lines
