"""``embcache embed``: the texts of files to vectors, in a file or in the cache."""

from enum import StrEnum
from typing import Annotated

import typer

from embcache.cli.common import BaseUrl, CacheDir, Code, ProviderChoice, many, say
from embcache.cli.options import Field, Files, Model


class OnRefusal(StrEnum):
    """What becomes of texts that the provider refuses."""

    RAISE = "raise"
    MASK = "mask"


def embed(  # noqa: PLR0913 - its options
    files: Files,
    *,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Where to put the vectors, in the order of the texts: .npy (float32), .jsonl, .parquet (a column "
            "'embedding' beside those of .parquet FILEs), or - for JSON Lines on standard output. Default: only the "
            "cache is filled.",
        ),
    ] = None,
    field: Field = "text",
    model: Model = None,
    provider: ProviderChoice = None,
    base_url: BaseUrl = None,
    errors: Annotated[
        OnRefusal,
        typer.Option(
            "--errors",
            help="What becomes of texts that the provider refuses as such: raise ends the command; mask leaves them "
            "without a vector (NaN in .npy, null elsewhere), names some of their lines, and ends with 0.",
        ),
    ] = OnRefusal.RAISE,
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            metavar="DOLLARS",
            help="Spend no more: the request that may pass it is not sent, and what was bought is kept.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="TOKENS", help="The same in tokens billed.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="NAME", help="Whom to book what is paid and saved for, in the accounts."),
    ] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Embed the texts of files.

    Only those that are not in the cache are bought; the vectors of all go to OUT, or just into the cache. The API
    key is read from NOVITA_API_KEY. Files are UTF-8; blank lines are skipped, and counted at the end. Ctrl-C keeps what
    was paid for: the same command again pays only for the rest. .parquet needs embcache[parquet].
    """
    from embcache import CachedEmbedder
    from embcache.cli.inputs import count, sources_of
    from embcache.cli.outputs import check_target, opened
    from embcache.cli.work import Work

    sources = sources_of(files, field)
    check_target(out, sources)
    embedder = CachedEmbedder(
        model,
        base_url=base_url,
        cache_dir=cache_dir,
        provider=None if provider is None else provider.value,
        project=project,
        max_cost=max_cost,
        max_tokens=max_tokens,
        progress=False,
    )
    # Not `with embedder`: its end would wait for what is being bought even after a second Ctrl-C.
    with opened(out, sources) as output:
        embedder.stats()  # a cache that cannot be read is told before anything is bought in vain
        work = Work(embedder, count(sources), mask=errors is OnRefusal.MASK)
        work.embed(sources, output, only_to_cache=out is None)
        output.end()
    if blank := sum(source.blank for source in sources):
        say(f"{many(blank, 'blank line')} skipped")
    if refused := work.refused():
        say(refused, always=True)
    say(work.summary(), always=work.lost > 0)  # what was lost is a warning
    if out is None and work.lost:
        raise typer.Exit(Code.STORE)
