"""The exact choice of a primitive, config and layouts for each node of a graph, within a limit on bytes.

Node after node, what matters of the past is the layout of each tensor that is still to be read: a *state*. For each state the
choices that led to it are kept that no other beats in the bytes of the largest step, resident bytes and seconds (a shortest
path through a product graph; for a chain, with one tensor alive, it is that of `znni.solve`). Bytes of a step are those of
the tensors that are alive in their layouts, conversions made for it, and its workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from znni.layouts import PLAIN
from znni.nodes import INPUT, Node
from znni.solve import Option

#: Choices that are kept of one state, the fastest ones; below it, the solution is exact.
_KEPT = 24

#: (bytes of the largest step, resident bytes, seconds, path)
_Entry = tuple[int, int, float, tuple | None]
#: Layouts of the tensors that are still to be read, by name.
_State = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class GraphSolution:
    """The chosen option of every node, in order; for each the conversions of its inputs, or None; and one after the last.

    `arena_bytes` is what tensors and workspaces take at most at once; laid out in an arena they may take more.
    """

    options: tuple[Option, ...]
    conversions: tuple[tuple[Option | None, ...], ...]
    seconds: float
    arena_bytes: int
    resident_bytes: int
    device_arena_bytes: int = 0
    device_resident_bytes: int = 0

    @property
    def parts(self) -> tuple[GraphSolution, ...]:
        """Itself: it is not split."""
        return (self,)

    @property
    def total_bytes(self) -> int:
        """Arena and resident bytes together."""
        return self.arena_bytes + self.resident_bytes

    @property
    def device_bytes(self) -> int:
        """Nothing: graphs run on the CPU."""
        return 0


def solve_graph(
    nodes: Sequence[Node],
    options: Sequence[Sequence[Option]],
    conversions: Mapping[str, Mapping[tuple[str, str], Option]],
    size: Callable[[str, str], int],
    limit_bytes: int,
) -> GraphSolution | None:
    """The fastest choice within `limit_bytes`, or None where there is none.

    Parameters
    ----------
    nodes : sequence of Node
        In the order of their calls.
    options : sequence of sequences of Option
        Of each node; `workspace_bytes` is what a call needs beside tensors.
    conversions : mapping of tensor name to {(have, wanted): Option}
        How each tensor may be converted.
    size : callable of (name, layout)
        Bytes of a tensor in a layout.
    limit_bytes : int
        Of the largest step and resident bytes together.
    """
    fastest = _solve(nodes, options, conversions, size, limit_bytes, 1)
    unbound = _solve(nodes, options, conversions, size, 1 << 62, 1)
    if fastest and unbound and fastest.seconds <= unbound.seconds:
        return fastest
    return _solve(nodes, options, conversions, size, limit_bytes, _KEPT) or fastest


def _solve(nodes, options, conversions, size, limit_bytes: int, kept: int) -> GraphSolution | None:
    last_read = {INPUT: -1} | {node.name: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        last_read |= dict.fromkeys(node.inputs, i)
    last = nodes[-1].name
    last_read[last] = len(nodes)
    fronts: dict[_State, list[_Entry]] = {((INPUT, PLAIN),): [(0, 0, 0.0, None)]}
    for i, (node, own) in enumerate(zip(nodes, options, strict=True)):
        merged: dict[_State, list[_Entry]] = {}
        for state, entries in fronts.items():
            layouts = dict(state)
            alive = sum(size(name, layout) for name, layout in state)
            for option in own:
                step = _step(node, i, option, layouts, alive, last_read, conversions, size)
                if step is None:
                    continue
                peak, resident, seconds, before, after = step
                front = merged.setdefault(after, [])
                for entry in entries:
                    made = max(entry[0], peak), entry[1] + resident, entry[2] + seconds
                    if made[0] + made[1] <= limit_bytes:
                        front.append((*made, (option, before, entry[3])))
        fronts = {state: _front(entries, kept) for state, entries in merged.items() if entries}
        if not fronts:
            return None
    return _best(fronts, conversions[last], size, last, limit_bytes)


def _step(node, i, option, layouts, alive, last_read, conversions, size):
    """Bytes of the largest step, resident bytes, seconds and conversions of a node by an option, and the state after it."""
    resident, seconds, peak, held = option.resident_bytes, option.seconds, 0, alive
    before: list[Option | None] = []
    for name in node.inputs:
        if layouts[name] == option.takes:
            before.append(None)
            continue
        conversion = conversions[name].get((layouts[name], option.takes))
        if conversion is None:
            return None
        before.append(conversion)
        held += size(name, option.takes)
        peak = max(peak, held + conversion.workspace_bytes)
        resident += conversion.resident_bytes
        seconds += conversion.seconds
        if last_read[name] == i and name not in node.inputs[len(before) :]:
            held -= size(name, layouts[name])
    peak = max(peak, held + size(node.name, option.gives) + option.workspace_bytes)
    left = {name: layout for name, layout in layouts.items() if last_read[name] > i}
    if last_read[node.name] > i:
        left[node.name] = option.gives
    return peak, resident, seconds, tuple(before), tuple(sorted(left.items()))


def _front(entries: list[_Entry], kept: int) -> list[_Entry]:
    """Entries that no other beats in all of peak, resident bytes and seconds; of many, the fastest and the leanest."""
    if kept == 1:
        return [min(entries, key=lambda e: (e[2], e[0] + e[1]))]
    front: list[_Entry] = []
    for entry in sorted(entries, key=lambda e: (e[2], e[0] + e[1])):
        if not any(k[0] <= entry[0] and k[1] <= entry[1] for k in front):
            front.append(entry)
    if len(front) > kept:
        front = [*front[: kept - 1], min(front, key=lambda e: e[0] + e[1])]
    return front


def _best(fronts, conversions, size, last: str, limit_bytes: int) -> GraphSolution | None:
    best: tuple | None = None
    for state, entries in fronts.items():
        layout = dict(state)[last]
        end = None if layout == PLAIN else conversions.get((layout, PLAIN))
        if layout != PLAIN and end is None:
            continue
        for peak, resident, seconds, path in entries:
            if end:
                peak = max(peak, size(last, layout) + size(last, PLAIN) + end.workspace_bytes)
                resident, seconds = resident + end.resident_bytes, seconds + end.seconds
            if peak + resident <= limit_bytes and (best is None or seconds < best[2]):
                best = (peak, resident, seconds, path, end)
    if best is None:
        return None
    peak, resident, seconds, path, end = best
    chosen, before = [], [(end,)]
    while path is not None:
        option, own, path = path
        chosen.append(option)
        before.append(own)
    return GraphSolution(tuple(chosen[::-1]), tuple(before[::-1]), seconds, peak, resident)
