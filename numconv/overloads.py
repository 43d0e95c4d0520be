"""numconv's functions inside the caller's own ``@njit`` functions.

numba calls ``init`` before it compiles anything (entry point ``numba_extensions``). What stands here runs while the
caller's function is compiled: it reads the types of the arguments, and gives back the few lines that bring arrays to
``cpu.compiled`` and results back. Words must be literal strings, since types follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import extending, types
from numba.core.errors import NumbaValueError, TypingError
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype
from numba.np.unsafe import ndarray

from .arguments import BOUNDARIES, MODE_PADDING, PADDING_NAMES
from .arrays import computed_in, product_dtype

# numba adds the context to calls of these, which its types do not know
intrinsic: Any = extending.intrinsic
to_fixed_tuple: Any = ndarray.to_fixed_tuple

#: What ``algorithm=`` may be here.
ALGORITHMS = ("auto", "implicit")


def init() -> None:
    """Register everything, once."""
    from .cpu import words

    if not _registered:
        _registered.append(True)
        words.register()
        for register in _overloads:
            register()


_registered: list[bool] = []
_overloads: list[Callable[[], None]] = []


def compiled(room: str, name: str) -> Callable[[Any], Any]:
    """Like ``overload`` of a public function, at the time of ``init``."""

    def decorate(typed: Any) -> Any:
        def register() -> None:
            from importlib import import_module

            function = getattr(import_module(f"numconv.api.{room}"), name)
            overload(function, prefer_literal=True)(typed)

        _overloads.append(register)
        return typed

    return decorate


def launcher(name: str) -> Any:
    """A launcher of ``cpu.compiled`` as it is called here: with a tuple of arguments, by its address."""
    from .cpu import callers, compiled

    return callers.through(getattr(compiled, name))


# reading types ------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """What stands in the source or as a default where that is known, else the type."""
    if isinstance(value, types.Omitted):
        return value.value
    if isinstance(value, types.Literal):
        return value.literal_value
    if isinstance(value, types.NoneType):
        return None
    return value


def array(name: str, value: Any, *axes: int, needs: str = "") -> types.Array:
    """The type of an array argument with so many axes."""
    if not isinstance(value, types.Array):
        raise TypingError(f"{name} must be an array, got {value}")
    if axes and value.ndim not in axes:
        raise TypingError(f"{name} must have {needs or ' or '.join(map(str, axes))} axes, got {value.ndim}")
    return value


def dtypes(**arrays: types.Array) -> tuple[np.dtype, np.dtype]:
    """The dtype of a product, and the one in which it is computed."""
    for name, value in arrays.items():
        try:
            product_dtype(**{name: as_dtype(value.dtype)})
        except (TypeError, NotImplementedError) as error:
            raise TypingError(str(error)) from None
    dtype = product_dtype(**{name: as_dtype(value.dtype) for name, value in arrays.items()})
    return dtype, computed_in(dtype)


def word(name: str, value: Any, valid: Sequence[str]) -> str:
    """One of the valid words, which has to stand in the source."""
    value = plain(value)
    if not isinstance(value, str):
        raise TypingError(f"{name} must be a literal string, one of {', '.join(map(repr, valid))}, got {value}")
    if value not in valid:
        raise NumbaValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    return value


def refuse(**arguments: Any) -> None:
    """Arguments that there are outside compiled code only."""
    for name, value in arguments.items():
        if plain(value) is not None:
            raise TypingError(f"{name} is not for compiled code, got {plain(value)}")


def ints(name: str, value: Any, d: int) -> Any:
    """What reads an int, or one int for each axis, as an array of ``d``."""
    known = plain(value)
    if isinstance(known, int) and not isinstance(known, bool):
        return register_jitable(lambda given: np.full(d, known))
    if isinstance(known, types.Integer):
        return register_jitable(lambda given: np.full(d, np.int64(given)))
    if not is_tuple(known, types.Integer):
        raise TypingError(f"{name} must be an int or a tuple of {d} ints, got {known}")
    if len(known) != d:
        raise TypingError(f"{name} must be an int or {d} ints, one for each spatial axis, got {len(known)}")
    return register_jitable(lambda given: numbers(uniform(given)))


def is_tuple(value: Any, kind: Any) -> bool:
    """Whether this is the type of a tuple of such items."""
    return isinstance(value, types.BaseTuple) and all(isinstance(t, kind) for t in value)  # type: ignore[attr-defined]


@intrinsic
def uniform(typing_context, given):
    """A tuple of ints, or of pairs of them, all of one type."""
    item = types.UniTuple(types.int64, 2) if is_tuple(given, types.BaseTuple) else types.int64
    result = types.UniTuple(item, len(given))

    def codegen(context, builder, signature, values):
        return context.cast(builder, values[0], given, result)

    return result(given), codegen


@register_jitable
def numbers(given):
    """A tuple of ints as an array."""
    result = np.empty(len(given), np.int64)
    for a in range(len(given)):
        result[a] = given[a]
    return result


@register_jitable
def pairs(given):
    """A tuple of pairs as an array."""
    result = np.empty((len(given), 2), np.int64)
    for a in range(len(given)):
        result[a, 0], result[a, 1] = given[a]
    return result


def padding_of(value: Any, d: int) -> tuple[Any, int]:
    """What reads padding as pairs, and the code of a word (-1: none)."""
    known = plain(value)
    if isinstance(known, (str, types.UnicodeType)):
        code = PADDING_NAMES.index(word("padding", value, PADDING_NAMES))
        return register_jitable(lambda given: np.zeros((d, 2), np.int64)), code
    if is_tuple(known, types.BaseTuple):
        if len(known) != d or not all(len(pair) == 2 and is_tuple(pair, types.Integer) for pair in known):
            raise TypingError(f"padding must have one (lo, hi) pair of ints for each of {d} axes, got {known}")
        return register_jitable(lambda given: pairs(uniform(given))), -1
    both = ints("padding", value, d)
    return register_jitable(lambda given: np.repeat(both(given), 2).reshape((d, 2))), -1


def boundary_of(boundary: Any, fill_value: Any, dtype: np.dtype) -> tuple[int, Any]:
    """The code of the boundary, and what reads the constant as a number of ``dtype``."""
    name, fill = word("boundary", boundary, BOUNDARIES), plain(fill_value)
    if name != "constant" and not (isinstance(fill, (int, float, complex)) and fill == 0):
        raise TypingError(f"fill_value is only for boundary='constant', got {fill} with boundary={name!r}")
    number = dtype.type
    if isinstance(fill, types.Type):
        exact = dtype.kind in "fc" or isinstance(fill, (types.Integer, types.Boolean))
        if not isinstance(fill, (types.Number, types.Boolean)) or not exact or (
            isinstance(fill, types.Complex) and dtype.kind != "c"
        ):
            raise TypingError(f"fill_value must be a number that dtype {dtype} can hold, got {fill}")
        return BOUNDARIES.index(name), register_jitable(lambda given: number(given))
    from .arrays import as_fill

    try:
        constant = as_fill(fill, dtype)
    except ValueError as error:
        raise NumbaValueError(str(error)) from None
    return BOUNDARIES.index(name), register_jitable(lambda given: constant)


def reader(value: types.Array, dtype: np.dtype) -> Any:
    """What brings an array into the form of ``cpu.compiled``: flat, contiguous, of this dtype."""
    from .cpu.callers import as_input

    same = as_dtype(value.dtype) == dtype
    if same and value.layout == "C":
        return register_jitable(lambda given: as_input(given))
    if same:
        return register_jitable(lambda given: as_input(np.ascontiguousarray(given)))
    return register_jitable(lambda given: as_input(np.ascontiguousarray(given).astype(dtype)))


def giver(dtype: np.dtype, computed: np.dtype) -> Any:
    """What makes of the result what was promised."""
    if dtype == computed:
        return register_jitable(lambda result: result)
    if dtype.kind == "b":
        return register_jitable(lambda result: result != 0)
    return register_jitable(lambda result: result.astype(dtype))


# channelled arrays --------------------------------------------------------------------------------------------------


@register_jitable
def split(shape, d):
    """``N, C`` and the spatial shape of ``(N, C, *in)`` or ``(C, *in)``."""
    size = np.empty(d, np.int64)
    for a in range(d):
        size[a] = shape[len(shape) - d + a]
    return (shape[0] if len(shape) > d + 1 else 1), shape[len(shape) - d - 1], size


@register_jitable
def joined(N, K, out, batched):
    """A shape ``(N, K, *out)`` or ``(K, *out)`` as an array."""
    first = 1 if batched else 0
    shape = np.empty(out.size + 1 + first, np.int64)
    shape[0], shape[first] = N, K
    for a in range(out.size):
        shape[first + 1 + a] = out[a]
    return shape


def bias_reader(bias: Any, dtype: np.dtype) -> Any:
    """What reads a bias, or zeros."""
    if plain(bias) is None:
        return register_jitable(lambda given, K: np.zeros(K, dtype))
    read = reader(bias, dtype)
    return register_jitable(lambda given, K: read(given))


@compiled("layers", "conv")
def _conv(
    x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", out=None,
):
    forward = launcher("forward")
    refuse(out=out)
    word("algorithm", algorithm, ALGORITHMS)
    array("w", w)
    d = w.ndim - 2
    if d < 1:
        raise TypingError(f"w must have the shape (K, C/groups, *k) with at least one spatial axis, got {w.ndim} axes")
    array("x", x, d + 2, d + 1)
    arrays = {"x": x, "w": w}
    if plain(bias) is not None:
        arrays["bias"] = array("bias", bias, 1)
    dtype, computed = dtypes(**arrays)
    read_x, read_w, read_bias = reader(x, computed), reader(w, computed), bias_reader(bias, computed)
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, read_fill = boundary_of(boundary, fill_value, computed)
    axes, give, batched = x.ndim, giver(dtype, computed), x.ndim == d + 2
    one_int("groups", groups)

    def conv(
        x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", out=None,
    ):
        N, C, size = split(x.shape, d)
        y, shape = forward((
            read_x(x), N, C, size, read_w(w), numbers(w.shape), read_bias(bias, w.shape[0]), read_stride(stride),
            read_dilation(dilation), read_padding(padding), code, groups, edge, read_fill(fill_value), flip,
        ))
        return give(y).reshape(to_fixed_tuple(joined(N, w.shape[0], shape, batched), axes))

    return conv


def one_int(name: str, value: Any) -> None:
    """Refuse what is no int."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, types.Integer)):
        raise TypingError(f"{name} must be an int, got {value}")


def shape_reader(name: str, value: Any) -> int:
    """How many ints a shape has."""
    if not is_tuple(value, types.Integer):
        raise TypingError(f"{name} must be a tuple of ints, got {plain(value)}")
    return len(value)


@compiled("layers", "conv_grad_input")
def _conv_grad_input(
    input_shape, w, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", out=None,
):
    grad_input = launcher("grad_input")
    d = _gradient("w", w, "dy", dy, algorithm, out)
    if shape_reader("input_shape", input_shape) != dy.ndim:
        raise TypingError(f"input_shape must have {dy.ndim} ints as dy has axes, got {len(input_shape)}")
    dtype, computed = dtypes(w=w, dy=dy)
    read_w, read_dy, conjugate = reader(w, computed), reader(dy, computed), conjugator(computed)
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, _ = boundary_of(boundary, fill_value, computed)
    axes, give = dy.ndim, giver(dtype, computed)
    one_int("groups", groups)

    def conv_grad_input(
        input_shape, w, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", out=None,
    ):
        shape = numbers(uniform(input_shape))
        N, C, size = split(shape, d)
        M, K, pixels = split(dy.shape, d)
        dx = grad_input((
            N, C, size, conjugate(read_w(w)), numbers(w.shape), read_dy(dy), joined(M, K, pixels, True),
            read_stride(stride), read_dilation(dilation), read_padding(padding), code, groups, edge, flip,
        ))
        return give(dx).reshape(to_fixed_tuple(shape, axes))

    return conv_grad_input


@compiled("layers", "conv_grad_weight")
def _conv_grad_weight(
    x, kernel_shape, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
    algorithm="auto", out=None,
):
    grad_weight = launcher("grad_weight")
    array("x", x)
    axes = shape_reader("kernel_shape", kernel_shape)
    d = axes - 2
    if d < 1:
        raise TypingError(f"kernel_shape must be (K, C/groups, *k) with at least one spatial axis, got {axes} ints")
    _gradient("x", x, "dy", dy, algorithm, out, d)
    dtype, computed = dtypes(x=x, dy=dy)
    read_x, read_dy = reader(x, computed), reader(dy, computed)
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, read_fill = boundary_of(boundary, fill_value, computed)
    give = giver(dtype, computed)
    one_int("groups", groups)

    def conv_grad_weight(
        x, kernel_shape, dy, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False,
        algorithm="auto", out=None,
    ):
        shape = numbers(uniform(kernel_shape))
        N, C, size = split(x.shape, d)
        M, K, pixels = split(dy.shape, d)
        dw = grad_weight((
            read_x(x), N, C, size, shape, read_dy(dy), joined(M, K, pixels, True), read_stride(stride),
            read_dilation(dilation), read_padding(padding), code, groups, edge, read_fill(fill_value), flip,
        ))
        return give(dw).reshape(to_fixed_tuple(shape, axes))

    return conv_grad_weight


def _gradient(name: str, a: Any, dy_name: str, dy: Any, algorithm: Any, out: Any, d: int = 0) -> int:
    """Look at the arrays of a gradient; returns the number of spatial axes."""
    refuse(out=out)
    word("algorithm", algorithm, ALGORITHMS)
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


def conjugator(dtype: np.dtype) -> Any:
    """What conjugates complex numbers."""
    from .cpu.callers import as_input

    if dtype.kind == "c":
        return register_jitable(lambda given: as_input(np.conj(given)))
    return register_jitable(lambda given: given)


# plain arrays -------------------------------------------------------------------------------------------------------


@compiled("plain", "convolve")
def _convolve(
    x, w, mode="full", boundary="constant", fill_value=0, stride=1, dilation=1, axes=None, algorithm="auto", out=None
):
    product = launcher("convolve")
    refuse(axes=axes, out=out)
    word("algorithm", algorithm, ALGORITHMS)
    array("x", x)
    d = x.ndim
    array("w", w, d, needs="as many axes as x,")
    if d < 1:
        raise TypingError("x must have at least one axis, got 0")
    dtype, computed = dtypes(x=x, w=w)
    read_x, read_w = reader(x, computed), reader(w, computed)
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    edge, read_fill = boundary_of(boundary, fill_value, computed)
    code, give = MODE_PADDING[word("mode", mode, tuple(MODE_PADDING))], giver(dtype, computed)

    def convolve(
        x, w, mode="full", boundary="constant", fill_value=0, stride=1, dilation=1, axes=None, algorithm="auto",
        out=None,
    ):
        y, shape = product((
            read_x(x), numbers(x.shape), read_w(w), numbers(w.shape), read_stride(stride), read_dilation(dilation),
            code, edge, read_fill(fill_value),
        ))
        return give(y).reshape(to_fixed_tuple(shape, d))

    return convolve


# the matrices -------------------------------------------------------------------------------------------------------


def window_of(kernel_size: Any, axes: int, name: str) -> tuple[int, Any]:
    """How many spatial axes there are, and what reads the window."""
    known = plain(kernel_size)
    d = len(known) if isinstance(known, types.BaseTuple) else axes
    if axes - d not in (0, 1, 2):
        raise TypingError(
            f"kernel_size must have one int for each spatial axis of {name}, which has {axes} axes, got {known}"
        )
    return d, ints("kernel_size", kernel_size, d)


@compiled("matrices", "im2col")
def _im2col(
    x, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True, out=None
):
    from .cpu.im2col import WORDS

    windows = launcher("windows")
    refuse(out=out)
    array("x", x)
    dtype = as_dtype(x.dtype)
    if dtype.kind not in "biufcmM" or dtype.itemsize not in WORDS:
        raise TypingError(f"x must be of numbers or bool in compiled code, got dtype {dtype}")
    d, read_kernel = window_of(kernel_size, x.ndim, "x")
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, read_fill = boundary_of(boundary, fill_value, dtype)
    axes, word_type, read_x = x.ndim, np.dtype(WORDS[dtype.itemsize]), reader(x, dtype)
    matrix_axes = 2 if axes < d + 2 else 3

    def im2col(
        x, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True, out=None
    ):
        fill, kernel, shape = np.empty(1, dtype), read_kernel(kernel_size), numbers(x.shape)
        fill[0] = read_fill(fill_value)
        images, taps = size_of(shape[: axes - d]), size_of(kernel)
        X_conv, P = windows((
            read_x(x).view(word_type), images, shape[axes - d :], kernel, read_stride(stride), read_dilation(dilation),
            read_padding(padding), code, edge, fill.view(word_type)[0], flip,
        ))
        result = np.empty(matrix_axes, np.int64)
        result[0], result[-2], result[-1] = shape[0], (shape[axes - d - 1] if axes > d else 1) * taps, P
        return X_conv.view(dtype).reshape(to_fixed_tuple(result, matrix_axes))

    return im2col


@register_jitable
def size_of(shape):
    """The product of a shape."""
    total = 1
    for n in shape:
        total *= n
    return total


@compiled("matrices", "col2im")
def _col2im(
    cols, input_shape, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True,
    reduce="sum", out=None,
):
    unwindowed = launcher("unwindowed")
    refuse(out=out)
    axes = shape_reader("input_shape", input_shape)
    d, read_kernel = window_of(kernel_size, axes, "input_shape")
    array("cols", cols, 2 if axes < d + 2 else 3)
    dtype, computed = dtypes(cols=cols)
    mean = word("reduce", reduce, ("sum", "mean")) == "mean"
    if mean and dtype.kind in "biu":
        dtype = computed = np.dtype(np.float64)
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, _ = boundary_of(boundary, fill_value, computed)
    read_cols, give = reader(cols, computed), giver(dtype, computed)

    def col2im(
        cols, input_shape, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True,
        reduce="sum", out=None,
    ):
        shape, kernel = numbers(uniform(input_shape)), read_kernel(kernel_size)
        channels = shape[axes - d - 1] if axes > d else 1
        N = shape[0] if axes > d + 1 else 1
        rows = cols.shape[-2] // max(channels, 1)
        if (axes > d + 1 and cols.shape[0] != N) or rows * channels != cols.shape[-2]:
            raise ValueError("cols must have the shape that im2col gives for input_shape")
        x = unwindowed((
            read_cols(cols), rows, cols.shape[-1], N * channels, shape[axes - d :], kernel, read_stride(stride),
            read_dilation(dilation), read_padding(padding), code, edge, flip, mean,
        ))
        return give(x).reshape(to_fixed_tuple(shape, axes))

    return col2im


@compiled("matrices", "kernel2row")
def _kernel2row(
    w, input_size, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=True, triple=True
):
    entries = launcher("triple")
    array("w", w)
    known = plain(input_size)
    d = len(known) if isinstance(known, types.BaseTuple) else 1
    if w.ndim not in (d, d + 2):
        raise TypingError(f"w must be (*k) with {d} axes or (K, C/groups, *k) with {d + 2}, got {w.ndim}")
    dtype, _ = dtypes(w=w)
    if plain(fill_value) != 0:
        raise TypingError(f"fill_value must be 0 for a matrix, got {plain(fill_value)}: the map would be affine")
    read_size, read_w, first = ints("input_size", input_size, d), reader(w, dtype), w.ndim - d
    read_stride, read_dilation = ints("stride", stride, d), ints("dilation", dilation, d)
    read_padding, code = padding_of(padding, d)
    edge, _ = boundary_of(boundary, 0, dtype)
    one_int("groups", groups)

    def kernel2row(
        w, input_size, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=True,
        triple=True,
    ):
        shape = np.ones(d + 2, np.int64)
        for a in range(w.ndim):
            shape[2 - first + a] = w.shape[a]
        return entries((
            read_w(w), shape, read_size(input_size), read_stride(stride), read_dilation(dilation),
            read_padding(padding), code, groups, edge, flip,
        ))

    return kernel2row


def _read_triple(data: Any, indices: Any, indptr: Any, **vector: Any) -> tuple[Any, Any, Any, Any, Any]:
    """What reads the arrays of a triple and a vector, and what gives the result."""
    for name, value in {"data": data, "indices": indices, "indptr": indptr, **vector}.items():
        array(name, value, 1)
    for name, value in (("indices", indices), ("indptr", indptr)):
        if not isinstance(value.dtype, types.Integer) or value.dtype == types.uint64:
            raise TypingError(f"{name} must be of an integer dtype that int64 holds, got {value.dtype}")
    dtype, computed = dtypes(data=data, **vector)
    index = np.dtype(np.int32 if indices.dtype == indptr.dtype == types.int32 else np.int64)
    (other,) = vector.values()
    return reader(data, computed), reader(indices, index), reader(indptr, index), reader(other, computed), giver(
        dtype, computed
    )


@compiled("matrices", "csr_matvec")
def _csr_matvec(data, indices, indptr, x, out=None):
    matvec = launcher("matvec")
    refuse(out=out)
    read_data, read_indices, read_indptr, read, give = _read_triple(data, indices, indptr, x=x)

    def csr_matvec(data, indices, indptr, x, out=None):
        return give(matvec((read_data(data), read_indices(indices), read_indptr(indptr), read(x))))

    return csr_matvec


@compiled("matrices", "csr_rmatvec")
def _csr_rmatvec(data, indices, indptr, y, columns, out=None):
    rmatvec = launcher("rmatvec")
    refuse(out=out)
    one_int("columns", columns)
    read_data, read_indices, read_indptr, read, give = _read_triple(data, indices, indptr, y=y)

    def csr_rmatvec(data, indices, indptr, y, columns, out=None):
        return give(rmatvec((read_data(data), read_indices(indices), read_indptr(indptr), read(y), columns)))

    return csr_rmatvec
