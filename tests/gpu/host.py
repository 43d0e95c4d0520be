"""How long a call keeps the host, by whose arrays it gets: on a GPU, or over the stand-in for its driver.

    python tests/gpu/host.py [--json FILE] [--only WORDS]

Microseconds a call that has been made before, medians of batches: by the clock, and by the time of the processor; and
that time in pieces, how often a fixed piece of Python would have run. Pieces compare two versions even on a machine
that does other work. Where there is no GPU, torch's tensors are real ones of the CPU that say they are on a GPU (and
multiply on the CPU: leave out im2col), and CuPy's arrays are stand-ins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
from fake_libraries import cupy_array, install
from standin import over_standin

LAYER, DEPTHWISE = ((2, 8, 16, 16), (16, 8, 3, 3)), ((2, 8, 16, 16), (8, 1, 3, 3))
LAYERS = {
    "implicit": (*LAYER, {"algorithm": "implicit"}), "direct": (*LAYER, {"algorithm": "direct"}),
    "depthwise": (*DEPTHWISE, {"algorithm": "direct", "groups": 8}), "im2col": (*LAYER, {"algorithm": "im2col"}),
}  # fmt: skip
BATCHES, CALLS = 150, 5


def calls(nc: Any, send: Callable[[np.ndarray], Any], layer: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed."""
    x_shape, w_shape, given = LAYERS[layer]
    given = {**given, "padding": 1}
    plan = nc.plan_conv(x_shape, w_shape, device="cuda", **given)
    shapes = x_shape, w_shape, plan.output_shape, w_shape[:1]
    x, w, dy, bias = (send(np.ones(shape, np.float32)) for shape in shapes)
    yield "plan.forward", partial(plan.forward, x, w)
    yield "plan.forward, bias", partial(plan.forward, x, w, bias)
    yield "plan.grad_input", partial(plan.grad_input, dy, w)
    yield "plan.grad_weight", partial(plan.grad_weight, x, dy)
    yield "conv2d", partial(nc.conv2d, x, w, bias, **given)
    yield "conv_grad_input", partial(nc.conv_grad_input, x_shape, w, dy, **given)
    yield "conv_grad_weight", partial(nc.conv_grad_weight, x, w_shape, dy, **given)


def piece() -> None:
    """A fixed piece of Python, as good as any other."""
    found: dict[Any, int] = {}
    for i in range(200):
        found[i, str(i)] = i
        del found[i, str(i)]


def spent(run: Callable[[], object], times: int, clock: Callable[[], float] = time.process_time) -> float:
    """Microseconds."""
    begin = clock()
    for _ in range(times):
        run()
    return 1e6 * (clock() - begin) / times


def timed(call: Callable[[], Any], wait: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a call."""
    found: dict[str, list[float]] = {"clock": [], "processor": [], "pieces": []}
    for _ in range(5):
        call()
    for _ in range(BATCHES):
        wait()
        beside = spent(piece, 2)
        found["processor"].append(spent(call, CALLS))
        found["pieces"].append(found["processor"][-1] / beside)
        found["clock"].append(spent(call, CALLS, time.perf_counter))
    return {name: statistics.median(values) for name, values in found.items()}


# whose arrays -------------------------------------------------------------------------------------------------------


class Interface:
    """An array that has nothing but its interface."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.__cuda_array_interface__ = owner, owner.__cuda_array_interface__


def libraries(real: bool) -> dict[str, Callable[[np.ndarray], Any]]:
    """How an array is made of a host array, for each library."""
    from numba import cuda

    from numconv.cuda import places

    known: dict[str, Callable[[np.ndarray], Any]] = {
        "numconv": places.host().send, "numba": cuda.to_device, "interface": lambda a: Interface(cuda.to_device(a)),
    }  # fmt: skip
    try:
        import torch
    except ImportError:
        torch = None
    if real:
        if torch is not None:
            known["torch"] = lambda a: torch.from_numpy(a).cuda()
        try:
            import cupy

            known["cupy"] = cupy.asarray
        except ImportError:
            pass
        return known
    install(pytest.MonkeyPatch(), [])
    known["cupy (stand-in)"] = lambda a: cupy_array(a.copy())
    if torch is not None:
        sys.modules["torch"] = torch
        known["torch (posing)"] = posing(torch)
    return known


def posing(torch: Any) -> Callable[[np.ndarray], Any]:
    """Tensors of the CPU that say they are on a GPU, from a torch that makes such ones."""
    there = torch.device("cuda:0")
    empty, stream = torch.empty, SimpleNamespace(cuda_stream=0)
    torch.set_num_threads(1)
    members = {"__module__": "torch", "__torch_function__": torch._C._disabled_torch_function_impl, "device": there}
    kind = type("Tensor", (torch.Tensor,), members)
    torch.empty = lambda shape, dtype, device: empty(shape, dtype=dtype)
    torch.cuda.current_stream = lambda device: stream
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    return lambda a: torch.from_numpy(a.copy()).as_subclass(kind)


def main() -> None:
    """A table, and JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--only", default="", help="parts of the names of libraries, layers, calls")
    given = parser.parse_args()
    import numconv as nc

    over = "NUMCONV_STANDIN" in os.environ
    if nc.devices()[1].reason:
        if over:
            sys.exit(nc.devices()[1].reason)
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(os.spawnve(os.P_WAIT, sys.executable, [sys.executable, *sys.argv], over_standin(Path(folder))))
    from numba import cuda

    wait = (lambda: None) if over else cuda.synchronize
    words, rows = given.only.split(",") if given.only else [], []
    print(f"{'arrays':18}{'layer':11}{'call':20}{'clock':>9}{'processor':>11}{'pieces':>9}")
    for library, send in libraries(not over).items():
        for layer in LAYERS:
            for call, run in calls(nc, send, layer):
                name = f"{library} {layer} {call}"
                if all(word in name for word in words):
                    row = {"arrays": library, "layer": layer, "call": call, **timed(run, wait)}
                    rows.append(row)
                    figures = f"{row['clock']:9.1f}{row['processor']:11.1f}{row['pieces']:9.3f}"
                    print(f"{library:18}{layer:11}{call:20}{figures}", flush=True)
    if given.json:
        where = "the stand-in" if over else nc.devices()[1].description
        given.json.write_text(json.dumps({"over": where, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
