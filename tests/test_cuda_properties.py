"""Random geometries through numba's simulator: the cases of the CPU's property tests and of its fuzz, on few pixels.

Integers, and sums of small multiples of 1/2, are the CPU's bit for bit; other numbers are within the rounding of a sum
in any order.
"""

from __future__ import annotations

import fake_libraries
import numpy as np
import pytest
from conftest import BOUNDARIES, assert_close, normal, values
from fake_libraries import cupy_array
from fuzz_cases import Choices, draw
from fuzz_checks import Trial, call_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulator import in_simulator
from strategies import cases, plain_cases

import numconv

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # of NumPy's whole numbers

#: A thread of the simulator is a thread of Python: fewer examples than on the CPU.
few = settings(
    max_examples=max(4, settings.default.max_examples // 10), suppress_health_check=[*HealthCheck]
)
RINGS = ["float32", "complex64", "int64"]


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    fake_libraries.install(monkeypatch, [])


def there(array):
    """An array of another library on the GPU."""
    return cupy_array(np.array(array))


def same(got, want):
    """``got``, which lies there, is what the CPU gave."""
    got = getattr(got, "numbers", got)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("algorithm", ["direct", "implicit", "im2col"])
@given(case=cases(dtypes=RINGS))
@few
def test_products(algorithm, case):
    x, w, geometry = case.x, case.w, case.geometry
    y = numconv.conv(x, w, algorithm="direct", **geometry)
    dy = case.dy(y.shape)
    plan = numconv.plan_conv(x.shape, w.shape, dtype=case.dtype, algorithm=algorithm, device="cuda", **geometry)
    same(plan.forward(there(x), there(w)), y)
    dx = numconv.conv_grad_input(x.shape, w, dy, algorithm="direct", **geometry)
    same(plan.grad_input(there(dy), there(w)), dx)
    dw = numconv.conv_grad_weight(x, w.shape, dy, algorithm="direct", **geometry)
    same(plan.grad_weight(there(x), there(dy)), dw)


@given(case=cases(dtypes=["float32"]))
@few
def test_products_of_numbers_that_round(case):
    x, w = normal(case.x_shape, np.float32, case.seed), normal(case.w_shape, np.float32, case.seed + 1)
    wide = [a.astype(np.float64) for a in (x, w)]
    y = numconv.conv(*wide, algorithm="direct", **case.geometry)
    scale = np.abs(x).max() * np.abs(w).max() * w[0].size
    assert_close(numconv.conv(there(x), there(w), **case.geometry).numbers, y, np.float32, scale)
    dy = normal(y.shape, np.float32, case.seed + 2)
    arguments = {"algorithm": "direct", **case.geometry}
    dx = numconv.conv_grad_input(x.shape, wide[1], dy.astype(np.float64), **arguments)
    got = numconv.conv_grad_input(x.shape, there(w), there(dy), **case.geometry).numbers
    folds = 1 + max((sum(n) for n in _padding(case)), default=0)  # a boundary adds copies of pixels up
    assert_close(got, dx, np.float32, np.abs(dy).max() * np.abs(w).max() * w.size * folds)
    dw = numconv.conv_grad_weight(wide[0], w.shape, dy.astype(np.float64), **arguments)
    got = numconv.conv_grad_weight(there(x), w.shape, there(dy), **case.geometry).numbers
    assert_close(got, dw, np.float32, np.abs(dy).max() * np.abs(x).max() * dy.size)


def _padding(case):
    return numconv.plan_conv(case.x_shape, case.w_shape, **case.geometry).geometry.padding


@given(case=cases(dtypes=RINGS, fill=False), data=st.data())
@few
def test_transposes(case, data):
    w, d = case.w, len(case.kernel)
    geometry = {name: case.geometry[name] for name in ("stride", "dilation", "padding", "groups", "flip", "boundary")}
    stride, dilation = (np.broadcast_to(geometry[name], d) for name in ("stride", "dilation"))
    if not isinstance(geometry["padding"], str):
        geometry["output_padding"] = tuple(
            data.draw(st.integers(0, max(pair) - 1)) for pair in zip(stride.tolist(), dilation.tolist(), strict=True)
        )
    x = values((1, w.shape[0], *(data.draw(st.integers(1, 3)) for _ in range(d))), case.dtype, case.seed)
    bias = values((w.shape[1] * geometry["groups"],), case.dtype, 1)
    try:
        want = numconv.conv_transpose(x, w, bias, algorithm="direct", **geometry)
    except ValueError as refusal:  # padding takes all of it away
        with pytest.raises(ValueError, match="^" + str(refusal)[:20]):
            numconv.conv_transpose(there(x), there(w), there(bias), **geometry)
        return
    same(numconv.conv_transpose(there(x), there(w), there(bias), **geometry), want)


@given(case=cases(dtypes=["float64", "complex64", "int8", "bool"], batch=False))
@few
def test_windows_and_their_adjoint(case):
    cols = numconv.im2col(case.x, case.kernel, **case.window)
    same(numconv.im2col(there(case.x), case.kernel, **case.window), cols)
    window = {name: value for name, value in case.window.items() if name != "fill_value"}
    cols = values(cols.shape, case.dtype, case.seed)
    want = numconv.col2im(cols, case.x_shape, case.kernel, **window)
    same(numconv.col2im(there(cols), case.x_shape, case.kernel, **window), want)


@given(case=cases(dtypes=RINGS, fill=False, batch=False))
@few
def test_matrices_and_products_with_them(case):
    size = case.x_shape[1:]
    W_conv = numconv.kernel2row(case.w, size, **case.geometry)
    parts = numconv.kernel2row(there(case.w), size, triple=True, **case.geometry)
    for got, want in zip(parts, (W_conv.data, W_conv.indices, W_conv.indptr), strict=True):
        same(got, want)
    x, y = (values((n,), case.dtype, case.seed) for n in W_conv.shape[::-1])
    same(numconv.csr_matvec(*parts, there(x)), W_conv @ x)
    same(numconv.csr_rmatvec(*parts, there(y), W_conv.shape[1]), W_conv.T @ y)


@given(case=cases(dtypes=["float32", "complex64", "int64"]))
@few
def test_a_kernel_for_each_output(case):
    x = case.x if case.x.ndim == len(case.kernel) + 2 else case.x[None]
    out = numconv.plan_conv(x.shape, case.w_shape, **case.geometry).output_shape
    dy, w = case.dy(out), values((*out[2:], *case.w_shape), case.dtype, case.seed + 3)
    same(numconv.conv_local(there(x), there(w), **case.geometry), numconv.conv_local(x, w, **case.geometry))
    dx = numconv.conv_local_grad_input(x.shape, w, dy, **case.geometry)
    same(numconv.conv_local_grad_input(x.shape, there(w), there(dy), **case.geometry), dx)
    dw = numconv.conv_local_grad_weight(x, w.shape, dy, **case.geometry)
    same(numconv.conv_local_grad_weight(there(x), w.shape, there(dy), **case.geometry), dw)
    linear = {name: value for name, value in case.geometry.items() if name != "fill_value"}
    W_conv = numconv.kernel2row_local(w, x.shape[2:], **linear)
    parts = numconv.kernel2row_local(there(w), x.shape[2:], **linear)
    for name in ("data", "indices", "indptr"):
        got = getattr(parts, name) if hasattr(parts, name) else parts[("data", "indices", "indptr").index(name)]
        same(got, getattr(W_conv, name))


@given(arguments=plain_cases(dtypes=["float32", "complex64", "int64"]))
@few
def test_convolve_and_correlate(arguments):
    x, w, mode, geometry = arguments
    for function in (numconv.convolve, numconv.correlate):
        same(function(there(x), there(w), mode, **geometry), function(x, w, mode, algorithm="direct", **geometry))


@given(data=st.data(), boundary=st.sampled_from(BOUNDARIES), mode=st.sampled_from(["full", "same", "valid"]))
@few
def test_averages_over_what_is_there(data, boundary, mode):
    d = data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(2, 12 // d)) for _ in range(d))
    kernel = tuple(data.draw(st.integers(1, min(n, 3))) for n in size)
    seed, gaps = data.draw(st.integers(0, 999)), data.draw(st.floats(0, 1))
    rng = np.random.default_rng(seed)
    x, w = normal(size, np.float64, seed), rng.uniform(-0.25, 1, kernel) + 0.1
    mask, w = rng.random(size) < gaps, w if abs(w.sum()) > 0.1 else np.abs(w)
    arguments = {"boundary": boundary, "stride": data.draw(st.integers(1, 2))}
    if boundary == "constant":
        arguments["fill_value"] = data.draw(st.sampled_from([0, 2, float("nan")]))
    want = numconv.normalized_convolve(x, w, mode, mask=mask, **arguments)
    got = numconv.normalized_convolve(there(x), there(w), mode, mask=there(mask), **arguments).numbers
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    x[mask] = np.nan
    got = numconv.normalized_convolve(there(x), there(w), mode, **arguments).numbers
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


# the fuzz, against an oracle that looks every pixel up ----------------------------------------------------------------

#: Multiply-adds of a case at the most, and cases of a run.
MOST, CASES = 1500, 48

#: What lies on no GPU.
NOT_THERE = {"unaligned": "C", "swapped": "F"}


class There(Trial):
    """A case whose arrays lie on the GPU, in the memory that the case has laid out."""

    def call(self, given, out=None, N=None):
        sent = {name: cupy_array(array) for name, array in given.items()}
        target = None if out is None else cupy_array(out)
        result = super().call(sent, target, N)
        return out if target is not None and result is target else result.numbers


def of_a_gpu(case):
    """The case as a GPU may have it."""
    case["layouts"] = {name: NOT_THERE.get(layout, layout) for name, layout in case["layouts"].items()}
    case["out"] = NOT_THERE.get(case["out"], case["out"])
    return case


@pytest.mark.parametrize("where", ["there", "sent"])
@pytest.mark.parametrize("run", range(4))
def test_random_calls(where, run):
    products = ("forward", "grad_input", "grad_weight", "transpose", "convolve", "correlate", "operator")
    if where == "sent":
        products += ("im2col", "col2im", "kernel2row")
    choices = Choices(products, ("auto", "im2col", "kernel2row", "implicit", "direct"), most=MOST)
    with numconv.use_device("cuda"):
        for index in range(run * CASES // 4, (run + 1) * CASES // 4):
            case = of_a_gpu(draw(16, index, choices))
            if where == "there" and (case["via"] == "tiles" or "readonly" in case["layouts"].values()):
                continue
            problems = (There if where == "there" else Trial)(case).check()
            assert problems in ([], [("refused", "")]), (index, call_of(case), problems)
