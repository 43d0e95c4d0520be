"""The table of public calls: it has all of them, the CPU computes them, and ``docs/gpu.md`` says what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from public_calls import CALLS, TORCH, Library, by_plain_python, interop, on_the_cpu, public, refused, same, short

import numconv

ROOT = Path(__file__).parents[1]


def test_it_has_everything_public():
    assert {call.function for call in CALLS} == public()
    assert len({str(call) for call in CALLS}) == len(CALLS)


def test_it_has_every_function_that_torch_differentiates():
    assert set(TORCH) == set(interop("torch"))


def test_the_page_is_made_of_it():
    made = subprocess.run([sys.executable, ROOT / "tests/gpu/table.py"], capture_output=True, text=True, check=True)
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert made.stdout == page, "python tests/gpu/table.py > docs/gpu.md"


#: Most features have tests of their own on the CPU: here is a row of each function, of all where NUMCONV_GPU_TABLE is
#: "all". Other dtypes take the compiler seconds each.
ROWS = CALLS if os.environ.get("NUMCONV_GPU_TABLE") == "all" else short(CALLS)
FLOAT32 = [call for call in ROWS if "dtype" not in call.feature and not call.function.startswith("ConvPlan.check")]


@pytest.mark.parametrize("call", FLOAT32, ids=str)
def test_the_cpu_computes_it(call):
    """Compiled as in plain Python, or refused in the words of the table."""
    with numconv.use_device("cpu"):
        if not refused(call, Library()):
            got = on_the_cpu(call)
            same(call, got, by_plain_python().get(str(call), got))
