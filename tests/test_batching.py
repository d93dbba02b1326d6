"""Batching: a server's cap and its bad inputs are told apart by halving, whatever the order in which answers come.

The servers here take a request if it holds no more inputs than their cap and no bad one. Nothing is sent: what a cutter
cuts is carried by a simulation, which answers what is under way in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.batching import Cap, Cutter, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Choose = Callable[[Random, Sequence[Part]], int]

ANY = 10**9
"""A cap that nobody meets."""

# Which of the requests under way is answered next.
ORDERS: dict[str, Choose] = {
    "any": lambda random, flying: random.randrange(len(flying)),
    "first sent first": lambda _, __: 0,
    "last sent first": lambda _, flying: len(flying) - 1,
    "smallest first": lambda _, flying: min(range(len(flying)), key=lambda place: flying[place].size),
    "largest first": lambda _, flying: max(range(len(flying)), key=lambda place: flying[place].size),
}


@dataclass
class Job:
    """The inputs of one call: which of them no server takes, and what became of each."""

    count: int
    bad: frozenset[int] = frozenset()
    bought: list[int] = field(default_factory=list[int])
    refused: list[int] = field(default_factory=list[int])
    hopeless: bool = False

    @property
    def is_done_right(self) -> bool:
        """Every good input bought once, and every bad one refused by itself once."""
        good = [number for number in range(self.count) if number not in self.bad]
        return sorted(self.bought) == good and sorted(self.refused) == sorted(self.bad)


@dataclass
class World:
    """A server, what an embedder knows of it, and how many requests it may have under way."""

    cap: int
    known: Cap = field(default_factory=Cap)
    batch_size: int = 2048
    workers: int = 4
    order: str = "any"
    seed: int = 0
    slow: int | None = None  # the number of a request that is answered only when no other is under way
    static: bool = True  # whether what is known was told by this very server
    sent: list[int] = field(default_factory=list[int])  # sizes of all requests
    refusals: int = 0

    def buy(self, *jobs: Job) -> None:
        """Carry out jobs side by side until nothing is left of them; raise if that takes for ever."""
        random, choose = Random(self.seed), ORDERS[self.order]
        cutters = [Cutter(job.count, self.batch_size, self.known) for job in jobs]
        flying: list[tuple[Job, Cutter, Part]] = []
        slow: list[tuple[Job, Cutter, Part]] = []
        while True:
            for job, cutter in zip(jobs, cutters, strict=True):
                while len(flying + slow) < self.workers and not job.hopeless and (part := cutter.next()):
                    assert 1 <= part.size <= self.batch_size
                    (slow if len(self.sent) == self.slow else flying).append((job, cutter, part))
                    self.sent.append(part.size)
                    # Inputs go out once each, or as often as they are cut in two: far more often means for ever.
                    assert len(self.sent) < 20_000 + 40 * sum(job.count for job in jobs)
            if not flying:
                if not slow:
                    break
                flying.append(slow.pop())
            self._answer(*flying.pop(choose(random, [part for _, _, part in flying])))
        assert all(cutter.finished for job, cutter in zip(jobs, cutters, strict=True) if not job.hopeless)

    def _answer(self, job: Job, cutter: Cutter, part: Part) -> None:
        numbers = range(part.start, part.stop)
        known = self.known.good, self.known.bad
        if part.size <= self.cap and job.bad.isdisjoint(numbers):
            job.bought += numbers
            news = cutter.taken(part)
        else:
            self.refusals += 1
            news = cutter.refused(part)
            job.refused += numbers if part.size == 1 else ()
            if cutter.hopeless:
                job.hopeless = True
                for _ in cutter.drop_waiting():
                    pass
        assert news == (known != (self.known.good, self.known.bad))
        if self.static:
            assert self.known.good <= self.cap
            assert self.known.bad is None or self.known.bad > self.cap


def halvings(count: int) -> int:
    """How often so many can be halved until one is left."""
    return math.ceil(math.log2(max(2, count)))


def most_refusals(world: World, *jobs: Job) -> int:
    """What it may take: what was under way when the first refusal came, the way down and the way up again between two
    sizes, and for each bad input the way down to it."""
    sizes = [min(job.count, world.batch_size) for job in jobs]
    caps = sum(world.workers + 2 * halvings(size) + 1 for size in sizes)
    return caps + sum(len(job.bad) * (halvings(size) + 2) for job, size in zip(jobs, sizes, strict=True))


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    count = draw(st.integers(1, 40) | st.integers(1, 3000))
    bad = draw(st.sets(st.integers(0, count - 1), max_size=4))
    return Job(count, frozenset(bad))


WORLDS = st.builds(
    World,
    cap=st.sampled_from([1, 2, 3, 10, 32, 100, ANY]) | st.integers(1, 60),
    batch_size=st.sampled_from([1, 2, 32, 100, 2048]) | st.integers(1, 60),
    workers=st.integers(1, 8),
    order=st.sampled_from(sorted(ORDERS)),
    seed=st.integers(0, 99),
    slow=st.none() | st.integers(0, 60),
)


# Whatever happens


@given(WORLDS, jobs())
def test_every_input_is_bought_or_found_out(world: World, job: Job) -> None:
    """Each good input is bought exactly once and each bad one refused by itself, in few refusals; no bad input, and no
    order of answers, lowers what is known of the cap below what it is."""
    world.buy(job)
    assert world.refusals <= most_refusals(world, job)
    assert job.is_done_right or job.hopeless
    if job.hopeless:
        assert len(job.refused) >= 2


@given(WORLDS, st.lists(jobs(), min_size=2, max_size=4))
def test_calls_side_by_side(world: World, several: list[Job]) -> None:
    """The same holds for several calls at a time, which learn of one cap."""
    world.buy(*several)
    assert world.refusals <= most_refusals(world, *several)
    assert all(job.is_done_right or job.hopeless for job in several)


@given(WORLDS, jobs(), st.integers(0, 3000), st.none() | st.integers(1, 3000))
def test_whatever_was_remembered(world: World, job: Job, good: int, more: int | None) -> None:
    """A cap that was remembered and is another by now costs no input, and each worker one more way down at most."""
    world.known = Cap(good, None if more is None else max(2, good + more))
    world.static = False
    world.buy(job)
    assert job.is_done_right or job.hopeless
    assert world.refusals <= most_refusals(world, job) + world.workers * 2 * halvings(job.count)


@given(WORLDS, jobs())
def test_a_second_call_has_learnt(world: World, job: Job) -> None:
    """Once the cap is known, a call without bad inputs meets no refusal and is sent in requests of just that size."""
    world.known = Cap(world.cap, world.cap + 1)
    job.bad = frozenset()
    world.buy(job)
    assert world.refusals == 0
    assert len(world.sent) == math.ceil(job.count / min(world.cap, world.batch_size))


# What it costs


@pytest.mark.parametrize("count", [1, 2, 2047, 2048])
def test_one_request(count: int) -> None:
    """What fits into one request goes out in one."""
    world, job = World(ANY), Job(count)
    world.buy(job)
    assert world.sent == [count]
    assert job.is_done_right


@pytest.mark.parametrize("workers", [1, 4])
def test_several_requests(workers: int) -> None:
    """What does not fit goes out in as few as it takes, side by side from the first one on."""
    world, job = World(ANY, workers=workers), Job(5000)
    cutter = Cutter(job.count, world.batch_size, world.known)
    together = [part.size for _ in range(workers) if (part := cutter.next())]
    assert together == [2048, 2048, 904][:workers]
    world.buy(job)
    assert sorted(world.sent) == [904, 2048, 2048]
    assert job.is_done_right


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("cap", [1, 2, 10, 16, 25, 32, 64, 96, 100, 512, 1000, 1024, 2000])
def test_a_cap_is_found(cap: int, workers: int) -> None:
    """The caps of known servers are found exactly, in about twice as many refusals as a halving of 2048 takes."""
    world, job = World(cap, workers=workers), Job(2048 + 100 * cap)
    world.buy(job)
    assert job.is_done_right
    assert (world.known.good, world.known.bad) == (cap, cap + 1)
    assert world.refusals <= 2 * 11 + workers


def test_a_cap_is_not_looked_for() -> None:
    """Where a call is smaller than the cap, nothing is known but how much was taken, and nothing was refused."""
    world = World(100)
    world.buy(Job(40))
    assert (world.known.good, world.known.bad, world.refusals) == (40, None, 0)
    world.buy(Job(60))
    assert (world.known.good, world.known.bad, world.refusals) == (60, None, 0)


@pytest.mark.parametrize("bad", [0, 1, 250, 499])
@pytest.mark.parametrize("workers", [1, 4])
def test_one_bad_input(bad: int, workers: int) -> None:
    """One bad input among 500 is found in one way down, its neighbours are bought, and no cap is thought of."""
    world, job = World(ANY, workers=workers), Job(500, frozenset({bad}))
    world.buy(job)
    assert job.is_done_right
    assert world.refusals <= 1 + halvings(500)
    assert world.known.bad is None


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_inputs_below_a_cap(workers: int) -> None:
    """Bad inputs do not lower a cap that is known, and each costs one way down from it."""
    world, job = World(32, known=Cap(32, 33), workers=workers), Job(3200, frozenset({5, 1000, 1001, 3199}))
    world.buy(job)
    assert job.is_done_right
    assert (world.known.good, world.known.bad) == (32, 33)
    assert world.refusals <= 4 * (1 + halvings(32))


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize(("cap", "batch_size"), [(10, 32), (32, 100), (7, 2048)])
def test_a_slow_request_is_no_reason_to_hurry(cap: int, batch_size: int, workers: int) -> None:
    """While one request takes its time, whichever it is, the others are not refused again and again."""
    for slow in range(40):
        world, job = World(cap, batch_size=batch_size, workers=workers, order="first sent first", slow=slow), Job(400)
        world.buy(job)
        assert job.is_done_right
        assert world.refusals <= most_refusals(world, job)


def test_a_cap_that_sank() -> None:
    """A server that takes less than it did is found out in as few refusals as one that nobody knew."""
    world, job = World(10, known=Cap(2048, None), static=False, workers=1), Job(20_000)
    world.buy(job)
    assert job.is_done_right
    assert (world.known.good, world.known.bad) == (10, 11)
    assert world.refusals <= 2 * 11 + 1


def test_a_cap_that_rose() -> None:
    """A request larger than was thought to be too large, and taken, ends that thought."""
    cap = Cap(10, 11)
    assert cap.take(64)
    assert (cap.good, cap.bad) == (64, None)
    assert not cap.take(64)


# When to give up


@pytest.mark.parametrize("count", [2, 3, 500, 2048, 10_000])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_request_that_is_wrong(count: int, workers: int) -> None:
    """Where nothing is ever taken, two inputs refused by themselves are enough to see that it is not the inputs."""
    world, job = World(0, workers=workers, static=False), Job(count)
    world.buy(job)
    assert job.hopeless
    assert job.bought == []
    assert 2 <= len(job.refused) <= 1 + workers
    assert world.refusals <= halvings(min(count, 2048)) + 2 * workers + 1
    assert world.known.bad is None


def test_one_input_refused() -> None:
    """A single input that is refused says nothing of the request: it may be the input."""
    world, job = World(ANY), Job(1, frozenset({0}))
    world.buy(job)
    assert (job.is_done_right, job.hopeless) == (True, False)


def test_two_of_three_refused() -> None:
    """Where any input was taken before, the request is right and all of it is asked for."""
    world, job = World(ANY, workers=1), Job(3, frozenset({1, 2}))
    world.buy(job)
    assert (job.is_done_right, job.hopeless) == (True, False)


# The words of the two sides


def test_giving_up() -> None:
    """What was not sent yet can be had back once, and what is under way is waited for."""
    cutter = Cutter(5000, 2048, Cap())
    first, second = cutter.next(), cutter.next()
    assert first is not None
    assert second is not None
    cutter.failed(first)
    left = [(part.start, part.stop) for part in cutter.drop_waiting()]
    assert left == [(4096, 5000)]
    assert list(cutter.drop_waiting()) == []
    assert cutter.next() is None
    assert not cutter.finished
    cutter.taken(second)
    assert cutter.finished


def test_the_last_of_a_job() -> None:
    """Whoever carries a part can tell whether it is the last of its job, and whether any input was taken before."""
    cutter = Cutter(4, 2, Cap())
    first = cutter.next()
    assert first is not None
    assert not cutter.is_last(first)
    second = cutter.next()
    assert second is not None
    assert not cutter.is_last(second)
    assert not cutter.took_any
    cutter.taken(first)
    assert cutter.is_last(second)
    assert cutter.took_any


def test_nothing_to_buy() -> None:
    """A job without inputs is done before it begins."""
    cutter = Cutter(0, 2048, Cap())
    assert cutter.finished
    assert cutter.next() is None


def test_waiting_for_an_explanation() -> None:
    """While a refusal is not explained, nothing larger than was ever taken goes out beside what may explain it."""
    cutter = Cutter(8, 4, Cap())
    first, second = cutter.next(), cutter.next()
    assert first is not None
    assert second is not None
    assert cutter.next() is None
    cutter.refused(first)
    assert cutter.next() is None  # the other may be about to explain it
    cutter.refused(second)
    half = cutter.next()
    assert half is not None
    assert (half.start, half.stop) == (0, 2)
    assert cutter.next() is None
    cutter.taken(half)
    other_half = cutter.next()
    assert other_half is not None
    assert (other_half.start, other_half.stop) == (2, 4)
    beside = [part for part in (cutter.next(), cutter.next(), cutter.next()) if part]
    assert [(part.start, part.stop) for part in beside] == [(4, 6), (6, 8)]
