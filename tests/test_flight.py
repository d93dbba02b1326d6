"""What one call gathers: each vector in its own place, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from embcache.errors import EmbcacheError
from embcache.flight import Call
from embcache.inputs import read_inputs


def test_vectors_of_two_lengths_are_never_mixed() -> None:
    """A vector of another length than the result was made for is an error, not written over its neighbours."""
    call = Call(read_inputs(["a", "b", "c", "d"]), refresh=False, mask=False, wake=lambda: None)
    call.place_rows([1], [np.ones(4, dtype="<f4").tobytes()])
    for wrong in (2, 8):
        with pytest.raises(EmbcacheError, match=f"of 4 and of {wrong} dimensions"):
            call.place_rows([0], [np.zeros(wrong, dtype="<f4").tobytes()])
        with pytest.raises(EmbcacheError):
            call.room(wrong)
    assert call.out is not None
    assert call.out[1].tolist() == [1.0] * 4
