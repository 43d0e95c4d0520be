"""How tensor cores round, as NumPy has it: a model of every sum that ``numconv/cuda/mma.py`` makes.

    python tests/tensor_cores.py      prints how far each precision is from float64, by the model

``cvt.rna`` rounds to 10 bits behind the point, ties away from zero. Products are exact; eight of them and what they
are added to are one sum, which is rounded to float32 once in the simulator. NVIDIA documents no order and no rounding
of it; what was measured (M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 2021) is
that it is cut off. ``cut=True`` is that.
"""

from __future__ import annotations

import numpy as np

#: Products that a tensor core adds at once, and channels of a step: those that there are not are zeros.
TOGETHER, DEPTH = 8, 16


def tf32(x):
    """Round float32 to 10 bits behind the point, ties away from zero."""
    x = np.asarray(x, np.float32)
    finite = np.isfinite(x)
    _, exponent = np.frexp(np.where(finite, x, 0))
    ulp = np.ldexp(1.0, np.maximum(exponent - 11, -136))
    wide = np.where(finite, x, 0).astype(np.float64) / ulp
    rounded = np.copysign(np.floor(np.abs(wide) + 0.5), wide) * ulp
    with np.errstate(over="ignore"):  # the largest become infinite
        return np.where(finite, rounded, x).astype(np.float32)


def split(x):
    """float32 as the sum of two numbers of TF32, the second cut off."""
    big = tf32(x)
    small = np.asarray(x, np.float32) - big
    return big, (small.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def narrow(total, cut):
    """A sum as float32: to the nearest, or cut off."""
    near = total.astype(np.float32)
    return np.where(np.abs(near) > np.abs(total), np.nextafter(near, np.float32(0)), near) if cut else near


def added(total, a, b, cut):
    """``total + a @ b`` by tensor cores."""
    wide = total.astype(np.float64)
    for k in range(a.shape[-1]):
        wide = wide + np.multiply.outer(a[:, k].astype(np.float64), b[k].astype(np.float64))
    return narrow(wide, cut)


def product(a, b, precision, cut=False):
    """``a (M, K) @ b (K, N)`` of float32, ``K`` in groups of ``TOGETHER``."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    (a, a_small), (b, b_small) = split(a), split(b)
    for k in range(0, a.shape[1], TOGETHER):
        k = slice(k, k + TOGETHER)
        if precision == "tf32":
            total = added(total, a[:, k], b[k], cut)
        else:
            part = added(np.zeros_like(total), a_small[:, k], b[k], cut)
            total = total + added(added(part, a[:, k], b_small[k], cut), a[:, k], b[k], cut)
    return total


def room(size, terms, precision):
    """How far from the exact one a sum of so many products can be: by its operands, and by sums that are cut off.

    ``size`` is the sum of their absolute values.
    """
    return size * ((2.0**-10 if precision == "tf32" else 2.0**-20) + 2.0**-23 * (terms / TOGETHER + 4))


def ieee(a, b):
    """``a @ b`` summed one after another in float32, as a thread of the other kernels does."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):  # a fused multiply-add
        total = (total + np.multiply.outer(a[:, k].astype(np.float64), b[k].astype(np.float64))).astype(np.float32)
    return total


#: What the sums of a layer are long: channels times taps.
LENGTHS = {
    "7x7, 3 channels": 147, "1x1, 256 channels": 256, "3x3, 64 channels": 576, "3x3, 256 channels": 2304,
    "3x3, 512 channels": 4608, "weights, a part of 28x28 at batch 32": 25088,
}  # fmt: skip


def main():
    """A table: the largest error relative to the largest result, rounded and cut off."""
    print("largest |error| / largest |y|, inputs normal or (+) as ReLU leaves them; tensor cores round | cut off\n")
    print(f"{'sum':40}{'terms':>7}{'ieee':>10}{'tf32':>20}{'tf32x3':>20}")
    for name, K in LENGTHS.items():
        for sign in ("", " +"):
            rng = np.random.default_rng(K)
            a, b = (rng.standard_normal(shape, np.float32) for shape in ((16, K), (K, 64)))
            b = np.maximum(b, 0) if sign else b
            want = a.astype(np.float64) @ b.astype(np.float64)
            cells = [f"{np.abs(ieee(a, b) - want).max() / np.abs(want).max():10.1e}"]
            for precision in ("tf32", "tf32x3"):
                off = [np.abs(product(a, b, precision, cut) - want).max() / np.abs(want).max() for cut in (False, True)]
                cells.append(f"{off[0]:11.1e}{off[1]:9.1e}")
            print(f"{name + sign:40}{K:7}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
