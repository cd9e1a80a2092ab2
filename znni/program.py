"""A plan made executable: a flat list of steps over one arena."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from znni.arena import Buffer, Layout, aligned, aligned_empty, layout
from znni.layers import Shape
from znni.network import INPUT, Network, Node, shapes_through
from znni.primitives import Memory, Operator, get
from znni.primitives.base import Config

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """How one node is computed."""

    primitive: str
    config: Config


def tensor_bytes(shape: Shape) -> int:
    """Bytes of a float32 array of `shape`."""
    return _FLOAT_BYTES * int(np.prod(shape, dtype=np.int64))


def lifetimes(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """First and last step (node number) at which each node's result, and the input, must be held.

    The input is filled before step 0, the last result is read after the last step.
    """
    spans = {INPUT: [0, 0]}
    for step, node in enumerate(nodes):
        spans[node.name] = [step, step]
        for name in node.inputs:
            spans[name][1] = step
    return {name: (first, last) for name, (first, last) in spans.items()}


def live_tensor_bytes(nodes: Sequence[Node], shapes: dict[str, Shape]) -> list[int]:
    """Bytes (as aligned in the arena) of inputs and results alive at each step, workspaces not counted."""
    spans = lifetimes(nodes)
    sizes = {name: aligned(tensor_bytes(shapes[name])) for name in spans}
    return [
        sum(sizes[name] for name, (first, last) in spans.items() if first <= step <= last) for step in range(len(nodes))
    ]


def arena_layout(
    nodes: Sequence[Node], shapes: dict[str, Shape], memories: Sequence[Memory]
) -> tuple[list[str], Layout]:
    """Names of tensors, then of one workspace a node, and where each lies."""
    spans = lifetimes(nodes)
    names = list(spans)
    buffers = [Buffer(tensor_bytes(shapes[name]), *spans[name]) for name in names]
    buffers += [Buffer(memory.host_workspace_bytes, step, step) for step, memory in enumerate(memories)]
    return names + [f"workspace of {node.name}" for node in nodes], layout(buffers)


@dataclass(frozen=True)
class Step:
    """One operator with its views into the arena."""

    name: str
    operator: Operator
    x: np.ndarray
    out: np.ndarray
    workspace: np.ndarray

    def __call__(self) -> None:
        self.operator(self.x, self.out, self.workspace)


class Program:
    """Network + choices -> steps over one arena, all memory taken at once.

    Attributes
    ----------
    input : ndarray of float32 (batch, in_channels, z, y, x)
        To be filled before each `run`; it is overwritten by it.
    output : ndarray of float32 (batch, out_channels, z, y, x)
        Valid from a `run` until the next filling of `input`.
    resident_bytes, arena_bytes : int
        What it holds.
    network : Network
    """

    def __init__(self, network: Network, pooling: str, shape: Shape, choices: Sequence[Choice], threads: int):
        self.network = network
        nodes = network.lowered(pooling)
        shapes = shapes_through(nodes, shape)
        operators = []
        for node, choice in zip(nodes, choices, strict=True):
            weights = network.weights.get(node.name, {})
            operators.append(
                get(choice.primitive).prepare(node.layer, weights, shapes[node.inputs[0]], choice.config, threads)
            )
        names, placed = arena_layout(nodes, shapes, [op.memory for op in operators])
        self.resident_bytes = sum(op.memory.host_resident_bytes for op in operators)
        self.arena_bytes = placed.total_bytes
        self._arena = aligned_empty(placed.total_bytes)
        self._arena.fill(0)  # takes the pages now: a limit is met or missed here, not midway, and no run pays for it
        at = dict(zip(names, placed.offsets, strict=True))

        def tensor(name: str) -> np.ndarray:
            raw = self._arena[at[name] : at[name] + tensor_bytes(shapes[name])]
            return raw.view(np.float32).reshape(shapes[name])

        def workspace(node: Node, operator: Operator) -> np.ndarray:
            start = at[f"workspace of {node.name}"]
            return self._arena[start : start + operator.memory.host_workspace_bytes]

        self.steps = [
            Step(node.name, op, tensor(node.inputs[0]), tensor(node.name), workspace(node, op))
            for node, op in zip(nodes, operators, strict=True)
        ]
        self.input = tensor(INPUT)
        self.output = tensor(nodes[-1].name)

    def run(self) -> None:
        """Compute `output` from `input`."""
        for step in self.steps:
            step()

    def run_timed(self) -> list[float]:
        """Compute `output` from `input`; the seconds that each step took."""
        seconds = []
        for step in self.steps:
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return seconds
