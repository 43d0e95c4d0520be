"""On a real GPU: ``pytest -m gpu``. All of this skips where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
import scipy.sparse
import tensor_cores
from conftest import BOUNDARIES, normal, values
from public_calls import CALLS, LAYOUTS, TORCH, Library, flat, refused, same, short, wanted, with_gradient

import numconv
from numconv import dispatch

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_gpu(request):
    """Not asked as tests are collected: other tests fork. Who asks for these tests where there is a GPU gets them."""
    if not dispatch.has_gpu():
        why_not = f"no GPU can be used: {dispatch.no_cuda() or 'this is the simulator'}"
        if request.config.getoption("-m") == "gpu" and the_system_has_one():
            pytest.fail(f"there is a GPU, but {why_not}")
        pytest.skip(why_not)


def the_system_has_one():
    """Whether there is a GPU, whatever Python can make of it; NUMCONV_GPU=1 or 0 says it where the system does not."""
    said = os.environ.get("NUMCONV_GPU")
    if said is not None:
        return said != "0"
    signs = (("/proc/driver/nvidia/gpus", "*"), ("/dev", "nvidia[0-9]*"), ("/dev", "dxg"))
    return any(path for folder, pattern in signs for path in Path(folder).glob(pattern))


ALGORITHMS = ("direct", "implicit", "im2col")

#: A layer for each kernel and tile: large and small tiles, few channels, depthwise, one and three axes.
LAYERS = {
    "large tile": ((8, 64, 56, 56), (128, 64, 3, 3), {"padding": 1}),
    "strided": ((4, 32, 31, 33), (48, 32, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((2, 129, 14, 14), (65, 129, 1, 1), {}),
    "image": ((2, 3, 64, 48), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((2, 32, 28, 28), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    "grouped": ((2, 16, 20, 20), (24, 4, 3, 3), {"padding": 2, "dilation": 2, "groups": 4}),
    "line": ((3, 5, 301), (7, 5, 9), {"padding": 4}),
    "volume": ((1, 4, 12, 11, 10), (6, 4, 3, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
    "asymmetric": ((2, 6, 9, 40), (6, 6, 3, 5), {"padding": ((0, 2), (3, 1)), "flip": True}),
}


class OfTorch:
    """torch's tensors."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        if not self.torch.cuda.is_available():
            pytest.skip("torch sees no GPU")

    def send(self, array):
        return self.torch.from_numpy(np.array(array)).cuda()

    def fetch(self, tensor):
        return tensor.cpu().numpy()

    def stream(self):
        return self.torch.cuda.stream(self.torch.cuda.Stream())

    def is_ours(self, y):
        return isinstance(y, self.torch.Tensor) and y.is_cuda


class OfCuPy:
    """CuPy's arrays."""

    def __init__(self):
        self.cupy = pytest.importorskip("cupy")

    def send(self, array):
        return self.cupy.asarray(np.array(array))

    def fetch(self, array):
        return self.cupy.asnumpy(array)

    def stream(self):
        return self.cupy.cuda.Stream(non_blocking=True)

    def is_ours(self, y):
        return isinstance(y, self.cupy.ndarray)


class OfNumba:
    """numba's device arrays, read by the CUDA array interface."""

    def __init__(self):
        from numconv.cuda._jit import cuda

        self.cuda = cuda

    def send(self, array):
        return self.cuda.to_device(np.ascontiguousarray(array))

    def fetch(self, array):
        return array.copy_to_host()

    def is_ours(self, y):
        return hasattr(y, "copy_to_host")


class OfHost:
    """NumPy's arrays, which go there and back."""

    def send(self, array):
        return np.array(array)

    def fetch(self, array):
        return array

    def is_ours(self, y):
        return isinstance(y, np.ndarray)


@pytest.fixture(params=[OfTorch, OfCuPy, OfNumba, OfHost], ids=["torch", "cupy", "numba", "numpy"])
def library(request):
    with numconv.use_device("cuda"):
        yield request.param()


@pytest.fixture(params=[OfTorch, OfCuPy], ids=["torch", "cupy"])
def with_streams(request):
    return request.param()


def close(got, want, dtype, terms, in_parts=False):
    """Within the rounding of a sum of so many products of normal numbers, summed in the dtype or in float32.

    A sum of ``n`` of them, one after another, is off by half a bit of what it has come to, ``n`` times at random: by
    ``eps * n / 5``, of which ten times are not seen among millions of sums. A sum ``in_parts`` is off by less.
    """
    assert got.dtype == dtype
    eps = float(np.finfo(np.float32 if dtype == np.float16 else dtype).eps)
    own = float(np.finfo(dtype).eps)
    sums = eps * max(32 * terms**0.5, 0 if in_parts else 2 * terms)
    np.testing.assert_allclose(got.astype(want.dtype), want, rtol=2 * own, atol=sums + own * terms**0.5)


def of_cpu(x, w, dy, arguments):
    """The three products in float64 (or complex128) on the CPU, which has tests of its own."""
    with numconv.use_device("cpu"):
        wide = [a.astype(np.result_type(a, np.float64)) for a in (x, w, dy)]
        return (
            numconv.conv(wide[0], wide[1], algorithm="direct", **arguments),
            numconv.conv_grad_input(x.shape, wide[1], wide[2], **arguments),
            numconv.conv_grad_weight(wide[0], w.shape, wide[2], **arguments),
        )


class FromTable(Library):
    """A library as the table of public calls takes it."""

    def __init__(self, library):
        self.library = library
        self.name = {OfTorch: "torch", OfCuPy: "cupy", OfNumba: "others", OfHost: "sent"}[type(library)]

    def __call__(self, array):
        return self.library.send(array)

    def fetch(self, array):
        return array if isinstance(array, np.ndarray) else self.library.fetch(array)


#: NUMCONV_GPU_TABLE=all runs all of it, every dtype among it, for which kernels take minutes to compile.
TABLE = CALLS if os.environ.get("NUMCONV_GPU_TABLE") == "all" else short(CALLS)


@pytest.mark.parametrize("call", TABLE, ids=str)
def test_the_table_of_public_calls(library, call):
    """What ``docs/gpu.md`` says: the CPU's values, dtypes and shapes, or an error in its words."""
    to = FromTable(library)
    if to.name in call.without or (to.name == "others" and any(layout in call.feature for layout in LAYOUTS)):
        pytest.skip("the library has no such arrays")
    if not refused(call, to):
        same(call, flat(call.run(to), to.fetch), wanted(call))


@pytest.mark.parametrize("name", sorted(TORCH))
def test_what_torch_differentiates(name):
    """``numconv.interop.torch`` with tensors on a GPU: the values and gradients that tensors on the CPU have."""
    of_torch = OfTorch()
    from numconv.interop import torch as room

    there = with_gradient(room, name, FromTable(of_torch))
    assert all(map(of_torch.is_ours, there))
    with numconv.use_device("cpu"):
        here = with_gradient(room, name, of_torch.torch.from_numpy)
    for got, want in zip(map(of_torch.fetch, there), here, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", LAYERS)
def test_parity_with_float64(library, name, algorithm):
    x_shape, w_shape, arguments = LAYERS[name]
    plan = numconv.plan_conv(x_shape, w_shape, device="cuda", algorithm=algorithm, **arguments)
    x, w, dy = (normal(s, np.float32, seed) for seed, s in enumerate((x_shape, w_shape, plan.output_shape)))
    y, dx, dw = of_cpu(x, w, dy, arguments)
    X, W, dY = map(library.send, (x, w, dy))
    got = plan.forward(X, W)
    assert library.is_ours(got)
    taps = int(np.prod(w_shape[2:]))
    close(library.fetch(got), y, np.float32, w_shape[1] * taps)
    close(library.fetch(plan.grad_input(dY, W)), dx, np.float32, w_shape[0] * taps)
    close(library.fetch(plan.grad_weight(X, dY)), dw, np.float32, dy.size // w_shape[0], in_parts=True)


LARGE_KERNELS = {
    "filter": ((2, 1, 300, 310), (1, 1, 31, 33), {"padding": 16}),
    "depthwise 31x31": ((3, 16, 56, 56), (16, 1, 31, 31), {"padding": 15, "groups": 16}),
    "in blocks": ((1, 2, 1200, 900), (3, 2, 41, 40), {"boundary": "reflect", "padding": 20}),
    "signal": ((2, 3, 100001), (4, 3, 501), {"stride": 3}),
    "dilated volume": ((1, 2, 30, 31, 29), (2, 2, 5, 4, 5), {"dilation": 2, "stride": (1, 2, 1), "boundary": "wrap"}),
}


@pytest.mark.parametrize("name", [*LARGE_KERNELS, *LAYERS])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_fft_is_right_to_the_last_digits(with_streams, name, dtype):
    """Its sums are in double precision: nothing but the last rounding is seen of it."""
    x_shape, w_shape, arguments = {**LARGE_KERNELS, **LAYERS}[name]
    plan = numconv.plan_conv(x_shape, w_shape, dtype=dtype, device="cuda", algorithm="fft", **arguments)
    x, w, dy = (normal(s, dtype, seed) for seed, s in enumerate((x_shape, w_shape, plan.output_shape)))
    with numconv.use_device("cpu"):
        wide = [a.astype(np.result_type(a, np.float64)) for a in (x, w, dy)]
        given = {**arguments, "algorithm": "fft"}
        want = (
            numconv.conv(*wide[:2], **given), numconv.conv_grad_input(x_shape, wide[1], wide[2], **given),
            numconv.conv_grad_weight(wide[0], w_shape, wide[2], **given),
        )  # fmt: skip
    X, W, dY = map(with_streams.send, (x, w, dy))
    for _ in range(2):  # the second time it is replayed
        got = plan.forward(X, W), plan.grad_input(dY, W), plan.grad_weight(X, dY)
        for ours, exact in zip(map(with_streams.fetch, got), want, strict=True):
            assert np.abs(ours - exact).max() <= 2 * np.finfo(np.float32).eps * np.abs(exact).max()


def test_an_image_has_the_bits_that_it_has_alone(with_streams):
    """By kernels and by FFT; a BLAS may take another kernel of its own for another batch."""
    x, w = normal((40, 6, 61, 50), np.float32), normal((8, 6, 9, 7), np.float32, 1)
    X, W = with_streams.send(x), with_streams.send(w)
    dY = with_streams.send(normal((40, 8, 53, 44), np.float32, 2))
    for algorithm in ("fft", "implicit", "direct"):
        many, one = (
            numconv.plan_conv((n, 6, 61, 50), w.shape, device="cuda", algorithm=algorithm) for n in (40, 1)
        )
        y, dX = with_streams.fetch(many.forward(X, W)), with_streams.fetch(many.grad_input(dY, W))
        for n in (0, 17, 39):
            np.testing.assert_array_equal(with_streams.fetch(one.forward(X[n : n + 1], W))[0], y[n], algorithm)
            np.testing.assert_array_equal(with_streams.fetch(one.grad_input(dY[n : n + 1], W))[0], dX[n], algorithm)


def test_fft_on_the_callers_stream_and_the_same_bits_every_time(with_streams):
    x, w = normal((4, 3, 200, 200), np.float32), normal((3, 3, 31, 31), np.float32, 1)
    X, W = with_streams.send(x), with_streams.send(w)
    plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft")
    want = with_streams.fetch(plan.forward(X, W))
    for _ in range(5):
        with with_streams.stream():
            Z = 0 * X
            for _ in range(50):
                Z = Z + X / 50
            Z[...] = X
            y = plan.forward(Z, W)
            Z[...] = 0
            got = with_streams.fetch(y)
        np.testing.assert_array_equal(got, want)


def test_fft_of_what_is_not_finite_and_of_marks(with_streams):
    x, w = normal((3, 2, 60, 60), np.float32), normal((2, 2, 15, 15), np.float32, 1)
    x[1, 0, 20, 21], x[2, 1, 40, 3] = np.nan, 1e25
    X, W = with_streams.send(x), with_streams.send(w)
    got, want = (
        with_streams.fetch(numconv.conv(X, W, algorithm=algorithm)) for algorithm in ("fft", "direct")
    )
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    reads = np.zeros(got.shape, bool)
    reads[2, :, 26:41, :4] = True
    there = np.isfinite(want) & ~reads
    np.testing.assert_allclose(got[there], want[there], atol=1e-3)


def test_arrays_without_an_fft_are_refused():
    with numconv.use_device("cuda"):
        for send in (OfNumba().send, OfHost().send):
            x, w = send(normal((1, 1, 99, 99), np.float32)), send(normal((1, 1, 33, 33), np.float32))
            with pytest.raises(ValueError, match=r"'fft' cannot serve.*torch or CuPy.*no FFT"):
                numconv.conv(x, w, algorithm="fft")
            assert numconv.conv(x, w).shape == (1, 1, 67, 67)


def has_tensor_cores():
    """Whether the GPU has those of TF32."""
    from numconv.cuda import mma, places

    return mma.capable(places.host())


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("name", LAYERS)
def test_tensor_cores_are_within_the_bound_of_the_model(library, name, precision):
    """And each precision is its own: TF32 is seen in the digits, and three products are better than that."""
    x_shape, w_shape, arguments = LAYERS[name]
    given = {"device": "cuda", "algorithm": "implicit", "precision": precision, **arguments}
    plan = numconv.plan_conv(x_shape, w_shape, **given)
    x, w, dy = (normal(s, np.float32, seed) for seed, s in enumerate((x_shape, w_shape, plan.output_shape)))
    want, sizes = of_cpu(x, w, dy, arguments), of_cpu(*map(np.abs, (x, w, dy)), arguments)
    X, W, dY = map(library.send, (x, w, dy))
    got = plan.forward(X, W), plan.grad_input(dY, W), plan.grad_weight(X, dY)
    taps = int(np.prod(w_shape[2:]))
    terms = (w_shape[1] * taps, w_shape[0] * taps, dy.size // w_shape[0])
    for found, exact, size, n in zip(map(library.fetch, got), want, sizes, terms, strict=True):
        off = np.abs(found - exact)
        assert (off <= tensor_cores.room(size, n + 16 * taps, precision)).all()
        if has_tensor_cores() and n >= 8:
            assert (off.max() > 1e-5 * np.abs(exact).max()) == (precision == "tf32")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_tensor_cores_exactly(library, boundary, precision, dtype):
    """Small multiples of 1/2 are numbers of TF32, and their sums exact in any order."""
    x, w = values((2, 19, 9, 8), dtype), values((35, 19, 3, 2), dtype, 1)
    arguments = {"padding": 2, "stride": (2, 1), "boundary": boundary}
    given = {"algorithm": "implicit", "precision": precision, **arguments}
    X, W = library.send(x), library.send(w)
    y = numconv.conv(X, W, **given)
    want = naive.narrow(naive.conv(x, w, **arguments), np.dtype(dtype))
    np.testing.assert_array_equal(library.fetch(y), want)
    dy = values(want.shape, dtype, 2)
    dx = numconv.conv_grad_input(x.shape, W, library.send(dy), **given)
    dw = numconv.conv_grad_weight(X, w.shape, library.send(dy), **given)
    with numconv.use_device("cpu"):
        for got, exact in (
            (dx, numconv.conv_grad_input(x.shape, w, dy, **arguments)),
            (dw, numconv.conv_grad_weight(x, w.shape, dy, **arguments)),
        ):
            np.testing.assert_array_equal(library.fetch(got), exact)


def test_infinity_by_tensor_cores(with_streams):
    """As float32 has it, where a number is the sum of two."""
    x, w = np.ones((1, 2, 1, 5), np.float32), np.array([[1, 1], [-2, 0.5]], np.float32).reshape(2, 2, 1, 1)
    x[0, 0, 0] = np.inf, -np.inf, np.nan, 3e38, 1e-40
    for precision in ("ieee", "tf32", "tf32x3"):
        y = numconv.conv(with_streams.send(x), with_streams.send(w), algorithm="implicit", precision=precision)
        got = with_streams.fetch(y)[0, :, 0]
        np.testing.assert_array_equal(got[:, :3], [[np.inf, -np.inf, np.nan], [-np.inf, np.inf, np.nan]])
        np.testing.assert_allclose(got[0, 3:], [3e38, 1], rtol=1e-3)
        assert got[1, 3] == -np.inf


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "complex128", "int8", "int64", "bool"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_dtypes_and_boundaries_exactly(library, dtype, boundary):
    """Small multiples of 1/2, whose sums are exact in any order: bit for bit what the naive sum is."""
    if dtype == "bool" and isinstance(library, OfNumba):
        pytest.skip("the CPU's rule for bool is tested through the others")
    x, w = values((2, 3, 9, 8), dtype), values((4, 3, 3, 2), dtype, 1)
    arguments = {"padding": 2, "stride": (2, 1), "boundary": boundary}
    want = naive.narrow(naive.conv(x, w, **arguments), np.dtype(dtype))
    for algorithm in ALGORITHMS:
        got = library.fetch(numconv.conv(library.send(x), library.send(w), algorithm=algorithm, **arguments))
        np.testing.assert_array_equal(got, want, err_msg=algorithm)


def test_half_precision_layers(library):
    x_shape, w_shape, arguments = LAYERS["large tile"]
    x, w = normal(x_shape, np.float16), (normal(w_shape, np.float16, 1) / 16).astype(np.float16)
    with numconv.use_device("cpu"):
        want = numconv.conv(x.astype(np.float32), w.astype(np.float32), **arguments)
    got = library.fetch(numconv.conv(library.send(x), library.send(w), **arguments))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2e-3, atol=2e-3)


def test_inputs_that_are_not_contiguous(with_streams):
    x, w = normal((2, 8, 30, 40), np.float32), normal((16, 8, 3, 3), np.float32, 1)
    X, W = with_streams.send(x), with_streams.send(w)
    close(with_streams.fetch(numconv.conv(X[:, :, ::2, 3:], W)), of_cpu(
        x[:, :, ::2, 3:], w, np.zeros((2, 16, 13, 35)), {})[0], np.float32, 72)  # fmt: skip
    turned = with_streams.fetch(numconv.conv(X.swapaxes(2, 3), W.swapaxes(2, 3)))
    np.testing.assert_allclose(turned.swapaxes(2, 3), with_streams.fetch(numconv.conv(X, W)), atol=1e-4)
    room = with_streams.send(np.zeros((2, 16, 28, 76), np.float32))
    out = room[..., ::2]
    assert numconv.conv(X, W, out=out) is out
    np.testing.assert_array_equal(with_streams.fetch(room)[..., ::2], with_streams.fetch(numconv.conv(X, W)))
    assert not with_streams.fetch(room)[..., 1::2].any()


def test_work_goes_to_the_callers_stream(with_streams):
    """Long work before ours on one stream: were ours on another, it would read what is not there yet."""
    x, w = normal((16, 64, 64, 64), np.float32), normal((64, 64, 3, 3), np.float32, 1)
    X, W = with_streams.send(x), with_streams.send(w)
    want = with_streams.fetch(numconv.conv(X, W, padding=1))
    for _ in range(3):
        with with_streams.stream():
            Z = 0 * X
            for _ in range(50):
                Z = Z + X / 50
            Z[...] = X
            y = numconv.conv(Z, W, padding=1)
            Z[...] = 0
            got = with_streams.fetch(y)
        np.testing.assert_array_equal(got, want)


def test_the_same_bits_every_time(with_streams):
    x, w = normal((8, 48, 40, 40), np.float32), normal((64, 48, 3, 3), np.float32, 1)
    X, W = with_streams.send(x), with_streams.send(w)
    dY = with_streams.send(normal((8, 64, 38, 38), np.float32, 2))
    for algorithm in ("direct", "implicit"):
        plan = numconv.plan_conv(x.shape, w.shape, algorithm=algorithm)
        for call in (
            lambda plan=plan: plan.forward(X, W), lambda plan=plan: plan.grad_input(dY, W),
            lambda plan=plan: plan.grad_weight(X, dY),
        ):
            first = with_streams.fetch(call())
            for _ in range(20):
                np.testing.assert_array_equal(with_streams.fetch(call()), first)


def test_matrices(library):
    w, x = normal((6, 3, 3, 3)), normal((3, 20, 21))
    plan = numconv.plan_conv(x.shape, w.shape, dtype=np.float64, device="cuda", padding=1, boundary="reflect")
    with numconv.use_device("cpu"):
        W_conv, cols = numconv.plan_conv(
            x.shape, w.shape, dtype=np.float64, device="cpu", padding=1, boundary="reflect"
        ).matrix(w), numconv.im2col(x, (3, 3), padding=1, boundary="reflect", flip=False)
    np.testing.assert_array_equal(library.fetch(plan.im2col(library.send(x))), cols)
    made = plan.matrix(library.send(w))
    parts = made if isinstance(made, tuple) else (made.data, made.indices, made.indptr)
    for got, want in zip(parts, (W_conv.data, W_conv.indices, W_conv.indptr), strict=True):
        np.testing.assert_array_equal(library.fetch(got), want)
    assert isinstance(made, scipy.sparse.csr_array) == isinstance(library, OfHost)
    if isinstance(library, OfCuPy):
        from cupyx.scipy.sparse import csr_matrix

        assert isinstance(made, csr_matrix)
        vector = library.send(x.ravel())
        np.testing.assert_allclose(library.fetch(made @ vector), W_conv @ x.ravel(), atol=1e-12)
        A = plan.linear_operator(library.send(w))
        np.testing.assert_allclose(library.fetch(A.matvec(vector)), W_conv @ x.ravel(), atol=1e-12)
        y = normal((W_conv.shape[0],))
        np.testing.assert_allclose(library.fetch(A.rmatvec(library.send(y))), W_conv.T @ y, atol=1e-12)
    y, z = normal((W_conv.shape[0],)), x.ravel()
    np.testing.assert_allclose(library.fetch(numconv.csr_matvec(*parts, library.send(z))), W_conv @ z, atol=1e-12)
    back = numconv.csr_rmatvec(*parts, library.send(y), W_conv.shape[1])
    np.testing.assert_allclose(library.fetch(back), W_conv.T @ y, atol=1e-12)
    plan.refill(made, library.send(2 * w))
    np.testing.assert_array_equal(library.fetch(parts[0]), 2 * W_conv.data)
    folded = library.fetch(plan.col2im(library.send(cols)))
    with numconv.use_device("cpu"):
        want = numconv.col2im(cols, x.shape, (3, 3), padding=1, boundary="reflect", flip=False)
    np.testing.assert_allclose(folded, want, atol=1e-12)


def test_plans_agree_with_themselves():
    plan = numconv.plan_conv((2, 12, 20, 20), (16, 6, 3, 3), device="cuda", groups=2, padding=1, boundary="wrap")
    assert max(plan.check().values()) < 1e-5


def test_out_of_memory_leaves_a_usable_process(with_streams):
    x, w = with_streams.send(normal((1, 1, 64, 64), np.float32)), with_streams.send(normal((1, 1, 3, 3), np.float32))
    before = with_streams.fetch(numconv.conv(x, w))
    huge = 1 << 20
    with pytest.raises(MemoryError, match="bytes"):  # refused before anything is taken: 16 TiB
        numconv.im2col(x, (3, 3), padding=huge)
    taken, most = [], dispatch.free_memory(x_of(x), "cuda")()
    with pytest.raises(MemoryError):  # refused by the allocator, as nothing of it was asked for first
        place = x_of(x).place
        taken.append(place.empty((2 * most,), np.dtype(np.uint8)))
    del taken
    np.testing.assert_array_equal(with_streams.fetch(numconv.conv(x, w)), before)


def x_of(array):
    """An array as numconv sees it."""
    (seen,), _ = dispatch.read(x=array)
    return seen


def test_an_array_of_another_gpu(with_streams):
    from numconv.cuda._jit import cuda

    if len(cuda.gpus) < 2:
        pytest.skip("there is one GPU")
    x, w = normal((2, 4, 20, 20), np.float32), normal((8, 4, 3, 3), np.float32, 1)
    if isinstance(with_streams, OfTorch):
        X, W = (with_streams.torch.from_numpy(a).to("cuda:1") for a in (x, w))
        y = numconv.conv(X, W)
        assert y.device.index == 1
    else:
        with with_streams.cupy.cuda.Device(1):
            X, W = map(with_streams.send, (x, w))
        y = numconv.conv(X, W)
        assert y.device.id == 1
    close(with_streams.fetch(y), of_cpu(x, w, np.zeros((2, 8, 18, 18)), {})[0], np.float32, 36)
    with pytest.raises(TypeError, match=r"x: .* on cuda:1, w: .* on cuda:0"):
        numconv.conv(X, with_streams.send(w))


def test_more_than_32_bits_of_elements():
    """2**31 and some pixels of one byte, of which the last ones are looked at."""
    from numconv.cuda.places import host

    if host().available() < 9 << 30:
        pytest.skip("it needs 9 GiB")
    n = (1 << 30) + 64
    x, place = host().zeros((3, 1, n), np.dtype(np.uint8)), host()
    x[2, :, n - 64 :] = place.send(np.arange(64, dtype=np.uint8).reshape(1, 64))
    w = place.send(np.array([[[1, 2]]], np.uint8))
    y = numconv.conv(x, w)
    tail = place.to_host(y[2, 0, y.shape[2] - 63 :].reshape(63))
    np.testing.assert_array_equal(tail, (3 * np.arange(63) + 2).astype(np.uint8))
    assert not place.to_host(y[2, 0, : 1 << 20].reshape(1 << 20)).any()


def test_a_fork_after_cuda_was_used_is_told():
    code = (
        "import numconv, numpy as np, os, sys\n"
        "with numconv.use_device('cuda'):\n"
        "    numconv.convolve(np.ones(9), np.ones(3))\n"
        "if os.fork() == 0:\n"
        "    numconv.convolve(np.ones(9), np.ones(3))\n"
        "    try:\n"
        "        numconv.use_device('cuda').__enter__()\n"
        "    except RuntimeError as error:\n"
        "        os._exit(0 if 'spawn' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bench_runs(tmp_path, capsys):
    from numconv.cli import main

    file = tmp_path / "cuda.json"
    words = f"bench --device cuda --layers resnet50,matrices --case 14x14 --seconds 0.1 --json {file}"
    assert main(words.split()) == 0, capsys.readouterr().out
    assert "allow_tf32=False" in capsys.readouterr().out
