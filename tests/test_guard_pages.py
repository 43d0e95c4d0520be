"""Nothing is read or written outside: inputs, results and workspaces lie against pages that nobody may touch.

The work is done in processes of its own, so that a segmentation fault is a failure that names its case.
``NUMCONV_GUARD_CASES`` sets how many random geometries there are on each side, from which number on
``NUMCONV_GUARD_FIRST``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numconv.cpu.simd.panels import ALIGNED, aligned

HERE = Path(__file__).parent
COUNT, FIRST = int(os.environ.get("NUMCONV_GUARD_CASES", "260")), int(os.environ.get("NUMCONV_GUARD_FIRST", "0"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mmap and mprotect as Linux has them")
sides = pytest.mark.parametrize("side", ["after", "before"])


def run(*command: object, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=HERE, capture_output=True, text=True, timeout=seconds, check=False
    )


def last_line(script: str, *arguments: object) -> str:
    done = run(HERE / script, *arguments)
    case = (done.stdout.splitlines() or ["before the first case"])[-1]
    assert done.returncode == 0, f"{script} ended with {done.returncode} in: {case}\n{done.stderr[-3000:]}"
    return case


TOUCH = """
import sys, guarded
guarded.install(before=sys.argv[1] == "before")
import ctypes, numba, numpy as np

@numba.njit
def workspace():
    return np.empty(24, np.float32)

array = np.ones(6, np.float32) if sys.argv[2] == "numpy" else workspace()
for at in map(int, sys.argv[3:]):
    print(ctypes.c_float.from_address(array.ctypes.data + at).value, flush=True)
"""


@pytest.mark.parametrize(
    ("side", "whose", "inside", "outside"),
    [("after", "numpy", 20, 24), ("before", "numpy", 0, -4), ("after", "numba", 92, 96), ("before", "numba", 0, -68)],
)
def test_a_guard_ends_the_process(side, whose, inside, outside):
    touched = run("-c", TOUCH, side, whose, inside, outside)
    assert touched.returncode < 0, touched.stdout
    assert len(touched.stdout.splitlines()) == 1  # that inside


@sides
def test_no_product_and_no_matrix_touches_what_is_not_its_own(side):
    assert last_line("guard_cases.py", side, FIRST + COUNT * (side == "before"), COUNT) == f"done {COUNT}"


def test_every_call_takes_sizes_of_0():
    """``N``, ``C``, ``K``, the pixels along an axis, and all of them together, by every algorithm."""
    word, calls = last_line("empty_cases.py", "after").split()
    assert word == "done"
    assert int(calls) > 3000


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
def test_what_is_aligned_has_room_for_it(itemsize):
    memory = np.empty(256 * itemsize, np.uint8)
    for begin in range(0, 128, itemsize):
        array = memory[begin : begin + 64 * itemsize].view(f"V{itemsize}" if itemsize == 16 else f"u{itemsize}")
        assert 0 <= aligned(array) <= ALIGNED
