"""Configuration: arguments and environment become parts, and a wrong value is an error that says what to do."""

from __future__ import annotations

import enum
import inspect
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache import CachedEmbedder, config
from embcache.errors import ConfigError
from embcache.keys import canonical_json
from embcache.providers import LocalProvider, OpenAICompatibleProvider
from embcache.stores import DiskStore, MemoryStore
from embcache.types import Ask, Space
from embcache.wire import encode_request

from tests import reference

if TYPE_CHECKING:
    from pathlib import Path

    from embcache.config import Parts

URL = "http://127.0.0.1:8080/v1"
CANARY = "sk-CANARY"
DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(CachedEmbedder).parameters.items()
    if name != "self"
}


def build(**given: Any) -> Parts:  # noqa: ANN401 - whatever a user may give
    """The parts of an embedder, of which nothing is opened; in memory, unless a folder is given."""
    arguments = DEFAULTS | given
    if not {"store", "cache_dir"} & set(given):
        arguments["store"] = MemoryStore()
    return config.build(**arguments)


def server(parts: Parts) -> OpenAICompatibleProvider:
    assert isinstance(parts.provider, OpenAICompatibleProvider)
    return parts.provider


class Encoder:
    def encode(self, sentences: list[str]) -> Any:  # noqa: ANN401 - as the protocol has it
        return np.ones((len(sentences), 2))


class EmptyStore(MemoryStore):
    """A store that tells how much it holds, which is nothing yet."""

    def __len__(self) -> int:
        return 0


# What holds if nothing is said


def test_defaults() -> None:
    """Without a word: Novita's bge-m3 as base64, no key yet, and the settings that the documentation names."""
    parts = build()
    assert parts.settings.space == Space("novita", "baai/bge-m3", "base64")
    assert (server(parts)._url, server(parts)._key) == ("https://api.novita.ai/openai/v1/embeddings", None)
    settings = parts.settings
    assert (settings.dimensions, settings.extra_body, settings.prices, settings.progress) == (None, {}, {}, None)
    assert (settings.max_cost, settings.max_tokens) == (None, None)
    assert (settings.batch_size, settings.max_concurrency, settings.max_retries) == (2048, 4, 5)
    assert (settings.timeout, settings.raise_store_errors) == (60.0, False)


def test_arguments() -> None:
    """Every argument arrives where it is used, and what changes the vector is in the space."""
    store = MemoryStore()
    parts = build(
        model="m",
        encoding_format="float",
        dimensions=8,
        extra_body={"user": "u", "n": 1.0},
        api_key=" key \n",
        base_url=URL,
        provider_name="mine",
        batch_size=32,
        max_concurrency=1,
        timeout=5,
        max_retries=0,
        prices={"m": 2},
        max_cost=0.5,
        max_tokens=100,
        store=store,
        on_store_error="raise",
        epoch="2026-11",
        project="p",
        progress=False,
    )
    fields = ("body.n", "1.0"), ("body.user", '"u"'), ("dimensions", "8"), ("epoch", "2026-11")
    assert parts.settings.space == Space("mine", "m", "float", fields)
    assert (server(parts).id, server(parts)._url, server(parts)._key) == ("mine", f"{URL}/embeddings", "key")
    settings = parts.settings
    assert (settings.dimensions, settings.extra_body, settings.prices) == (8, {"user": "u", "n": 1.0}, {"m": 2})
    assert (settings.max_cost, settings.max_tokens) == (0.5, 100)
    assert (settings.batch_size, settings.max_concurrency, settings.max_retries, settings.timeout) == (32, 1, 0, 5.0)
    assert (settings.raise_store_errors, settings.progress, settings.project) == (True, False, "p")
    assert (parts.store, parts.owns_store) == (store, False)


@pytest.mark.parametrize(
    "least",
    [
        {"dimensions": 1},
        {"batch_size": 1},
        {"max_concurrency": 1},
        {"max_retries": 0},
        {"memory_size": 1_048_576},
        {"timeout": 0.001},
        {"prices": {"m": 0}},
        {"max_cost": 0.000001},
        {"max_tokens": 1},
    ],
    ids=" ".join,
)
def test_the_least_that_works(least: dict[str, Any]) -> None:
    """The smallest value of each setting is taken as it is."""
    settings = build(**least).settings
    assert all(getattr(settings, name) == value for name, value in least.items())


# Where


@pytest.mark.parametrize("vector", reference.golden("keys")["providers"], ids=lambda vector: vector["base_url"])
def test_golden_provider_ids(vector: dict[str, Any]) -> None:
    """The provider's id in the key is what the golden file says, and what the reference makes of the format's page."""
    assert reference.provider_id(vector["base_url"]) == vector["provider"]
    assert config.provider_id(config.checked_url(vector["base_url"])) == vector["provider"]
    assert build(base_url=vector["base_url"]).settings.space.provider == vector["provider"]


@pytest.mark.parametrize("end", ["", "/", "//"])
@pytest.mark.parametrize("path", ["/openai/v1", "/openai", "/v3/openai", "/OpenAI/V1"])
@pytest.mark.parametrize("host", ["https://api.novita.ai", "HTTPS://API.NOVITA.AI", "http://Api.Novita.Ai:443"])
def test_novita_has_three_urls(host: str, path: str, end: str) -> None:
    """All of Novita's base URLs are one provider in the key, each is asked as it was given, and wants a key."""
    parts = build(base_url=host + path + end)
    assert parts.settings.space.provider == "novita"
    assert server(parts)._url == f"{host}{path}/embeddings"
    assert server(parts)._key_hint is not None


def test_other_servers_may_want_no_key() -> None:
    """Nothing is known of another server's keys: without one it is asked without one."""
    assert server(build(base_url=URL))._key_hint is None


@pytest.mark.parametrize("url", [URL, "https://api.novita.ai/openai"])
def test_a_server_that_moves_keeps_its_cache(url: str) -> None:
    """`provider_name` stands in the key instead of the URL, verbatim."""
    parts = build(base_url=url, provider_name="Our Gateway")
    assert (parts.settings.space.provider, server(parts)._url) == ("Our Gateway", f"{url}/embeddings")


@pytest.mark.parametrize("url", [f" {URL}", f"{URL}\n", f"\t{URL}/ \r\n"])
def test_white_space_around_a_url(url: str) -> None:
    """What a shell or a file put around a URL is no part of it."""
    parts = build(base_url=url)
    assert (parts.settings.space.provider, server(parts)._url) == ("127.0.0.1:8080/v1", f"{URL}/embeddings")


@pytest.mark.parametrize(
    "url",
    [
        "api.novita.ai/openai",
        "ftp://api.novita.ai/openai",
        "https://",
        "https:///v1",
        "https://:8080/v1",
        "https://host:99999/v1",
        "https://host:port/v1",
        "https://[::1/v1",
        "https://ho st/v1",
        "https://host/v1/embeddings",
        "https://host/v1/embeddings/",
        f"https://user:{CANARY}@host/v1",
        f"https://{CANARY}@host/v1",
        f"https://host/v1?api-key={CANARY}",
        f"https://host/v1?{CANARY}",
        f"https://host/v1#{CANARY}",
        "https://host/v1?",
        "https://host/v1#",
    ],
)
def test_wrong_urls(url: str) -> None:
    """A URL that cannot be asked, or that may hold a secret, is refused without being quoted."""
    with pytest.raises(ConfigError, match="base_url") as caught:
        build(base_url=url)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


# What is wrong


NOT_JSON = [float("nan"), float("inf"), b"u", {1, 2}, object(), "\ud800", {"a": [float("nan")]}]
WRONG: list[tuple[str, object]] = [
    *(("encoding_format", value) for value in ("Base64", "int8", "", None, ["float"])),
    *(("on_store_error", value) for value in ("ignore", "", None, True)),
    *(("dimensions", value) for value in (0, -1, 8.0, "8", True)),
    *(("size_limit", value) for value in (0, -1, 2**20 - 1, 1e9, "1 GB")),
    *(("memory_size", value) for value in (0, 2**20 - 1, 1e9, "1 GB")),
    *(("batch_size", value) for value in (0, -1, 1.5, "32", None, True)),
    *(("max_concurrency", value) for value in (0, -1, 1.5, "4", None, True)),
    *(("max_retries", value) for value in (-1, 1.5, "5", None, True)),
    *(("timeout", value) for value in (0, -1, float("nan"), float("inf"), "60", None, True, 10**400)),
    *(("model", value) for value in ("", " \n", "\ud800")),
    *(("prices", {"m": value}) for value in (-1, float("nan"), float("inf"), "0.01", None, True, 10**400)),
    *(("max_cost", value) for value in (0, -1, float("nan"), float("inf"), "10", True)),
    *(("max_tokens", value) for value in (0, -1, 1.5, "10", True)),
    *(("provider", value) for value in ("openai", "Local")),
    *(("provider_name", value) for value in ("", " ", "\ud800")),
    *(("epoch", value) for value in ("", " ", "\ud800")),
    *(("progress", value) for value in ("yes", 1)),
    *(("extra_body", {"user": value}) for value in NOT_JSON),
    *(("extra_body", {name: 1}) for name in ("input", "model", "encoding_format", "dimensions", "\ud800")),
]
WRONG_TYPES: list[tuple[str, object]] = [
    ("model", 5),
    *(("prices", value) for value in (0.01, "0.01", [("m", 0.01)])),
    ("provider", 5),
    ("provider_name", 5),
    ("epoch", 2),
    *((name, "no") for name in ("offline", "read_only", "allow_network_fs")),
    *(("base_url", value) for value in (5, b"https://host/v1")),
    *(("api_key", value) for value in (5, b"key")),
    *(("cache_dir", value) for value in (5, b"folder")),
    ("store", 5),
    *(("extra_body", value) for value in ("user", ["user"], 5, {1: 1}, {None: 1})),
]


def names(cases: list[tuple[str, object]]) -> list[str]:
    return [f"{name}-{number}" for number, (name, _) in enumerate(cases)]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=names(WRONG))
def test_wrong_values(name: str, value: object) -> None:
    """A value that cannot work is refused at once, by the name of its argument, as a ValueError as well."""
    with pytest.raises(ConfigError, match=name) as caught:
        build(**{name: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=names(WRONG_TYPES))
def test_wrong_types(name: str, value: object) -> None:
    """The same holds for what is not even of the right type."""
    with pytest.raises(ConfigError, match=name):
        build(**{name: value})


@pytest.mark.parametrize(
    "given",
    [
        {"store": MemoryStore(), "cache_dir": "folder"},
        {"store": MemoryStore(), "size_limit": 2**30},
        {"provider": "local", "base_url": URL},
        {"provider": "local", "provider_name": "mine"},
        {"provider": "local", "model": "baai/bge-m3"},
        {"provider": LocalProvider(Encoder(), name="mine"), "api_key": "key"},
        {"provider": LocalProvider(Encoder(), name="mine"), "base_url": URL},
        {"provider": LocalProvider(Encoder(), name="mine"), "provider_name": "other"},
        {"provider": LocalProvider(Encoder(), name="mine"), "model": "other"},
    ],
    ids=" ".join,
)
def test_arguments_that_contradict_each_other(given: dict[str, Any]) -> None:
    """Two arguments of which one would have no effect are refused, and the one to leave out is named."""
    with pytest.raises(ConfigError, match="leave out"):
        build(**given)


@pytest.mark.parametrize(
    "key",
    ["", "  ", "\n", f"{CANARY}\n{CANARY}", f"{CANARY} {CANARY}", f"{CANARY}\u00e9", f"{CANARY}\0", f"\x7f{CANARY}"],
)
def test_u16_wrong_keys(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that no header can hold is refused at once, and never shown: neither the argument nor the variable."""
    with pytest.raises(ConfigError, match="api_key") as caught:
        build(api_key=key)
    assert CANARY not in str(caught.value)
    if key.strip() and "\0" not in key:
        monkeypatch.setenv("NOVITA_API_KEY", key)
        with pytest.raises(ConfigError, match="NOVITA_API_KEY") as caught:
            build()
        assert CANARY not in str(caught.value)


def test_a_key_is_shown_nowhere() -> None:
    """No part of an embedder shows the key."""
    parts = build(api_key=CANARY, base_url=URL)
    assert CANARY not in f"{parts!r} {parts.provider!r} {parts.settings!r}"


# What the request holds besides


def test_what_was_given_may_be_changed_afterwards() -> None:
    """What the caller does to its own objects later changes neither what is sent nor what it is known by."""
    extra: dict[str, Any] = {"options": {"a": [1]}}
    prices = {"m": 1.0}
    settings = build(extra_body=extra, prices=prices).settings
    extra["options"]["a"].append(2)
    extra["more"] = 1
    prices["m"] = 2.0
    assert settings.extra_body == {"options": {"a": [1]}}
    assert settings.space.fields == (("body.options", '{"a":[1]}'),)
    assert settings.prices == {"m": 1.0}


class Small(enum.IntEnum):
    ONE = 1


class Number(float):
    """A float with something more, as NumPy has them."""


NAMES = st.text(max_size=3) | st.integers(0, 3) | st.none() | st.booleans() | st.floats()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([np.float64(0.5), np.int64(1), np.str_("a"), Small.ONE, Number(1.0), b"x"]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_what_is_hashed_is_what_is_sent(extra_body: dict[str, object]) -> None:
    """Whatever `extra_body` is accepted can be sent, and a server reads in it what stands in the key."""
    try:
        settings = build(extra_body=extra_body).settings
    except ConfigError:
        return
    body = json.loads(encode_request(Ask(["a"], "m", "float", None, settings.extra_body, 1.0)))
    sent = {f"body.{name}": canonical_json(value) for name, value in body.items() if name in extra_body}
    assert dict(settings.space.fields) == sent


# The environment


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Key, server and folder come from the environment where no argument says otherwise."""
    monkeypatch.setenv("NOVITA_API_KEY", "from the environment".replace(" ", "-"))
    monkeypatch.setenv("EMBCACHE_BASE_URL", URL)
    monkeypatch.setenv("EMBCACHE_DIR", str(tmp_path / "cache"))
    parts = build()
    assert (server(parts)._key, server(parts)._url) == ("from-the-environment", f"{URL}/embeddings")
    assert parts.settings.space.provider == "127.0.0.1:8080/v1"
    assert config.cache_folder(None) == tmp_path / "cache"


def test_arguments_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An argument holds against its variable, be that right or wrong."""
    monkeypatch.setenv("NOVITA_API_KEY", "not a key")
    monkeypatch.setenv("EMBCACHE_BASE_URL", "not a URL")
    monkeypatch.setenv("EMBCACHE_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("EMBCACHE_PROVIDER", "not a provider")
    parts = build(api_key="given", base_url=URL, provider="novita")
    assert (server(parts)._key, server(parts)._url) == ("given", f"{URL}/embeddings")
    assert config.cache_folder(tmp_path / "mine") == tmp_path / "mine"


def test_wrong_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is refused as a wrong argument is."""
    monkeypatch.setenv("EMBCACHE_BASE_URL", "not a URL")
    with pytest.raises(ConfigError, match=r"https://api\.novita\.ai/openai/v1"):
        build()
    monkeypatch.setenv("EMBCACHE_PROVIDER", "not a provider")
    with pytest.raises(ConfigError, match="'novita', 'local'"):
        build()


@pytest.mark.parametrize("name", ["NOVITA_API_KEY", "EMBCACHE_BASE_URL", "EMBCACHE_DIR", "EMBCACHE_PROVIDER"])
def test_an_empty_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing, as a CI does for a secret that is not there, is as if it were not set."""
    folder = config.cache_folder(None)
    monkeypatch.setenv(name, "")
    parts = build()
    assert (server(parts)._key, server(parts).id) == (None, "novita")
    assert config.cache_folder(None) == folder


@pytest.mark.parametrize("key", ["not a key", ""])
def test_a_key_that_nobody_needs(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key in the environment is no matter where no key is used."""
    monkeypatch.setenv("NOVITA_API_KEY", key)
    assert build(provider="local").provider.id == "local"
    assert build(provider=LocalProvider(Encoder(), name="mine")).provider.id == "local"


def test_others_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from the variables of other clients: their keys are for other servers."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_ORG_ID"):
        monkeypatch.setenv(name, URL)
    parts = build()
    assert (server(parts)._key, server(parts).id) == (None, "novita")


# The provider


@pytest.mark.parametrize("chosen", ["argument", "variable"])
def test_local(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local model is chosen by argument or variable, and its name is then the default model."""
    if chosen == "variable":
        monkeypatch.setenv("EMBCACHE_PROVIDER", "local")
    parts = build(provider="local" if chosen == "argument" else None)
    assert isinstance(parts.provider, LocalProvider)
    assert parts.settings.space == Space("local", parts.provider.model, "base64")
    assert build(provider="local", model=parts.provider.model).settings.space == parts.settings.space


def test_own_provider() -> None:
    """A provider object is used as it is, under its own id and model."""
    provider = LocalProvider(Encoder(), name="mine")
    parts = build(provider=provider)
    assert parts.provider is provider
    assert parts.settings.space == Space("local", "mine", "base64")


# The store


def test_own_store() -> None:
    """A store object is used as it is, also one that is empty and says so; it is not ours to close."""
    for store in (MemoryStore(), EmptyStore()):
        parts = build(store=store)
        assert parts.store is store
        assert not parts.owns_store


def test_store_on_disk(tmp_path: Path) -> None:
    """A folder and a limit make a store there, which is ours to close; nothing is made before it is needed."""
    parts = build(cache_dir=tmp_path / "cache", size_limit=1_048_576)
    assert isinstance(parts.store, DiskStore)
    assert (parts.store.directory, parts.store.size_limit) == (tmp_path / "cache", 1_048_576)
    assert parts.owns_store
    assert not (tmp_path / "cache").exists()
    parts.store.close()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is the platform's for this user's caches unless one is named; it is absolute, and `~` is home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)
    assert config.cache_folder(None).name == "embcache"
    assert config.cache_folder(None).is_relative_to(tmp_path)
    assert config.cache_folder("~/cache") == tmp_path / "home" / "cache"
    assert config.cache_folder("cache") == tmp_path / "cache"
    assert config.cache_folder("$HOME") == tmp_path / "$HOME"
    monkeypatch.setenv("EMBCACHE_DIR", "~/other")
    assert config.cache_folder(None) == tmp_path / "home" / "other"
