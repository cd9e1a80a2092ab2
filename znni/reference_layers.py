"""What every layer computes, in float64 and by NumPy alone: channels-first arrays ``(batch, channels, z, y, x)`` in and out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import product
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from znni.errors import Unsupported
from znni.layers import (
    Activate,
    Activation,
    Add,
    Affine,
    AvgPool,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    GlobalPool,
    GroupedConv,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PairDistance,
    PRelu,
    Relayout,
    Resize,
    Slice,
    Softmax,
    Triple,
)
from znni.reference_conv import convolve

Weights = Mapping[str, np.ndarray]


def apply(layer: Layer, weights: Weights, inputs: tuple[np.ndarray, ...], pool: Executor | None = None) -> np.ndarray:
    """The result of `layer` on `inputs`, each float64 (batch, channels, z, y, x), as a new array."""
    x = inputs[0]
    w = {key: array.astype(np.float64) for key, array in weights.items()}
    y = _linear(layer, w, inputs, x, pool)
    activation = getattr(layer, "activation", None)
    return activated(activation, y) if activation else y


def _linear(layer: Layer, w: Weights, inputs: tuple[np.ndarray, ...], x: np.ndarray, pool: Executor | None) -> np.ndarray:
    match layer:
        case Conv():
            return convolved(x, w["weight"], layer.padding, layer.stride, layer.dilation, pool) + by_channel(w["bias"])
        case GroupedConv():
            parts = zip(np.split(x, layer.groups, 1), np.split(w["weight"], layer.groups), strict=True)
            made = [convolved(a, b, layer.padding, layer.stride, layer.dilation, pool) for a, b in parts]
            return np.concatenate(made, 1) + by_channel(w["bias"])
        case ConvTranspose():
            parts = zip(np.split(x, layer.groups, 1), np.split(w["weight"], layer.groups), strict=True)
            return np.concatenate([_transposed(layer, a, b, pool) for a, b in parts], 1) + by_channel(w["bias"])
        case MaxPool():
            return windows(x, layer.window, (1, 1, 1), layer.stride).max((5, 6, 7))
        case MaxFilter():
            return windows(x, layer.window, layer.dilation, (1, 1, 1)).max((5, 6, 7))
        case AvgPool():
            sides = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
            total = windows(np.pad(x, sides), layer.window, (1, 1, 1), layer.stride).sum((5, 6, 7))
            if layer.count_padding:
                return total / prod(layer.window)
            ones = np.pad(np.ones((1, 1, *x.shape[2:])), sides)
            return total / windows(ones, layer.window, (1, 1, 1), layer.stride).sum((5, 6, 7))
        case GlobalPool():
            return getattr(x, layer.reduce)((2, 3, 4), keepdims=True)
        case Add():
            y = sum(inputs[1:], x)
            return y * by_channel(w["scale"]) + by_channel(w["bias"]) if layer.affine else y
        case Multiply():
            return x * inputs[1]
        case Concat():
            return np.concatenate(inputs, 1)
        case Affine():
            return x * by_channel(w["scale"]) + by_channel(w["bias"])
        case PRelu():
            return np.where(x < 0, x * by_channel(w["slope"]), x)
        case Norm():
            return _normed(layer, w, x)
        case Activate() | Relayout():
            return x.copy()
        case Softmax():
            e = np.exp(x - x.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)
        case Maxout():
            return x.reshape(x.shape[0], -1, layer.group, *x.shape[2:]).max(2)
        case Pad():
            sides = [(0, 0), (0, 0), *zip(layer.low, layer.high, strict=True)]
            given = {"constant_values": layer.value} if layer.mode == "constant" else {}
            return np.pad(x, sides, layer.mode, **given)
        case Slice():
            kept = (slice(a, n - b, s) for a, b, s, n in zip(layer.low, layer.high, layer.step, x.shape[2:], strict=True))
            return x[(slice(None), slice(*(layer.channels or (None,))), *kept)].copy()
        case Resize():
            return _resized(layer, x)
        case DepthToSpace():
            return _spread(layer, x)
        case PairDistance():
            return _affinities(layer, x)
    raise Unsupported(f"the reference takes networks that are not lowered; got a {layer.kind}")


def by_channel(values: np.ndarray) -> np.ndarray:
    """One number a channel, to go with (batch, channels, z, y, x)."""
    return values[:, None, None, None]


def activated(activation: Activation, x: np.ndarray) -> np.ndarray:
    """`activation` of `x`, without overflow."""
    a, b = activation.a, activation.b
    match activation.name:
        case "relu":
            return np.maximum(x, 0)
        case "leaky_relu":
            return np.where(x < 0, a * x, x)
        case "elu":
            return np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x)
        case "tanh":
            return a * np.tanh(b * x)
        case "sigmoid":
            e = np.exp(-np.abs(x))
            return np.where(x < 0, e, 1) / (1 + e)
        case "clip":
            return np.minimum(np.maximum(x, a), b)
    return x


def windows(x: np.ndarray, window: Triple, dilation: Triple, stride: Triple) -> np.ndarray:
    """A view of all windows: (batch, channels, z, y, x, and z, y, x within the window)."""
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    view = sliding_window_view(x, extent, axis=(2, 3, 4))
    return view[(..., *(slice(None, None, s) for s in (*stride, *dilation)))]


def convolved(
    x: np.ndarray, weight: np.ndarray, padding: Triple, stride: Triple, dilation: Triple, pool: Executor | None
) -> np.ndarray:
    """Cross-correlation; of a stride, each of its phases apart, so that nothing is computed to be dropped."""
    if any(padding):
        x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    x = np.moveaxis(x, 1, -1)
    size = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(x.shape[1:4], weight.shape[2:], dilation, stride, strict=True)
    ]
    total = np.zeros((len(x), *size, len(weight)))
    for taps, phase, step in _phases(weight.shape[2:], stride, dilation):
        part = x[(slice(None), *(slice(p, None, s) for p, s in zip(phase, stride, strict=True)))]
        own = weight[(slice(None), slice(None), *taps)]
        ends = (m + (k - 1) * d for m, k, d in zip(size, own.shape[2:], step, strict=True))
        part = np.ascontiguousarray(part[(slice(None), *(slice(0, e) for e in ends))])
        total += _valid(part, own, step, pool)
    return np.ascontiguousarray(np.moveaxis(total, -1, 1))


def _phases(kernel, stride: Triple, dilation: Triple):
    """Taps that read one phase of the stride, the phase, and how far apart they read it: for every phase that is read."""
    axes = []
    for k, s, d in zip(kernel, stride, dilation, strict=True):
        every = next(i for i in range(1, s + 1) if i * d % s == 0)  # taps after which the phase is the same again
        axes.append([(slice(i, k, every), i * d, every * d // s) for i in range(min(every, k))])
    for parts in product(*axes):
        yield tuple(p[0] for p in parts), tuple(p[1] for p in parts), tuple(p[2] for p in parts)


def _valid(x: np.ndarray, weight: np.ndarray, dilation: Triple, pool: Executor | None) -> np.ndarray:
    threads = min(8, len(os.sched_getaffinity(0)))
    if pool is not None:
        return convolve(x, weight, dilation, pool, threads)
    with ThreadPoolExecutor(threads) as own:
        return convolve(x, weight, dilation, own, threads)


def _transposed(layer: ConvTranspose, x: np.ndarray, weight: np.ndarray, pool: Executor | None) -> np.ndarray:
    """The input with zeros between its voxels, correlated with the mirrored kernel."""
    size = tuple((n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True))
    spread = np.zeros((*x.shape[:2], *size))
    spread[(..., *(slice(None, None, s) for s in layer.stride))] = x
    mirrored = np.ascontiguousarray(weight.swapaxes(0, 1)[:, :, ::-1, ::-1, ::-1])
    y = convolved(spread, mirrored, tuple(k - 1 for k in layer.kernel), (1, 1, 1), (1, 1, 1), pool)
    y = np.pad(y, [(0, 0), (0, 0), *((0, max(0, -h)) for h in layer.high)])
    kept = (slice(a, n - max(0, b)) for a, b, n in zip(layer.low, layer.high, y.shape[2:], strict=True))
    return y[(..., *kept)]


def _normed(layer: Norm, w: Weights, x: np.ndarray) -> np.ndarray:
    if layer.over == "group":
        split = x.reshape(x.shape[0], layer.groups, -1)
        mean, variance = split.mean(2, keepdims=True), split.var(2, keepdims=True)
        y = ((split - mean) / np.sqrt(variance + layer.epsilon)).reshape(x.shape)
    else:
        axes = (0, 2, 3, 4) if layer.over == "batch" else (2, 3, 4)
        y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + layer.epsilon)
    return y * by_channel(w["scale"]) + by_channel(w["bias"])


def _resized(layer: Resize, x: np.ndarray) -> np.ndarray:
    out = layer.output_shape(x.shape)[2:]
    for axis, (n, m) in enumerate(zip(x.shape[2:], out, strict=True)):
        at = _coordinates(layer, axis, n, m)
        if layer.mode == "nearest":
            index = {
                "floor": np.floor,
                "ceil": np.ceil,
                "round_prefer_floor": lambda c: np.ceil(c - 0.5),
                "round_prefer_ceil": lambda c: np.floor(c + 0.5),
            }[layer.rounding](at)
            x = x.take(np.clip(index, 0, n - 1).astype(int), 2 + axis)
            continue
        at = np.clip(at, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (at - low).reshape([-1 if i == 2 + axis else 1 for i in range(5)])
        x = x.take(low, 2 + axis) * (1 - share) + x.take(high, 2 + axis) * share
    return x


def _coordinates(layer: Resize, axis: int, n: int, m: int) -> np.ndarray:
    """Where the `m` voxels of a result lie among the `n` of its input: in float32, as ONNX Runtime has it."""
    scale = np.float32(m / n if layer.extra[axis] else layer.factor[axis])
    at = np.arange(m, dtype=np.float32)
    if layer.coordinates == "asymmetric":
        return (at * np.float32(n) / np.float32(m) if layer.extra[axis] else at / scale).astype(np.float64)
    if layer.coordinates == "align_corners":
        return (at * np.float32(n - 1) / np.float32(m - 1) if m > 1 else at * 0).astype(np.float64)
    if layer.coordinates == "pytorch_half_pixel" and m == 1:
        return np.zeros(1)
    return ((at + np.float32(0.5)) / scale - np.float32(0.5)).astype(np.float64)


def _spread(layer: DepthToSpace, x: np.ndarray) -> np.ndarray:
    batch, channels, *size = x.shape
    split = x.reshape(batch, *layer.factor, channels // layer.phases, *size)
    y = split.transpose(0, 4, 5, 1, 6, 2, 7, 3).reshape(
        batch, -1, *(n * f for n, f in zip(size, layer.factor, strict=True))
    )
    return y[(..., *(slice(a, n - b) for a, b, n in zip(layer.low, layer.high, y.shape[2:], strict=True)))].copy()


def _affinities(layer: PairDistance, x: np.ndarray) -> np.ndarray:
    y = np.zeros(layer.output_shape(x.shape))
    for channel, offset in enumerate(layer.offsets):
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, x.shape[2:], strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, x.shape[2:], strict=True))
        distance = np.abs(x[(..., *here)] - x[(..., *there)]).sum(1)
        y[(slice(None), channel, *here)] = np.maximum(0, 1 - distance / (2 * layer.margin)) ** 2
    return y
