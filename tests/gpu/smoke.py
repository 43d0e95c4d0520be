"""The first minute on a GPU: what is there, and whether each way to it gives the right numbers.

    python tests/gpu/smoke.py [environment]
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "numba-cuda", "cuda-core", "cuda-bindings", "cuda-pathfinder",
            "nvidia-nvvm", "nvidia-cuda-nvrtc", "torch", "cupy-cuda12x", "cupy-cuda13x", "jax")  # fmt: skip


def environment() -> None:
    """The machine, in the words of its own tools."""
    print(platform.platform(), "python", platform.python_version())
    for package in PACKAGES:
        try:
            print(f"{package:20} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:20} not installed")
    for command in (["nvidia-smi"], ["nvcc", "--version"]):
        try:
            print(subprocess.run(command, capture_output=True, text=True).stdout)
        except FileNotFoundError:
            print(f"{command[0]}: not found")
    import numconv

    print(numconv.devices()[1])


failed: list[str] = []


def check(name: str, part: Callable[[], object]) -> None:
    """Say whether a part passed, what it found and how long it took."""
    begin = time.perf_counter()
    try:
        said = part()
        print(f"PASS {name}: {said} [{time.perf_counter() - begin:.2f} s]")
    except Exception as error:
        failed.append(name)
        print(f"FAIL {name}: {type(error).__name__}: {error}")
        traceback.print_exc(limit=-4)


def main() -> int:
    """NumPy's arrays, then those of each library that is there."""
    import numconv as nc

    cuda = nc.devices()[1]
    if not cuda.usable:
        print(f"FAIL no GPU can be used: {cuda.reason}")
        return 1
    print(cuda.description)
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s, "float32") for s in ((2, 32, 30, 31), (80, 32, 3, 3), 80))
    with nc.use_device("cpu"):
        want = nc.conv(*(a.astype(float) for a in (x, w, b)), padding=1, algorithm="direct")

    def error(y: np.ndarray) -> str:
        off = float(np.abs(y - want).max() / np.abs(want).max())
        assert off < 1e-5, off
        return f"error {off:.1e}"

    def there_and_back(algorithm: str) -> str:
        with nc.use_device("cuda"):
            begin = time.perf_counter()
            nc.conv(x, w, b, padding=1, algorithm=algorithm)
            first = time.perf_counter() - begin
            return f"{error(nc.conv(x, w, b, padding=1, algorithm=algorithm))}, first call {first:.2f} s"

    for algorithm in ("direct", "implicit", "im2col"):
        check(f"NumPy, {algorithm}", lambda algorithm=algorithm: there_and_back(algorithm))
    for library in (of_torch, of_cupy):
        try:
            send, fetch, wait = library()
        except ImportError as missing:
            print(f"MISSING {missing}")
        else:
            of_library(library.__name__, [send(a) for a in (x, w, b)], lambda y, fetch=fetch: error(fetch(y)), wait)
    print("FAILED: " + "; ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def of_library(library: str, arrays: list[Any], error: Callable[[Any], str], wait: Callable[[], object]) -> None:
    """The numbers that a library's arrays give, and how long calls keep the host."""
    import numconv as nc

    X, W, _ = arrays
    for algorithm in ("direct", "implicit", "im2col", "fft"):

        def call(algorithm: str = algorithm) -> Any:
            return nc.conv(*arrays, padding=1, algorithm=algorithm)

        check(f"{library}, {algorithm}", lambda call=call: f"{error(call())}, host {host_time(call, wait):.0f} us")
    plan = nc.plan_conv(X.shape, W.shape, padding=1, device="cuda")
    dY = plan.forward(*arrays)
    for name, product, given in (
        ("forward", plan.forward, arrays), ("grad_input", plan.grad_input, (dY, W)),
        ("grad_weight", plan.grad_weight, (X, dY)),
    ):  # fmt: skip
        timed = partial(host_time, partial(product, *given), wait)
        check(f"{library}, plan.{name}", lambda timed=timed: f"host {timed():.0f} us")


def host_time(call: Callable[[], object], wait: Callable[[], object]) -> float:
    """Microseconds that a call keeps the host, the least of ten times twenty."""
    least = float("inf")
    for _ in range(10):
        wait()
        begin = time.perf_counter()
        for _ in range(20):
            call()
        least = min(least, (time.perf_counter() - begin) / 20)
    wait()
    return 1e6 * least


def of_torch() -> tuple[Any, Any, Any]:
    """How arrays go to torch and back, and how its GPU is waited for."""
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
    return lambda a: torch.from_numpy(a).cuda(), lambda t: t.cpu().numpy(), torch.cuda.synchronize


def of_cupy() -> tuple[Any, Any, Any]:
    """The same for CuPy."""
    import cupy

    return cupy.asarray, cupy.asnumpy, cupy.cuda.Device().synchronize


if __name__ == "__main__":
    sys.exit(environment() if sys.argv[1:] == ["environment"] else main())
