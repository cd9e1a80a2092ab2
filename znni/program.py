"""A plan made executable: a flat list of steps over one arena, and over one on the GPU where it has steps there."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from znni.arena import Buffer, Layout, aligned_empty, layout
from znni.gpu.current import current
from znni.gpu.device import Allocation, Device, DeviceArray, device_aligned
from znni.gpu.operator import GpuOperator, carve, carved_bytes
from znni.graph_walk import relayout_name
from znni.layers import Recombine, Relayout, Shape
from znni.layouts import DEVICE, PLAIN, array_shape, tensor_bytes
from znni.network import Network
from znni.nodes import INPUT, Node
from znni.primitives import Operator, get
from znni.schedule import Levels, Loop, calls_of, lifetimes, loops_of, span_of, with_relayouts
from znni.solve import Choice

Array = np.ndarray | DeviceArray
Job = TypeVar("Job")


@dataclass(frozen=True)
class Step:
    """One call of an operator with its views into the arenas; `node` is the number of its node, `x` what it reads, of a join a
    tuple.

    `outer` is how often the outermost loop has begun before, or None where the step lies in none. `waits_for` is the device
    whose work must be done before the step, which computes on the host, may begin.
    """

    name: str
    operator: Operator
    x: Array | tuple[Array, ...]
    out: Array
    workspace: Array
    node: int
    part: int = 0
    outer: int | None = None
    waits_for: Device | None = None

    def __call__(self) -> None:
        if self.waits_for:
            self.waits_for.compute.synchronise()
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
    span : (int, int), optional
        The nodes that it computes, from the first number up to the second; `shape` is then that of the first one's input.
        By default all. No loop may begin before the first.
    slots : sequence of ndarray, optional
        Where nodes beyond `span` come first, the arrays that hold its input; where they come after it, those that take its
        output: one run uses one of them. By default both lie in the arena.

    Attributes
    ----------
    input : ndarray of float32 (batch, in_channels, z, y, x)
        To be filled before each `run`; it is overwritten by it.
    output : ndarray of float32 (batch, out_channels, z, y, x)
        Valid from a `run` until the next filling of `input`.
    resident_bytes, arena_bytes, device_resident_bytes, device_arena_bytes : int
        What it holds, on the host and on the GPU.
    device : Device or None
        Where the steps on the GPU run.
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
        span: tuple[int, int] | None = None,
        slots: Sequence[np.ndarray] = (),
    ):
        self.network = network
        nodes = network.lowered(pooling, levels)
        loops = loops_of(nodes, levels)
        from_slots, into_slots = bool(slots and span[0] > 0), bool(slots and span[1] < len(nodes))
        if span:
            nodes, loops = span_of(nodes, loops, *span)
        nodes, self.loops = with_relayouts(nodes, loops, _relayouts(nodes, choices))
        self.calls = calls_of(nodes, self.loops, shape)
        operators = []
        for call, (_, choice) in zip(self.calls, choices, strict=True):
            weights = network.lowered_weights.get(call.node.name, {})
            operators.append(
                get(choice.primitive).prepare(call.node.layer, weights, call.in_shape, choice.config, threads)
            )
        layouts = {INPUT: PLAIN} | {call.node.name: op.gives for call, op in zip(self.calls, operators, strict=True)}
        shapes = {INPUT: tuple(shape)} | {call.node.name: call.out_shape for call in self.calls}
        self._operators, last = operators, nodes[-1].name
        outside = {INPUT} if from_slots else {last} if into_slots else set()
        self.device = current() if any(isinstance(op, GpuOperator) for op in operators) else None

        sizes = {name: tensor_bytes(shapes[name], layouts[name]) for name in shapes}
        here = {name: 0 if layouts[name] == DEVICE or name in outside else sizes[name] for name in shapes}
        workspaces = [op.memory.host_workspace_bytes for op in operators]
        names, placed = arena_layout(nodes, self.loops, here, workspaces)
        self.resident_bytes = sum(op.memory.host_resident_bytes for op in operators)
        self.arena_bytes = placed.total_bytes
        self._arena = self.device.pinned(placed.total_bytes) if self.device else aligned_empty(placed.total_bytes)
        self._arena.fill(0)  # takes the pages now: a limit is met or missed here, not midway, and no run pays for it
        at = dict(zip(names, placed.offsets, strict=True))
        tensors: dict[str, Array] = {
            name: self._arena[at[name] : at[name] + sizes[name]]
            .view(np.float32)
            .reshape(array_shape(shapes[name], layouts[name]))
            for name in shapes
            if layouts[name] != DEVICE and name not in outside
        }
        places = [at[f"workspace of {node.name}"] for node in nodes]
        spaces: list[Array] = [self._arena[start : start + n] for start, n in zip(places, workspaces, strict=True)]
        self.device_resident_bytes = self.device_arena_bytes = 0
        if self.device:
            there = {name: sizes[name] if layouts[name] == DEVICE else 0 for name in shapes}
            self._take_device_memory(self.device, nodes, shapes, there, tensors, spaces)

        self._rounds = [
            list(self._unrolled(operators, tensors | dict.fromkeys(outside, slot), spaces)) for slot in slots or (None,)
        ]
        self.steps = self._rounds[0]
        self.input = slots[0] if from_slots else tensors[INPUT]
        self.output = slots[0] if into_slots else tensors[last]

    def _take_device_memory(
        self,
        device: Device,
        nodes: Sequence[Node],
        shapes: Mapping[str, Shape],
        sizes: Mapping[str, int],
        tensors: dict[str, Array],
        spaces: list[Array],
    ) -> None:
        """One allocation for all on the GPU: tensors and workspaces over an arena, then what stays, put in place."""
        own = [(i, op) for i, op in enumerate(self._operators) if isinstance(op, GpuOperator)]
        workspaces = {i: op.memory.device_workspace_bytes for i, op in own}
        rounded = [device_aligned(workspaces.get(i, 0)) for i in range(len(nodes))]
        names, placed = arena_layout(
            nodes, self.loops, {name: device_aligned(nbytes) for name, nbytes in sizes.items()}, rounded
        )
        residents = [op.memory.device_resident_bytes for _, op in own]
        self.device_arena_bytes, self.device_resident_bytes = placed.total_bytes, carved_bytes(residents)
        taken = device.allocate(self.device_arena_bytes + self.device_resident_bytes)
        weakref.finalize(self, _give_back, taken, [op for _, op in own])
        at = dict(zip(names, placed.offsets, strict=True))
        for name, nbytes in sizes.items():
            if nbytes:
                tensors[name] = taken.array.view(np.float32, shapes[name], at[name])
        stays = carve(taken.array.view(np.uint8, (self.device_resident_bytes,), self.device_arena_bytes), residents)
        for (i, op), resident in zip(own, stays, strict=True):
            spaces[i] = taken.array.view(np.uint8, (workspaces[i],), at[f"workspace of {nodes[i].name}"])
            op.place(resident, spaces[i])
        device.synchronise()

    def _unrolled(
        self, operators: Sequence[Operator], tensors: Mapping[str, Array], spaces: Sequence[Array]
    ) -> Iterator[Step]:
        """Every call of a run, in order."""
        pending = False
        for i, counts in self._order(0, len(self.calls), ()):
            enqueues = isinstance(operators[i], GpuOperator)
            waits_for = self.device if pending and not enqueues else None
            pending = enqueues
            yield self._step(i, counts, operators[i], tensors, spaces[i], waits_for)

    def _order(self, first: int, stop: int, counts: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Numbers of the nodes from `first` up to `stop`, in the order of their calls, with the counts of their loops."""
        inner = self.loops[len(counts)] if len(counts) < len(self.loops) else None
        i = first
        while i < stop:
            if inner is not None and inner.start == i:
                for count in range(inner.parts):
                    yield from self._order(i, inner.end, (*counts, count))
                i = inner.end
            else:
                yield i, counts
                i += 1

    def _step(
        self,
        number: int,
        counts: tuple[int, ...],
        operator: Operator,
        tensors: Mapping[str, Array],
        workspace: Array,
        waits_for: Device | None,
    ) -> Step:
        call = self.calls[number]
        x = tensors[call.node.inputs[0]]
        if call.node.layer.joins:
            x = tuple(tensors[name] for name in call.node.inputs)
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
        return Step(call.node.name, operator, x, tensors[call.node.name], workspace, number, part, outer, waits_for)

    def run(self, slot: int = 0) -> None:
        """Compute `output` from `input`; of a program with slots, with the array of that number."""
        for step in self._rounds[slot]:
            step()
        if self.device:
            self.device.synchronise()

    def run_all(
        self, jobs: Iterable[Job], fill: Callable[[Job, np.ndarray], None], drain: Callable[[Job, np.ndarray], None]
    ) -> float:
        """Run every job: `fill` writes its input, `drain` takes its output; the seconds between."""
        seconds = 0.0
        for job in jobs:
            fill(job, self.input)
            begin = time.perf_counter()
            self.run()
            seconds += time.perf_counter() - begin
            drain(job, self.output)
        return seconds

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
            if self.device:
                self.device.synchronise()
            seconds[step.node] += (time.perf_counter() - start) / (1.0 if step.outer is None else share)
        return seconds


def _give_back(taken: Allocation, operators: Sequence[GpuOperator]) -> None:
    """What a program that is no more held on the GPU."""
    for operator in operators:
        operator.release()
    taken.free()


def _relayouts(nodes: Sequence[Node], choices: Sequence[tuple[str, Choice]]) -> dict[int, list[tuple[int, Node]]]:
    """The conversions among `choices`, by the number of the node that each comes before, with that of the input converted."""
    found: dict[int, list[tuple[int, Node]]] = {}
    number = 0
    for name, choice in choices:
        if get(choice.primitive).kind == Relayout.kind and (number >= len(nodes) or nodes[number].name != name):
            if number >= len(nodes):
                found.setdefault(number, []).append((0, Node(name, Relayout(), (nodes[-1].name,))))
                continue
            node = nodes[number]
            at = next((j for j in range(1, len(node.inputs)) if name == relayout_name(node.name, j)), 0)
            found.setdefault(number, []).append((at, Node(name, Relayout(), (node.inputs[at],))))
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

