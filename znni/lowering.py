"""From what a sliding-window network computes to the layers that run: the two dense forms of max-pooling.

*fragments*: each pooling becomes max-pooling fragments (MPF), and one recombination ends the network (ZNNi, SC'16).
*filter*: each pooling becomes a max-filter of stride 1, and every later kernel and window is dilated by the product of the
strides so far (ZNN, IPDPS'16, "skip kernels").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from znni.errors import InvalidShape
from znni.layers import ONES, Conv, MaxFilter, MaxPool, MaxPoolFragments, Recombine, Triple
from znni.nodes import Node

#: The ways in which a pooling can run densely.
POOLING = ("fragments", "filter")


def _times(a: Triple, b: Triple) -> Triple:
    return tuple(i * j for i, j in zip(a, b, strict=True))


def lower(nodes: Sequence[Node], pooling: str) -> tuple[Node, ...]:
    """`nodes` with every `MaxPool` in the dense form `pooling`, names kept."""
    if pooling not in POOLING:
        raise InvalidShape(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
    return _fragments(nodes) if pooling == "fragments" else _filters(nodes)


def _fragments(nodes: Sequence[Node]) -> tuple[Node, ...]:
    lowered, strides = [], []
    for node in nodes:
        layer = node.layer
        if isinstance(layer, MaxPool) and layer.stride != ONES:
            strides.append(layer.stride)
            node = replace(node, layer=MaxPoolFragments(layer.window, layer.stride))
        elif isinstance(layer, MaxPool):
            node = replace(node, layer=MaxFilter(layer.window))
        lowered.append(node)
    if strides:
        last = lowered[-1]
        lowered.append(replace(last, name="recombine", layer=Recombine(tuple(strides)), inputs=(last.name,)))
    return tuple(lowered)


def _filters(nodes: Sequence[Node]) -> tuple[Node, ...]:
    lowered, dilation = [], ONES
    for node in nodes:
        layer = node.layer
        if isinstance(layer, MaxPool):
            node = replace(node, layer=MaxFilter(layer.window, dilation))
            dilation = _times(dilation, layer.stride)
        elif isinstance(layer, (Conv, MaxFilter)):
            node = replace(node, layer=replace(layer, dilation=_times(layer.dilation, dilation)))
        lowered.append(node)
    return tuple(lowered)
