"""The blocks of a ZNN network, text or HDF5, and the chain of layers that they make.

Nodes sum what comes in; `transfer` nodes add a bias and apply a function. Edges compute: `conv`, `max_filter` and
`max_pool` (both meant densely: later kernels and windows are dilated by the stride), `softmax`; `dropout` is the
identity at inference. Graphs - several inputs, or several edges into or out of a node - are refused by the name of the
node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from znni.errors import FormatError
from znni.formats.text import positive, positive_triple
from znni.layers import LINEAR, ONES, Activation, Conv, Layer, MaxPool, Softmax
from znni.nodes import INPUT, Node

_NODE_TYPES = ("input", "transfer", "sum", "maxout")
_EDGE_TYPES = ("conv", "max_filter", "max_pool", "softmax", "dropout", "crop", "maxout", "dummy")
_FUNCTIONS = {"rectify_linear": "relu", "logistics": "sigmoid", "forward_logistics": "sigmoid"}
#: Names that nodes of a network or of its lowered form have already.
_TAKEN = (INPUT, "recombine")


@dataclass(frozen=True)
class Block:
    """One ``nodes`` or ``edges`` block: its name, its options as text, and where in the file it is."""

    group: str
    name: str
    options: Mapping[str, str]
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.group} {self.name}"

    def option(self, key: str) -> str:
        """The value of `key`, which must be there."""
        if key not in self.options:
            raise FormatError(f"{self} has no {key}")
        return self.options[key]

    @property
    def type(self) -> str:
        """What kind of nodes or edges these are."""
        return self.option("type")

    @property
    def channels(self) -> int:
        """The number of nodes in a block of nodes."""
        return positive(self.option("size"), f"the size of {self}")


@dataclass(frozen=True)
class Step:
    """A layer of the chain with the edges that compute it and the nodes that they end in."""

    node: Node
    edge: Block
    target: Block
    in_channels: int


def chain_of_blocks(file: str, blocks: Iterable[Block]) -> tuple[int, list[Step]]:
    """The input's channels, and the layers in order.

    Raises
    ------
    FormatError
        Naming the block that is wrong, or the node at which the network is not a chain.
    """
    blocks = list(blocks)
    nodes = {block.name: block for block in blocks if block.group == "nodes"}
    incoming, outgoing = _wiring(nodes, [block for block in blocks if block.group == "edges"])
    current = source = _only_input(file, nodes)
    if incoming[source.name]:
        raise FormatError(f"{source} is the input, yet edges {incoming[source.name][0].name} end in it")
    steps, reached, previous = [], {source.name}, INPUT
    while outgoing[current.name]:
        if len(outgoing[current.name]) > 1:
            raise _not_a_chain(current, "feeds", outgoing[current.name])
        edge = outgoing[current.name][0]
        target = nodes[edge.options["output"]]
        if len(incoming[target.name]) > 1:
            raise _not_a_chain(target, "is fed by", incoming[target.name])
        layer = _layer(edge, current, target)
        if layer is not None:
            name = f"{edge.name}_edges" if edge.name in _TAKEN else edge.name
            steps.append(Step(Node(name, layer, (previous,)), edge, target, current.channels))
            previous = name
        current = target
        reached.add(current.name)
    for name, block in nodes.items():
        if name not in reached:
            raise FormatError(f"{block} cannot be reached from the input {source.name}")
    if not steps:
        raise FormatError(f"{file} holds no layers after its input {source.name}")
    return source.channels, steps


def _wiring(
    nodes: Mapping[str, Block], edges: Iterable[Block]
) -> tuple[dict[str, list[Block]], dict[str, list[Block]]]:
    incoming, outgoing = {name: [] for name in nodes}, {name: [] for name in nodes}
    for block in nodes.values():
        if block.type not in _NODE_TYPES:
            raise FormatError(f"{block} has the unknown type {block.type!r}; known are {', '.join(_NODE_TYPES)}")
    for edge in edges:
        for key, ends in (("input", outgoing), ("output", incoming)):
            name = edge.option(key)
            if name not in nodes:
                raise FormatError(f"{edge} has the {key} {name}, which no nodes block defines")
            ends[name].append(edge)
    return incoming, outgoing


def _only_input(file: str, nodes: Mapping[str, Block]) -> Block:
    inputs = [block for block in nodes.values() if block.type == "input"]
    if not inputs:
        raise FormatError(f"{file} has no nodes of type input")
    if len(inputs) > 1:
        raise FormatError(
            f"{inputs[1]} is a second input beside {inputs[0].name}; only networks that are chains can be read"
        )
    return inputs[0]


def _not_a_chain(node: Block, verb: str, edges: list[Block]) -> FormatError:
    names = " and ".join(edge.name for edge in edges)
    return FormatError(f"{node} {verb} several edges ({names}); only networks that are chains can be read")


def _layer(edge: Block, source: Block, target: Block) -> Layer | None:
    """The layer that `edge` and its target make, or None where they change nothing."""
    if edge.type not in _EDGE_TYPES:
        raise FormatError(f"{edge} has the unknown type {edge.type!r}; known are {', '.join(_EDGE_TYPES)}")
    if edge.type == "conv":
        return _conv(edge, target)
    if target.type == "transfer":
        raise FormatError(f"{target} adds a bias and a function after {edge.type} edges; that is read only after conv")
    if source.channels != target.channels:
        raise FormatError(
            f"{edge} joins {source.channels} nodes ({source.name}) to {target.channels} ({target.name}); "
            f"{edge.type} needs as many"
        )
    match edge.type:
        case "max_filter":
            return MaxPool(_size(edge), _stride(edge, "1,1,1"))
        case "max_pool":
            return MaxPool(_size(edge), _stride(edge, edge.option("size")))
        case "softmax":
            return Softmax()
    if edge.type == "crop" and not set(edge.option("offset").replace(" ", "").split(",")) <= {"0"}:
        raise FormatError(f"{edge} crops, which matters only where paths of a graph meet; remove it from a chain")
    return None


def _conv(edge: Block, target: Block) -> Conv:
    if _stride(edge, "1,1,1") != ONES:
        raise FormatError(f"{edge} has stride {edge.options['stride']}; a conv must have stride 1,1,1")
    activation = LINEAR
    if target.type == "transfer":
        activation = _activation(target)
    elif target.type != "sum":
        raise FormatError(f"{target} of type {target.type} cannot end conv edges; expected transfer or sum")
    return Conv(target.channels, _size(edge), activation=activation)


def _size(edge: Block) -> tuple[int, int, int]:
    return positive_triple(edge.option("size"), f"the size of {edge}")


def _stride(edge: Block, default: str) -> tuple[int, int, int]:
    return positive_triple(edge.options.get("stride", default), f"the stride of {edge}")


def _activation(node: Block) -> Activation:
    function = node.option("function")
    if function in _FUNCTIONS:
        return Activation(_FUNCTIONS[function])
    if function == "tanh":
        return Activation("tanh", *_numbers(node, "1,1"))
    if function == "linear":
        if _numbers(node, "1,0") != [1.0, 0.0]:
            raise FormatError(f"{node} has a linear function with slope and intercept; fold them into the weights")
        return LINEAR
    known = ", ".join(("linear", "tanh", *_FUNCTIONS))
    raise FormatError(f"{node} has the unknown function {function!r}; known are {known}")


def _numbers(node: Block, default: str) -> list[float]:
    text = node.options.get("function_args", default)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 2 or not all(map(math.isfinite, values)):
        raise FormatError(f"the function_args of {node} must be two numbers, got {text!r}")
    return values
