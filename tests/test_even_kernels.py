"""Which middle an even kernel has: SciPy's in ``mode``, XLA's in ``padding="same"``, SciPy's in ``"same_lower"``."""

from itertools import product

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from conftest import normal, values

import numconv as nc

#: Kernels of one to three axes, odd and even in every mixture.
KERNELS = [
    *((k,) for k in range(1, 7)), *product((1, 2, 3, 4), repeat=2), *product((2, 3), repeat=3), (4, 1, 2), (1, 4, 5),
]  # fmt: skip
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
SIZES = {1: (11,), 2: (9, 8), 3: (6, 7, 8)}
#: numpy.pad's names, as scipy.ndimage calls them.
NDIMAGE = {"constant": "constant", "edge": "nearest", "reflect": "mirror", "symmetric": "reflect", "wrap": "wrap"}


def arrays_for(kernel):
    return values(SIZES[len(kernel)]), values(kernel, seed=1)


def later(kernel):
    """The ``origin`` of ``scipy.ndimage`` that moves an even kernel by one pixel."""
    return [-1 if k % 2 == 0 else 0 for k in kernel]


def layer(x, w, **options):
    return nc.conv(x[None], w[None, None], **options)[0]


@every_kernel
def test_mode_same_is_that_of_scipy_signal(kernel):
    x, w = arrays_for(kernel)
    np.testing.assert_array_equal(nc.convolve(x, w, "same"), scipy.signal.convolve(x, w, "same", method="direct"))
    np.testing.assert_array_equal(nc.correlate(x, w, "same"), scipy.signal.correlate(x, w, "same", method="direct"))
    plan = nc.plan_convolve(x.shape, w.shape, "same", dtype=float)
    np.testing.assert_array_equal(plan.forward(x, w), nc.convolve(x, w, "same"))


@every_kernel
@pytest.mark.parametrize("boundary", NDIMAGE)
def test_scipy_ndimage_correlates_alike_and_convolves_one_pixel_later(kernel, boundary):
    x, w = arrays_for(kernel)
    mode = NDIMAGE[boundary]
    same, lower = ({"padding": padding, "boundary": boundary} for padding in ("same", "same_lower"))
    ours, theirs = nc.correlate(x, w, "same", boundary=boundary), scipy.ndimage.correlate(x, w, mode=mode)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(layer(x, w, **lower), theirs)
    np.testing.assert_array_equal(
        layer(x, w, **same), scipy.ndimage.correlate(x, w, mode=mode, origin=later(kernel))
    )
    ours, theirs = nc.convolve(x, w, "same", boundary=boundary), scipy.ndimage.convolve(x, w, mode=mode)
    np.testing.assert_array_equal(layer(x, w, flip=True, **same), theirs)
    np.testing.assert_array_equal(ours, scipy.ndimage.convolve(x, w, mode=mode, origin=later(kernel)))
    np.testing.assert_array_equal(ours, layer(x, w, flip=True, **lower))
    if all(k % 2 for k in kernel):
        np.testing.assert_array_equal(ours, theirs)


@every_kernel
def test_the_matrices_have_both(kernel):
    x, w = arrays_for(kernel)
    full = nc.convolve(x, w)
    for padding, begin in (("same_lower", [(k - 1) // 2 for k in kernel]), ("same", [k // 2 for k in kernel])):
        y = full[tuple(slice(b, b + n) for b, n in zip(begin, x.shape, strict=True))]
        matrix = nc.kernel2row(w, x.shape, padding=padding)
        np.testing.assert_array_equal((matrix @ x.ravel()).reshape(x.shape), y)
        cols = nc.im2col(x, kernel, padding=padding)
        np.testing.assert_array_equal((w.ravel() @ cols).reshape(x.shape), y)
        plan = nc.plan_conv((1, *x.shape), (1, 1, *kernel), dtype=float, padding=padding, flip=True)
        np.testing.assert_array_equal(plan.forward(x[None], w[None, None])[0], y)
        np.testing.assert_array_equal(plan.linear_operator(w[None, None]).matvec(x.ravel()), y.ravel())
        back = nc.conv_transpose(y[None], w[None, None], padding=padding, flip=True)[0]
        np.testing.assert_array_equal(back.ravel(), matrix.T @ y.ravel())
        np.testing.assert_array_equal(
            nc.conv_grad_input((1, *x.shape), w[None, None], y[None], padding=padding, flip=True)[0], back
        )
        own = np.broadcast_to(w, (*x.shape, *kernel)).copy()
        np.testing.assert_array_equal(nc.conv_local(x, own, padding=padding, flip=True), y)
    np.testing.assert_array_equal(
        nc.convolve(x, w, "same"), (nc.kernel2row(w, x.shape, padding="same_lower") @ x.ravel()).reshape(x.shape)
    )


@every_kernel
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_torch_follows_xla(kernel):
    torch = pytest.importorskip("torch")
    x, w = arrays_for(kernel)
    conv = getattr(torch.nn.functional, f"conv{len(kernel)}d")
    y = conv(torch.from_numpy(x)[None, None], torch.from_numpy(w)[None, None], padding="same")[0, 0]
    np.testing.assert_array_equal(layer(x, w, padding="same"), y)


@every_kernel
def test_averages_have_the_middle_of_convolve(kernel):
    x, w = normal(SIZES[len(kernel)]), np.abs(normal(kernel, seed=1)) + 0.1
    want = scipy.signal.convolve(x, w, "same", method="direct") / w.sum()
    np.testing.assert_allclose(nc.normalized_convolve(x, w, "same"), want, rtol=1e-12, atol=1e-12)
    A = nc.normalized_operator(np.zeros(x.shape, bool), w, "same")
    np.testing.assert_allclose(A.matvec(x.ravel()), want.ravel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_dilated_kernel_is_even_if_its_extent_is(k, dilation):
    x, w = values((17,)), values((k,), seed=1)
    spread = np.zeros((k - 1) * dilation + 1)
    spread[::dilation] = w
    assert np.array_equal(nc.convolve(x, w, "same", dilation=dilation), scipy.signal.convolve(x, spread, "same"))
    lower, same = (layer(x, w, padding=p, dilation=dilation, flip=True) for p in ("same_lower", "same"))
    np.testing.assert_array_equal(lower, nc.convolve(x, w, "same", dilation=dilation))
    np.testing.assert_array_equal(same, scipy.ndimage.convolve(x, spread, mode="constant"))
