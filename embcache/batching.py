"""How many inputs go into a request, found out by asking: one job's inputs are cut, refused, halved, and learned from.

A server refuses a whole request (400, 413, 422) for one of two reasons: it holds too many inputs, or it holds one that
the server does not take. They look the same. They are told apart by halving: where all parts of a refused request are
taken, its size was the reason; where a single input is refused, that input was, and the size says nothing.

So the largest size taken (``good``) and the smallest size known to be too large (``bad``) close in on the server's cap
in O(log n) refusals, and a bad input never lowers it. While a refusal is not yet explained, no more than one request
larger than ``good`` is under way, so that a cap is not found out many times over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED_SINGLES = 2
"""Single inputs refused, none taken, after which the request itself is held to be wrong."""


@dataclass(slots=True)
class Cap:
    """What is known of the largest request a server takes; shared by the jobs of an embedder, and remembered.

    Attributes:
        good: the largest number of inputs that was taken.
        bad: the smallest number known to be too many; None while none is.
    """

    good: int = 0
    bad: int | None = None

    def largest(self, batch_size: int) -> int:
        """Return how many inputs requests of up to ``batch_size`` will mostly hold."""
        return batch_size if self.bad is None or batch_size < self.bad else max(1, self.good)

    def take(self, size: int) -> bool:
        """Note that ``size`` was taken; return whether this is news."""
        news = size > self.good
        self.good = max(self.good, size)
        if self.bad is not None and self.bad <= size:  # the server takes more than it did
            self.bad = None
        return news

    def refuse(self, size: int, largest: int) -> bool:
        """Note that ``size`` is too many, and of its parts the ``largest`` was taken; return whether this is news."""
        if self.bad is not None and size >= self.bad:
            return False
        if size <= self.good:  # the server takes less than it did
            self.good = largest
        self.bad = size
        return True


@dataclass(slots=True, eq=False)
class _Refused:
    """A refused request that was cut up: what is open of it, the largest part taken, whether an input explains it."""

    size: int
    parent: _Refused | None
    ambiguous: bool
    open: int = 2
    largest: int = 0
    holds_bad_input: bool = False


@dataclass(slots=True, eq=False)
class Part:
    """Inputs ``start`` to ``stop`` of a job, which go out as one request."""

    start: int
    stop: int
    parent: _Refused | None = None

    @property
    def size(self) -> int:
        """How many inputs it holds."""
        return self.stop - self.start


class Cutter:
    """Cuts the inputs of one job into requests. Pure bookkeeping: the caller asks ``next()`` and tells the outcome."""

    def __init__(self, count: int, batch_size: int, cap: Cap) -> None:
        """Prepare to cut ``count`` inputs into requests of at most ``batch_size``, knowing ``cap``."""
        self._batch_size = batch_size
        self._cap = cap
        self._waiting: deque[Part] = deque([Part(0, count)] if count else [])
        self._flying: set[Part] = set()
        self._unexplained: list[_Refused] = []
        self._taken = 0
        self._singles_refused = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to send or under way."""
        return not self._waiting and not self._flying

    @property
    def hopeless(self) -> bool:
        """Whether so many single inputs were refused, and none taken, that it is the request that is wrong."""
        return self._singles_refused >= REFUSED_SINGLES and not self._taken

    @property
    def took_any(self) -> bool:
        """Whether the server took any input of this job."""
        return bool(self._taken)

    def is_last(self, part: Part) -> bool:
        """Return whether nothing else is left to send or under way."""
        return not self._waiting and self._flying == {part}

    def next(self) -> Part | None:
        """Return what to send next, None where there is nothing or an outcome has to be waited for."""
        if not self._waiting:
            return None
        part = self._waiting[-1]
        limit = self._limit(part.size)
        if not limit:
            return None
        self._waiting.pop()
        if part.size > limit:
            if part.parent is not None:
                part.parent.open += 1
            self._waiting.append(Part(part.start + limit, part.stop, part.parent))
            part = Part(part.start, part.start + limit, part.parent)
        self._flying.add(part)
        return part

    def _limit(self, wanted: int) -> int:
        """Return how many inputs may go out now, 0 where an outcome has to be waited for."""
        good, bad = self._cap.good, self._cap.bad
        # 1. Up to what was taken before, always.
        most = min(wanted, self._batch_size)
        if most <= good:
            return most
        # 2. As long as nothing was refused without a known reason, more goes out side by side.
        unexplained = [refused.size for refused in self._unexplained if bad is None or refused.size < bad]
        if bad is None and not unexplained:
            return most
        # 3. Otherwise it is a trial, halfway to the smallest number that is known, or seems, to be too large.
        ceiling = min(unexplained, default=bad or 0)
        if most >= ceiling:
            most = (good + ceiling) // 2
            if most <= good:
                return good
        # 4. One trial at a time; meanwhile the rest goes out in the size that is safe. While a refusal is unexplained,
        #    whatever is under way may be about to explain it.
        trial_open = bool(self._flying) if unexplained else any(part.size > good for part in self._flying)
        return good if trial_open else most

    def taken(self, part: Part) -> bool:
        """Note that the server took ``part``; return whether its cap is better known now."""
        self._flying.discard(part)
        self._taken += part.size
        news = self._cap.take(part.size)
        return self._close(part.parent, taken=part.size) or news

    def refused(self, part: Part) -> bool:
        """Note that the server refused ``part``; return whether its cap is better known now.

        A refused single input ends here; more than one are cut in two, to be asked for again by ``next()``.
        """
        self._flying.discard(part)
        if part.size == 1:
            self._singles_refused += 1
            return self._close(part.parent, taken=0)
        ambiguous = part.size > self._cap.good
        if ambiguous and part.parent is None and any(other.size <= part.size for other in self._unexplained):
            # Sent at the same time as one that is being explained: wait for that, it may explain this.
            self._waiting.appendleft(part)
            return False
        refused = _Refused(part.size, part.parent, ambiguous)
        if ambiguous:
            self._unexplained.append(refused)
        middle = part.start + (part.size + 1) // 2
        self._waiting.append(Part(middle, part.stop, refused))
        self._waiting.append(Part(part.start, middle, refused))
        return False

    def failed(self, part: Part) -> None:
        """Note that nothing can be said of ``part``: the request failed for a reason of its own."""
        self._flying.discard(part)

    def drop_waiting(self) -> Iterator[Part]:
        """Give up what was not sent yet, and return it."""
        while self._waiting:
            yield self._waiting.pop()

    def _close(self, refused: _Refused | None, *, taken: int) -> bool:
        """Tell a refused request that one of its parts is done, and up the line; return whether the cap is news.

        Args:
            refused: the request that the part was cut from.
            taken: the size of the part, 0 for a single input that was refused.
        """
        news, bad_input = False, not taken
        while refused is not None:
            refused.open -= 1
            refused.largest = max(refused.largest, taken)
            refused.holds_bad_input |= bad_input
            if not refused.open or refused.holds_bad_input:  # once an input explains it, its size need not
                self._unexplained = [other for other in self._unexplained if other is not refused]
            if refused.open:
                return news
            if not refused.holds_bad_input:
                news |= self._cap.refuse(refused.size, refused.largest)
            taken, bad_input = refused.largest, refused.holds_bad_input
            refused = refused.parent
        return news
