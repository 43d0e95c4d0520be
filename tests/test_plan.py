"""Plans: what they say, that they never change, that they travel, and that every form they give agrees."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from conftest import ALGORITHMS, normal, values
from scipy.sparse.linalg import LinearOperator, aslinearoperator, lsqr, svds

import numconv as nc

GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}

#: name -> a function of more arguments (dtype, algorithm, …) that makes the plan
PLANS = {
    "seed": lambda **more: nc.plan_convolve((3, 3), (2, 2), **more),
    "plain-full": lambda **more: nc.plan_convolve((9, 8), (3, 2), "full", **more),
    "plain-same-wrap": lambda **more: nc.plan_convolve((9, 8), (4, 3), "same", boundary="wrap", **more),
    "plain-1d": lambda **more: nc.plan_convolve((50,), (7,), stride=3, **more),
    "plain-4d": lambda **more: nc.plan_convolve((4, 5, 3, 4), (2, 3, 2, 2), **more),
    "image": lambda **more: nc.plan_conv((4, 9, 8), (6, 4, 3, 2), **GEOMETRY, **more),
    "batch": lambda **more: nc.plan_conv((3, 4, 9, 8), (6, 4, 3, 2), flip=True, **GEOMETRY, **more),
    "groups": lambda **more: nc.plan_conv((2, 4, 9, 8), (6, 2, 3, 2), groups=2, padding="same", **more),
    "depthwise": lambda **more: nc.plan_conv((2, 4, 9, 8), (4, 1, 3, 3), groups=4, padding=1, **more),
    "edge": lambda **more: nc.plan_conv((2, 3, 7, 6), (5, 3, 3, 3), padding=4, boundary="edge", **more),
    "reflect": lambda **more: nc.plan_conv((2, 3, 7, 6), (5, 3, 3, 3), padding=9, boundary="reflect", **more),
    "symmetric": lambda **more: nc.plan_conv((2, 3, 7), (5, 3, 3), padding=(8,), boundary="symmetric", **more),
    "volume": lambda **more: nc.plan_conv((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), padding="full", **more),
}
every_plan = pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
DTYPES = ["int64", "float32", "float64", "complex128"]


def data(plan: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``x``, ``w`` and ``dy`` of a plan's shapes and dtype, on which sums are exact."""
    shapes = (plan.input_shape, plan.kernel_shape, plan.output_shape)
    return tuple(values(shape, plan.dtype, seed + i) for i, shape in enumerate(shapes))


def rounding(dtype: Any) -> float:
    return 0.0 if np.dtype(dtype).kind in "iu" else 200 * float(np.finfo(dtype).eps)


# facts ----------------------------------------------------------------------------------------------------------------


def test_a_plan_states_its_facts():
    plan = nc.plan_conv((3, 4, 9, 8), (6, 2, 3, 2), groups=2, dtype=np.float64, **GEOMETRY)
    assert plan.input_shape == (3, 4, 9, 8)
    assert plan.kernel_shape == (6, 2, 3, 2)
    assert plan.output_shape == (3, 6, 4, 9)
    assert plan.dtype == np.float64
    assert plan.device == "cpu"
    assert plan.nbytes("im2col") == 3 * 4 * 6 * 36 * 8


def test_the_defaults_are_the_seeds_case():
    plan = nc.plan_convolve((3, 3), (2, 2))
    assert plan.output_shape == (2, 2)
    assert plan.dtype == np.float32
    X, W = np.arange(1, 10, dtype="f4").reshape(3, 3), np.array([[1, 2], [3, 4]], "f4")
    # y11 = w22 x11 + w21 x12 + w12 x21 + w11 x22, as the slides have it
    assert plan.forward(X, W)[0, 0] == 4 * 1 + 3 * 2 + 2 * 4 + 1 * 5


@pytest.mark.parametrize(("mode", "shape"), [("valid", (7, 5)), ("same", (9, 8)), ("full", (11, 11))])
def test_modes_of_plain_plans_are_those_of_convolve(mode, shape):
    plan = nc.plan_convolve((9, 8), (3, 4), mode, dtype=np.int64)
    assert plan.output_shape == shape
    x, w, _ = data(plan)
    np.testing.assert_array_equal(plan.forward(x, w), nc.convolve(x, w, mode))


@every_plan
@pytest.mark.parametrize("dtype", ["int32", "float32", "complex128"])
def test_the_algorithm_is_decided_when_planning(make, dtype):
    plan = make(dtype=dtype)
    assert plan.algorithm in ALGORITHMS  # "auto" is none of them
    x, w, _ = data(plan)
    again = make(dtype=dtype, algorithm=plan.algorithm)
    assert again.algorithm == plan.algorithm
    np.testing.assert_array_equal(again.forward(x, w), plan.forward(x, w))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_asked_for_is_the_one_that_is_planned(algorithm):
    assert nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 3), algorithm=algorithm).algorithm == algorithm


@every_plan
def test_the_repr_names_shapes_dtype_and_algorithm(make):
    plan = make(dtype=np.float32)
    text = repr(plan)
    for piece in (plan.input_shape, plan.kernel_shape, plan.output_shape, "float32", plan.algorithm, "cpu"):
        assert str(piece) in text
    assert len(text) < 300
    assert "\n" not in text


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_the_device_is_the_cpu(device):
    usable = {info.name: info.usable for info in nc.devices()}
    assert usable["cpu"]
    if device == "auto" and usable["cuda"]:
        pytest.skip("here the cost model may choose the GPU")
    assert nc.plan_conv((1, 3, 9), (2, 3, 3), device=device).device == "cpu"


# immutable, equal, portable -------------------------------------------------------------------------------------------


def test_a_plan_cannot_be_changed():
    plan = nc.plan_conv((3, 4, 9, 8), (6, 4, 3, 2))
    for name in ("algorithm", "device", "dtype", "geometry", "input_shape", "output_shape"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(plan, name, "implicit")
    with pytest.raises((AttributeError, TypeError)):
        plan.something_new = 1
    with pytest.raises((AttributeError, TypeError)):
        del plan.algorithm
    assert plan.algorithm in ALGORITHMS


def test_equal_arguments_give_equal_plans_and_others_do_not():
    def make(shape=(3, 4, 9, 8), **more):
        return nc.plan_conv(shape, (6, 4, 3, 2), **{"dtype": np.float64, **more})

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make(stride=2) == make(stride=(2, 2)) == make(stride=[2, np.int64(2)])
    assert make(dtype="float64") == make(dtype=float) == make(dtype=np.dtype(">f8").newbyteorder("="))
    others = [make(**more) for more in ({"stride": 2}, {"dtype": np.float32}, {"flip": True}, {"padding": 1})]
    assert len({make(), *others, make(shape=(2, 4, 9, 8))}) == 6


def test_precision_is_the_least_and_part_of_a_plan():
    """A plan says what it is asked for, and the CPU gives all of float32 whatever it is."""
    x, w = values((2, 3, 6, 5), np.float32), values((4, 3, 3, 3), np.float32, 1)
    plain = nc.plan_conv(x.shape, w.shape, device="cpu")
    assert plain.precision == "ieee" and "precision" not in repr(plain) + plain.explain_choice()
    for precision in ("tf32", "tf32x3"):
        plan = nc.plan_conv(x.shape, w.shape, device="cpu", precision=precision)
        assert plan != plain and plan == nc.plan_conv(x.shape, w.shape, device="cpu", precision=precision)
        assert f"precision='{precision}'" in repr(plan) and f"precision='{precision}'" in plan.explain_choice()
        assert pickle.loads(pickle.dumps(plan)) == plan
        np.testing.assert_array_equal(plan.forward(x, w), plain.forward(x, w))
        np.testing.assert_array_equal(nc.conv2d(x, w, precision=precision), nc.conv2d(x, w))
        tiled = nc.plan_conv(x.shape, w.shape, device="cpu", precision=precision, max_bytes=1 << 16)
        np.testing.assert_array_equal(tiled.forward(x, w), plain.forward(x, w))
        assert tiled.precision == nc.plan_convolve((5, 5), (2, 2), precision=precision).precision == precision
    for wrong, error in (("fp16", ValueError), (32, TypeError), (None, TypeError)):
        for call, shapes in ((nc.plan_conv, ((1, 5), (1, 1, 2))), (nc.plan_convolve, ((5,), (2,)))):
            with pytest.raises(error, match="precision must be one of 'ieee', 'tf32', 'tf32x3'"):
                call(*shapes, precision=wrong)


def test_planning_again_is_cheap_enough_for_a_dictionary_of_plans():
    plans = {nc.plan_conv((n, 3, 9), (2, 3, 3)): n for n in range(1, 20)}
    assert plans[nc.plan_conv((7, 3, 9), (2, 3, 3))] == 7


TRAVELS = {"pickle": lambda plan: pickle.loads(pickle.dumps(plan)), "copy": copy.copy, "deepcopy": copy.deepcopy}


@every_plan
@pytest.mark.parametrize("how", TRAVELS.values(), ids=TRAVELS)
def test_a_plan_survives_travelling(make, how):
    plan = make(dtype=np.float64)
    x, w, dy = data(plan)
    expected = plan.forward(x, w)  # used before it travels: no compiled state may hinder it
    there = how(plan)
    assert there == plan
    assert hash(there) == hash(plan)
    assert repr(there) == repr(plan)
    np.testing.assert_array_equal(there.forward(x, w), expected)
    np.testing.assert_array_equal(there.grad_input(dy, w), plan.grad_input(dy, w))
    np.testing.assert_array_equal(there.grad_weight(x, dy), plan.grad_weight(x, dy))


def test_a_pickled_plan_is_small():
    plan = nc.plan_conv((64, 256, 512, 512), (256, 256, 3, 3), padding=1)
    plan.nbytes("workspace")
    assert len(pickle.dumps(plan)) < 5000


def run_in_worker(plan: Any, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return plan.forward(x, w)


def test_a_plan_computes_in_a_worker_process():
    plan = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 2), dtype=np.float64)
    x, w, _ = data(plan)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(run_in_worker, (plan, x, w)).get(timeout=120)
    np.testing.assert_array_equal(result, plan.forward(x, w))


@every_plan
def test_using_a_plan_leaves_it_and_its_inputs_as_they_were(make):
    plan = make(dtype=np.float64)
    before = repr(plan), hash(plan)
    x, w, dy = data(plan)
    copies = [a.copy() for a in (x, w, dy)]
    first = plan.forward(x, w)
    plan.grad_input(dy, w)
    plan.grad_weight(x, dy)
    plan.check()
    np.testing.assert_array_equal(plan.forward(x, w), first)  # not another algorithm, workspace or state
    assert (repr(plan), hash(plan)) == before
    for a, copied in zip((x, w, dy), copies, strict=True):
        np.testing.assert_array_equal(a, copied)


# the products and matrices agree --------------------------------------------------------------------------------------


@every_plan
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_forms_of_a_plan_agree(make, dtype):
    """``Y = W_conv X_flat`` and ``dX = W_conv^H dY_flat``, image by image, and ``dW`` is the adjoint of ``w -> Y``."""
    plan = make(dtype=dtype)
    x, w, dy = data(plan)
    W_conv = plan.matrix(w).toarray()
    images, deltas = x.reshape(-1, W_conv.shape[1]), dy.reshape(-1, W_conv.shape[0])
    y, dx, dw = plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)
    scale = W_conv.shape[1] * 16
    tolerance = {"rtol": 0, "atol": rounding(dtype) * scale}
    np.testing.assert_allclose(y, (images @ W_conv.T).reshape(plan.output_shape), **tolerance)
    np.testing.assert_allclose(dx, (deltas @ W_conv.conj()).reshape(plan.input_shape), **tolerance)
    np.testing.assert_allclose(np.vdot(dw, w), np.vdot(dy, y), **tolerance)  # <dW, w> = <dY, Y>
    assert {y.dtype, dx.dtype, dw.dtype} == {np.dtype(dtype)}


@every_plan
def test_columns_of_a_plan_are_those_of_the_function_and_give_the_product(make):
    plan = make(dtype=np.float64)
    x, w, _ = data(plan)
    cols = plan.im2col(x)
    g = plan.geometry
    W_flat = w.reshape(g.groups, g.K // g.groups, -1)
    columns = cols.reshape(g.N, g.groups, W_flat.shape[2], -1)
    np.testing.assert_allclose((W_flat @ columns).reshape(plan.output_shape), plan.forward(x, w), rtol=0, atol=1e-12)
    back = plan.col2im(cols)  # the adjoint: <cols, im2col x> = <col2im cols, x>
    assert back.shape == plan.input_shape
    np.testing.assert_allclose(np.vdot(back, x), np.vdot(cols, cols), rtol=1e-12)


def test_the_bias_is_added_once_for_each_output_channel():
    plan = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 2), dtype=np.float64)
    x, w, _ = data(plan)
    bias = values((6,))
    for given in (plan.forward(x, w, bias), plan.forward(x, w, bias=bias)):
        np.testing.assert_allclose(given, plan.forward(x, w) + bias[:, None, None], rtol=0, atol=1e-12)


# the sparse matrix ----------------------------------------------------------------------------------------------------


def kernel2row_of(plan: Any, w: np.ndarray) -> scipy.sparse.csr_array:
    g = plan.geometry
    return nc.kernel2row(
        w, g.size, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups, boundary=g.boundary,
        flip=g.flip,
    )  # fmt: skip


@every_plan
def test_the_matrix_of_a_plan_is_kernel2row(make):
    plan = make(dtype=np.float64)
    _, w, _ = data(plan)
    got, expected = plan.matrix(w), kernel2row_of(plan, w)
    assert type(got) is scipy.sparse.csr_array
    assert got.shape == expected.shape
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@every_plan
def test_the_matrix_is_canonical_with_a_structure_that_weights_do_not_change(make):
    plan = make(dtype=np.float64)
    _, w, _ = data(plan)
    csr, zero = plan.matrix(w), plan.matrix(np.zeros_like(w))
    unknown = scipy.sparse.csr_array((csr.data, csr.indices, csr.indptr), shape=csr.shape)  # SciPy looks for itself
    assert unknown.has_canonical_format
    assert csr.indices.dtype == csr.indptr.dtype == np.int32
    np.testing.assert_array_equal(csr.indices, zero.indices)
    np.testing.assert_array_equal(csr.indptr, zero.indptr)
    assert zero.nnz == csr.nnz


@every_plan
@pytest.mark.parametrize("dtype", ["int32", "float32", "complex128"])
def test_refill_writes_new_weights_into_the_old_arrays(make, dtype):
    plan = make(dtype=dtype)
    w, other = values(plan.kernel_shape, dtype, 1), values(plan.kernel_shape, dtype, 2)
    csr, expected = plan.matrix(w), plan.matrix(other)
    arrays = csr.data, csr.indices, csr.indptr
    returned = plan.refill(csr, other)
    assert returned is csr or returned is None
    assert all(now is before for now, before in zip((csr.data, csr.indices, csr.indptr), arrays, strict=True))
    np.testing.assert_array_equal(csr.data, expected.data)
    np.testing.assert_array_equal(csr.indices, expected.indices)
    np.testing.assert_array_equal(csr.indptr, expected.indptr)


def test_refill_takes_the_matrix_of_an_equal_plan_and_a_copy_of_it():
    plan, equal = (nc.plan_conv((4, 9, 8), (6, 4, 3, 2), dtype=np.float64) for _ in range(2))
    w, other = values((6, 4, 3, 2), seed=1), values((6, 4, 3, 2), seed=2)
    csr = equal.matrix(w).copy()
    plan.refill(csr, other)
    np.testing.assert_array_equal(csr.toarray(), plan.matrix(other).toarray())


# the linear operator --------------------------------------------------------------------------------------------------


@every_plan
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_operator_is_the_matrix_without_storing_it(make, dtype):
    plan = make(dtype=dtype)
    _, w, _ = data(plan)
    A, dense = plan.linear_operator(w), plan.matrix(w).toarray()
    assert isinstance(A, LinearOperator)
    assert A.shape == dense.shape
    assert A.dtype == np.dtype(dtype)
    rows, columns = dense.shape
    v, u, V, U = (values(s, dtype, 5) for s in [(columns,), (rows,), (columns, 3), (rows, 3)])
    tolerance = {"rtol": 0, "atol": rounding(dtype) * columns * 16}
    for got, expected in {
        "matvec": (A.matvec(v), dense @ v),
        "column": (A.matvec(v[:, None]), dense @ v[:, None]),
        "rmatvec": (A.rmatvec(u), dense.conj().T @ u),
        "matmat": (A.matmat(V), dense @ V),
        "rmatmat": (A.rmatmat(U), dense.conj().T @ U),
        "at": (A @ v, dense @ v),
        "at-columns": (A @ V, dense @ V),
        "H": (A.H @ u, dense.conj().T @ u),
        "T": (A.T @ u, dense.T @ u),
        "H-columns": (A.H @ U, dense.conj().T @ U),
        "T-columns": (A.T @ U, dense.T @ U),
        "HH": (A.H.H @ v, dense @ v),
        "sum": ((2 * A + A) @ v, 3 * dense @ v),
        "normal": ((A.H @ A) @ v, dense.conj().T @ (dense @ v)),
    }.values():
        assert got.shape == expected.shape
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_allclose(got, expected, **tolerance if expected.size else {})


def test_the_operator_passes_the_dot_test_of_least_squares_codes():
    plan = nc.plan_conv((4, 19, 17), (6, 4, 3, 3), dtype=np.complex128, stride=2, padding=2, boundary="reflect")
    A = plan.linear_operator(normal(plan.kernel_shape, np.complex128))
    u, v = normal((A.shape[1],), np.complex128, 1), normal((A.shape[0],), np.complex128, 2)
    np.testing.assert_allclose(np.vdot(v, A @ u), np.vdot(A.H @ v, u), rtol=1e-12)


def test_a_real_operator_acts_on_complex_vectors():
    plan = nc.plan_convolve((9, 8), (3, 2), dtype=np.float64)
    w = normal((3, 2))
    A, dense = plan.linear_operator(w), plan.matrix(w).toarray()
    v, u = normal((72,), np.complex128), normal((49,), np.complex128)
    np.testing.assert_allclose(A.matvec(v), dense @ v, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(A.rmatvec(u), dense.T @ u, rtol=1e-12, atol=1e-12)


def test_an_operator_owns_its_weights():
    plan = nc.plan_convolve((9, 8), (3, 2), dtype=np.float64)
    w, v = values((3, 2)), values((72,))
    A = plan.linear_operator(w)
    before = A @ v
    w[...] = 0
    np.testing.assert_array_equal(A @ v, before)


def test_lsqr_undoes_a_blur_through_the_operator():
    rng = np.random.default_rng(1)
    image = rng.random((16, 18))
    kernel = np.outer([0.2, 0.6, 0.2], [0.15, 0.7, 0.15])  # diagonally dominant: the blur can be inverted
    plan = nc.plan_convolve(image.shape, kernel.shape, "full", dtype=np.float64)
    A = plan.linear_operator(kernel)
    solution = lsqr(A, nc.convolve(image, kernel).ravel(), atol=1e-13, btol=1e-13)[0]
    np.testing.assert_allclose(solution.reshape(image.shape), image, atol=1e-9)


def test_svds_finds_the_norm_of_the_operator():
    plan = nc.plan_conv((2, 8, 7), (3, 2, 3, 3), dtype=np.float64, padding=1)
    w = normal(plan.kernel_shape)
    largest = svds(plan.linear_operator(w), k=1, return_singular_vectors=False, random_state=0)[0]
    np.testing.assert_allclose(largest, np.linalg.norm(plan.matrix(w).toarray(), 2), rtol=1e-8)


def test_an_operator_computes_where_no_matrix_would_fit():
    plan = nc.plan_conv((16, 300, 300), (16, 16, 5, 5))
    assert plan.nbytes("matrix") > 2 << 30
    w, x = normal(plan.kernel_shape, np.float32), normal(plan.input_shape, np.float32)
    y = plan.linear_operator(w) @ x.ravel()
    np.testing.assert_allclose(y.reshape(plan.output_shape), plan.forward(x, w), rtol=1e-5, atol=1e-3)


def test_operators_of_stacked_kernels_add_up():
    plan = nc.plan_convolve((9, 8), (3, 2), dtype=np.float64)
    a, b, v = values((3, 2), seed=1), values((3, 2), seed=2), values((72,))
    together = plan.linear_operator(a) + plan.linear_operator(b)
    np.testing.assert_allclose(together @ v, aslinearoperator(plan.matrix(a + b)) @ v, rtol=0, atol=1e-12)


# check and explain ----------------------------------------------------------------------------------------------------


@every_plan
@pytest.mark.parametrize("dtype", DTYPES)
def test_check_finds_every_form_in_agreement(make, dtype):
    errors = make(dtype=dtype).check()
    assert {"direct", "im2col", "kernel2row", "implicit"} <= errors.keys()
    assert len([name for name in errors if "adjoint" in name]) == 2
    limit = 0 if dtype == "int64" else 300 * np.finfo(dtype).eps
    assert all(0 <= error <= limit for error in errors.values()), errors


def test_check_is_reproducible_and_depends_on_its_seed():
    plan = nc.plan_conv((2, 8, 19, 17), (6, 8, 3, 3), dtype=np.float32)
    assert dict(plan.check(seed=3)) == dict(plan.check(seed=3))
    assert dict(plan.check(seed=3)) != dict(plan.check(seed=4))


def test_check_serves_every_algorithm_and_a_fill_value():
    for algorithm in ALGORITHMS:
        plan = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 3), padding=1, dtype=np.float64, algorithm=algorithm)
        assert max(plan.check().values()) < 1e-12, algorithm
    errors = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 3), padding=1, fill_value=2.5, dtype=np.float64).check()
    assert "kernel2row" not in errors
    assert max(errors.values()) < 1e-12


def test_check_would_notice_a_wrong_product(monkeypatch):
    plan = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 3), dtype=np.float64)
    cls = type(plan)
    honest = cls.grad_weight
    monkeypatch.setattr(cls, "grad_weight", lambda self, x, dy, out=None: 1.001 * honest(self, x, dy))
    assert max(plan.check().values()) > 1e-6


def test_explain_shows_the_seeds_example():
    explanation = nc.plan_convolve((3, 3), (2, 2)).explain()
    assert "w22 x11" in str(explanation)
    assert explanation.entry("X_conv", 0, 0) == "x22"
    assert explanation.entry("W_conv", 0, 0) == "w22"
    assert "<" in explanation._repr_html_()


# use_device -----------------------------------------------------------------------------------------------------------


def test_use_device_cpu_decides_for_plans_and_calls_inside():
    with nc.use_device("cpu"):
        plan = nc.plan_conv((1, 3, 9), (2, 3, 3))
        y = nc.conv(np.ones((1, 3, 9)), np.ones((2, 3, 3)))
    assert plan.device == "cpu"
    np.testing.assert_array_equal(y, np.full((1, 2, 7), 9.0))
