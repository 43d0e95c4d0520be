"""A deliberately naive oracle: what every form of a convolution is, in loops that can be checked by eye.

It shares no code with numconv. Numbers are widened first (integers to Python's own, which never overflow), the input
is padded by ``numpy.pad``, and then plain loops run over batch, groups, channels, output pixels and taps. Results
stay wide; ``narrow`` brings them to the dtype that the package has to return. Any number of spatial axes.

Channelled arrays only: input ``(N, C, *in)`` or ``(C, *in)``, kernel ``(K, C/groups, *k)``. The caller of a plain
form adds two axes of length one.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

# numbers ------------------------------------------------------------------------------------------------------------


def widen(*arrays):
    """The arrays in one type without overflow and with rounding far below that of the package."""
    dtype = np.result_type(*arrays)
    if dtype.kind in "biu":
        wide = [np.asarray(a).astype(np.int8) if np.asarray(a).dtype.kind == "b" else np.asarray(a) for a in arrays]
        wide = [a.astype(object) for a in wide]
    else:
        wide = [np.asarray(a).astype(np.result_type(dtype, np.float64)) for a in arrays]
    return wide if len(wide) > 1 else wide[0]


def narrow(a, dtype):
    """``a`` in ``dtype``: integers wrap around modulo 2**bits, as NumPy's do, and bool asks for "not zero"."""
    a, dtype = np.asarray(a), np.dtype(dtype)
    if dtype.kind == "b":
        return np.array([bool(v != 0) for v in a.ravel()], dtype).reshape(a.shape)
    if dtype.kind in "iu":
        bits = 8 * dtype.itemsize
        wrapped = np.array([int(v) % 2**bits for v in a.ravel()], f"u{dtype.itemsize}")
        return wrapped.view(dtype).reshape(a.shape)
    return a.astype(dtype)


def zeros(shape, like):
    """Zeros in the wide type of ``like`` (Python's int 0 for object arrays)."""
    return np.full(shape, 0, dtype=like.dtype)


# sizes --------------------------------------------------------------------------------------------------------------


def axes_of(value, d):
    """An int for every axis."""
    return (value,) * d if isinstance(value, (int, np.integer)) else tuple(value)


def padding_pairs(padding, size, kernel, stride=1, dilation=1):
    """Every spelling of ``padding`` as one ``(lo, hi)`` pair for each axis."""
    d = len(kernel)
    stride, dilation = axes_of(stride, d), axes_of(dilation, d)
    spans = [dil * (k - 1) + 1 for k, dil in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return [(0, 0)] * d
    if padding == "full":
        return [(span - 1, span - 1) for span in spans]
    if padding in ("same", "same_lower"):
        pairs = []
        for n, span, s in zip(size, spans, stride, strict=True):
            outputs = int(np.ceil(n / s))
            total = max((outputs - 1) * s + span - n, 0)
            half = total // 2
            pairs.append((half, total - half) if padding == "same" else (total - half, half))
        return pairs
    if isinstance(padding, (int, np.integer)):
        return [(padding, padding)] * d
    return [(p, p) if isinstance(p, (int, np.integer)) else tuple(p) for p in padding]


def pad(x, pairs, boundary="constant", fill_value=0):
    """``numpy.pad`` over the spatial axes, which are the last ``len(pairs)``."""
    widths = [(0, 0)] * (x.ndim - len(pairs)) + list(pairs)
    if boundary == "constant":
        return np.pad(x, widths, mode="constant", constant_values=fill_value)
    return np.pad(x, widths, mode=boundary)


def output_size(padded, kernel, stride, dilation):
    """How many steps of ``stride`` a kernel can stand on the padded input: counted, not calculated."""
    return tuple(
        len([start for start in range(0, n, s) if start + dil * (k - 1) < n])
        for n, k, s, dil in zip(padded, kernel, stride, dilation, strict=True)
    )


def meets(pixel, tap, kernel, stride, dilation, flip):
    """Where on the padded input kernel value ``tap`` lies for output ``pixel``; ``flip`` turns the kernel."""
    place = [k - 1 - t for k, t in zip(kernel, tap, strict=True)] if flip else tap
    return tuple(o * s + t * dil for o, s, t, dil in zip(pixel, stride, place, dilation, strict=True))


# the product --------------------------------------------------------------------------------------------------------


def conv(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=False):
    """``y[n, k, o] = bias[k] + sum over c, t of w[k, c, t] * x[n, c, meets(o, t)]``, within each group."""
    x, w = widen(x, w)
    kernel, d = w.shape[2:], w.ndim - 2
    if x.ndim == d + 1:
        arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return conv(x[None], w, bias, **arguments, boundary=boundary, fill_value=fill_value, flip=flip)[0]
    stride, dilation = axes_of(stride, d), axes_of(dilation, d)
    padded = pad(x, padding_pairs(padding, x.shape[2:], kernel, stride, dilation), boundary, fill_value)
    N, K, per_group = len(x), len(w), w.shape[1]
    y = zeros((N, K, *output_size(padded.shape[2:], kernel, stride, dilation)), like=x)
    for n, k in product(range(N), range(K)):
        group = k // (K // groups)
        for pixel in np.ndindex(y.shape[2:]):
            total = 0 if bias is None else widen(bias)[k]
            for c, tap in product(range(per_group), np.ndindex(kernel)):
                at = meets(pixel, tap, kernel, stride, dilation, flip)
                total += w[(k, c, *tap)] * padded[(n, group * per_group + c, *at)]
            y[(n, k, *pixel)] = total
    return y


# the matrices -------------------------------------------------------------------------------------------------------


def im2col(x, kernel, *, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True):
    """``X_conv``: row ``(c, t)`` holds, for every output pixel, the input pixel that kernel value ``t`` meets."""
    d = len(kernel)
    stride, dilation = axes_of(stride, d), axes_of(dilation, d)
    if x.ndim == d + 2:
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        arguments |= {"boundary": boundary, "fill_value": fill_value, "flip": flip}
        return np.stack([im2col(image, kernel, **arguments) for image in x])
    if x.ndim == d:
        x = x[None]
    padded = pad(x, padding_pairs(padding, x.shape[1:], kernel, stride, dilation), boundary, fill_value)
    pixels = list(np.ndindex(output_size(padded.shape[1:], kernel, stride, dilation)))
    rows = list(product(range(len(x)), np.ndindex(*kernel)))
    cols = np.empty((len(rows), len(pixels)), x.dtype)
    for r, (c, tap) in enumerate(rows):
        for p, pixel in enumerate(pixels):
            cols[r, p] = padded[(c, *meets(pixel, tap, kernel, stride, dilation, flip))]
    return cols


def sources(channels, size, kernel, **geometry):
    """``im2col`` of the input's flat indices: which input pixel stands in each place of ``X_conv``; -1 is none."""
    indices = np.arange(channels * prod(size)).reshape(channels, *size)
    return im2col(indices, kernel, fill_value=-1, **geometry)


def col2im(cols, input_shape, kernel, *, reduce="sum", **geometry):
    """Every value of ``X_conv`` added onto the pixel it was read from; ``mean`` divides by how many there were."""
    d = len(kernel)
    if len(input_shape) == d + 2:
        return np.stack([col2im(c, input_shape[1:], kernel, reduce=reduce, **geometry) for c in cols])
    channels, size = (input_shape[0], input_shape[1:]) if len(input_shape) == d + 1 else (1, input_shape)
    cols = widen(cols)
    places = sources(channels, size, kernel, **geometry)
    x, counts = zeros(channels * prod(size), like=cols), np.zeros(channels * prod(size), int)
    for r, p in np.ndindex(places.shape):
        if places[r, p] >= 0:
            x[places[r, p]] += cols[r, p]
            counts[places[r, p]] += 1
    if reduce == "mean":
        x = np.array([total / count if count else 0 for total, count in zip(x, counts, strict=True)], dtype=x.dtype)
    return x.reshape(input_shape)


def conv_matrix(w, input_size, *, groups=1, **geometry):
    """``W_conv``, dense: the value at ``[(k, o), (c, i)]`` is what input pixel ``i`` of ``c`` adds to ``y[k, o]``."""
    w = widen(w)
    K, per_group, kernel = len(w), w.shape[1], w.shape[2:]
    places = sources(1, tuple(input_size), kernel, **geometry)
    taps, pixels, inputs = prod(kernel), places.shape[1], prod(input_size)
    matrix = zeros((K, pixels, per_group * groups, inputs), like=w)
    for k, c, t, p in product(range(K), range(per_group), range(taps), range(pixels)):
        channel = k // (K // groups) * per_group + c
        if places[t, p] >= 0:
            matrix[k, p, channel, places[t, p]] += w[k, c].ravel()[t]
    return matrix.reshape(K * pixels, per_group * groups * inputs)


# the gradients: adjoints of the two matrices ------------------------------------------------------------------------


def conv_grad_input(input_shape, w, dy, *, groups=1, fill_value=0, flip=False, **geometry):
    """``dX = W_conv^H @ dY``, image by image. A fill value is a constant and has no part in it."""
    w, dy = widen(w, dy)
    d = w.ndim - 2
    matrix = conv_matrix(w, input_shape[-d:], groups=groups, flip=flip, **geometry)
    images = dy.reshape(-1, matrix.shape[0])
    dx = [matrix.conj().T @ image for image in images]
    return (np.stack(dx) if dx else zeros(0, like=w)).reshape(input_shape)


def conv_grad_weight(x, kernel_shape, dy, *, groups=1, flip=False, **geometry):
    """``dW = dY @ X_conv^H``, summed over the batch, group by group."""
    x, dy = widen(x, dy)
    K, per_group, kernel = kernel_shape[0], kernel_shape[1], tuple(kernel_shape[2:])
    if x.ndim == len(kernel) + 1:
        x, dy = x[None], dy[None]
    dw = zeros((K, per_group * prod(kernel)), like=x)
    for n, g in product(range(len(x)), range(groups)):
        channels = slice(g * per_group, (g + 1) * per_group)
        outputs = slice(g * (K // groups), (g + 1) * (K // groups))
        X_conv = im2col(x[n, channels], kernel, flip=flip, **geometry)
        dw[outputs] += dy[n, outputs].reshape(K // groups, -1) @ X_conv.conj().T
    return dw.reshape(kernel_shape)


def conv_transpose(x, w, bias=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1, flip=False):
    """torch's transposed convolution, kernel ``(C, K/groups, *k)``: every input pixel lays the kernel on the output."""
    x, w = widen(x, w)
    kernel, d = w.shape[2:], w.ndim - 2
    arguments = {"stride": stride, "padding": padding, "output_padding": output_padding}
    arguments |= {"dilation": dilation, "groups": groups}
    if x.ndim == d + 1:
        return conv_transpose(x[None], w, bias, **arguments, flip=flip)[0]
    stride, dilation, extra = axes_of(stride, d), axes_of(dilation, d), axes_of(output_padding, d)
    pairs = padding_pairs(padding, [n * s for n, s in zip(x.shape[2:], stride, strict=True)], kernel, stride, dilation)
    N, C, K = len(x), len(w), w.shape[1] * groups
    sizes = zip(x.shape[2:], stride, kernel, dilation, extra, strict=True)
    canvas = [(n - 1) * s + dil * (k - 1) + 1 + e for n, s, k, dil, e in sizes]
    if padding in ("same", "same_lower"):  # the output is in * stride, whatever the kernel covers of it
        canvas = [n * s + lo + hi for n, s, (lo, hi) in zip(x.shape[2:], stride, pairs, strict=True)]
    full = zeros((N, K, *canvas), like=x)
    for n, c, k in product(range(N), range(C), range(w.shape[1])):
        output = c // (C // groups) * w.shape[1] + k
        for pixel, tap in product(np.ndindex(x.shape[2:]), np.ndindex(kernel)):
            at = meets(pixel, tap, kernel, stride, dilation, flip)
            full[(n, output, *at)] += x[(n, c, *pixel)] * w[(c, k, *tap)]
    inside = (slice(lo, max(n - hi, lo)) for n, (lo, hi) in zip(canvas, pairs, strict=True))
    y = full[(slice(None), slice(None), *inside)]
    if bias is not None:
        y = y + widen(bias).reshape(-1, *(1,) * d)
    return y


def products(x, w, dy, *, groups=1, fill_value=0, flip=False, **geometry):
    """``conv``, ``conv_grad_input`` and ``conv_grad_weight`` of ``(N, C, *in)``, meeting by meeting.

    Tap ``t`` of output ``p`` meets one pixel or the fill value; nothing else is multiplied, not even by 0. So an
    element is NaN or infinite exactly where the sum over what it meets is.
    """
    x, w, dy = widen(x, w, dy)
    N, (K, per_group), kernel = len(x), w.shape[:2], w.shape[2:]
    places = sources(1, x.shape[2:], kernel, flip=flip, **geometry)
    pixels = x.reshape(N, groups, 1, per_group, prod(x.shape[2:]))
    weights = w.reshape(groups, K // groups, per_group, prod(kernel))
    gradient = dy.reshape(N, groups, K // groups, 1, prod(dy.shape[2:]))
    y, dx, dw = (zeros(a.shape, like=x) for a in (gradient[:, :, :, 0], pixels[:, :, 0], weights))
    constant = zeros((), like=x) + fill_value
    with np.errstate(all="ignore"):
        for t, p in np.ndindex(places.shape):
            i = places[t, p]
            pixel = pixels[..., i] if i >= 0 else np.full((N, groups, 1, per_group), constant)
            y[..., p] += (weights[..., t] * pixel).sum(axis=3)
            dw[..., t] += (gradient[..., p] * pixel.conj()).sum(axis=0)
            if i >= 0:
                dx[..., i] += (weights[..., t].conj() * gradient[..., p]).sum(axis=2)
    return y.reshape(dy.shape), dx.reshape(x.shape), dw.reshape(w.shape)


# SciPy's functions on plain arrays ----------------------------------------------------------------------------------


def convolve(x, w, mode="full", *, boundary="constant", fill_value=0, stride=1, dilation=1):
    """``full``: every overlap; ``same``: its middle, as long as ``x``; ``valid``: overlaps without padding.

    In ``valid`` the larger array is the one that is slid over, as in SciPy.
    """
    d = w.ndim
    stride, dilation = axes_of(stride, d), axes_of(dilation, d)
    spans = [dil * (k - 1) + 1 for k, dil in zip(w.shape, dilation, strict=True)]
    spread = zeros(spans, like=widen(w))  # the kernel with zeros inserted
    spread[tuple(slice(None, None, dil) for dil in dilation)] = widen(w)
    if mode == "valid":
        if all(n <= span for n, span in zip(x.shape, spans, strict=True)):
            x, spread = spread, x
        pairs = [(0, 0)] * d
    else:
        pairs = [(span - 1, span - 1) for span in spans]
    size = x.shape
    y = conv(x[None], spread[None, None], padding=pairs, boundary=boundary, fill_value=fill_value, flip=True)[0]
    if mode == "same":
        starts = [(full - n) // 2 for full, n in zip(y.shape, size, strict=True)]
        y = y[tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))]
    return y[tuple(slice(None, None, s) for s in stride)]


def correlate(x, w, mode="full", **arguments):
    """``convolve`` with ``w`` turned and conjugated."""
    return convolve(x, np.flip(np.conj(w) if np.asarray(w).dtype.kind == "c" else w), mode, **arguments)
