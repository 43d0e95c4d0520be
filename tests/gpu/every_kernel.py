"""Every CUDA kernel once, on sizes that fill no tile: for ``compute-sanitizer``, which makes a launch slow."""

from importlib.util import find_spec

import numpy as np

import numconv
from numconv.cuda import implicit, implicit_weights, mma

LAYERS = (
    ((2, 11, 9, 13), (70, 11, 3, 3), {"padding": 1, "stride": (2, 1), "boundary": "reflect"}),
    ((1, 4, 7, 8), (6, 2, 2, 3), {"groups": 2, "padding": 2, "dilation": 2}),
    ((2, 5, 6, 7), (5, 1, 3, 3), {"groups": 5}),
)


def main():
    """Products by each algorithm and tile, and a matrix."""
    rng = np.random.default_rng(0)
    products = implicit.LARGE_PRODUCT, implicit.SMALL_PRODUCT
    implicit.LEAST_STEPS = 2  # sums in parts
    tiles = implicit_weights.LARGE, implicit_weights.SMALL
    for product, tile in zip(products, tiles, strict=True):
        implicit.product_for = lambda *_, product=product: product
        implicit_weights.tile_for = lambda *_, tile=tile: tile
        for algorithm in ("implicit", "direct", "im2col"):
            for x_shape, w_shape, arguments in LAYERS:
                plan = numconv.plan_conv(x_shape, w_shape, device="cuda", algorithm=algorithm, **arguments)
                x, w, dy = (rng.standard_normal(s, "float32") for s in (x_shape, w_shape, plan.output_shape))
                for _ in range(2):  # the second one replays
                    plan.forward(x, w)
                    plan.grad_input(dy, w)
                    plan.grad_weight(x, dy)
    if find_spec("torch"):
        by_fft(rng)
    for tile in (0, -1):
        mma.tile_for = lambda tiles, *_, tile=tile: tiles[tile]
        for precision in mma.BY_PRECISION:
            for x_shape, w_shape, arguments in LAYERS:
                given = {"device": "cuda", "algorithm": "implicit", "precision": precision, **arguments}
                for dtype in ("float32", "float16"):
                    plan = numconv.plan_conv(x_shape, w_shape, dtype=dtype, **given)
                    x, w, dy = (
                        rng.standard_normal(s, "float32").astype(dtype) for s in (x_shape, w_shape, plan.output_shape)
                    )
                    x[0, 0, 0, 0] = np.inf  # what is not finite is summed again
                    plan.forward(x, w)
                    plan.grad_input(dy, w)
                    plan.grad_weight(x, dy)
    plan = numconv.plan_conv((2, 9, 10), (3, 2, 3, 3), device="cuda", dtype=float, padding=1)
    A = plan.matrix(rng.standard_normal((3, 2, 3, 3)))
    numconv.csr_matvec(A.data, A.indices, A.indptr, np.ones(A.shape[1]))
    numconv.csr_rmatvec(A.data, A.indices, A.indptr, np.ones(A.shape[0]), A.shape[1])
    print("every kernel ran")


def by_fft(rng):
    """Products by the FFT of torch."""
    import torch

    for x_shape, w_shape, arguments in LAYERS:
        plan = numconv.plan_conv(x_shape, w_shape, device="cuda", algorithm="fft", **arguments)
        shapes = (x_shape, w_shape, plan.output_shape)
        x, w, dy = (torch.from_numpy(rng.standard_normal(s, "float32")).cuda() for s in shapes)
        plan.forward(x, w)
        plan.grad_input(dy, w)
        plan.grad_weight(x, dy)


if __name__ == "__main__":
    with numconv.use_device("cuda"):
        main()
