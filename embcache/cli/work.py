"""What ``embcache embed`` does with texts that may be more than memory holds, and what it says of it."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Self

from embcache.cli.common import INTERRUPTED, Code, Fault, Stopped, code_of, is_quiet, many, say
from embcache.errors import BudgetExceeded, EmbcacheError, InputRejected, ProviderError, StoreError
from embcache.report import begin_progress
from embcache.show import show_money

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from embcache import CachedEmbedder
    from embcache.cli.inputs import Source
    from embcache.cli.outputs import Output
    from embcache.types import CacheStats

    Texts = Sequence[tuple[Source, int, str]]

CHUNK = 8192
"""Texts embedded, and held in memory, at a time: as many as go out side by side in requests of full size."""
SHOWN_LINES = 5
SECONDS_BETWEEN_LOOKS = 0.2


class Work:
    """The texts on their way: how far they came, and what to say when they stop early."""

    def __init__(self, embedder: CachedEmbedder, total: int | None, *, mask: bool) -> None:
        """Work with ``embedder`` on ``total`` texts; None where it is not known how many there are.

        With ``mask``, texts that the provider refuses have no vector; without, they are an error.
        """
        self._embedder = embedder
        self._total = total
        self._mask = mask
        self._done = 0
        self._refused = 0
        self._refused_lines: list[str] = []

    @property
    def lost(self) -> int:
        """How many vectors could not be read from the cache or kept in it."""
        session = self._embedder.session
        return session.store_errors + session.store_busy

    def embed(self, sources: Iterable[Source], output: Output, *, only_to_cache: bool) -> None:
        """Embed the texts of ``sources``, write the vectors, in order, and close the embedder.

        Raises:
            Fault: it went wrong; says how far it came.
            Stopped: a signal asked to end; what was being bought is in the cache.
        """
        lines = ((source, line, text) for source in sources for line, text in source.texts(output.rows))
        chunk: Texts = []
        output.write(self._embedder.embed_result([]))  # no rows, but where their length is known, that
        with _Bar(self._embedder, self._total) as bar:
            try:
                while chunk := list(islice(lines, CHUNK)):
                    texts = [text for _, _, text in chunk]
                    result = self._embedder.embed_result(texts, errors="mask" if self._mask else "raise")
                    output.write(result)
                    self._note(chunk, result.rejected)
                    self._done += len(chunk)
                    bar.show(self._done)
                    if only_to_cache:
                        self._check_kept()
            except Stopped as stopped:
                bar.close()
                self._leave("interrupted" if stopped.code == INTERRUPTED else "terminated")
                raise
            except (EmbcacheError, Fault) as error:
                self._close()
                how_far = f"; {self._how_far()}" if self._done or self._embedder.session.entries else ""
                raise Fault(_reason(error, chunk) + how_far, code_of(error) or Code.FAILED) from error
        self._close()

    def summary(self) -> str:
        """Return what it took, as one line."""
        session = self._embedder.session
        counted = (
            many(session.hits, "hit"),
            many(session.misses, "miss", "misses"),
            many(session.duplicates, "duplicate"),
            many(session.requests, "request"),
        )
        return (
            f"{many(self._done, 'text')}: {', '.join(counted)}; {_billed(session)}, "
            f"{session.saved_tokens:,} saved ({show_money(session.saved_cost)})"
            + (f"; {many(self.lost, 'vector')} could not be read from the cache or kept in it" if self.lost else "")
        )

    def refused(self) -> str | None:
        """Return which texts have no vector, and why, as one line; None if there are none."""
        if not self._refused:
            return None
        more = self._refused - len(self._refused_lines)
        named = ", ".join(self._refused_lines) + (f" and {more:,} more" if more else "")
        return f"warning: no vector for {many(self._refused, 'text')}: {named}"

    def _note(self, chunk: Texts, rejected: Mapping[int, InputRejected | ProviderError]) -> None:
        self._refused += len(rejected)
        for index in sorted(rejected)[: SHOWN_LINES - len(self._refused_lines)]:
            source, line, _ = chunk[index]
            self._refused_lines.append(f"{source.at(line)} ({_why(rejected[index])})")

    def _check_kept(self) -> None:
        # A cache that was busy may take the next ones; one that took none so far will not.
        if self.lost and not self._embedder.session.entries:
            raise Fault("the cache takes no vectors, and they were wanted nowhere else", Code.STORE)

    def _leave(self, what: str) -> None:
        """Wait for what is being bought, unless a second signal comes, and say how far it came."""
        try:
            say(f"{what}; waiting for requests under way, which are billed in any case (again: leave them)")
            self._close()
        finally:
            say(f"{what}: {self._how_far()}", always=True)

    def _close(self) -> None:
        """Wait for what is being bought; a cache that cannot be closed has its vectors all the same."""
        try:
            self._embedder.close()
        except StoreError as error:
            say(f"warning: {error}", always=True)

    def _how_far(self) -> str:
        session = self._embedder.session
        of = "" if self._total is None else f" of {self._total:,}"
        return (
            f"{self._done:,}{of} texts done, {many(session.entries, 'new vector')} kept, {_billed(session)}; "
            "the same command again pays only for the rest"
        )


class _Bar:
    """A bar on a terminal, which moves while a chunk is being bought; nothing elsewhere."""

    def __init__(self, embedder: CachedEmbedder, total: int | None) -> None:
        self._embedder = embedder
        self._bar = begin_progress(total, wanted=False if is_quiet() else None)
        self._shown = 0
        self._done = 0
        self._bought = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="embcache-bar", daemon=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, done: int) -> None:
        """Note that a chunk is done, and ``done`` texts with it."""
        with self._lock:
            self._done, self._bought = done, self._embedder.session.entries
            self._move(done)

    def close(self) -> None:
        """End the show; twice does no harm."""
        self._ended.set()
        with self._lock:
            bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            with self._lock:
                self._move(self._done + min(CHUNK, self._embedder.session.entries - self._bought))

    def _move(self, reached: int) -> None:
        if self._bar is not None and reached > self._shown:
            self._bar.update(reached - self._shown)
            self._shown = reached


def _billed(session: CacheStats) -> str:
    unknown = f" and {many(session.unknown_requests, 'request')} of unknown cost" if session.unknown_requests else ""
    return f"{many(session.billed_tokens, 'token')} billed ({show_money(session.cost)}){unknown}"


def _why(error: InputRejected | ProviderError) -> str:
    if not isinstance(error, InputRejected):
        return "what came was none"
    return " ".join(["refused", *(str(fact) for fact in (error.status, error.code) if fact is not None)])


def _reason(error: Exception, chunk: Texts) -> str:
    """Return what went wrong, with the lines of the inputs concerned instead of their numbers within a call."""
    if isinstance(error, BudgetExceeded):
        return error.reason
    if not isinstance(error, (InputRejected, ProviderError)):
        return str(error)
    reason = error.reason + (f" (request id {error.request_id})" if error.request_id else "")
    if not error.indexes:
        return reason
    lines = [chunk[index][0].at(chunk[index][1]) for index in error.indexes[:SHOWN_LINES]]
    more = len(error.indexes) - len(lines)
    return f"{', '.join(lines)}{f' and {more:,} more' if more else ''}: {reason}"
