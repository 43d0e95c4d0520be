"""Every CUDA kernel compiled without a GPU, as ``compile_cuda.py`` does it, for three generations of them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from compile_cuda import CAPABILITIES, TABLE, row_of


def has_compiler():
    """Whether numba-cuda and NVIDIA's compiler, assembler and disassembler are installed."""
    if find_spec("numba_cuda") is None or find_spec("nvidia") is None:
        return False
    roots = [Path(root) for root in find_spec("nvidia").submodule_search_locations]
    return all(any(path for root in roots for path in root.rglob(f"bin/{it}")) for it in ("ptxas", "nvdisasm"))


pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="numba-cuda or NVIDIA's compiler is not installed: pip install '.[cuda-test]'"
)


class Lines(list):
    """What was found, and the ``capability`` that it was found for."""


#: In CI, which has half an hour, the oldest and the newest in float32; each in every dtype where this is set.
ALL = os.environ.get("NUMCONV_COMPILE") == "all"


@pytest.fixture(scope="module", params=CAPABILITIES if ALL else CAPABILITIES[::2])
def kernels(request):
    """What ``ptxas`` says of each kernel, for a compute capability."""
    command = [sys.executable, Path(__file__).with_name("compile_cuda.py"), request.param]
    command += [] if ALL else ["--of", "float32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = Lines(json.loads(line) for line in done.stdout.splitlines())
    found.capability = request.param
    return found


def test_registers_and_spills(kernels):
    """Nothing of a thread lies in memory that should lie in registers, and an SM holds two blocks at least."""
    assert len(kernels) > 40
    for line in kernels:
        assert (line["stack"], line["spills"]) == (0, 0), line
        assert line["registers"] <= 128, line


def test_tensor_cores(kernels):
    """By ``mma.sync`` and ``cp.async``, where a GPU has them; fragments come from shared memory two numbers at once."""
    tiles = [line for line in kernels if line["kernel"].startswith(("mma.FORWARD", "mma.GRAD_WEIGHT"))]
    assert {line["kernel"] for line in kernels if line["mma"] or line["async"]} == {line["kernel"] for line in tiles}
    if kernels.capability == "7.5":
        assert not tiles  # TF32 is there from 8.0 on
        return
    assert len(tiles) >= 7
    for line in tiles:
        assert line["mma"] in (8, 16, 24, 32, 48), line
        assert "[3]" in line["kernel"] or not line["narrow_loads"], line  # of three products ptxas puts them together
        assert bool(line["async"]) == (line["kernel"].startswith("mma.FORWARD")), line


def test_tiles_load_four_numbers_at_once(kernels):
    names = [f"implicit.{tile}_PRODUCT.kernel" for tile in ("LARGE", "SMALL", "WIDE")]
    names += [f"implicit_weights.{tile}.grad_weight" for tile in ("LARGE", "SMALL", "WIDE")]
    tiles = [line for line in kernels if line["kernel"] in names]
    for line in tiles:
        if "array(float32" in line["types"]:
            assert line["wide_loads"] % 4 == 0 < line["wide_loads"] and not line["narrow_loads"], line
    assert len(tiles) >= 5


def test_multiply_adds_keep_their_share(kernels):
    """Of the instructions among which they stand, against the table; nor may the loop around these grow."""
    with TABLE.open(newline="") as file:
        known = {row["kernel"]: row for row in csv.DictReader(file) if row["capability"] == kernels.capability}
    found = {row["kernel"]: row for row in map(row_of, kernels) if row}
    assert set(found) == set(known), "python tests/compile_cuda.py table"
    for kernel, row in found.items():
        assert row["share"] >= float(known[kernel]["share"]) - 0.02, (row, known[kernel])
        assert row["loop"] <= 1.05 * int(known[kernel]["loop"]) + 10, (row, known[kernel])
