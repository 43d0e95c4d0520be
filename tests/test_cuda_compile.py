"""Every CUDA kernel compiled without a GPU, as ``compile_cuda.py`` does it, for three generations of them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def has_compiler():
    """Whether numba-cuda and NVIDIA's compiler and assembler are installed."""
    if find_spec("numba_cuda") is None or find_spec("nvidia") is None:
        return False
    roots = find_spec("nvidia").submodule_search_locations
    return any(path for root in roots for path in Path(root).rglob("bin/ptxas"))


pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="numba-cuda or NVIDIA's compiler is not installed: pip install '.[cuda-test]'"
)


@pytest.fixture(scope="module", params=["7.5", "8.0", "9.0"])
def kernels(request):
    """What ``ptxas`` says of each kernel, for one compute capability."""
    script = Path(__file__).with_name("compile_cuda.py")
    done = subprocess.run([sys.executable, script, request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_registers_and_spills(kernels):
    """Nothing of a thread lies in memory that should lie in registers, and an SM holds two blocks at least."""
    assert len(kernels) > 80
    for line in kernels:
        assert (line["stack"], line["spills"]) == (0, 0), line
        assert line["registers"] <= 128, line


def test_tiles_load_four_numbers_at_once(kernels):
    tiles = [line for line in kernels if line["kernel"] in ("implicit.forward", "implicit_weights.grad_weight")]
    for line in tiles:
        if "array(float32" in line["types"]:
            assert line["wide_loads"] in (4, 8, 16, 24, 32) and not line["narrow_loads"], line
    assert len(tiles) >= 8
