"""Convolutions larger than memory: tile by tile from file to file, and Dask arrays."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

import numconv as nc


class Tiles:
    """A volume of 64 MiB between files, with as many bytes in memory as a tile takes; ``None``: at once."""

    params = ((None, 16_000_000, 4_000_000),)
    param_names = ("max_bytes",)

    def setup(self, max_bytes):
        self.folder = Path(tempfile.mkdtemp())
        shape, kernel = (256, 256, 256), (5, 5, 5)
        self.plan = nc.plan_convolve(shape, kernel, "same", boundary="reflect", max_bytes=max_bytes)
        self.x, self.out = (
            np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.float32, shape) for name in "xy"
        )
        self.x[...] = 1
        self.w = np.ones(kernel, np.float32)
        self.plan.forward(self.x, self.w, out=self.out)  # compiles

    def teardown(self, max_bytes):
        del self.x, self.out
        shutil.rmtree(self.folder)

    def time_forward(self, max_bytes):
        self.plan.forward(self.x, self.w, out=self.out)

    def time_grad_weight(self, max_bytes):
        self.plan.grad_weight(self.x, self.out)


class Dask:
    """An image in chunks, and what the graph of many chunks costs."""

    def setup(self):
        try:
            import dask.array as da
        except ImportError:
            raise NotImplementedError from None
        self.w = np.ones((5, 5), np.float32)
        self.image = da.ones((4096, 4096), chunks=1024, dtype=np.float32)
        self.many = da.ones((100_000, 100_000), chunks=2000, dtype=np.float32)
        self.time_convolve()  # compiles

    def time_convolve(self):
        nc.convolve(self.image, self.w, "same").sum().compute(scheduler="synchronous")

    def time_graph_of_2500_chunks(self):
        nc.convolve(self.many, self.w, "same")

    def track_tasks_of_2500_chunks(self):
        y = nc.convolve(self.many, self.w, "same")
        return len(y.dask.layers[y.name])
