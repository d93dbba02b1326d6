"""The thread that writes: one at a time, in order, and nobody who waits can leave a thing half done."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest

from embcache.errors import StoreBusy
from embcache.stores.writer import Writer

from tests.programs import output, python

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "writer under test"


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer(NAME)
    yield writer
    writer.stop()
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def ended(writer: Writer) -> str:
    """Wait until the writer takes actions again; return what one returns."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return writer.run(lambda: "alive", 5)
        except StoreBusy:
            assert time.monotonic() < deadline, "it never took one again"
            time.sleep(0.005)


def fail(error: BaseException) -> NoReturn:
    raise error


def test_it_has_one_thread(writer: Writer) -> None:
    """All actions run on one thread of the writer's name, whoever asks for them."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(writer.run, threading.current_thread, 5) for _ in range(50)]
        ran = {future.result() for future in asked}
    assert list(ran) == threads()


def test_one_after_the_other(writer: Writer) -> None:
    """No two actions overlap, and those of one caller are done in its order."""
    inside, overlaps, done = threading.Lock(), list[int](), list[tuple[int, int]]()

    def action(caller: int, number: int) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(caller)
            return
        time.sleep(0.001)
        done.append((caller, number))
        inside.release()

    def call(caller: int) -> None:
        for number in range(20):
            writer.run(partial(action, caller, number), 5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert overlaps == []
    assert all([n for c, n in done if c == caller] == list(range(20)) for caller in range(4))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), StoreBusy("x"), KeyboardInterrupt(), SystemExit(3)])
def test_exceptions_come_back(writer: Writer, error: BaseException) -> None:
    """What an action raises is raised where it was asked for, whatever it is, and the thread goes on."""
    with pytest.raises(type(error)) as caught:
        writer.run(lambda: fail(error), 5)
    assert caught.value is error
    assert writer.run(lambda: "alive", 5) == "alive"
    assert len(threads()) == 1


def test_an_action_that_has_begun_is_told_so(writer: Writer) -> None:
    """Where the caller's patience ends while its action runs, `started` says so; nobody waits until it has ended."""
    go, done = threading.Event(), threading.Event()
    ran: list[str] = []

    def hang() -> None:
        go.wait(30)
        done.set()

    with pytest.raises(StoreBusy) as busy:
        writer.run(hang, 0.05)
    assert busy.value.started
    began = time.monotonic()
    with pytest.raises(StoreBusy) as busy:
        writer.run(lambda: ran.append("refused"), 20)
    assert not busy.value.started
    assert time.monotonic() - began < 10, "it waited"
    go.set()
    assert done.wait(5)
    assert ended(writer) == "alive"
    assert ran == []


def test_an_action_that_has_not_begun_never_does(writer: Writer) -> None:
    """Where the caller's patience ends before its action begins, `started` is false and it never begins."""
    go, began = threading.Event(), threading.Event()
    ran: list[str] = []

    def hang() -> None:
        began.set()
        go.wait(5)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(writer.run, hang, 5)
        assert began.wait(5)
        with pytest.raises(StoreBusy) as busy:
            writer.run(lambda: ran.append("withdrawn"), 0.05)
        assert not busy.value.started
        go.set()
        first.result(5)
    writer.run(lambda: ran.append("later"), 5)
    assert ran == ["later"]


def test_stopping_and_starting_again(writer: Writer) -> None:
    """stop() ends the thread, also twice or before any action; the next action starts another."""
    writer.stop()
    first = writer.run(threading.current_thread, 5)
    writer.stop()
    writer.stop()
    assert not first.is_alive()
    second = writer.run(threading.current_thread, 5)
    assert second is not first
    assert second.is_alive()


def test_what_was_asked_is_done_before_it_stops(writer: Writer) -> None:
    """stop() lets an action end whose caller is not waiting any more."""
    ran: list[str] = []

    def take_time() -> None:
        time.sleep(0.2)
        ran.append("done")

    with pytest.raises(StoreBusy):
        writer.run(take_time, 0.05)
    writer.stop()
    assert ran == ["done"]


def test_never_two_at_once_even_after_a_stop_in_vain(writer: Writer) -> None:
    """While an action hangs that stop() did not wait for, no other thread begins to write beside it."""
    go, hanging, beside = threading.Event(), threading.Event(), list[bool]()

    def hang() -> None:
        hanging.set()
        go.wait(30)
        hanging.clear()

    with pytest.raises(StoreBusy):
        writer.run(hang, 0.05)
    writer.stop()
    for _ in range(3):
        with suppress(StoreBusy):
            writer.run(lambda: beside.append(hanging.is_set()), 0.1)
    go.set()
    assert ended(writer) == "alive"
    assert not any(beside)


def test_an_interrupted_caller_leaves_the_action_to_end() -> None:
    """Ctrl-C in a caller that waits is raised at once; its action ends by itself, whole, and the writer goes on."""
    code = """
        import signal, time
        from embcache.stores.writer import Writer

        def interrupt(*_):
            raise KeyboardInterrupt

        writer = Writer("writer")
        steps = []

        def action(number):
            for step in range(10):
                steps.append((number, step))
                time.sleep(0.05)

        signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            writer.run(lambda: action(0), 5)
            print("not interrupted")
        except KeyboardInterrupt:
            print("whole" if len(steps) == 10 else "interrupted")
        writer.run(lambda: action(1), 5)
        print(steps == [(number, step) for number in range(2) for step in range(10)])
        writer.stop()
    """
    assert output(python(code)).splitlines() == ["interrupted", "True"]


def test_a_storm_of_interrupts() -> None:
    """However often callers are interrupted, no action is done by halves, twice or in another order."""
    code = """
        import signal, time
        from embcache.stores.writer import Writer

        armed = False

        def interrupt(*_):
            if armed:  # or a late one would strike outside the try
                raise KeyboardInterrupt

        writer = Writer("writer")
        done, caught, number = [], 0, 0
        signal.signal(signal.SIGALRM, interrupt)
        end = time.monotonic() + 20
        while caught < 500 and time.monotonic() < end:
            number += 1
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + number % 17 * 0.00005)
                for part in range(100):
                    mark = (number, part)
                    writer.run(lambda mark=mark: (done.append((*mark, "begun")), done.append((*mark, "ended"))), 5)
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                caught += 1
        writer.run(lambda: None, 5)
        begun, ended = done[::2], done[1::2]
        print(caught, [d[:2] for d in begun] == [d[:2] for d in ended], {d[2] for d in begun} == {"begun"})
        print(begun == sorted(set(begun)))
        writer.stop()
    """
    assert output(python(code)).splitlines() == ["500 True True", "True"]
