"""The nodes of a network: layers with names, and the names of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znni.layers import (
    Concat,
    Conv,
    ConvMaxPoolFragments,
    ConvTranspose,
    DepthToSpace,
    GroupedConv,
    Layer,
    Maxout,
    PairDistance,
    Slice,
)

#: The name by which nodes refer to the network's input.
INPUT = "input"


@dataclass(frozen=True)
class Node:
    """A layer, its name, and the names of the nodes (or `INPUT`) that it reads."""

    name: str
    layer: Layer
    inputs: tuple[str, ...] = (INPUT,)


def chain(layers: Sequence[Layer]) -> tuple[Node, ...]:
    """Nodes for `layers` in sequence, named ``1_conv``, ``2_max_pool``, ..."""
    nodes, previous = [], INPUT
    for number, layer in enumerate(layers, 1):
        nodes.append(Node(f"{number}_{layer.kind}", layer, (previous,)))
        previous = nodes[-1].name
    return tuple(nodes)


def channels_through(nodes: Sequence[Node], in_channels: int) -> dict[str, int]:
    """Channels of every node's result (and of `INPUT`), whatever the size of the patch."""
    channels = {INPUT: in_channels}
    for node in nodes:
        channels[node.name] = _channels(node.layer, [channels[name] for name in node.inputs])
    return channels


def _channels(layer: Layer, incoming: list[int]) -> int:
    match layer:
        case Conv() | GroupedConv() | ConvTranspose():
            return layer.out_channels
        case ConvMaxPoolFragments():
            return layer.conv.out_channels
        case Concat():
            return sum(incoming)
        case Maxout():
            return incoming[0] // layer.group
        case DepthToSpace():
            return incoming[0] // layer.phases
        case PairDistance():
            return len(layer.offsets)
        case Slice() if layer.channels:
            return layer.channels[1] - layer.channels[0]
    return incoming[0]
