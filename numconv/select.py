"""Which algorithm serves a convolution, and which is the best for it. Nothing is measured at call time.

Each algorithm is described by a few amounts (multiply-adds, values moved, rows begun, …) that follow from the shapes,
and by what one of each costs in nanoseconds. ``asv_bench/sweep.py`` measures random convolutions and fits the costs;
its measurements lie in ``asv_bench/results``. The costs are those of two threads of one machine whatever machine runs
them, so that the choice, and with it every bit of a result, follows from shapes and dtype alone; and but for the
weight gradient, which is a sum over a batch, from those of one image. ``cuda/costs.py`` is the same for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, log2, prod
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from . import arrays, dispatch
from ._memory import WORKSPACE
from ._objects import shown
from .arguments import one_of
from .costs import COSTS
from .cuda import costs as gpu
from .geometry import ConvGeometry

if TYPE_CHECKING:
    import numpy as np

Algorithm = Literal["auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"]
ASKED: tuple[str, ...] = get_args(Algorithm)
ALGORITHMS: tuple[str, ...] = ASKED[1:]
Product = Literal["forward", "grad_input", "grad_weight"]
PRODUCTS: tuple[str, ...] = get_args(Product)

#: Weights beyond which ``auto`` does not take direct sums, which read all of them for each block of pixels; and
#: channels of a group, in and out, from which on vector code has always been faster with products of matrices.
MANY_WEIGHTS, MANY_CHANNELS = 1 << 22, 32

#: For how many images the algorithm is chosen, whatever a batch has, so that the bits of an image do not follow from
#: those beside it.
IMAGES = {"cpu": 1, "cuda": gpu.IMAGES}

#: Where each device has kernels for it.
ON: dict[str, tuple[str, ...]] = {"cpu": ALGORITHMS, "cuda": ("im2col", "kernel2row", "implicit", "direct", "fft")}

#: What ``auto`` may take beside inputs and outputs, in bytes; on a GPU spectra of ``IMAGES`` of most layers.
MOST_WORKSPACE = {"cpu": WORKSPACE, "cuda": 1 << 30}

#: What ``auto`` does not take, and why.
NOT_BY_ITSELF = {
    "kernel2row": "it builds a matrix for a single product",
}


class Choice(NamedTuple):
    """The algorithm of each product."""

    forward: str
    grad_input: str
    grad_weight: str


class Estimate(NamedTuple):
    """What to expect of an algorithm: seconds, or why ``auto`` does not take it."""

    algorithm: str
    seconds: float
    why_not: str


def refusal(
    algorithm: str, geometry: ConvGeometry, dtype: np.dtype, device: str = "cpu", library: bool = True
) -> str:
    """Why an algorithm cannot serve this convolution; empty if it can.

    ``library`` says of arrays on a GPU whether theirs has a BLAS and an FFT, as torch and CuPy have and numba has not,
    by which NumPy's arrays come there.
    """
    if algorithm not in ON[device]:
        return f"there is no {device} kernel of it, but of {', '.join(ON[device])}"
    if algorithm == "fft" and device == "cuda" and not library:
        return "it transforms by the library of the arrays, torch or CuPy, and what these are of has no FFT"
    if algorithm == "kernel2row" and geometry.fill_value != 0:
        return f"fill_value={shown(geometry.fill_value)} makes the map affine, and a matrix is linear"
    if algorithm == "winograd":
        ones = (1,) * geometry.d
        strided = geometry.stride == (2, 2) and geometry.dilation == ones
        if geometry.kernel != (3, 3) or not (strided or geometry.stride == ones):
            return (
                f"it needs a 3x3 kernel with stride 1, or stride 2 and dilation 1, got kernel {geometry.kernel}, "
                f"stride {geometry.stride}, dilation {geometry.dilation}"
            )
    if algorithm in ("winograd", "fft") and dtype.kind not in "fc":
        return f"it computes in floating point, which is not exact for {dtype}"
    return ""


def choose(
    algorithm: str, geometry: ConvGeometry, dtype: np.dtype, device: str, library: bool = True
) -> Choice:
    """The algorithm asked for, if it can serve; for ``"auto"`` the ones expected to be the fastest.

    On a GPU that is for arrays of a ``library`` with a BLAS and an FFT, or for those of one without.

    Raises
    ------
    ValueError
        If there is no such algorithm, or it cannot serve this convolution; the message says why.
    """
    algorithm = one_of("algorithm", algorithm, ASKED)
    if algorithm == "auto":
        return Choice(*(_fastest(product, geometry, dtype, device, library) for product in PRODUCTS))
    why_not = refusal(algorithm, geometry, dtype, device, library)
    if why_not:
        raise ValueError(f"algorithm {algorithm!r} cannot serve this convolution: {why_not}")
    return Choice(algorithm, algorithm, algorithm if has_grad_weight(algorithm, geometry, device) else "implicit")


def has_grad_weight(algorithm: str, geometry: ConvGeometry, device: str) -> bool:
    """Whether an algorithm has a weight gradient of its own for this convolution; the others' is the implicit one."""
    if algorithm == "winograd" and max(*geometry.stride, *geometry.dilation) > 1:
        return False  # its tiles are those of neighbours
    return hasattr(dispatch.backend(device, algorithm), "grad_weight")


def _fastest(product: str, geometry: ConvGeometry, dtype: np.dtype, device: str, library: bool) -> str:
    """The first in the order of time that keeps to the limit of memory, as ``implicit`` does at any size."""
    geometry = chosen_for(product, geometry, device)
    able = [e for e in estimates(product, geometry, dtype, device, library) if not e.why_not]
    for estimate in sorted(able, key=lambda e: e.seconds):  # a stable sort: ties go by the order of ALGORITHMS
        if workspace(estimate.algorithm, geometry, dtype, device, product) <= MOST_WORKSPACE[device]:
            return estimate.algorithm
    return "implicit"


def chosen_for(product: str, geometry: ConvGeometry, device: str) -> ConvGeometry:
    """What the algorithm of a product is chosen for: some images, but all for a gradient that is a sum over all."""
    return geometry if product == "grad_weight" else geometry._replace(N=IMAGES[device])


def workspace(
    algorithm: str, geometry: ConvGeometry, dtype: np.dtype, device: str, product: str = "forward"
) -> int:
    """Bytes that a product takes beside its arguments and result."""
    room = dispatch.backend(device, algorithm)
    takes = getattr(room, "workspace_for_weights", room.workspace) if product == "grad_weight" else room.workspace
    return int(takes(geometry, arrays.computed_in(dtype)))


def unfit(product: str, algorithm: str, g: ConvGeometry, computed: np.dtype) -> str:
    """Why ``auto`` does not take an algorithm that could serve, whatever it costs; empty if it may."""
    if algorithm in NOT_BY_ITSELF:
        return NOT_BY_ITSELF[algorithm]
    if algorithm == "im2col" and computed.kind == "f":
        return "it multiplies by BLAS, whose threads stay awake and hold up the calls that follow"
    if algorithm == "direct" and prod(g.kernel_shape) > MANY_WEIGHTS:
        return "so many weights are read anew for each block of pixels"
    if algorithm == "direct" and computed.kind == "f" and min(g.C, g.K) >= MANY_CHANNELS * g.groups:
        return "with many channels in and out the sums are a product of matrices"
    if algorithm == "winograd" and computed.name != "float32":
        return "it rounds more, which matters where more than float32 is asked for"
    if algorithm == "winograd" and product == "grad_weight" and not has_grad_weight(algorithm, g, "cpu"):
        return "its weight gradient is the implicit one"
    return ""


def estimates(
    product: str, geometry: ConvGeometry, dtype: np.dtype, device: str = "cpu", library: bool = True
) -> list[Estimate]:
    """What to expect of every algorithm for one of ``PRODUCTS``."""
    if device == "cuda":
        return _on_gpu(product, geometry, dtype, library)
    computed = arrays.computed_in(dtype)
    amounts = GRAD_WEIGHT_AMOUNTS if product == "grad_weight" else AMOUNTS
    found = []
    for algorithm in ALGORITHMS:
        why_not = refusal(algorithm, geometry, dtype) or unfit(product, algorithm, geometry, computed)
        costs = COSTS[product].get(algorithm, {}).get(like(computed))
        if not why_not and not costs:
            why_not = "no measurement says what it costs"
        seconds = 0.0
        if costs and not why_not:
            sizes, times = sizes_of(product, algorithm, geometry, computed)
            one = sum(cost * amount for cost, amount in zip(costs, amounts[algorithm](sizes), strict=True))
            seconds = 1e-9 * times * one
        found.append(Estimate(algorithm, seconds, why_not))
    return found


def _on_gpu(product: str, g: ConvGeometry, dtype: np.dtype, library: bool) -> list[Estimate]:
    """The same on a GPU."""
    found = []
    for algorithm in ALGORITHMS:
        why_not = refusal(algorithm, g, dtype, "cuda", library) or NOT_BY_ITSELF.get(algorithm, "")
        if not why_not and algorithm == "im2col" and product == "grad_weight":
            why_not = "its weight gradient is the implicit one"
        elif not why_not and algorithm == "im2col" and arrays.computed_in(dtype).kind in "fc":
            why_not = "it multiplies by the library's BLAS: bits follow from the batch, and precision from its settings"
        time = 0.0 if why_not else gpu.nanoseconds(gpu.amounts(product, algorithm, g, dtype, library))
        found.append(Estimate(algorithm, 1e-9 * time, why_not))
    return found


def device_for(geometry: ConvGeometry, dtype: np.dtype, algorithm: str) -> str:
    """Where to compute host arrays: on a GPU, if one is usable and wins with the transfers counted."""
    g, item = geometry, arrays.computed_in(dtype).itemsize
    if algorithm != "auto" and refusal(algorithm, geometry, dtype, "cuda", library=False):
        return "cpu"
    transfers = item * (g.N * (g.C * prod(g.size) + g.K * prod(g.out)) + g.K * g.C // g.groups * prod(g.kernel))
    here, there = (
        min((e.seconds for e in estimates("forward", g, dtype, device, False) if not e.why_not), default=0.0)
        for device in ON
    )
    there += 1e-9 * gpu.nanoseconds({"bus": transfers, "way": 1})
    return "cuda" if there < here and dispatch.has_gpu() else "cpu"


def like(dtype: np.dtype) -> str:
    """The dtype whose costs stand for this one's."""
    if dtype.kind == "f":
        return dtype.name
    return "complex" if dtype.kind == "c" else "integer"


def explain(geometry: ConvGeometry, dtype: np.dtype, device: str, choice: Choice) -> str:
    """A table of all algorithms: the time expected for each product, the workspace, and why not."""
    lines = [f"{'':12}{'forward':>12}{'grad_input':>12}{'grad_weight':>12}{'workspace':>14}"]
    tables = [estimates(product, geometry, dtype, device) for product in PRODUCTS]
    for row in zip(*tables, strict=True):
        algorithm, forward = row[0].algorithm, row[0]
        cells = []
        for estimate, chosen in zip(row, choice, strict=True):
            time = "-" if estimate.why_not else f"{estimate.seconds * 1e3:.3g} ms"
            cells.append(f"{time + ('*' if chosen == algorithm else ' '):>12}")
        memory, why_not = "", forward.why_not
        if not refusal(algorithm, geometry, dtype, device):
            nbytes = workspace(algorithm, geometry, dtype, device)
            memory = f"{nbytes / 2**20:.4g} MiB"
            if nbytes > MOST_WORKSPACE[device] and not why_not:
                why_not = f"it takes more than {MOST_WORKSPACE[device] >> 20} MiB"
        lines.append(f"{algorithm:12}{''.join(cells)}{memory:>14}  {why_not}".rstrip())
    where = "two threads of the machine that was measured"
    if device == "cuda":
        where = "an H200 and arrays of torch or CuPy, by whose BLAS and FFT are im2col and fft"
    return "\n".join([*lines, f"* is taken; times are estimates for {where}"])


# the amounts --------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """What the cost of a product depends on: those of a convolution, or of one phase of its input gradient."""

    N: int
    C: int
    K: int
    G: int
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    reach: tuple[int, ...]  # how much of the padded input is read along each axis
    stride: tuple[int, ...]
    step: tuple[int, ...]
    lanes: int  # numbers in a vector register of the machine that was measured; 1 without vector code
    multiply_adds: int  # those of the sum as it is written
    share: float  # how much of the work one of two threads does: all of it where it is too little to share


#: Multiply-adds that are not shared.
LITTLE = 1 << 17


def lanes_of(dtype: np.dtype) -> int:
    """The ``lanes`` of ``Sizes``."""
    return 64 // dtype.itemsize if dtype.kind == "f" else 1


def sizes_of(product: str, algorithm: str, g: ConvGeometry, dtype: np.dtype) -> tuple[Sizes, int]:
    """The sizes of the convolution that a product is, and how often it is done.

    The input gradient is one for each phase of the stride, from the output to every stride-th pixel with every
    ``m``-th tap; the phases are nearly alike. By ``im2col`` it is the same steps as forward, backwards.
    """
    rows, times = g.axis_rows, 1
    if product != "grad_input" or algorithm == "im2col":
        return _from_rows(g.N, g.C, g.K, g.groups, rows, dtype), times
    if algorithm == "winograd":  # a tile holds all phases
        rows = tuple((out, kernel, -(-size // stride), 0, stride, step) for size, kernel, out, _, stride, step in rows)
        return _from_rows(g.N, g.K, g.C, g.groups, rows, dtype), times
    phase = []
    for size, kernel, out, _, stride, step in rows:
        m = stride // gcd(stride, step)
        times *= min(m, kernel, size)
        phase.append((out, -(-kernel // m), -(-size // stride), 0, 1, abs(step) * m // stride))
    return _from_rows(g.N, g.K, g.C, g.groups, phase, dtype), times


def _from_rows(N: int, C: int, K: int, G: int, rows: Sequence[tuple[int, ...]], dtype: np.dtype) -> Sizes:
    kernel, out, stride = (tuple(max(row[i], 1) for row in rows) for i in (1, 2, 4))  # nothing counts as one pixel
    step = tuple(abs(row[5]) for row in rows)
    reach = tuple((o - 1) * s + (k - 1) * t + 1 for k, o, s, t in zip(kernel, out, stride, step, strict=True))
    work = N * K * prod(out) * C // G * prod(kernel)
    share = 1.0 if work < LITTLE else 0.5
    return Sizes(N, C, K, G, kernel, out, reach, stride, step, lanes_of(dtype), work, share)


def _up(n: int, multiple: int) -> int:
    """``n`` filled up to whole tiles."""
    return -(-n // multiple) * multiple


def _pixels(s: Sizes) -> int:
    """Outputs, those of an image filled up to whole vectors."""
    return s.N * prod(s.out[:-2]) * _up(prod(s.out[-2:]), s.lanes if s.lanes > 1 else 16)


def _gathered(s: Sizes) -> tuple[float, ...]:
    """Values gathered into lines, those of them one by one, and rows of lines begun; a pixel by itself is not."""
    pixels = s.N * s.C * prod(s.reach) * (prod(s.kernel) * prod(s.stride) > 1)
    return s.share * pixels, s.share * pixels * (s.stride[-1] > 2), s.share * pixels / s.reach[-1]


def _implicit(s: Sizes) -> tuple[float, ...]:
    Q, P = s.C // s.G * prod(s.kernel), _pixels(s)
    gathered, singly, begun = _gathered(s)
    many = s.K // s.G >= 40
    apart = many and 1 < s.kernel[-1] <= 8 and s.out[-1] % s.lanes == 0 and s.lanes > 1  # a line for each tap
    return (
        1,
        s.share * s.K * Q * P,  # multiply-adds of whole tiles
        gathered * (s.kernel[-1] if apart else 1),
        singly,
        begun,
        s.share * s.G * Q * P * (many and not apart),  # values copied into panels
        s.share * s.K * P * (1 + Q // 576),  # values added to the output
        s.share * s.K * P / s.out[-1],  # rows of tiles begun
        s.share * s.K * Q,  # weights put in order
        s.share * s.N * s.G,  # products begun
    )


def _direct(s: Sizes) -> tuple[float, ...]:
    Cg, pixels = s.C // s.G, prod(s.reach)
    if s.lanes == 1:
        return (
            1,
            s.share * s.multiply_adds * (s.stride[-1] == 1),
            s.share * s.multiply_adds * (s.stride[-1] > 1),
            s.share * s.multiply_adds / s.out[-1],  # taps begun, row by row
            s.K * Cg * prod(s.kernel),  # weights
            0, 0, 0,
        )
    if len(s.out) == 1:  # the rows of a tile follow each other
        rows, columns, high, units = 7, _up(s.out[0], 7 * s.lanes) // 7, -(-s.kernel[0] // s.lanes), Cg
        taps = s.lanes
    else:
        rows, columns, high = _up(s.out[-2], 7), _up(s.out[-1], s.lanes), s.kernel[-2]
        units, taps = Cg * prod(s.kernel[:-2]), s.kernel[-1]
    tiles = s.share * s.N * s.K * prod(s.out[:-2]) * (rows // 7) * columns / s.lanes
    stacks = -(-high // 5)
    return (
        1,
        tiles * 7 * s.lanes * Cg * prod(s.kernel),  # multiply-adds of whole tiles
        tiles * units * (high + 6 * stacks) * taps,  # lines of pixels loaded
        tiles * units * stacks,  # stacks of kernel rows begun
        tiles,
        s.share * s.N * s.C * pixels,  # pixels read or copied
        s.share * s.N * s.C * pixels * (s.stride[-1] > 1),  # pixels gathered one by one
        s.K * Cg * prod(s.kernel),  # weights put in order
    )


def _im2col(s: Sizes) -> tuple[float, ...]:
    entries = s.N * s.C * prod(s.kernel) * prod(s.out)
    return (
        1,
        entries,  # values stored
        entries / s.out[-1],  # runs begun
        s.multiply_adds,
        s.N * s.K * prod(s.out),  # values of the output
        s.N * s.K * s.C // s.G * prod(s.kernel),  # weights read
        s.N * s.G,  # products called
    )


def _winograd(s: Sizes) -> tuple[float, ...]:
    tiles, places = s.N, 36 if s.stride[0] == 1 else 81
    for a in range(2):
        tiles *= s.step[a] * -(-s.out[a] // (4 * s.step[a]))
    return (
        1,
        s.share * places * s.G * _up(s.K // s.G, s.lanes) * (s.C // s.G) * _up(tiles, 2),  # multiply-adds
        s.share * 36 * s.C * tiles,  # values of transformed tiles; those of odd pixels are there
        s.share * 36 * s.K * tiles,
        s.share * 36 * s.K * s.C // s.G,  # values of transformed kernels
    )


def _fft(s: Sizes) -> tuple[float, ...]:
    reach, pairs = [(k - 1) * t + 1 for k, t in zip(s.kernel, s.step, strict=True)], s.K * s.C // s.G
    best: tuple[float, ...] = ()
    for room in (1, 2, 4, 8, 16, 1 << 40):  # blocks so much longer than the kernel; the last is one block
        length = [min(room * 2 * r, n) for r, n in zip(reach, s.reach, strict=True)]
        blocks = s.N * prod(
            -(-o * step // max(n - r + 1, 1)) for o, step, n, r in zip(s.out, s.stride, length, reach, strict=True)
        )
        F = prod(length)
        if best and F > 1 << 18:
            break
        passes = log2(F + 1) + 12 * len(length)
        amounts = (
            1,
            blocks * s.C * F * passes,  # transforms of the input
            blocks * s.K * F * passes,  # and of the result
            pairs * F * passes,  # and of the kernel
            blocks * pairs * F,  # products
            blocks * (s.C + s.K) + pairs,  # transforms begun
            blocks * pairs * F * (pairs * F > 1 << 16),  # products with kernels that no cache near a core holds
        )
        if not best or sum(amounts[1:4]) < sum(best[1:4]):
            best = amounts
    return best


AMOUNTS: dict[str, Callable[[Sizes], tuple[float, ...]]] = {
    "im2col": _im2col, "implicit": _implicit, "direct": _direct, "winograd": _winograd, "fft": _fft,
}


def _implicit_grad_weight(s: Sizes) -> tuple[float, ...]:
    Q, P = s.C // s.G * prod(s.kernel), s.N * prod(s.out)
    return (
        1,
        s.share * s.G * _up(s.K // s.G, s.lanes) * Q * P,  # multiply-adds of whole tiles
        *_gathered(s),
        s.share * s.K * P,  # values of dY turned
        s.share * s.K * Q * (1 + P // 2048),  # sums
        s.share * s.N * s.G,  # products begun
    )


def _direct_grad_weight(s: Sizes) -> tuple[float, ...]:
    Cg, taps = s.C // s.G, prod(s.kernel)
    columns = _up(s.out[-1], s.lanes)
    return (
        1,
        s.share * s.N * s.K * prod(s.out[:-1]) * columns * Cg * taps,  # multiply-adds of whole vectors
        s.share * s.N * s.K * Cg * prod(s.reach),  # pixels read or copied
        s.share * s.N * s.K * Cg * prod(s.reach) * (s.stride[-1] > 1),
        s.share * s.N * s.K * Cg * prod(s.reach[:-1]),  # rows begun
        s.K * Cg * taps,
    )


def _winograd_grad_weight(s: Sizes) -> tuple[float, ...]:
    tiles, Cg, Kg = s.N * -(-s.out[0] // 4) * -(-s.out[-1] // 4), s.C // s.G, s.K // s.G
    wide = 4 * s.lanes  # channels of a block of kernels, for which all tiles are transformed
    return (
        1,
        s.share * 36 * s.G * _up(Kg, 2) * _up(Cg, s.lanes) * tiles,  # multiply-adds
        s.share * 36 * s.G * tiles * (_up(Kg, s.lanes) * -(-Cg // wide) + _up(Cg, s.lanes) * -(-Kg // wide)),
        s.share * 36 * s.K * _up(Cg, s.lanes) * min(8, max(1, tiles // 32)),  # sums
    )


GRAD_WEIGHT_AMOUNTS: dict[str, Callable[[Sizes], tuple[float, ...]]] = {
    "im2col": _im2col, "implicit": _implicit_grad_weight, "direct": _direct_grad_weight,
    "winograd": _winograd_grad_weight, "fft": _fft,
}
