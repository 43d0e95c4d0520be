"""What the benchmarks share: the cases of ``python -m numconv bench``, ready to be called.

asv starts a process for every benchmark and every combination of its parameters, so grids are small. ``setup`` calls
once what will be timed: it compiles, or loads what the process before has compiled, and no ``time_`` ever does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba

from numconv.bench.cases import Case, choose
from numconv.bench.peers import Numconv, Settings

THREADS = numba.config.NUMBA_NUM_THREADS

#: The work, by a name that is short enough for a plot.
CASES: dict[str, Case] = {
    "layer 3x3": choose(["resnet50"], "3x3 64ch 56x56")[0],
    "layer 1x1": choose(["resnet50"], "1x1 64->256ch 56x56")[0],
    "layer 3x3 /2": choose(["resnet50"], "3x3 128ch 56x56 /2")[0],
    "layer depthwise": choose(["resnet50"], "3x3 depthwise 512ch 14x14")[0],
    "picture 3x3": choose(["image"], "3x3 1024x1024")[0],
    "picture 15x15": choose(["image"], "15x15 1024x1024")[0],
    "picture 31x31": choose(["image"], "31x31 1024x1024")[0],
    "signal 32": choose(["1d"], "1000000 samples, 32")[0],
    "volume 3x3x3": choose(["3d"], "3x3x3 16ch")[0],
    "windows 3x3": choose(["matrices"], "im2col 3x3 64ch 56x56")[0],
    "matrix 9x9": choose(["matrices"], "kernel2row 9x9")[0],
    "matrix 3x3 8->16ch": choose(["matrices"], "kernel2row 3x3 8->16ch")[0],
}


def case(name: str, kind: str = "") -> Case:
    """A case by its short name, perhaps as another kind of work on the same shapes."""
    return replace(CASES[name], **({"kind": kind} if kind else {}))


def prepared(work: Case, algorithm: str = "auto", dtype: str = "float32", threads: int = 0) -> Callable[[], Any]:
    """numconv's call for this work, called once; ``NotImplementedError``, which asv skips, if it cannot be done."""
    if threads > THREADS:
        raise NotImplementedError(f"there are {THREADS} threads here")
    numba.set_num_threads(threads or THREADS)
    try:
        ((call,),) = (ways.values() for ways in Numconv(Settings(dtype, algorithm=algorithm)).prepare(
            work, work.data(dtype)).values())  # fmt: skip
    except ValueError as error:
        raise NotImplementedError(str(error)) from None
    call()
    return call


class Timed:
    """How asv times: in two rounds, with as many calls in a sample as take a hundredth of a second."""

    timeout = 600.0
    rounds = 2
    warmup_time = 0.05
    sample_time = 0.01
    repeat = (3, 20, 0.5)
    call: Callable[[], Any]

    def teardown(self, *_: object) -> None:
        numba.set_num_threads(THREADS)  # for whoever runs several in one process
