"""A plan made executable: a flat list of steps over one arena."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from znni.arena import Buffer, Layout, aligned_empty, layout
from znni.layers import Recombine, Relayout
from znni.layouts import PLAIN, array_shape, tensor_bytes
from znni.network import Network
from znni.nodes import INPUT, Node
from znni.primitives import Operator, get
from znni.schedule import Levels, Loop, calls_of, lifetimes, loops_of, with_relayouts
from znni.solve import Choice


@dataclass(frozen=True)
class Step:
    """One call of an operator with its views into the arena; `node` is the number of its node.

    `outer` is how often the outermost loop has begun before, or None where the step lies in none.
    """

    name: str
    operator: Operator
    x: np.ndarray
    out: np.ndarray
    workspace: np.ndarray
    node: int
    part: int = 0
    outer: int | None = None

    def __call__(self) -> None:
        self.operator.part = self.part
        self.operator(self.x, self.out, self.workspace)


class Program:
    """Network + choices -> steps over one arena, all memory taken at once.

    Parameters
    ----------
    network : Network
    pooling : str
        Dense form of the poolings (`znni.lowering`).
    levels : Levels
        Order of the fragments (`znni.schedule`).
    shape : Shape
        Of the input: (batch, in_channels, z, y, x).
    choices : sequence of (name, Choice)
        One for each node of the lowered network, by its name; between them those of conversions between layouts, under any
        names of their own.
    threads : int

    Attributes
    ----------
    input : ndarray of float32 (batch, in_channels, z, y, x)
        To be filled before each `run`; it is overwritten by it.
    output : ndarray of float32 (batch, out_channels, z, y, x)
        Valid from a `run` until the next filling of `input`.
    resident_bytes, arena_bytes : int
        What it holds.
    network : Network
    steps : list of Step
        Every call of a run, in order.
    """

    def __init__(
        self,
        network: Network,
        pooling: str,
        levels: Levels,
        shape: tuple[int, ...],
        choices: Sequence[tuple[str, Choice]],
        threads: int,
    ):
        self.network = network
        nodes = network.lowered(pooling, levels)
        nodes, self.loops = with_relayouts(nodes, loops_of(nodes, levels), _relayouts(nodes, choices))
        self.calls = calls_of(nodes, self.loops, shape)
        operators = []
        for call, (_, choice) in zip(self.calls, choices, strict=True):
            weights = network.weights.get(call.node.name, {})
            operators.append(
                get(choice.primitive).prepare(call.node.layer, weights, call.in_shape, choice.config, threads)
            )
        layouts = {INPUT: PLAIN} | {call.node.name: op.gives for call, op in zip(self.calls, operators, strict=True)}
        shapes = {INPUT: tuple(shape)} | {call.node.name: call.out_shape for call in self.calls}
        workspaces = [op.memory.host_workspace_bytes for op in operators]
        sizes = {name: tensor_bytes(shapes[name], layouts[name]) for name in shapes}
        names, placed = arena_layout(nodes, self.loops, sizes, workspaces)
        self.resident_bytes = sum(op.memory.host_resident_bytes for op in operators)
        self.arena_bytes = placed.total_bytes
        self._arena = aligned_empty(placed.total_bytes)
        self._arena.fill(0)  # takes the pages now: a limit is met or missed here, not midway, and no run pays for it
        at = dict(zip(names, placed.offsets, strict=True))
        tensors = {
            name: self._arena[at[name] : at[name] + sizes[name]]
            .view(np.float32)
            .reshape(array_shape(shapes[name], layouts[name]))
            for name in shapes
        }
        places = [at[f"workspace of {node.name}"] for node in nodes]
        spaces = [self._arena[start : start + n] for start, n in zip(places, workspaces, strict=True)]
        self.steps = list(self._unrolled(operators, tensors, spaces))
        self.input, self.output = tensors[INPUT], tensors[nodes[-1].name]

    def _unrolled(
        self, operators: Sequence[Operator], tensors: dict[str, np.ndarray], spaces: Sequence[np.ndarray]
    ) -> Iterator[Step]:
        """Every call of a run, in order."""
        loops = self.loops

        def from_node(number: int, counts: tuple[int, ...]) -> Iterator[Step]:
            for i in range(number, len(self.calls)):
                if len(counts) < len(loops) and loops[len(counts)].start == i:
                    for count in range(loops[len(counts)].parts):
                        yield from from_node(i, (*counts, count))
                    return
                yield self._step(i, counts, operators[i], tensors, spaces[i])

        return from_node(0, ())

    def _step(
        self,
        number: int,
        counts: tuple[int, ...],
        operator: Operator,
        tensors: dict[str, np.ndarray],
        workspace: np.ndarray,
    ) -> Step:
        call = self.calls[number]
        x = tensors[call.node.inputs[0]]
        part = 0
        for loop, count in zip(self.loops, counts, strict=False):
            if loop.start == number and loop.slices:
                x = x[count * call.in_shape[0] : (count + 1) * call.in_shape[0]]
            elif loop.start == number:
                part = count
        if isinstance(call.node.layer, Recombine):
            for loop, count in zip(self.loops, counts, strict=True):
                part = part * loop.parts + count
        outer = counts[0] if counts else None
        return Step(call.node.name, operator, x, tensors[call.node.name], workspace, number, part, outer)

    def run(self) -> None:
        """Compute `output` from `input`."""
        for step in self.steps:
            step()

    def run_timed(self, outer: int | None = None) -> list[float]:
        """Compute `output` from `input`; the seconds that each node took, all its calls together.

        With `outer`, only so many rounds of the outermost loop are run, the rest of `output` is left as it was, and the
        seconds are those that all rounds would take at the same rate.
        """
        seconds = [0.0] * len(self.calls)
        rounds = self.loops[0].parts if self.loops else 1
        share = 1.0 if outer is None else min(1.0, outer / rounds)
        for step in self.steps:
            if outer is not None and step.outer is not None and step.outer >= outer:
                continue
            start = time.perf_counter()
            step()
            seconds[step.node] += (time.perf_counter() - start) / (1.0 if step.outer is None else share)
        return seconds


def _relayouts(nodes: Sequence[Node], choices: Sequence[tuple[str, Choice]]) -> dict[int, Node]:
    """The conversions among `choices`, by the number of the node that each comes before."""
    found: dict[int, Node] = {}
    number = 0
    for name, choice in choices:
        if get(choice.primitive).kind == Relayout.kind and (number >= len(nodes) or nodes[number].name != name):
            reads = nodes[number].inputs if number < len(nodes) else (nodes[-1].name,)
            found[number] = Node(name, Relayout(), reads)
        else:
            number += 1
    return found


def arena_layout(
    nodes: Sequence[Node], loops: Sequence[Loop], sizes: dict[str, int], workspaces: Sequence[int]
) -> tuple[list[str], Layout]:
    """Names of tensors (of `sizes` bytes), then of one workspace a node, and where each lies."""
    spans = lifetimes(nodes, loops)
    names = list(spans)
    buffers = [Buffer(sizes[name], *spans[name]) for name in names]
    buffers += [Buffer(nbytes, step, step) for step, nbytes in enumerate(workspaces)]
    return names + [f"workspace of {node.name}" for node in nodes], layout(buffers)

