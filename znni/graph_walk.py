"""A candidate of a graph: its calls, and the best choice for them within a limit on bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from znni.arena import aligned
from znni.errors import InvalidShape
from znni.graph_order import peak_of
from znni.graph_solve import GraphSolution, solve_graph
from znni.layers import Relayout, Shape
from znni.layouts import LAYOUTS, PLAIN, tensor_bytes
from znni.nodes import INPUT, Node
from znni.schedule import Call, calls_of, with_relayouts

if TYPE_CHECKING:
    from znni.predict import Predictor
    from znni.solve import Option

#: An arena that takes more than the tensors alive at once is solved for again, so often.
_TRIES = 4


def relayouts_of(
    nodes: Sequence[Node], conversions: Sequence[Sequence[Option | None]]
) -> dict[int, list[tuple[int, Node]]]:
    """Nodes of the conversions that come before each node, by its number, with the number of the input converted."""
    found: dict[int, list[tuple[int, Node]]] = {}
    for i, own in enumerate(conversions):
        for j, option in enumerate(own):
            if option is not None:
                reads = nodes[i].inputs[j] if i < len(nodes) else nodes[-1].name
                target = nodes[i].name if i < len(nodes) else "output"
                found.setdefault(i, []).append((j, Node(relayout_name(target, j), Relayout(), (reads,))))
    return found


def relayout_name(target: str, number: int) -> str:
    """What a plan calls the conversion of the input of that number of a node."""
    return f"relayout_{target}" if number == 0 else f"relayout_{target}.{number}"


class GraphWalk:
    """A candidate of a graph, breadth first.

    Parameters
    ----------
    nodes : sequence of Node
        Lowered, in the order of their calls.
    shape : Shape
        Of the input.
    """

    def __init__(self, nodes: Sequence[Node], shape: Shape):
        self.nodes, self.shape = tuple(nodes), shape
        self.calls: tuple[Call, ...] = calls_of(nodes, (), shape)
        self._shapes = {INPUT: shape} | {call.node.name: call.out_shape for call in self.calls}

    def size(self, name: str, layout: str = PLAIN) -> int:
        """Bytes of a tensor."""
        return aligned(tensor_bytes(self._shapes[name], layout))

    @property
    def least_bytes(self) -> int:
        """Bytes that no choice can go below: plain tensors alone."""
        return peak_of(self.nodes, self.size)

    def solve(self, predictor: Predictor, most_error: float, limit_bytes: int) -> GraphSolution | None:
        """The fastest choice whose arena and residents stay within `limit_bytes`.

        Raises `InvalidShape` where no primitive computes one of the layers.
        """
        options = []
        for call in self.calls:
            every = predictor.options(call.node.layer, call.in_shape)
            if not every:
                raise InvalidShape(f"no primitive here computes layer {call.node.name}: {call.node.layer}")
            own = predictor.best_options(call.node.layer, call.in_shape, most_error)
            if not own:  # none is accurate enough: the most accurate there are
                least = min(o.error for o in every)
                own = predictor.best_options(call.node.layer, call.in_shape, least)
            options.append([o for o in own if o.device == "cpu"])
        conversions = {name: _conversions(predictor, shape) for name, shape in self._shapes.items()}
        limit = limit_bytes
        for _ in range(_TRIES):
            solution = solve_graph(self.nodes, options, conversions, self.size, limit)
            if solution is None:
                return None
            arena_bytes = self._arena_bytes(solution)
            if arena_bytes + solution.resident_bytes <= limit_bytes:
                return replace(solution, arena_bytes=arena_bytes)
            limit = min(limit, solution.arena_bytes + solution.resident_bytes) - (
                arena_bytes + solution.resident_bytes - limit_bytes
            )
        return None

    def _arena_bytes(self, solution: GraphSolution) -> int:
        """What the program's arena will be, by the code that lays it out."""
        from znni.program import arena_layout

        before = relayouts_of(self.nodes, solution.conversions)
        nodes, _ = with_relayouts(self.nodes, (), before)
        layouts = {INPUT: PLAIN} | {n.name: o.gives for n, o in zip(self.nodes, solution.options, strict=True)}
        shapes = dict(self._shapes)
        spaces = {n.name: o.workspace_bytes for n, o in zip(self.nodes, solution.options, strict=True)}
        for i, own in before.items():
            for j, node in own:
                option = solution.conversions[i][j]
                layouts[node.name], shapes[node.name] = option.gives, shapes[node.inputs[0]]
                spaces[node.name] = option.workspace_bytes
        sizes = {name: tensor_bytes(shape, layouts[name]) for name, shape in shapes.items()}
        _, placed = arena_layout(nodes, (), sizes, [spaces[node.name] for node in nodes])
        return placed.total_bytes


def _conversions(predictor: Predictor, shape: Shape) -> Mapping[tuple[str, str], Option]:
    found: dict[tuple[str, str], Option] = {}
    for option in predictor.options(Relayout(), shape):
        pair = (option.takes, option.gives)
        if option.device != "cpu" or not set(pair) <= set(LAYOUTS) or pair[0] == pair[1]:
            continue
        if pair not in found or option.seconds < found[pair].seconds:
            found[pair] = option
    return found
