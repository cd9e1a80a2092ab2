"""Schedules: which nodes run how often, on what, and what is held meanwhile."""

from functools import cache
from math import prod

import numpy as np
import pytest

import znni
from znni.candidate import Solved, plan_of, solve_candidate
from znni.errors import InvalidShape
from znni.layers import Relayout
from znni.nodes import Node
from znni.predict import Predictor
from znni.schedule import (
    Level,
    Loop,
    calls_of,
    describe_levels,
    lifetimes,
    loops_of,
    schedules,
    with_relayouts,
)
from znni.solve import solve
from znni.walk import Candidate, Walk, least_live_bytes, walks

MIB = 1 << 20
NETWORK = znni.load("n337", seed=3, width=3)
DEPTH_FIRST = (Level(8, True), Level(8), Level(8))


def plan_in_order(network, output, levels, batch=1):
    """A plan of the candidate in exactly this order."""
    candidate, predictor = Candidate(output, batch, "fragments", 2), Predictor(2)
    walk = Walk(network, candidate, levels)
    solution = solve(walk.options(predictor, 1.0), 2000 * MIB, walk.conversions(predictor))
    solved = Solved(candidate, levels, walk.calls, solution)
    plan = plan_of(
        network, solved, limit_bytes=2000 * MIB, baseline_bytes=0, machine={"fingerprint": "test", "kernels": "test"}
    )
    plan.bind(network)
    return plan


@cache
def truth_of(batch, patch):
    """An input, and what the network makes of it."""
    x = np.random.default_rng(0).standard_normal((batch, 1, *patch), np.float32)
    return x, NETWORK.reference(x)


@pytest.mark.parametrize(
    ("levels", "batch"),
    [
        ((Level(8), Level(), Level()), 1),
        ((Level(), Level(64), Level()), 1),
        ((Level(), Level(), Level(16)), 2),
        ((Level(4), Level(2), Level(8)), 2),
        ((Level(2), Level(4), Level(64)), 1),
        ((Level(1, True), Level(), Level()), 2),
        ((Level(2, True), Level(32), Level()), 1),
        (DEPTH_FIRST, 1),
    ],
    ids=lambda value: describe_levels(value) if isinstance(value, tuple) else None,
)
def test_every_order_computes_the_same(levels, batch):
    plan = plan_in_order(NETWORK, (8, 8, 16), levels, batch)
    x, truth = truth_of(batch, plan.input_patch)
    error = np.linalg.norm(plan.run(x) - truth) / np.linalg.norm(truth - truth.mean(axis=(0, 2, 3, 4), keepdims=True))
    assert error < 5e-6
    program = plan.program()
    assert program.arena_bytes <= plan.memory["arena_bytes"]
    assert program.resident_bytes == plan.memory["resident_bytes"]
    for number, call in enumerate(program.calls):
        assert sum(step.node == number for step in program.steps) == call.repeats


def test_a_run_of_some_rounds_tells_of_all():
    program = plan_in_order(NETWORK, (8, 8, 8), DEPTH_FIRST).program()
    whole = program.run_timed()
    some = program.run_timed(outer=1)
    assert len(whole) == len(some) == len(program.calls) and min(some) > 0
    assert {step.outer for step in program.steps} == set(range(8))


def test_depth_first_holds_less():
    network, candidate = znni.load("n337", seed=3, width=16), Candidate((64, 64, 64), 1, "fragments", 2)
    held = {walk.levels: walk.least_bytes for walk in walks(network, candidate)}
    assert min(held.values()) < held[Level(), Level(), Level()] / 4
    assert least_live_bytes(network, candidate) == min(held.values())


def test_a_tight_limit_is_met_depth_first_and_a_wide_one_breadth_first():
    candidate, predictor = Candidate((32, 32, 32), 1, "fragments", 2), Predictor(2)
    wide = solve_candidate(NETWORK, candidate, predictor, 4000 * MIB)
    least = least_live_bytes(NETWORK, candidate)
    tight = solve_candidate(NETWORK, candidate, predictor, least + 8 * MIB)
    assert wide.solution.seconds <= tight.solution.seconds
    assert tight.solution.total_bytes <= least + 8 * MIB
    assert prod(level.parts for level in tight.levels) > prod(level.parts for level in wide.levels)


def test_what_a_loop_reads_is_held_until_it_ends():
    nodes = NETWORK.lowered("fragments", DEPTH_FIRST)
    names = [node.name for node in nodes]
    assert names == ["1_conv", "3_conv", "4_max_pool", "5_conv", "6_max_pool", "7_conv", "8_conv", "9_conv", "10_conv",
                     "recombine"]  # fmt: skip
    loops = loops_of(nodes, DEPTH_FIRST)
    assert loops == (Loop(0, 8, False), Loop(3, 8, True), Loop(5, 8, True))
    spans = lifetimes(nodes, loops)
    assert spans["input"] == (0, 9) and spans["recombine"] == (0, 9)
    assert spans["1_conv"] == (0, 1) and spans["3_conv"] == (1, 2)
    assert spans["4_max_pool"] == (2, 9) and spans["6_max_pool"] == (4, 9) and spans["5_conv"] == (3, 4)
    calls = calls_of(nodes, loops, (1, 1, *(8 + 84 for _ in range(3))))
    assert [call.repeats for call in calls] == [8, 8, 8, 64, 64, 512, 512, 512, 512, 512]
    assert calls[-1].out_shape == (1, 3, 8, 8, 8) and calls[3].in_shape[0] == 1 and calls[3].source[0] == 8


def test_conversions_go_before_a_loop_over_parts_and_into_one_over_slices():
    nodes = NETWORK.lowered("fragments", DEPTH_FIRST)
    loops = loops_of(nodes, DEPTH_FIRST)
    before = {i: [(0, Node(f"relayout_{i}", Relayout(), nodes[i].inputs))] for i in (0, 3)}
    before[len(nodes)] = [(0, Node(f"relayout_{len(nodes)}", Relayout(), (nodes[-1].name,)))]
    found, moved = with_relayouts(nodes, loops, before)
    assert [n.name for n in found][:2] == ["relayout_0", "1_conv"] and found[-1].name == f"relayout_{len(nodes)}"
    assert found[1].inputs == ("relayout_0",)
    end = len(found) - 1  # the last one is in no loop
    assert moved == (Loop(1, 8, False, end), Loop(4, 8, True, end), Loop(7, 8, True, end))
    assert found[moved[1].start].name == "relayout_3"


def test_schedules_begin_breadth_first_and_differ():
    found = list(schedules(NETWORK.lowered("fragments"), 1))
    assert found[0] == (Level(), Level(), Level())
    assert DEPTH_FIRST in found and len(set(found)) == len(found)
    assert not any(level.fused and level.parts > 1 for levels in schedules(NETWORK.lowered("fragments"), 2) for level in levels)
    assert list(schedules(NETWORK.lowered("filter"), 1)) == [()]


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(InvalidShape, match="a level for each of the 3 poolings, got 1"):
        NETWORK.lowered("fragments", (Level(),))
    with pytest.raises(InvalidShape, match="cannot be cut into 3 parts"):
        Walk(NETWORK, Candidate((8, 8, 8), 1, "fragments", 1), (Level(3), Level(), Level()))
    assert describe_levels(DEPTH_FIRST) == "pooling 1 fused in 8 parts; pooling 2 8 parts; pooling 3 8 parts"
    assert describe_levels(()) == "breadth first"
