"""Fixtures that tests of several modules share."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import fft

from znni.layers import Activation, Conv, MaxFilter, MaxPool


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the checkout; tests that want it skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real inputs {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def chains() -> st.SearchStrategy:
    """Chains of one to five small layers: convolutions, poolings (stride up to the window) and max-filters."""

    def triples(most: int) -> st.SearchStrategy:
        return st.tuples(*[st.integers(1, most)] * 3)

    convs = st.builds(
        lambda out, kernel: Conv(out, kernel, activation=Activation("relu")), st.integers(1, 3), triples(3)
    )
    pools = triples(3).flatmap(
        lambda window: st.builds(MaxPool, st.just(window), st.tuples(*[st.integers(1, w) for w in window]))
    )
    return st.lists(st.one_of(convs, pools, st.builds(MaxFilter, triples(2))), min_size=1, max_size=5)


@pytest.fixture(scope="session")
def evaluate():
    """``evaluate(nodes, weights, x)``: any chain of nodes, lowered or not, in the precision of x.

    Independent of every primitive: convolutions are sums over kernel taps of matrix products or, where the kernel is
    large and not dilated, products of spectra.
    """
    return _evaluate


def _evaluate(nodes, weights, x: np.ndarray) -> np.ndarray:
    for node in nodes:
        layer = node.layer
        match layer.kind:
            case "conv":
                own = {key: array.astype(x.dtype) for key, array in weights[node.name].items()}
                large = np.prod(layer.kernel) > 27 and layer.dilation == (1, 1, 1)
                x = (_spectral if large else _tapped)(layer, own["weight"], x)
                x = _activated(layer.activation, x + own["bias"][:, None, None, None])
            case "max_pool":
                x = _maximum(x, layer.window, (1, 1, 1))[(..., *(slice(None, None, s) for s in layer.stride))]
            case "max_filter":
                x = _maximum(x, layer.window, layer.dilation)
            case "mpf":
                x = _fragments(layer, x)
            case "recombine":
                x = _recombined(layer, x)
            case "softmax":
                x = np.exp(x - x.max(axis=1, keepdims=True))
                x /= x.sum(axis=1, keepdims=True)
            case "maxout":
                x = x.reshape(x.shape[0], -1, layer.group, *x.shape[2:]).max(axis=2)
    return x


def _windows(x, window, dilation):
    """The input as each tap of a dilated window sees it, with the tap's place in the window."""
    size = [n - (w - 1) * d for n, w, d in zip(x.shape[2:], window, dilation, strict=True)]
    for tap in itertools.product(*map(range, window)):
        yield tap, x[(..., *(slice(t * d, t * d + n) for t, d, n in zip(tap, dilation, size, strict=True)))]


def _tapped(layer, weight, x):
    return sum(
        np.einsum("oi,bizyx->bozyx", weight[(..., *tap)], seen, optimize=True)
        for tap, seen in _windows(x, layer.kernel, layer.dilation)
    )


def _spectral(layer, weight, x):
    size = [fft.next_fast_len(n, real=True) for n in x.shape[2:]]
    spectrum = np.einsum("bizyx,oizyx->bozyx", fft.rfftn(x, size, (2, 3, 4)), fft.rfftn(weight, size, (2, 3, 4)).conj())
    valid = (slice(n - k + 1) for n, k in zip(x.shape[2:], layer.kernel, strict=True))
    return fft.irfftn(spectrum, size, (2, 3, 4))[(..., *valid)]


def _maximum(x, window, dilation):
    out = None
    for _, seen in _windows(x, window, dilation):
        out = seen.copy() if out is None else np.maximum(out, seen, out=out)
    return out


def _activated(activation, x):
    match activation.name:
        case "relu":
            return np.maximum(x, 0)
        case "leaky_relu":
            return np.where(x > 0, x, activation.a * x)
        case "elu":
            return np.where(x > 0, x, activation.a * np.expm1(np.minimum(x, 0)))
        case "tanh":
            return activation.a * np.tanh(activation.b * x)
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "clip":
            return np.clip(x, activation.a, activation.b)
    assert activation.name == "linear"
    return x


def _fragments(layer, x):
    pooled = _maximum(x, layer.window, (1, 1, 1))
    offsets = itertools.product(*map(range, layer.stride))
    lattices = [
        pooled[(..., *(slice(f, None, s) for f, s in zip(offset, layer.stride, strict=True)))] for offset in offsets
    ]
    return np.stack(lattices, axis=1).reshape(-1, *lattices[0].shape[1:])


def _recombined(layer, x):
    for sz, sy, sx in reversed(layer.strides):
        f, c, z, y, w = x.shape
        x = x.reshape(f // (sz * sy * sx), sz, sy, sx, c, z, y, w)
        x = x.transpose(0, 4, 5, 1, 6, 2, 7, 3).reshape(-1, c, z * sz, y * sy, w * sx)
    return x
