"""The arithmetic of money: who is billed what, what a hit saves, what it all cost.

Tokens are whole numbers throughout. Money appears only when the accounts are read, by the prices known then.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

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
FIRST_DAY = date(1970, 1, 1).toordinal()


class Account(NamedTuple):
    """What an account's name says: whose it is, and of which day (UTC, counted from 1970)."""

    day: int
    provider: str
    model: str
    epoch: str | None
    project: str | None


class Wanted(NamedTuple):
    """Whose figures are wanted; None leaves it open."""

    provider: str | None = None
    model: str | None = None
    project: str | None = None


EVERYTHING = Wanted()
Groups = dict[tuple[str, str, str], Counter[str]]
"""Counters by label, provider and model."""


def account_of(space: Space, now: float, project: str | None = None) -> bytes:
    """Return the name of the account that what happens at ``now`` (seconds since 1970) in ``space`` is booked on.

    Accounts are kept by day (UTC), provider, model, format, epoch and project.
    """
    named: list[object] = [int(now // DAY_SECONDS), space.provider, space.model, space.format]
    more = {"epoch": dict(space.fields).get("epoch"), "project": project}
    more = {name: value for name, value in more.items() if value is not None}
    return json.dumps([*named, more] if more else named).encode()


def read_account(name: bytes) -> Account:
    """Return what the name of an account says; what a later embcache adds to names is left out."""
    day, provider, model, _, *rest = json.loads(name)
    more: dict[str, str] = rest[0] if rest and hasattr(rest[0], "get") else {}
    return Account(day, provider, model, more.get("epoch"), more.get("project"))


def day_name(day: int) -> str:
    """Return a day, counted from 1970, as an ISO date; one beyond the calendar's ends is the last or the first."""
    return date.fromordinal(min(max(day + FIRST_DAY, 1), date.max.toordinal())).isoformat()


def counts_of(accounts: Mapping[bytes, Mapping[str, int]], provider: str, model: str) -> Mapping[str, int]:
    """Return the counters of one provider's model: of all its accounts, summed."""
    total: Counter[str] = Counter()
    for name, counts in accounts.items():
        account = read_account(name)
        if (account.provider, account.model) == (provider, model):
            total.update(counts)
    return total


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
    wanted: Wanted = EVERYTHING,
) -> CacheStats:
    """Return accounts as figures: in all, by model, by project and by day.

    Args:
        accounts: counters by account, named as :func:`account_of` does.
        spaces: each space with its entries and their bytes.
        prices: the user's prices, by model, for a million tokens.
        bytes_on_disk: what the whole store takes; told only where everything is wanted.
        wanted: what to leave out. Entries belong to no project: where one is wanted, none are counted.
    """
    by_model, by_project, by_day = Groups(), Groups(), Groups()
    for name, counts in accounts.items():
        account = read_account(name)
        if _is_wanted(wanted, account.provider, account.model, account.project):
            for groups, label in (
                (by_model, label_of(account.model, account.epoch)),
                (by_project, account.project or ""),
                (by_day, day_name(account.day)),
            ):
                groups.setdefault((label, account.provider, account.model), Counter()).update(counts)
    for space, entries, size in spaces:
        if _is_wanted(wanted, space.provider, space.model, None):
            key = label_of(space.model, dict(space.fields).get("epoch")), space.provider, space.model
            by_model.setdefault(key, Counter()).update(entries=entries, bytes_on_disk=size)
    models = _parts(by_model, prices)
    total = CacheStats()
    for part in models.values():
        total = add(total, part)
    return replace(
        total,
        bytes_on_disk=bytes_on_disk if wanted == EVERYTHING else total.bytes_on_disk,
        by_model=models,
        by_project=_parts(by_project, prices),
        by_day=_parts(by_day, prices),
    )


def _is_wanted(wanted: Wanted, *its: str | None) -> bool:
    return all(wish in (None, value) for wish, value in zip(wanted, its, strict=True))


def _parts(groups: Groups, prices: Mapping[str, float]) -> Mapping[str, CacheStats]:
    """Return the figures of each label, in order; what it holds of each provider's model at its own price."""
    parts: dict[str, CacheStats] = {}
    for (label, provider, model), counts in sorted(groups.items()):
        part = figures(counts, provider, model, prices)
        parts[label] = add(parts[label], part) if label in parts else part
    return MappingProxyType(parts)


NO_COUNTERS = frozenset({"cost", "saved_cost", "by_model", "by_project", "by_day"})
COUNTERS = tuple(name for name in CacheStats.__dataclass_fields__ if name not in NO_COUNTERS)


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
    """Return the sum of two sets of figures, without their parts; an unknown amount makes the sum unknown."""
    sums: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in COUNTERS}
    return CacheStats(
        **sums,
        cost=_sum((one.cost, other.cost)),
        saved_cost=_sum((one.saved_cost, other.saved_cost)),
    )
