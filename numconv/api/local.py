"""``conv_local``, its gradients and its matrix: one kernel for each output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from .. import arrays, dispatch
from ..arguments import Boundary, Ints, Padding, as_int, as_shape, spatial_size
from ..geometry import ConvGeometry, conv_geometry


def conv_local(
    x: Any, w: Any, bias: Any = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False, dtype: Any = None,
    out: Any = None,
) -> Any:
    """Convolve with a kernel of its own for each output: locally connected layers, varying point-spread functions.

    ``y[n,k,o] = bias[k] + sum over c, t of w[o,k,c,t] x[n, c, o * stride - lo + t * dilation]``. Where all kernels
    ``w[o]`` are equal this is ``conv(x, w[o])``.

    Parameters
    ----------
    x : array (N, C, *in) or (*in)
        Channelled arrays have a batch axis here, so that they differ from plain ones.
    w : array (*out, K, C/groups, *k) or (*out, *k)
        ``w[o]`` is the kernel of output ``o``, in the form that ``conv`` takes.
    bias : array (K,), optional
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype, out
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.

    Returns
    -------
    array (N, K, *out) or (*out)
        Of ``dtype``, else ``numpy.result_type(x, w, bias)``, in which sums of small integers wrap.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    References
    ----------
    The order of axes is that of Torch's ``SpatialConvolutionLocal``, outputs before the kernel, as in
    ``jax.lax.conv_general_dilated_local`` and Keras' ``LocallyConnected2D``.

    Examples
    --------
    Each output of a signal takes another mean of two neighbours:

    >>> import numconv, numpy as np
    >>> w = np.array([[1, 0], [1, 1], [0, 1]])
    >>> numconv.conv_local(np.array([1, 10, 100, 1000]), w)
    array([   1,  110, 1000])
    """
    (x, w, bias, out), give = dispatch.read(x=x, w=w, bias=bias, out=out)
    g = _geometry(
        x.shape, w.shape, ("x", "w"), stride=stride, padding=padding, dilation=dilation, groups=groups,
        boundary=boundary, fill_value=fill_value, flip=flip,
    )
    (x, w, bias), dtype = arrays.summands(dtype, out, x=x, w=w, bias=bias)
    if bias is not None:
        arrays.check_shape("bias", bias, (g.K,))
    fill = arrays.as_fill(g.fill_value, arrays.computed_in(dtype))

    def compute(room: Any, x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
        target = y.reshape(g.N, g.K, *g.out)
        if not (y.size and w.size):
            target[...] = bias.reshape(g.K, *(1,) * g.d)
            return
        image, kernels = x.reshape(g.N, g.C, *g.size), w.reshape(_rows(g))
        room.forward(image, kernels, bias, g.axes, g.boundary_code, fill, target)

    inputs = [(x, x.shape), (w, w.shape), (bias, (g.K,))]
    return give(_computed(compute, inputs, g.output_shape, dtype, out))


def conv_local_grad_input(
    input_shape: Sequence[int], w: Any, dy: Any, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False, dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of ``conv_local`` to its input: the exact adjoint in ``x``, Hermitian for complex numbers.

    Parameters
    ----------
    input_shape : ints
        Shape of ``x``.
    w : array (*out, K, C/groups, *k) or (*out, *k)
    dy : array (N, K, *out) or (*out)
        Gradient to the output.
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype, out
        As for ``conv_local``.

    Returns
    -------
    array of ``input_shape``

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv_local``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> w = np.array([[1, 0], [1, 1], [0, 1]])
    >>> numconv.conv_local_grad_input((4,), w, np.array([1, 10, 100]))
    array([  1,  10,  10, 100])
    """
    (w, dy, out), give = dispatch.read(w=w, dy=dy, out=out)
    g = _geometry(
        as_shape("input_shape", input_shape), w.shape, ("input_shape", "w"), stride=stride, padding=padding,
        dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    )
    arrays.check_shape("dy", dy, g.output_shape)
    (w, dy), dtype = arrays.summands(dtype, out, w=w, dy=dy)

    def compute(room: Any, w: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
        if not (dy.size and w.size and dx.size):
            dx[...] = 0
            return
        gradient, kernels = dy.reshape(g.N, g.K, *g.out), w.reshape(_rows(g))
        room.grad_input(gradient, kernels, g, dx.reshape(g.N, g.C, *g.size))

    def beside(where: str, computed: np.dtype) -> int:
        return int(dispatch.backend(where, "peak").local_grad_input(g, computed))

    return give(_computed(compute, [(w, w.shape), (dy, dy.shape)], g.input_shape, dtype, out, beside))


def conv_local_grad_weight(
    x: Any, kernel_shape: Sequence[int], dy: Any, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False, dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of ``conv_local`` to its kernels: the exact adjoint in ``w``, Hermitian for complex numbers.

    Parameters
    ----------
    x : array (N, C, *in) or (*in)
    kernel_shape : ints
        Shape of ``w``, ``(*out, K, C/groups, *k)`` or ``(*out, *k)``.
    dy : array (N, K, *out) or (*out)
        Gradient to the output.
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype, out
        As for ``conv_local``.

    Returns
    -------
    array of ``kernel_shape``

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv_local``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.conv_local_grad_weight(np.array([1, 10, 100]), (2, 2), np.array([1, 2]))
    array([[  1,  10],
           [ 20, 200]])
    """
    (x, dy, out), give = dispatch.read(x=x, dy=dy, out=out)
    shape = as_shape("kernel_shape", kernel_shape)
    g = _geometry(
        x.shape, shape, ("x", "kernel_shape"), stride=stride, padding=padding, dilation=dilation, groups=groups,
        boundary=boundary, fill_value=fill_value, flip=flip,
    )
    arrays.check_shape("dy", dy, g.output_shape)
    (x, dy), dtype = arrays.summands(dtype, out, x=x, dy=dy)
    fill = arrays.as_fill(g.fill_value, arrays.computed_in(dtype))

    def compute(room: Any, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        if not (dy.size and dw.size):
            dw[...] = 0
            return
        image, gradient = x.reshape(g.N, g.C, *g.size), dy.reshape(g.N, g.K, *g.out)
        room.grad_weight(image, gradient, g.axes, g.boundary_code, fill, dw.reshape(_rows(g)))

    return give(_computed(compute, [(x, x.shape), (dy, dy.shape)], shape, dtype, out))


def kernel2row_local(
    w: Any, input_size: Ints, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    boundary: Boundary = "constant", flip: bool = False,
) -> Any:
    """The sparse matrix of ``conv_local``: row ``(k, o)`` is the kernel ``w[o]`` over the input at output ``o``.

    Parameters
    ----------
    w : array (*out, K, C/groups, *k) or (*out, *k)
    input_size : ints
        ``in``; an int for one axis.
    stride, padding, dilation, groups, boundary, flip
        As for ``conv_local``.

    Returns
    -------
    scipy.sparse.csr_array (prod out, prod in) or (K * prod out, C * prod in)
        With the structure of ``kernel2row``; of a ``w`` on a GPU what ``kernel2row`` gives there.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv_local``.

    Examples
    --------
    >>> import numconv
    >>> numconv.kernel2row_local([[1, 2], [3, 4], [5, 6]], 4).toarray()
    array([[1, 2, 0, 0],
           [0, 3, 4, 0],
           [0, 0, 5, 6]])
    """
    from .. import matrices

    (w,), _ = dispatch.read(w=w)
    size = spatial_size("input_size", input_size)
    d = len(size)
    if w.ndim not in (2 * d, 2 * d + 2):
        raise ValueError(
            f"w must be (*out, *k) with {2 * d} axes or (*out, K, C/groups, *k) with {2 * d + 2} for input_size "
            f"{size}, got shape {w.shape}"
        )
    channels = () if w.ndim == 2 * d else (1, w.shape[d + 1] * as_int("groups", groups, 1))
    g = _geometry(
        (*channels, *size), w.shape, ("input_size", "w"), stride=stride, padding=padding, dilation=dilation,
        groups=groups, boundary=boundary, flip=flip,
    )
    return matrices.local_matrix(w, g, dispatch.asked_for())


def _computed(
    compute: Callable[..., None], inputs: Sequence[tuple[np.ndarray | None, tuple[int, ...]]], shape: tuple[int, ...],
    dtype: np.dtype, out: np.ndarray | None, beside: Callable[[str, np.dtype], int] | None = None,
) -> np.ndarray:
    """``compute(room, *arrays, result)`` of inputs that are made ready, where they are or NumPy's are to go.

    ``inputs`` are arrays and their shapes; ``None`` stands for zeros. ``beside`` are bytes that it takes itself.
    """
    first: Any = inputs[0][0]
    device = dispatch.asked_for()
    where = dispatch.device_for(device, first)
    stored, room = arrays.stored_in(dtype, where), dispatch.backend(where, "local")
    run = dispatch.placed(device, first, partial(compute, room))

    def fill(target: np.ndarray) -> None:
        ready = [
            arrays.zeros_beside(first, need, stored) if array is None else arrays.as_summand(array, dtype, stored)
            for array, need in inputs
        ]
        run(*ready, target)

    given = [array for array, _ in inputs if array is not None]
    taken = arrays.copied(stored, *given) + (beside(where, stored) if beside else 0)
    return arrays.deliver(fill, shape, dtype, out, *given, computed=stored, beside=taken)


def _geometry(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], names: tuple[str, str], **arguments: Any
) -> ConvGeometry:
    """The geometry of one of the kernels, which all outputs share."""
    axes, (x_name, w_name) = len(input_shape), names
    plain = len(kernel_shape) == 2 * axes
    d = axes if plain else axes - 2
    if d < 1 or not (plain or len(kernel_shape) == 2 * d + 2):
        raise ValueError(
            f"{w_name} must be (*out, *k) for {x_name} (*in), or (*out, K, C/groups, *k) for {x_name} (N, C, *in); "
            f"got shapes {kernel_shape} and {input_shape}"
        )
    if plain and (groups := as_int("groups", arguments["groups"], 1)) != 1:
        raise ValueError(f"groups must be 1 for plain arrays, got {groups}")
    g = conv_geometry(input_shape, kernel_shape[d:], plain=plain, names=names, **arguments)
    if kernel_shape[:d] != g.out:
        raise ValueError(
            f"{w_name} must have a kernel for each of {g.out} outputs, so its shape must begin so; got {kernel_shape}"
        )
    return g


def _rows(g: ConvGeometry) -> tuple[int, int, int]:
    """The shape of all kernels, each output channel's weights in a row."""
    return prod(g.out), g.K, g.C // g.groups * prod(g.kernel)
