"""One measurement in a process of its own: reads what to do, does it, prints its own timing as JSON.

A module of measurements (ours, peers, limits) ends with ``worker.main(JOBS)``; :mod:`scripts.benchmarks.run` starts it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Facts = dict[str, Any]

clock = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "cpu" else time.perf_counter
"""Seconds that pass, or with ``--cpu`` those that this process works."""


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return how many seconds ``action`` takes, and what it returns.

    Garbage is collected before; during it the collector runs as it does for a user.
    """
    gc.collect()
    start = clock()
    result = action()
    return clock() - start, result


def typical(action: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the median of the seconds that ``action`` takes for one text."""
    gc.collect()
    seconds: list[float] = []
    for text in texts:
        start = clock()
        action(text)
        seconds.append(clock() - start)
    return sorted(seconds)[len(seconds) // 2]


def peak_bytes(action: Callable[[], T]) -> tuple[int, T]:
    """Return by how much ``action`` raises the memory of this process at its worst, and what it returns.

    Linux tells the peak since it was last reset. Elsewhere it is the peak of the whole life, which may hide a part.
    """
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as reset:  # noqa: PTH123 - a file of the kernel's
            reset.write("5")
        before = _status("VmRSS")
        result = action()
        return _status("VmHWM") - before, result
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        result = action()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before, result


def _status(name: str) -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 - as above
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))


def wait_for_go() -> None:
    """Say that all is ready, and wait for the word, so that two processes begin together."""
    print("ready", flush=True)
    sys.stdin.readline()


def main(jobs: Mapping[str, Callable[..., Facts]]) -> None:
    """Do the job named by the first argument with the arguments in the second, which is JSON."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    facts = jobs[name](**arguments)
    print(json.dumps(facts), flush=True)
