"""The protocol of a provider: inputs in, reply out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from embcache.types import Ask, Reply


@runtime_checkable
class Provider(Protocol):
    """What the engine needs of a provider.

    Attributes:
        id: who computes the vectors; part of every key.
        model: the model it computes them with where the user names none.
        fixed: whether that is the only model it has.
    """

    id: str
    model: str
    fixed: bool

    def embed(self, ask: Ask) -> Reply:
        """Answer one request; called on the engine's threads, several at a time.

        Raises:
            InputRejected: the request was refused for what it holds: too many inputs, or one that is not taken.
            ProviderError: anything else that went wrong. Messages hold no text and no key.
        """
        ...

    def close(self) -> None:
        """Give back what is held; a later call opens it again."""
        ...
