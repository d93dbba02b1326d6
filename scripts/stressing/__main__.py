"""The command behind `scripts/stress`."""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from scripts.stressing.counts import Line, as_table
from scripts.stressing.guards import GUARDS
from scripts.stressing.parts import PARTS
from scripts.stressing.world import DIMS, World

from tests.upstream import Upstream

QUICK = 10


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="scripts/stress",
        description="Do to a cache what may happen to it, thousands of times, and count what was lost, wrong or stuck: "
        "exit 1 if anything was. docs/stress.md says what each part does.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", metavar="PART[,PART]", help=f"only these parts, of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, metavar="N", help="make the same choices as the run that printed it")
    parser.add_argument("--count", type=int, metavar="N", help="so many of what each part does; to try it out")
    parser.add_argument(
        "--without",
        choices=GUARDS,
        help="take one guard of embcache away in the processes of the part that it is for, which then has to fail",
    )
    given = parser.parse_args()
    if given.without is not None and given.only is not None:
        parser.error("--without names its part itself")
    given.only = [GUARDS[given.without][0]] if given.without else given.only.split(",") if given.only else list(PARTS)
    if wrong := [name for name in given.only if name not in PARTS]:
        parser.error(f"there is no part {', '.join(wrong)}; there are {', '.join(PARTS)}")
    if given.count is not None and given.count < 1:
        parser.error("--count: at least 1")
    if given.seed is None:
        given.seed = secrets.randbits(32)
    return given


def stress(given: argparse.Namespace, folder: Path) -> list[Line]:
    """Run the parts that are asked for, each with a server and a folder of its own."""
    lines: list[Line] = []
    for name in given.only:
        part = PARTS[name]
        number = given.count or (-(-part.number // QUICK) if given.quick else part.number)
        print(f"{name}: {number:,} {part.done}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        with Upstream(dims=DIMS) as server:
            world = World(server.base_url, folder / name, given.without)
            counts = part.run(world, number, random.Random(f"{given.seed} {name}"))  # noqa: S311 - no secret
        lines.append(Line(name, f"{number:,} {part.done}", counts, time.monotonic() - begun))
        print(f"{name}: {counts}", file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Stress, and print."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ["NO_PROXY"] = "127.0.0.1"
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="embcache-stress-") as folder:
        lines = stress(given, Path(folder))
    print(as_table(lines))
    if not all(line.counts.is_clean for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
