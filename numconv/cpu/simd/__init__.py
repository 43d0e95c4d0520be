"""The vector room: register tiles and the moves around them. Everything else in numconv is loops around these.

``tile`` multiplies matrices, ``window`` images by small kernels. For float32 and float64 they are written for the
host's vectors; every other dtype runs the same sums as plain loops, which are also what Python sees when compilation
is off.
"""

from .tile import (
    ALIGNED,
    HIGHEST,
    SUMS,
    WIDEST,
    aligned,
    copy_every_second,
    copy_run,
    outer_sum,
    pack,
    put,
    put_apart,
    sum_lanes,
    transpose,
)
from .vectors import VECTOR_BYTES, address, keep, lanes
from .window import ABREAST, STACKED, WINDOW, copy_line, weight_tile, window_tile

__all__ = [
    "ABREAST", "ALIGNED", "HIGHEST", "STACKED", "SUMS", "VECTOR_BYTES", "WIDEST", "WINDOW", "address", "aligned",
    "copy_every_second", "copy_line", "copy_run", "keep", "lanes", "outer_sum", "pack", "put", "put_apart",
    "sum_lanes", "transpose", "weight_tile", "window_tile",
]
