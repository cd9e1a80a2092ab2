"""The nodes of a network: layers with names, and the names of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znni.layers import Layer

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
