"""``embcache plan``: what the same ``embcache embed`` would find, send and cost."""

from dataclasses import asdict

from embcache.cli.common import AsJson, BaseUrl, CacheDir, ProviderChoice, many, say, write_json, write_out
from embcache.cli.options import Field, Files, Model


def plan(  # noqa: PLR0913 - its options
    files: Files,
    *,
    field: Field = "text",
    model: Model = None,
    provider: ProviderChoice = None,
    base_url: BaseUrl = None,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Show what it would take to embed the texts of files.

    Nothing is sent, nothing stored, and no API key is needed. How many tokens will be billed is estimated from what
    earlier requests for the same model were billed; the range in brackets says how far off it may be.
    """
    from embcache import CachedEmbedder
    from embcache.cli.inputs import sources_of
    from embcache.cli.work import CHUNK
    from embcache.report import aligned
    from embcache.types import plan_rows

    sources = sources_of(files, field)
    with CachedEmbedder(
        model,
        base_url=base_url,
        cache_dir=cache_dir,
        provider=None if provider is None else provider.value,
        offline=True,
    ) as embedder:
        texts = (text for source in sources for _, text in source.texts())
        # As `embed` hands them over, so that requests are counted as it will send them.
        planned = embedder.plan(texts, batch_size=CHUNK)
    if blank := sum(source.blank for source in sources):
        say(f"{many(blank, 'blank line')} skipped")
    if as_json:
        cost = None if planned.cost is None else planned.cost._asdict()
        write_json({**asdict(planned), "tokens": planned.tokens._asdict(), "cost": cost})
    else:
        write_out("".join(line + "\n" for line in aligned(plan_rows(planned), numbers=False)).encode())
