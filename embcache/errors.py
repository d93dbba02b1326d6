"""What can go wrong, told so that a caller can act on it.

Drawn as a tree, each class with what happened to the caller::

    EmbcacheError                 the root: catch this to catch everything of ours
    ├── ConfigError               an argument or a variable has a wrong value (also a ValueError)
    ├── InvalidInput              an input cannot be embedded; nothing was sent (also a ValueError)
    ├── InputRejected             the server refused single inputs; the others are stored
    ├── CacheMiss                 nothing may be sent, and some inputs are not stored
    ├── BudgetExceeded            the next request would pass max_cost or max_tokens, and was not sent
    ├── ProviderError             the provider did not answer as it should
    │   ├── AuthenticationError   it does not know the key, or the key may not do this
    │   ├── RateLimited           it asks to be asked less often, and waiting did not help
    │   ├── QuotaExceeded         the account is out of money or quota; waiting does not help
    │   ├── ProviderUnavailable   it could not be reached, failed, or did not answer in time
    │   └── BadReply              it answered something that cannot be trusted
    └── StoreError                the cache could not be read or written
        └── StoreBusy             somebody else held it for too long

Messages name inputs by their index and never hold a text or an API key. ``EmbcacheWarning`` is for what went wrong
without failing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN_INDEXES = 10


class EmbcacheError(Exception):
    """Root of every error that embcache raises on purpose."""


class EmbcacheWarning(UserWarning):
    """Something went wrong without failing: a cache that cannot be written, a model that changed its name."""


class ConfigError(EmbcacheError, ValueError):
    """An argument or an environment variable has a value that cannot work; the message says what to do."""


def show_indexes(indexes: Sequence[int]) -> str:
    """Return the indexes for a message: all of a few, the first ten of many."""
    shown = ", ".join(str(index) for index in indexes[:SHOWN_INDEXES])
    more = len(indexes) - SHOWN_INDEXES
    return f"input {shown}" if len(indexes) == 1 else f"inputs {shown}" + (f" and {more} more" if more > 0 else "")


class InvalidInput(EmbcacheError, ValueError):
    """An input cannot be embedded as it is; nothing was sent or stored.

    Attributes:
        indexes: positions of the inputs at fault, counted from 0 in the order given; empty where the whole argument
            is of a wrong kind.
    """

    def __init__(self, reason: str, indexes: Sequence[int] = ()) -> None:
        """Tell ``reason`` of the inputs at ``indexes``."""
        self.reason = reason
        self.indexes = tuple(indexes)
        super().__init__(f"{show_indexes(self.indexes)}: {reason}" if self.indexes else reason)


class _Answered(EmbcacheError):
    """What an answer of the provider told, shared by the two errors that come of one."""

    def __init__(  # noqa: PLR0913 - an error carries all the facts it has
        self,
        reason: str,
        *,
        indexes: Sequence[int] = (),
        kept: int | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
        timed_out: bool = False,
        unaccounted: bool = False,
        of_inputs: bool = False,
    ) -> None:
        self.reason = reason
        self.indexes = tuple(indexes)
        self.kept = kept
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.retryable = retryable
        self.timed_out = timed_out
        self.unaccounted = unaccounted
        self.of_inputs = of_inputs
        super().__init__(self._message())

    def _message(self) -> str:
        told = f"{show_indexes(self.indexes)}: {self.reason}" if self.indexes else self.reason
        if self.request_id:
            told += f" (request id {self.request_id})"
        if self.kept:
            others = "1 other input of this call is" if self.kept == 1 else f"{self.kept} other inputs of this call are"
            told = f"{told.rstrip('.')}. {others} kept; calling again pays only for the rest."
        return told

    def at(self, indexes: Sequence[int], kept: int) -> Self:
        """Return the same error as one caller sees it: with its own indexes, and how many of its inputs are kept."""
        return type(self)(
            self.reason,
            indexes=indexes,
            kept=kept,
            status=self.status,
            code=self.code,
            request_id=self.request_id,
            retry_after=self.retry_after,
            retryable=self.retryable,
            timed_out=self.timed_out,
            unaccounted=self.unaccounted,
            of_inputs=self.of_inputs,
        )


class InputRejected(_Answered):
    """The server refused single inputs as such (400, 413, 422); their neighbours were bought and stored.

    Attributes:
        indexes: positions of the refused inputs.
        kept: how many other inputs of the call are in the cache now; None before a call has ended.
        status: HTTP status of the refusal.
        code: the server's own code for it, where it gave one.
        request_id: the server's id of the request, where it gave one.
    """


class CacheMiss(EmbcacheError, LookupError):
    """With ``offline=True``: some inputs are not stored, and nothing was sent for them.

    Attributes:
        indexes: positions of the inputs that are not stored.
    """

    def __init__(self, indexes: Sequence[int]) -> None:
        """Name the inputs at ``indexes``."""
        self.indexes = tuple(indexes)
        super().__init__(f"{show_indexes(self.indexes)}: not stored, and offline=True sends nothing")

    def __reduce__(self) -> tuple[type[CacheMiss], tuple[tuple[int, ...]]]:
        """Return how to make it anew in another process."""
        return type(self), (self.indexes,)


class BudgetExceeded(EmbcacheError):
    """The next request would have passed ``max_cost`` or ``max_tokens``, and was not sent; what was bought is kept.

    Attributes:
        unit: what the amounts are, ``"dollars"`` or ``"tokens"``.
        limit: what the embedder may spend in all.
        spent: what it was billed; requests whose bill nobody told count with the most that was expected.
        wanted: the most that the next request was expected to be billed.
        indexes: positions of the inputs that were not sent; empty before a call has ended.
        kept: how many other inputs of the call are in the cache now; None before a call has ended.
    """

    def __init__(  # noqa: PLR0913 - an error carries all the facts it has
        self,
        unit: Literal["dollars", "tokens"],
        limit: float,
        spent: float,
        wanted: float,
        *,
        indexes: Sequence[int] = (),
        kept: int | None = None,
    ) -> None:
        """Tell that ``wanted`` more than ``spent`` would pass ``limit``."""
        self.unit: Literal["dollars", "tokens"] = unit
        self.limit = limit
        self.spent = spent
        self.wanted = wanted
        self.indexes = tuple(indexes)
        self.kept = kept
        show = _show_dollars if unit == "dollars" else _show_tokens
        self.reason = (
            f"the next request may take up to {show(wanted)}, which with {show(spent)} spent would pass the limit of "
            f"{show(limit)}"
        )
        told = f"{show_indexes(self.indexes)}: not sent; {self.reason}" if self.indexes else self.reason
        if kept:
            others = "1 other input of this call is" if kept == 1 else f"{kept:,} other inputs of this call are"
            told += f". {others} kept; calling again with a larger limit pays only for the rest."
        super().__init__(told)

    def __reduce__(self) -> tuple[object, ...]:
        """Return how to make it anew in another process."""
        made = partial(type(self), indexes=self.indexes, kept=self.kept)
        return made, (self.unit, self.limit, self.spent, self.wanted)

    def at(self, indexes: Sequence[int], kept: int) -> Self:
        """Return the same error as one caller sees it: with its own indexes, and how many of its inputs are kept."""
        return type(self)(self.unit, self.limit, self.spent, self.wanted, indexes=indexes, kept=kept)


def _show_dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.6f}"


def _show_tokens(amount: float) -> str:
    return f"{amount:,.0f} tokens"


class ProviderError(_Answered):
    """The provider did not give what was asked; what other requests of the call bought is stored.

    Attributes:
        status: HTTP status; None where no answer came.
        code: the server's own code, where it gave one.
        request_id: the server's id of the request, where it gave one.
        retry_after: seconds the server asked to wait, as it said it; None where it said nothing.
        retryable: whether asking again later may help.
        timed_out: whether the deadline of the request passed; it may have been billed all the same.
        unaccounted: whether the request may have been billed without the server telling how much.
        of_inputs: whether it concerns single inputs, and the others of the request are sound.
        indexes: positions of the inputs concerned, where it concerns single ones.
        kept: how many other inputs of the call are in the cache now; None before a call has ended.
    """


class AuthenticationError(ProviderError):
    """The provider does not know the API key, or the key may not use this model (401, 403)."""


class RateLimited(ProviderError):
    """The provider limits the rate of requests or tokens (429) and went on doing so through all retries."""


class QuotaExceeded(ProviderError):
    """The account has no money or quota left; asking again does not help until that changes."""


class ProviderUnavailable(ProviderError):
    """The provider could not be reached, failed (5xx), or did not answer within ``timeout``."""


class BadReply(ProviderError):
    """The provider answered 200 with something that cannot be trusted; nothing doubtful was stored."""


class StoreError(EmbcacheError):
    """The cache could not be read or written; the message names the file and the cause."""


class StoreBusy(StoreError):
    """The cache was held by somebody else for longer than a call may wait (1 second).

    Attributes:
        started: whether the write may still be done after this was raised.
    """

    def __init__(self, reason: str, *, started: bool = False) -> None:
        """Tell ``reason``."""
        self.started = started
        super().__init__(reason)
