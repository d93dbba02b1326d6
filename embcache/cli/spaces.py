"""Of which space entries are: options that leave a side open, and options that name one space."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from embcache.cli.common import ProviderName

if TYPE_CHECKING:
    from pathlib import Path

    from embcache.types import Space


class FormatName(StrEnum):
    """How vectors travel, which is part of the key."""

    BASE64 = "base64"
    FLOAT = "float"


Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only entries of this model.")]
Provider = Annotated[
    ProviderName | None, typer.Option("--provider", help="Only entries of Novita's API, or of local models.")
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Only entries of the server there.")]
Epoch = Annotated[str | None, typer.Option("--epoch", metavar="NAME", help="Only entries of this epoch.")]
Dimensions = Annotated[
    int | None,
    typer.Option("--dimensions", metavar="N", min=1, help="The length of vector that was asked for, if one was."),
]
Format = Annotated[
    FormatName, typer.Option("--encoding-format", help="How the vectors travelled, which is part of the key.")
]


def provider_of(provider: ProviderName | None, base_url: str | None) -> str | None:
    """Return what keys and accounts call the provider wanted; None where all are."""
    from embcache import config
    from embcache.errors import ConfigError

    if base_url is not None:
        if provider is ProviderName.LOCAL:
            raise ConfigError("the local provider has no server; leave out --base-url")
        return config.provider_id(config.checked_url(base_url))
    return None if provider is None else provider.value


def space_of(  # noqa: PLR0913 - all that makes a space
    *,
    model: str | None,
    provider: ProviderName | None,
    base_url: str | None,
    dimensions: int | None,
    encoding_format: FormatName,
    epoch: str | None,
    cache_dir: "Path | None",
) -> "Space":
    """Return the one space in which an embedder with these settings looks its inputs up."""
    from embcache import CachedEmbedder

    with CachedEmbedder(
        model,
        provider=None if provider is None else provider.value,
        base_url=base_url,
        dimensions=dimensions,
        encoding_format=encoding_format.value,
        epoch=epoch,
        cache_dir=cache_dir,
        offline=True,
        read_only=True,
        progress=False,
    ) as embedder:
        return embedder.space
