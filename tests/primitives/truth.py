"""What every layer computes, in float64, straight from its definition: by NumPy alone, and by no kernel."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from znni.layers import (
    Activation,
    Conv,
    ConvMaxPoolFragments,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    MaxPoolFragments,
    Recombine,
    Relayout,
    Softmax,
)

from . import truth_joining, truth_resampling
from .cases import Arrays, each

_MORE = truth_joining.TRUTH | truth_resampling.TRUTH


def truth(layer: Layer, weights: dict[str, np.ndarray], x: Arrays) -> np.ndarray:
    """The result of `layer` on `x` (batch, channel, z, y, x; of layers that join, a tuple), in float64."""
    x = each(lambda array: array.astype(np.float64), x)
    if type(layer) in _MORE:
        return _MORE[type(layer)](layer, weights, x)
    match layer:
        case Conv():
            return activated(layer.activation, _conv(layer, weights, x))
        case MaxPool():
            return _maxima(x, layer.window, (1, 1, 1), layer.stride)
        case MaxFilter():
            return _maxima(x, layer.window, layer.dilation, (1, 1, 1))
        case MaxPoolFragments():
            return _fragments(layer, x)
        case ConvMaxPoolFragments():
            return _fragments(layer.pool, truth(layer.conv, weights, x))
        case Relayout():
            return x
        case Recombine():
            return _recombined(layer, x)
        case Softmax():
            e = np.exp(x - x.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)
        case Maxout():
            return x.reshape(x.shape[0], -1, layer.group, *x.shape[2:]).max(axis=2)
    raise NotImplementedError(f"the truth about a {layer.kind} layer is not written yet: add it to {__name__}")


def activated(activation: Activation, x: np.ndarray) -> np.ndarray:
    """`activation` of float64 `x`."""
    match activation.name:
        case "linear":
            return x
        case "relu":
            return np.where(x < 0, 0.0, x)
        case "leaky_relu":
            return np.where(x < 0, activation.a * x, x)
        case "elu":
            return np.where(x < 0, activation.a * np.expm1(np.minimum(x, 0)), x)
        case "tanh":
            return activation.a * np.tanh(activation.b * x)
        case "sigmoid":
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-x))
        case "clip":
            return np.minimum(np.maximum(x, activation.a), activation.b)
    raise NotImplementedError(f"the truth about {activation.name} is not written yet: add it to {__name__}")


def _windows(x, window, dilation, stride):
    """All windows of `x`: (batch, channel, z, y, x, and z, y, x within the window)."""
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    view = sliding_window_view(x, extent, axis=(2, 3, 4))
    return view[(..., *(slice(None, None, s) for s in (*stride, *dilation)))]


def _conv(layer, weights, x):
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in layer.padding)])
    seen = _windows(x, layer.kernel, layer.dilation, layer.stride)
    y = np.einsum("bizyxklm,oiklm->bozyx", seen, weights["weight"].astype(np.float64), optimize=True)
    return y + weights["bias"].astype(np.float64)[:, None, None, None]


def _maxima(x, window, dilation, stride):
    return _windows(x, window, dilation, stride).max(axis=(5, 6, 7))


def _fragments(layer, x):
    batch, channels, *size = layer.output_shape(x.shape)
    out = np.empty((x.shape[0], batch // x.shape[0], channels, *size))
    for f, offset in enumerate(itertools.product(*map(range, layer.stride))):
        cut = (
            slice(o, o + (n - 1) * s + w) for o, n, s, w in zip(offset, size, layer.stride, layer.window, strict=True)
        )
        out[:, f] = _maxima(x[(..., *cut)], layer.window, (1, 1, 1), layer.stride)
    return out.reshape(batch, channels, *size)


def _recombined(layer, x):
    """out[Z] = x[q] of the fragments f1, f2, .. with Z = f1 + s1 (f2 + s2 (f3 + .. q)), along each axis."""
    out = np.empty(layer.output_shape(x.shape))
    fragments = [int(np.prod(s)) for s in layer.strides]
    for index in itertools.product(range(out.shape[0]), *map(range, fragments)):
        at, start, step = index[0], np.zeros(3, int), np.ones(3, int)
        for f, count, stride in zip(index[1:], fragments, layer.strides, strict=True):
            at = at * count + f
            start += step * np.unravel_index(f, stride)
            step *= stride
        out[(index[0], slice(None), *(slice(a, None, s) for a, s in zip(start, step, strict=True)))] = x[at]
    return out
