"""Measure random convolutions, fit the cost model of ``numconv/select.py``, and see how well ``auto`` chooses.

    python asv_bench/sweep.py --measure            # adds to asv_bench/results/sweep-fit.jsonl until it is complete
    python asv_bench/sweep.py --measure --kind first  # adds geometries of one kind
    python asv_bench/sweep.py --fit                # writes numconv/costs.py from it, and says how well it does
    python asv_bench/sweep.py --measure --check    # other geometries, into asv_bench/results/sweep-check.jsonl
    python asv_bench/sweep.py --check              # how near auto's choice is to the best one on them

Algorithms are interleaved round by round and their medians kept. The clock of a shared machine wanders, so a fixed loop
is timed in every round too, and times are given at the clock at which it was fastest. A measurement that was broken off
goes on where it stopped. BLAS may not keep its threads awake here: they would take the cores of the next algorithm.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"  # read when NumPy is loaded

import numba
import numpy as np
from scipy.optimize import nnls

import numconv as nc
from numconv import select
from numconv.geometry import ConvGeometry, conv_geometry
from numconv.plan import make_plan

RESULTS = Path(__file__).parent / "results"
COSTS = Path(nc.__file__).parent / "costs.py"
PRODUCTS = ("forward", "grad_input", "grad_weight")
CANDIDATES = ("im2col", "implicit", "direct", "winograd", "fft")
KINDS = {
    "layer": 0.2, "network": 0.2, "grouped": 0.15, "image": 0.17, "signal": 0.14, "volume": 0.14, "first": 0.0,
    "large": 0.0, "strided": 0.0,
}
DTYPES = {"float32": 0.45, "float64": 0.3, "int64": 0.12, "complex64": 0.13}

#: Multiply-adds of a geometry, bytes of its arrays, seconds spent on a product, and when an algorithm is hopeless.
LEAST, MOST, LARGEST, SECONDS, HOPELESS = 2e3, 4e8, 64e6, 0.15, 4.0

#: Nanoseconds of a multiply-add in float32 at the peak of the machine: those that the tile does cost no less.
PEAK, TILED = 0.01, ("implicit", "direct", "winograd")


# random geometries --------------------------------------------------------------------------------------------------


def random_case(rng: np.random.Generator, only: str = "") -> tuple[ConvGeometry, str]:
    """A geometry of one of the kinds that people compute, or only of one, and a dtype."""
    kind = only or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    dtype = str(rng.choice(list(DTYPES), p=list(DTYPES.values())))
    dtype = "float32" if kind == "large" else dtype  # others would take minutes
    while True:
        geometry = random_geometry(kind, rng)
        if geometry is None:
            continue
        macs = np.prod(geometry.output_shape, dtype=float) * np.prod(geometry.kernel_shape[1:], dtype=float)
        shapes = geometry.input_shape, geometry.kernel_shape, geometry.output_shape
        sizes = sum(np.prod(shape, dtype=float) for shape in shapes)
        most = MOST * {"image": 4, "signal": 4, "large": 16}.get(kind, 1) / (1 if dtype == "float32" else 2)
        least = MOST if kind == "large" else LEAST
        if least <= macs <= most and sizes * np.dtype(dtype).itemsize <= LARGEST:
            return geometry, dtype


def random_geometry(kind: str, rng: np.random.Generator) -> ConvGeometry | None:
    """A geometry of a kind, or None if what was drawn does not fit together."""

    def log(lo: float, hi: float) -> int:
        return round(float(np.exp(rng.uniform(np.log(lo), np.log(hi)))))

    C = K = N = groups = 1
    d = {"signal": 1, "volume": 3}.get(kind, 2)
    if kind == "layer":
        N, C, K, size = log(1, 8), log(1, 512), log(1, 512), [log(5, 128)] * 2
        kernel = [int(rng.choice([1, 3, 5, 7], p=[0.25, 0.5, 0.15, 0.1]))] * 2
    elif kind == "network":  # many channels, few pixels, and the sizes that people give them
        N, C, K = log(1, 4), 2 ** int(rng.integers(5, 11)), 2 ** int(rng.integers(5, 11))
        size, kernel = [int(rng.choice([7, 14, 28, 56]))] * 2, [int(rng.choice([1, 3], p=[0.3, 0.7]))] * 2
    elif kind == "first":  # of a network: few channels in, many out, a large picture; drawn where asked for
        N, C, K, size = 1, log(1, 4), log(12, 128), [log(24, 256)] * 2
        kernel = [int(rng.choice([3, 5, 7], p=[0.6, 0.15, 0.25]))] * 2
    elif kind == "strided":  # where a network halves its pictures; where asked for
        N, C, K = log(1, 2), 2 ** int(rng.integers(5, 10)), 2 ** int(rng.integers(5, 10))
        size, kernel = [int(rng.choice([14, 28, 56, 112]))] * 2, [3, 3]
    elif kind == "large":  # what a second is spent on: seldom drawn, but dear to choose wrongly; where asked for
        C, K, d = log(8, 64), log(8, 64), int(rng.integers(2, 4))
        size, kernel = [log(24, 64) if d == 3 else log(64, 256)] * d, [int(rng.integers(3, 6 if d == 3 else 16))] * d
    elif kind == "grouped":
        N, groups = log(1, 4), log(2, 256)
        many = 1 if rng.random() < 0.6 else log(1, 16)
        C, K, size, kernel = groups * many, groups * many, [log(6, 112)] * 2, [int(rng.choice([3, 3, 5, 7]))] * 2
    elif kind == "image":
        N, C, K = (1, 1, 1) if rng.random() < 0.7 else (1, log(1, 4), log(1, 4))
        size, kernel = [log(16, 1500), log(16, 1500)], [log(2, 63), log(2, 63)]
    elif kind == "signal":
        N, C, K = (1, 1, 1) if rng.random() < 0.5 else (log(1, 4), log(1, 128), log(1, 128))
        size, kernel = [log(50, 1e6)], [log(2, 2000) if C == 1 else log(1, 63)]
    else:
        C, K = (1, 1) if rng.random() < 0.4 else (log(1, 64), log(1, 64))
        size, kernel = [log(6, 100)] * 3, [log(1, 9)] * 3
    stride = 2 if kind == "strided" else int(rng.choice([1, 2, 3], p=[0.75, 0.2, 0.05]))
    dilation = int(rng.choice([1, 2, 3], p=[0.88, 0.08, 0.04]))
    padding = [int(rng.choice([0, (k - 1) // 2])) for k in kernel]
    boundary = str(rng.choice(["constant", "reflect", "wrap"], p=[0.8, 0.1, 0.1]))
    try:
        return conv_geometry(
            (N, C, *size), (K, C // groups, *kernel), stride=stride, dilation=dilation, padding=padding, groups=groups,
            boundary=boundary, flip=bool(rng.random() < 0.2) and d != 3,
        )
    except ValueError:  # the kernel is larger than the input
        return None


def cases(seed: int, count: int, only: str = "") -> list[tuple[ConvGeometry, str]]:
    """The same for the same seed."""
    rng = np.random.default_rng(seed)
    return [random_case(rng, only) for _ in range(count)]


# measuring ----------------------------------------------------------------------------------------------------------


def measure(geometry: ConvGeometry, dtype: str, product: str) -> dict[str, float]:
    """Median seconds of each algorithm that serves and is not hopeless, interleaved; ``clock`` is the fixed loop's."""
    calls = {}
    best, begin = np.inf, time.perf_counter()
    for name in ("implicit", "direct", *(c for c in CANDIDATES if c not in ("implicit", "direct"))):
        call = call_of(geometry, dtype, product, name)
        if call is None:
            continue
        call()  # memory is touched, code is there
        seconds = timed(call)
        best = min(best, seconds)
        if seconds <= HOPELESS * best:
            calls[name] = call
    times: dict[str, list[float]] = {name: [] for name in [*calls, "clock"]}
    while len(times["clock"]) < 5 or (time.perf_counter() - begin < SECONDS and len(times["clock"]) < 40):
        for name, call in calls.items():
            times[name].append(timed(call))
        times["clock"].append(timed(fixed_loop))
    return {name: float(np.median(ts)) for name, ts in times.items()}


def call_of(geometry: ConvGeometry, dtype: str, product: str, name: str) -> Any:
    """A call of one product by one algorithm on fresh random data, or None where the algorithm does not serve."""
    if select.refusal(name, geometry, np.dtype(dtype)) or (
        product == "grad_weight" and not select.has_grad_weight(name, geometry, "cpu")
    ):
        return None
    plan = make_plan(geometry, np.dtype(dtype), "cpu", name)
    if plan.nbytes("workspace") > select.WORKSPACE:
        return None
    rng = np.random.default_rng(0)
    x, w, dy = (
        (10 * rng.standard_normal(s)).astype(dtype) for s in (plan.input_shape, plan.kernel_shape, plan.output_shape)
    )
    out = np.empty_like({"forward": dy, "grad_input": x, "grad_weight": w}[product])
    if product == "forward":
        return lambda: plan.forward(x, w, out=out)
    return (lambda: plan.grad_input(dy, w, out=out)) if product == "grad_input" else (
        lambda: plan.grad_weight(x, dy, out=out)
    )


def timed(call: Any) -> float:
    """Seconds of one call, of several if it is short."""
    begin, n = time.perf_counter(), 0
    while n == 0 or (n < 10 and time.perf_counter() - begin < 2e-4):
        call()
        n += 1
    return (time.perf_counter() - begin) / n


def fixed_loop() -> int:
    """Work that takes the same number of cycles every time."""
    total = 0
    for i in range(10_000):
        total += i
    return total


def measure_all(path: Path, seed: int, count: int, seconds: float, only: str = "") -> None:
    """Add what is missing to a file of JSON lines, one for each geometry and product, until the time is over."""
    from tqdm import tqdm

    path.parent.mkdir(exist_ok=True)
    done = {(line["index"], line["product"]) for line in read(path) if line.get("kind", "") == only}
    nc.warmup(list(DTYPES), CANDIDATES)
    begin = time.perf_counter()
    machine = {"machine": processor(), "threads": numba.get_num_threads(), "seed": seed}
    with path.open("a") as file:
        for index, (geometry, dtype) in enumerate(tqdm(cases(seed, count, only), disable=None, desc=path.name)):
            for product in PRODUCTS:
                if product != "forward" and (index % 2 or only):
                    continue  # the gradients at every second geometry, and not where one kind is asked for
                if (index, product) in done or time.perf_counter() - begin > seconds:
                    continue
                found = measure(geometry, dtype, product)
                line = {"index": index, "product": product, "dtype": dtype, "geometry": as_json(geometry), **machine}
                line |= {"kind": only} if only else {}
                file.write(json.dumps({**line, "seconds": found}) + "\n")
                file.flush()


def as_json(g: ConvGeometry) -> dict[str, Any]:
    """The arguments of ``conv_geometry`` that give this geometry again."""
    names = ("stride", "dilation", "padding", "groups", "boundary", "flip")
    return {
        "input_shape": g.input_shape, "kernel_shape": g.kernel_shape, **{name: getattr(g, name) for name in names},
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of measurements, none if there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def processor() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# fitting and checking -----------------------------------------------------------------------------------------------


Costs = dict[str, dict[str, dict[str, tuple[float, ...]]]]

#: How often the pace of each measurement is corrected.
PACES = 2


class Line:
    """One measured geometry and product, its times at the best clock, and the amounts that the model sees."""

    def __init__(self, line: dict[str, Any], fastest_clock: float) -> None:
        self.geometry = conv_geometry(**line["geometry"])
        self.dtype, self.product = np.dtype(line["dtype"]), line["product"]
        seconds = dict(line["seconds"])
        scale = fastest_clock / seconds.pop("clock")
        self.seconds = {name: s * scale for name, s in seconds.items()}

    @property
    def best(self) -> float:
        """The shortest time."""
        return min(self.seconds.values())

    def serves(self, name: str) -> bool:
        """Whether an algorithm could have been taken; one without a time was hopeless."""
        estimates = select.estimates(self.product, self.geometry, self.dtype)
        return any(e.algorithm == name and not e.why_not for e in estimates)

    def amounts(self, name: str) -> np.ndarray:
        """Those of one algorithm."""
        table = select.GRAD_WEIGHT_AMOUNTS if self.product == "grad_weight" else select.AMOUNTS
        sizes, times = select.sizes_of(self.product, name, self.geometry, self.dtype)
        return times * np.array(table[name](sizes))


    def at_pace(self, costs: Costs) -> Line:
        """The same times at the pace at which the model would have computed this geometry, as far as they show it.

        A neighbour on a shared machine may halve the multiply-adds of a core for some seconds, which a loop of Python
        does not notice, but all algorithms do alike.
        """
        known = [name for name in self.seconds if select.like(self.dtype) in costs[self.product].get(name, {})]
        model = [1e-9 * self.amounts(name) @ costs[self.product][name][select.like(self.dtype)] for name in known]
        ratios = [np.log(s / self.seconds[name]) for name, s in zip(known, model, strict=True) if s > 0]
        scale, line = np.exp(sum(ratios) / (len(ratios) + 1)), copy.copy(self)
        line.seconds = {name: s * scale for name, s in self.seconds.items()}
        return line


def lines_of(path: Path) -> list[Line]:
    """All measurements of a file."""
    raw = read(path)
    fastest = min((line["seconds"]["clock"] for line in raw), default=1.0)
    return [Line(line, fastest) for line in raw]


def fit(lines: list[Line]) -> Costs:
    """Costs of lines that all go at the same pace, which follows from costs: by turns."""
    costs = costs_of(lines)
    for _ in range(PACES):
        lines = [line.at_pace(costs) for line in lines]
        costs = costs_of(lines)
    return costs


def costs_of(lines: list[Line]) -> Costs:
    """Costs in nanoseconds, by product, algorithm and the dtypes that are alike."""
    costs: Costs = {}
    for product in PRODUCTS:
        table = select.GRAD_WEIGHT_AMOUNTS if product == "grad_weight" else select.AMOUNTS
        for like in ("float32", "float64", "integer", "complex"):
            some = [line for line in lines if select.like(line.dtype) == like]
            for name in table:
                # few layers are Winograd's, and its input gradient is the same work with the channels exchanged
                alike = ("forward", "grad_input")
                alike = alike if name == "winograd" and product in alike else (product,)
                found = least_squares([line for line in some if line.product in alike], name, like)
                if found is not None:
                    costs.setdefault(product, {}).setdefault(name, {})[like] = tuple(float(f"{c:.4g}") for c in found)
    return costs


def least_squares(lines: list[Line], name: str, like: str) -> np.ndarray | None:
    """Costs of one algorithm, none negative, with the least relative error; hopeless ones take so much at the least."""
    timed = [line for line in lines if name in line.seconds]
    if not timed:
        return None
    hopeless = [line for line in lines if name not in line.seconds and line.serves(name)]
    A = np.array([line.amounts(name) / (line.seconds[name] * 1e9) for line in timed])
    H = np.array([line.amounts(name) / (HOPELESS * line.best * 1e9) for line in hopeless]).reshape(-1, A.shape[1])
    floor = np.zeros(A.shape[1])
    if name in TILED and like.startswith("float"):  # else a cost nobody met would be nothing
        floor[1] = PEAK * np.dtype(like).itemsize / 4
    # a hopeless one may take longer: what it takes beyond is unknown, and not negative either
    rows = np.block([[A, np.zeros((len(A), len(H)))], [H, -np.eye(len(H))]])
    floor = np.concatenate([floor, np.zeros(len(H))])
    size = np.maximum(np.abs(rows).max(axis=0), 1e-30)
    found = floor + nnls(rows / size, 1 - rows @ floor)[0] / size
    return found[: A.shape[1]]


def regrets(lines: list[Line], costs: dict[str, Any]) -> dict[str, list[float]]:
    """For each product, how many times the best algorithm's time the chosen one took."""
    select.COSTS = costs  # type: ignore[assignment]
    found: dict[str, list[float]] = {product: [] for product in PRODUCTS}
    for line in lines:
        able = [e for e in select.estimates(line.product, line.geometry, line.dtype) if not e.why_not]
        known = [e for e in able if e.algorithm in line.seconds]
        taken = min(able, key=lambda e: e.seconds).algorithm
        best = min(line.seconds[e.algorithm] for e in known)
        # one that was hopeless has no time of its own; it took at least this
        found[line.product].append(line.seconds.get(taken, HOPELESS * best) / best)
    return found


def report(title: str, found: dict[str, list[float]]) -> None:
    """One line for each product: the share within 10 % of the best, and how bad the rest is."""
    for product, ratios in found.items():
        if ratios:
            r = np.sort(ratios)
            print(
                f"{title:10} {product:12} {len(r):4} geometries: within 10 % of the best on {np.mean(r <= 1.1):6.1%}, "
                f"mean {np.mean(r):.3f}, 95 % below {np.quantile(r, 0.95):.2f}, worst {r[-1]:.2f}"
            )


def write_costs(costs: dict[str, Any], lines: int) -> None:
    """``numconv/costs.py``."""
    text = '"""What one of each amount in ``select.py`` costs, in nanoseconds; written by ``asv_bench/sweep.py``.\n\n'
    text += f'Fitted to {lines} measurements on {processor()}, two threads.\n"""\n\n'
    text += "COSTS: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {\n"
    for product, table in costs.items():
        text += f'    "{product}": {{\n'
        for name, per_dtype in table.items():
            text += f'        "{name}": {{\n'
            text += "".join(f'            "{like}": {found},\n' for like, found in per_dtype.items())
            text += "        },\n"
        text += "    },\n"
    COSTS.write_text(text + "}\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure what is missing")
    parser.add_argument("--fit", action="store_true", help="fit the costs and write numconv/costs.py")
    parser.add_argument("--check", action="store_true", help="with the geometries that no fit has seen")
    parser.add_argument("--count", type=int, help="geometries: 500 to fit, 300 to check")
    parser.add_argument("--kind", choices=list(KINDS), default="", help="measure geometries of this kind only")
    parser.add_argument("--seconds", type=float, default=480, help="stop measuring after so many")
    arguments = parser.parse_args()
    path = RESULTS / ("sweep-check.jsonl" if arguments.check else "sweep-fit.jsonl")
    if arguments.measure:
        seed, count = (2, 300) if arguments.check else (1, 500)
        measure_all(path, seed, arguments.count or count, arguments.seconds, arguments.kind)
    lines = lines_of(path)
    if arguments.fit:
        alike = sorted(lines, key=lambda line: (line.product, line.dtype.name))
        for seen, unseen in ((alike[::2], alike[1::2]), (alike[1::2], alike[::2])):
            report("held out", regrets(unseen, fit(seen)))
        costs = fit(lines)
        report("fitted", regrets(lines, costs))
        write_costs(costs, len(lines))
    elif arguments.check:
        report("check", regrets(lines, select.COSTS))


if __name__ == "__main__":
    sys.exit(main())
