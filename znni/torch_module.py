"""A network as a module of PyTorch's, for checking and for comparison (extra ``peers``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import Unsupported
from znni.layers import (
    LINEAR,
    ZEROS,
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
    Resize,
    Slice,
    Softmax,
)
from znni.lowering import lower
from znni.nodes import INPUT, channels_through

if TYPE_CHECKING:
    import torch

    from znni.network import Network


def to_torch(network: Network) -> torch.nn.Module:
    """The network as a module in evaluation mode: (batch, in_channels, z, y, x) float32 in and out.

    Poolings of a sliding-window network are max-filters, and what follows is dilated. Plain modules (`torch.nn.Conv3d` and its
    kin) hold the weights, so that memory formats, ``torch.compile`` and the exporters work.
    """
    import torch

    nodes = lower(network.nodes, "filter") if network.sliding else network.nodes
    channels = channels_through(nodes, network.in_channels)
    last = {name: i for i, node in enumerate(nodes) for name in node.inputs}

    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.ModuleList(
                _module(node.layer, network.weights.get(node.name, {}), channels[node.inputs[0]]) for node in nodes
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = {INPUT: x}
            for i, (node, step) in enumerate(zip(nodes, self.steps, strict=True)):
                values[node.name] = step(*(values[name] for name in node.inputs))
                for name in set(node.inputs):
                    if last[name] == i:
                        del values[name]
            return values[nodes[-1].name]

    return Graph().eval()


def _module(layer: Layer, weights: dict[str, np.ndarray], in_channels: int) -> torch.nn.Module:
    import torch

    function = _with_weights(layer, weights, in_channels) or _without_weights(layer)
    activation = getattr(layer, "activation", LINEAR)
    if activation == LINEAR:
        return function
    after = _activation(activation)
    if isinstance(layer, Activate) and hasattr(after, "inplace"):
        after.inplace = False  # others may read its input
    return _then(function, after) if layer.joins else torch.nn.Sequential(function, after)


def _then(first: torch.nn.Module, second: torch.nn.Module) -> torch.nn.Module:
    """What a sequence is for modules of several inputs."""
    import torch

    class Then(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, *xs: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(*xs))

    return Then()


def _lambda(function: Callable, **buffers: np.ndarray) -> torch.nn.Module:
    """A module that calls `function` with its inputs and the buffers by name."""
    import torch

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in buffers.items():
                self.register_buffer(name, torch.from_numpy(np.array(array)))

        def forward(self, *xs: torch.Tensor) -> torch.Tensor:
            return function(*xs, **{name: getattr(self, name) for name in buffers})

    return Call()


def _filled(module: torch.nn.Module, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    return module.requires_grad_(False)


def _with_weights(layer: Layer, weights: dict[str, np.ndarray], in_channels: int) -> torch.nn.Module | None:
    import torch

    def each(array: np.ndarray) -> np.ndarray:
        return array[None, :, None, None, None]  # memory formats want all of one rank

    match layer:
        case Conv() | GroupedConv():
            groups = getattr(layer, "groups", 1)
            sizes = layer.kernel, layer.stride, layer.padding, layer.dilation, groups
            return _filled(torch.nn.Conv3d(in_channels, layer.out_channels, *sizes), weights)
        case ConvTranspose():
            if all(0 <= a - b < s for a, b, s in zip(layer.low, layer.high, layer.stride, strict=True)):
                padding = layer.low
                extra = tuple(a - b for a, b in zip(layer.low, layer.high, strict=True))
                cut = None
            else:
                padding, extra, cut = ZEROS, ZEROS, Slice(layer.low, layer.high)
                if min(layer.high) < 0:
                    raise Unsupported(f"PyTorch has no transposed convolution that is cut by {layer.high} at its end")
            up = _filled(
                torch.nn.ConvTranspose3d(
                    in_channels, layer.out_channels, layer.kernel, layer.stride, padding, extra, layer.groups
                ),
                weights,
            )
            return up if cut is None else torch.nn.Sequential(up, _lambda(partial(_sliced, cut)))
        case Affine():
            return _lambda(lambda x, s, b: x * s + b, s=each(weights["scale"]), b=each(weights["bias"]))
        case Add(affine=True):
            return _lambda(lambda *xs, s, b: sum(xs[1:], xs[0]) * s + b, s=each(weights["scale"]), b=each(weights["bias"]))
        case PRelu():
            return _lambda(lambda x, slope: torch.where(x < 0, x * slope, x), slope=each(weights["slope"]))
        case Norm():
            own = {"w": weights["scale"], "b": weights["bias"]}
            if layer.over == "batch":
                return _lambda(partial(_batch_norm, layer.epsilon), **own)
            groups = in_channels if layer.over == "instance" else layer.groups
            return _lambda(lambda x, w, b: torch.nn.functional.group_norm(x, groups, w, b, layer.epsilon), **own)
    return None


def _batch_norm(epsilon: float, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    import torch

    if torch.onnx.is_in_onnx_export() and len(x) == 1:  # ONNX has no batch norm with statistics of the batch alone
        return torch.nn.functional.instance_norm(x, None, None, w, b, True, 0.0, epsilon)
    return torch.batch_norm(x, w, b, None, None, True, 0.0, epsilon, False)


def _sliced(layer: Slice, x: torch.Tensor) -> torch.Tensor:
    kept = (slice(a, n - b, s) for a, b, s, n in zip(layer.low, layer.high, layer.step, x.shape[2:], strict=True))
    first, stop = layer.channels or (0, x.shape[1])
    return x[(slice(None), slice(first, stop), *kept)]


def _without_weights(layer: Layer) -> torch.nn.Module:
    import torch
    from torch.nn import functional

    match layer:
        case MaxPool():
            return torch.nn.MaxPool3d(layer.window, layer.stride)
        case MaxFilter():
            return torch.nn.MaxPool3d(layer.window, 1, dilation=layer.dilation)
        case AvgPool():
            return torch.nn.AvgPool3d(layer.window, layer.stride, layer.padding, count_include_pad=layer.count_padding)
        case GlobalPool():
            return torch.nn.AdaptiveAvgPool3d(1) if layer.reduce == "mean" else torch.nn.AdaptiveMaxPool3d(1)
        case Add():
            return _lambda(lambda *xs: sum(xs[1:], xs[0]))
        case Multiply():
            return _lambda(lambda x, y: x * y)
        case Concat():
            return _lambda(lambda *xs: torch.cat(xs, 1))
        case Activate():
            return torch.nn.Identity()
        case Softmax():
            return torch.nn.Softmax(1)
        case Maxout():
            return _lambda(lambda x: x.unflatten(1, (-1, layer.group)).amax(2))
        case Slice():
            return _lambda(partial(_sliced, layer))
        case Pad():
            sides = [n for low, high in zip(layer.low[::-1], layer.high[::-1], strict=True) for n in (low, high)]
            mode = {"edge": "replicate", "constant": "constant", "reflect": "reflect"}.get(layer.mode)
            if mode is None:
                raise Unsupported(f"PyTorch has no padding by {layer.mode}")
            value = layer.value if mode == "constant" else None
            return _lambda(lambda x: functional.pad(x, sides, mode, value))
        case Resize():
            return _resize(layer)
        case DepthToSpace():
            return _lambda(partial(_spread, layer))
        case PairDistance():
            return _lambda(partial(_affinities, layer))
    raise Unsupported(f"there is no PyTorch form of a {layer.kind}")


def _resize(layer: Resize) -> torch.nn.Module:
    """By interpolate where it is the same, else by indices."""
    from torch.nn import functional

    whole = layer.extra == (0, 0, 0)
    if layer.mode == "nearest" and (layer.coordinates, layer.rounding) == ("asymmetric", "floor") and whole:
        return _lambda(lambda x: functional.interpolate(x, scale_factor=layer.factor, mode="nearest"))
    if layer.mode == "linear" and layer.coordinates in ("half_pixel", "pytorch_half_pixel") and whole:
        return _lambda(lambda x: functional.interpolate(x, scale_factor=layer.factor, mode="trilinear"))
    if layer.mode == "linear" and layer.coordinates == "align_corners":
        return _lambda(
            lambda x: functional.interpolate(
                x, size=layer.output_shape(tuple(x.shape))[2:], mode="trilinear", align_corners=True
            )
        )
    raise Unsupported(f"PyTorch has no resizing by {layer.mode}, {layer.coordinates}, {layer.rounding}")


def _spread(layer: DepthToSpace, x: torch.Tensor) -> torch.Tensor:
    fz, fy, fx = layer.factor
    y = x.unflatten(1, (fz, fy, fx, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    y = y.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return _sliced(Slice(layer.low, layer.high), y)


def _affinities(layer: PairDistance, x: torch.Tensor) -> torch.Tensor:
    import torch

    found = []
    for offset in layer.offsets:
        here = [slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, x.shape[2:], strict=True)]
        there = [slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, x.shape[2:], strict=True)]
        distance = (x[(..., *here)] - x[(..., *there)]).abs().sum(1, keepdim=True)
        sides = [n for o in offset[::-1] for n in (max(0, -o), max(0, o))]
        found.append(torch.nn.functional.pad((1 - distance / (2 * layer.margin)).clamp(min=0) ** 2, sides))
    return torch.cat(found, 1)


def _activation(activation: Activation) -> torch.nn.Module:
    import torch

    a, b = activation.a, activation.b
    return {
        "relu": lambda: torch.nn.ReLU(inplace=True),
        "leaky_relu": lambda: torch.nn.LeakyReLU(a, inplace=True),
        "elu": lambda: torch.nn.ELU(a, inplace=True),
        "tanh": lambda: _lambda(lambda x: a * torch.tanh(b * x)),
        "sigmoid": lambda: torch.nn.Sigmoid(),
        "clip": lambda: _lambda(lambda x: x.clamp(a, b)),
    }[activation.name]()
