"""Random walks through all that may happen to a cache, those of ``tests/test_machine.py``, for about a minute."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from scripts.stressing.counts import Counts

if TYPE_CHECKING:
    import random

    from scripts.stressing.world import World


def run(world: World, number: int, chance: random.Random) -> Counts:  # noqa: ARG001 - each walk has a world of its own
    """Take walks; one that ends in a failure, which is printed as the shortest that does, counts as wrong."""
    from hypothesis import seed
    from hypothesis.stateful import run_state_machine_as_test

    from tests.test_machine import WALKS, Machine

    try:
        run_state_machine_as_test(
            seed(chance.getrandbits(64))(Machine), settings=WALKS(max_examples=number, database=None)
        )
    except Exception:  # noqa: BLE001 - whatever it found
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return Counts(wrong=1)
    return Counts()
