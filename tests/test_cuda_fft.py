"""FFT on a GPU, over numba's simulator with NumPy's transforms: products against the naive oracle, cut or whole."""

from __future__ import annotations

import fake_libraries
import naive
import numpy as np
import pytest
from conftest import normal, values
from fake_libraries import Tensor, cupy_array
from hypothesis import given, settings
from simulator import in_simulator, simulated
from strategies import cases

import numconv

pytestmark = in_simulator

if simulated:
    from numconv.cuda import costs, fft, places


@pytest.fixture
def in_blocks(monkeypatch):
    """Images are cut into blocks of a few outputs."""

    def small(rows, C, K, G):
        return costs.Tiling(*(zip(*(costs._cut_axis(row, 4) for row in rows), strict=True)))

    monkeypatch.setattr(fft, "tiling", small)


def plan_of(case):
    return numconv.plan_conv(
        case.x_shape, case.w_shape, dtype=case.dtype, device="cuda", algorithm="fft", **case.geometry
    )


def close(got, want, dtype):
    """Within some roundings of the largest result; sums of these values are exact, and so is what the oracle says."""
    assert got.dtype == np.dtype(dtype)
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    wide = np.result_type(want, np.float64)
    np.testing.assert_allclose(got.astype(wide), want, rtol=0, atol=16 * float(np.finfo(dtype).eps) * scale)


def all_products_are_right(case):
    plan = plan_of(case)
    bias, dy = values((plan.geometry.K,), case.dtype, 7), case.dy(plan.output_shape)
    close(plan.forward(case.x, case.w, bias), naive.conv(case.x, case.w, bias, **case.geometry), case.dtype)
    want = naive.conv_grad_input(case.x_shape, case.w, dy, **case.geometry)
    close(plan.grad_input(dy, case.w), want, case.dtype)
    close(plan.grad_weight(case.x, dy), naive.conv_grad_weight(case.x, case.w_shape, dy, **case.geometry), case.dtype)


DTYPES = ("float32", "float64", "complex64")


@settings(max_examples=12)
@given(case=cases(dtypes=DTYPES, axes=(1, 2, 3)))
def test_products(case):
    all_products_are_right(case)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("seed", range(6))
def test_products_in_blocks(seed):
    rng = np.random.default_rng(seed)
    kernel, stride, dilation, boundary = (
        ((3,), 1, 2, "wrap"), ((2, 3), 2, 1, "reflect"), ((3, 2), (1, 3), (2, 1), "constant"), ((4,), 3, 1, "edge"),
        ((2, 1, 2), 1, 1, "symmetric"), ((1, 3), (2, 1), 1, "constant"),
    )[seed]  # fmt: skip
    size = tuple(rng.integers(*((7, 12) if len(kernel) < 3 else (3, 5)), len(kernel)).tolist())
    geometry = {"stride": stride, "dilation": dilation, "boundary": boundary, "groups": 1 + seed % 2}
    geometry["padding"] = 2 if len(kernel) < 3 else 1
    x, w = values((2, 2, *size), "float32", seed), values((4, 2 // geometry["groups"], *kernel), "float32", seed)
    plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft", **geometry)
    cut = fft.cut_of(plan.geometry.axes, 2, 4, geometry["groups"], plan.dtype)
    assert max(cut.tiling.tiles) > 1
    dy = values(plan.output_shape, "float32", seed)
    close(plan.forward(x, w), naive.conv(x, w, **geometry), "float32")
    close(plan.grad_input(dy, w), naive.conv_grad_input(x.shape, w, dy, **geometry), "float32")
    close(plan.grad_weight(x, dy), naive.conv_grad_weight(x, w.shape, dy, **geometry), "float32")


def test_more_channels_than_a_thread_has_sums():
    x, w = values((3, 6, 5, 4), np.float32), values((10, 3, 3, 2), np.float32)
    plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft", groups=2)
    dy = values(plan.output_shape, np.float32, 2)
    close(plan.forward(x, w), naive.conv(x, w, groups=2), "float32")
    close(plan.grad_weight(x, dy), naive.conv_grad_weight(x, w.shape, dy, groups=2), "float32")


def test_float16_is_summed_wider():
    x, w = normal((1, 2, 9, 8), np.float16), normal((2, 2, 3, 3), np.float16, 1)
    plan = numconv.plan_conv(x.shape, w.shape, dtype=np.float16, device="cuda", algorithm="fft", padding=1)
    want = naive.conv(x.astype(float), w.astype(float), padding=1)
    np.testing.assert_allclose(plan.forward(x, w).astype(float), want, rtol=2**-10, atol=1e-6)
    dy = normal(plan.output_shape, np.float16, 2)
    want = naive.conv_grad_input(x.shape, w.astype(float), dy.astype(float), padding=1)
    np.testing.assert_allclose(plan.grad_input(dy, w).astype(float), want, rtol=2**-10, atol=1e-6)


def test_rounding_goes_with_float64(monkeypatch):
    """Of an image in which a pixel is a million times the others, float32 keeps all its digits."""
    x, w = normal((1, 1, 12, 12), np.float32), normal((1, 1, 5, 5), np.float32, 1)
    x[0, 0, 0, 0] = 1e6
    got = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft").forward(x, w)
    wide = naive.conv(np.abs(x.astype(float)), np.abs(w.astype(float)))
    assert np.max(np.abs(got - naive.conv(x.astype(float), w.astype(float))) / wide) < 2**-23


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_a_mark_changes_what_reads_it_and_nothing_else(dtype):
    x, w = normal((3, 2, 7, 8), dtype), normal((2, 2, 3, 3), dtype, 1)
    x[1, 1, 2, 3] = 1e30
    x[2, 0] *= np.exp2(-np.arange(56).reshape(7, 8) % 40).astype(x.real.dtype)  # no gap between values
    plan = numconv.plan_conv(x.shape, w.shape, dtype=dtype, device="cuda", algorithm="fft")
    plain = numconv.plan_conv(x.shape, w.shape, dtype=dtype, device="cuda", algorithm="direct")
    y, want = plan.forward(x, w), plain.forward(x, w)
    eps = np.finfo(dtype).eps
    sums = naive.conv(np.abs(x).astype(float), np.abs(w).astype(float))
    assert np.all(np.abs(y - want)[:2] <= 32 * eps * sums[:2])
    assert np.all(np.abs(y - want)[2] <= 32 * eps * sums[2].max())
    dy = normal(plan.output_shape, dtype, 2)
    off = np.abs(plan.grad_weight(x, dy) - plain.grad_weight(x, dy))
    assert np.all(off <= 64 * eps * naive.conv_grad_weight(np.abs(x).astype(float), w.shape, np.abs(dy).astype(float)))
    alone = numconv.plan_conv((1, *x.shape[1:]), w.shape, dtype=dtype, device="cuda", algorithm="fft")
    np.testing.assert_array_equal(alone.forward(x[:1], w), y[:1])


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_planes_whose_values_lie_apart(dtype):
    wide = 2.0 ** 45
    x = normal((1, 6, 40, 3), dtype)
    x[0, 0, 0, 0] *= wide**2  # one above all others
    x[0, 1, 0, 0] /= wide**2  # one below
    x[0, 2, ::2] /= wide  # half of them
    x[0, 3] *= 2.0 ** -np.arange(40).reshape(40, 1)  # without a gap
    x[0, 4] = 0
    x[0, 5, ::2] = 0
    x[0, 5, 1] = np.nan
    seen = places.host().send(x)
    np.testing.assert_array_equal(fft.planes_apart(seen).numbers, [1, 0, 1, 0, 0, 0])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_is_where_the_sum_has_it(dtype, bad):
    geometry = {"padding": 1, "stride": (1, 2), "boundary": "reflect"}
    x, w = values((2, 2, 5, 6), dtype), values((2, 2, 2, 3), dtype, 1)
    x[1, 0, 2, 3] = bad
    plan = numconv.plan_conv(x.shape, w.shape, dtype=dtype, device="cuda", algorithm="fft", **geometry)
    plain = numconv.plan_conv(x.shape, w.shape, dtype=dtype, device="cuda", algorithm="direct", **geometry)
    dy = values(plan.output_shape, dtype, 2)
    for got, want in (
        (plan.forward(x, w), plain.forward(x, w)), (plan.grad_weight(x, dy), plain.grad_weight(x, dy)),
        (plan.grad_input(plain.forward(x, w), w), plain.grad_input(plain.forward(x, w), w)),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        assert not np.isfinite(got).all()
        there = np.isfinite(want)
        np.testing.assert_allclose(got[there], want[there], atol=1e-4)


def test_an_image_has_the_bits_that_it_has_alone(monkeypatch):
    """By whatever pieces a batch is transformed; each call of the library transforms one image."""
    x, w = normal((5, 2, 6, 7), np.float32), normal((3, 2, 3, 3), np.float32, 1)
    seen, transform = [], places.Host.fft

    def noted(self, name, source, target, sizes, norm):
        seen.append((name, source.shape, target.shape))
        transform(self, name, source, target, sizes, norm)

    monkeypatch.setattr(places.Host, "fft", noted)
    alone = [
        numconv.plan_conv((1, 2, 6, 7), w.shape, device="cuda", algorithm="fft").forward(x[n : n + 1], w)
        for n in range(5)
    ]
    calls = set(seen)
    for room in (1 << 28, 20000, 1):
        monkeypatch.setattr(fft, "SPECTRA", room)
        plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft")
        np.testing.assert_array_equal(plan.forward(x, w), np.concatenate(alone))
        dy = normal(plan.output_shape, np.float32, 2)
        whole = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="direct").grad_weight(x, dy)
        np.testing.assert_allclose(plan.grad_weight(x, dy), whole, atol=1e-4)
        assert set(seen) >= calls
    assert {call for call in seen if call[0] == "rfftn" and call[1][0] == 2} <= calls


@pytest.mark.parametrize("make", [Tensor, cupy_array], ids=["torch", "cupy"])
def test_the_callers_library_transforms(monkeypatch, make):
    calls = []
    fake_libraries.install(monkeypatch, calls)
    x, w = values((2, 2, 6, 7), np.float32), values((3, 2, 3, 3), np.float32, 1)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="fft", device="cuda", padding=1)
    dy = values(plan.output_shape, np.float32, 2)
    for _ in range(2):  # the second one replays
        calls.clear()
        y = plan.forward(make(x), make(w))
        close(y.numbers, naive.conv(x, w, padding=1), "float32")
        assert [name for name, _ in calls] == ["rfftn"] * 3 + ["irfftn"] * 2
        dx = plan.grad_input(make(dy), make(w))
        close(dx.numbers, naive.conv_grad_input(x.shape, w, dy, padding=1), "float32")
        dw = plan.grad_weight(make(x), make(dy))
        close(dw.numbers, naive.conv_grad_weight(x, w.shape, dy, padding=1), "float32")
    assert {module for _, module in calls} == {type(y).__module__}
    assert len({key for key in plan._captures if key[1].library == type(y).__module__}) == 3


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_torch_itself_transforms(monkeypatch, dtype):
    """Its tensors on the CPU stand for those on a GPU: the functions and their arguments are the same."""
    torch = pytest.importorskip("torch")
    place = places.Torch(0)
    monkeypatch.setattr(
        places.Torch, "allocate", lambda self, shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype.name))
    )
    monkeypatch.setattr(places.Torch, "stream", lambda self: 0)
    geometry = {"stride": (2, 1), "padding": 1, "groups": 2, "boundary": "reflect"}
    plan = numconv.plan_conv((3, 4, 6, 5), (4, 2, 3, 3), dtype=dtype, device="cuda", algorithm="fft", **geometry)
    for seed in range(2):  # the second time it is replayed
        x, w, dy = (values(s, dtype, seed) for s in (plan.input_shape, plan.kernel_shape, plan.output_shape))
        X, W, dY = (place.read(torch.from_numpy(a)) for a in (x, w, dy))
        close(plan.forward(X, W).owner.numpy(), naive.conv(x, w, **geometry), dtype)
        close(plan.grad_input(dY, W).owner.numpy(), naive.conv_grad_input(x.shape, w, dy, **geometry), dtype)
        close(plan.grad_weight(X, dY).owner.numpy(), naive.conv_grad_weight(x, w.shape, dy, **geometry), dtype)


def test_other_numbers_are_replayed(monkeypatch):
    fake_libraries.install(monkeypatch, [])
    plan = numconv.plan_conv((3, 1, 7, 5), (2, 1, 3, 2), algorithm="fft", device="cuda", dtype="complex64")
    for seed in range(3):
        x, w = values((3, 1, 7, 5), np.complex64, seed), values((2, 1, 3, 2), np.complex64, seed + 9)
        close(plan.forward(Tensor(x), Tensor(w)).numbers, naive.conv(x, w), "complex64")
    assert len(plan._captures) == 1


def test_a_library_without_fft_is_refused(monkeypatch):
    monkeypatch.setattr(places.Host, "has_library", False)
    x, w = values((1, 1, 6, 6), np.float32), values((1, 1, 3, 3), np.float32)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="fft", device="cuda")
    with pytest.raises(ValueError, match=r"'fft' cannot serve .* library of the arrays, torch or CuPy.* no FFT"):
        plan.forward(x, w)
    assert "fft" not in numconv.plan_conv(x.shape, w.shape, device="cuda").check()
    auto = numconv.plan_conv((1, 1, 600, 600), (1, 1, 61, 61), device="cuda")
    assert auto.choice.forward == "fft"
    other = auto._on_gpu(places.host())
    assert "fft" not in other.choice
    assert other is auto._on_gpu(places.host())
    assert auto._on_gpu(places.Torch(0)) is auto


def test_memory_is_asked_for(monkeypatch):
    monkeypatch.setattr(places.Host, "available", lambda self: 1 << 25)
    x, w = np.zeros((1, 8, 1500, 1500), np.float32), np.zeros((8, 1, 41, 41), np.float32)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="fft", groups=8, device="cuda")
    with pytest.raises(MemoryError, match="by 'fft'"):
        plan.forward(x, w)


def test_what_is_taken_is_what_is_said(monkeypatch):
    """All that is allocated at once, and what the library allocates for the largest transform."""
    held, most, largest = [0], [0], [0]
    fft_of, allocate = places.Host.fft, places.Host.allocate

    class Counted(np.ndarray):
        def __del__(self):
            if self.base is None:
                held[0] -= self.nbytes

    def counted(self, shape, dtype):
        array = allocate(self, shape, dtype).copy().view()
        made = Counted(array.shape, array.dtype)
        held[0] += made.nbytes
        most[0] = max(most[0], held[0])
        return made

    def noted(self, name, source, target, sizes, norm):
        largest[0] = max(largest[0], target.nbytes)
        fft_of(self, name, source, target, sizes, norm)

    monkeypatch.setattr(places.Host, "allocate", counted)
    monkeypatch.setattr(places.Host, "fft", noted)
    x, w = values((2, 2, 14, 14), np.float32), values((3, 2, 5, 5), np.float32)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="fft", device="cuda")
    given = plan.forward(x, w).nbytes
    assert most[0] - given + largest[0] <= plan.nbytes("workspace")
