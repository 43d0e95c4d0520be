"""Every CUDA kernel against the naive oracle, thread by thread in numba's simulator: no GPU is needed.

The simulator has to be asked for before numba is imported, so these run in a process of their own, which
``test_cuda_simulator.py`` starts; ``NUMBA_ENABLE_CUDASIM=1 pytest tests/test_cuda_kernels.py`` is the same by hand.
"""

from __future__ import annotations

from math import prod

import fake_libraries
import naive
import numpy as np
import pytest
import scipy.sparse
from conftest import BOUNDARIES, values
from simulator import PLACE, empty, in_simulator, numbers, simulated

import numconv
from numconv.geometry import conv_geometry

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore:.*overflow encountered:RuntimeWarning")]  # whole numbers

if simulated:
    from numconv.cuda import adjoint, csr, direct, im2col, implicit, kernel2row
    from numconv.cuda.driver import Simulator
    from numconv.cuda.places import Place

    ROOMS = {"direct": direct, "im2col": im2col, "implicit": implicit, "kernel2row": kernel2row}


CASES = {
    "plain": ((1, 2, 4, 5), (4, 2, 3, 3), {"padding": 1}),
    "stride": ((2, 3, 7, 5), (2, 3, 3, 2), {"stride": (2, 3), "padding": ((0, 1), (2, 0)), "flip": True}),
    "groups": ((2, 4, 5, 6), (6, 2, 3, 2), {"padding": 1, "stride": 2, "groups": 2, "boundary": "reflect"}),
    "depthwise": ((1, 3, 5, 4), (3, 1, 3, 3), {"padding": 1, "groups": 3, "boundary": "symmetric"}),
    "line": ((1, 6, 9), (4, 3, 3), {"padding": 3, "dilation": 2, "groups": 2, "boundary": "wrap", "flip": True}),
    "volume": ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"padding": 1, "stride": (1, 2, 1), "boundary": "edge"}),
    "constant": ((1, 2, 4, 3), (2, 2, 2, 2), {"padding": 2, "fill_value": 2, "stride": 3}),
    "deep": ((1, 9, 3, 3), (3, 9, 2, 2), {}),
}


@pytest.fixture(params=CASES)
def case(request):
    x_shape, w_shape, arguments = CASES[request.param]
    return conv_geometry(x_shape, w_shape, **arguments), {"flip": False, **arguments}


def data(g, dtype):
    """An input, a kernel, a bias and an output gradient."""
    shapes = (g.input_shape, g.kernel_shape, (g.K,), (g.N, g.K, *g.out))
    return [values(shape, dtype, seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("room", ["direct", "im2col", "implicit"])
def test_products(case, room):
    g, arguments = case
    room, dtype = ROOMS[room], np.dtype(np.float32)
    x, w, bias, dy = data(g, dtype)
    X, W, dY, fill = PLACE.send(x), PLACE.send(w), PLACE.send(dy), dtype.type(g.fill_value)
    y = empty(dy.shape, dtype)
    room.forward(X, W, PLACE.send(bias), g.axes, g.boundary_code, fill, y)
    np.testing.assert_array_equal(numbers(y), naive.conv(x, w, bias, **arguments))
    dx = empty(x.shape, dtype)
    adjoint.grad_input(room, dY, W, g, dx)
    np.testing.assert_array_equal(numbers(dx), naive.conv_grad_input(x.shape, w, dy, **arguments))
    if hasattr(room, "grad_weight"):
        dw = empty(w.shape, dtype)
        room.grad_weight(X, dY, g.axes, g.boundary_code, fill, dw)
        np.testing.assert_array_equal(numbers(dw), naive.conv_grad_weight(x, w.shape, dy, **arguments))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("room", ["direct", "im2col", "implicit"])
@pytest.mark.parametrize("name", ["stride", "groups", "line", "constant"])
def test_a_bad_weight_reaches_the_pixels_that_it_meets(name, room):
    x_shape, w_shape, arguments = CASES[name]
    g, dtype = conv_geometry(x_shape, w_shape, **arguments), np.dtype(np.float32)
    _, w, _, dy = data(g, dtype)
    w.flat[1], w.flat[-1] = np.nan, np.inf
    dx = empty(g.input_shape, dtype)
    adjoint.grad_input(ROOMS[room], PLACE.send(dy), PLACE.send(w), g, dx)
    x = np.zeros(g.input_shape, dtype)
    _, want, _ = naive.products(x, w, dy, **{"flip": False, **arguments})
    assert 0 < np.isfinite(want).sum() < want.size
    np.testing.assert_array_equal(numbers(dx), want)


@pytest.mark.parametrize("room", ["direct", "implicit"])
@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128", "int64", "uint8"])
def test_dtypes(room, dtype):
    room, dtype = ROOMS[room], np.dtype(dtype)
    g = conv_geometry((2, 2, 3, 4), (3, 2, 2, 2), padding=1)
    x, w, bias, dy = data(g, dtype)
    y, dw = empty(dy.shape, dtype), empty(w.shape, dtype)
    fill = dtype.type(0)
    room.forward(PLACE.send(x), PLACE.send(w), PLACE.send(bias), g.axes, 0, fill, y)
    np.testing.assert_array_equal(numbers(y), naive.narrow(naive.conv(x, w, bias, padding=1), dtype))
    room.grad_weight(PLACE.send(x), PLACE.send(dy), g.axes, 0, fill, dw)
    np.testing.assert_array_equal(numbers(dw), naive.narrow(naive.conv_grad_weight(x, w.shape, dy, padding=1), dtype))


def test_every_tile():
    """More rows, columns, channels and pixels than a tile has, none of them a multiple of its size."""
    g = conv_geometry((1, 10, 9, 8), (66, 10, 1, 1))
    x, w, bias, dy = data(g, np.float32)
    for tile in (implicit.SMALL, implicit.LARGE):
        implicit.tile_for, kept = lambda *_, tile=tile: tile, implicit.tile_for
        try:
            y = empty(dy.shape, np.float32)
            implicit.forward(PLACE.send(x), PLACE.send(w), PLACE.send(bias), g.axes, 0, np.float32(0), y)
        finally:
            implicit.tile_for = kept
        np.testing.assert_array_equal(numbers(y), np.einsum("kc,ncij->nkij", w[:, :, 0, 0], x) + bias[:, None, None])


@pytest.mark.parametrize("dtype", ["bool", "float16", "int32", "complex128"])
def test_im2col_of_any_dtype(case, dtype):
    g, arguments = case
    x = values(g.input_shape, dtype)
    X_conv = empty((g.N, g.C * prod(g.kernel), prod(g.out)), dtype)
    im2col.im2col(PLACE.send(x), g.axes, g.boundary_code, x.dtype.type(g.fill_value), X_conv)
    window = {name: value for name, value in arguments.items() if name != "groups"}
    np.testing.assert_array_equal(numbers(X_conv), naive.im2col(x, g.kernel, **window))


def test_matrices(case):
    g, arguments = case
    if g.fill_value:
        pytest.skip("an affine map has no matrix")
    w = values(g.kernel_shape, np.float64)
    W = PLACE.send(w)
    data, indices, indptr = kernel2row.triple(W, g.axes, g.boundary_code, g.groups)
    W_conv = scipy.sparse.csr_array(tuple(map(numbers, (data, indices, indptr))), shape=g.matrix_shape)
    assert W_conv.has_canonical_format
    assert indices.dtype == np.int32
    dense = naive.conv_matrix(w, g.size, **arguments)
    np.testing.assert_array_equal(W_conv.toarray(), dense)
    assert kernel2row.has_structure(indices, indptr, W, g.axes, g.boundary_code, g.groups)
    x, y = values((2, dense.shape[1])), values((2, dense.shape[0]))
    Y, X = empty(y.shape, np.float64), empty(x.shape, np.float64)
    assert csr.matvec(data, indices, indptr, PLACE.send(x), Y)
    np.testing.assert_array_equal(numbers(Y), x @ dense.T)
    assert csr.rmatvec(data, indices, indptr, PLACE.send(y), X)
    np.testing.assert_array_equal(numbers(X), y @ dense)


def test_csr_products_refuse_what_is_no_matrix():
    data, indices, indptr = (PLACE.send(np.array(a)) for a in ([1.0, 2.0], [0, 3], [0, 1, 2]))
    y = empty((1, 2), np.float64)
    assert not csr.matvec(data, indices, indptr, PLACE.send(np.ones((1, 3))), y)
    assert csr.matvec(data, indices, indptr, PLACE.send(np.ones((1, 4))), y)
    descending = PLACE.send(np.array([0, 2, 1]))
    assert not csr.matvec(data, indices, descending, PLACE.send(np.ones((1, 4))), y)


def test_running_sums():
    counts = np.random.default_rng(0).integers(0, 9, csr.CHUNK * 2 + 5)
    got = numbers(csr.before_each(PLACE.send(counts)))
    np.testing.assert_array_equal(got, np.cumsum(counts) - counts)


def test_copies_of_any_strides():
    x = np.arange(120.0).reshape(2, 3, 4, 5)
    a = PLACE.send(x)
    np.testing.assert_array_equal(numbers(np.moveaxis(a, 1, 3)), np.moveaxis(x, 1, 3))
    np.testing.assert_array_equal(numbers(np.flip(a, (0, 2))[:, ::2, 1:, ::-2]), np.flip(x, (0, 2))[:, ::2, 1:, ::-2])
    np.testing.assert_array_equal(numbers(a.swapaxes(1, 2).reshape(6, -1)), x.swapaxes(1, 2).reshape(6, -1))
    np.testing.assert_array_equal(numbers(a[0].astype("complex64")), x[0].astype("complex64"))
    z = x[0] * (1 + 2j)
    np.testing.assert_array_equal(numbers(PLACE.send(z).conj()), z.conj())
    b = np.zeros((2, 3), dtype=np.int32, like=a)
    b[:, 1] = 7
    np.testing.assert_array_equal(numbers(b), [[0, 7, 0], [0, 7, 0]])
    np.copyto(b, a[:, :, 0, 0])
    np.testing.assert_array_equal(numbers(b), x[:, :, 0, 0])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gradient_of_padding_wider_than_the_input(boundary):
    arguments = {"padding": ((7, 4), (0, 5)), "boundary": boundary}
    g = conv_geometry((1, 1, 3, 2), (1, 1, 2, 2), **arguments)
    _, w, _, dy = data(g, np.float64)
    dx = empty((1, 1, 3, 2), np.float64)
    adjoint.grad_input(implicit, PLACE.send(dy), PLACE.send(w), g, dx)
    np.testing.assert_array_equal(numbers(dx), naive.conv_grad_input((1, 1, 3, 2), w, dy, **arguments))


def test_more_than_32_bits_of_elements():
    """An input of 3 * 2**30 pixels, of which a stride meets a few; memory that nobody writes to is not there."""
    g = conv_geometry((3, 1, 1 << 30), (1, 1, 2), stride=1 << 29)
    x, w, dy = np.zeros(g.input_shape, np.uint8), np.array([[[1, 2]]], np.uint8), values((3, 1, 2), np.uint8)
    x[2, 0, 1 << 29], x[2, 0, (1 << 29) + 1], x[1, 0, 1] = 3, 5, 7
    X, fill, want = PLACE.read(x), np.uint8(0), [[[0, 0]], [[14, 0]], [[0, 13]]]
    for room in (direct, implicit):
        y, dw = empty(dy.shape, np.uint8), empty(w.shape, np.uint8)
        room.forward(X, PLACE.send(w), PLACE.zeros((1,), x.dtype), g.axes, 0, fill, y)
        np.testing.assert_array_equal(numbers(y), want)
        room.grad_weight(X, PLACE.send(dy), g.axes, 0, fill, dw)
        weights = [3 * dy[2, 0, 1], 7 * dy[1, 0, 0] + 5 * dy[2, 0, 1]]
        np.testing.assert_array_equal(numbers(dw).ravel(), np.array(weights).astype(np.uint8))
    X_conv = empty((3, 2, 2), np.uint8)
    im2col.im2col(X, g.axes, 0, fill, X_conv)
    np.testing.assert_array_equal(numbers(X_conv), [[[0, 0], [0, 0]], [[0, 0], [7, 0]], [[0, 3], [0, 5]]])
    far = empty((1, 2), np.uint8)
    far[...] = X[2, :, 1 << 29 : (1 << 29) + 2]
    np.testing.assert_array_equal(numbers(far), [[3, 5]])


# the public functions -----------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that were launched."""
    found, launch = [], Simulator.launch
    monkeypatch.setattr(Simulator, "launch", lambda *a: (found.append(a[2].__name__), launch(*a))[1])
    return found


@pytest.fixture
def allocated(monkeypatch):
    """Shape and dtype of everything that was allocated."""
    found, new = [], type(PLACE).empty
    monkeypatch.setattr(Place, "empty", lambda place, *a: (found.append(a), new(place, *a))[1])
    return found


@pytest.fixture(params=["host", "cupy"])
def there(request, monkeypatch):
    """Arrays of the host under ``use_device("cuda")``, or of another library: how they are sent and fetched."""
    if request.param == "host":
        with numconv.use_device("cuda"):
            yield np.asarray, np.asarray
    else:
        fake_libraries.install(monkeypatch, [])
        yield fake_libraries.cupy_array, lambda array: array.numbers


def test_functions(there):
    send, fetch = there
    x, w, bias = values((2, 4, 5, 4), np.float32), values((4, 2, 3, 2), np.float32, 1), values((4,), np.float32, 2)
    X, W = send(x), send(w)
    arguments = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "groups": 2, "boundary": "reflect"}
    y = fetch(numconv.conv(X, W, send(bias), **arguments))
    np.testing.assert_array_equal(y, naive.conv(x, w, bias, **arguments))
    dy = values(y.shape, np.float32, 3)
    dx, dw = numconv.conv_grad_input(x.shape, W, send(dy), **arguments), numconv.conv_grad_weight(
        X, w.shape, send(dy), **arguments
    )
    np.testing.assert_array_equal(fetch(dx), naive.conv_grad_input(x.shape, w, dy, **arguments))
    np.testing.assert_array_equal(fetch(dw), naive.conv_grad_weight(x, w.shape, dy, **arguments))
    t = numconv.conv_transpose(send(dy[:1]), W, send(bias), stride=2, groups=2)
    np.testing.assert_array_equal(fetch(t), naive.conv_transpose(dy[:1], w, bias, stride=2, groups=2))
    assert fetch(numconv.conv(X, W[:, :2], groups=2)).dtype == np.float32


@pytest.mark.parametrize("function", ["convolve", "correlate"])
def test_plain_functions(there, function):
    send, fetch = there
    x, w = values((5, 4), np.complex64), values((2, 3), np.complex64, 1)
    ours, oracle = getattr(numconv, function), getattr(naive, function)
    for mode, arguments in (("full", {}), ("same", {"boundary": "wrap"}), ("valid", {"stride": 2})):
        got = fetch(ours(send(x), send(w), mode, **arguments))
        np.testing.assert_array_equal(got, oracle(x, w, mode, **arguments))
    np.testing.assert_array_equal(fetch(ours(send(w), send(x), "valid")), oracle(w, x, "valid"))
    np.testing.assert_array_equal(fetch(ours(send(x), send(w[0]), "same", axes=1))[3], oracle(x[3], w[0], "same"))
    np.testing.assert_array_equal(fetch(ours(send(x), send(w), dilation=2)), oracle(x, w, dilation=2))


def test_matrix_functions(there, launched):
    send, fetch = there
    x = values((2, 3, 4), np.float64)
    X_conv = numconv.im2col(send(x), (2, 2), padding=1)
    np.testing.assert_array_equal(fetch(X_conv), naive.im2col(x, (2, 2), padding=1))
    for reduce in ("sum", "mean"):
        back = fetch(numconv.col2im(X_conv, x.shape, (2, 2), padding=1, reduce=reduce))
        np.testing.assert_allclose(back, naive.col2im(fetch(X_conv), x.shape, (2, 2), padding=1, reduce=reduce))
    folded = fetch(numconv.fold(numconv.unfold(send(x), 2), (3, 4), 2))
    np.testing.assert_array_equal(folded[:, 1, 1:3], 4 * x[:, 1, 1:3])
    assert {"_im2col", "_col2im", "_divide"} <= set(launched)
    symbols = np.array([["ab", "cd", "ef"]])  # items of 8 bytes are copied, whatever they are
    if fetch is np.asarray:
        np.testing.assert_array_equal(numconv.im2col(symbols, (1, 2)), [["cd", "ef"], ["ab", "cd"]])
        with pytest.raises(TypeError, match=r"items of 1, 2, 4, 8, 16 bytes .* got dtype <U3; use_device"):
            numconv.im2col(symbols.astype("U3"), (1, 2))


def test_sparse_functions(there, launched):
    send, fetch = there
    w, x = values((3, 2, 2, 2), np.float32), values((2 * 12,), np.float32)
    W_conv, want = numconv.kernel2row(send(w), (3, 4)), naive.conv_matrix(w, (3, 4))
    parts = W_conv.data, W_conv.indices, W_conv.indptr
    whole = scipy.sparse.csr_array(tuple(map(fetch, parts)), shape=W_conv.shape)
    np.testing.assert_array_equal(whole.toarray(), want)
    assert isinstance(W_conv, scipy.sparse.csr_array) == (fetch is np.asarray)
    np.testing.assert_array_equal(fetch(numconv.csr_matvec(*parts, send(x))), want @ x)
    y = values((want.shape[0],), np.float32)
    np.testing.assert_array_equal(fetch(numconv.csr_rmatvec(*parts, send(y), want.shape[1])), y @ want)
    half = send(fetch(parts[0]).astype(np.float16))
    got = fetch(numconv.csr_matvec(half, *parts[1:], send(x.astype(np.float16))))
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, want @ x)
    assert {"_structure", "_values", "_matvec", "_gather"} <= set(launched)
    plan = numconv.plan_conv((2, 3, 4), w.shape, device="cuda", flip=True)
    launched.clear()
    assert plan.refill(W_conv, send(2 * w)) is W_conv
    assert "_values" in launched
    np.testing.assert_array_equal(fetch(numconv.csr_matvec(W_conv.data, *parts[1:], send(x))), 2 * want @ x)
    with pytest.raises(ValueError, match="indices and indptr must be those of a CSR matrix"):
        numconv.csr_matvec(*parts, send(x[:3].copy()))


@pytest.mark.parametrize("algorithm", ["direct", "implicit", "im2col"])
def test_half_precision(there, allocated, algorithm):
    """float16 is read and written as it is, and summed in float32: nothing of the size of ``x`` is cast."""
    send, fetch = there
    g = {"padding": 1, "boundary": "reflect"}
    x, w, bias = (values(s, np.float16, seed) for seed, s in enumerate(((1, 2, 6, 5), (2, 2, 3, 3), (2,))))
    # sums that float16 cannot hold must not be rounded twice
    x, w, fine = x * np.float16(17 / 16), w * np.float16(33 / 32), np.float16(2**-9)
    plan = numconv.plan_conv(x.shape, w.shape, dtype=np.float16, algorithm=algorithm, device="cuda", **g)
    y = fetch(plan.forward(send(x), send(w), send(bias + fine)))
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, naive.narrow(naive.conv(x, w, (bias + fine).astype(float), **g), np.float16))
    shapes = (x.shape, y.shape, (1, 2 * 9, 30), (1, 1, 2 * 9, 30))
    assert not [shape for shape, dtype in allocated if dtype == np.float32 and tuple(shape) in shapes]
    dy = values(y.shape, np.float16, 3)
    dx, dw = fetch(plan.grad_input(send(dy), send(w))), fetch(plan.grad_weight(send(x), send(dy)))
    for got, want in (
        (dx, naive.conv_grad_input(x.shape, w, dy, **g)), (dw, naive.conv_grad_weight(x, w.shape, dy, **g)),
    ):  # fmt: skip
        np.testing.assert_array_equal(got, naive.narrow(want, np.float16))


def test_small_dtypes(there):
    send, fetch = there
    x, w, bias = values((1, 2, 3, 3), np.float16), values((2, 1, 2, 2), np.float16, 1), values((1,), np.float16, 2)
    t = fetch(numconv.conv_transpose(send(x), send(w), send(bias), stride=2))
    assert t.dtype == np.float16
    np.testing.assert_array_equal(t, naive.conv_transpose(x, w, bias, stride=2))
    cols = values((4, 4), np.float16)
    for reduce in ("sum", "mean"):
        back = fetch(numconv.col2im(send(cols), (3, 3), 2, reduce=reduce))
        assert back.dtype == np.float16
        want = naive.col2im(cols, (3, 3), (2, 2), reduce=reduce)
        np.testing.assert_array_equal(back, naive.narrow(want, np.float16))
    some = fetch(numconv.convolve(send(x[0, 0] > 0), send(w[0, 0] > 0)))
    assert some.dtype == bool
    np.testing.assert_array_equal(some, naive.narrow(naive.convolve(x[0, 0] > 0, w[0, 0] > 0), bool))


def test_out_and_overlap():
    """A result goes where the caller wants it, strided or of another dtype, and may overlap an input."""
    x, w = values((1, 1, 4, 4)), values((1, 1, 3, 3), seed=1)
    X, W, want = PLACE.send(x), PLACE.send(w), naive.conv(x, w, padding=1)
    room = PLACE.zeros((1, 1, 4, 8), np.dtype(np.float64))
    out = room[:, :, :, ::2]
    assert numconv.conv(X, W, padding=1, out=out) is out
    np.testing.assert_array_equal(numbers(room)[..., ::2], want)
    np.testing.assert_array_equal(numbers(room)[..., 1::2], 0)
    narrow = empty((1, 1, 4, 4), np.float32)
    numconv.conv(X, W, padding=1, out=narrow)
    np.testing.assert_array_equal(numbers(narrow), want)
    numconv.conv(X, W, padding=1, out=X)
    np.testing.assert_array_equal(numbers(X), want)
    with pytest.raises(TypeError, match=r"x: simulator on cuda:0, .*out: numpy"):
        numconv.conv(X, W, padding=1, out=np.empty((1, 1, 4, 4)))


def test_plans_follow_the_arrays():
    """Arrays on a device are computed there even by a plan for the CPU; a plan for the GPU takes host arrays, too."""
    x, w = values((1, 2, 4, 4), np.float32), values((2, 2, 3, 3), np.float32, 1)
    here, far = (numconv.plan_conv(x.shape, w.shape, device=device) for device in ("cpu", "cuda"))
    assert (here.device, far.device) == ("cpu", "cuda")
    want = naive.conv(x, w)
    for got in (here.forward(x, w), far.forward(x, w), numbers(here.forward(PLACE.send(x), PLACE.send(w)))):
        np.testing.assert_array_equal(got, want)
    assert far.linear_operator(w) @ x.ravel() == pytest.approx(want.ravel())
    assert here.norm(PLACE.send(w)) == here.norm(w) == pytest.approx(far.norm(w))
    np.testing.assert_array_equal(far.gram_diagonal(PLACE.send(w)), here.gram_diagonal(w))
    assert max(far.check().values()) < 1e-5
    triple = far.matrix(PLACE.send(w))
    assert far.refill(triple, PLACE.send(2 * w)) is triple
    W_conv = scipy.sparse.csr_array(tuple(map(numbers, map(PLACE.read, triple))))
    np.testing.assert_array_equal(W_conv @ x.ravel(), 2 * want.ravel())
    with pytest.raises(ValueError, match="csr must have the structure"):
        numconv.plan_conv((1, 2, 5, 5), w.shape).refill(triple, PLACE.send(w))


def test_memory_of_the_device_is_asked(monkeypatch):
    x, w = (PLACE.send(np.zeros((1, 1, n, n), np.float32)) for n in (2080, 3))
    monkeypatch.setattr(type(PLACE), "available", lambda self: 1 << 20)
    with pytest.raises(MemoryError, match=r"17,.* bytes .* are available"):
        numconv.conv(x, w)


def test_images_beyond_32_bits_are_refused():
    g = conv_geometry((1, 1, 1 << 16, 1 << 16), (1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 pixels"):
        direct.rows_and_taps(PLACE, g.axes, 0)
