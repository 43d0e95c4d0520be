"""Tensors that torch differentiates: refused where their gradient would be lost, and served by ``interop.torch``."""

import inspect
import re
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import normal, values
from hypothesis import given, settings
from strategies import cases, plain_cases

import numconv as nc

if find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)
torch = import_module("torch")
room = import_module("numconv.interop.torch")

GEOMETRY = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
MASK = np.arange(8) == 3

#: Every public function of tensors: the shapes of those it differentiates, and a call of it in a room.
CALLS = {
    "convolve": ([(7, 6), (3, 2)], lambda f, x, w: f(x, w, "same", boundary="reflect", stride=2)),
    "correlate": ([(3, 7), (3,)], lambda f, x, w: f(x, w, axes=1, dilation=2)),
    "conv": ([(2, 4, 9, 8), (6, 2, 3, 2), (6,)], lambda f, x, w, b: f(x, w, b, groups=2, **GEOMETRY)),
    "conv1d": ([(4, 9), (6, 4, 3), (6,)], lambda f, x, w, b: f(x, w, b, 2, 1)),
    "conv2d": ([(2, 4, 5, 4), (6, 2, 3, 2), (6,)], lambda f, x, w, b: f(x, w, b, 1, 1, 1, 2, boundary="wrap")),
    "conv3d": ([(2, 4, 3, 4), (3, 2, 2, 3, 2), (3,)], lambda f, x, w, b: f(x, w, b, padding=1, fill_value=2)),
    "conv_transpose": (
        [(2, 6, 4, 5), (6, 2, 3, 2), (4,)],
        lambda f, x, w, b: f(x, w, b, stride=2, padding=1, output_padding=1, groups=2, flip=True),
    ),
    "conv_transpose1d": ([(2, 4, 5), (4, 3, 3), (3,)], lambda f, x, w, b: f(x, w, b, 2, 1, 1)),
    "conv_transpose2d": ([(4, 5, 4), (4, 3, 3, 2), (3,)], lambda f, x, w, b: f(x, w, b, 2, "same")),
    "conv_transpose3d": ([(1, 2, 3, 2, 2), (2, 3, 2, 2, 2), (3,)], lambda f, x, w, b: f(x, w, b)),
    "conv_grad_input": (
        [(6, 2, 3, 2), (2, 6, 4, 9)], lambda f, w, dy: f((2, 4, 9, 8), w, dy, groups=2, boundary="edge", **GEOMETRY)
    ),
    "conv_grad_weight": (
        [(2, 4, 9, 8), (2, 6, 4, 9)], lambda f, x, dy: f(x, (6, 2, 3, 2), dy, groups=2, fill_value=1, **GEOMETRY)
    ),
    "conv_local": (
        [(2, 4, 5), (3, 6, 2, 3), (6,)], lambda f, x, w, b: f(x, w, b, stride=2, padding=1, groups=2, fill_value=1)
    ),
    "conv_local_grad_input": ([(3, 3), (3,)], lambda f, w, dy: f((5,), w, dy, stride=2, padding=1, boundary="wrap")),
    "conv_local_grad_weight": ([(2, 4, 5), (2, 6, 3)], lambda f, x, dy: f(x, (3, 6, 4, 3), dy, stride=2, padding=1)),
    "im2col": ([(2, 3, 5, 6)], lambda f, x: f(x, (3, 2), fill_value=1, **GEOMETRY)),
    "col2im": ([(18, 14)], lambda f, cols: f(cols, (3, 5, 6), (3, 2), reduce="mean", **GEOMETRY)),
    "unfold": ([(2, 3, 5, 6)], lambda f, x: f(x, 3, 1, 1, 2)),
    "fold": ([(2, 6, 8)], lambda f, cols: f(cols, (4, 5), (3, 2))),
    "normalized_convolve": ([(8,), (3,)], lambda f, x, w: f(x, w, "same", mask=like(x, MASK), boundary="reflect")),
    "csr_matvec": ([(6,), (5,)], lambda f, data, x: f(data, *triple(x), x)),
    "csr_rmatvec": ([(6,), (4,)], lambda f, data, y: f(data, *triple(y), y, 5)),
}  # fmt: skip
every_call = pytest.mark.parametrize("name", CALLS)


def like(one, array):
    """An array in the library of another."""
    return torch.from_numpy(array) if isinstance(one, torch.Tensor) else array


def triple(one):
    """``indices`` and ``indptr`` of a matrix of 4 rows and 5 columns, with an entry that repeats and an empty row."""
    return like(one, np.array([0, 4, 4, 2, 1, 3])), like(one, np.array([0, 3, 3, 4, 6]))


def arrays_for(name, dtype="float64"):
    arrays = [normal(shape, dtype, i) for i, shape in enumerate(CALLS[name][0])]
    if name == "normalized_convolve":
        arrays[1] = np.abs(arrays[1]) + 1  # weights, no derivative
    return arrays


def tensors_for(name, dtype="float64"):
    return [torch.from_numpy(array).requires_grad_() for array in arrays_for(name, dtype)]


def run(name, where, arrays):
    return CALLS[name][1](getattr(where, name), *arrays)


# what numconv refuses -------------------------------------------------------------------------------------------------


@every_call
def test_a_tensor_that_needs_a_gradient_is_refused_by_name(name):
    tensors = [tensor.detach() for tensor in tensors_for(name)]
    run(name, nc, tensors)
    for i, tensor in enumerate(tensors):
        with pytest.raises(TypeError, match=r"^\w+ is a tensor that torch differentiates.*numconv\.interop\.torch"):
            run(name, nc, [*tensors[:i], tensor.clone().requires_grad_(), *tensors[i + 1 :]])


@every_call
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_all_is_well(name, context):
    tensors = tensors_for(name)
    with context():
        y = run(name, nc, tensors)
    assert not y.requires_grad
    np.testing.assert_array_equal(y.numpy(), run(name, nc, arrays_for(name)))


def test_every_other_way_in_refuses_it_too():
    plan = nc.plan_conv((2, 9), (3, 2, 3), dtype="float64")
    x, w, dy = torch.ones(2, 9).double(), torch.ones(3, 2, 3).double(), torch.ones(3, 7).double()
    csr = plan.matrix(w)
    needy = w.clone().requires_grad_()
    calls = [
        lambda: plan.forward(x, needy), lambda: plan.grad_input(dy, needy), lambda: plan.transpose(dy, needy),
        lambda: plan.matrix(needy), lambda: plan.refill(csr, needy), lambda: plan.linear_operator(needy),
        lambda: plan.norm(needy), lambda: plan.gram_diagonal(needy), lambda: nc.kernel2row(needy, 9),
        lambda: nc.kernel2row_local(needy[0].expand(3, 2, 3).reshape(3, 2, 1, 3)[:, 0, 0].clone(), 5),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=r"^w is a tensor that torch differentiates"):
            call()
    tiled = nc.plan_conv((2, 9), (3, 2, 3), dtype="float64", max_bytes=10**6)
    with pytest.raises(TypeError, match=r"^w is a tensor that torch differentiates"):
        tiled.forward(x, needy)
    out = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match=r"^out is a tensor that torch differentiates"):
        nc.conv(x, w, out=out)
    with torch.no_grad():
        assert nc.conv(x, w, out=out) is out
    with pytest.raises(TypeError, match=r"^x is a tensor that torch differentiates"):
        nc.convolve([torch.tensor(1.0), torch.tensor(2.0, requires_grad=True)], [1.0])
    with pytest.raises(TypeError, match=r"^fill_value is a tensor that torch differentiates"):
        nc.convolve([1.0, 2.0], [1.0, 2.0], fill_value=torch.tensor(2.0, requires_grad=True))


def test_a_parameter_is_refused_as_any_tensor_and_a_tensor_of_a_subclass_read_as_one():
    layer = torch.nn.Conv1d(2, 3, 3)
    with pytest.raises(TypeError, match=r"^w is a tensor.*w\.detach\(\)"):
        nc.conv1d(torch.ones(2, 9), layer.weight)

    class Image(torch.Tensor):
        pass

    assert isinstance(nc.conv1d(torch.ones(2, 9).as_subclass(Image), layer.weight.detach()), torch.Tensor)
    with pytest.raises(TypeError, match=r"^x is a tensor that torch differentiates"):
        nc.conv1d(torch.ones(2, 9).as_subclass(Image).requires_grad_(), layer.weight.detach())


def test_forward_mode_and_functional_transforms_are_refused_too():
    from torch.autograd import forward_ad

    x, w = torch.ones(5), torch.ones(2)
    with forward_ad.dual_level(), pytest.raises(TypeError, match=r"^x is a tensor that torch differentiates"):
        nc.convolve(forward_ad.make_dual(x, x), w)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(TypeError, match=r"^x is a tensor that torch differentiates"):
            transform(lambda x: nc.convolve(x, w).sum())(x)


def test_masked_tensors_are_refused():
    masked = pytest.importorskip("torch.masked")
    with pytest.warns(UserWarning, match="prototype"):
        x = masked.masked_tensor(torch.ones(3), torch.tensor([True, False, True]))
    with pytest.raises(TypeError, match=r"^x is a masked tensor.*x\.to_tensor\("):
        nc.convolve(x, torch.ones(2))


# what interop.torch serves --------------------------------------------------------------------------------------------


def test_it_has_the_functions_of_tensors_with_their_arguments():
    of_arrays = set(nc.__all__) - {
        "ConvPlan", "__version__", "devices", "use_device", "warmup", "plan_conv", "plan_convolve",  # no arrays
        "kernel2row", "kernel2row_local", "normalized_operator",  # matrices and operators of SciPy
    }  # fmt: skip
    assert set(CALLS) == of_arrays
    for name in of_arrays:
        here, there = (inspect.signature(getattr(package, name)).parameters for package in (room, nc))
        assert [*here] == [p for p in there if p != "out"], name
        for parameter in here:
            assert here[parameter].default == there[parameter].default, (name, parameter)
            assert here[parameter].kind == there[parameter].kind, (name, parameter)


@every_call
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_values_are_those_of_numconv(name, dtype):
    y = run(name, room, tensors_for(name, dtype))
    want = run(name, nc, arrays_for(name, dtype))
    assert y.requires_grad
    assert y.detach().numpy().dtype == want.dtype
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=2e-5 if dtype == "float32" else 1e-12, atol=1e-5)


@every_call
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_both_derivatives_are_right(name, dtype):
    tensors = tensors_for(name, dtype)
    assert torch.autograd.gradcheck(lambda *t: run(name, room, t), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: run(name, room, t), tensors, fast_mode=True)


@every_call
def test_a_gradient_alone_is_found_without_the_others(name):
    for i, _ in enumerate(CALLS[name][0]):
        tensors = [t if j == i else t.detach() for j, t in enumerate(tensors_for(name))]
        run(name, room, tensors).sum().backward()
        assert [t.grad is not None for t in tensors] == [j == i for j, _ in enumerate(tensors)]
        assert bool(torch.isfinite(tensors[i].grad).all())


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"normalized_convolve"}))  # which looks at what is missing
def test_one_sample_after_the_other_under_vmap(name):
    tensors = [t.detach() for t in tensors_for(name)]
    batch = torch.stack([tensors[0], 2 * tensors[0] + 1])
    got = torch.func.vmap(lambda x: run(name, room, [x, *tensors[1:]]))(batch)
    torch.testing.assert_close(got, torch.stack([run(name, room, [x, *tensors[1:]]) for x in batch]))


@given(plain_cases())
@settings(max_examples=25)
def test_random_plain_geometries(case):
    x, w, mode, arguments = case
    for name in ("convolve", "correlate"):
        a, b = (torch.from_numpy(array).requires_grad_() for array in (x, w))
        y = getattr(room, name)(a, b, mode, **arguments)
        np.testing.assert_array_equal(y.detach().numpy(), getattr(nc, name)(x, w, mode, **arguments))
        dy = torch.from_numpy(values(tuple(y.shape), seed=5))
        y.backward(dy)
        for array, grad, of in ((x, a.grad, lambda v: (v, w)), (w, b.grad, lambda v: (x, v))):
            v = values(array.shape, seed=6)  # the function is linear in each
            want = (getattr(nc, name)(*of(v), mode, **arguments) * dy.numpy()).sum()
            assert (v * grad.numpy()).sum() == want


@given(cases(fill=False))
@settings(max_examples=25)
def test_random_layers_and_their_transposes(case):
    x, w, geometry = case.x, case.w, case.geometry
    a, b = (torch.from_numpy(array).requires_grad_() for array in (x, w))
    y = room.conv(a, b, **geometry)
    dy = case.dy(tuple(y.shape))
    dx, dw = torch.autograd.grad(y, (a, b), torch.from_numpy(dy))
    np.testing.assert_allclose(dx, nc.conv_grad_input(x.shape, w, dy, **geometry), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dw, nc.conv_grad_weight(x, w.shape, dy, **geometry), rtol=0, atol=1e-9)
    back = room.conv_grad_input(x.shape, b, torch.from_numpy(dy).requires_grad_(), **geometry)
    np.testing.assert_allclose(back.detach(), dx, rtol=0, atol=1e-9)
    window = case.window
    cols = room.im2col(a, w.shape[2:], **window)
    (to_x,) = torch.autograd.grad(cols.sum(), a)
    np.testing.assert_array_equal(to_x, nc.col2im(np.ones(cols.shape), x.shape, w.shape[2:], **window))


def test_nothing_goes_to_what_is_missing():
    x = torch.tensor([1.0, 2.0, float("nan"), 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    y = room.normalized_convolve(x, w, "same", fill_value=float("nan"))
    want = nc.normalized_convolve(x.detach(), w.detach(), "same", fill_value=np.nan)
    np.testing.assert_allclose(y.detach(), want, rtol=1e-14)
    y.sum().backward()
    A = nc.normalized_operator(np.isnan(x.detach().numpy()), w.detach().numpy(), "same", fill_value=np.nan)
    np.testing.assert_allclose(x.grad, A.rmatvec(np.ones(5)), rtol=1e-14)
    assert x.grad[2] == 0
    assert bool(torch.isfinite(w.grad).all())
    nothing = room.normalized_convolve(torch.full((4,), float("nan"), requires_grad=True), torch.ones(2), "valid")
    assert bool(torch.isnan(nothing).all())
    nothing.sum().backward()


def test_dtype_names_the_type_of_the_sums_and_gradients_come_back_in_their_own():
    x, w = torch.ones(1, 9, requires_grad=True), torch.ones(1, 1, 3, requires_grad=True)
    for dtype in (torch.float64, "float64", np.float64):
        y = room.conv(x, w, dtype=dtype)
        assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    counts = room.convolve(torch.full((4,), 200, dtype=torch.uint8), torch.ones(2, dtype=torch.uint8), dtype=int)
    assert counts.tolist() == [200, 400, 400, 400, 200]
    with pytest.raises(TypeError, match="dtype must be of a kind that holds x"):
        room.conv(x, w, dtype="int32")


# torch.compile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_breaks_the_graph_once(backend):
    dynamo = import_module("torch._dynamo")

    def layer(x, w):
        return room.conv2d(torch.sin(x), w, padding=1).cos().sum()

    x, w = torch.ones(1, 2, 5, 5).double().requires_grad_(), torch.ones(3, 2, 3, 3).double().requires_grad_()
    want = layer(x, w)
    dx, dw = torch.autograd.grad(want, (x, w))
    dynamo.reset()
    got = torch.compile(layer, backend=backend)(x, w)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (x, w)), (dx, dw))
    dynamo.reset()
    assert dynamo.explain(layer)(x, w).graph_break_count <= 1


def test_importing_the_room_does_not_import_the_compiler():
    import subprocess
    import sys

    code = "import sys, numconv.interop.torch; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_refusal_recommends_is_there():
    with pytest.raises(TypeError) as error:
        nc.convolve(torch.ones(3, requires_grad=True), torch.ones(2))
    (name,) = re.findall(r"numconv\.interop\.\w+", str(error.value))
    assert import_module(name).convolve(torch.ones(3, requires_grad=True), torch.ones(2)).requires_grad


def test_a_tensor_on_a_gpu_is_refused_before_anybody_looks_for_one():
    class OnGpu:
        """As far as it matters; the real one needs a GPU."""

        __module__ = "torch"
        requires_grad, device = True, "cuda:0"

        def detach(self):
            raise AssertionError("its gradient would be lost")

    for name, arrays in (("x", (OnGpu(), np.ones(2))), ("w", (np.ones(2), OnGpu()))):
        with pytest.raises(TypeError, match=rf"^{name} is a tensor that torch differentiates"):
            nc.convolve(*arrays)
