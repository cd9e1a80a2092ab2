"""Small graphs that tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from znni.layers import Activation, Add, Concat, Conv, ConvTranspose, MaxPool
from znni.network import Network
from znni.nodes import Node, channels_through

RELU, ELU = Activation("relu"), Activation("elu")
FLAT = (1, 2, 2)


def random_weights(nodes: Sequence[Node], in_channels: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Weights that keep the deviation of what passes through about as it is."""
    rng = np.random.default_rng(seed)
    channels, found = channels_through(nodes, in_channels), {}
    for node in nodes:
        shapes = node.layer.weight_shapes(channels[node.inputs[0]]) if hasattr(node.layer, "weight_shapes") else {}
        for key, shape in shapes.items():
            array = rng.standard_normal(shape, np.float32)
            if key == "weight":
                array *= np.float32((shape[0] / array.size) ** 0.5)
            found.setdefault(node.name, {})[key] = array if key == "weight" else 1 + array / 10
    return found


def network_of(name: str, nodes: Sequence[Node], in_channels: int = 1, sliding: bool = False) -> Network:
    """A network of those nodes with random weights."""
    return Network(name, nodes, in_channels, random_weights(nodes, in_channels), sliding=sliding)


def padded_unet(width: int = 4) -> Network:
    """Two levels, residual sums at the first and a concatenation at the second, as in the nets of connectomics."""

    def conv(name: str, out: int, source: str, kernel=(1, 3, 3)) -> Node:
        return Node(name, Conv(out, kernel, padding=tuple(k // 2 for k in kernel), activation=ELU), (source,))

    nodes = (
        conv("a", width, "input"),
        Node("pool1", MaxPool(FLAT, FLAT), ("a",)),
        conv("b", 2 * width, "pool1", (3, 3, 3)),
        Node("pool2", MaxPool(FLAT, FLAT), ("b",)),
        conv("c", 3 * width, "pool2", (3, 3, 3)),
        Node("up2", ConvTranspose(2 * width, FLAT, FLAT), ("c",)),
        Node("sum", Add(2, affine=True, activation=ELU), ("up2", "b")),
        conv("d", 2 * width, "sum", (3, 3, 3)),
        Node("up1", ConvTranspose(width, FLAT, FLAT), ("d",)),
        Node("both", Concat((width, width)), ("up1", "a")),
        Node("out", Conv(3, (1, 3, 3), padding=(0, 1, 1), activation=Activation("sigmoid")), ("both",)),
    )
    return network_of("padded_unet", nodes)


def residual_sum() -> Network:
    """A sliding-window graph: two branches of one field of view are summed, then pooled."""
    nodes = (
        Node("a", Conv(3, (1, 3, 3))),
        Node("b", Conv(3, (1, 3, 3))),
        Node("sum", Add(2, activation=RELU), ("a", "b")),
        Node("pool", MaxPool(FLAT, FLAT), ("sum",)),
        Node("c", Conv(2, (1, 4, 4)), ("pool",)),
    )
    return network_of("residual_sum", nodes, sliding=True)


def two_branches() -> Network:
    """A sliding-window graph whose branches differ in poolings, and meet at the same dilation."""
    nodes = (
        Node("a", Conv(3, (1, 3, 3))),
        Node("a_pool", MaxPool(FLAT, FLAT), ("a",)),
        Node("a_next", Conv(2, (1, 2, 2)), ("a_pool",)),
        Node("b_pool_y", MaxPool((1, 4, 1), (1, 2, 1)), ("input",)),
        Node("b_pool_x", MaxPool((1, 1, 4), (1, 1, 2)), ("b_pool_y",)),
        Node("b_next", Conv(2, (1, 2, 2)), ("b_pool_x",)),
        Node("sum", Add(2), ("a_next", "b_next")),
    )
    return network_of("two_branches", nodes, sliding=True)
