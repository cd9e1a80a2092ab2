"""The exact choice in a graph, against every choice there is; and the order of its nodes."""

from __future__ import annotations

import random
from itertools import product

import pytest

from znni.graph_order import lean_order, peak_of
from znni.graph_solve import solve_graph
from znni.layers import Add, Softmax
from znni.layouts import BLOCKED, PLAIN
from znni.nodes import INPUT, Node
from znni.solve import Choice, Option

from .graphs import padded_unet


def small_graph(rng: random.Random) -> tuple[Node, ...]:
    names, nodes = [INPUT], []
    for i in range(5):
        if len(names) > 1 and rng.random() < 0.5:
            inputs = tuple(rng.sample(names, 2))
            nodes.append(Node(f"n{i}", Add(2), inputs))
        else:
            nodes.append(Node(f"n{i}", Softmax(), (rng.choice(names[-2:]),)))
        names.append(nodes[-1].name)
    return tuple(nodes)


def some_options(rng: random.Random) -> list[Option]:
    return [
        Option(
            Choice(f"cpu.p{i}", {}), rng.randint(1, 20), 0, rng.randint(0, 3), takes, gives, workspace_bytes=rng.randint(0, 9)
        )
        for i, (takes, gives) in enumerate(rng.choices(list(product((PLAIN, BLOCKED), repeat=2)), k=4))
    ] + [Option(Choice("cpu.plain", {}), 25, 0, 0)]


def brute_force(nodes, options, conversions, size, limit):
    """Seconds of the fastest choice that fits, tensor by tensor as a program would hold them."""
    best = None
    for chosen in product(*options):
        seconds, resident, peak = 0, 0, 0
        layouts = {INPUT: PLAIN} | {n.name: o.gives for n, o in zip(nodes, chosen, strict=True)}
        steps = []  # (reads, makes, bytes made, workspace)
        for node, o in zip(nodes, chosen, strict=True):
            reads = []
            for j, name in enumerate(node.inputs):
                if layouts[name] == o.takes:
                    reads.append(name)
                    continue
                c = conversions[name][layouts[name], o.takes]
                steps.append(((name,), f"{node.name}.{j}", size(name, o.takes), c.workspace_bytes))
                reads.append(f"{node.name}.{j}")
                seconds, resident = seconds + c.seconds, resident + c.resident_bytes
            steps.append((tuple(reads), node.name, size(node.name, o.gives), o.workspace_bytes))
            seconds, resident = seconds + o.seconds, resident + o.resident_bytes
        last = nodes[-1].name
        if layouts[last] != PLAIN:
            c = conversions[last][layouts[last], PLAIN]
            steps.append(((last,), "end", size(last, PLAIN), c.workspace_bytes))
            seconds, resident = seconds + c.seconds, resident + c.resident_bytes
        read_last = {}
        for i, (reads, made, _, _) in enumerate(steps):
            read_last[made] = i
            read_last |= dict.fromkeys(reads, i)
        read_last[steps[-1][1]] = len(steps)
        held = {INPUT: size(INPUT, PLAIN)}
        for i, (_, made, nbytes, space) in enumerate(steps):
            held[made] = nbytes
            peak = max(peak, sum(held.values()) + space)
            held = {name: n for name, n in held.items() if read_last.get(name, -1) > i}
        if peak + resident <= limit and (best is None or seconds < best):
            best = seconds
    return best


@pytest.mark.parametrize("seed", range(25))
def test_equals_brute_force(seed):
    rng = random.Random(seed)
    nodes = small_graph(rng)
    options = [some_options(rng) for _ in nodes]
    sizes = {name: rng.randint(1, 20) for name in (INPUT, *(n.name for n in nodes))}
    conversions = {
        name: {
            (a, b): Option(Choice("cpu.relayout", {}), rng.randint(1, 4), 0, 0, a, b, workspace_bytes=rng.randint(0, 3))
            for a, b in ((PLAIN, BLOCKED), (BLOCKED, PLAIN))
        }
        for name in sizes
    }

    def size(name, layout):
        return sizes[name] + (3 if layout == BLOCKED else 0)

    for limit in (1000, 90, 70, 55, 40):
        found = solve_graph(nodes, options, conversions, size, limit)
        expected = brute_force(nodes, options, conversions, size, limit)
        assert (found.seconds if found else None) == expected
        if found:
            assert found.total_bytes <= limit


def test_the_order_that_holds_less_is_taken():
    # a long branch of large tensors with a small result, and one that is large: the first one first
    wide = [Node("w1", Softmax()), Node("w2", Softmax(), ("w1",)), Node("w3", Softmax(), ("w2",))]
    flat = [Node("f", Softmax())]
    end = Node("end", Add(2), ("w3", "f"))
    sizes = {"input": 1, "w1": 100, "w2": 100, "w3": 1, "f": 50, "end": 1}
    given = (*flat, *wide, end)
    found = lean_order(given, sizes.get)
    assert peak_of(found, sizes.get) < peak_of(given, sizes.get)
    assert [n.name for n in found] == ["w1", "w2", "w3", "f", "end"]


def test_a_u_net_keeps_its_order():
    network = padded_unet()
    assert [n.name for n in network.lowered("strided") if "." not in n.name] == [n.name for n in network.nodes]
