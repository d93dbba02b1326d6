"""The model in the process: the one that comes with embcache, and anybody's own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embcache import CachedEmbedder
from embcache.errors import ConfigError, EmbcacheError, InputRejected, ProviderUnavailable
from embcache.providers import LocalProvider, Provider, local

from tests.programs import output, python, unable
from tests.providers.asking import TEXT, ask, rows, told

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

TEXTS = ["how do I read a compressed file?", "gzip: support for compressed files", "the weather in spring", ""]


class Counting:
    """An encoder whose vector of a text is its length and its vowels, and which notices company."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.company = 0
        self.calls: list[list[str]] = []

    def encode(self, sentences: list[str]) -> npt.NDArray[np.float64]:
        if not self.busy.acquire(blocking=False):
            self.company += 1
            return np.zeros((len(sentences), 2))
        time.sleep(0.002)
        self.calls.append(list(sentences))
        self.busy.release()
        return np.array([[len(text) + 0.1, sum(map(text.count, "aeiou")) + 1] for text in sentences])


class Giving:
    """An encoder that gives one thing, or raises it."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def encode(self, sentences: list[str]) -> object:
        if isinstance(self.thing, BaseException):
            raise self.thing
        return self.thing


# The model that comes with embcache


@pytest.fixture
def wordllama() -> None:
    if find_spec("wordllama") is None:
        unable("wordllama is not installed")


DEFAULT = """
    import json, socket, sys

    def guard(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
            raise AssertionError(f"the network was asked: {event} {arguments}")

    sys.addaudithook(guard)
    from embcache.providers import LocalProvider
    from tests.providers.asking import ask, rows

    texts = json.loads(sys.argv[1])
    provider = LocalProvider()
    first = provider.embed(ask(*texts))
    again = provider.embed(ask(*reversed(texts)))
    assert list(again.rows) == list(first.rows)[::-1]
    assert all(provider.embed(ask(text)).rows[0] == row for text, row in zip(texts, first.rows))
    print(rows(first).shape, rows(first).dtype.str, first.model, first.indexes)
    print(json.dumps(rows(first).tolist()))
"""


@pytest.mark.usefixtures("wordllama")
def test_the_model_that_comes_with_embcache() -> None:
    """Without a network and with an empty home it gives 256 numbers a text, the same however texts are grouped."""
    import json

    no_network = ["unshare", "--net", "--map-root-user"]
    try:
        subprocess.run([*no_network, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        no_network = []  # the guard in the program is left
    shape, vectors = output(python(DEFAULT, json.dumps(TEXTS[:3]), within=no_network)).splitlines()
    assert shape == "(3, 256) <f4 wordllama-l2-supercat-256 [None, None, None]"
    question, answer, other = np.array(json.loads(vectors))
    assert np.isfinite([question, answer, other]).all()

    def nearness(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert nearness(question, answer) > nearness(question, other)


@pytest.mark.usefixtures("wordllama")
def test_the_model_in_another_process_gives_the_same(tmp_path: Path) -> None:
    """Vectors are a function of the text alone: two processes agree bit for bit, which is what a cache stands on."""
    code = """
        import hashlib, sys
        from embcache.providers import LocalProvider
        from tests.providers.asking import ask
        print(hashlib.sha256(b"".join(LocalProvider().embed(ask(*sys.argv[1:])).rows)).hexdigest())
    """
    first, second = (output(python(code, *TEXTS[:3], env={"PYTHONHASHSEED": seed})) for seed in ("1", "2"))
    assert first == second


def test_without_the_extra(tmp_path: Path) -> None:
    """Where wordllama is not installed, the first request says how to install it, and making the provider does not."""
    code = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "wordllama":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        from embcache.errors import ConfigError
        from embcache.providers import LocalProvider
        from tests.providers.asking import ask
        provider = LocalProvider()
        try:
            provider.embed(ask())
        except ConfigError as error:
            print(error, error.__suppress_context__)
    """
    said = output(python(code))
    assert 'pip install "embcache[local]"' in said
    assert said.endswith("True")


def test_on_a_python_that_is_too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Python that wordllama has no wheels for, the error says so and names the way out."""
    # Patched, since the tests run on Pythons that have the wheels: with 3.14 the extra installs nothing.
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(ConfigError, match=r"3\.14.*LocalProvider\(encoder, name="):
        LocalProvider().embed(ask())


@pytest.mark.usefixtures("wordllama")
def test_the_default_model_by_way_of_the_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMBCACHE_PROVIDER=local is a whole setup: its model is the default, and the second call computes nothing."""
    monkeypatch.setenv("EMBCACHE_PROVIDER", "local")
    with CachedEmbedder(cache_dir=tmp_path) as embedder:
        first = embedder.embed_result(TEXTS[:3])
    with CachedEmbedder(cache_dir=tmp_path) as embedder:
        second = embedder.embed_result(TEXTS[:3])
    assert (first.model, first.misses, first.hits) == ("wordllama-l2-supercat-256", 3, 0)
    assert (second.model, second.misses, second.hits) == ("wordllama-l2-supercat-256", 0, 3)
    assert first.vectors.shape == (3, 256)
    assert first.vectors.tobytes() == second.vectors.tobytes()


# A model of one's own


def test_an_encoder_of_ones_own() -> None:
    """Any object with encode() gives the vectors, as float32 and in order, under the name it was given."""
    encoder = Counting()
    provider = LocalProvider(encoder, name="counting-1")
    assert isinstance(provider, Provider)
    reply = provider.embed(ask("abc", "a longer text"))
    assert np.array_equal(rows(reply), np.array([[3.1, 2], [13.1, 5]], dtype=np.float32))
    assert (provider.model, reply.model, provider.fixed) == ("counting-1", "counting-1", True)
    assert encoder.calls == [["abc", "a longer text"]]
    assert reply.total_tokens == reply.prompt_tokens == 4
    provider.close()
    assert len(provider.embed(ask("again")).rows) == 1


def test_one_thread_at_a_time() -> None:
    """An encoder is never called by two threads at once."""
    encoder = Counting()
    provider = LocalProvider(encoder, name="counting-1")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(provider.embed, [ask("x" * number) for number in range(1, 60)]))
    assert encoder.company == 0
    assert [round(float(rows(reply)[0, 0]) - 0.1) for reply in replies] == list(range(1, 60))


def test_one_thread_at_a_time_by_way_of_the_embedder(tmp_path: Path) -> None:
    """Not even an embedder that sends many requests at once calls an encoder twice at a time."""
    encoder = Counting()
    texts = ["a" * number for number in range(1, 100)]
    with CachedEmbedder(
        provider=LocalProvider(encoder, name="counting-1"), cache_dir=tmp_path, batch_size=7, max_concurrency=8
    ) as embedder:
        vectors = embedder.embed(texts)
    assert encoder.company == 0
    assert len(encoder.calls) == 15
    assert [round(length - 0.1) for length in vectors[:, 0].tolist()] == list(range(1, 100))


def test_an_encoder_needs_a_name() -> None:
    """Without name= the vectors of two encoders would share their keys: a ConfigError says so."""
    with pytest.raises(ConfigError, match="name="):
        LocalProvider(Counting())
    with pytest.raises(ConfigError, match="name="):
        LocalProvider(Counting(), name="")
    with pytest.raises(ConfigError, match="name="):
        LocalProvider(name="another-model")
    assert LocalProvider(name=local.DEFAULT_MODEL).model == local.DEFAULT_MODEL


def test_a_model_that_is_not_its(tmp_path: Path) -> None:
    """Asked for another model than the one it has, an embedder is not made; its own name, or none, is right."""
    provider = LocalProvider(Counting(), name="counting-1")
    with pytest.raises(ConfigError, match="'counting-1'"):
        CachedEmbedder("baai/bge-m3", provider=provider, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=local.DEFAULT_MODEL):
        CachedEmbedder("baai/bge-m3", provider="local", cache_dir=tmp_path)
    for model in ("counting-1", None):
        with CachedEmbedder(model, provider=provider, cache_dir=tmp_path) as embedder:
            assert embedder.embed("abc").shape == (2,)


def test_two_names_are_two_caches(tmp_path: Path) -> None:
    """Vectors of one encoder are not given out for another."""
    hits: list[int] = []
    for name in ("counting-1", "counting-2", "counting-1"):
        with CachedEmbedder(provider=LocalProvider(Counting(), name=name), cache_dir=tmp_path) as embedder:
            hits.append(embedder.embed_result("abc").hits)
    assert hits == [0, 0, 1]


def test_token_ids_are_refused() -> None:
    """An encoder takes texts: token ids are refused as inputs, and it is not called."""
    encoder = Counting()
    with pytest.raises(InputRejected, match="counting-1 takes texts"):
        LocalProvider(encoder, name="counting-1").embed(ask([1, 2, 3]))
    assert encoder.calls == []


# What goes wrong


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (np.zeros(3), r"shape \(3,\) for 2 texts"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\) for 2 texts"),
        (np.float32(1), r"shape \(\) for 2 texts"),
        ([[1.0, 2.0], [1.0]], "failed with ValueError"),
        ([["a", "b"], ["c", "d"]], "failed with ValueError"),
        (None, "the (encoder|local model)"),
        (np.zeros((3, 4)), r"shape \(3, 4\) for 2 texts"),
        (np.zeros((1, 4)), r"shape \(1, 4\) for 2 texts"),
    ],
    ids=["one row", "three dimensions", "a number", "ragged", "words", "nothing", "too many", "too few"],
)
def test_wrong_shapes(thing: object, said: str) -> None:
    """What is no table with a row for each text is an error that tells what came, and for how many texts."""
    with pytest.raises(ProviderUnavailable, match=said) as caught:
        LocalProvider(Giving(thing), name="giving").embed(ask(TEXT, "b"))
    assert not caught.value.retryable
    told(caught.value, [TEXT])


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (2, 0), (0,)])
def test_wrong_shapes_are_never_stored(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A table with too many rows, too few or none reaches the caller as an error, and nothing of it the cache."""
    provider = LocalProvider(Giving(np.ones(shape)), name="giving")
    with CachedEmbedder(provider=provider, cache_dir=tmp_path, max_retries=0) as embedder:
        with pytest.raises(EmbcacheError):
            embedder.embed(["a", "b"])
        assert embedder.stats().entries == 0


@pytest.mark.parametrize("error", [ValueError(TEXT), KeyError(TEXT), MemoryError(TEXT), UnicodeError(TEXT)])
def test_an_encoder_that_fails(error: Exception) -> None:
    """An error of an encoder is told by its kind; its words, which may quote a text, are told nowhere."""
    with pytest.raises(ProviderUnavailable, match=f"giving failed with {type(error).__name__}") as caught:
        LocalProvider(Giving(error), name="giving").embed(ask())
    assert not caught.value.retryable
    told(caught.value, [TEXT])


def test_after_a_failure(tmp_path: Path) -> None:
    """An encoder that failed once is asked again by the next request: its lock is free."""
    encoder = Giving(ValueError())
    provider = LocalProvider(encoder, name="giving")
    with pytest.raises(ProviderUnavailable):
        provider.embed(ask())
    encoder.thing = np.ones((1, 2))
    assert rows(provider.embed(ask())).tolist() == [[1.0, 1.0]]
