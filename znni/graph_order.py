"""In what order a graph's nodes run: one that holds little at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from znni.nodes import INPUT, Node


def peak_of(nodes: Sequence[Node], size: Callable[[str], int]) -> int:
    """Bytes of all tensors that are alive at once, at most, when nodes run in this order."""
    last = {node.name: i for i, node in enumerate(nodes)} | {INPUT: 0}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys(node.inputs, i)
    alive, peak = {INPUT}, 0
    for i, node in enumerate(nodes):
        alive.add(node.name)
        peak = max(peak, sum(size(name) for name in alive))
        alive = {name for name in alive if last[name] > i}
    return peak


def lean_order(nodes: Sequence[Node], size: Callable[[str], int]) -> tuple[Node, ...]:
    """`nodes` in the order they are in, or in one that finishes branch after branch, those that hold more beside their
    result first (Sethi & Ullman, "The generation of optimal code for arithmetic expressions", 1970), whichever peaks lower.
    """
    by_name = {node.name: node for node in nodes}
    need: dict[str, int] = {INPUT: size(INPUT)}
    for node in nodes:  # an upper bound: what a branch shares with others is counted in each
        own = sorted(set(node.inputs), key=lambda name: size(name) - need[name])
        held, most = 0, 0
        for name in own:
            most = max(most, held + need[name])
            held += size(name)
        need[node.name] = max(most, held + size(node.name))
    order: list[Node] = []
    done = {INPUT}
    stack = [nodes[-1].name]
    while stack:
        name = stack[-1]
        missing = [n for n in by_name[name].inputs if n not in done] if name not in done else []
        if name in done or not missing:
            stack.pop()
            if name not in done:
                done.add(name)
                order.append(by_name[name])
            continue
        stack.append(max(missing, key=lambda n: need[n] - size(n)))
    if len(order) < len(nodes) or peak_of(order, size) >= peak_of(nodes, size):
        return tuple(nodes)
    return tuple(order)
