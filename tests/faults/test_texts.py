"""Texts of every kind, and any number of them: the same vectors as without a cache, and each text bought once."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import CachedEmbedder, InvalidInput

from tests.faults import running
from tests.faults.running import opened
from tests.twins import right, same

if TYPE_CHECKING:
    from pathlib import Path

    from tests.upstream import Upstream

server = running.server

ODD = ["\0", "a\0b", "\u00e9", "e\u0301", "\ufb01", "fi", " a", "a", "a ", "A", "\ufeffa", "\U0001f642", "a" * 5000]
SURROGATES = ["\ud800", "a\udfff"]
texts = st.lists(
    st.one_of(st.sampled_from([*ODD, *SURROGATES]), st.text(st.characters(), min_size=1, max_size=20)), max_size=12
)


def is_text(text: str) -> bool:
    return not any(unicodedata.category(character) == "Cs" for character in text)


def test_s27_any_texts(server: Upstream, tmp_path: Path) -> None:
    """Whatever the texts, one input is sent for each distinct new one, in order; a lone surrogate is named by index."""
    bought: dict[str, None] = {}

    @settings(max_examples=150)
    @given(texts)
    def ask(asked: list[str]) -> None:
        server.forget()
        wrong = [index for index, text in enumerate(asked) if not is_text(text)]
        if wrong:
            with pytest.raises(InvalidInput) as caught:
                embedder.embed(asked)
            assert list(caught.value.indexes) == wrong
            assert server.requests == []
            return
        vectors = embedder.embed(asked)
        assert same(vectors, right(asked))
        new = [text for text in dict.fromkeys(asked) if text not in bought]
        assert server.sent_inputs == new
        bought.update(dict.fromkeys(new))

    with opened(server, tmp_path) as embedder:
        embedder.embed("the length of vectors is known from here on")
        ask()
        assert len(bought) > len(ODD)
        assert embedder.session.entries == len(bought) + 1


def test_s27_a_hundred_thousand_texts(server: Upstream, tmp_path: Path) -> None:
    """100,000 texts in one call, a tenth of them twice, come back in order, and again from the cache alone."""
    asked = [f"text {number * 7919 % 90_000}" for number in range(100_000)]
    expected = right(asked[:90_000])
    with opened(server, tmp_path) as embedder:
        first = embedder.embed_result(asked)
        assert same(first.vectors[:90_000], expected)
        assert same(first.vectors[90_000:], expected[:10_000])
        assert (first.misses, first.duplicates, first.hits) == (90_000, 10_000, 0)
        assert same(embedder.embed(asked), first.vectors)
    assert len(server.sent_inputs) == len(set(map(str, server.sent_inputs))) == 90_000


def test_s27_a_text_of_a_megabyte(server: Upstream, tmp_path: Path) -> None:
    """Texts of a megabyte that differ in their last letter are two texts, and are sent and kept as they are."""
    asked = ["\u00e9" * (1 << 19) + end for end in "ab"]
    with opened(server, tmp_path) as embedder:
        assert same(embedder.embed(asked), right(asked))
    with CachedEmbedder("m", base_url=server.base_url, cache_dir=tmp_path, offline=True) as embedder:
        assert same(embedder.embed(asked[::-1]), right(asked[::-1]))
    assert server.sent_inputs == asked
