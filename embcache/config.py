"""Arguments and environment to parts. The only reader of the environment, and the one place where values are checked.

| variable | what it sets |
| --- | --- |
| ``NOVITA_API_KEY`` | the API key, sent to the base URL in use |
| ``EMBCACHE_BASE_URL`` | the server, instead of Novita's |
| ``EMBCACHE_DIR`` | the cache folder, instead of the platform's |
| ``EMBCACHE_PROVIDER`` | ``local`` for the model in the process, ``novita`` for the API |

An argument always wins over a variable.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from embcache.errors import ConfigError
from embcache.keys import canonical_json, make_space
from embcache.wire import RESERVED_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embcache.providers.base import Provider
    from embcache.stores.base import Store
    from embcache.stores.disk import DiskStore
    from embcache.types import Space

NOVITA_URL = "https://api.novita.ai/openai/v1"
NOVITA_HOST = "api.novita.ai"
NOVITA_PATHS = frozenset({"/openai/v1", "/openai", "/v3/openai"})
NOVITA = "novita"
LOCAL = "local"
DEFAULT_MODEL = "baai/bge-m3"
SMALLEST_LIMIT = 1 << 20
FORMATS = ("base64", "float")
ON_STORE_ERROR = ("warn", "raise")

NO_KEY = (
    "there is no API key: set NOVITA_API_KEY (or pass api_key=…) to ask the API, or compute vectors on this machine "
    'without one: pip install "embcache[local]" and provider="local" (or EMBCACHE_PROVIDER=local)'
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine works by, checked.

    Attributes:
        space: what, besides the input, decides the vector.
        dimensions: the length asked for; None asks for none.
        extra_body: further fields of each request.
        memory_size: bytes of the memory tier; None has none.
        batch_size: inputs in one request at most.
        max_concurrency: requests in flight at most.
        timeout: seconds for one request as a whole.
        max_retries: attempts after the first.
        prices: by model, for a million tokens.
        raise_store_errors: whether a failing store is an error rather than a warning.
        offline: whether nothing may be sent.
        read_only: whether nothing may be stored.
        progress: whether to show a bar; None shows one on a terminal, for what takes longer than two seconds.
    """

    space: Space
    dimensions: int | None
    extra_body: Mapping[str, Any]
    memory_size: int | None
    batch_size: int
    max_concurrency: int
    timeout: float
    max_retries: int
    prices: Mapping[str, float]
    raise_store_errors: bool
    offline: bool
    read_only: bool
    progress: bool | None


@dataclass(frozen=True, slots=True)
class Parts:
    """An embedder's parts: how it works, and the doors it works with.

    Attributes:
        settings: how it works.
        provider: where vectors come from.
        store: where they are kept.
        owns_store: whether the store was made for this embedder, which closes it then.
    """

    settings: Settings
    provider: Provider
    store: Store
    owns_store: bool


def cache_folder(given: str | os.PathLike[str] | None) -> Path:
    """Return the cache folder: the one given, else ``EMBCACHE_DIR``, else the platform's for this user."""
    chosen = given or os.environ.get("EMBCACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("embcache", appauthor=False)


def build(  # noqa: PLR0913 - the constructor's arguments, one for one
    *,
    model: str | None,
    encoding_format: str,
    dimensions: int | None,
    extra_body: Mapping[str, Any] | None,
    api_key: str | None,
    base_url: str | None,
    provider_name: str | None,
    cache_dir: str | os.PathLike[str] | None,
    size_limit: int | None,
    memory_size: int | None,
    batch_size: int,
    max_concurrency: int,
    timeout: float,
    max_retries: int,
    prices: Mapping[str, float] | None,
    provider: str | Provider | None,
    store: Store | None,
    on_store_error: str,
    epoch: str | None,
    offline: bool,
    read_only: bool,
    allow_network_fs: bool,
    progress: bool | None,
) -> Parts:
    """Return the parts that these arguments and the environment describe.

    Raises:
        ConfigError: a value cannot work.
    """
    _one_of("encoding_format", encoding_format, FORMATS)
    _one_of("on_store_error", on_store_error, ON_STORE_ERROR)
    if dimensions is not None:
        _at_least("dimensions", dimensions, 1)
    if size_limit is not None:
        _at_least("size_limit", size_limit, SMALLEST_LIMIT)
    if memory_size is not None:
        _at_least("memory_size", memory_size, SMALLEST_LIMIT)
    _at_least("batch_size", batch_size, 1)
    _at_least("max_concurrency", max_concurrency, 1)
    _at_least("max_retries", max_retries, 0)
    if not _is_number(timeout) or timeout <= 0:
        raise ConfigError(f"timeout={timeout!r}: give seconds, more than 0")
    if model is not None and not model.strip():
        raise ConfigError("model: give the model's name as the provider spells it")
    if epoch is not None and not epoch:
        raise ConfigError("epoch='': give a name that tells these vectors from earlier ones, or leave it out")
    if store is not None and (cache_dir is not None or size_limit is not None):
        raise ConfigError("store= brings its own place and size; leave out cache_dir and size_limit")
    body = _checked_body(extra_body)
    source = _provider(provider, api_key, base_url, provider_name)
    chosen_model = source.model if model is None else model
    if source.fixed and chosen_model != source.model:
        raise ConfigError(f"the provider has one model, {source.model!r}; leave out model= or name that one")
    settings = Settings(
        space=make_space(source.id, chosen_model, encoding_format, dimensions=dimensions, extra_body=body, epoch=epoch),
        dimensions=dimensions,
        extra_body=body,
        memory_size=memory_size,
        batch_size=batch_size,
        max_concurrency=max_concurrency,
        timeout=float(timeout),
        max_retries=max_retries,
        prices=_checked_prices(prices),
        raise_store_errors=on_store_error == "raise",
        offline=offline,
        read_only=read_only,
        progress=progress,
    )
    if store is None:
        chosen = disk_store(cache_dir, size_limit, read_only=read_only, allow_network_fs=allow_network_fs)
        return Parts(settings, source, chosen, owns_store=True)
    return Parts(settings, source, store, owns_store=False)


def disk_store(
    cache_dir: str | os.PathLike[str] | None,
    size_limit: int | None = None,
    *,
    read_only: bool = False,
    allow_network_fs: bool = False,
) -> DiskStore:
    """Return the store on disk in the cache folder in use."""
    from embcache.stores.disk import DiskStore  # a user who brings a store does not pay for this one

    folder = cache_folder(cache_dir)
    return DiskStore(folder, size_limit, read_only=read_only, allow_network_fs=allow_network_fs)


def _provider(
    chosen: str | Provider | None, api_key: str | None, base_url: str | None, provider_name: str | None
) -> Provider:
    key = _checked_key("api_key", api_key) or _checked_key("NOVITA_API_KEY", os.environ.get("NOVITA_API_KEY"))
    if chosen is not None and not isinstance(chosen, str):
        if api_key is not None or base_url is not None or provider_name is not None:
            raise ConfigError("a provider object knows its own server; leave out api_key, base_url and provider_name")
        return chosen
    name = chosen or os.environ.get("EMBCACHE_PROVIDER") or NOVITA
    _one_of("provider", name, (NOVITA, LOCAL))
    if name == LOCAL:
        if base_url is not None or provider_name is not None:
            raise ConfigError("the local provider has no server; leave out base_url and provider_name")
        from embcache.providers.local import LocalProvider

        return LocalProvider()
    from embcache.providers.openai_compatible import OpenAICompatibleProvider

    url = checked_url(base_url or os.environ.get("EMBCACHE_BASE_URL") or NOVITA_URL)
    identity = provider_id(url)
    return OpenAICompatibleProvider(
        url,
        key,
        provider_id=provider_name or identity,
        model=DEFAULT_MODEL,
        key_hint=NO_KEY if identity == NOVITA else None,
    )


def checked_url(url: str) -> str:
    """Return ``url`` without a trailing slash.

    Raises:
        ConfigError: it is not one that can be asked, or it holds a secret.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url: give an http or https URL such as https://api.novita.ai/openai/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("base_url holds a user name or password; use api_key= for secrets")
    if parts.query or parts.fragment:
        named = ", ".join(name for name, _ in parse_qsl(parts.query, keep_blank_values=True)) or "a fragment"
        raise ConfigError(f"base_url holds {named}; give the URL up to its path, and use api_key= for secrets")
    if parts.path.rstrip("/").endswith("/embeddings"):
        raise ConfigError("base_url: leave out /embeddings at the end; it is added")
    return url.rstrip("/")


def provider_id(url: str) -> str:
    """Return what keys call the server at ``url``: ``novita`` for its three bases, else host[:port]/path."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").lower()
    if parts.hostname == NOVITA_HOST and path in NOVITA_PATHS:
        return NOVITA
    return parts.netloc.lower() + path


def _checked_key(name: str, key: str | None) -> str | None:
    """Return an API key that can be sent in a header. No message ever holds it."""
    if key is None:
        return None
    stripped = key.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ConfigError(f"{name} is empty or holds characters that no API key has (not shown here)")
    return stripped


def _checked_body(extra_body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    body = dict(extra_body or {})
    if wrong := sorted(RESERVED_FIELDS.intersection(body)):
        raise ConfigError(f"extra_body holds {', '.join(wrong)}, which have arguments of their own")
    for name, value in body.items():
        try:
            canonical_json(value).encode()
        except (TypeError, ValueError):
            raise ConfigError(f"extra_body[{name!r}] is not JSON") from None
    return body


def _checked_prices(prices: Mapping[str, float] | None) -> Mapping[str, float]:
    for model, price in (prices or {}).items():
        if not _is_number(price) or price < 0:
            raise ConfigError(f"prices[{model!r}]: give the price of a million tokens as a number")
    return dict(prices or {})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: give one of {', '.join(map(repr, allowed))}")


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: give a whole number, at least {least}")
