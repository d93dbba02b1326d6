"""A real model in the process: no key, no network, no bill."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embcache.errors import ConfigError, InputRejected, ProviderUnavailable
from embcache.types import Reply
from embcache.usage import LOCAL_PROVIDER

if TYPE_CHECKING:
    from embcache.types import Ask

DEFAULT_MODEL = "wordllama-l2-supercat-256"
"""The model that comes with ``embcache[local]``: WordLlama's averaged token embeddings, 256 dimensions."""
LAST_PYTHON = (3, 13)
"""The last Python that wordllama has wheels for."""


class Encoder(Protocol):
    """Any object that makes vectors of texts: of sentence-transformers, model2vec, fastembed or your own."""

    def encode(self, sentences: list[str]) -> Any:  # noqa: ANN401 - whatever NumPy makes an array of
        """Return an array of shape ``(len(sentences), dims)``."""
        ...


class LocalProvider:
    """Vectors of a model in this process.

    Args:
        encoder: any object with ``encode(list of str) -> array``; called by one thread at a time. None loads the model
            of ``embcache[local]``, without a network.
        name: what keys call the model; needed with an ``encoder``. Another model or version needs another name.

    Raises:
        ConfigError: an encoder without a name.
    """

    id = LOCAL_PROVIDER
    fixed = True

    def __init__(self, encoder: Encoder | None = None, *, name: str | None = None) -> None:
        """Remember the encoder; the default model is loaded at the first request."""
        if encoder is not None and not name:
            message = "LocalProvider(encoder) needs name=…, which tells its vectors from those of other models"
            raise ConfigError(message)
        if encoder is None and name not in (None, DEFAULT_MODEL):
            message = f"LocalProvider without an encoder has one model, {DEFAULT_MODEL}; leave out name="
            raise ConfigError(message)
        self.model = name or DEFAULT_MODEL
        self._encoder = encoder
        self._lock = threading.Lock()

    def embed(self, ask: Ask) -> Reply:
        """See :class:`~embcache.providers.base.Provider`."""
        if not all(isinstance(item, str) for item in ask.items):
            message = f"{self.model} takes texts, not token ids"
            raise InputRejected(message)
        texts = [item for item in ask.items if isinstance(item, str)]
        with self._lock:
            encoder = self._load()
            try:
                vectors = np.asarray(encoder.encode(texts), dtype="<f4")
            except Exception as error:  # noqa: BLE001 - it may be anybody's; its message may quote a text
                message = f"the local model {self.model} failed with {type(error).__name__}"
                raise ProviderUnavailable(message) from None
        if vectors.ndim != 2 or len(vectors) != len(texts):  # noqa: PLR2004 - rows and columns
            message = f"the encoder of {self.model} gave an array of shape {vectors.shape} for {len(texts)} texts"
            raise ProviderUnavailable(message)
        # Words, roughly: a model in the process bills nothing, but what it spared is worth knowing.
        tokens = sum(len(text.split()) or 1 for text in texts)
        return Reply([row.tobytes() for row in vectors], [None] * len(vectors), self.model, tokens, tokens)

    def load(self) -> None:
        """Load the model now, rather than at the first request.

        Raises:
            ConfigError: it is not installed.
        """
        with self._lock:
            self._load()

    def _load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = _load_default()
        return self._encoder

    def close(self) -> None:
        """Keep the model: loading it again is what costs."""


class _WordLlama:
    """WordLlama's model with the method that all encoders have."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - wordllama has no types
        self._model = model

    def encode(self, sentences: list[str]) -> Any:  # noqa: ANN401 - as above
        return self._model.embed(sentences)


def _load_default() -> Encoder:
    """Return WordLlama's model, from the files in its wheel."""
    if sys.version_info[:2] > LAST_PYTHON:
        message = (
            f"the local model (wordllama) has no wheels for Python {sys.version_info[0]}.{sys.version_info[1]}; use "
            "Python 3.13 or older, or hand your own model to embcache.providers.LocalProvider(encoder, name=…)"
        )
        raise ConfigError(message)
    try:
        from pathlib import Path

        import wordllama
    except ImportError:
        message = 'the local model needs an extra: pip install "embcache[local]"'
        raise ConfigError(message) from None
    # Its plain load() looks for the tokenizer in a folder that the wheel does not have, and then on the internet.
    folder = Path(str(wordllama.__file__)).parent
    return _WordLlama(wordllama.WordLlama.load(cache_dir=folder, disable_download=True))
