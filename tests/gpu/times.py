"""Times of layers beside torch: kernels alone (its profiler), with their launches (events), and the host's share.

    python tests/gpu/times.py RESULTS.json SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from layers import LAYERS
from smoke import host_time
from torch.profiler import ProfilerActivity, profile

import numconv as nc
from numconv import select

#: What is expected to take so many times as long as the fastest is not timed.
HOPELESS = 8

def kernels(call: Callable[[], object], times: int = 5) -> dict[str, float]:
    """Microseconds of each kernel of a call, by name."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            call()
        torch.cuda.synchronize()
    found = ((e.key, getattr(e, "self_device_time_total", 0) / times) for e in seen.key_averages())
    return {name[:60]: spent for name, spent in found if spent}


def events(call: Callable[[], object], times: int = 20) -> float:
    """Microseconds of a call among others, as the GPU sees them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        call()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / times * 1e3


def rows_of(name: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], geometry: dict[str, Any]) -> list[Any]:
    """A layer's rows of the table."""
    X, W = torch.randn(x_shape, device="cuda"), torch.randn(w_shape, device="cuda")
    want = F.conv2d(X[:1].double(), W.double(), **geometry)
    flops = 2 * want.numel() * x_shape[0] * int(np.prod(w_shape[1:]))
    dY = torch.randn((x_shape[0], *want.shape[1:]), device="cuda")
    rows: list[Any] = []

    def row(what: str, call: Callable[[], Any], want: Any = None, **told: Any) -> None:
        y = call()
        off = float("nan") if want is None else float((y[:1].double() - want).abs().max() / want.abs().max())
        spent = kernels(call)
        total, queued, host = sum(spent.values()), events(call), host_time(call, torch.cuda.synchronize)
        rows.append({
            "layer": name, "what": what, "kernels": spent, "kernels_us": total, "events_us": queued, "host_us": host,
            "tflops": flops / total / 1e6, "error": off, **told,
        })  # fmt: skip
        speed = f"{flops / total / 1e6:9.2f}{off:9.1e}"
        print(f"{name:38}{what:22}{total:11.1f}{queued:11.1f}{host:9.1f}{speed}", flush=True)

    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        row(f"torch tf32={allowed}", lambda: F.conv2d(X, W, **geometry), want)
        row(f"torch dX{' tf32' * allowed}", lambda: torch.nn.grad.conv2d_input(x_shape, W, dY, **geometry))
        row(f"torch dW{' tf32' * allowed}", lambda: torch.nn.grad.conv2d_weight(X, w_shape, dY, **geometry))
    auto = nc.plan_conv(x_shape, w_shape, device="cuda", **geometry)
    for product, given in (("forward", (X, W)), ("grad_input", (dY, W)), ("grad_weight", (X, dY))):
        chosen = getattr(auto.choice, product)
        for algorithm in worth(product, auto):
            plan = nc.plan_conv(x_shape, w_shape, device="cuda", algorithm=algorithm, **geometry)
            row(
                f"{product} {algorithm}{'*' * (algorithm == chosen)}", partial(getattr(plan, product), *given),
                want if product == "forward" else None, product=product, algorithm=algorithm,
            )  # fmt: skip
        for precision in ("tf32", "tf32x3") if geometry.get("groups", 1) == 1 else ():
            plan = nc.plan_conv(
                x_shape, w_shape, device="cuda", algorithm="implicit", precision=precision, **geometry
            )
            call = partial(getattr(plan, product), *given)
            row(f"{product} {precision}", call, want if product == "forward" else None)
    torch.cuda.empty_cache()
    return rows


def worth(product: str, plan: nc.ConvPlan) -> list[str]:
    """The algorithms to time: those of a product that are not hopeless, by the cost model that this is for."""
    told = [e for e in select.estimates(product, plan.geometry, plan.dtype, "cuda") if not e.why_not]
    return [e.algorithm for e in told if e.seconds < HOPELESS * min(other.seconds for other in told)]


def main(path: str, seconds: float) -> None:
    """A table, and the JSON after each layer."""
    torch.backends.cudnn.benchmark = True
    until, rows = time.time() + seconds, []
    print(f"{'layer':38}{'what':22}{'kernels us':>11}{'events us':>11}{'host us':>9}{'TFLOP/s':>9}{'error':>9}")
    for layer in LAYERS:
        if time.time() > until:
            print("no time is left for", layer[0])
            continue
        rows += rows_of(*layer)
        with open(path, "w") as file:
            found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
