"""The truth (`truth`) about layers that move voxels, grouped and transposed convolutions, means, distances between voxels."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from znni.layers import (
    AvgPool,
    ConvTranspose,
    DepthToSpace,
    GlobalPool,
    GroupedConv,
    Pad,
    PairDistance,
    Resize,
    Slice,
)


def _activated(layer, y):
    from .truth import activated  # which imports this module

    return activated(layer.activation, y)


def _padded(x, padding):
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])


def avg_pool(layer, weights, x):
    """Sums over windows of the zero-padded input, by the window's size or by how much of it lies on the input."""

    def sums(values):
        view = sliding_window_view(_padded(values, layer.padding), layer.window, axis=(2, 3, 4))
        return view[(..., *(slice(None, None, s) for s in layer.stride), *[slice(None)] * 3)].sum(axis=(5, 6, 7))

    return sums(x) / (np.prod(layer.window) if layer.count_padding else sums(np.ones_like(x)))


def global_pool(layer, weights, x):
    """One value a channel."""
    return (x.mean if layer.reduce == "mean" else x.max)(axis=(2, 3, 4), keepdims=True)


def grouped_conv(layer, weights, x):
    """Of each group its own cross-correlation."""
    weight = weights["weight"].astype(np.float64)
    view = sliding_window_view(_padded(x, layer.padding), layer.extent, axis=(2, 3, 4))
    view = view[(..., *(slice(None, None, s) for s in (*layer.stride, *layer.dilation)))]
    view = view.reshape(x.shape[0], layer.groups, -1, *view.shape[2:])
    weight = weight.reshape(layer.groups, -1, *weight.shape[1:])
    y = np.einsum("bgizyxklm,goiklm->bgozyx", view, weight, optimize=True)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return _activated(layer, y + weights["bias"].astype(np.float64)[:, None, None, None])


def conv_transpose(layer, weights, x):
    """Each voxel of the input adds its kernel to the output."""
    weight = weights["weight"].astype(np.float64).reshape(layer.groups, -1, *weights["weight"].shape[1:])
    whole = tuple((n - 1) * s + k for n, s, k in zip(x.shape[2:], layer.stride, layer.kernel, strict=True))
    room = tuple(n + max(0, -b) for n, b in zip(whole, layer.high, strict=True))
    out = np.zeros((x.shape[0], layer.groups, layer.out_channels // layer.groups, *room))
    grouped = x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:])
    for tap in itertools.product(*map(range, layer.kernel)):
        at = (slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip(tap, x.shape[2:], layer.stride, strict=True))
        out[(..., *at)] += np.einsum("bgizyx,gio->bgozyx", grouped, weight[(..., *tap)])
    cut = (slice(a, n - b) for a, n, b in zip(layer.low, whole, layer.high, strict=True))
    out = out.reshape(x.shape[0], layer.out_channels, *room)[(..., *cut)]
    return _activated(layer, out + weights["bias"].astype(np.float64)[:, None, None, None])


def pad(layer, weights, x):
    """As NumPy pads."""
    given = {"constant_values": layer.value} if layer.mode == "constant" else {}
    return np.pad(x, [(0, 0), (0, 0), *zip(layer.low, layer.high, strict=True)], layer.mode, **given)


def slice_(layer, weights, x):
    """As NumPy slices."""
    cut = (slice(a, n - b, s) for a, b, s, n in zip(layer.low, layer.high, layer.step, x.shape[2:], strict=True))
    return x[(slice(None), slice(*(layer.channels or (None,))), *cut)]


def coordinate(layer: Resize, axis: int, taken: int, given: int) -> np.ndarray:
    """Where along an axis of the input each voxel of the result lies, in float32, where ties are decided."""
    i = np.arange(given, dtype=np.float32)
    exact = layer.factor[axis] if layer.extra[axis] == 0 else given / taken
    scale, half = np.float32(exact), np.float32(0.5)
    match layer.coordinates:
        case "asymmetric":
            return i / scale if layer.extra[axis] == 0 else i * np.float32(taken) / np.float32(given)
        case "align_corners":
            return i * np.float32(taken - 1) / np.float32(given - 1) if given > 1 else i * 0
        case "pytorch_half_pixel" if given == 1:
            return i * 0
    return (i + half) / scale - half


def resize(layer, weights, x):
    """ONNX's Resize: axis by axis, the nearest voxel, or the two around it by their distance."""
    for axis, given in enumerate(layer.output_shape(x.shape)[2:]):
        taken = x.shape[2 + axis]
        at = coordinate(layer, axis, taken, given)
        if layer.mode == "nearest":
            nearest = {
                "floor": np.floor,
                "ceil": np.ceil,
                "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
                "round_prefer_ceil": lambda at: np.floor(at.astype(np.float64) + 0.5),
            }[layer.rounding](at)
            x = np.take(x, np.clip(nearest.astype(int), 0, taken - 1), axis=2 + axis)
        else:
            at = np.clip(at.astype(np.float64), 0, taken - 1)
            first = at.astype(int)
            part = (at - first).reshape(-1, *[1] * (2 - axis))
            second = np.minimum(first + 1, taken - 1)
            x = np.take(x, first, axis=2 + axis) * (1 - part) + np.take(x, second, axis=2 + axis) * part
    return x


def depth_to_space(layer, weights, x):
    """Phases of channels to offsets of voxels."""
    channels = x.shape[1] // layer.phases
    whole = tuple(n * f for n, f in zip(x.shape[2:], layer.factor, strict=True))
    out = np.empty((x.shape[0], channels, *whole))
    for phase, offset in enumerate(itertools.product(*map(range, layer.factor))):
        at = (slice(o, None, f) for o, f in zip(offset, layer.factor, strict=True))
        out[(..., *at)] = x[:, phase * channels : (phase + 1) * channels]
    return out[(..., *(slice(a, n - b) for a, n, b in zip(layer.low, whole, layer.high, strict=True)))]


def pair_distance(layer, weights, x):
    """Of each offset, the voxels whose partners lie inside."""
    out = np.zeros(layer.output_shape(x.shape))
    for channel, offset in enumerate(layer.offsets):
        if any(abs(d) >= n for d, n in zip(offset, x.shape[2:], strict=True)):
            continue
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, x.shape[2:], strict=True))
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(offset, x.shape[2:], strict=True))
        apart = np.abs(x[(..., *here)] - x[(..., *there)]).sum(axis=1)
        out[(slice(None), channel, *here)] = np.maximum(0, (2 * layer.margin - apart) / (2 * layer.margin)) ** 2
    return out


#: Of each class of layers, what it computes of (layer, weights, float64 x).
TRUTH = {
    AvgPool: avg_pool,
    GlobalPool: global_pool,
    GroupedConv: grouped_conv,
    ConvTranspose: conv_transpose,
    Pad: pad,
    Slice: slice_,
    Resize: resize,
    DepthToSpace: depth_to_space,
    PairDistance: pair_distance,
}
