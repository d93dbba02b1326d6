"""How many tokens a provider will bill for what it has not been sent yet, and whether that may be spent.

Nobody here has the model's tokenizer. What is known is what earlier requests were billed for how many bytes: each tells
it to the accounts, with its bill and in the same commit, under the names of :data:`SUMS`. Their ratio is the estimate;
how much they differed from it is the range. Where nothing is known, the range is wide, and the estimate says so.

Token ids need no estimate: each is a token.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Literal

from embcache.types import Range
from embcache.usage import MILLION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embcache.types import Basis, Kind

REQUESTS = "measured_requests"
INPUTS = "measured_inputs"
BYTES = "measured_bytes"
TOKENS = "measured_tokens"
SPREAD = "measured_spread"
SUMS = (REQUESTS, INPUTS, BYTES, TOKENS, SPREAD)
"""What requests for texts add up to: how many, their inputs, bytes and tokens, and the thousandths of tokens²/bytes."""
SPREAD_UNIT = 1000

ASSUMED_BYTES = (6, 4, 2)
"""Bytes of a token where nothing was measured: of few tokens, of as many as English prose has, of many."""
AROUND = 2
"""Tokens that tokenizers put around an input; how many it is here is not known."""
MOST_AROUND = 8
"""More tokens than bytes and so many an input are no bill to learn from."""
MARGIN = 0.25
"""How far the next texts may differ from those measured, at least, as a part of the estimate: more of the same are a
hundredth off, programs after prose a fifth (docs/plan.md)."""
MARGIN_OF_ONE = 0.5
"""The same after a single request, which tells nothing of how much requests differ."""
DEVIATIONS = 3.0
BYTES_OF_AN_ID = 4


def measure(kind: Kind, inputs: int, size: int, tokens: int) -> dict[str, int]:
    """Return what a request of ``inputs`` inputs and ``size`` bytes that was billed ``tokens`` adds to the sums."""
    if kind != "text" or not size or not 0 < tokens <= size + MOST_AROUND * inputs:
        return {}
    return {REQUESTS: 1, INPUTS: inputs, BYTES: size, TOKENS: tokens, SPREAD: SPREAD_UNIT * tokens * tokens // size}


def basis_of(kind: Kind, known: Mapping[str, int]) -> Basis:
    """Return what an estimate rests on."""
    if kind == "tokens":
        return "counted"
    return "measured" if known.get(BYTES) and known.get(TOKENS) else "assumed"


def estimate(kind: Kind, inputs: int, size: int, known: Mapping[str, int]) -> Range[int]:
    """Return the tokens that will be billed for ``inputs`` inputs of ``size`` bytes in all.

    Args:
        kind: what the inputs are.
        inputs: how many.
        size: their bytes: UTF-8 of texts, four for a token id.
        known: the sums of what was measured of the same model.
    """
    if not inputs:
        return Range(0, 0, 0)
    # 1. Ids count themselves; some servers put their own around them.
    if kind == "tokens":
        ids = size // BYTES_OF_AN_ID
        return Range(ids, ids, ids + AROUND * inputs)
    # 2. Nothing is known.
    if basis_of(kind, known) == "assumed":
        few, usual, many = (size / each for each in ASSUMED_BYTES)
        return _whole(few, usual, many + AROUND * inputs)
    # 3. The ratio of what was measured. Taken as sums of many small independent parts, the tokens of a request vary
    #    with the root of its bytes; then the ratio of the sums is the best estimate, and its own error is known, too.
    requests, told = known.get(REQUESTS, 0), known[BYTES]
    ratio = known[TOKENS] / told
    expected = ratio * size
    margin = expected * (MARGIN if requests > 1 else MARGIN_OF_ONE)
    if requests > 1:
        variance = max(0.0, known.get(SPREAD, 0) / SPREAD_UNIT - ratio * known[TOKENS]) / (requests - 1)
        margin = max(margin, DEVIATIONS * sqrt(variance * (size + size * size / told)))
    #    Inputs shorter than those measured have more tokens around them for their bytes than those, longer ones fewer.
    shift = AROUND * (inputs - size * known.get(INPUTS, 0) / told)
    return _whole(expected - margin + min(0.0, shift), expected, expected + margin + max(0.0, shift))


def _whole(low: float, expected: float, high: float) -> Range[int]:
    return Range(max(0, floor(low)), round(expected), max(1, ceil(high)))


def cost_of(tokens: Range[int], price: float | None) -> Range[float] | None:
    """Return what tokens cost at ``price`` for a million; None where it is not known, unless there are none."""
    if price is None:
        return None if any(tokens) else Range(0.0, 0.0, 0.0)
    return Range(*(count * price / MILLION for count in tokens))


def tokens_for(money: float, price: float) -> int:
    """Return how many tokens ``money`` buys at ``price`` for a million, to the last one."""
    # As decimals, the way people write them: 0.07 is not quite 0.07 to a processor.
    return floor(Fraction(str(money)) * MILLION / Fraction(str(price)))


Answer = Literal["send", "wait", "stop"]


def may_spend(wanted: int, spent: int, under_way: int, limit: int) -> Answer:
    """Return whether a request may be sent.

    Args:
        wanted: the most it is expected to be billed.
        spent: what earlier ones were billed.
        under_way: the most that those are expected to be billed whose bill has not come.
        limit: what may be spent in all.

    Returns:
        ``"wait"`` where it depends on what those under way are billed in the end: mostly less than the most.
    """
    if spent + under_way + wanted <= limit:
        return "send"
    return "wait" if under_way and spent + wanted <= limit else "stop"
