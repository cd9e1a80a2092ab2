"""From what a network computes to the layers that run.

Max-pooling of a sliding-window network has two dense forms:

*fragments*: each pooling becomes max-pooling fragments (MPF), and one recombination ends the network (ZNNi, SC'16).
*filter*: each pooling becomes a max-filter of stride 1, and every later kernel and window is dilated by the product of the
strides so far (ZNN, IPDPS'16, "skip kernels").

In other networks it is what it says (*strided*).

A transposed convolution with one group becomes a convolution that gives all voxels of an output cell as channels, its kernel
cut into phases of the stride, and a `DepthToSpace`; so every way to convolve can compute it (Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from znni.errors import InvalidShape
from znni.layers import (
    ONES,
    Conv,
    ConvTranspose,
    DepthToSpace,
    MaxFilter,
    MaxPool,
    MaxPoolFragments,
    Pad,
    Recombine,
    Slice,
    Triple,
)
from znni.nodes import INPUT, Node

#: The dense forms of poolings.
POOLING = ("fragments", "filter")
#: Of networks that are no sliding-window networks.
STRIDED = "strided"


def _times(a: Triple, b: Triple) -> Triple:
    return tuple(i * j for i, j in zip(a, b, strict=True))


def lower(nodes: Sequence[Node], pooling: str) -> tuple[Node, ...]:
    """`nodes` with every `MaxPool` in the form `pooling`, names kept, and transposed convolutions cut in two.

    Raises `InvalidShape` where the form is not one, or branches whose fragments differ meet.
    """
    if pooling not in (*POOLING, STRIDED):
        raise InvalidShape(f"pooling must be one of {', '.join((*POOLING, STRIDED))}, got {pooling!r}")
    if pooling == STRIDED:
        return _transposed(nodes)
    return _fragments(nodes) if pooling == "fragments" else _filters(nodes)


def _fragments(nodes: Sequence[Node]) -> tuple[Node, ...]:
    lowered: list[Node] = []
    strides: dict[str, tuple[Triple, ...]] = {INPUT: ()}
    for node in nodes:
        layer = node.layer
        own = strides[node.inputs[0]]
        if any(strides[name] != own for name in node.inputs):
            raise InvalidShape(f"{node.name} joins branches of different poolings, whose fragments do not go together")
        if isinstance(layer, MaxPool) and layer.stride != ONES:
            own = (*own, layer.stride)
            node = replace(node, layer=MaxPoolFragments(layer.window, layer.stride))
        elif isinstance(layer, MaxPool):
            node = replace(node, layer=MaxFilter(layer.window))
        strides[node.name] = own
        lowered.append(node)
    last = lowered[-1]
    if strides[last.name]:
        lowered.append(replace(last, name="recombine", layer=Recombine(strides[last.name]), inputs=(last.name,)))
    return tuple(lowered)


def _filters(nodes: Sequence[Node]) -> tuple[Node, ...]:
    lowered: list[Node] = []
    dilations: dict[str, Triple | None] = {INPUT: ONES}
    for node in nodes:
        layer = node.layer
        dilation = dilations[node.inputs[0]]
        if any(dilations[name] != dilation for name in node.inputs):
            dilation = None  # at every voxel there is a result, but what is next to it differs
        dilations[node.name] = dilation
        if dilation is None:
            if any(getattr(layer, name, ONES) != ONES for name in ("kernel", "window")) or isinstance(layer, (Slice, Pad)):
                raise InvalidShape(f"{node.name} reads more than one voxel of branches whose strides differ")
            lowered.append(node)
            continue
        if isinstance(layer, MaxPool):
            node = replace(node, layer=MaxFilter(layer.window, dilation))
            dilations[node.name] = _times(dilation, layer.stride)
        elif isinstance(layer, (Conv, MaxFilter)):
            node = replace(node, layer=replace(layer, dilation=_times(layer.dilation, dilation)))
        elif isinstance(layer, (Slice, Pad)):
            low, high = _times(layer.low, dilation), _times(layer.high, dilation)
            node = replace(node, layer=replace(layer, low=low, high=high))
        lowered.append(node)
    return tuple(lowered)


def _phases(layer: ConvTranspose) -> Triple:
    """Taps of each phase of the kernel, per axis; enough for voxels beyond it, too, where `high` is negative."""
    return tuple(
        -(-max(k, k - min(0, h)) // s) for k, s, h in zip(layer.kernel, layer.stride, layer.high, strict=True)
    )


def _cut_in_two(node: Node) -> tuple[Node, Node]:
    layer = node.layer
    taps = _phases(layer)
    conv = Conv(
        layer.out_channels * layer.stride[0] * layer.stride[1] * layer.stride[2],
        taps,
        padding=tuple(t - 1 for t in taps),
        activation=layer.activation,
    )
    # the convolution gives n + taps - 1 cells of `stride` voxels each
    high = tuple(
        t * s - k + h for t, s, k, h in zip(taps, layer.stride, layer.kernel, layer.high, strict=True)
    )
    shuffle = DepthToSpace(layer.stride, layer.low, high)
    return Node(node.name, conv, node.inputs), Node(f"{node.name}.voxels", shuffle, (node.name,))


def _transposed(nodes: Sequence[Node]) -> tuple[Node, ...]:
    lowered: list[Node] = []
    renamed: dict[str, str] = {}
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if isinstance(node.layer, ConvTranspose) and node.layer.groups == 1:
            lowered += _cut_in_two(node)
            renamed[node.name] = lowered[-1].name
        else:
            lowered.append(node)
    return tuple(lowered)


def lowered_weights(
    nodes: Sequence[Node], weights: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Mapping[str, np.ndarray]]:
    """Weights of the nodes that run: those of transposed convolutions cut into phases, all others as they are."""
    found = dict(weights)
    for node in nodes:
        if isinstance(node.layer, ConvTranspose) and node.layer.groups == 1:
            found[node.name] = _phase_weights(node.layer, weights[node.name])
    return found


def _phase_weights(layer: ConvTranspose, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Output voxel ``q s + r`` is the sum over taps j of ``w[r + s j] x[q - j]``; as a cross-correlation, j is mirrored."""
    taps, (sz, sy, sx) = _phases(layer), layer.stride
    weight = own["weight"]  # (in, out, kz, ky, kx)
    whole = np.zeros((*weight.shape[:2], taps[0] * sz, taps[1] * sy, taps[2] * sx), np.float32)
    whole[:, :, : layer.kernel[0], : layer.kernel[1], : layer.kernel[2]] = weight
    cells = whole.reshape(*weight.shape[:2], taps[0], sz, taps[1], sy, taps[2], sx)[:, :, ::-1, :, ::-1, :, ::-1]
    phases = cells.transpose(3, 5, 7, 1, 0, 2, 4, 6)  # (rz, ry, rx, out, in, taps)
    shape = (sz * sy * sx * layer.out_channels, weight.shape[0], *taps)
    return {
        "weight": np.ascontiguousarray(phases.reshape(shape)),
        "bias": np.tile(own["bias"], sz * sy * sx),
    }
