"""numconv inside other libraries: gradients of torch and HIPS autograd, operators of PyLops, problems of CVXPY."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
from conftest import BOUNDARIES, normal

import numconv as nc

GEOMETRIES = {
    "plain": {},
    "strided": {"stride": 2, "padding": (2, 1), "dilation": (1, 2)},
    "groups": {"groups": 2, "padding": "same", "flip": True},
    "fill": {"padding": 1, "fill_value": 2},
    **{boundary: {"padding": ((1, 2), (0, 1)), "boundary": boundary} for boundary in BOUNDARIES[1:]},
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def shapes(groups=1, **_):
    return (2, 2, 5, 4), (4, 2 // groups, 3, 2), (4,)


def arrays_for(geometry, dtype):
    return [normal(shape, dtype, seed) for seed, shape in enumerate(shapes(**geometry))]


def test_importing_numconv_imports_none_of_them():
    code = (
        "import sys, numconv, numconv.interop; numconv.plan_conv; numconv.normalized_convolve\n"
        "found = {'torch', 'autograd', 'pylops'} & set(sys.modules)\n"
        "assert not found, found\n"
        "assert not hasattr(numconv.interop, 'no_such_library')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_room_is_there_as_an_attribute():
    pytest.importorskip("autograd")
    code = "import sys, numconv.interop; numconv.interop.autograd.conv; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# torch ----------------------------------------------------------------------------------------------------------------

torch = import_module("torch") if find_spec("torch") else None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def tensors_for(geometry, dtype="float64"):
    return [torch.from_numpy(array).requires_grad_() for array in arrays_for(geometry, dtype)]


@needs_torch
@every_geometry
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_finds_both_gradients_right(geometry, dtype):
    from numconv.interop.torch import conv

    def f(x, w, bias):
        return conv(x, w, bias, **geometry)

    x, w, bias = tensors_for(geometry, dtype)
    assert torch.autograd.gradcheck(f, (x, w, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, w, bias), fast_mode=True)


@needs_torch
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_every_entry_of_both_jacobians(dtype):
    from numconv.interop.torch import conv

    geometry = {"stride": (1, 2), "padding": 1, "boundary": "reflect"}
    x, w = (torch.from_numpy(normal(s, dtype, i)).requires_grad_() for i, s in enumerate([(1, 3, 4), (2, 1, 2, 2)]))
    assert torch.autograd.gradcheck(lambda x, w: conv(x, w, **geometry), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: conv(x, w, **geometry), (x, w))


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_values_and_gradients_are_those_of_torch_itself(dtype):
    from numconv.interop.torch import conv2d

    results = []
    for function in (conv2d, torch.nn.functional.conv2d):
        x, w, bias = tensors_for({"groups": 2}, dtype)
        y = function(x, w, bias, 2, (2, 1), 1, 2)
        (y.abs() ** 2).sum().backward()
        results.append([y.detach(), x.grad, w.grad, bias.grad])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_torch
def test_a_penalty_on_the_gradient_is_differentiated_as_by_torch():
    from numconv.interop.torch import conv2d

    results = []
    for function in (conv2d, torch.nn.functional.conv2d):
        x, w, _ = tensors_for({})
        y = function(x, w, None, 1, 1)
        (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (dx**2).sum().backward()
        results.append([x.grad, w.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@needs_torch
def test_gradients_that_nobody_needs_are_not_computed(monkeypatch):
    from numconv.interop.torch import conv

    calls = []

    def spy_on(name):
        product = getattr(nc.ConvPlan, name)
        monkeypatch.setattr(nc.ConvPlan, name, lambda *args: (calls.append(name), product(*args))[1])

    spy_on("grad_input")
    spy_on("grad_weight")
    for needed, wanted in product([True, False], repeat=2):
        x, w, bias = tensors_for({})
        calls.clear()
        conv(x.requires_grad_(needed), w.requires_grad_(wanted), bias).sum().backward()
        assert calls == ["grad_input"] * needed + ["grad_weight"] * wanted
    assert not conv(x.detach(), w.detach()).requires_grad


@needs_torch
def test_tensors_are_read_without_a_copy(monkeypatch):
    from numconv.interop.torch import conv

    seen = []
    forward = nc.ConvPlan.forward_of

    def spy(plan, x, w, *rest):
        seen.extend([x.ctypes.data, w.ctypes.data])
        return forward(plan, x, w, *rest)

    monkeypatch.setattr(nc.ConvPlan, "forward_of", spy)
    x, w, _ = tensors_for({})
    y = conv(x, w)
    assert seen == [x.data_ptr(), w.data_ptr()]
    assert y.dtype == torch.float64


@needs_torch
def test_dtypes_are_promoted_and_gradients_come_back_in_their_own():
    from numconv.interop.torch import conv

    x, w, _ = tensors_for({}, "float32")
    w = w.detach().to(torch.complex128).requires_grad_()
    y = conv(x, w)
    assert y.dtype == torch.complex128
    y.abs().sum().backward()
    assert x.grad.dtype == torch.float32
    assert w.grad.dtype == torch.complex128


@needs_torch
def test_functional_transforms_of_torch():
    from numconv.interop.torch import conv

    x, w, _ = (t.detach() for t in tensors_for({}))
    dw = torch.func.grad(lambda w: (conv(x, w) ** 2).sum())(w)
    want = torch.func.grad(lambda w: (torch.nn.functional.conv2d(x, w) ** 2).sum())(w)
    torch.testing.assert_close(dw, want)


@needs_torch
def test_errors_of_the_torch_room():
    from numconv.interop import torch as room

    x, w, bias = tensors_for({})
    with pytest.raises(TypeError, match="w must be a torch tensor, got ndarray"):
        room.conv(x, w.detach().numpy())
    with pytest.raises(TypeError, match="bfloat16"):
        room.conv(x.bfloat16(), w.bfloat16())
    with pytest.raises(ValueError, match="w must have 4 axes"):
        room.conv2d(x, w[0])
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        room.conv(x, w, bias[:1])


# HIPS autograd --------------------------------------------------------------------------------------------------------


@every_geometry
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_autograd_finds_both_gradients_right(geometry, dtype):
    pytest.importorskip("autograd")
    from autograd.test_util import check_grads

    from numconv.interop.autograd import conv

    x, w, bias = arrays_for(geometry, dtype)
    np.random.seed(0)  # noqa: NPY002  # check_grads draws its directions here
    check_grads(lambda x, w, bias: conv(x, w, bias, **geometry), modes=["rev"], order=2)(x, w, bias)


def test_autograd_mixes_real_and_complex():
    pytest.importorskip("autograd")
    from autograd.test_util import check_grads

    from numconv.interop.autograd import conv2d

    x, w = normal((2, 5, 4)), normal((3, 2, 3, 2), "complex128")
    np.random.seed(0)  # noqa: NPY002
    check_grads(lambda x, w: conv2d(x, w, None, 1, 1), modes=["rev"], order=2)(x, w)


def test_values_and_a_hessian_by_autograd():
    pytest.importorskip("autograd")
    import autograd.numpy as anp
    from autograd import hessian_vector_product

    from numconv.interop.autograd import conv

    x, w, v = normal((1, 6)), normal((2, 1, 3), seed=1), normal((2, 1, 3), seed=2)
    bias = np.array([1.0, 2.0])
    np.testing.assert_allclose(conv(x, w, bias, padding=1), nc.conv(x, w, bias, padding=1), rtol=1e-12)
    got = hessian_vector_product(lambda w: anp.sum(conv(x, w) ** 2))(w, v)
    np.testing.assert_allclose(got, 2 * nc.conv_grad_weight(x, w.shape, nc.conv(x, v)), rtol=1e-12)


def test_errors_of_the_autograd_room():
    pytest.importorskip("autograd")
    from numconv.interop import autograd as room

    x, w, bias = arrays_for({}, "float64")
    with pytest.raises(ValueError, match="w must have 4 axes"):
        room.conv2d(x, w[0])
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(1,\)"):
        room.conv(x, w, bias[:1])


# PyLops and CVXPY -----------------------------------------------------------------------------------------------------


@every_geometry
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_a_pylops_operator_passes_its_dottest(geometry, dtype):
    pylops = pytest.importorskip("pylops")
    from numconv.interop.pylops import Conv

    geometry = {**geometry, "fill_value": 0}
    x_shape, w_shape, _ = shapes(**geometry)
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, **geometry)
    w = normal(w_shape, dtype, 1)
    C = Conv(plan, w)
    rtol = 1e-4 if dtype == "float32" else 1e-9
    assert pylops.utils.dottest(C, *C.shape, complexflag=3 if dtype == "complex128" else 0, rtol=rtol)
    x = normal(x_shape, dtype)
    assert C.dims == plan.input_shape
    assert C.dimsd == plan.output_shape
    y = C @ x
    assert y.dtype == dtype
    np.testing.assert_allclose(y, plan.forward(x, w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(C.H @ y, plan.grad_input(y, w), rtol=1e-5, atol=1e-4)


def test_pylops_inverts_with_it():
    pylops = pytest.importorskip("pylops")
    from numconv.interop.pylops import Conv

    plan = nc.plan_convolve((12, 13), (3, 3), "full", dtype=float)
    w = np.array([[0, 1, 0], [1, 6, 1], [0, 1, 0]]) / 10
    C, truth = Conv(plan, w), normal((12, 13))
    stacked = pylops.VStack([C, 1e-8 * pylops.Identity(truth.size)])
    found = stacked / np.concatenate([(C @ truth).ravel(), np.zeros(truth.size)])
    np.testing.assert_allclose(found.reshape(truth.shape), truth, atol=1e-5)


def test_errors_of_the_pylops_room():
    pytest.importorskip("pylops")
    from numconv.interop.pylops import Conv

    w = np.ones((2, 2))
    with pytest.raises(ValueError, match="fill_value must be 0"):
        Conv(nc.plan_convolve((5, 5), (2, 2), "same", fill_value=2, dtype=float), w)
    with pytest.raises(TypeError, match="floating-point or complex"):
        Conv(nc.plan_convolve((5, 5), (2, 2), dtype=int), w.astype(int))
    with pytest.raises(ValueError, match="w must have shape"):
        Conv(nc.plan_convolve((5, 5), (2, 2), dtype=float), w[:1])


def test_cvxpy_takes_the_sparse_matrix():
    cp = pytest.importorskip("cvxpy")
    blur = np.array([0.25, 0.5, 0.25])
    truth = np.repeat([0.0, 2.0, 1.0], [7, 8, 9])
    plan = nc.plan_convolve(truth.shape, blur.shape, "same", boundary="symmetric", dtype=float)
    seen = plan.forward(truth, blur)
    x = cp.Variable(truth.size)
    problem = cp.Problem(cp.Minimize(cp.norm1(cp.diff(x))), [plan.matrix(blur) @ x == seen])
    problem.solve()
    np.testing.assert_allclose(x.value, truth, atol=1e-4)
