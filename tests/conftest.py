"""What all tests share: the algorithms, data on which results are exact, and how results are compared.

Most data are small multiples of 1/2 (integers for integer dtypes). Their products and sums are exact in every float
dtype, in any order of summation, so whatever adds products is compared **bit for bit** and a tolerance is left to the
transforms (Winograd, FFT) and to ``"auto"``, which may choose them. Real-valued data and their rounding have tests of
their own.
"""

from __future__ import annotations

import os

# torch and numba each bring OpenMP threads; those of one that wait must not take the cores from the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import naive
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The set may run beside other work on few cores: time is no criterion for a single example.
slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40, suppress_health_check=slow_is_fine)
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=slow_is_fine)
settings.load_profile(os.environ.get("NUMCONV_TEST_PROFILE", "ci"))

ALGORITHMS = ["im2col", "kernel2row", "implicit", "direct", "winograd", "fft"]
#: These add up products and nothing else, so they serve every geometry and are exact wherever the sums are.
EXACT = ["im2col", "kernel2row", "implicit", "direct"]
BOUNDARIES = ["constant", "edge", "reflect", "symmetric", "wrap"]

INTEGERS = [np.dtype(t) for t in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")]
FLOATS = [np.dtype(t) for t in ("float16", "float32", "float64")]
COMPLEX = [np.dtype(t) for t in ("complex64", "complex128")]
DTYPES = INTEGERS + FLOATS + COMPLEX
#: For what compiles much in each dtype: every width, signed and not, without near-equal relatives.
SOME_DTYPES = [dtype for dtype in DTYPES if dtype.name not in ("uint16", "uint32", "uint64")]

#: By how much a transform may exceed the rounding of a plain sum (Winograd's F(4x4, 3x3) amplifies by about 10).
AMPLIFICATION = 16


def values(shape, dtype=np.float64, seed=0):
    """Random data of a dtype, small enough that sums of some hundred products are exact (integers may wrap)."""
    rng, dtype = np.random.default_rng([seed, *shape]), np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(-9 if dtype.kind == "i" else 0, 10, shape).astype(dtype)
    halves = rng.integers(-4, 5, shape) / 2
    if dtype.kind == "c":
        halves = halves + 1j * (rng.integers(-4, 5, shape) / 2)
    return halves.astype(dtype)


def normal(shape, dtype=np.float64, seed=0):
    """Random real-valued (or complex) data: the kind that rounds."""
    rng, dtype = np.random.default_rng([seed, *shape]), np.dtype(dtype)
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if dtype.kind == "c" else a).astype(dtype)


def largest(a):
    """The largest absolute value, 0 for an empty array."""
    return float(np.abs(np.asarray(a)).max()) if np.size(a) else 0.0


def assert_same(got, wide, dtype=None):
    """``got`` has the dtype, the shape and bit for bit the values of the oracle's ``wide`` result."""
    dtype = np.dtype(dtype) if dtype is not None else np.asarray(wide).dtype
    assert isinstance(got, (np.ndarray, np.generic))
    assert got.dtype == dtype
    assert got.shape == np.shape(wide)
    np.testing.assert_array_equal(got, naive.narrow(wide, dtype))


def assert_close(got, wide, dtype, scale, amplification=1):
    """Likewise, within the rounding of a sum of products.

    ``scale`` bounds the sum of the products' absolute values, usually terms * max|a| * max|b|. A sum in any order errs
    by at most terms * eps * that; rounding is random, so sqrt(terms) is what happens and 8 is ample for the small sums
    of these tests. Integers have no rounding.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "biu":
        return assert_same(got, wide, dtype)
    assert got.dtype == dtype
    assert got.shape == np.shape(wide)
    tolerance = 8 * amplification * float(np.finfo(dtype).eps) * scale
    np.testing.assert_allclose(got, np.asarray(wide).astype(np.result_type(dtype, np.float64)), rtol=0, atol=tolerance)


def assert_by(algorithm, got, wide, dtype, scale):
    """Bit for bit for algorithms that add products, within rounding for the others (data from ``values``)."""
    if algorithm in EXACT:
        assert_same(got, wide, dtype)
    else:
        assert_close(got, wide, dtype, scale, AMPLIFICATION)


def must_refuse(algorithm, fill_value=0, **_):
    """A constant other than 0 makes the map affine, which no matrix is."""
    return algorithm == "kernel2row" and fill_value != 0


def result_of(algorithm, function, *args, **arguments):
    """The result, or None where the algorithm says that it cannot serve the geometry.

    Only Winograd and FFT may say so, by a ``ValueError`` that names them; kernel2row has to for a fill value.
    """
    try:
        result = function(*args, algorithm=algorithm, **arguments)
    except ValueError as refusal:
        if algorithm not in ("winograd", "fft") and not must_refuse(algorithm, **arguments):
            raise
        assert algorithm in str(refusal).lower(), f"a refusal has to name its algorithm: {refusal}"
        return None
    assert not must_refuse(algorithm, **arguments), "kernel2row has to refuse a fill value other than 0"
    return result


def dtype_id(value):
    """Names dtypes in test ids."""
    return np.dtype(value).name if isinstance(value, (np.dtype, type)) else None


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(20)
