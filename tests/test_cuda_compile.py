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


class Lines(list):
    """What was found, and the ``capability`` that it was found for."""


@pytest.fixture(scope="module", params=["7.5", "8.0", "9.0"])
def kernels(request):
    """What ``ptxas`` says of each kernel, for one compute capability."""
    script = Path(__file__).with_name("compile_cuda.py")
    done = subprocess.run([sys.executable, script, request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = Lines(json.loads(line) for line in done.stdout.splitlines())
    found.capability = request.param
    return found


def test_registers_and_spills(kernels):
    """Nothing of a thread lies in memory that should lie in registers, and an SM holds two blocks at least."""
    assert len(kernels) > 80
    for line in kernels:
        assert (line["stack"], line["spills"]) == (0, 0), line
        assert line["registers"] <= 128, line


def test_tensor_cores(kernels):
    """By ``mma.sync`` and ``cp.async``, where a GPU has them; fragments come from shared memory two numbers at once."""
    tiles = [line for line in kernels if line["kernel"] in ("mma.forward", "mma.grad_weight")]
    assert {line["kernel"] for line in kernels if line["mma"] or line["async"]} == {line["kernel"] for line in tiles}
    if kernels.capability == "7.5":
        assert not tiles  # TF32 is there from 8.0 on
        return
    assert len(tiles) >= 14
    for line in tiles:
        assert line["mma"] in (8, 16, 24, 32, 48) and not line["narrow_loads"], line
        assert bool(line["async"]) == (line["kernel"] == "mma.forward"), line


def test_tiles_load_four_numbers_at_once(kernels):
    tiles = [line for line in kernels if line["kernel"] in ("implicit.forward", "implicit.grad_weight")]
    for line in tiles:
        if "array(float32" in line["types"]:
            assert line["wide_loads"] in (4, 8) and not line["narrow_loads"], line
    assert len(tiles) >= 8
