"""Seeded weights for networks that come without: every channel alive, the same bits on every machine.

Each filter is uniform noise. Its mean is taken away, most of it input channel by input channel, so that neither what
the inputs have in common nor their own means shift the pre-activation; its norm is set, so that the pre-activation
deviates as wanted if the inputs deviate as predicted. That prediction follows one channel through the layers (a mean
field; cf. Poole et al., NIPS'16): a pre-activation is taken as normal, a maximum over n voxels as that of n
independent ones. Biases of half a deviation keep seven voxels in ten of every channel above zero under ReLU.

Centred filters also keep deep outputs from becoming constant: at this bias, the squared difference of two nearly equal
inputs grows by a quarter a layer, Phi(0.5) over the variance of relu(z + 0.5), so that it survives any depth.

Draws are multiples of 2^-16, so that all sums over a filter are exact in float64 in any order, and predicted
deviations are rounded. Everything else is correctly rounded arithmetic, hence the same digest everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist, pstdev
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import ZnniError
from znni.layers import (
    LINEAR,
    Activate,
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    ConvTranspose,
    GroupedConv,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    Multiply,
    Norm,
    PRelu,
    Softmax,
)
from znni.nodes import channels_through

if TYPE_CHECKING:
    from znni.nodes import Node

_LEVELS = 1 << 16
#: Filters of fewer inputs keep their mean: there, taking it away could leave nothing.
_FEWEST_TO_CENTRE = 8
#: The part of its mean over an input channel that a filter keeps.
_KEPT_MEAN = 0.25
#: Bias over the deviation of the pre-activation where the activation cuts off one side.
_LIFT = 0.5
#: Biases differ between channels by up to this much either way, in deviations of the pre-activation.
_BIAS_SPREAD = 0.1
#: More weights than this in one layer (8 GiB) are a mistake, not a network.
_MOST_WEIGHTS = 1 << 31
_QUANTILES = 512


@dataclass(frozen=True)
class _Signal:
    """The distribution of one channel's voxels: max over `pooled` of activation(bias + gain z), z standard normal."""

    channels: int
    activation: Activation = LINEAR
    bias: float = 0.0
    gain: float = 1.0
    pooled: int = 1

    @property
    def deviation(self) -> float:
        return _deviation(self.activation, self.bias, self.gain, self.pooled)


def seeded_weights(nodes: Sequence[Node], in_channels: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Weights for the convolutions of a chain or graph, from a seed.

    Parameters
    ----------
    nodes : sequence of Node
        As in a `Network`.
    in_channels : int
        Channels of the input, which is taken to have unit deviation (its mean does not matter).
    seed : int
        Not negative.

    Returns
    -------
    dict of node name to {"weight": (out, in, kz, ky, kx), "bias": (out,)}
        float32. The same for the same nodes and seed on every machine.

    Raises
    ------
    ZnniError
        Where the seed is not a non-negative integer, or a layer is too large for any machine.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ZnniError(f"a seed for weights must be a non-negative integer, got {seed!r}")
    rng = np.random.Generator(np.random.PCG64(int(seed)))
    signals, weights = {}, {}
    channels = channels_through(nodes, in_channels)
    for node in nodes:
        several = [signals.get(name) or _Signal(in_channels) for name in node.inputs]
        incoming = several[0]
        layer, signal = node.layer, incoming
        if isinstance(layer, (GroupedConv, ConvTranspose)):
            signal = _pre_activation(layer)
            weights[node.name] = _grouped_filters(rng, layer, incoming, signal)
        elif isinstance(layer, Conv):
            signal = _pre_activation(layer)
            _check_size(node.name, layer, incoming.channels)
            weights[node.name] = _filters(rng, layer, incoming, signal)
        elif isinstance(layer, (MaxPool, MaxFilter)):
            signal = replace(incoming, pooled=incoming.pooled * math.prod(layer.window))
        elif isinstance(layer, Maxout):
            signal = replace(incoming, channels=incoming.channels // layer.group, pooled=incoming.pooled * layer.group)
        elif isinstance(layer, Softmax):
            signal = _Signal(incoming.channels, gain=1 / incoming.channels)
        elif isinstance(layer, (Add, Affine, Norm, PRelu, Multiply, Concat, Activate)):
            signal, own = _joined(rng, layer, several, channels[node.inputs[0]])
            if own:
                weights[node.name] = own
        signals[node.name] = replace(signal, channels=channels[node.name])
    return weights


def _joined(
    rng: np.random.Generator, layer: Layer, several: Sequence[_Signal], channels: int
) -> tuple[_Signal, dict[str, np.ndarray]]:
    """The signal and the weights of what is no convolution: inputs are taken as independent, scales undo their deviation."""
    deviations = [signal.deviation for signal in several]
    if isinstance(layer, Multiply):
        deviation = math.prod(deviations)
    elif isinstance(layer, Concat):
        deviation = math.sqrt(sum(d * d for d in deviations) / len(deviations))
    else:
        deviation = math.sqrt(sum(d * d for d in deviations))
    deviation = float(f"{deviation:.4g}")
    if isinstance(layer, PRelu):
        jitter = 0.25 + (rng.random(channels) - 0.5) * _BIAS_SPREAD
        return replace(several[0], pooled=1), {"slope": jitter.astype(np.float32)}
    if not hasattr(layer, "weight_shapes") or not layer.weight_shapes(channels):
        activation = getattr(layer, "activation", LINEAR)
        return _Signal(channels, activation, 0.0, deviation), {}
    wanted = _scaled(layer.activation, channels)
    scale = wanted.gain / (1.0 if isinstance(layer, Norm) else deviation)
    spread = 1 + (rng.random(channels) - 0.5) * (2 * _BIAS_SPREAD)
    bias = wanted.bias + (rng.random(channels) - 0.5) * (2 * _BIAS_SPREAD * wanted.gain)
    return wanted, {"scale": (scale * spread).astype(np.float32), "bias": bias.astype(np.float32)}


def _grouped_filters(
    rng: np.random.Generator, layer: GroupedConv | ConvTranspose, incoming: _Signal, outgoing: _Signal
) -> dict[str, np.ndarray]:
    """Noise whose norm, of all taps that reach one output voxel, makes the pre-activation deviate as wanted."""
    shape = layer.weight_shapes(incoming.channels)["weight"]
    draws = np.floor(rng.random(shape) * _LEVELS) + 0.5 - _LEVELS / 2
    taps = math.prod(layer.kernel)
    if isinstance(layer, ConvTranspose):
        taps, inputs = taps / math.prod(layer.stride), incoming.channels // layer.groups
    else:
        inputs = shape[1]
    deviation = _LEVELS / math.sqrt(12)
    draws *= outgoing.gain / (incoming.deviation * deviation * math.sqrt(max(1.0, taps * inputs)))
    jitter = (rng.random(layer.out_channels) - 0.5) * (2 * _BIAS_SPREAD * outgoing.gain)
    return {"weight": draws.astype(np.float32), "bias": (outgoing.bias + jitter).astype(np.float32)}


def _check_size(name: str, layer: Conv, in_channels: int) -> None:
    size = math.prod(layer.weight_shapes(in_channels)["weight"])
    if size > _MOST_WEIGHTS:
        raise ZnniError(f"layer {name} would have {size} weights; at most {_MOST_WEIGHTS} are made from a seed")


def _pre_activation(layer: Conv | GroupedConv | ConvTranspose) -> _Signal:
    return _scaled(layer.activation, layer.out_channels)


def _scaled(activation: Activation, channels: int) -> _Signal:
    """The bias and gain at which the activation's output deviates by about 1 (a sigmoid's by about 0.3)."""
    bias, gain = 0.0, 1.0
    if activation.name in ("relu", "leaky_relu", "elu"):
        gain = 1 / _deviation(activation, _LIFT, 1.0, 1)
        bias = _LIFT * gain
    elif activation.name == "tanh":
        gain = 1 / abs(activation.b or 1.0)
    elif activation.name == "sigmoid":
        gain = 2.0
    elif activation.name == "clip" and activation.b > activation.a:
        gain = (activation.b - activation.a) / 3
        bias = (activation.b + activation.a) / 2
    return _Signal(channels, activation, bias, gain)


def _filters(rng: np.random.Generator, layer: Conv, incoming: _Signal, outgoing: _Signal) -> dict[str, np.ndarray]:
    channels, taps = incoming.channels, math.prod(layer.kernel)
    inputs = channels * taps
    draws = rng.random((layer.out_channels, channels, taps))
    np.floor(np.multiply(draws, _LEVELS, out=draws), out=draws)
    draws += 0.5 - _LEVELS / 2
    squares = np.einsum("oct,oct->o", draws, draws)
    if inputs >= _FEWEST_TO_CENTRE:
        # What is left of a channel's mean, then what is left of the whole filter's.
        kept = _KEPT_MEAN if taps > 1 else 1.0
        sums = draws.sum(axis=2)
        total = kept * sums.sum(axis=1)
        squares -= (1 - kept * kept) / taps * np.einsum("oc,oc->o", sums, sums) + total * total / inputs
        draws -= ((1 - kept) / taps * sums + total[:, None] / inputs)[:, :, None]
    draws *= (outgoing.gain / (incoming.deviation * np.sqrt(squares)))[:, None, None]
    jitter = (rng.random(layer.out_channels) - 0.5) * (2 * _BIAS_SPREAD * outgoing.gain)
    weight = draws.astype(np.float32).reshape(layer.out_channels, channels, *layer.kernel)
    return {"weight": weight, "bias": (outgoing.bias + jitter).astype(np.float32)}


def _apply(activation: Activation, x: float) -> float:
    a, b = activation.a, activation.b
    match activation.name:
        case "relu":
            return max(x, 0.0)
        case "leaky_relu":
            return x if x > 0 else a * x
        case "elu":
            return x if x > 0 else a * math.expm1(x)
        case "tanh":
            return a * math.tanh(b * x)
        case "sigmoid":
            return 1 / (1 + math.exp(-x))
        case "clip":
            return min(max(x, a), b)
    return x


@lru_cache(maxsize=256)
def _deviation(activation: Activation, bias: float, gain: float, pooled: int) -> float:
    """Standard deviation of a `_Signal`, from equally likely quantiles; four digits, past which machines may differ."""
    quantile = NormalDist().inv_cdf
    zs = (quantile(((i + 0.5) / _QUANTILES) ** (1 / pooled)) for i in range(_QUANTILES))
    return float(f"{pstdev([_apply(activation, bias + gain * z) for z in zs]):.4g}")
