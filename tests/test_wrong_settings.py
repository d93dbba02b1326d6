"""What the constructor takes and refuses, and where the API key comes from, on both faces."""

from __future__ import annotations

from typing import Any

import pytest

from embcache import ConfigError

from tests import twins
from tests.twins import Bench, everything, right, same

bench = twins.bench

KEY = "sk-canary-6b1f0e9d77"

WRONG: dict[str, list[Any]] = {
    "model": ["", " ", 5, b"m", "\ud800"],
    "encoding_format": ["hex", "", None, ["base64"], "BASE64"],
    "dimensions": [0, -1, 1.5, True, "8"],
    "extra_body": [
        {"model": "m"},
        {"input": 1},
        {"encoding_format": "float"},
        {"dimensions": 3},
        {"a": object()},
        {"a": float("nan")},
        {"a": {1, 2}},
        {"a": "\ud800"},
        {1: 2},
        [1],
        "ab",
        5,
    ],
    "api_key": ["", " ", f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\0", 5, KEY.encode()],
    "base_url": [
        "api.novita.ai",
        "ftp://a.invalid/v1",
        "http://",
        "http://a.invalid:port/v1",
        "http://[::1/v1",
        f"http://user:{KEY}@a.invalid/v1",
        f"http://a.invalid/v1?api-key={KEY}",
        f"http://a.invalid/v1#{KEY}",
        "http://a.invalid/v1/embeddings",
        "http://a.invalid/v1/embeddings/",
        "http://a\ud800.invalid/v1",
        5,
    ],
    "provider_name": ["", 5, "\ud800"],
    "cache_dir": [5],
    "size_limit": [0, -1, 1000, 1e9, "1 GB", True],
    "memory_size": [0, -1, 1e9, "1 GB", True],
    "batch_size": [0, -1, 1.0, "10", None, True],
    "max_concurrency": [0, -1, 2.0, None, True],
    "timeout": [0, -1.0, float("nan"), float("inf"), "60", None, True],
    "max_retries": [-1, 1.0, None, True],
    "prices": [{"m": -1}, {"m": "1"}, {"m": None}, {"m": float("nan")}, {"m": True}, [1], 5],
    "max_cost": [0, -1.0, float("nan"), float("inf"), "10", True],
    "max_tokens": [0, -1, 1.5, "10", True],
    "provider": ["openai", 5],
    "store": [5, "redis://"],
    "on_store_error": ["ignore", None, True],
    "progress": ["yes"],
    "epoch": ["", 5, "\ud800"],
    "project": ["", " ", 5, "\ud800"],
    "offline": ["no"],
    "read_only": ["no"],
    "allow_network_fs": ["no"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=[f"{name}-{n}" for name, values in WRONG.items() for n in range(len(values))],
)
@pytest.mark.parametrize("face", twins.FACES)
def test_wrong_settings(face: twins.Face, name: str, value: object) -> None:
    """A wrong value is a `ConfigError` that names the setting and never shows the key."""
    with pytest.raises(ConfigError) as caught:
        twins.open_twin(face, **{name: value})
    assert name in str(caught.value)
    assert all("canary" not in line for line in everything(caught.value))


def test_no_key(bench: Bench) -> None:
    """Without a key and a choice the first miss names both ways out; hits, figures and nothing at all need no key."""
    with bench.open(provider_name="novita") as embedder:
        embedder.embed("a")
    with bench.open(base_url=None) as embedder:
        assert same(embedder.embed("a"), right(["a"])[0])
        assert embedder.embed([]).shape == (0, 8)
        assert embedder.stats().entries == 1
        for _ in range(2):
            with pytest.raises(ConfigError) as caught:
                embedder.embed(["a", "b", "c"])
            assert "NOVITA_API_KEY" in str(caught.value)
            assert 'pip install "embcache[local]"' in str(caught.value)
        assert embedder.session.requests == 0
    assert len(bench.server.requests) == 1


def test_a_server_without_keys_needs_none(bench: Bench) -> None:
    """Of one's own server no key is asked: none is sent where none is given, nor that of another program."""
    with bench.open() as embedder:
        embedder.embed("a")
    assert "authorization" not in bench.server.requests[0].headers


def test_the_key_of_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from NOVITA_API_KEY, the one given wins, and those of other programs are never taken."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/not-this")
    monkeypatch.setenv("NOVITA_API_KEY", " sk-environment\n")
    with bench.open() as one, bench.open(api_key=KEY) as two:
        one.embed("a")
        two.embed("b")
    assert [request.headers["authorization"] for request in bench.server.requests] == [
        "Bearer sk-environment",
        f"Bearer {KEY}",
    ]
    assert not [name for request in bench.server.requests for name in request.headers if "openai" in name]
