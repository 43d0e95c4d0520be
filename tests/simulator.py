"""What tests in numba's CUDA simulator share. It has to be asked for before numba is imported."""

from __future__ import annotations

import os

import numpy as np
import pytest

simulated = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
in_simulator = pytest.mark.skipif(not simulated, reason="runs in the simulator's own process: NUMBA_ENABLE_CUDASIM=1")

#: Where its arrays are.
PLACE = None

if simulated:
    from numconv.cuda import places

    PLACE = places.host()


def empty(shape, dtype):
    """Room on the simulated device."""
    return PLACE.empty(shape, np.dtype(dtype))


def numbers(array):
    """What the simulator computed."""
    return PLACE.to_host(array)
