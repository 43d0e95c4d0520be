"""The CUDA tests that need numba's simulator, in a process of their own: it is chosen as numba is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from simulator import simulated

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: pip install '.[cuda-test]'")
@pytest.mark.skipif(simulated, reason="this is the simulator")
@pytest.mark.parametrize("room", ["capture", "fft", "kernels", "mma", "places", "properties", "table", "weights"])
def test_in_the_simulator(room):
    """All tests of a file, where kernels run as Python."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / f"test_cuda_{room}.py")]
    done = subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
