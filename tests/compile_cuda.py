"""Compile every CUDA kernel without a GPU, in the types in which its launcher calls it; ``ptxas`` counts its registers.

    python tests/compile_cuda.py 9.0      prints a line of JSON for each kernel

The launchers run with a driver that computes nothing and writes down what they launch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from numconv.arrays import computed_in
from numconv.cuda import adjoint, arrays, csr, direct, im2col, implicit, kernel2row, mma, packing, places
from numconv.cuda._jit import Kernel, cuda
from numconv.cuda.driver import Simulator
from numconv.geometry import conv_geometry


class Notebook(Simulator):
    """A driver that writes down what it would launch: each kernel once for the types of its arguments."""

    def __init__(self, cc):
        self.launches, self.cc = {}, cc

    def capability(self, device):
        return self.cc

    def allocate(self, device, shape, dtype):
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
    for dtype in map(np.dtype, ("float32", "float64", "complex64", "int64", "float16")):
        for boundary in ("constant", "reflect"):
            for K, C, size in ((4, 4, 8), (128, 64, 96), (32, 32, 8)):
                g = conv_geometry((2, C, size, size), (K, C, 3, 3), padding=1, boundary=boundary)
                x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
                bias, fill = place.empty((K,), dtype), dtype.type(0)
                for room in (direct, im2col, implicit):
                    room.forward(x, w, bias, g.axes, g.boundary_code, fill, y)
                    adjoint.grad_input(room, y, w, g, x)
                for room in (direct, implicit):
                    room.grad_weight(x, y, g.axes, g.boundary_code, fill, w)
                for room in {mma.room(precision, dtype) for precision in mma.ROOMS} - {implicit}:
                    for filled in (fill, computed_in(dtype).type(0.1)):  # no number of float16
                        room.forward(x, w, bias, g.axes, g.boundary_code, filled, y)
                        room.grad_weight(x, y, g.axes, g.boundary_code, filled, w)
        for K, deep in ((8, 1), (1, 8)):
            g = conv_geometry((1, 8, 8, 8), (K, deep, 3, 3), groups=8 // deep)
            x, w, y = (place.empty(s, dtype) for s in (g.input_shape, g.kernel_shape, g.output_shape))
            direct.forward(x, w, place.empty((K,), dtype), g.axes, 0, dtype.type(0), y)
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
        if dtype != np.float16:  # nothing is added in it
            y += y[:1]
            im2col.add_bias(place.empty((1, 4, 6), dtype), place.empty((4,), dtype))
    csr.before_each(place.empty((3 * csr.CHUNK,), np.dtype(np.int64)))
    launched = {kernel for kernel, _ in notebook.launches}
    expected = every_kernel() - ({*tensor_cores()} if cc < (8, 0) else set())
    assert launched == expected, [kernel.__name__ for kernel in expected ^ launched]
    return list(notebook.launches)


def every_kernel():
    """All that the rooms have, those of the tiles among them."""
    rooms = (adjoint, arrays, csr, direct, im2col, implicit, kernel2row, packing)
    found = [value for room in rooms for value in vars(room).values()]
    tiles = [part for value in found if isinstance(value, implicit.Tile) for part in value]
    return {value for value in [*found, *tiles, *tensor_cores()] if isinstance(value, Kernel)}


def tensor_cores():
    """Those that need TF32, which GPUs before sm_80 have not."""
    tiles = [tile for shapes in (mma.FORWARD, mma.GRAD_WEIGHT) for tiles in shapes.values() for tile in tiles]
    return [tile.kernel for tile in tiles] + [value for value in vars(mma).values() if isinstance(value, Kernel)]


def main(capability):
    import numba.cuda.dispatcher

    cc = tuple(int(part) for part in capability.split("."))
    device = type("Device", (), {"compute_capability": cc})
    numba.cuda.dispatcher.get_current_device = lambda: device  # helpers ask for it as they are compiled
    ptxas = find_ptxas()
    with tempfile.TemporaryDirectory() as folder:
        for kernel, types in launches(cc):
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
            line = {
                "kernel": f"{kernel.__module__.removeprefix('numconv.cuda.')}.{kernel.__name__}",
                "threads": kernel.threads, "types": ", ".join(map(str, types)), "stack": int(stack),
                "spills": int(stores) + int(loads), "registers": int(re.search(r"Used (\d+) registers", report)[1]),
                "wide_loads": ptx.count("ld.shared.v4.f32") + ptx.count("ld.shared.v4.b32"),
                "narrow_loads": ptx.count("ld.shared.f32") + ptx.count("ld.shared.b32"),
                "mma": ptx.count("mma.sync"), "async": ptx.count("cp.async.cg"),
            }  # fmt: skip
            print(json.dumps(line), flush=True)


def find_ptxas():
    """NVIDIA's assembler, from the wheel of its compiler."""
    import nvidia

    return next(path for root in nvidia.__path__ for path in Path(root).rglob("bin/ptxas"))


if __name__ == "__main__":
    main(sys.argv[1])
