"""``conv``, its gradients and ``convolve``: from the types of a call to the lines that compute it."""

from __future__ import annotations

from typing import Any

from numba.core.errors import TypingError

from ..arguments import MODE_PADDING, PRECISIONS
from ..cpu.addresses import through
from ..cpu.callers import as_int, formed, spatial
from ..cpu.compiled import products
from .casting import boundary_of, computing, conjugator
from .reading import ALGORITHMS, array, flag, ints, one_int, padding_of, plain, refuse, shape_reader, word

forward, product = through(products.forward), through(products.convolve)
grad_input, grad_weight = through(products.grad_input), through(products.grad_weight)


def geometry_of(d: int, stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Any, int]:
    """Look at these arguments; what gives padding as ints, and its code."""
    ints("stride", stride, d)
    ints("dilation", dilation, d)
    one_int("groups", groups)
    return padding_of(padding, d)


def conv(
    x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", precision="ieee", dtype=None, out=None,
):
    """``numconv.conv`` of arguments of these types."""
    refuse(out=out)
    auto = word("algorithm", algorithm, ALGORITHMS) == "auto"
    word("precision", precision, PRECISIONS)
    array("w", w)
    d = w.ndim - 2
    if d < 1:
        raise TypingError(f"w must have the shape (K, C/groups, *k) with at least one spatial axis, got {w.ndim} axes")
    array("x", x, d + 2, d + 1)
    biased = plain(bias) is not None
    computed, (read_x, read_w, read_bias), give = computing(
        dtype, x=x, w=w, bias=array("bias", bias, 1) if biased else None
    )
    pads, code = geometry_of(d, stride, padding, dilation, groups)
    edge_of, read_fill = boundary_of(boundary, fill_value, computed)
    read_flip, axes, batched, channels = flag("flip", flip), x.ndim, x.ndim == d + 2, x.ndim - d - 1

    def conv(
        x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", precision="ieee", dtype=None, out=None,
    ):
        y, shape = forward((
            read_x(x), x.shape[0] if batched else 1, x.shape[channels], read_w(w), w.shape[0], w.shape[1],
            read_bias(bias), biased, spatial((x.shape, w.shape, stride, dilation), pads(padding), d), code,
            as_int(groups), edge_of(fill_value), read_fill(fill_value), read_flip(flip), auto,
        ))
        return formed(give(y), shape, axes)

    return conv


def gradient(name: str, a: Any, dy_name: str, dy: Any, out: Any, d: int = 0) -> int:
    """Look at the arrays of a gradient; returns the number of spatial axes."""
    refuse(out=out)
    array(name, a)
    if not d:
        d = a.ndim - 2
        if d < 1:
            raise TypingError(f"{name} must be (K, C/groups, *k) with at least one spatial axis, got {a.ndim} axes")
        array(dy_name, dy, d + 2, d + 1)
    else:
        array(name, a, d + 2, d + 1)
        array(dy_name, dy, a.ndim)
    return d


def conv_grad_input(
    input_shape, w, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", precision="ieee", dtype=None, out=None,
):
    """``numconv.conv_grad_input`` of arguments of these types."""
    d = gradient("w", w, "dy", dy, out)
    auto = word("algorithm", algorithm, ALGORITHMS) == "auto"
    word("precision", precision, PRECISIONS)
    if shape_reader("input_shape", input_shape) != dy.ndim:
        raise TypingError(f"input_shape must have {dy.ndim} ints as dy has axes, got {len(input_shape)}")
    computed, (read_w, read_dy), give = computing(dtype, w=w, dy=dy)
    conjugate, read_flip = conjugator(computed), flag("flip", flip)
    pads, code = geometry_of(d, stride, padding, dilation, groups)
    edge_of, _ = boundary_of(boundary, fill_value, computed)
    axes, batched, channels = dy.ndim, dy.ndim == d + 2, dy.ndim - d - 1

    def conv_grad_input(
        input_shape, w, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", precision="ieee", dtype=None, out=None,
    ):
        dx, shape = grad_input((
            as_int(input_shape[0]) if batched else 1, as_int(input_shape[channels]), conjugate(read_w(w)), w.shape[0],
            w.shape[1], read_dy(dy), dy.shape[0] if batched else 1, dy.shape[channels],
            spatial((input_shape, w.shape, stride, dilation, dy.shape), pads(padding), d), code,
            as_int(groups), edge_of(fill_value), read_flip(flip), auto,
        ))
        return formed(give(dx), shape, axes)

    return conv_grad_input


def conv_grad_weight(
    x, kernel_shape, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", precision="ieee", dtype=None, out=None,
):
    """``numconv.conv_grad_weight`` of arguments of these types."""
    array("x", x)
    axes = shape_reader("kernel_shape", kernel_shape)
    d = axes - 2
    if d < 1:
        raise TypingError(f"kernel_shape must be (K, C/groups, *k) with at least one spatial axis, got {axes} ints")
    gradient("x", x, "dy", dy, out, d)
    auto = word("algorithm", algorithm, ALGORITHMS) == "auto"
    word("precision", precision, PRECISIONS)
    computed, (read_x, read_dy), give = computing(dtype, x=x, dy=dy)
    read_flip = flag("flip", flip)
    pads, code = geometry_of(d, stride, padding, dilation, groups)
    edge_of, read_fill = boundary_of(boundary, fill_value, computed)
    batched, channels = x.ndim == d + 2, x.ndim - d - 1

    def conv_grad_weight(
        x, kernel_shape, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", precision="ieee", dtype=None, out=None,
    ):
        dw, shape = grad_weight((
            read_x(x), x.shape[0] if batched else 1, x.shape[channels], as_int(kernel_shape[0]),
            as_int(kernel_shape[1]), read_dy(dy), dy.shape[0] if batched else 1, dy.shape[channels],
            spatial((x.shape, kernel_shape, stride, dilation, dy.shape), pads(padding), d), code,
            as_int(groups), edge_of(fill_value), read_fill(fill_value), read_flip(flip), auto,
        ))
        return formed(give(dw), shape, axes)

    return conv_grad_weight


def convolve(
    x, w, mode="full", boundary="constant", fill_value=0, stride=1, dilation=1, axes=None, algorithm="auto",
    dtype=None, out=None,
):
    """``numconv.convolve`` of arguments of these types."""
    refuse(axes=axes, out=out)
    auto = word("algorithm", algorithm, ALGORITHMS) == "auto"
    array("x", x)
    d = x.ndim
    array("w", w, d, needs="as many axes as x,")
    if d < 1:
        raise TypingError("x must have at least one axis, got 0")
    computed, (read_x, read_w), give = computing(dtype, x=x, w=w)
    geometry_of(d, stride, 0, dilation, 1)
    edge_of, read_fill = boundary_of(boundary, fill_value, computed)
    code = MODE_PADDING[word("mode", mode, tuple(MODE_PADDING))]

    def convolve(
        x, w, mode="full", boundary="constant", fill_value=0, stride=1, dilation=1, axes=None, algorithm="auto",
        dtype=None, out=None,
    ):
        y, shape = product((
            read_x(x), read_w(w), spatial((x.shape, w.shape, stride, dilation), 0, d), code,
            edge_of(fill_value), read_fill(fill_value), auto,
        ))
        return formed(give(y), shape, d)

    return convolve
