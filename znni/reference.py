"""The truth: a network's result in float64, by NumPy alone and by no primitive.

A graph is computed layer by layer (`znni.reference_layers`). In a chain of a sliding-window network, poolings become
max-filters of stride 1, and whatever follows is dilated by the product of the strides so far ("skip kernels": ZNN,
IPDPS'16), so any input that holds a field of view has a result. Within, arrays are channels-last, ``(batch, z, y, x,
channel)``, and convolutions are those of `znni.reference_conv`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError, Unsupported
from znni.layers import ONES, ZEROS, Activation, Conv, Layer, MaxFilter, Maxout, MaxPool, Softmax, Triple
from znni.lowering import lower
from znni.nodes import INPUT
from znni.reference_conv import choose_tiling, convolve
from znni.reference_layers import apply

if TYPE_CHECKING:
    from znni.network import Network
    from znni.nodes import Node


def reference(network: Network, x: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """The dense result of `network` for `x`, in float64.

    Parameters
    ----------
    network : Network
    x : ndarray, real, shape (batch, in_channels, z, y, x)
        Each axis at least the field of view.
    threads : int, optional
        By default one per core that this process may use, at most 8.

    Returns
    -------
    ndarray, float64, shape (batch, out_channels, z, y, x)
        Each axis shorter by the field of view less one.

    Raises
    ------
    InvalidShape
        Where the axes, the channels or the size of `x` do not fit the network.
    FormatError
        Where `x` holds NaN or infinite values.
    Unsupported
        Where the network holds layers that only a lowered network has.

    Notes
    -----
    Held at once are at most the input and the output of one layer, in float64, and
    `znni.reference_conv.WORKSPACE_BYTES` beyond them.
    """
    network.check_input(x)
    if not network.sliding:
        network.check_patch(x.shape[2:])
    if not np.isfinite(x).all():
        raise FormatError("the input of a reference holds NaN or infinite values; replace them first")
    if not network.chain:
        with ThreadPoolExecutor(threads or min(8, _cores())) as pool:
            return _graph(network, x.astype(np.float64), pool)
    x = np.array(np.moveaxis(x, 1, -1), dtype=np.float64, order="C")  # a copy, for filters work in place
    threads = threads or min(8, _cores())
    with ThreadPoolExecutor(threads) as pool:
        out = _through(network, x, pool, threads)
    return np.ascontiguousarray(np.moveaxis(out, -1, 1))


def reference_flop(network: Network, patch: Triple, batch: int = 1) -> float:
    """Operations, memory traffic counted as such, that the convolutions of a reference need for an input patch."""
    if not network.chain:
        return network.flop((batch, network.in_channels, *patch))
    total, channels, size = 0.0, network.in_channels, patch
    for node, jump in _dense(network):
        window, dilation = _window(node.layer, jump)
        size = _shrunk(size, window, dilation)
        if isinstance(node.layer, Conv):
            weights = (*window, channels, node.layer.out_channels)
            total += choose_tiling((batch, *size), weights, dilation).flop
            channels = node.layer.out_channels
        elif isinstance(node.layer, Maxout):
            channels //= node.layer.group
    return total


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _dense(network: Network) -> Iterator[tuple[Node, Triple]]:
    """The nodes, each with the product of the strides (z, y, x) before it."""
    jumps = {}
    for node in network.nodes:
        jump = jumps.get(node.inputs[0], ONES)
        if getattr(node.layer, "padding", ZEROS) != ZEROS:
            raise Unsupported(f"the reference takes sliding-window networks; layer {node.name} pads its input")
        if not isinstance(node.layer, (Conv, MaxPool, MaxFilter, Softmax, Maxout)):
            raise Unsupported(
                f"the reference takes networks that are not lowered; layer {node.name} is a {node.layer.kind}"
            )
        stride = getattr(node.layer, "stride", ONES)
        jumps[node.name] = tuple(j * s for j, s in zip(jump, stride, strict=True))
        yield node, jump


def _window(layer: Layer, jump: Triple) -> tuple[Triple, Triple]:
    """The window of a layer and its dilation, at every voxel of the input."""
    window = layer.kernel if isinstance(layer, Conv) else getattr(layer, "window", ONES)
    own = getattr(layer, "dilation", ONES)
    return window, tuple(d * j for d, j in zip(own, jump, strict=True))


def _shrunk(size: tuple[int, ...], window: Triple, dilation: Triple) -> Triple:
    return tuple(n - (w - 1) * d for n, w, d in zip(size, window, dilation, strict=True))


def _through(network: Network, x: np.ndarray, pool: Executor, threads: int) -> np.ndarray:
    """The last node's result for the channels-last `x`; what no later node reads is let go."""
    last_reader = {name: node for node in network.nodes for name in node.inputs}
    values = {network.nodes[0].inputs[0]: x}
    for node, jump in _dense(network):
        source, layer = node.inputs[0], node.layer
        window, dilation = _window(layer, jump)
        last = last_reader[source] is node
        value = values.pop(source) if last else values[source]
        if isinstance(layer, Conv):
            value = convolve(value, network.weights[node.name]["weight"], dilation, pool, threads)
            _each_slab(partial(_finish, network.weights[node.name]["bias"], layer.activation), value, pool)
        elif isinstance(layer, Maxout):
            value = value.reshape(*value.shape[:-1], -1, layer.group).max(-1)
        else:
            value = value if last else value.copy()
            if isinstance(layer, Softmax):
                _each_slab(_softmax, value, pool)
            else:
                list(pool.map(partial(_max_filter, window, dilation), np.array_split(value, threads, axis=-1)))
                value = value[(slice(None), *map(slice, _shrunk(value.shape[1:4], window, dilation)))]
        values[node.name] = value
    return values[network.nodes[-1].name]


def _max_filter(window: Triple, dilation: Triple, x: np.ndarray) -> None:
    """Maxima over dilated windows, in place: each where its window begins."""
    for axis, (w, d) in enumerate(zip(window, dilation, strict=True), 1):
        lines = np.moveaxis(x, axis, 0)
        for i in range(len(lines) - (w - 1) * d):
            for k in range(1, w):
                np.maximum(lines[i], lines[i + k * d], out=lines[i])


def _graph(network: Network, x: np.ndarray, pool: Executor) -> np.ndarray:
    """The last node's result, node by node; what no later node reads is let go."""
    nodes = lower(network.nodes, "filter") if network.sliding else network.nodes
    last_reader = {name: node for node in nodes for name in node.inputs}
    values = {INPUT: x}
    for node in nodes:
        inputs = tuple(values[name] for name in node.inputs)
        values[node.name] = apply(node.layer, network.weights.get(node.name, {}), inputs, pool)
        for name in set(node.inputs):
            if last_reader[name] is node:
                del values[name]
    return values[nodes[-1].name]


def _each_slab(function: Callable[[np.ndarray], None], x: np.ndarray, pool: Executor) -> None:
    """`function` on every slab (y, x, channel) of `x`, which it changes."""
    list(pool.map(function, (slab for element in x for slab in element)))


def _finish(bias: np.ndarray, activation: Activation, x: np.ndarray) -> None:
    """Bias and activation, in place, without overflow."""
    x += bias
    name, a, b = activation.name, activation.a, activation.b
    if name == "relu":
        np.maximum(x, 0, out=x)
    elif name == "leaky_relu":
        np.multiply(x, a, out=x, where=x < 0)
    elif name == "elu":
        np.copyto(x, a * np.expm1(np.minimum(x, 0)), where=x < 0)
    elif name == "tanh":
        np.multiply(a, np.tanh(b * x), out=x)
    elif name == "clip":
        np.clip(x, a, b, out=x)
    elif name == "sigmoid":
        e = np.exp(-np.abs(x))
        np.divide(np.where(x < 0, e, 1), 1 + e, out=x)


def _softmax(x: np.ndarray) -> None:
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
