"""``embcache export``: entries to a file to hand on, or as a table for whoever wants the vectors."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import AsJson, CacheDir, Code, Fault, many, say, write_json
from embcache.cli.spaces import BaseUrl, Dimensions, Epoch, Format, FormatName, Model, Provider, provider_of, space_of

if TYPE_CHECKING:
    from embcache.cli.inputs import Source
    from embcache.stores.exchange import Exported
    from embcache.stores.pack import PackSpace
    from embcache.types import Space

PACK, PARQUET = ".pack", ".parquet"
CHUNK = 8192


def export(  # noqa: PLR0913 - its options
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help=".pack (for embcache import) or .parquet (needs embcache[parquet])."),
    ],
    *,
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs",
            metavar="TEXTS",
            help="Only the entries of the texts in this file, as embcache embed takes it, asked for with the settings "
            "that the other options name.",
        ),
    ] = None,
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="The field or column of TEXTS that holds the text.")
    ] = "text",
    model: Model = None,
    provider: Provider = None,
    base_url: BaseUrl = None,
    epoch: Epoch = None,
    dimensions: Dimensions = None,
    encoding_format: Format = FormatName.BASE64,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write entries of the cache to a file.

    All of them, or those that the options name. Reads the cache and changes nothing. A pack holds vectors, what they
    cost and when they were bought, but no texts; it is as private as its texts all the same. --dimensions and
    --encoding-format go with --inputs.
    """
    from embcache.choosing import Choice
    from embcache.config import disk_store
    from embcache.stores.exchange import entries_of, entries_under, pinned, spaces_of
    from embcache.stores.pack import PackSpace

    path = Path(file)
    kind = path.suffix.lower()
    if kind not in (PACK, PARQUET):
        raise Fault(f"{file}: give a file that ends in .pack or .parquet", Code.USAGE)
    if inputs is None and (dimensions is not None or encoding_format is not FormatName.BASE64):
        raise Fault("--dimensions and --encoding-format go with --inputs", Code.USAGE)
    left_out: Counter[str] = Counter()
    wanted: int | None = None
    store = disk_store(cache_dir, read_only=True)
    try:
        if inputs is None:
            spaces = spaces_of(store, Choice(model, provider_of(provider, base_url), epoch))
            entries = entries_of(store, spaces, left_out)
        else:
            space = space_of(
                model=model,
                provider=provider,
                base_url=base_url,
                dimensions=dimensions,
                encoding_format=encoding_format,
                epoch=epoch,
                cache_dir=cache_dir,
            )
            keys = _keys(space, inputs, field)
            wanted = len(keys)
            spaces = [PackSpace(_name(space), pinned(store, space))]
            entries = entries_under(store, spaces[0], keys, left_out)
        count = _write(path, kind, spaces, entries)
    finally:
        store.close()
    if as_json:
        missing = None if wanted is None else wanted - count - left_out.total()
        told = {"entries": count, "inputs": wanted, "missing": missing, "left_out": dict(left_out)}
        write_json(told)
    else:
        of = "" if wanted is None else f" of {many(wanted, 'distinct input')}"
        say(f"{many(count, 'entry', 'entries')}{of} exported")
    if left_out:
        say(
            f"{many(left_out.total(), 'damaged entry', 'damaged entries')} left out; embcache verify tells more",
            always=True,
        )


def _name(space: "Space") -> bytes:
    from embcache.keys import encode_space

    return encode_space(space)


def _keys(space: "Space", inputs: str, field: str) -> Collection[bytes]:
    """Return the keys of the texts of a file, 16 bytes each: what a text may be longer than."""
    from itertools import islice

    from embcache.cli.inputs import sources_of
    from embcache.keys import fingerprints

    source: Source = sources_of([inputs], field)[0]
    texts = (text for _, text in source.texts())
    keys: set[bytes] = set()
    while chunk := [text.encode() for text in islice(texts, CHUNK)]:
        keys.update(fingerprints(space, "text", chunk)[0])
    return keys


def _write(path: Path, kind: str, spaces: "list[PackSpace]", entries: "Iterable[Exported]") -> int:
    """Write the file; return how many entries it holds."""
    from embcache.stores.pack import write_pack

    try:
        if kind == PACK:
            return write_pack(path, spaces, ((key, record, name) for key, record, name, _ in entries))
        from embcache.cli.parquet import write_parquet

        return write_parquet(path, entries)
    except OSError as error:
        raise Fault(f"{path}: {error.strerror or 'cannot be written'}") from error
