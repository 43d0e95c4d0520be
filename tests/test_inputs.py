"""Inputs of every layout, byte order, type and emptiness: the right values or a clear error, and never a change."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.signal
import scipy.sparse
from conftest import ALGORITHMS, EXACT

import numconv as nc

# every function, as a call of arrays ---------------------------------------------------------------------------------

#: (9, 8) with kernel (3, 2) gives (4, 9): every argument differs from its default and from axis to axis.
GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
X, W, BIAS, DY = (2, 4, 9, 8), (6, 2, 3, 2), (6,), (2, 6, 4, 9)


class Call(NamedTuple):
    """A function of arrays and the shapes it is called with; ``axes2`` says which arguments a matrix can be."""

    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., Any]


def plan():
    return nc.plan_conv(X, W, dtype=np.float64, groups=2, **GEOMETRY)


def operator(w):
    return nc.plan_convolve((9, 8), (3, 2), "valid", dtype=np.float64).linear_operator(w)


def refilled(w):
    csr = plan().matrix(np.ones(W))
    plan().refill(csr, w)
    return csr


CALLS = {
    "convolve": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w: nc.convolve(x, w, boundary="reflect")),
    "convolve-same": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w: nc.convolve(x, w, "same")),
    "convolve-axes": Call({"x": (3, 9, 2), "w": (3,)}, lambda x, w: nc.convolve(x, w, axes=(1,))),
    "correlate": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w: nc.correlate(x, w, stride=2)),
    "conv": Call({"x": X, "w": W, "bias": BIAS}, lambda x, w, bias: nc.conv(x, w, bias, groups=2, **GEOMETRY)),
    "conv1d": Call({"x": (2, 4, 9), "w": (6, 4, 3), "bias": (6,)}, lambda x, w, bias: nc.conv1d(x, w, bias, 2, 1)),
    "conv2d": Call({"x": X, "w": W, "bias": BIAS}, lambda x, w, bias: nc.conv2d(x, w, bias, 1, 1, 1, 2)),
    "conv3d": Call(
        {"x": (2, 5, 6, 4), "w": (3, 2, 2, 3, 2), "bias": (3,)}, lambda x, w, bias: nc.conv3d(x, w, bias, padding=1)
    ),
    "conv_transpose": Call(
        {"x": (2, 6, 4, 5), "w": (6, 2, 3, 2), "bias": (4,)},
        lambda x, w, bias: nc.conv_transpose(x, w, bias, stride=2, padding=1, groups=2),
    ),
    "conv_transpose1d": Call(
        {"x": (2, 4, 5), "w": (4, 3, 3), "bias": (3,)}, lambda x, w, bias: nc.conv_transpose1d(x, w, bias, 2, 1, 1)
    ),
    "conv_transpose2d": Call(
        {"x": (4, 5, 4), "w": (4, 3, 3, 2), "bias": (3,)}, lambda x, w, bias: nc.conv_transpose2d(x, w, bias, 2)
    ),
    "conv_transpose3d": Call(
        {"x": (1, 2, 3, 4, 2), "w": (2, 3, 2, 2, 2), "bias": (3,)}, lambda x, w, bias: nc.conv_transpose3d(x, w, bias)
    ),
    "conv_grad_input": Call(
        {"w": W, "dy": DY}, lambda w, dy: nc.conv_grad_input(X, w, dy, groups=2, boundary="wrap", **GEOMETRY)
    ),
    "conv_grad_weight": Call({"x": X, "dy": DY}, lambda x, dy: nc.conv_grad_weight(x, W, dy, groups=2, **GEOMETRY)),
    "im2col": Call({"x": (9, 8)}, lambda x: nc.im2col(x, (3, 2), **GEOMETRY)),
    "im2col-batch": Call({"x": X}, lambda x: nc.im2col(x, (3, 2), fill_value=2, **GEOMETRY)),
    "col2im": Call({"cols": (2, 24, 36)}, lambda cols: nc.col2im(cols, X, (3, 2), **GEOMETRY)),
    "col2im-mean": Call({"cols": (6, 36)}, lambda cols: nc.col2im(cols, X[2:], (3, 2), reduce="mean", **GEOMETRY)),
    "kernel2row": Call({"w": (3, 2)}, lambda w: nc.kernel2row(w, (9, 8), **GEOMETRY)),
    "kernel2row-groups": Call({"w": W}, lambda w: nc.kernel2row(w, (9, 8), groups=2, boundary="edge", **GEOMETRY)),
    "unfold": Call({"x": X}, lambda x: nc.unfold(x, (3, 2), 1, 1, 2)),
    "fold": Call({"cols": (2, 24, 49)}, lambda cols: nc.fold(cols, (9, 8), (3, 2))),
    "plan.forward": Call({"x": X, "w": W, "bias": BIAS}, lambda x, w, bias: plan().forward(x, w, bias)),
    "plan.grad_input": Call({"dy": DY, "w": W}, lambda dy, w: plan().grad_input(dy, w)),
    "plan.grad_weight": Call({"x": X, "dy": DY}, lambda x, dy: plan().grad_weight(x, dy)),
    "plan.im2col": Call({"x": X}, lambda x: plan().im2col(x)),
    "plan.col2im": Call({"cols": (2, 24, 36)}, lambda cols: plan().col2im(cols)),
    "plan.matrix": Call({"w": W}, lambda w: plan().matrix(w)),
    "plan.refill": Call({"w": W}, refilled),
    "operator.matvec": Call({"w": (3, 2), "v": (72,)}, lambda w, v: operator(w).matvec(v)),
    "operator.rmatvec": Call({"w": (3, 2), "v": (49,)}, lambda w, v: operator(w).rmatvec(v)),
    "operator.matmat": Call({"w": (3, 2), "v": (72, 3)}, lambda w, v: operator(w).matmat(v)),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
ARGUMENTS = [
    pytest.param(call, name, id=f"{which}-{name}")
    for which, call in CALLS.items()
    for name in call.shapes
    if name != "v"  # SciPy's LinearOperator reads the vector, not numconv
]
every_argument = pytest.mark.parametrize(("call", "name"), ARGUMENTS)
#: The arguments that are multiplied; im2col and its kin only move theirs.
products = pytest.mark.parametrize(
    ("call", "name"), [p for p in ARGUMENTS if p.values[0].shapes.keys() not in ({"x"}, {"cols"})]
)


def random(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def arrays_for(call: Call) -> dict[str, np.ndarray]:
    return {name: random(shape, seed=i) for i, (name, shape) in enumerate(call.shapes.items())}


def dense(result: Any) -> np.ndarray:
    """A result as an array, after a look at its type: an ndarray (no subclass) or a CSR array, native and writable."""
    if scipy.sparse.issparse(result):
        assert type(result) is scipy.sparse.csr_array
        assert result.data.dtype.isnative
        return result.toarray()
    assert type(result) is np.ndarray
    assert result.dtype.isnative
    assert result.flags.writeable
    return result


def same_values(got: Any, expected: Any) -> None:
    """Equal up to the rounding of another order of summation in float64."""
    got, expected = dense(got), dense(expected)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


# layouts -------------------------------------------------------------------------------------------------------------


def every_second(a: np.ndarray) -> np.ndarray:
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan)
    wide[..., ::2] = a
    return wide[..., ::2]


def inner_block(a: np.ndarray) -> np.ndarray:
    big = np.full(tuple(n + 3 for n in a.shape), np.nan)
    block = big[tuple(slice(1, n + 1) for n in a.shape)]
    block[...] = a
    return block


def turned(a: np.ndarray) -> np.ndarray:
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.setflags(write=False)
    return a


def unaligned(a: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + a.tobytes(), np.uint8, offset=1).view(a.dtype).reshape(a.shape)


def packed_field(a: np.ndarray) -> np.ndarray:
    packed = np.zeros(a.shape, np.dtype([("tag", "i1"), ("value", a.dtype)]))
    packed["value"] = a
    return packed["value"]


class Labelled(np.ndarray):
    """A subclass that would spread if it were not read as a plain array."""


LAYOUTS = {
    "every-second": every_second,
    "inner-block": inner_block,
    "negative-strides": turned,
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "big-endian": lambda a: a.astype(">f8"),
    "unaligned": unaligned,
    "packed-struct-field": packed_field,
    "nested-lists": np.ndarray.tolist,
    "nested-tuples": lambda a: tuple(a.tolist()),
    "subclass": lambda a: a.view(Labelled),
}


@every_call
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_every_argument_gives_the_same_values(call, layout):
    arrays = arrays_for(call)
    same_values(call.run(**{name: layout(a) for name, a in arrays.items()}), call.run(**arrays))


@every_call
def test_inputs_broadcast_with_stride_zero_are_read_as_their_copies(call):
    narrow = {name: random((1, *shape[1:]), seed=i) for i, (name, shape) in enumerate(call.shapes.items())}
    views = {name: np.broadcast_to(narrow[name], shape) for name, shape in call.shapes.items()}
    points = {name: np.broadcast_to(np.float64(i + 0.5), s) for i, (name, s) in enumerate(call.shapes.items())}
    for broadcast in (views, points):
        same_values(call.run(**broadcast), call.run(**{name: a.copy() for name, a in broadcast.items()}))


def test_the_layouts_are_what_they_claim():
    a = random((4, 6))
    assert not every_second(a).flags.c_contiguous
    assert not inner_block(a).flags.forc
    assert all(s < 0 for s in turned(a).strides)
    assert not unaligned(a).flags.aligned
    assert not packed_field(a).flags.aligned
    assert not read_only(a).flags.writeable
    for layout in LAYOUTS.values():
        np.testing.assert_array_equal(np.asarray(layout(a)), a)


def test_a_memory_mapped_input_gives_a_plain_array(tmp_path):
    image = random((30, 40))
    image.tofile(tmp_path / "image.bin")
    mapped = np.memmap(tmp_path / "image.bin", dtype=np.float64, mode="r", shape=image.shape)
    same_values(nc.convolve(mapped, np.ones((3, 3))), nc.convolve(image, np.ones((3, 3))))
    same_values(nc.im2col(mapped, 3), nc.im2col(image, 3))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_numpy_matrices_are_read_as_plain_arrays():
    x, w = random((9, 8)), random((3, 2))
    for function in (nc.convolve, nc.correlate):
        same_values(function(np.asmatrix(x), np.asmatrix(w)), function(x, w))
    same_values(nc.im2col(np.asmatrix(x), (3, 2)), nc.im2col(x, (3, 2)))
    same_values(nc.kernel2row(np.asmatrix(w), (9, 8)), nc.kernel2row(w, (9, 8)))
    cols = random((6, 49))
    same_values(nc.col2im(np.asmatrix(cols), (9, 8), (3, 2)), nc.col2im(cols, (9, 8), (3, 2)))


@every_argument
def test_masked_arrays_are_refused_by_name(call, name):
    arrays = arrays_for(call)
    arrays[name] = np.ma.masked_array(arrays[name], mask=arrays[name] > 0.5)
    with pytest.raises(TypeError, match=rf"(?s)\b{name}\b.*[Mm]ask|[Mm]ask.*\b{name}\b"):
        call.run(**arrays)


@products
@pytest.mark.parametrize("dtype", [object, "longdouble", "U3", "M8[s]", [("a", "f8")]], ids=str)
def test_dtypes_without_arithmetic_here_are_refused_by_name(call, name, dtype):
    arrays = arrays_for(call)
    arrays[name] = np.zeros(call.shapes[name], dtype)
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        call.run(**arrays)


@pytest.mark.parametrize("dtype", [object, "U3", "M8[s]", [("a", "f8")]], ids=str)
def test_col2im_refuses_dtypes_that_it_cannot_add(dtype):
    with pytest.raises(TypeError, match=r"\bcols\b"):
        nc.col2im(np.zeros((6, 49), dtype), (9, 8), (3, 2))
    with pytest.raises(TypeError, match=r"\bcols\b"):
        nc.fold(np.zeros((2, 24, 49), dtype), (9, 8), (3, 2))


@every_call
def test_inputs_are_never_changed(call):
    arrays = arrays_for(call)
    copies = {name: a.copy() for name, a in arrays.items()}
    result = dense(call.run(**arrays))
    result[...] = -7  # a result that shares memory with an input would change the input here
    for name, a in arrays.items():
        np.testing.assert_array_equal(a, copies[name], err_msg=name)


# torch tensors on the CPU ---------------------------------------------------------------------------------------------


OF_NUMCONV = {which: call for which, call in CALLS.items() if "v" not in call.shapes}  # SciPy's operators take NumPy


@pytest.mark.parametrize("call", OF_NUMCONV.values(), ids=OF_NUMCONV)
def test_torch_tensors_give_torch_tensors_with_the_same_values(call):
    torch = pytest.importorskip("torch")
    arrays = arrays_for(call)
    result, expected = call.run(**{name: torch.from_numpy(a) for name, a in arrays.items()}), call.run(**arrays)
    if scipy.sparse.issparse(expected):
        same_values(result, expected)
    else:
        assert type(result) is torch.Tensor
        same_values(result.numpy(), expected)


def test_torch_tensors_of_any_layout_are_read_as_they_are():
    torch = pytest.importorskip("torch")
    x, w = random((2, 4, 9, 8)), random((6, 4, 3, 3))
    expected = nc.conv(x, w)
    views = [
        torch.from_numpy(x.swapaxes(2, 3).copy()).transpose(2, 3),
        torch.from_numpy(x).to(memory_format=torch.channels_last),
        torch.from_numpy(np.repeat(x, 2, axis=3))[..., ::2],
        torch.from_numpy(x).requires_grad_(),
    ]
    for view in views:
        with torch.no_grad():
            y = nc.conv(view, torch.from_numpy(w))
        same_values(y.numpy(), expected)
        assert not y.requires_grad
    z = random((9, 8)) + 1j * random((9, 8), seed=1)
    turned = torch.from_numpy(z).conj()  # a view that torch conjugates only when it is read
    same_values(nc.im2col(turned, 3).numpy(), nc.im2col(z.conj(), 3))


def test_arrays_of_different_kinds_are_refused_by_name():
    torch = pytest.importorskip("torch")
    x, w, bias = np.ones((1, 4, 9, 8)), np.ones((6, 4, 3, 3)), np.ones(6)
    for arrays in [(torch.from_numpy(x), w, bias), (x, torch.from_numpy(w), bias), (x, w, torch.from_numpy(bias))]:
        with pytest.raises(TypeError, match=r"(?s)\bx\b.*\bw\b.*\bbias\b"):
            nc.conv(*arrays)
    with pytest.raises(TypeError, match=r"\bout\b"):
        nc.conv(x, w, out=torch.zeros((1, 6, 7, 6), dtype=torch.float64))


def test_torch_tensors_that_numpy_cannot_read_are_refused_by_name():
    torch = pytest.importorskip("torch")
    w = torch.ones((6, 4, 3))
    dense = torch.ones((4, 9))
    for x in (dense.bfloat16(), dense.to_sparse(), dense.to("meta")):
        with pytest.raises(TypeError, match=r"\bx\b"):
            nc.conv(x, w)


def test_a_torch_out_is_filled_and_returned():
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(random((1, 4, 9, 8))), torch.from_numpy(random((6, 4, 3, 3)))
    for out in (torch.full((1, 6, 7, 6), 9.0, dtype=torch.float64), torch.zeros((1, 6, 6, 7)).double().transpose(2, 3)):
        assert nc.conv(x, w, out=out) is out
        same_values(out.numpy().copy(), nc.conv(x.numpy(), w.numpy()))


# algorithms -----------------------------------------------------------------------------------------------------------

every_algorithm = pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])


@every_algorithm
def test_no_algorithm_changes_its_inputs_or_minds_them_read_only(algorithm):
    x, w, bias = read_only(random((2, 5, 19, 37))), read_only(random((7, 5, 3, 3))), read_only(random((7,)))
    copies = [a.copy() for a in (x, w, bias)]
    y = nc.conv(x, w, bias, padding=1, algorithm=algorithm)
    np.testing.assert_allclose(y, conv_reference(x, w, padding=1) + bias[:, None, None], rtol=0, atol=1e-10)
    for a, copy in zip((x, w, bias), copies, strict=True):
        np.testing.assert_array_equal(a, copy)


# the naive products, tap by tap, that everything below is compared with -----------------------------------------------


def tap_slices(kernel, out, stride, dilation):
    """Which pixels of the padded input each tap meets, as slices."""
    for t in itertools.product(*map(range, kernel)):
        yield t, tuple(
            slice(a * dilation, a * dilation + (o - 1) * stride + 1, stride) for a, o in zip(t, out, strict=True)
        )


def conv_reference(x, w, stride=1, padding=0, dilation=1):
    """Cross-correlation of ``(N, C, *in)`` with ``(K, C, *k)``, one tap after the other, with NumPy's arithmetic."""
    kernel = w.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0)) + ((padding, padding),) * len(kernel))
    out = [(n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[2:], kernel, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out), np.result_type(x, w))
    for t, pixels in tap_slices(kernel, out, stride, dilation):
        for c in range(x.shape[1]):
            y += w[(slice(None), c, *t)].reshape(-1, *(1,) * len(out)) * x[(slice(None), slice(c, c + 1), *pixels)]
    return y


def grad_reference(x_shape, w, dy, stride=1, padding=0, dilation=1, x=None):
    """Both gradients of ``conv_reference``: what ``dy`` sends back to the pixels and to the taps."""
    kernel, out = w.shape[2:], dy.shape[2:]
    inner = (slice(None), slice(None), *(slice(padding, padding + n) for n in x_shape[2:]))
    dx = np.zeros((*x_shape[:2], *(n + 2 * padding for n in x_shape[2:])))
    x_padded = np.zeros_like(dx)
    x_padded[inner] = 0 if x is None else x
    dw = np.zeros(w.shape)
    for t, pixels in tap_slices(kernel, out, stride, dilation):
        for c, k in itertools.product(range(x_shape[1]), range(w.shape[0])):
            dx[(slice(None), c, *pixels)] += w[(k, c, *t)] * dy[:, k]
            dw[(k, c, *t)] = (x_padded[(slice(None), c, *pixels)] * dy[:, k]).sum()
    return dx[inner], dw


# NaN and infinity -----------------------------------------------------------------------------------------------------


def spoiled(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random numbers with one NaN, one inf and one -inf, far from each other in the last two axes."""
    a = random(shape, seed=seed)
    last = (shape[-2] - 1, shape[-1] - 2)
    a[(0,) * (a.ndim - 2) + (0, 1)] = np.nan
    a[(-1,) * (a.ndim - 2) + last] = np.inf
    a[(0,) * (a.ndim - 2) + (shape[-2] // 2, shape[-1] // 2)] = -np.inf
    return a


def same_non_finite(got: np.ndarray, expected: np.ndarray) -> None:
    """NaN, inf and -inf at exactly the same places, and the same values elsewhere."""
    assert 0 < np.isfinite(expected).sum() < expected.size, "the case shows nothing"
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(got), kind(expected), err_msg=kind.__name__)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(got[finite], expected[finite], rtol=1e-10, atol=1e-10)


NAN_GEOMETRIES = {
    "plain-3x3": {"padding": 1},
    "strided": {"stride": 2},
    "dilated": {"dilation": 2, "padding": 2},
}
every_nan_geometry = pytest.mark.parametrize("geometry", NAN_GEOMETRIES.values(), ids=NAN_GEOMETRIES)


@every_nan_geometry
@pytest.mark.parametrize("algorithm", ["auto", "fft", *EXACT])
def test_nan_and_infinity_reach_exactly_the_outputs_whose_window_holds_them(algorithm, geometry):
    x, w = spoiled((2, 5, 19, 37)), random((7, 5, 3, 3))
    w[::2, :, 0, 1] = 0  # 0 * nan and 0 * inf are nan: no product is left out
    with np.errstate(invalid="ignore"):
        expected = conv_reference(x, w, **geometry)
        same_non_finite(nc.conv(x, w, algorithm=algorithm, **geometry), expected)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "im2col", "implicit", "direct", "fft"])
def test_a_fill_value_that_is_not_finite_reaches_the_border_only(algorithm, fill):
    x, w = random((2, 5, 9, 11)), abs(random((7, 5, 3, 3)))
    y = nc.conv(x, w, padding=1, fill_value=fill, algorithm=algorithm)
    border = np.full(y.shape, True)
    border[:, :, 1:-1, 1:-1] = False
    np.testing.assert_array_equal(y[border], fill)
    np.testing.assert_allclose(y[:, :, 1:-1, 1:-1], conv_reference(x, w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("channels", [(1, 1), (3, 8), (64, 64)], ids=str)
def test_auto_keeps_nan_where_it_belongs_for_small_kernels_of_any_channels(channels, dtype):
    C, K = channels
    x, w = spoiled((1, C, 28, 30)).astype(dtype), random((K, C, 3, 3), dtype)
    with np.errstate(invalid="ignore"):
        got, expected = nc.conv(x, w, padding=1), conv_reference(x, w, padding=1)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_convolve_keeps_nan_where_it_belongs(mode):
    x, w = spoiled((40, 50)), random((5, 3))
    with np.errstate(invalid="ignore"):
        full = conv_reference(np.pad(x, ((4, 4), (2, 2)))[None, None], w[None, None, ::-1, ::-1])[0, 0]
        crop = {"full": np.s_[:, :], "same": np.s_[2:42, 1:51], "valid": np.s_[4:-4, 2:-2]}[mode]
        same_non_finite(nc.convolve(x, w, mode), full[crop])


def test_a_long_filter_never_loses_nan():
    x, w = random((20000,)), random((3000,))
    x[7777] = np.nan
    assert np.isnan(nc.convolve(x, w)[7777 : 7777 + 3000]).all()


def test_nan_in_one_kernel_spoils_its_own_channel_only():
    x, w = random((2, 5, 12, 13)), random((7, 5, 3, 3))
    w[4, 2, 1, 1] = np.nan
    for algorithm in ("auto", "fft", *EXACT):
        y = nc.conv(x, w, algorithm=algorithm)
        assert np.isnan(y[:, 4]).all(), algorithm
        assert np.isfinite(np.delete(y, 4, axis=1)).all(), algorithm


@every_nan_geometry
def test_gradients_keep_nan_where_it_belongs(geometry):
    x, w = spoiled((2, 5, 19, 37)), random((7, 5, 3, 3))
    dy_shape = conv_reference(np.zeros(x.shape), w, **geometry).shape
    dy = spoiled(dy_shape, seed=1)
    with np.errstate(invalid="ignore"):
        dx, _ = grad_reference(x.shape, w, dy, **geometry)
        same_non_finite(nc.conv_grad_input(x.shape, w, dy, **geometry), dx)
    dy = random(dy_shape, seed=2)
    dy[0, 3, dy_shape[2] // 2, dy_shape[3] // 2] = np.nan  # all taps of one kernel meet it inside the image
    dw = nc.conv_grad_weight(random(x.shape), w.shape, dy, **geometry)
    assert np.isnan(dw[3]).all()
    assert np.isfinite(np.delete(dw, 3, axis=0)).all()
    x[...] = random(x.shape)
    x[1, 2, 9, 18] = np.nan  # met by the taps of one input channel only
    _, expected = grad_reference(x.shape, w, random(dy_shape), x=x, **geometry)
    dw = nc.conv_grad_weight(x, w.shape, random(dy_shape), **geometry)
    np.testing.assert_array_equal(np.isnan(dw), np.isnan(expected))
    assert np.isfinite(np.delete(dw, 2, axis=1)).all()


def test_matrices_keep_nan_where_it_belongs():
    x = spoiled((9, 11))
    cols = nc.im2col(x, 3)
    assert np.isnan(cols).sum() == np.isnan(np.lib.stride_tricks.sliding_window_view(x, (3, 3))).sum() > 0
    with np.errstate(invalid="ignore"):
        touched = nc.col2im(np.where(np.isnan(cols), 1.0, 0.0), (9, 11), 3) > 0
        np.testing.assert_array_equal(np.isnan(nc.col2im(cols, (9, 11), 3)) & ~touched, False)
        back = nc.col2im(np.where(np.isinf(cols), 0, cols), (9, 11), 3)
    np.testing.assert_array_equal(np.isnan(back), touched)


# emptiness ------------------------------------------------------------------------------------------------------------


def empty_shapes(empty: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    N, C, K = (0 if empty == name else n for name, n in (("N", 2), ("C", 3), ("K", 4)))
    return (N, C, 6, 7), (K, C, 3, 3)


every_emptiness = pytest.mark.parametrize("empty", ["N", "C", "K"])


@every_emptiness
@every_algorithm
def test_no_images_or_channels_give_what_numpy_would(empty, algorithm):
    x_shape, w_shape = empty_shapes(empty)
    bias = random(w_shape[:1])
    y = nc.conv(np.ones(x_shape), np.ones(w_shape), bias, padding=1, algorithm=algorithm)
    expected = np.zeros((x_shape[0], w_shape[0], 6, 7)) + bias[:, None, None]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, expected)  # the sum over no channels is 0, the bias stays


@every_emptiness
def test_gradients_of_nothing_are_zeros_of_the_right_shape(empty):
    x_shape, w_shape = empty_shapes(empty)
    dy = np.ones((x_shape[0], w_shape[0], 6, 7))
    dx = nc.conv_grad_input(x_shape, np.ones(w_shape), dy, padding=1)
    assert dx.shape == x_shape
    assert not dx.any()
    dw = nc.conv_grad_weight(np.ones(x_shape), w_shape, dy, padding=1)
    assert dw.shape == w_shape
    assert not dw.any()


@every_emptiness
def test_transposed_convolutions_of_nothing_are_zeros_of_the_right_shape(empty):
    x_shape, (K, C, *kernel) = empty_shapes(empty)
    y = nc.conv_transpose(np.ones(x_shape), np.ones((C, K, *kernel)), stride=2)
    assert y.shape == (x_shape[0], K, 13, 15)
    assert not y.any()


@every_emptiness
def test_matrices_of_nothing_have_the_right_shape(empty):
    (N, C, *size), (K, *_) = x_shape, w_shape = empty_shapes(empty)
    cols = nc.im2col(np.ones(x_shape), (3, 3))
    assert cols.shape == (N, C * 9, 20)
    image = nc.col2im(np.ones(cols.shape), x_shape, (3, 3))
    assert image.shape == x_shape
    assert nc.unfold(np.ones(x_shape), (3, 3)).shape == cols.shape
    assert nc.fold(np.ones(cols.shape), tuple(size), (3, 3)).shape == x_shape
    csr = nc.kernel2row(np.ones(w_shape), tuple(size))
    assert csr.shape == (K * 20, C * 42)
    assert csr.nnz == K * C * 20 * 9


@every_emptiness
def test_plans_of_nothing_run(empty):
    x_shape, w_shape = empty_shapes(empty)
    plan = nc.plan_conv(x_shape, w_shape, dtype=np.float64)
    y = plan.forward(np.ones(x_shape), np.ones(w_shape))
    assert y.shape == plan.output_shape == (x_shape[0], w_shape[0], 4, 5)
    assert not y.any()
    assert plan.grad_input(y, np.ones(w_shape)).shape == x_shape
    assert plan.grad_weight(np.ones(x_shape), y).shape == w_shape


@every_algorithm
def test_an_image_without_pixels_is_all_padding(algorithm):
    w = random((4, 3, 3, 3))
    y = nc.conv(np.ones((2, 3, 0, 5)), w, padding=((2, 2), (1, 1)), algorithm=algorithm)
    assert y.shape == (2, 4, 2, 5)
    assert not y.any()


def test_an_image_without_pixels_reads_its_fill_value():
    w = random((4, 3, 3, 3))
    y = nc.conv(np.ones((2, 3, 0, 0)), w, padding=2, fill_value=2.0)
    np.testing.assert_allclose(y, np.broadcast_to(2 * w.sum((1, 2, 3))[:, None, None], (2, 4, 2, 2)), rtol=1e-12)
    cols = nc.im2col(np.ones((0, 3)), 3, padding=((2, 2), (0, 0)), fill_value=5)
    np.testing.assert_array_equal(cols, np.full((9, 2), 5.0))


def test_an_image_without_pixels_has_an_empty_gradient():
    dy, w = np.ones((2, 4, 2, 2)), random((4, 3, 3, 3))
    assert nc.conv_grad_input((2, 3, 0, 0), w, dy, padding=2).shape == (2, 3, 0, 0)
    dw = nc.conv_grad_weight(np.ones((2, 3, 0, 0)), w.shape, dy, padding=2)
    np.testing.assert_array_equal(dw, np.zeros(w.shape))


@pytest.mark.parametrize("boundary", ["edge", "reflect", "symmetric", "wrap"])
def test_an_image_without_pixels_has_no_other_boundary(boundary):
    with pytest.raises(ValueError, match=r"(?s)boundary.*0"):
        nc.conv(np.ones((2, 3, 0, 5)), np.ones((4, 3, 3, 3)), padding=2, boundary=boundary)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (2, 5), (5, 2)], ids=str)
def test_an_empty_output_is_an_error_that_names_the_sizes(size):
    with pytest.raises(ValueError, match=rf"(?s){size[0]}.*{size[1]}.*3.*3"):
        nc.conv(np.ones((2, 3, *size)), np.ones((4, 3, 3, 3)))
    with pytest.raises(ValueError, match=rf"(?s){size[0]}.*{size[1]}.*3.*3"):
        nc.im2col(np.ones(size), (3, 3))


def test_convolving_numbers_multiplies_them_as_scipy_does_or_names_them():
    try:
        product = nc.convolve(np.float64(3), np.float64(2))
    except ValueError as refusal:
        assert "x" in str(refusal).split()
    else:
        assert product == scipy.signal.convolve(np.float64(3), np.float64(2)) == 6


def test_arrays_without_axes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\bx\b"):
        nc.conv(np.float64(3), np.ones((4, 3, 3)))
    with pytest.raises(ValueError, match=r"\bbias\b"):
        nc.conv(np.ones((3, 9)), np.ones((4, 3, 3)), np.float64(1))
    with pytest.raises((TypeError, ValueError), match=r"\bx\b"):
        nc.im2col(np.float64(3), ())


# argument types -------------------------------------------------------------------------------------------------------


def test_numpy_integers_and_arrays_serve_as_geometry():
    x, w = random((2, 3, 12, 11)), random((4, 3, 3, 2))
    expected = nc.conv(x, w, stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(1, 2))
    padding, dilation = np.array([[1, 2], [0, 1]]), [np.int8(1), np.uint64(2)]
    got = nc.conv(x, w, stride=np.array([2, 1]), padding=padding, dilation=dilation)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(nc.conv(x, w, stride=np.int64(2)), nc.conv(x, w, stride=2))
    np.testing.assert_array_equal(nc.conv(x, w, stride=np.array(2)), nc.conv(x, w, stride=2))


@pytest.mark.parametrize("fill", [2, 2.0, np.float32(2), np.int8(2), np.array(2.0)], ids=lambda f: type(f).__name__)
def test_any_real_scalar_serves_as_fill_value(fill):
    x, w = random((9, 8)), random((3, 2))
    np.testing.assert_array_equal(nc.convolve(x, w, fill_value=fill), nc.convolve(x, w, fill_value=2))


@pytest.mark.parametrize("size", [3, np.int64(3), [3, 3], np.array([3, 3])], ids=repr)
def test_kernel_size_takes_an_int_or_any_sequence_of_ints(size):
    x = random((9, 8))
    np.testing.assert_array_equal(nc.im2col(x, size), nc.im2col(x, (3, 3)))


# dtypes ---------------------------------------------------------------------------------------------------------------

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
PAIRS = [
    ("bool", "bool"),
    ("bool", "int8"),
    ("uint8", "float32"),
    ("int32", "float32"),
    ("uint32", "int32"),
    ("uint64", "int64"),
    ("int16", "float16"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("float32", "float64"),
    ("int64", "complex64"),
    ("complex64", "complex128"),
]


def small_numbers(shape, dtype, seed=0):
    """Whole numbers that every dtype holds exactly, sums of a few dozen products included."""
    return np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)


@pytest.mark.parametrize("swap", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
def test_results_have_numpys_result_type(dtypes, swap):
    a, b = dtypes[::-1] if swap else dtypes
    expected = np.result_type(a, b)
    x, w = small_numbers((2, 3, 6, 5), a), small_numbers((4, 3, 2, 3), b, seed=1)
    y = nc.conv(x, w)
    assert y.dtype == expected
    exact = conv_reference(small_numbers(x.shape, int), small_numbers(w.shape, int, seed=1))
    np.testing.assert_array_equal(y, exact.astype(expected))
    z = nc.convolve(x[0, 0], w[0, 0], "valid")
    assert z.dtype == expected
    x, w = small_numbers((2, 3, 6, 5), int), small_numbers((4, 3, 2, 3), int, seed=1)
    exact = conv_reference(x[:1, :1], w[:1, :1, ::-1, ::-1])[0, 0]
    np.testing.assert_array_equal(z, exact.astype(expected))


@pytest.mark.parametrize("dtype", ["bool", "int64"])
def test_gradients_and_matrices_keep_the_dtype(dtype):
    w, dy = small_numbers((4, 3, 2, 3), dtype), small_numbers((2, 4, 5, 3), dtype, seed=1)
    x = small_numbers((2, 3, 6, 5), dtype, seed=2)
    dx, dw = grad_reference(x.shape, w.astype(float), dy.astype(float), x=x.astype(float))
    for got, expected in [
        (nc.conv_grad_input(x.shape, w, dy), dx),
        (nc.conv_grad_weight(x, w.shape, dy), dw),
        (nc.kernel2row(w, (6, 5), flip=False).toarray() @ x[0].ravel(), conv_reference(x[:1], w).ravel()),
    ]:
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, expected.astype(dtype))
    assert nc.kernel2row(w, (6, 5)).dtype == np.dtype(dtype)
    assert nc.im2col(x, (2, 3)).dtype == np.dtype(dtype)
    assert nc.col2im(nc.im2col(x, (2, 3)), x.shape, (2, 3)).dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64", "uint64"])
def test_integers_wrap_around_modularly(dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    x = rng.integers(info.min, info.max, (2, 3, 9, 8), dtype, endpoint=True)
    w = rng.integers(info.min, info.max, (4, 3, 3, 2), dtype, endpoint=True)
    as_python = conv_reference(x.astype(object), w.astype(object))
    wrapped = [(int(v) - info.min) % (1 << info.bits) + info.min for v in as_python.flat]
    expected = np.array(wrapped, object).astype(dtype)
    np.testing.assert_array_equal(nc.conv(x, w), expected.reshape(as_python.shape))


@every_algorithm
def test_integers_are_exact_under_every_algorithm_that_takes_them(algorithm):
    dtype, info = "int64", np.iinfo("int64")
    x = np.random.default_rng(0).integers(info.min, info.max, (2, 3, 9, 8), dtype)
    w = np.random.default_rng(1).integers(info.min, info.max, (4, 3, 3, 3), dtype)
    try:
        y = nc.conv(x, w, padding=1, algorithm=algorithm)
    except (TypeError, ValueError) as error:
        assert algorithm in ("winograd", "fft"), "only the transforms may refuse integers"
        assert algorithm in str(error)
        assert dtype in str(error) or "integer" in str(error)
        return
    np.testing.assert_array_equal(y, conv_reference(x, w, padding=1))


@pytest.mark.parametrize("algorithm", ["auto", "implicit", "direct", "im2col"])
@pytest.mark.parametrize("C", [1, 16, 128])
def test_float16_errs_by_one_rounding_only(C, algorithm):
    x, w = random((1, C, 12, 13), np.float16), random((5, C, 3, 3), np.float16)
    exact = conv_reference(x.astype(float), w.astype(float), padding=1)
    y = nc.conv(x, w, padding=1, algorithm=algorithm)
    assert y.dtype == np.float16
    rounding = np.spacing(np.abs(exact).astype(np.float16)).astype(float) / 2
    magnitudes = conv_reference(abs(x.astype(float)), abs(w.astype(float)), padding=1)
    summed_in_float32 = 9 * C * np.finfo(np.float32).eps * magnitudes  # the bound for any order of the sum
    assert (np.abs(y - exact) <= rounding * 1.001 + summed_in_float32).all()


def test_float16_gradients_err_by_one_rounding_only():
    x, w, dy = (random(s, np.float16, seed=i) for i, s in enumerate([(2, 8, 12, 13), (5, 8, 3, 3), (2, 5, 10, 11)]))
    wide = [a.astype(float) for a in (x, w, dy)]
    exacts = grad_reference(x.shape, *wide[1:], x=wide[0])
    magnitudes = grad_reference(x.shape, *map(abs, wide[1:]), x=abs(wide[0]))
    terms = (5 * 9, 2 * 110)  # of each sum that is dx or dw
    got = nc.conv_grad_input(x.shape, w, dy), nc.conv_grad_weight(x, w.shape, dy)
    for result, exact, n, magnitude in zip(got, exacts, terms, magnitudes, strict=True):
        assert result.dtype == np.float16
        rounding = np.spacing(np.abs(exact).astype(np.float16)).astype(float) / 2
        summed_in_float32 = n * np.finfo(np.float32).eps * magnitude
        assert (np.abs(result - exact) <= rounding * 1.001 + summed_in_float32).all()


def test_correlate_conjugates_and_convolve_does_not():
    x, w = random((9, 8)) + 1j * random((9, 8), seed=1), random((3, 2)) + 1j * random((3, 2), seed=1)
    expected = conv_reference(x[None, None], w[None, None].conj())[0, 0]
    np.testing.assert_allclose(nc.correlate(x, w, "valid"), expected, rtol=0, atol=1e-13)
    expected = conv_reference(x[None, None], w[None, None, ::-1, ::-1])[0, 0]
    np.testing.assert_allclose(nc.convolve(x, w, "valid"), expected, rtol=0, atol=1e-13)
    expected = conv_reference(x[None, None], w[None, None])  # torch's conv does not conjugate
    np.testing.assert_allclose(nc.conv(x[None, None], w[None, None]), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "dtype",
    ["bool", *INTEGERS, "float16", "float32", "float64", "complex64", "complex128", "longdouble", "M8[s]", "S3"],
)
def test_im2col_moves_any_dtype_of_a_fixed_size(dtype):
    x = np.arange(1, 43).reshape(6, 7).astype(dtype)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2))  # (4, 6, 3, 2)
    cols = nc.im2col(x, (3, 2), flip=False)
    assert cols.dtype == x.dtype
    np.testing.assert_array_equal(cols, windows.reshape(24, 6).T)
    np.testing.assert_array_equal(nc.im2col(x, (3, 2)), windows[..., ::-1, ::-1].reshape(24, 6).T)


def test_im2col_moves_records():
    x = np.zeros((6, 7), [("a", "f8"), ("b", "i1")])
    x["a"], x["b"] = random((6, 7)), np.arange(42).reshape(6, 7)
    cols = nc.im2col(x, (3, 2))
    assert cols.dtype == x.dtype
    for field in ("a", "b"):
        np.testing.assert_array_equal(cols[field], nc.im2col(np.ascontiguousarray(x[field]), (3, 2)))


def test_im2col_moves_objects_or_refuses_them_by_name():
    x = np.array([[f"item {i} {j}" for j in range(7)] for i in range(6)], object)
    try:
        cols = nc.im2col(x, (3, 2), flip=False)
    except TypeError as refusal:
        assert "x" in str(refusal).split()
    else:
        assert cols.dtype == object
        assert cols[:, 0].tolist() == x[:3, :2].ravel().tolist()


def test_one_call_with_a_million_windows_agrees_with_numpy():
    x = random((1100, 1000), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))
    cols = nc.im2col(x, 3, flip=False)
    assert cols.shape == (9, prod(windows.shape[:2]))
    np.testing.assert_array_equal(cols.reshape(3, 3, *windows.shape[:2]), windows.transpose(2, 3, 0, 1))
