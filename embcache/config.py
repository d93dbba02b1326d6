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

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embcache.errors import ConfigError
from embcache.keys import RESERVED_FIELDS, canonical_json, make_space
from embcache.usage import price_of

if TYPE_CHECKING:
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
        project: whom what is done is booked for, beside the model; None for nobody.
        max_cost: dollars to spend at most; None for no limit.
        max_tokens: tokens to be billed at most; None for no limit.
        raise_store_errors: whether a failing store is an error rather than a warning.
        offline: whether nothing may be sent.
        read_only: whether nothing may be stored.
        progress: whether to show a bar; None shows one where somebody looks, for what takes longer than 2 s.
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
    project: str | None
    max_cost: float | None
    max_tokens: int | None
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
    project: str | None,
    max_cost: float | None,
    max_tokens: int | None,
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
    for name, choice, allowed in (
        ("encoding_format", encoding_format, FORMATS),
        ("on_store_error", on_store_error, ON_STORE_ERROR),
        ("progress", progress, (True, False, None)),
        ("offline", offline, (True, False)),
        ("read_only", read_only, (True, False)),
        ("allow_network_fs", allow_network_fs, (True, False)),
    ):
        _one_of(name, choice, allowed)
    for name, number, least in (
        ("dimensions", dimensions, 1),
        ("size_limit", size_limit, SMALLEST_LIMIT),
        ("memory_size", memory_size, SMALLEST_LIMIT),
        ("max_tokens", max_tokens, 1),
    ):
        if number is not None:
            _at_least(name, number, least)
    _at_least("batch_size", batch_size, 1)
    _at_least("max_concurrency", max_concurrency, 1)
    _at_least("max_retries", max_retries, 0)
    _more_than_nothing("timeout", timeout)
    if max_cost is not None:
        _more_than_nothing("max_cost", max_cost)
    for name, value in (("model", model), ("provider_name", provider_name), ("epoch", epoch), ("project", project)):
        _none_or_text(name, value)
    _check_store(store, cache_dir, size_limit)
    body = _checked_body(extra_body)
    source = make_provider(provider, api_key, base_url, provider_name)
    chosen_model = source.model if model is None else model
    if source.fixed and chosen_model != source.model:
        raise ConfigError(f"the provider has one model, {source.model!r}; leave out model= or name that one")
    known = _checked_prices(prices)
    if max_cost is not None and price_of(source.id, chosen_model, known) is None:
        raise ConfigError(
            f"max_cost: the price of {chosen_model!r} is not known here; give it with prices=, in dollars for a "
            "million tokens, or limit max_tokens"
        )
    settings = Settings(
        space=make_space(source.id, chosen_model, encoding_format, dimensions=dimensions, extra_body=body, epoch=epoch),
        dimensions=dimensions,
        extra_body=body,
        memory_size=memory_size,
        batch_size=batch_size,
        max_concurrency=max_concurrency,
        timeout=float(timeout),
        max_retries=max_retries,
        prices=known,
        max_cost=max_cost,
        max_tokens=max_tokens,
        project=project,
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


def _check_store(store: object, cache_dir: object, size_limit: int | None) -> None:
    if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike)):
        raise ConfigError("cache_dir: give the path of a folder")
    if store is None:
        return
    from embcache.stores.base import Store

    if not isinstance(store, Store):
        raise ConfigError("store: give a store, such as embcache.stores.MemoryStore(), or leave it out")
    if cache_dir is not None or size_limit is not None:
        raise ConfigError("store= brings its own place and size; leave out cache_dir and size_limit")


def make_provider(
    chosen: str | Provider | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    provider_name: str | None = None,
) -> Provider:
    """Return the provider that these arguments and the environment describe; nothing is sent.

    Raises:
        ConfigError: a value cannot work.
    """
    if chosen is not None and not isinstance(chosen, str):
        if not _is_provider(chosen):
            raise ConfigError(
                "provider: give 'novita', 'local', or an object that has what embcache.providers.Provider has"
            )
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
    from embcache.providers.keycheck import checked_key
    from embcache.providers.openai_compatible import OpenAICompatibleProvider

    if api_key is not None:
        key: str | None = checked_key("api_key", api_key)
    else:
        told = os.environ.get("NOVITA_API_KEY")
        key = checked_key("NOVITA_API_KEY", told) if told else None
    url = checked_url(base_url if base_url is not None else os.environ.get("EMBCACHE_BASE_URL") or NOVITA_URL)
    identity = provider_id(url)
    return OpenAICompatibleProvider(
        url,
        key,
        provider_id=provider_name or identity,
        model=DEFAULT_MODEL,
        key_hint=NO_KEY if identity == NOVITA else None,
    )


def checked_url(url: str) -> str:
    """Return ``url`` without white space around it and without a trailing slash.

    Raises:
        ConfigError: it is not one that can be asked, or it may hold a secret; the message does not quote it.
    """
    url = url.strip() if _is_text(url) else ""
    try:
        parts = urlsplit(url)
        _ = parts.port
        can_be_asked = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
        )
    except ValueError:
        can_be_asked = False
    if not can_be_asked:
        raise ConfigError("base_url: give an http or https URL such as https://api.novita.ai/openai/v1")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("base_url holds a user name or password; use api_key= for secrets")
    if "?" in url or "#" in url:
        raise ConfigError("base_url goes on after its path; give it up to there, and use api_key= for secrets")
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


def _checked_body(extra_body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the further fields as plain JSON of our own: what is hashed is what is sent."""
    if extra_body is None:
        return {}
    if not _is_mapping(extra_body) or not all(map(_is_text, extra_body)):
        raise ConfigError("extra_body: give a mapping of the names of fields to their values")
    if wrong := sorted(RESERVED_FIELDS.intersection(extra_body)):
        raise ConfigError(f"extra_body holds {', '.join(wrong)}, which have arguments of their own")
    try:
        spelled = canonical_json(dict(extra_body))
        spelled.encode()
    except (TypeError, ValueError, RecursionError):
        raise ConfigError("extra_body holds what is not JSON") from None
    plain: dict[str, Any] = json.loads(spelled)
    return plain


def _checked_prices(prices: Mapping[str, float] | None) -> Mapping[str, float]:
    if prices is None:
        return {}
    if not _is_mapping(prices):
        raise ConfigError("prices: give a mapping of models to the price of a million tokens")
    for model, price in prices.items():
        if not _is_number(price) or price < 0:
            raise ConfigError(f"prices: give the price of a million tokens of {model!r} as a number")
    return dict(prices)


def _is_provider(value: object) -> bool:
    from embcache.providers.base import Provider

    return isinstance(value, Provider)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def _more_than_nothing(name: str, value: object) -> None:
    if not _is_number(value) or not isinstance(value, (int, float)) or value <= 0:
        raise ConfigError(f"{name}: give a number, more than 0")


def _none_or_text(name: str, value: object) -> None:
    if value is None:
        return
    try:
        if isinstance(value, str) and value.strip() and value.encode():
            return
    except UnicodeEncodeError:
        pass
    raise ConfigError(f"{name}: give a name, or leave it out")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
        raise ConfigError(f"{name}: give one of {', '.join(map(repr, allowed))}")


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: give a whole number, at least {least}")
