"""Where others slipped (``peers.md``): one test for each, named after the report where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import naive
import numpy as np
import pytest
import scipy.signal
from conftest import AMPLIFICATION, EXACT, assert_close, assert_same, normal, values

import numconv

ROOT = Path(numconv.__file__).parents[1]


def python(code, **environment):
    """Runs code in a fresh interpreter and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# alignment ----------------------------------------------------------------------------------------------------------


def test_even_kernel_same_alignment_scipy_9941():
    """MATLAB's ``same`` starts at ceil((k-1)/2) of full, SciPy's at floor: ours is SciPy's, spelled out."""
    x, w = np.array([1, 10, 100, 1000]), np.array([1, 2])
    np.testing.assert_array_equal(numconv.convolve(x, w, "full"), [1, 12, 120, 1200, 2000])
    np.testing.assert_array_equal(numconv.convolve(x, w, "same"), [1, 12, 120, 1200])
    np.testing.assert_array_equal(numconv.correlate(x, w, "full"), [2, 21, 210, 2100, 1000])
    np.testing.assert_array_equal(numconv.correlate(x, w, "same"), [2, 21, 210, 2100])


def test_even_kernel_same_padding_puts_the_odd_pixel_at_the_end():
    """``padding="same"`` is XLA's and ONNX's SAME_UPPER, which is not SciPy's alignment; ``same_lower`` is."""
    x, w = np.array([[[1, 10, 100, 1000]]]), np.array([[[1, 2]]])
    np.testing.assert_array_equal(numconv.conv(x, w, padding="same")[0, 0], [21, 210, 2100, 1000])
    np.testing.assert_array_equal(numconv.conv(x, w, padding="same_lower")[0, 0], [2, 21, 210, 2100])


def test_correlate_and_correlate2d_differ_scipy_1968():
    """For even kernels SciPy has two alignments of ``same``; ``correlate`` is what we say we are."""
    x, w = values((5, 6)), values((2, 4))
    ours = numconv.correlate(x, w, "same")
    np.testing.assert_allclose(ours, scipy.signal.correlate(x, w, "same"), rtol=0, atol=1e-12)
    assert not np.allclose(ours, scipy.signal.correlate2d(x, w, "same"))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_a_short_input_keeps_its_length_where_numpy_6316_does_swap_inputs(mode):
    x, w = np.array([1, 2, 3]), np.array([1, 0, 2, 0, 5])
    want = scipy.signal.convolve(x, w, mode)
    np.testing.assert_array_equal(numconv.convolve(x, w, mode), want)
    if mode == "same":
        assert len(want) == len(x)
        assert len(np.convolve(x, w, mode)) == len(w)


def test_valid_correlate_of_swapped_inputs_keeps_the_order_of_lags():
    x, w = np.array([1, 2j]), np.array([1, 2 + 1j, 3, 4])
    want = scipy.signal.correlate(x, w, "valid")
    np.testing.assert_allclose(numconv.correlate(x, w, "valid"), want, rtol=1e-15)
    np.testing.assert_allclose(numconv.correlate(x, w, "valid", stride=2), want[::2], rtol=1e-15)


def test_stride_that_does_not_divide_floors():
    """The last pixels are left out; nothing is padded and nothing is refused."""
    x, w = np.arange(8.0).reshape(1, 1, 8), np.ones((1, 1, 3))
    np.testing.assert_array_equal(numconv.conv(x, w, stride=3), [[[0 + 1 + 2, 3 + 4 + 5]]])
    dx = numconv.conv_grad_input(x.shape, w, np.ones((1, 1, 2)), stride=3)
    np.testing.assert_array_equal(dx, [[[1, 1, 1, 1, 1, 1, 0, 0]]])


# gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_weight_gradient_pytorch_51430(groups):
    """``torch.nn.grad.conv2d_weight`` mixed up groups where a batch came with them."""
    x, dy = values((3, 4, 6, 5)), values((3, 8, 4, 4))
    shape = (8, 4 // groups, 3, 2)
    want = naive.conv_grad_weight(x, shape, dy, groups=groups)
    got = numconv.conv_grad_weight(x, shape, dy, groups=groups)
    assert_close(got, want, "f8", 4 * 48, AMPLIFICATION)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_gradient_with_dilation_pytorch_13008(groups):
    """... and raised with a dilation and with a stride that does not divide."""
    geometry = {"groups": groups, "dilation": (2, 3), "stride": (3, 2), "padding": (1, 2)}
    x, shape = values((2, 4, 11, 12)), (6, 4 // groups, 3, 2)
    dy = values(naive.conv(x, np.zeros(shape), **geometry).shape)
    want = naive.conv_grad_weight(x, shape, dy, **geometry)
    assert_close(numconv.conv_grad_weight(x, shape, dy, **geometry), want, "f8", 4 * dy[:, 0].size, AMPLIFICATION)


@pytest.mark.parametrize("boundary", ["constant", "reflect", "wrap"])
def test_the_adjoint_of_a_complex_operator_is_the_hermitian_one(boundary):
    geometry = {"padding": 2, "boundary": boundary, "stride": (1, 2)}
    plan = numconv.plan_conv((2, 5, 6), (3, 2, 2, 3), dtype=np.complex128, **geometry)
    x, w, dy = normal((2, 5, 6), "c16"), normal((3, 2, 2, 3), "c16", 1), normal(plan.output_shape, "c16", 2)
    inner = np.vdot(plan.forward(x, w), dy)
    assert abs(inner.imag) > 1, "else the test would not tell the adjoint from the transpose"
    np.testing.assert_allclose(np.vdot(x, plan.grad_input(dy, w)), inner, rtol=1e-12)
    np.testing.assert_allclose(np.vdot(w, plan.grad_weight(x, dy)), inner, rtol=1e-12)
    np.testing.assert_allclose(np.vdot(x, plan.linear_operator(w).rmatvec(dy.ravel())), inner, rtol=1e-12)


def test_results_are_the_same_bit_for_bit_for_any_number_of_threads_pytorch_17501():
    code = """
        import hashlib, numpy as np, numconv
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((2, 6, 60, 61)), rng.standard_normal((8, 6, 3, 3))
        dy = rng.standard_normal((2, 8, 60, 61))
        results = [numconv.conv(x, w, padding=1, algorithm=a) for a in ("implicit", "direct")]
        results += [numconv.conv_grad_input(x.shape, w, dy, padding=1)]
        results += [numconv.conv_grad_weight(x, w.shape, dy, padding=1)]
        results += [numconv.col2im(numconv.im2col(x, (3, 3)), x.shape, (3, 3))]
        print([hashlib.sha256(r.tobytes()).hexdigest()[:12] for r in results])
    """
    one, two = (python(code, NUMBA_NUM_THREADS=n, OPENBLAS_NUM_THREADS="1") for n in ("1", "2"))
    assert one == two


# sparse matrices ----------------------------------------------------------------------------------------------------


def test_zeros_in_the_kernel_are_kept_in_the_structure_cvxpy_2949():
    w = np.array([[0.0, 1.0], [0.0, 0.0]])
    W_conv = numconv.kernel2row(w, (3, 3))
    assert W_conv.nnz == 16
    plan = numconv.plan_convolve((3, 3), (2, 2), "valid", dtype=np.float64)
    plan.refill(W_conv, np.array([[5.0, 0.0], [6.0, 7.0]]))
    np.testing.assert_array_equal(W_conv.toarray()[0], [7, 6, 0, 0, 5, 0, 0, 0, 0])


@pytest.mark.parametrize(("rows", "width"), [(4_999, 4), (50_001, 8)], ids=["int32", "int64"])
def test_indices_are_int32_where_they_fit_and_int64_otherwise_numba_scipy_92(rows, width):
    """The rule is asked of a plan, which allocates nothing."""
    plan = numconv.plan_conv((1, rows + 2, 10_002), (1, 1, 3, 3), dtype=np.float32)
    entries, pixels = 9 * rows * 10_000, rows * 10_000
    assert (entries > 2**31 - 1) == (width == 8)
    assert plan.nbytes("matrix") == entries * (4 + width) + (pixels + 1) * width


def test_wide_matrices_with_few_entries_need_int64_columns():
    """Few entries, but columns beyond 2**31: the width follows from the shape too."""
    plan = numconv.plan_conv((1, 2**20, 2**12), (1, 1, 1, 1), dtype=np.float32, stride=2**10)
    outputs = 2**10 * 2**2
    assert plan.nbytes("matrix") == outputs * (4 + 8) + (outputs + 1) * 8


def test_a_matrix_too_large_for_the_memory_is_refused_before_anything_is_allocated():
    with pytest.raises(MemoryError, match=r"\d"):
        numconv.kernel2row(np.ones((64, 64, 3, 3), np.float32), (4096, 4096))
    with pytest.raises(MemoryError, match=r"\d"):
        numconv.im2col(np.broadcast_to(np.float32(1), (512, 4096, 4096)), (7, 7))


# memory -------------------------------------------------------------------------------------------------------------


def overlapping(shift):
    """An input and an output that share memory, shifted against each other."""
    memory = np.zeros(64)
    memory[:40] = values((40,), seed=9)
    return memory[:40], memory[shift : 40 + shift]


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("algorithm", ["auto", *EXACT])
def test_out_that_overlaps_the_input_is_right_or_refused_scipy_3694(algorithm, shift):
    x, out = overlapping(shift)
    w = values((5,))
    want = naive.convolve(x, w, "same")
    try:
        numconv.convolve(x, w, "same", algorithm=algorithm, out=out)
    except ValueError as refusal:
        assert "out" in str(refusal)
    else:
        assert_close(out, want, "f8", 20)


@pytest.mark.parametrize("what", ["input", "kernel", "bias"])
def test_out_that_overlaps_an_input_of_conv_is_right_or_refused(what):
    memory = values((1, 2, 6, 6), seed=3)
    x, w, bias = values((1, 2, 6, 6)), values((2, 2, 3, 3)), values((2,))
    if what == "input":
        x = memory
    elif what == "kernel":
        w = memory.ravel()[20:56].reshape(2, 2, 3, 3)
    else:
        bias = memory.ravel()[30:32]
    want = naive.conv(x, w, bias, padding=1)
    try:
        numconv.conv(x, w, bias, padding=1, out=memory)
    except ValueError as refusal:
        assert "out" in str(refusal)
    else:
        assert_close(memory, want, "f8", 4 * 19, AMPLIFICATION)


def test_out_that_overlaps_is_right_or_refused_for_gradients_and_im2col():
    memory = values((2, 4, 4), seed=3)
    w = values((2, 2, 3, 3))
    calls = [
        (naive.conv_grad_input((2, 4, 4), w, memory, padding=1),
         lambda a: numconv.conv_grad_input(a.shape, w, a, padding=1, out=a)),
        (naive.im2col(memory.reshape(1, 4, 8), (1, 1)).reshape(2, 4, 4),
         lambda a: numconv.im2col(a.reshape(1, 4, 8), (1, 1), out=a.reshape(1, 32))),
    ]  # fmt: skip
    for want, call in calls:
        given = memory.copy()
        try:
            call(given)
        except ValueError as refusal:
            assert "out" in str(refusal)
        else:
            assert_close(given, want, "f8", 4 * 18, AMPLIFICATION)


def test_kernels_do_not_write_past_a_small_out():
    """Guards around ``out``, for sizes that no tile divides."""
    for size in (1, 3, 7, 17, 33):
        x, w = values((1, 3, size, size)), values((5, 3, 3, 3))
        for algorithm in EXACT:
            memory = np.full(5 * size * size + 128, 77.0)
            out = memory[64:-64].reshape(1, 5, size, size)
            numconv.conv(x, w, padding=1, algorithm=algorithm, out=out)
            assert (memory[:64] == 77).all()
            assert (memory[-64:] == 77).all()


# threads ------------------------------------------------------------------------------------------------------------

CONCURRENT = """
    from concurrent.futures import ThreadPoolExecutor
    import numba, numpy as np, numconv
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 120, 121)), rng.standard_normal((8, 4, 3, 3))
    def work(algorithm):
        return [numconv.conv(x, w, padding=1, algorithm=algorithm) for _ in range(5)]
    wanted = {a: work(a)[0] for a in ("implicit", "direct", "im2col")}
    with ThreadPoolExecutor(4) as pool:
        for algorithm, ys in zip(list(wanted) * 4, pool.map(work, list(wanted) * 4)):
            assert all((y == wanted[algorithm]).all() for y in ys)
    print(numba.threading_layer())
"""


def test_concurrent_calls_on_the_workqueue_layer_do_not_abort_numba_8563():
    assert python(CONCURRENT, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2") == "workqueue"


def test_concurrent_calls_on_the_default_layer():
    assert python(CONCURRENT, NUMBA_NUM_THREADS="2") in ("tbb", "omp", "workqueue")


def test_one_plan_serves_several_threads():
    plan = numconv.plan_conv((2, 3, 30, 31), (4, 3, 3, 3), dtype=np.float64, padding=1, boundary="reflect")
    xs, w = [values((2, 3, 30, 31), seed=i) for i in range(8)], values((4, 3, 3, 3))
    wanted = [plan.forward(x, w) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda x: plan.forward(x, w), xs), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_after_its_parent_has_launched_threads():
    """GNU OpenMP kills a child that launches threads after a fork."""
    code = """
        import os, sys, numpy as np, numconv
        x, w = np.ones((4, 120, 121)), np.ones((8, 4, 3, 3))
        want = numconv.conv(x, w, algorithm="implicit")
        child = os.fork()
        if child == 0:
            os._exit(0 if (numconv.conv(x, w, algorithm="implicit") == want).all() else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(code) == "0"


def kernels():
    """Every kernel of the CPU room, by name."""
    import importlib
    import pkgutil

    import numconv.cpu
    from numconv.cpu._jit import Kernel

    rooms = [importlib.import_module(f"numconv.cpu.{room.name}") for room in pkgutil.iter_modules(numconv.cpu.__path__)]
    return {f"{room.__name__}.{name}": k for room in rooms for name, k in vars(room).items() if isinstance(k, Kernel)}


def test_tasks_are_really_shared_xarray_spatial_3615():
    """What writes ``prange`` has a parallel loop, and that loop is behind every kernel."""
    import numba

    from numconv.cpu import _jit

    loops = [name for name, kernel in kernels().items() if "tasks_of" in kernel.code.py_func.__code__.co_names]
    assert len(loops) >= len(kernels()) - 1 > 3
    # numba's disk cache does not keep what the compiler found, so it is compiled afresh
    fresh = numba.njit(parallel=True, **_jit.OPTIONS)(_jit._on_threads.py_func)
    fresh.compile((numba.types.intp,) * 3)
    assert fresh.get_metadata(fresh.signatures[0])["parfor_diagnostics"].count_parfors() > 0


def test_a_kernel_computes_every_task_once_alone_and_in_teams():
    from numconv.cpu._jit import Kernel, tasks_of

    @Kernel
    def count(team, times, done):
        for task in tasks_of(team, done.size):
            done[task] += times

    done = np.zeros(11, np.int64)
    count(2, done, work=0)
    assert done.tolist() == [2] * 11
    count(1, done, work=1 << 30)
    assert done.tolist() == [3] * 11
    done[:] = 0
    count.code(-(1 << 16 | 3), 1, done)  # the second of three
    assert done.tolist() == [0] * 3 + [1] * 4 + [0] * 4


def test_a_thread_that_finds_no_memory_says_so():
    from numconv.cpu._jit import Kernel, tasks_of

    @Kernel
    def take(team, sizes, taken):
        for task in tasks_of(team, sizes.size):
            taken[task] = np.empty(sizes[task], np.int8).size

    taken = np.zeros(4, np.int64)
    take(np.arange(4), taken, work=1 << 30)
    assert taken.tolist() == [0, 1, 2, 3]
    for place in (0, 3):
        sizes = np.arange(4)
        sizes[place] = 1 << 55
        with pytest.raises(MemoryError):
            take(sizes, taken, work=1 << 30)


# start --------------------------------------------------------------------------------------------------------------


def test_import_compiles_nothing_and_imports_nothing_heavy_tsdate_438():
    code = """
        import sys, numconv
        heavy = ("numba", "llvmlite", "scipy", "torch", "cupy", "matplotlib", "dask")
        print([name for name in heavy if name in sys.modules])
    """
    assert python(code) == "[]"


def test_no_kernel_has_an_eager_signature():
    """Importing every room of kernels compiles none of them."""
    code = """
        import importlib, pkgutil, numconv.cpu
        from numconv.cpu._jit import Kernel
        names = [room.name for room in pkgutil.iter_modules(numconv.cpu.__path__)]
        rooms = [importlib.import_module(f"numconv.cpu.{name}") for name in names]
        kernels = [k for room in rooms for k in vars(room).values() if isinstance(k, Kernel)]
        print(len(kernels) > 3, [k.__name__ for k in kernels if k.code.signatures])
    """
    assert python(code) == "True []"


# not a number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", *EXACT])
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_nan_and_infinity_reach_the_outputs_that_see_them_and_no_others_scipy_15927(algorithm, value):
    x, w = np.ones((1, 1, 9, 9)), np.ones((1, 1, 3, 3))
    x[0, 0, 4, 6] = value
    y = numconv.conv(x, w, padding=1, algorithm=algorithm)[0, 0]
    sees = np.zeros((9, 9), bool)
    sees[3:6, 5:8] = True
    np.testing.assert_array_equal(np.isfinite(y), ~sees)
    np.testing.assert_array_equal(np.isnan(y), sees & np.isnan(value))


def test_infinities_of_both_signs_give_nan():
    y = numconv.convolve(np.array([np.inf, -np.inf, 1.0]), np.ones(2), "valid", algorithm="direct")
    assert np.isnan(y[0])
    assert y[1] == -np.inf


def test_integers_wrap_as_numpys_do_jax_7637():
    x, w = np.full((1, 1, 4), 100, np.int8), np.full((1, 1, 2), 3, np.int8)
    for algorithm in ("auto", *EXACT):
        assert_same(numconv.conv(x, w, algorithm=algorithm), np.full((1, 1, 3), 600), np.int8)
