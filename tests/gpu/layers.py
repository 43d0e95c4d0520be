"""The layers that are timed on a GPU: names that results keep, shapes of input and weights, and the rest."""

from __future__ import annotations

from typing import Any

LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("3x3 64ch 56x56 batch 32", (32, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("3x3 256ch 56x56 batch 32", (32, 256, 56, 56), (256, 256, 3, 3), {"padding": 1}),
    ("depthwise 3x3 32ch 112x112 batch 32", (32, 32, 112, 112), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ("3x3 256ch 14x14 batch 1", (1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    ("1x1 256->64ch 56x56 batch 32", (32, 256, 56, 56), (64, 256, 1, 1), {}),
    ("7x7 /2 3->64ch 224x224 batch 32", (32, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    ("3x3 256ch 14x14 batch 32", (32, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    ("3x3 /2 128ch 56x56 batch 32", (32, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}),
    ("3x3 32 groups 128ch 56x56 batch 32", (32, 128, 56, 56), (128, 4, 3, 3), {"padding": 1, "groups": 32}),
    ("3x3 dilation 2 256ch 28x28 batch 32", (32, 256, 28, 28), (256, 256, 3, 3), {"padding": 2, "dilation": 2}),
    ("depthwise 31x31 64ch 56x56 batch 32", (32, 64, 56, 56), (64, 1, 31, 31), {"padding": 15, "groups": 64}),
    ("63x63 1ch 1024x1024 batch 4", (4, 1, 1024, 1024), (1, 1, 63, 63), {"padding": 31}),
    ("15x15 32ch 112x112 batch 8", (8, 32, 112, 112), (32, 32, 15, 15), {"padding": 7}),
]
