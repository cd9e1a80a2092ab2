"""In what order a network's fragments are computed, and how many of them at a time.

After max-pooling fragments (MPF) the fragments never meet again until recombination. *Breadth first*, each layer runs over
all of them before the next begins. *Depth first*, they are cut into parts, and one part after another goes through all that
follows, level within level: only one part's tensors are held at a time. Where a convolution and the MPF behind it are fused,
the convolution is computed anew for each part, and neither its map nor the other fragments are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from znni.errors import InvalidShape
from znni.layers import Conv, ConvMaxPoolFragments, Layer, MaxPool, MaxPoolFragments, Recombine, Shape
from znni.nodes import INPUT, Node


@dataclass(frozen=True)
class Level:
    """What happens at one pooling.

    Attributes
    ----------
    parts : int
        Groups that the fragments are cut into, which go through all that follows one after another.
    fused : bool
        Whether the convolution before it is computed together with it; with several parts, anew for each.
    """

    parts: int = 1
    fused: bool = False


#: One for each pooling of a network, the first one first; empty where all run breadth first.
Levels = tuple[Level, ...]


@dataclass(frozen=True)
class Loop:
    """Nodes from number `start` up to `end` (None: to the last) run `parts` times: over slices of the batch that node `start`
    reads, or (`slices` false) over the parts of its layer. All loops end together."""

    start: int
    parts: int
    slices: bool
    end: int | None = None


@dataclass(frozen=True)
class Call:
    """One node of a schedule: what a single call reads and writes, and how often it is called in a run.

    `source` is the shape of the whole tensor that it reads, of which a call may read a slice only.
    """

    node: Node
    source: Shape
    in_shape: Shape
    out_shape: Shape
    repeats: int


def poolings(nodes: Sequence[Node]) -> list[int]:
    """Numbers of the nodes that make fragments of poolings, before or after lowering."""
    return [
        i
        for i, node in enumerate(nodes)
        if isinstance(node.layer, MaxPoolFragments | ConvMaxPoolFragments)
        or (isinstance(node.layer, MaxPool) and prod(node.layer.stride) > 1)
    ]


def scheduled(nodes: Sequence[Node], levels: Levels) -> tuple[Node, ...]:
    """Nodes lowered to fragments, cut and fused as `levels` say; a fused node has its convolution's name.

    Raises `InvalidShape` where there are not as many levels as poolings, or no convolution to fuse.
    """
    at = poolings(nodes)
    if levels and len(levels) != len(at):
        raise InvalidShape(f"a schedule has a level for each of the {len(at)} poolings, got {len(levels)}")
    parts = prod(level.parts for level in levels)
    fused = {i: level for i, level in zip(at, levels, strict=False) if level.fused}
    renamed: dict[str, str] = {}
    made: list[Node] = []
    for i, node in enumerate(nodes):
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        layer: Layer = node.layer
        if i in fused:
            before = made.pop() if made else None
            if before is None or not isinstance(before.layer, Conv) or inputs != (before.name,):
                raise InvalidShape(f"{node.name} follows no convolution that it could be fused with")
            renamed[node.name] = before.name
            made.append(Node(before.name, ConvMaxPoolFragments(before.layer, layer, fused[i].parts), before.inputs))
            continue
        if isinstance(layer, Recombine):
            layer = Recombine(layer.strides, parts)
        made.append(Node(node.name, layer, inputs))
    return tuple(made)


def loops_of(nodes: Sequence[Node], levels: Levels) -> tuple[Loop, ...]:
    """The loops of nodes that `scheduled` made by `levels`, outermost first."""
    found = []
    for i, level in zip(poolings(nodes), levels, strict=bool(levels)):
        if level.parts > 1:
            fused = isinstance(nodes[i].layer, ConvMaxPoolFragments)
            found.append(Loop(i if fused else i + 1, level.parts, not fused))
    return tuple(found)


def calls_of(nodes: Sequence[Node], loops: Sequence[Loop], shape: Shape) -> tuple[Call, ...]:
    """Shapes and repeats through a schedule, for an input of `shape`; `InvalidShape` where a batch cannot be cut so."""
    tensors: dict[str, Shape] = {INPUT: tuple(shape)}
    found = []
    for i, node in enumerate(nodes):
        source = taken = node.layer.joined_shape(tuple(tensors[name] for name in node.inputs))
        for loop in loops:
            if loop.start == i and loop.slices:
                if taken[0] % loop.parts:
                    raise InvalidShape(f"{taken[0]} fragments cannot be cut into {loop.parts} parts at {node.name}")
                taken = (taken[0] // loop.parts, *taken[1:])
        repeats = prod(loop.parts for loop in loops if loop.start <= i and (loop.end is None or i < loop.end))
        tensors[node.name] = out = node.layer.output_shape(taken)
        found.append(Call(node, source, taken, out, repeats))
    return tuple(found)


def lifetimes(nodes: Sequence[Node], loops: Sequence[Loop] = ()) -> dict[str, tuple[int, int]]:
    """First and last step (node number) at which each node's result, and the input, must be held.

    The input is filled before step 0, the last result is read after the last step. What a loop reads from before it is
    held until the loop ends; and what it writes for after it, from where it begins.
    """
    spans = {INPUT: [0, 0]}
    last = (loops[0].end or len(nodes)) - 1 if loops else len(nodes) - 1
    for step, node in enumerate(nodes):
        spans[node.name] = [step, step]
        for name in node.inputs:
            made = -1 if name == INPUT else spans[name][0]
            entered = step <= last and any(made < loop.start <= step for loop in loops)
            spans[name][1] = last if entered else max(spans[name][1], step)
    if loops:
        spans[nodes[last].name][0] = min(spans[nodes[last].name][0], min(loop.start for loop in loops))
    return {name: (first, end) for name, (first, end) in spans.items()}


def span_of(
    nodes: Sequence[Node], loops: Sequence[Loop], first: int, last: int
) -> tuple[tuple[Node, ...], tuple[Loop, ...]]:
    """Nodes from number `first` up to `last` alone, which read as `INPUT` what came before, and their loops.

    Raises `InvalidShape` where the cut lies within a loop.
    """
    if any(loop.start < first or last < len(nodes) for loop in loops if loop.start < last):
        raise InvalidShape(f"a loop over fragments goes on to the end, so it cannot be cut at node {first} or {last}")
    before = {node.name for node in nodes[:first]}
    made = [
        Node(node.name, node.layer, tuple(INPUT if name in before else name for name in node.inputs))
        for node in nodes[first:last]
    ]
    inside = (loop for loop in loops if first <= loop.start < last)
    return tuple(made), tuple(Loop(loop.start - first, loop.parts, loop.slices) for loop in inside)


def with_relayouts(
    nodes: Sequence[Node], loops: Sequence[Loop], before: Mapping[int, Sequence[tuple[int, Node]]]
) -> tuple[tuple[Node, ...], tuple[Loop, ...]]:
    """Nodes and loops with the nodes of `before` put before those of the numbers given (or, beyond the last, after it), each to
    be read in place of the input of that number.

    A loop over slices begins with the node put before its first one; a loop over parts does not hold it. What comes after the
    last node is in no loop.
    """
    made: list[Node] = []
    moved: dict[int, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        first = len(made)
        inputs = list(node.inputs)
        for number, conversion in before.get(i, ()):
            made.append(conversion)
            inputs[number] = conversion.name
        moved[i] = (first, len(made))
        made.append(Node(node.name, node.layer, tuple(inputs)))
    after = [conversion for _, conversion in before.get(len(nodes), ())]
    made += after
    end = len(made) - len(after)
    return tuple(made), tuple(Loop(moved[p.start][0 if p.slices else 1], p.parts, p.slices, end) for p in loops)


def schedules(nodes: Sequence[Node], batch: int) -> Iterator[Levels]:
    """The schedules worth considering for a network's nodes and a batch of patches: breadth first first.

    At each pooling, all fragments together or one at a time; at the first one also with its convolution fused, in any
    number of parts. More in between saves less memory and costs no less.
    """
    at = poolings(nodes)
    if not at:
        yield ()
        return
    first = nodes[at[0]]
    fragments = prod(first.layer.stride)
    before = next((n for n in nodes if n.name == first.inputs[0]), None)
    choices: list[list[Level]] = [[Level(), Level(-1)] for _ in at]
    if before is not None and isinstance(before.layer, Conv):
        choices[0].append(Level(1, True))
        if batch == 1:
            choices[0] += [Level(parts, True) for parts in range(2, fragments + 1) if fragments % parts == 0]
    for chosen in product(*choices):
        held, levels = batch, []
        for i, level in zip(at, chosen, strict=True):
            held *= prod(nodes[i].layer.stride)
            parts = held if level.parts == -1 else level.parts
            held //= parts
            levels.append(Level(parts, level.fused))
        yield tuple(levels)


def describe_levels(levels: Levels) -> str:
    """A schedule in words."""
    words = []
    for number, level in enumerate(levels, 1):
        fused = "fused" if level.fused else ""
        cut = f"{level.parts} parts" if level.parts > 1 else ""
        if fused or cut:
            words.append(f"pooling {number} {' in '.join(filter(None, (fused, cut)))}")
    return "; ".join(words) or "breadth first"
