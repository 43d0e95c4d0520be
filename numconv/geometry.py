"""Every size, padding and offset of a convolution, and every error a shape can cause. No arrays, no numba."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from math import copysign, gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ._indexing import FAR, extent, first_tap, largest_index, output_size
from ._objects import shown
from .arguments import (
    BOUNDARIES,
    as_flag,
    as_int,
    as_number,
    as_padding,
    as_shape,
    frozen,
    mode_padding,
    one_of,
    per_axis,
    spatial_size,
)

if TYPE_CHECKING:
    import numpy as np


class Phase(NamedTuple):
    """One phase of the input gradient: a stride-1 correlation of ``dY`` with every ``m``-th tap.

    The pixels ``place`` of the input meet the taps ``taps`` of the kernel and no others; ``axes`` is the table of
    that smaller convolution, which runs from the output to the input.
    """

    place: tuple[slice, ...]
    taps: tuple[slice, ...]
    axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ConvGeometry:
    """The shape of one convolution: immutable, hashable, made and cached by ``conv_geometry``.

    ``N``, ``C``, ``K`` are 1 for a plain array; ``size``, ``kernel``, ``out`` are the spatial shapes of input, kernel
    and output, ``padding`` a ``(lo, hi)`` pair for each axis.
    """

    plain: bool
    batched: bool
    N: int
    C: int
    K: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    boundary: str
    fill_value: complex
    flip: bool
    #: 0.0 and -0.0 are equal numbers, but not the same constant: whether the parts of ``fill_value`` have a minus.
    signs: tuple[bool, bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signs", signs_of(self.fill_value))

    # shapes ---------------------------------------------------------------------------------------------------------

    @property
    def d(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    def _around(self, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        if self.plain:
            return spatial
        return (self.N, channels, *spatial) if self.batched else (channels, *spatial)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x`` as the caller sees it."""
        return self._around(self.C, self.size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of ``y`` as the caller sees it."""
        return self._around(self.K, self.out)

    @cached_property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of ``w`` as the caller sees it."""
        return self.kernel if self.plain else (self.K, self.C // self.groups, *self.kernel)

    @property
    def cols_shape(self) -> tuple[int, ...]:
        """Shape of ``X_conv``: ``(C * prod k, prod out)``, with the batch in front where there is one."""
        cols = (self.C * prod(self.kernel), prod(self.out))
        return (self.N, *cols) if self.batched else cols

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of ``W_conv``: ``(K * prod out, C * prod in)``; a batch is not part of it."""
        return self.K * prod(self.out), self.C * prod(self.size)

    # what kernels receive -------------------------------------------------------------------------------------------

    @cached_property
    def axis_rows(self) -> tuple[tuple[int, ...], ...]:
        """The table of axes as tuples: ``size, kernel, out, start, stride, step`` for each axis.

        A kernel that is turned is read from its last tap backwards, so ``step`` is minus the dilation.
        """
        rows = []
        for n, k, o, s, dil, (lo, _) in zip(
            self.size, self.kernel, self.out, self.stride, self.dilation, self.padding, strict=True
        ):
            start, step = ((k - 1) * dil - lo, -dil) if self.flip else (-lo, dil)
            rows.append((n, k, o, start, s, step))
        return tuple(rows)

    @cached_property
    def axes(self) -> np.ndarray:
        """The table of axes as an ``int64`` array of shape ``(d, 6)``, columns as in ``_indexing``."""
        return axes_table(self.axis_rows)

    @cached_property
    def boundary_code(self) -> int:
        """The boundary as kernels know it."""
        return BOUNDARIES.index(self.boundary)

    # related geometries ---------------------------------------------------------------------------------------------

    @property
    def padded(self) -> ConvGeometry:
        """The same convolution over an input that already holds its padding."""
        size = tuple(n + lo + hi for n, (lo, hi) in zip(self.size, self.padding, strict=True))
        return self._replace(size=size, padding=((0, 0),) * self.d, boundary="constant", fill_value=0)

    def _replace(self, **changes: Any) -> ConvGeometry:
        names = (name for name, item in self.__dataclass_fields__.items() if item.init)
        return ConvGeometry(**{name: changes.get(name, getattr(self, name)) for name in names})

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The input gradient under zero padding, as stride-1 correlations of ``dY``.

        Pixels ``phi, phi + stride, …`` of the input meet the taps ``t0, t0 + m, …`` only, with
        ``m = stride / gcd(stride, dilation)``: ``position`` solved for ``o`` is again of the form
        ``start + i * 1 + t * step``. Pixels that no tap meets are in no phase.
        """
        per_axis = [list(_axis_phases(*row)) for row in self.axis_rows]
        return tuple(Phase(*(tuple(part) for part in zip(*axes, strict=True))) for axes in product(*per_axis))


def _axis_phases(
    size: int, kernel: int, out: int, start: int, stride: int, step: int
) -> Iterator[tuple[slice, slice, tuple[int, ...]]]:
    g = gcd(stride, step)
    m = stride // g
    for phi in range(min(stride, size)):
        t0 = first_tap(phi, kernel, start, stride, step)
        if t0 < 0:
            continue
        taps = len(range(t0, kernel, m))
        pixels = len(range(phi, size, stride))
        row = (out, taps, pixels, (phi - start - t0 * step) // stride, 1, -step // g)
        yield slice(phi, None, stride), slice(t0, None, m), row


def axes_table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """A table of axes as the read-only ``int64`` array that kernels take."""
    import numpy as np

    table = np.array(rows, dtype=np.int64).reshape(len(rows), 6)
    table.setflags(write=False)
    return table


#: Spatial axes at the most: NumPy's iterators have 32, and beside the spatial ones are a batch, groups and channels.
MOST = 29


# making geometries --------------------------------------------------------------------------------------------------


def conv_geometry(
    input_shape: Any,
    kernel_shape: Any,
    *,
    plain: bool = False,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    boundary: Any = "constant",
    fill_value: Any = 0,
    flip: bool = False,
    names: tuple[str, str] = ("x", "w"),
) -> ConvGeometry:
    """The geometry of a convolution of ``input_shape`` with ``kernel_shape``; every shape error is raised here.

    Plain: ``(*in)`` and ``(*k)``. Channelled: ``(N, C, *in)`` or ``(C, *in)`` and ``(K, C/groups, *k)``. Equal
    arguments give the same, cached object. ``names`` says what the caller calls the two arrays.
    """
    fill_value = as_number("fill_value", fill_value)
    return _conv_geometry(
        frozen(input_shape, names[0]), frozen(kernel_shape, names[1]), plain, frozen(stride, "stride"),
        frozen(padding, "padding"), frozen(dilation, "dilation"), frozen(groups, "groups"),
        frozen(boundary, "boundary"), fill_value, signs_of(fill_value), as_flag("flip", flip), names,
    )


def signs_of(number: Any) -> tuple[bool, bool]:
    """Whether the parts of a number have a minus, which 0.0 may have too."""
    if type(number) is int:
        return number < 0, False
    whole = complex(number)
    return copysign(1, whole.real) < 0, copysign(1, whole.imag) < 0


@lru_cache(maxsize=1024, typed=True)
def _conv_geometry(
    input_shape: Any, kernel_shape: Any, plain: bool, stride: Any, padding: Any, dilation: Any,
    groups: Any, boundary: Any, fill_value: Any, signs: tuple[bool, bool], flip: bool, names: tuple[str, str],
) -> ConvGeometry:
    x_name, w_name = names
    x_shape, w_shape = as_shape(f"{x_name}.shape", input_shape), as_shape(f"{w_name}.shape", kernel_shape)
    groups = as_int("groups", groups, 1)
    d = len(w_shape) if plain else len(w_shape) - 2
    if d < 1:
        need = "(*k) with at least one axis" if plain else "(K, C/groups, *k) with at least one spatial axis"
        raise ValueError(f"{w_name} must have the shape {need}, got {w_shape}")
    if d > MOST:
        raise ValueError(f"{w_name} must have at most {MOST} spatial axes, got {d}")
    if plain:
        if len(x_shape) != d:
            raise ValueError(f"{x_name} and {w_name} must have as many axes, got shapes {x_shape} and {w_shape}")
        if groups != 1:
            raise ValueError(f"groups must be 1 for plain arrays, got {groups}")
        N = C = K = 1
        size, kernel, batched = x_shape, w_shape, False
    else:
        if len(x_shape) not in (d + 1, d + 2):
            raise ValueError(
                f"{x_name} must have {d + 2} axes (N, C, *in) or {d + 1} axes (C, *in) "
                f"for {w_name} of shape {w_shape}, got shape {x_shape}"
            )
        batched = len(x_shape) == d + 2
        N, C, size = (x_shape[0] if batched else 1), x_shape[-d - 1], x_shape[-d:]
        K, kernel = w_shape[0], w_shape[2:]
        if C % groups or K % groups:
            raise ValueError(
                f"groups must divide the channels of {x_name} (C={C}) and of {w_name} (K={K}), got groups={groups}"
            )
        if w_shape[1] * groups != C:
            raise ValueError(
                f"{w_name} must have shape (K, C/groups, *k) with C/groups = {C // groups}, "
                f"got {w_shape} for C={C}, groups={groups}"
            )
    if min(kernel) < 1:
        raise ValueError(f"every axis of the kernel must have at least one value, got {w_name}.shape {w_shape}")
    stride, dilation = per_axis("stride", stride, d, 1), per_axis("dilation", dilation, d, 1)
    pairs = as_padding(padding, size, kernel, stride, dilation)
    boundary = one_of("boundary", boundary, BOUNDARIES)
    if boundary != "constant" and fill_value != 0:
        raise ValueError(
            f"fill_value is only for boundary='constant', got {shown(fill_value)} with boundary={boundary!r}"
        )
    if largest_index(N, C, K, groups, size, kernel, stride, dilation, *zip(*pairs, strict=True)) >= FAR:
        raise ValueError(
            f"stride, dilation and padding must keep all positions and sizes, and products of these, below 2**60, got "
            f"stride={stride}, dilation={dilation}, padding={pairs} for {x_name} of shape {x_shape} and {w_name} of "
            f"shape {w_shape}"
        )
    out = tuple(
        output_size(n, k, s, dil, lo, hi)
        for n, k, s, dil, (lo, hi) in zip(size, kernel, stride, dilation, pairs, strict=True)
    )
    if min(out) < 1:
        raise ValueError(
            f"the output would be empty: {x_name} of spatial shape {size} with padding {pairs} is smaller than "
            f"{w_name} of spatial shape {kernel} with dilation {dilation}"
        )
    if boundary != "constant" and any(n == 0 and lo + hi for n, (lo, hi) in zip(size, pairs, strict=True)):
        raise ValueError(f"boundary={boundary!r} cannot pad an axis without pixels, got spatial shape {size}")
    return ConvGeometry(
        plain, batched, N, C, K, groups, size, kernel, out, stride, dilation, pairs, boundary, fill_value, flip
    )


def plain_geometry(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], mode: str, *, dilation: Any, **rest: Any
) -> ConvGeometry:
    """The geometry of SciPy's modes. Nothing has no convolution, as NumPy says too."""
    x_name, w_name = rest.get("names", ("x", "w"))
    size, kernel = as_shape(x_name, input_shape), as_shape(w_name, kernel_shape, 1)
    if 0 in size:
        raise ValueError(f"{x_name} must have at least one pixel along every axis that is convolved, got {size}")
    dilation = per_axis("dilation", dilation, len(kernel), 1)
    padding = mode_padding(mode, kernel, dilation)
    return conv_geometry(size, kernel, plain=True, padding=padding, dilation=dilation, **rest)


def window_geometry(input_shape: Any, kernel_size: Any, *, name: str = "x", **arguments: Any) -> ConvGeometry:
    """The geometry of ``im2col``: windows of ``kernel_size`` over ``(*in)``, ``(C, *in)`` or ``(N, C, *in)``.

    The kernel's output channels play no part; the geometry has ``K = groups = 1``.
    """
    shape = as_shape(f"{name}.shape" if name == "x" else name, input_shape)
    kernel = spatial_size("kernel_size", kernel_size, len(shape))
    extra = len(shape) - len(kernel)
    if not kernel or extra not in (0, 1, 2):
        raise ValueError(
            f"kernel_size must have one int for each spatial axis of {name}: {name} is (*in), (C, *in) or (N, C, *in) "
            f"with shape {shape}, got kernel_size {kernel}"
        )
    if extra == 0:
        return conv_geometry(shape, kernel, plain=True, names=(name, "kernel_size"), **arguments)
    return conv_geometry(shape, (1, shape[-len(kernel) - 1], *kernel), names=(name, "kernel_size"), **arguments)


def transpose_geometry(
    input_shape: Any, kernel_shape: Any, *, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: Any,
    **arguments: Any,
) -> ConvGeometry:
    """The geometry whose input gradient ``conv_transpose`` of ``(N, C, *in)`` with ``(C, K/groups, *k)`` is.

    ``out = (in - 1) * stride - lo - hi + dilation * (k - 1) + output_padding + 1`` (torch); for ``"same"`` it is
    ``in * stride``.
    """
    x_shape, w_shape = as_shape("x.shape", input_shape), as_shape("w.shape", kernel_shape)
    groups = as_int("groups", groups, 1)
    d = len(w_shape) - 2
    if d < 1:
        raise ValueError(f"w must have the shape (C, K/groups, *k) with at least one spatial axis, got {w_shape}")
    if len(x_shape) not in (d + 1, d + 2):
        raise ValueError(
            f"x must have {d + 2} axes (N, C, *in) or {d + 1} axes (C, *in) "
            f"for w of shape {w_shape}, got shape {x_shape}"
        )
    C, size, kernel = x_shape[-d - 1], x_shape[-d:], w_shape[2:]
    if min(size) < 1:
        raise ValueError(f"x must have at least one pixel along every axis, got shape {x_shape}")
    if w_shape[0] != C or C % groups:
        raise ValueError(
            f"w must have shape (C, K/groups, *k) with C={C} a multiple of groups={groups}, got {w_shape}"
        )
    strides, dilations = per_axis("stride", stride, d, 1), per_axis("dilation", dilation, d, 1)
    extra = per_axis("output_padding", output_padding, d, 0)
    for a in range(d):
        if extra[a] >= max(strides[a], dilations[a]):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation on every axis, got {extra[a]} on axis {a} "
                f"with stride {strides[a]} and dilation {dilations[a]}"
            )
    same = isinstance(padding, str) and padding in ("same", "same_lower")
    if same and any(extra):
        raise ValueError(
            f"output_padding must be 0 with padding={padding!r}, which gives in * stride outputs, "
            f"got {shown(output_padding)}"
        )
    target = [n * s for n, s in zip(size, strides, strict=True)]
    pairs = as_padding(padding, target, kernel, strides, dilations)
    out = tuple(
        t if same else (n - 1) * s - lo - hi + extent(k, dil) + e
        for t, n, s, (lo, hi), k, dil, e in zip(target, size, strides, pairs, kernel, dilations, extra, strict=True)
    )
    if min(out) < 1:
        raise ValueError(
            f"the output would be empty: x of spatial shape {size} with stride {strides} and kernel {kernel} leaves "
            f"{out} after padding {pairs}"
        )
    if max(out) >= FAR:
        raise ValueError(
            f"stride, dilation and padding must keep all sizes below 2**60, got stride={strides}, "
            f"dilation={dilations}, padding={pairs} for x of shape {x_shape} and w of shape {w_shape}"
        )
    geometry = conv_geometry(
        (*x_shape[: -d - 1], w_shape[1] * groups, *out), w_shape, stride=strides, padding=pairs, dilation=dilations,
        groups=groups, **arguments,
    )
    # An output padding as large as the stride (allowed below the dilation) makes room for more outputs than ``x`` has.
    return geometry if geometry.out == size else geometry._replace(out=size)
