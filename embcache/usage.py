"""The arithmetic of money: who is billed what, what a hit saves, what it all cost.

Tokens are whole numbers throughout. Money appears only when the accounts are read, by the prices known then.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from embcache.types import CacheStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from embcache.types import Space

MAX_TOKENS = 2**40
"""Tokens of one request beyond which the server is not believed."""

# Dollars for a million tokens, by provider id and model, as Novita's price page had them in 2026.
PRICES: Mapping[tuple[str, str], float] = MappingProxyType(
    {("novita", "baai/bge-m3"): 0.01, ("novita", "qwen/qwen3-embedding-8b"): 0.07}
)
LOCAL_PROVIDER = "local"
"""The provider id of models computed in the process, which cost nothing."""
MILLION = 1_000_000
DAY_SECONDS = 86_400


def account_of(space: Space, now: float) -> bytes:
    """Return the name of the account that what happens at ``now`` (seconds since 1970) in ``space`` is booked on.

    Accounts are kept by day (UTC), provider, model, format and epoch.
    """
    epoch = dict(space.fields).get("epoch")
    named = [int(now // DAY_SECONDS), space.provider, space.model, space.format]
    return json.dumps(named if epoch is None else [*named, {"epoch": epoch}]).encode()


def label_of(model: str, epoch: str | None) -> str:
    """Return what figures call a model: its name, and its epoch if it has one."""
    return model if epoch is None else f"{model} (epoch {epoch})"


def believed(tokens: object) -> int | None:
    """Return a server's token count if it can be one: a whole number, not negative, not absurd; else None."""
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Return ``total`` divided by ``weights`` into whole numbers that sum to it exactly (largest remainders first)."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    remainders = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for index in remainders[: total - sum(shares)]:
        shares[index] += 1
    return shares


def price_of(provider: str, model: str, prices: Mapping[str, float]) -> float | None:
    """Return the price of a million tokens: the user's, else the known one; None where there is neither."""
    if model in prices:
        return prices[model]
    return 0.0 if provider == LOCAL_PROVIDER else PRICES.get((provider, model))


def _cost(tokens: int, price: float | None) -> float | None:
    if not tokens:
        return 0.0
    return None if price is None else tokens * price / MILLION


def _sum(amounts: Iterable[float | None]) -> float | None:
    total = 0.0
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total


def summarise(
    accounts: Mapping[bytes, Mapping[str, int]],
    spaces: Iterable[tuple[Space, int, int]],
    prices: Mapping[str, float],
    bytes_on_disk: int,
) -> CacheStats:
    """Return accounts as figures, in all and by model.

    Args:
        accounts: counters by account, named as :func:`account_of` does.
        spaces: each space with its entries and their bytes.
        prices: the user's prices, by model, for a million tokens.
        bytes_on_disk: what the whole store takes.
    """
    counters: dict[tuple[str, str, str], Counter[str]] = {}
    for name, counts in accounts.items():
        _, provider, model, _, *more = json.loads(name)
        label = label_of(model, more[0].get("epoch") if more and hasattr(more[0], "get") else None)
        counters.setdefault((provider, model, label), Counter()).update(counts)
    for space, entries, size in spaces:
        key = space.provider, space.model, label_of(space.model, dict(space.fields).get("epoch"))
        counters.setdefault(key, Counter()).update(entries=entries, bytes_on_disk=size)
    by_model: dict[str, CacheStats] = {}
    for (provider, model, label), counts in sorted(counters.items()):
        part = figures(counts, provider, model, prices)
        by_model[label] = add(by_model[label], part) if label in by_model else part
    total = CacheStats()
    for part in by_model.values():
        total = add(total, part)
    return replace(total, bytes_on_disk=bytes_on_disk, by_model=MappingProxyType(by_model))


COUNTERS = tuple(name for name in CacheStats.__dataclass_fields__ if name not in {"cost", "saved_cost", "by_model"})


def figures(counts: Mapping[str, int], provider: str, model: str, prices: Mapping[str, float]) -> CacheStats:
    """Return counters of one provider's model as figures; counters of a later embcache are left out."""
    price = price_of(provider, model, prices)
    known: dict[str, Any] = {name: count for name, count in counts.items() if name in COUNTERS}
    return CacheStats(
        **known,
        cost=_cost(counts.get("billed_tokens", 0), price),
        saved_cost=_cost(counts.get("saved_tokens", 0), price),
    )


def add(one: CacheStats, other: CacheStats) -> CacheStats:
    """Return the sum of two sets of figures, without their parts by model; an unknown amount makes the sum unknown."""
    sums: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in COUNTERS}
    return CacheStats(
        **sums,
        cost=_sum((one.cost, other.cost)),
        saved_cost=_sum((one.saved_cost, other.saved_cost)),
    )
