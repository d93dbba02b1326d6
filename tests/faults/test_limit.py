"""A cache with a limit: what goes, and that it is told."""

from __future__ import annotations

from embcache import CacheMiss

from tests.faults.watch import Watch, faults, moved

LIMIT = 8 << 20
TEXTS = 3_000


def test_s12_the_oldest_go(watch: Watch) -> None:
    """A cache beyond its limit loses its oldest entries, each counted; its files stay within a tenth of the limit."""
    watch.server.dims = 1024
    texts = watch.texts(TEXTS)
    with watch.open(size_limit=LIMIT) as one:
        for start in range(0, TEXTS, 500):
            watch.embed(one, texts[start : start + 500])
        evicted = moved(one)["evicted"]
        assert moved(one) == {"evicted": evicted}
        assert faults(one.stats()) == {"evicted": evicted}
        assert one.stats().entries == TEXTS - evicted
        assert f"evicted: {evicted:,}" in str(one.stats())
    warned = watch.warnings()
    assert len(warned) == 1
    assert "size_limit" in warned[0]
    assert sum(path.stat().st_size for path in watch.folder.iterdir()) <= 1.1 * LIMIT
    with watch.open(offline=True) as other, watch.raises(CacheMiss) as caught:
        other.embed(texts)
    missing = caught[0]
    assert isinstance(missing, CacheMiss)
    assert missing.indexes == tuple(range(evicted)), "not the oldest, or not as many as were counted"
    assert 0 < evicted < TEXTS / 2, "more went than had to: 8 MiB hold some 1,900"
    with watch.open(size_limit=LIMIT) as one:
        watch.embed(one, texts[:100])
        watch.hits(one, [*texts[:100], *texts[-1000:]])
