"""What a call costs beside its arithmetic: small work, plans, import, the first call of a process."""

from __future__ import annotations

from itertools import count

import numpy as np

import numconv as nc

from .common import Timed


class SmallCalls(Timed):
    """A 3 x 3 kernel on 16 x 16 pixels: hardly any arithmetic."""

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.x, self.w = rng.random((16, 16), dtype=np.float32), rng.random((3, 3), dtype=np.float32)
        self.image, self.kernel = self.x[None, None], self.w[None, None]
        self.plan = nc.plan_convolve((16, 16), (3, 3), "same")
        for name in dir(self):
            if name.startswith("time_"):
                getattr(self, name)()

    def time_plan_forward(self) -> None:
        self.plan.forward(self.x, self.w)

    def time_convolve(self) -> None:
        nc.convolve(self.x, self.w, "same")

    def time_conv2d(self) -> None:
        nc.conv2d(self.image, self.kernel, padding=1)

    def time_im2col(self) -> None:
        nc.im2col(self.x, (3, 3))

    def time_kernel2row(self) -> None:
        nc.kernel2row(self.w, (16, 16))


class Plans(Timed):
    """Making a plan: one that was never made before, and one that was."""

    sizes = count(16)  # of the process: asv calls setup before every sample, and no size may come again

    def setup(self) -> None:
        self.time_new_plan()
        self.time_known_plan()

    def time_new_plan(self) -> None:
        nc.plan_conv((1, 8, next(self.sizes), 16), (8, 8, 3, 3), padding=1)

    def time_known_plan(self) -> None:
        nc.plan_conv((1, 8, 12, 16), (8, 8, 3, 3), padding=1)


class Start:
    """Each in a process of its own, which is what ``timeraw_`` times."""

    timeout = 600.0
    rounds = 1
    number = 1
    repeat = 3
    warmup_time = 0

    def timeraw_import(self) -> str:
        return "import numconv"

    def timeraw_import_numpy_and_numba(self) -> str:
        """What the first call cannot do without."""
        return "import numpy, numba"

    def timeraw_first_call_from_cache(self) -> str:
        return FIRST_CALL

    def timeraw_first_call_compiled(self) -> str:
        return f"import os, tempfile; os.environ['NUMBA_CACHE_DIR'] = tempfile.mkdtemp()\n{FIRST_CALL}"

    timeraw_first_call_compiled.repeat = 1  # type: ignore[attr-defined]


FIRST_CALL = """
import numpy, numconv
numconv.conv2d(numpy.ones((1, 3, 16, 16), "float32"), numpy.ones((4, 3, 3, 3), "float32"))
"""
