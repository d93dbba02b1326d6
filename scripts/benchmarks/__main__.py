"""The command behind `scripts/bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time

from scripts.benchmarks.rows import QUICK, ROWS, WAITING, Bench, Sizes
from scripts.benchmarks.run import Failed, Machine
from scripts.benchmarks.table import Line, as_table

ROUNDS, QUICK_ROUNDS = 9, 5


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.description = (
        "Measure embcache, what people use today, and what the machine allows, side by side, and print a table of "
        "ratios. What it is measured against is installed in venvs of its own. docs/performance.md says how to read it."
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds; under three minutes")
    parser.add_argument("--rows", metavar="NAME[,NAME]", help=f"only these rows, of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--size", type=int, metavar="N", help="no store and no call larger than this; to try it out")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="compare processor time, for a machine that does other work too; leaves out rows about waiting",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--needs", action="store_true", help=argparse.SUPPRESS)  # for scripts/bench
    given = parser.parse_args()
    given.rows = given.rows.split(",") if given.rows else list(ROWS)
    if wrong := [name for name in given.rows if name not in ROWS]:
        parser.error(f"there is no row {', '.join(wrong)}; there are {', '.join(ROWS)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds: at least 1")
    least = 100
    if given.size is not None and given.size < least:
        parser.error(f"--size: at least {least}")
    return given


def needs(rows: list[str], *, quick: bool) -> str:
    """Return what these rows need besides embcache, in the words of scripts/bench."""
    words = {word for row in rows for word in ROWS[row][1].split()}
    return " ".join(sorted(words - {"litellm"} if quick else words))


def machine_facts(given: argparse.Namespace) -> dict[str, str]:
    """Return in general terms what this is measured on; where the load is high to begin with, nothing is exact."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{cores}-core {platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "date": time.strftime("%Y-%m-%d"),
        "sizes": "quick" if given.quick else "full",
        "time": "of the processor" if given.cpu else "on the clock",
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def measure(given: argparse.Namespace) -> list[Line]:
    """Measure the rows that are asked for."""
    sizes = QUICK if given.quick else Sizes()
    if given.size is not None:
        sizes = sizes.at_most(given.size)
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {row}: {words}", file=sys.stderr, flush=True)

    lines: list[Line] = []
    row = ""
    with Machine(cpu=given.cpu) as machine:
        rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
        bench = Bench(machine, sizes, rounds, quick=given.quick, say=say)
        for row in given.rows:
            say("begins")
            if given.cpu and row in WAITING:
                lines.append(Line(row, "waiting", note="processor time says nothing of it"))
                continue
            try:
                lines += ROWS[row][0](bench)
            except Failed as failure:
                lines.append(Line(row, "failed", note=str(failure)))
    return lines


def main() -> None:
    """Measure, and print."""
    given = arguments()
    if given.needs:
        print(needs(given.rows, quick=given.quick))
        return
    facts, lines = machine_facts(given), measure(given)
    if given.json:
        print(json.dumps({**facts, "rows": [line.as_json() for line in lines]}, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
        print(as_table(lines))
    if any(line.what == "failed" for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
