"""What the tests of providers share: how one is asked, and what must never be told."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import numpy as np

from embcache.providers import OpenAICompatibleProvider
from embcache.types import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from embcache.types import Reply

    from tests.upstream import Item

KEY = "sk-canary-0123456789abcdef"
TEXT = "the text canary sings at noon"


def ask(
    *items: Item,
    timeout: float = 10.0,
    encoding_format: str = "base64",
    dimensions: int | None = None,
    **extra_body: object,
) -> Ask:
    return Ask(list(items) or [TEXT], "some-model", encoding_format, dimensions, extra_body, timeout)


def make(base_url: str, api_key: str | None = KEY) -> OpenAICompatibleProvider:
    return OpenAICompatibleProvider(base_url, api_key, provider_id="a server", model="some-model")


def rows(reply: Reply) -> npt.NDArray[np.float32]:
    assert all(row is not None for row in reply.rows)
    return np.stack([np.frombuffer(row or b"", "<f4") for row in reply.rows])


def told(error: BaseException, secrets: Sequence[str] = (KEY, TEXT)) -> str:
    """Everything that printing an error shows; none of it is secret, and it has no cause that holds the request."""
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    shown = f"{error!s} {error!r} {vars(error)} {''.join(traceback.format_exception(error))}"
    for secret in secrets:
        assert secret not in shown
    return shown
