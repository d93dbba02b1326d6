"""What people use today, measured the way its own documentation shows it. Runs in the peers' venvs.

Each peer has a job that fills it, one that reads many texts from it, and where it is compared one that reads them one
by one. What a peer returns is left as it is: lists of floats are not made arrays at its expense.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

from scripts.benchmarks import corpus
from scripts.benchmarks.worker import Facts, main, timed, typical

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "baai/bge-m3"
REDISVL_SLICE = 1000


def _refuse(*_: object) -> Any:  # noqa: ANN401 - stands for any model
    message = "a warm cache asked for an embedding"
    raise AssertionError(message)


# langchain-classic: CacheBackedEmbeddings over files and over Redis


def _langchain(place: str, compute: Callable[[list[str]], list[list[float]]]) -> Any:  # noqa: ANN401 - theirs
    warnings.simplefilter("ignore")  # its default key encoder, which is the one measured, warns of itself
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_core.embeddings import Embeddings

    class Model(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return compute(texts)

        def embed_query(self, text: str) -> list[float]:
            return compute([text])[0]

    if place.startswith("redis:"):
        from langchain_community.storage import RedisStore

        store: Any = RedisStore(redis_url=place)
    else:
        from langchain_classic.storage import LocalFileStore

        store = LocalFileStore(place)
    return CacheBackedEmbeddings.from_bytes_store(Model(), store, namespace=MODEL)


def langchain_fill(texts: str, place: str) -> Facts:
    """Store the right vectors of all texts."""
    of = corpus.load(texts)
    embedder = _langchain(place, lambda asked: corpus.vectors(asked).tolist())
    return {"seconds": timed(lambda: embedder.embed_documents(of))[0]}


def langchain_warm(texts: str, place: str, count: int) -> Facts:
    """Read many texts in one call."""
    of = corpus.load(texts, count)
    embedder = _langchain(place, _refuse)
    seconds, answer = timed(lambda: embedder.embed_documents(of))
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


# RedisVL: its cache of embeddings


def redisvl_fill(texts: str, place: str) -> Facts:
    """Store the right vectors of all texts."""
    from redisvl.extensions.cache.embeddings import EmbeddingsCache

    of = corpus.load(texts)
    cache = EmbeddingsCache(name="benchmark", redis_url=place)
    for start in range(0, len(of), REDISVL_SLICE):
        part = of[start : start + REDISVL_SLICE]
        rows = corpus.vectors(part).tolist()
        cache.mset([{"content": t, "model_name": MODEL, "embedding": row} for t, row in zip(part, rows, strict=True)])
    return {}


def redisvl_warm(texts: str, place: str, count: int) -> Facts:
    """Read many texts, a thousand a call."""
    from redisvl.extensions.cache.embeddings import EmbeddingsCache

    of = corpus.load(texts, count)
    cache = EmbeddingsCache(name="benchmark", redis_url=place)

    def read() -> list[object]:
        found: list[Any] = []
        for start in range(0, count, REDISVL_SLICE):
            found += cache.mget(of[start : start + REDISVL_SLICE], MODEL)
        return [hit["embedding"] for hit in found]

    seconds, answer = timed(read)
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


# diskcache: a memoized function that returns an array, or a list of floats as the API's client gives it


def _memoized(place: str, compute: Callable[[str], Any]) -> Callable[[str], Any]:
    import diskcache

    cache = diskcache.Cache(place, size_limit=2**40)  # its default of 1 GiB would evict where the store is large

    @cache.memoize(name="embed")  # type: ignore[untyped-decorator]
    def embed(text: str) -> Any:  # noqa: ANN401 - an array, or a list
        return compute(text)

    return embed  # type: ignore[no-any-return]


def memoize_fill(texts: str, place: str, *, lists: bool) -> Facts:
    """Store the right vectors of all texts."""
    of = corpus.load(texts)
    vectors = corpus.vectors(of)
    right = dict(zip(of, vectors.tolist() if lists else vectors, strict=True))
    embed = _memoized(place, lambda text: right[text])
    for text in of:
        embed(text)
    return {}


def memoize_warm(texts: str, place: str, count: int) -> Facts:
    """Read many texts, one call each."""
    of = corpus.load(texts, count)
    embed = _memoized(place, _refuse)
    seconds, answer = timed(lambda: [embed(text) for text in of])
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


def memoize_one(texts: str, place: str, count: int) -> Facts:
    """Read texts one by one, and take the median."""
    of = corpus.load(texts, count)
    embed = _memoized(place, _refuse)
    embed(of[0])
    return {"seconds": typical(embed, of), "n": count}


# LiteLLM: its disk cache, by its asynchronous call, the only one that looks up each text for itself


def _litellm(place: str) -> Any:  # noqa: ANN401 - theirs
    import litellm
    from litellm.caching.caching import Cache

    litellm.cache = Cache(type="disk", disk_cache_dir=place)
    litellm.telemetry = False
    litellm.suppress_debug_info = True

    async def embed(of: list[str], url: str) -> list[list[float]]:
        answer = await litellm.aembedding(
            model="openai/" + MODEL, input=of, api_base=url, api_key="none", encoding_format="float", caching=True
        )
        return [datum["embedding"] for datum in answer.data]

    return embed


def litellm_fill(texts: str, place: str, url: str) -> Facts:
    """Buy and store all texts."""
    of = corpus.load(texts)
    embed = _litellm(place)

    async def fill() -> None:
        for start in range(0, len(of), REDISVL_SLICE):
            await embed(of[start : start + REDISVL_SLICE], url)
        await asyncio.sleep(1)  # it stores in the background

    asyncio.run(fill())
    return {}


def litellm_warm(texts: str, place: str, count: int) -> Facts:
    """Read many texts in one call."""
    of = corpus.load(texts, count)
    embed = _litellm(place)
    seconds, answer = timed(lambda: asyncio.run(embed(of, "http://127.0.0.1:9/v1")))
    corpus.check(of, answer)
    return {"seconds": seconds, "n": count}


# openai: the plain client, without any cache


def openai_cold(texts: str, url: str, count: int) -> Facts:
    """Ask for many texts in one request; twice, the first time with what a first call in a process has to do."""
    import openai

    of = corpus.load(texts)
    client = openai.OpenAI(api_key="none", base_url=url, max_retries=0)

    def ask(part: list[str]) -> list[list[float]]:
        return [datum.embedding for datum in client.embeddings.create(model=MODEL, input=part).data]

    first, answer = timed(lambda: ask(of[:count]))
    corpus.check(of[:count], answer)
    del answer
    seconds, answer = timed(lambda: ask(of[count : 2 * count]))
    corpus.check(of[count : 2 * count], answer)
    return {"first": first, "seconds": seconds, "n": count}


JOBS: dict[str, Callable[..., Facts]] = {
    "langchain_fill": langchain_fill,
    "langchain_warm": langchain_warm,
    "redisvl_fill": redisvl_fill,
    "redisvl_warm": redisvl_warm,
    "memoize_fill": memoize_fill,
    "memoize_warm": memoize_warm,
    "memoize_one": memoize_one,
    "litellm_fill": litellm_fill,
    "litellm_warm": litellm_warm,
    "openai_cold": openai_cold,
}

if __name__ == "__main__":
    main(JOBS)
