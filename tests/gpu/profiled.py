"""A large layer and a depthwise one, twice each: for ``ncu``."""

import numpy as np

import numconv
from numconv.cuda import places

LAYERS = (
    ((32, 256, 28, 28), (256, 256, 3, 3), "implicit", {"padding": 1}),
    ((32, 32, 112, 112), (32, 1, 3, 3), "direct", {"padding": 1, "groups": 32}),
)

place = places.host()
for x_shape, w_shape, algorithm, arguments in LAYERS:
    plan = numconv.plan_conv(x_shape, w_shape, device="cuda", algorithm=algorithm, **arguments)
    x, w, bias = (place.zeros(shape, np.dtype("float32")) for shape in (x_shape, w_shape, w_shape[:1]))
    for _ in range(2):
        plan.forward(x, w, bias)
    place.to_host(bias)
