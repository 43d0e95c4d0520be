"""Times of layers beside torch: kernels alone (its profiler), with their launches (events), and the host's share.

    python tests/gpu/times.py RESULTS.json SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from smoke import host_time
from torch.profiler import ProfilerActivity, profile

import numconv as nc

LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("3x3 64ch 56x56 batch 32", (32, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("3x3 256ch 56x56 batch 32", (32, 256, 56, 56), (256, 256, 3, 3), {"padding": 1}),
    ("depthwise 3x3 32ch 112x112 batch 32", (32, 32, 112, 112), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ("3x3 256ch 14x14 batch 1", (1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    ("1x1 256->64ch 56x56 batch 32", (32, 256, 56, 56), (64, 256, 1, 1), {}),
    ("7x7 /2 3->64ch 224x224 batch 32", (32, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    ("3x3 256ch 14x14 batch 32", (32, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    ("3x3 /2 128ch 56x56 batch 32", (32, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}),
    ("3x3 32 groups 128ch 56x56 batch 32", (32, 128, 56, 56), (128, 4, 3, 3), {"padding": 1, "groups": 32}),
    ("3x3 dilation 2 256ch 28x28 batch 32", (32, 256, 28, 28), (256, 256, 3, 3), {"padding": 2, "dilation": 2}),
]


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

    def row(what: str, call: Callable[[], Any], product: bool = True) -> None:
        y = call()
        off = float((y[:1].double() - want).abs().max() / want.abs().max()) if product else float("nan")
        spent = kernels(call)
        total, queued, host = sum(spent.values()), events(call), host_time(call, torch.cuda.synchronize)
        rows.append({
            "layer": name, "what": what, "kernels": spent, "kernels_us": total, "events_us": queued, "host_us": host,
            "tflops": flops / total / 1e6, "error": off,
        })  # fmt: skip
        speed = f"{flops / total / 1e6:9.2f}{off:9.1e}"
        print(f"{name:38}{what:16}{total:11.1f}{queued:11.1f}{host:9.1f}{speed}", flush=True)

    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        row(f"torch tf32={allowed}", lambda: F.conv2d(X, W, **geometry))
        row(f"torch dX{' tf32' * allowed}", lambda: torch.nn.grad.conv2d_input(x_shape, W, dY, **geometry), False)
        row(f"torch dW{' tf32' * allowed}", lambda: torch.nn.grad.conv2d_weight(X, w_shape, dY, **geometry), False)
    plan = nc.plan_conv(x_shape, w_shape, device="cuda", **geometry)
    row("numconv dX", lambda: plan.grad_input(dY, W), False)
    row("numconv dW", lambda: plan.grad_weight(X, dY), False)
    for algorithm in ("implicit", "im2col", "direct"):
        if algorithm == plan.algorithm or geometry.get("groups", 1) == 1:
            given = nc.plan_conv(x_shape, w_shape, device="cuda", algorithm=algorithm, **geometry)
            row(algorithm + "*" * (algorithm == plan.algorithm), lambda given=given: given.forward(X, W))
    for precision in ("tf32", "tf32x3"):
        if geometry.get("groups", 1) == 1:
            given = nc.plan_conv(
                x_shape, w_shape, device="cuda", algorithm="implicit", precision=precision, **geometry
            )  # fmt: skip
            row(precision, lambda given=given: given.forward(X, W))
            row(f"{precision} dX", lambda given=given: given.grad_input(dY, W), False)
            row(f"{precision} dW", lambda given=given: given.grad_weight(X, dY), False)
    torch.cuda.empty_cache()
    return rows


def main(path: str, seconds: float) -> None:
    """A table, and the JSON after each layer."""
    torch.backends.cudnn.benchmark = True
    until, rows = time.time() + seconds, []
    print(f"{'layer':38}{'what':16}{'kernels us':>11}{'events us':>11}{'host us':>9}{'TFLOP/s':>9}{'error':>9}")
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
