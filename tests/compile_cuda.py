"""Compile every CUDA kernel without a GPU, in the types in which its launcher calls it, and look at what comes out.

    python tests/compile_cuda.py 9.0             prints a line of JSON for each kernel
    python tests/compile_cuda.py 9.0 implicit    only for those whose name begins so
    python tests/compile_cuda.py 9.0 --of float32    and whose first array is of this dtype, or one of some
    python tests/compile_cuda.py table           writes tests/gpu/ffma.csv, which CI compares with what it compiles

``ptxas`` counts registers and spills, and ``nvdisasm`` shows the instructions. The launchers run with a driver that
computes nothing and writes down what they launch.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from numconv.arrays import computed_in
from numconv.cuda import (
    adjoint,
    arrays,
    csr,
    depthwise,
    direct,
    direct_weights,
    fft,
    im2col,
    implicit,
    implicit_weights,
    kernel2row,
    local,
    missing,
    mma,
    packing,
    places,
)  # fmt: skip
from numconv.cuda._jit import Kernel, cuda
from numconv.cuda.driver import Simulator
from numconv.geometry import conv_geometry

ROOMS = (
    adjoint, arrays, csr, depthwise, direct, direct_weights, fft, im2col, implicit, implicit_weights, kernel2row, local,
    missing, mma, packing,
)  # fmt: skip


class Notebook(Simulator):
    """A driver that writes down what it would launch: each kernel once for the types of its arguments."""

    def __init__(self, cc):
        self.launches, self.cc = {}, cc

    def capability(self, device):
        return self.cc

    def allocate(self, device, shape, dtype, stream=0):
        return np.empty(shape, dtype)

    def available(self, device):
        return 1 << 40

    def launch(self, device, kernel, blocks, arguments, stream):
        types = tuple(type_of(argument) for argument in arguments)
        self.launches.setdefault((kernel, types), None)


def type_of(value):
    """The type in which numba takes an argument."""
    from numba.cuda import types
    from numba.cuda.np.numpy_support import from_dtype

    if isinstance(value, arrays.DeviceArray):
        return types.Array(from_dtype(value.dtype), value.ndim, "C")
    if isinstance(value, (bool, np.bool_)):
        return types.boolean
    if isinstance(value, np.generic):
        return from_dtype(value.dtype)
    if isinstance(value, tuple):
        return types.UniTuple(types.int64, len(value))
    return types.int64


def launches(cc):
    """What the launchers launch: every room and product, every tile, real, complex and whole numbers."""
    places.DRIVER = mma.DRIVER = notebook = Notebook(cc)
    place = places.host()
    place.transform = lambda *arrays, **how: None  # numba has none
    for dtype in map(np.dtype, ("float32", "float64", "complex64", "int64", "float16")):
        for boundary in ("constant", "reflect"):
            for K, C, size in ((4, 4, 8), (128, 64, 96), (32, 32, 8)):
                g = conv_geometry((2, C, size, size), (K, C, 3, 3), padding=1, boundary=boundary)
                x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
                bias, fill = place.empty((K,), dtype), dtype.type(0)
                for room in (direct, im2col, implicit):
                    room.forward(x, w, bias, g.axes, g.boundary_code, fill, y)
                    adjoint.grad_input(room, y, w, g, x)
                if dtype.kind in "fc":
                    fft.forward(x, w, bias, g.axes, g.boundary_code, fill, y)
                    adjoint.grad_input(fft, y, w, g, x)
                    fft.grad_weight(x, y, g.axes, g.boundary_code, fill, w)
                for room in (direct, implicit):
                    room.grad_weight(x, y, g.axes, g.boundary_code, fill, w)
                for room in {mma.in_precision(precision, dtype) for precision in mma.BY_PRECISION} - {implicit}:
                    for filled in (fill, computed_in(dtype).type(0.1)):  # no number of float16
                        room.forward(x, w, bias, g.axes, g.boundary_code, filled, y)
                        room.grad_weight(x, y, g.axes, g.boundary_code, filled, w)
        for K, deep in ((8, 1), (1, 8)):
            g = conv_geometry((1, 8, 8, 8), (K, deep, 3, 3), groups=8 // deep)
            x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
            direct.forward(x, w, place.empty((K,), dtype), g.axes, 0, dtype.type(0), y)
        for width, stride in depthwise.KERNELS if dtype == np.float32 else ((3, 1),) if dtype == np.float16 else ():
            g = conv_geometry((1, 8, 8, 20), (8, 1, 3, width), stride=(1, stride), groups=8)
            x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
            direct.forward(x, w, place.empty((8,), dtype), g.axes, 0, dtype.type(0), y)
        for wide in (3, 4, 5, 7):
            for K in (4, 8):
                g = conv_geometry((1, 4, 8, 8), (K, 1, wide, wide), groups=4)
                x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
                direct.grad_weight(x, y, g.axes, 0, dtype.type(0), w)
        with patch.object(direct_weights, "FAR", 1):  # as if a plane were so large
            direct.grad_weight(x, y, g.axes, 0, dtype.type(0), w)
        vectors = computed_in(dtype)  # matrices and vectors of float16 are float32, but for the data of a matrix
        W = place.empty(g.kernel_shape, vectors)
        _, indices, indptr = kernel2row.triple(W, g.axes, 0, 8)
        data, (a, b) = place.empty(indices.shape, dtype), (place.empty((1, n), vectors) for n in g.matrix_shape)
        csr.matvec(data, indices, indptr, b, a)
        csr.rmatvec(data, indices, indptr, a, b)
        kernel2row.has_structure(indices, indptr, W, g.axes, 0, 8)
        if vectors.kind != "i":  # means of whole numbers are float64
            im2col.divide(place.empty(g.input_shape, vectors), np.ones(g.size, np.int64))
        w.swapaxes(2, 3).astype(dtype).conj()
        each = place.empty((g.out[0] * g.out[1], 1, 72), dtype)  # a kernel for each output
        local.forward(x, each, place.empty((1,), vectors), g.axes, 0, vectors.type(0), y)
        local.grad_input(y, each, g, x)
        local.grad_weight(x, y, g.axes, 0, vectors.type(0), each)
        if vectors.kind != "i":
            averages(x, y, vectors)
        if dtype != np.float16:  # nothing is added in it
            y += y[:1]
            im2col.add_bias(place.empty((1, 4, 6), dtype), place.empty((4,), dtype))
    csr.before_each(place.empty((3 * csr.CHUNK,), np.dtype(np.int64)))
    launched = {kernel for kernel, _ in notebook.launches}
    expected = {kernel for kernel, name in names().items() if cc >= (8, 0) or not name.startswith("mma")}
    assert launched == expected, [names()[kernel] for kernel in expected ^ launched]
    return list(notebook.launches)


def averages(x, y, dtype):
    """What ``normalized_convolve`` launches value by value."""
    x, sums = x.reshape(x.size), y.place.empty((y.size,), dtype)
    there = missing.there_of(x, [])
    missing.filled(x, missing.there_of(x, [there]), dtype)
    missing.average(sums, sums, missing.defined(sums, 1.0, 2.0))


def names():
    """Every kernel, with the name under which its room has it: ``implicit_weights.LARGE.grad_weight``."""
    found = {}

    def look(name, value):
        if isinstance(value, Kernel):
            found.setdefault(value, name)
        elif hasattr(value, "_fields"):
            for field in value._fields:
                look(f"{name}.{field}", getattr(value, field))
        elif isinstance(value, (dict, list)):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                look(f"{name}[{key}]", part)

    for room in ROOMS:
        for name, value in vars(room).items():
            if not (name.startswith("__") or isinstance(value, type)):
                look(f"{room.__name__.rpartition('.')[2]}.{name}", value)
    return found


class Loop(NamedTuple):
    """Where a kernel spends its time: the straight piece of code with the most multiply-adds, and the loop around it.

    The loop counts what it does seldom, too, such as looking for the next tap.
    """

    piece: int
    multiply_adds: int
    loop: int


#: Multiply-adds of floating-point numbers, those of tensor cores among them.
MULTIPLY_ADD = re.compile(r"\b(FFMA|DFMA|HFMA2|HMMA|DMMA)\b")


def loop_of(sass):
    """The loop in which a kernel spends its time."""
    code, labels = [], {}
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+([^;]+);", line):
            code.append(instruction[1])
    ends = {}  # by where a loop begins
    for i, instruction in enumerate(code):
        if target := re.search(r"\bBRA.*`\((\.L_x_\d+)\)", instruction):
            begin = labels.get(target[1], i)
            if begin < i:
                ends[begin] = max(ends.get(begin, 0), i + 1)
    breaks = {0, len(code), *labels.values()}
    breaks |= {i + 1 for i, instruction in enumerate(code) if re.search(r"\b(BRA|BRX|EXIT|RET)\b", instruction)}
    breaks = sorted(breaks)
    adds = [bool(MULTIPLY_ADD.search(instruction)) for instruction in code]
    begin, end = max(pairwise(breaks), key=lambda piece: sum(adds[slice(*piece)]))
    loop = min((b - a for a, b in ends.items() if a <= begin and end <= b), default=len(code))
    return Loop(end - begin, sum(adds[begin:end]), loop)


def main(capability, wanted="", dtypes=""):
    import numba.cuda.dispatcher

    cc = tuple(int(part) for part in capability.split("."))
    device = type("Device", (), {"compute_capability": cc})
    numba.cuda.dispatcher.get_current_device = lambda: device  # helpers ask for it as they are compiled
    ptxas, nvdisasm, named = find("ptxas"), find("nvdisasm"), names()
    with tempfile.TemporaryDirectory() as folder:
        for kernel, types in launches(cc):
            if not named[kernel].startswith(wanted) or (dtypes and str(types[0].dtype) not in dtypes.split(",")):
                continue
            ptx, _ = cuda.compile(kernel.loop, types, cc=cc, device=False, abi="numba", output="ptx", **kernel.options)
            source = Path(folder, "kernel.ptx")
            source.write_text(ptx)
            command = [ptxas, "-v", f"-arch=sm_{cc[0]}{cc[1]}", source, "-o", Path(folder, "kernel.cubin")]
            done = subprocess.run(command, capture_output=True, text=True)
            report = done.stderr
            if done.returncode:
                raise SystemExit(f"{kernel.__module__}.{kernel.__name__}{types}: {done.stdout}{report}")
            stack, stores, loads = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
            ).groups()
            sass = subprocess.run([nvdisasm, "-c", command[-1]], capture_output=True, text=True, check=True).stdout
            line = {
                "kernel": named[kernel], "of": str(types[0].dtype), "threads": kernel.threads,
                "types": ", ".join(map(str, types)), "stack": int(stack),
                "spills": int(stores) + int(loads), "registers": int(re.search(r"Used (\d+) registers", report)[1]),
                "wide_loads": ptx.count("ld.shared.v4.f32") + ptx.count("ld.shared.v4.b32"),
                "narrow_loads": ptx.count("ld.shared.f32") + ptx.count("ld.shared.b32"),
                "mma": ptx.count("mma.sync"), "async": ptx.count("cp.async.cg"), "loop": loop_of(sass),
            }  # fmt: skip
            print(json.dumps(line), flush=True)


def find(program):
    """One of NVIDIA's programs, from its wheel."""
    import nvidia

    return next(path for root in nvidia.__path__ for path in Path(root).rglob(f"bin/{program}"))


#: The share of multiply-adds, for the kernels in which those are the work.
TABLE = Path(__file__).parent / "gpu" / "ffma.csv"
CAPABILITIES = ("7.5", "8.0", "9.0")


def row_of(line):
    """A line of ``main`` as the table has it; ``None`` for kernels that do something else, or not in float32."""
    kernel, (piece, multiply_adds, loop) = line["kernel"], line["loop"]
    products = kernel.startswith(("implicit", "depthwise", "direct", "mma"))
    if not products or multiply_adds < 4 or line["of"] != "float32":
        return None
    share = round(multiply_adds / piece, 3)
    return {"kernel": kernel, "multiply_adds": multiply_adds, "piece": piece, "share": share, "loop": loop}


def write_table():
    """Compile for all generations, and write the table."""
    with TABLE.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["kernel", "capability", "multiply_adds", "piece", "share", "loop"])
        rows.writeheader()
        for capability in CAPABILITIES:
            command = [sys.executable, __file__, capability, "--of", "float32"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = filter(None, (row_of(json.loads(line)) for line in done.stdout.splitlines()))
            for row in sorted({row["kernel"]: row for row in found}.values(), key=lambda row: row["kernel"]):
                rows.writerow({**row, "capability": capability})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", help="such as 9.0, or the word table")
    parser.add_argument("kernels", nargs="?", default="", help="how their names begin")
    parser.add_argument("--of", default="", help="dtypes of their first array, with commas between")
    told = parser.parse_args()
    write_table() if told.capability == "table" else main(told.capability, told.kernels, told.of)
