"""Other libraries' arrays on a GPU, over numba's simulator: where they are read, computed and given back."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import fake_libraries
import naive
import numpy as np
import pytest
import scipy.sparse
from conftest import values
from fake_libraries import CupyArray, Tensor, cupy_array
from simulator import in_simulator, simulated

import numconv
from numconv import dispatch

pytestmark = in_simulator

if simulated:
    from numconv.cuda import driver, places


@pytest.fixture
def launched(monkeypatch):
    """The device and stream of every launch."""
    found, launch = [], driver.Simulator.launch

    def noted(self, device, kernel, blocks, arguments, stream):
        found.append((device, stream))
        launch(self, device, kernel, blocks, arguments, stream)

    monkeypatch.setattr(driver.Simulator, "launch", noted)
    return found


@pytest.fixture
def waited(monkeypatch):
    """The device and stream of everything that was waited for."""
    found = []
    monkeypatch.setattr(driver.Simulator, "wait", lambda self, device, stream: found.append((device, stream)))
    return found


@pytest.fixture
def calls(monkeypatch):
    found = []
    fake_libraries.install(monkeypatch, found)
    return found


X, W = values((1, 2, 4, 5), np.float32), values((3, 2, 2, 2), np.float32, 1)


@pytest.mark.parametrize(
    ("make", "given", "stream"), [(Tensor, Tensor, 41), (cupy_array, CupyArray, 42)], ids=["torch", "cupy"]
)
def test_results_are_the_callers_on_its_stream(calls, launched, make, given, stream):
    y = numconv.conv(make(X), make(W), padding=1)
    assert type(y) is given
    np.testing.assert_array_equal(y.numbers, naive.conv(X, W, padding=1))
    assert set(launched) == {(0, stream)}
    strided = np.zeros((1, 2, 4, 10), np.float32)
    strided[..., ::2] = X
    y = numconv.conv(make(strided)[..., ::2], make(W), padding=1)
    np.testing.assert_array_equal(y.numbers, naive.conv(X, W, padding=1))
    out = make(np.zeros((1, 3, 5, 6), np.float32))
    assert numconv.conv(make(X), make(W), padding=1, out=out) is out
    np.testing.assert_array_equal(out.numbers, naive.conv(X, W, padding=1))


@pytest.mark.parametrize("make", [Tensor, cupy_array], ids=["torch", "cupy"])
def test_the_explicit_path_multiplies_by_the_callers_blas(calls, make):
    part = make(np.stack([W, W]))[1]  # not at the beginning of its memory
    y = numconv.conv(make(X), part, make(np.ones(3, np.float32)), algorithm="im2col")
    np.testing.assert_array_equal(y.numbers, naive.conv(X, W, np.ones(3, np.float32)))
    assert calls == [("matmul", type(y).__module__)]
    dx = numconv.plan_conv(X.shape, W.shape, algorithm="im2col").grad_input(y, part)
    np.testing.assert_array_equal(dx.numbers, naive.conv_grad_input(X.shape, W, y.numbers))


def test_a_second_gpu_computes_what_lies_there(calls, launched, monkeypatch):
    y = numconv.conv(Tensor(X, 1), Tensor(W, 1))
    assert str(y.device) == "cuda:1"
    assert {device for device, _ in launched} == {1}
    with pytest.raises(TypeError, match=r"x: torch on cuda:1, w: torch on cuda:0"):
        numconv.conv(Tensor(X, 1), Tensor(W, 0))
    with monkeypatch.context() as now:
        now.setattr(CupyArray, "current", 3)
        far = cupy_array(X), cupy_array(W)
    launched.clear()
    assert numconv.conv(*far).on_device == 3
    assert {device for device, _ in launched} == {3}


def test_cupy_has_a_sparse_matrix_and_an_operator(calls):
    plan = numconv.plan_conv(X.shape, W.shape, padding=1)
    W_conv = plan.matrix(cupy_array(W))
    assert isinstance(W_conv, fake_libraries.CsrMatrix)
    assert W_conv.has_canonical_format
    want = naive.conv_matrix(W, X.shape[2:], padding=1, flip=False)

    def dense():
        parts = tuple(part.numbers for part in (W_conv.data, W_conv.indices, W_conv.indptr))
        return scipy.sparse.csr_array(parts, shape=W_conv.shape).toarray()

    np.testing.assert_array_equal(dense(), want)
    assert plan.refill(W_conv, cupy_array(3 * W)) is W_conv
    np.testing.assert_array_equal(dense(), 3 * want)
    A = plan.linear_operator(cupy_array(W))
    assert A.shape == want.shape
    x, y = values((want.shape[1], 2), np.float32), values((want.shape[0],), np.float32)
    np.testing.assert_array_equal(A.matmat(cupy_array(x)).numbers, want @ x)
    np.testing.assert_array_equal(A.matvec(cupy_array(x[:, 0].copy())).numbers, want @ x[:, 0])
    np.testing.assert_array_equal(A.rmatvec(cupy_array(y)).numbers, y @ want)
    whole = numconv.kernel2row(cupy_array(W.astype(np.int64)), X.shape[2:])
    assert [type(part) for part in whole] == [CupyArray] * 3  # CuPy has no sparse matrix of whole numbers
    with pytest.raises(TypeError, match="w must be an array of NumPy or CuPy"):
        plan.linear_operator(Tensor(W))


# libraries that nobody knows ----------------------------------------------------------------------------------------


class ByInterface:
    """An array that describes itself by the CUDA array interface."""

    __module__ = "somelib.arrays"

    def __init__(self, numbers, stream=None, readonly=False, mask=None, device=0):
        self.numbers, self.device = numbers, SimpleNamespace(id=device)
        self.__cuda_array_interface__ = {
            **numbers.__array_interface__, "data": (numbers.ctypes.data, readonly), "stream": stream, "mask": mask,
        }  # fmt: skip

    def __array_namespace__(self):
        return SimpleNamespace(
            empty=lambda shape, dtype, device: ByInterface(np.full(shape, 7, dtype), device=device.id), int64=np.int32,
            **{name: np.dtype(name) for name in ("float32", "float64", "int32")},
        )


class ByDLPack:
    """An array that says no more than DLPack asks for."""

    __module__ = "otherlib"

    def __init__(self, numbers):
        self.numbers, self.streams = numbers, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, **rest):
        self.streams.append(stream)
        rest.pop("dl_device", None)
        return self.numbers.__dlpack__(**{key: value for key, value in rest.items() if key == "max_version"})


def test_an_unknown_library_waits_and_gets_its_own_arrays(launched, waited):
    x = ByInterface(X[..., ::-1], stream=5, device=2)
    y = numconv.conv(x, ByInterface(W, device=2))
    assert type(y) is ByInterface
    assert y.device.id == 2
    np.testing.assert_array_equal(y.numbers, naive.conv(X[..., ::-1], W))
    assert waited == [(2, 5)]  # for the result, which is made on the stream that made x
    assert set(launched) == {(2, 5)}
    out = ByInterface(np.zeros(y.numbers.shape, np.float32), device=2)
    assert numconv.conv(x, ByInterface(W, device=2), out=out) is out
    assert waited == [(2, 5)] * 2
    np.testing.assert_array_equal(out.numbers, y.numbers)


def test_a_library_that_narrows(launched):
    """Workspaces come from numba where a library's int64 is none."""
    W_conv = numconv.kernel2row(ByInterface(W), (3, 4), flip=False)
    parts = tuple(part.numbers for part in W_conv)
    want = scipy.sparse.csr_array(parts)
    y = values((want.shape[0],), np.float32)
    x = numconv.csr_rmatvec(*W_conv, ByInterface(y), want.shape[1])
    assert type(x) is ByInterface
    np.testing.assert_array_equal(x.numbers, y @ want)


def test_what_cannot_be_written_or_read_is_refused():
    out = ByInterface(np.zeros((1, 3, 3, 4), np.float32), readonly=True)
    with pytest.raises(ValueError, match="out must be writeable"):
        numconv.conv(ByInterface(X), ByInterface(W), out=out)
    y = numconv.conv(ByInterface(X, readonly=True), ByInterface(W, readonly=True))
    np.testing.assert_array_equal(y.numbers, naive.conv(X, W))
    with pytest.raises(TypeError, match=r"x must be a dense array.*masked"):
        numconv.conv(ByInterface(X, mask=object()), ByInterface(W))
    packed = np.zeros(3, [("a", np.int8), ("b", np.float32)])["b"]  # strides of 5 bytes
    with pytest.raises(ValueError, match="strides of whole items"):
        numconv.convolve(ByInterface(packed), ByInterface(np.ones(2, np.float32)))


def test_dlpack_alone(waited):
    x, w = ByDLPack(X), ByDLPack(W)
    y = numconv.conv(x, w)
    np.testing.assert_array_equal(np.asarray(y), naive.conv(X, W))
    assert x.streams[-1] == 1  # the library makes the default stream wait
    assert waited == [(0, 1)]


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_unknown_library_allocated_is_kept_until_it_was_waited_for(monkeypatch, fails):
    """It may give memory that it gets back to another stream at once, while kernels still work with it."""
    made, there = [], []

    class Noted(ByInterface):
        def __array_namespace__(self):
            namespace = super().__array_namespace__()

            def empty(shape, dtype, device):
                if fails and made:
                    raise MemoryError
                array = Noted(np.full(shape, 7, dtype))
                made.append(weakref.ref(array))
                return array

            return SimpleNamespace(**{**vars(namespace), "empty": empty})

    def wait(self, device, stream):
        there.append([array() is not None for array in made])

    monkeypatch.setattr(driver.Simulator, "wait", wait)
    for _ in range(2):  # as it is written, and replayed
        made.clear()
        if fails:  # the result is there, and a kernel may be at work
            with pytest.raises(MemoryError):
                numconv.conv(Noted(X), Noted(W), algorithm="implicit", padding=3)  # not captured yet
        else:
            numconv.conv(Noted(X), Noted(W), algorithm="implicit", padding=2)
    assert len(there) == 2 and there[0] and all(map(all, there))


def test_the_stream_is_that_of_the_first_array_that_names_one(launched, waited, monkeypatch):
    ordered = []
    monkeypatch.setattr(driver.Simulator, "order", lambda self, *given: ordered.append(given))
    for _ in range(2):
        numconv.conv(ByInterface(X), ByInterface(W, stream=7), ByInterface(np.ones(3, np.float32), stream=1))
    assert set(launched) == {(0, 7)}
    assert waited == [(0, 7)] * 2
    assert [given for given in ordered if given[1] != given[2]] == [(0, 1, 7)] * 2


def test_the_place_of_arrays_that_outlive_a_call_keeps_its_stream(launched, monkeypatch):
    ordered = []
    monkeypatch.setattr(driver.Simulator, "order", lambda self, *given: ordered.append(given))
    x = places.host().send(X)
    numconv.conv(x, places.host().send(W))
    x.place.follow(7)
    numconv.conv(x, places.host().send(W))
    assert ordered == [(0, 7, 0)] and set(launched) == {(0, 0)}


def test_what_only_the_cpu_has_is_said(calls):
    with pytest.raises(ValueError, match=r"'winograd' cannot.*no cuda kernel of it, but of im2col, kernel2row"):
        numconv.conv(Tensor(X), Tensor(values((3, 2, 3, 3), np.float32)), algorithm="winograd")


def test_the_place_of_a_library():
    assert places.place_of("torch on cuda:2") == places.Torch(2)
    assert places.place_of("lib on cuda:1").kind == "lib on cuda:1"
    assert dispatch.kind_of("x", ByInterface(X, device=4)) == "somelib on cuda:4"


# the allocators' errors ---------------------------------------------------------------------------------------------


def test_out_of_memory_leaves_all_usable(calls, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        """torch's."""

    def full(shape, dtype, device):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    arrays = Tensor(X), Tensor(W)
    with monkeypatch.context() as now:
        now.setattr(fake_libraries.sys.modules["torch"], "empty", full)
        with pytest.raises(MemoryError, match="the GPU has no memory left"):
            numconv.conv(*arrays)
    np.testing.assert_array_equal(numconv.conv(*arrays).numbers, naive.conv(X, W))


@pytest.mark.parametrize("make", [Tensor, cupy_array], ids=["torch", "cupy"])
def test_the_stride_of_an_axis_with_one_item_means_nothing(calls, make):
    x, w = values((1, 2, 6, 1), np.float32), values((3, 2, 3, 1), np.float32, 1)
    memory = np.zeros((1, 3, 4, 1), np.float32)
    odd_x, out = (np.lib.stride_tricks.as_strided(a, strides=(-8, *a.strides[1:3], 20)) for a in (x, memory))
    numconv.conv(make(odd_x), make(w), out=make(out))
    np.testing.assert_array_equal(memory, naive.conv(x, w))


@pytest.mark.parametrize("empty", ["K", "C", "CH", "H", "KCHW"])
def test_a_matrix_of_nothing_has_rows_of_nothing(empty):
    K, C, *size = (0 if name in empty else n for name, n in (("K", 2), ("C", 3), ("H", 4), ("W", 2)))
    w = np.ones((K, C, 3, 2), np.float32)
    with numconv.use_device("cuda"):
        W_conv = numconv.kernel2row(w, tuple(size), padding=2)
    want = numconv.kernel2row(w, tuple(size), padding=2)
    assert W_conv.shape == want.shape
    np.testing.assert_array_equal(W_conv.indptr, want.indptr)


def test_outputs_beyond_32_bits_are_refused():
    g = numconv.geometry.conv_geometry((1, 1, 1 << 16, 1 << 14), (1, 1, 1, 1), padding=((0, 1 << 16), (1 << 14, 0)))
    with pytest.raises(ValueError, match=r"2\*\*31.*outputs"):
        numconv.cuda.tables.rows_and_taps(places.host(), g.axes, 0)
