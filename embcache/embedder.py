"""The two faces of the engine: ``CachedEmbedder`` and its asynchronous twin ``AsyncCachedEmbedder``.

Over 400 lines, most of which tell users what each argument is and what each method gives, takes and raises.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self

from embcache.errors import InvalidInput
from embcache.inputs import in_batches, masks, read_inputs
from embcache.types import EmbedResult, Usage

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from embcache.codec import Entry
    from embcache.flight import Call
    from embcache.inputs import Inputs
    from embcache.providers.base import Provider
    from embcache.stores.base import Store
    from embcache.types import CacheStats, Item, Plan, Space, Vectors

    OnRefusal = Literal["raise", "mask"]
    Found = tuple[Vectors, Entry]
    EmbedInput = str | Iterable[str] | Sequence[int] | Sequence[Sequence[int]]

SECONDS_AT_EXIT = 2.0
"""How long the interpreter's exit, or an embedder nobody holds any more, waits for what is being bought."""
FEW = 256
"""Inputs looked up within the event loop; more are looked up beside it."""


class _Face:
    """What both faces have: the constructor, and what needs no waiting."""

    def __init__(  # noqa: PLR0913 - all by keyword but the model
        self,
        model: str | None = None,
        *,
        encoding_format: str = "base64",
        dimensions: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        provider_name: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        size_limit: int | None = None,
        memory_size: int | None = None,
        batch_size: int = 2048,
        max_concurrency: int = 4,
        timeout: float = 60.0,
        max_retries: int = 5,
        prices: Mapping[str, float] | None = None,
        project: str | None = None,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        provider: str | Provider | None = None,
        store: Store | None = None,
        on_store_error: str = "warn",
        epoch: str | None = None,
        offline: bool = False,
        read_only: bool = False,
        allow_network_fs: bool = False,
        progress: bool | None = None,
    ) -> None:
        """Make an embedder; nothing is opened, loaded or sent before it is needed.

        Args:
            model: the model to ask for, as the provider spells it; by default ``baai/bge-m3``, or the local provider's.
            encoding_format: how vectors travel, ``"base64"`` or ``"float"``. Part of the key.
            dimensions: the length of vector to ask for; None asks for none. Part of the key.
            extra_body: further fields of each request, sent as they are. Part of the key.
            api_key: by default ``NOVITA_API_KEY``; needed at the first request only. Sent to ``base_url``.
            base_url: the server, as the ``openai`` client takes it; by default ``EMBCACHE_BASE_URL``, else Novita's.
            provider_name: what keys call the server instead of its host and path; one that moves keeps its cache.
            cache_dir: the cache folder; by default ``EMBCACHE_DIR``, else the platform's for this user's caches.
            size_limit: bytes the cache may take; None never evicts, otherwise the oldest stored entries go first.
            memory_size: bytes of vectors to hold in memory over the store, for what is asked again and again in one
                process; None holds none.
            batch_size: inputs in one request at most.
            max_concurrency: requests in flight at most.
            timeout: seconds for one request as a whole; only the look-up of the server's name is the system's own.
            max_retries: attempts after the first, on 408, 409, 425, 429, 5xx and where there is no connection. What may
                have been billed is sent once more at most: a time-out, a connection that broke, a 200 of no use.
            prices: dollars for a million tokens, by model, where embcache does not know them.
            project: a name to book what is paid and saved under, beside the model. No part of the key: projects share
                what is stored.
            max_cost: dollars that this embedder may spend in its life. A request that may pass it is not sent, by the
                high end of what it is expected to be billed, and raises ``BudgetExceeded``; None sets no limit.
            max_tokens: the same in tokens.
            provider: ``"novita"``, ``"local"``, or any :class:`~embcache.providers.Provider`; by default
                ``EMBCACHE_PROVIDER``, else the API.
            store: any :class:`~embcache.stores.Store`, instead of the one in the cache folder.
            epoch: a name that begins anew under the same model name, for a provider that changed its model. Part of the
                key; not sent.
            offline: send nothing; what is not stored raises ``CacheMiss``.
            read_only: store nothing, and change no byte of the cache.
            allow_network_fs: use a cache folder on a network file system, where SQLite may lose or damage it.
            on_store_error: ``"warn"`` goes on without the cache where it fails, ``"raise"`` raises ``StoreError``.
            progress: True shows a bar, False none, None shows one in a terminal or notebook for what takes longer than
                two seconds.

        Raises:
            ConfigError: a value cannot work; the message says what to do.
        """
        self._recipe: dict[str, Any] = {
            "model": model,
            "encoding_format": encoding_format,
            "dimensions": dimensions,
            "extra_body": extra_body,
            "base_url": base_url,
            "provider_name": provider_name,
            "cache_dir": cache_dir,
            "size_limit": size_limit,
            "memory_size": memory_size,
            "batch_size": batch_size,
            "max_concurrency": max_concurrency,
            "timeout": timeout,
            "max_retries": max_retries,
            "prices": prices,
            "project": project,
            "max_cost": max_cost,
            "max_tokens": max_tokens,
            "provider": provider,
            "store": store,
            "on_store_error": on_store_error,
            "epoch": epoch,
            "offline": offline,
            "read_only": read_only,
            "allow_network_fs": allow_network_fs,
            "progress": progress,
        }
        # What only an embedder needs is imported when the first one is made: `import embcache` stays as quick as NumPy.
        from embcache import config
        from embcache.engine import Engine

        self._engine = Engine(config.build(**self._recipe, api_key=api_key))
        self._begin_face()
        # Runs where the embedder is no longer held, and at the interpreter's exit.
        self._end = weakref.finalize(self, self._engine.close, SECONDS_AT_EXIT)

    def _begin_face(self) -> None:
        """Make what one face needs for itself."""

    def __repr__(self) -> str:
        """Show what is asked where; never the key."""
        space = self.space
        return f"{type(self).__name__}({space.model!r}, provider={space.provider!r}, format={space.format!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the recipe: what travels to another process is how to make the embedder, without key or handle.

        There, the API key is the one of the environment.
        """
        return self._recipe

    def __setstate__(self, recipe: dict[str, Any]) -> None:
        """Make the embedder from its recipe."""
        self.__init__(**recipe)  # type: ignore[misc]  # the one way an embedder is made

    @property
    def space(self) -> Space:
        """What, besides the input, decides which vector comes back; see :func:`embcache.keys.preimage`."""
        return self._engine.settings.space

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return self.space.model

    @property
    def session(self) -> CacheStats:
        """The figures of this embedder alone, since it was made."""
        return self._engine.session()

    def _may_read_ahead(self, ahead: Sequence[tuple[Call, queue.SimpleQueue[None] | asyncio.Event]]) -> bool:
        """Return whether to begin one more batch before the oldest is handed out."""
        return not ahead or (len(ahead) <= self._engine.settings.max_concurrency and not _is_there(ahead[0]))

    def _warn(self) -> None:
        self._engine.keeper.tell(stacklevel=3)


class CachedEmbedder(_Face):
    """Embeddings of texts, bought once and kept.

    Safe to use from many threads. Ends with ``close()`` or as a context manager.
    """

    def embed(
        self,
        input: EmbedInput,  # noqa: A002 - the API's own word for it
        *,
        refresh: bool = False,
        errors: OnRefusal = "raise",
    ) -> Vectors:
        """Return the vectors of ``input``, asking the provider only for those that are not stored.

        Args:
            input: a text; an iterable of texts; ONE input as a list of token ids; or a list of such lists.
            refresh: ask for all of them again, and replace what is stored.
            errors: ``"raise"``, or ``"mask"`` to get rows of NaN for inputs that the provider refused as such;
                ``embed_result(…).rejected`` names them.

        Returns:
            float32, shape ``(n, dims)`` in the order given, or ``(dims,)`` for a single text or list of token ids. The
            array is the caller's own. ``[]`` costs nothing and gives ``(0, dims)``.

        Raises:
            InvalidInput: an input cannot be embedded; nothing was sent.
            InputRejected: the server refused single inputs; the others are stored.
            ProviderError: the provider could not be used; what was bought before is stored.
            BudgetExceeded: a request would have passed ``max_cost`` or ``max_tokens``; what was bought is stored.
            ConfigError: there is no API key, or the local model is not installed.
            StoreError: the cache failed, with ``on_store_error="raise"`` only.

        A call takes at most, for each request it needs, ``timeout`` for each of ``1 + max_retries`` attempts (two at
        most that time out) and 30 s of waiting between two of them, ``max_concurrency`` requests side by side; and at
        most 1 s for a store that does not answer.
        """
        if type(input) is str and not refresh and (held := self._engine.find_one(input)) is not None:
            return held
        return self._result(input, refresh=refresh, errors=errors).vectors

    def embed_result(
        self,
        input: EmbedInput,  # noqa: A002 - as above
        *,
        refresh: bool = False,
        errors: OnRefusal = "raise",
    ) -> EmbedResult:
        """Return the vectors of ``input`` with what they took; takes and raises what :meth:`embed` does."""
        return self._result(input, refresh=refresh, errors=errors)

    def embed_iter(self, inputs: Iterable[Item], *, batch_size: int | None = None) -> Iterator[Vectors]:
        """Yield the vectors of ``inputs``, in order, with bounded memory; what comes next is bought meanwhile.

        Args:
            inputs: texts, or lists of token ids; may be endless. It is read some batches ahead.
            batch_size: vectors in each array; by default as many as in a request.

        Yields:
            float32, shape ``(batch_size, dims)``, the last one shorter; each the caller's own.

        Raises:
            InvalidInput, InputRejected, ProviderError, BudgetExceeded, ConfigError, StoreError: as :meth:`embed`, with
                indexes counted from the beginning of ``inputs``, when it is the turn of the batch concerned. What was
                sent ahead is stored all the same.
        """
        return self._iterate(in_batches(inputs, batch_size or self._engine.settings.batch_size))

    def plan(
        self, inputs: EmbedInput | Iterable[Item], *, refresh: bool = False, batch_size: int | None = None
    ) -> Plan:
        """Return what it would take to embed ``inputs``, and what it would cost.

        Nothing is sent, stored or counted, and no API key is needed. What is being bought at this moment counts as not
        there. An iterable is read to its end some thousands at a time; of each distinct miss about 100 bytes are held,
        so that two million take 200 MB.

        Args:
            inputs: as :meth:`embed`.
            refresh: plan to ask for all of them again.
            batch_size: inputs in each call, where they are handed over some at a time, as ``embed_iter`` does;
                None plans for one call.

        Raises:
            InvalidInput: as :meth:`embed`.
            StoreError: the cache cannot be read.
        """
        return self._engine.plan(inputs, refresh=refresh, batch_size=batch_size)

    def forget(self, input: EmbedInput) -> int:  # noqa: A002 - as above
        """Remove what is stored for ``input``, and return how many entries that were.

        The bytes are overwritten on disk. The accounts keep what was paid.

        Raises:
            InvalidInput: as :meth:`embed`.
            StoreError: it could not be removed.
        """
        return self._engine.forget(read_inputs(input))

    def stats(self) -> CacheStats:
        """Return what was paid and saved: the figures of the whole cache since its beginning, of all models.

        Raises:
            StoreError: the cache cannot be read.
        """
        return self._engine.stats()

    def close(self) -> None:
        """Wait for what is being bought, write what was counted, and give everything back."""
        if self._end.detach():
            self._engine.close()
            self._warn()

    def __enter__(self) -> Self:
        """Return the embedder; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the embedder."""
        self.close()

    def _begin(
        self, inputs: Inputs, *, refresh: bool = False, mask: bool = False
    ) -> tuple[Call, queue.SimpleQueue[None]]:
        # A queue, since waiting at it is one step that an interrupt cannot leave half done; a Future's lock it could.
        there: queue.SimpleQueue[None] = queue.SimpleQueue()
        return self._engine.begin(inputs, refresh=refresh, mask=mask, wake=lambda: there.put(None)), there

    def _end_of(self, call: Call, there: queue.SimpleQueue[None]) -> EmbedResult:
        if call.pending:
            try:
                there.get()
            except BaseException:
                call.gone = True
                raise
        self._engine.keeper.tell(stacklevel=4)
        return self._engine.finish(call)

    def _result(self, given: EmbedInput, *, refresh: bool, errors: OnRefusal) -> EmbedResult:
        return self._end_of(*self._begin(read_inputs(given), refresh=refresh, mask=masks(errors)))

    def _iterate(self, batches: Iterator[Inputs]) -> Iterator[Vectors]:
        ahead: deque[tuple[Call, queue.SimpleQueue[None]]] = deque()
        more, wrong = True, None
        try:
            while True:
                # As long as the oldest is not there yet, begin the next ones.
                while more and self._may_read_ahead(ahead):
                    try:
                        ahead.append(self._begin(next(batches)))
                    except StopIteration:
                        more = False
                    except InvalidInput as error:  # when it is its turn
                        more, wrong = False, error
                if not ahead:
                    break
                yield self._end_of(*ahead.popleft()).vectors
        finally:
            _let_go(ahead)
        if wrong is not None:
            raise wrong


class _Together(threading.local):
    """Single texts that tasks of this thread's loop have asked for and that are about to be looked up."""

    loop: asyncio.AbstractEventLoop | None = None
    asked: list[tuple[str, asyncio.Future[Found | None]]] = []  # noqa: RUF012 - replaced before anything is put in


class AsyncCachedEmbedder(_Face):
    """Embeddings of texts, bought once and kept: the twin of ``CachedEmbedder`` for asyncio.

    Any number of tasks may use it at a time. Ends with ``aclose()`` or as an asynchronous context manager. A task that
    is cancelled cancels no request: what was begun is paid for, and is stored.
    """

    def _begin_face(self) -> None:
        import asyncio

        self._running_loop = asyncio.get_running_loop
        self._together = _Together()

    async def embed(
        self,
        input: EmbedInput,  # noqa: A002 - as above
        *,
        refresh: bool = False,
        errors: OnRefusal = "raise",
    ) -> Vectors:
        """Return the vectors of ``input``; see :meth:`CachedEmbedder.embed`."""
        if type(input) is str and not refresh:
            if (held := self._engine.recall(input)) is not None:
                return held
            if (found := await self._peek(input)) is not None:
                return found[0]
        return (await self._result(input, refresh=refresh, errors=errors)).vectors

    async def embed_result(
        self,
        input: EmbedInput,  # noqa: A002 - as above
        *,
        refresh: bool = False,
        errors: OnRefusal = "raise",
    ) -> EmbedResult:
        """Return the vectors of ``input`` with what they took; see :meth:`CachedEmbedder.embed`."""
        if type(input) is str and not refresh and (found := await self._peek(input)) is not None:
            vector, entry = found
            return EmbedResult(vector, Usage(saved_tokens=entry.tokens or 0), 1, 0, 0, 0, entry.model)
        return await self._result(input, refresh=refresh, errors=errors)

    async def plan(
        self, inputs: EmbedInput | Iterable[Item], *, refresh: bool = False, batch_size: int | None = None
    ) -> Plan:
        """Return what it would take to embed ``inputs``, read on another thread; see :meth:`CachedEmbedder.plan`."""
        import asyncio

        return await asyncio.to_thread(self._engine.plan, inputs, refresh=refresh, batch_size=batch_size)

    async def forget(self, input: EmbedInput) -> int:  # noqa: A002 - as above
        """Remove what is stored for ``input``; see :meth:`CachedEmbedder.forget`."""
        import asyncio

        return await asyncio.to_thread(self._engine.forget, read_inputs(input))

    async def stats(self) -> CacheStats:
        """Return the figures of the whole cache; see :meth:`CachedEmbedder.stats`."""
        import asyncio

        return await asyncio.to_thread(self._engine.stats)

    async def aclose(self) -> None:
        """Wait for what is being bought, write what was counted, and give everything back."""
        import asyncio

        if self._end.detach():
            await asyncio.to_thread(self._engine.close)
            self._warn()

    async def __aenter__(self) -> Self:
        """Return the embedder; leaving the block closes it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the embedder."""
        await self.aclose()

    def embed_iter(self, inputs: Iterable[Item], *, batch_size: int | None = None) -> AsyncIterator[Vectors]:
        """Yield the vectors of ``inputs``, in order, with bounded memory; see :meth:`CachedEmbedder.embed_iter`."""
        return self._iterate(in_batches(inputs, batch_size or self._engine.settings.batch_size))

    async def _begin(self, inputs: Inputs, *, refresh: bool = False, mask: bool = False) -> tuple[Call, asyncio.Event]:
        import asyncio

        loop = asyncio.get_running_loop()
        there = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(there.set)

        if len(inputs.items) <= FEW:
            return self._engine.begin(inputs, refresh=refresh, mask=mask, wake=wake), there
        return await asyncio.to_thread(self._engine.begin, inputs, refresh=refresh, mask=mask, wake=wake), there

    async def _end_of(self, call: Call, there: asyncio.Event) -> EmbedResult:
        if call.pending:
            try:
                await there.wait()
            except BaseException:  # the task was cancelled
                call.gone = True
                raise
        self._engine.keeper.tell(stacklevel=4)
        return self._engine.finish(call)

    async def _result(self, given: EmbedInput, *, refresh: bool, errors: OnRefusal) -> EmbedResult:
        return await self._end_of(*await self._begin(read_inputs(given), refresh=refresh, mask=masks(errors)))

    def _peek(self, text: str) -> asyncio.Future[Found | None]:
        """Look up a single text together with those that other tasks ask for at this moment."""
        loop, together = self._running_loop(), self._together
        if together.loop is not loop:
            together.loop, together.asked = loop, []
        if not together.asked:
            loop.call_soon(self._peek_all)
        answer: asyncio.Future[Found | None] = loop.create_future()
        together.asked.append((text, answer))
        return answer

    def _peek_all(self) -> None:
        asked, self._together.asked = self._together.asked, []
        found: list[Found | None] = [None] * len(asked)
        with contextlib.suppress(Exception):  # whoever is not answered here asks by itself, and meets it there
            found = self._engine.peek([text for text, _ in asked])
        for (_, answer), result in zip(asked, found, strict=True):
            if not answer.done():  # else its task was cancelled
                answer.set_result(result)

    async def _iterate(self, batches: Iterator[Inputs]) -> AsyncIterator[Vectors]:
        ahead: deque[tuple[Call, asyncio.Event]] = deque()
        more, wrong = True, None
        try:
            while True:
                while more and self._may_read_ahead(ahead):
                    try:
                        ahead.append(await self._begin(next(batches)))
                    except StopIteration:
                        more = False
                    except InvalidInput as error:
                        more, wrong = False, error
                if not ahead:
                    break
                yield (await self._end_of(*ahead.popleft())).vectors
        finally:
            _let_go(ahead)
        if wrong is not None:
            raise wrong


def _let_go(begun: Iterable[tuple[Call, object]]) -> None:
    """Tell calls that nobody waits for them any more."""
    for call, _ in begun:
        call.gone = True


def _is_there(begun: tuple[Call, queue.SimpleQueue[None] | asyncio.Event]) -> bool:
    """Return whether a call that was begun has nothing to wait for any more."""
    call, there = begun
    if not call.pending:
        return True
    return not there.empty() if isinstance(there, queue.SimpleQueue) else there.is_set()
