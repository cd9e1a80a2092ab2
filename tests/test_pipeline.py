"""Programs with steps on a GPU, and split ones, on the simulated device: results, memory, order, and errors."""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import pytest
from simulated import SimulatedDevice

import znni
from znni.candidate import Solved, plan_of, solve_candidate
from znni.errors import InvalidShape, RunFailed
from znni.gpu import use
from znni.gpu.ceilings import DeviceCeilings
from znni.pipeline import Pipeline
from znni.predict import Predictor
from znni.schedule import Level
from znni.solve import solve
from znni.split import SplitSolution, seconds_by_split, solve_split
from znni.walk import BOTH, CPU, Candidate, Walk

MIB = 1 << 20
#: So much faster than a CPU that every layer that can be there is.
FAST = DeviceCeilings(1e15, 1e14, 1e12, 1e12)
#: About as fast as the CPU, so that both get something to do.
EQUAL = DeviceCeilings(1e11, 4e10, 1e10, 1e10)


@pytest.fixture
def device():
    with SimulatedDevice(total_bytes=512 * MIB, seed=1) as device, use(device):
        yield device


@cache
def network(name):
    return znni.load(name, seed=3, width=4)


@cache
def truth_of(name, size):
    x = np.random.default_rng(0).standard_normal((1, 1, size, size, size), np.float32)
    return x, network(name).reference(x)


def planned(name, solved):
    plan = plan_of(
        network(name),
        solved,
        limit_bytes=2000 * MIB,
        baseline_bytes=0,
        machine={"fingerprint": "test", "kernels": "test"},
        device_limit_bytes=512 * MIB,
    )
    plan.bind(network(name))
    return plan


def error_of(out, expected):
    return np.linalg.norm(out - expected) / np.linalg.norm(expected - expected.mean(axis=(2, 3, 4), keepdims=True))


def solved_on(name, output, levels, devices=BOTH, dense_on_device=False, rates=FAST, device_bytes=512 * MIB):
    """The choice for exactly this order."""
    candidate, predictor = Candidate((output,) * 3, 1, "fragments", 2), Predictor(2, gpu=rates)
    walk = Walk(network(name), candidate, levels, dense_on_device=dense_on_device)
    solution = solve(
        walk.options(predictor, 1e-5, devices),
        2000 * MIB,
        walk.conversions(predictor, devices),
        device_limit_bytes=device_bytes,
        kept_on_host=walk.kept_on_host,
    )
    return solution and Solved(candidate, levels, walk.calls, solution)


DEPTH_FIRST = (Level(8), Level(8), Level())


@pytest.mark.parametrize(
    ("levels", "dense"),
    [((), False), (DEPTH_FIRST, False), (DEPTH_FIRST, True), ((Level(), Level(64), Level()), True)],
)
def test_a_program_on_the_gpu_computes_the_network(device, levels, dense):
    solved = solved_on("n337", 8, levels, dense_on_device=dense)
    assert any(o.device == "gpu" for o in solved.solution.options)
    plan = planned("n337", solved)
    x, expected = truth_of("n337", plan.input_patch[0])
    before = device.peak_bytes
    out = plan.run(x)
    assert error_of(out, expected) <= 2e-5
    program = plan.program()
    assert program.arena_bytes <= solved.solution.arena_bytes
    assert program.device_arena_bytes <= solved.solution.device_arena_bytes
    assert program.device_resident_bytes == solved.solution.device_resident_bytes
    assert device.peak_bytes - before <= solved.solution.device_bytes
    assert np.array_equal(plan.run(x), out)


def test_device_memory_is_given_back_with_the_program(device):
    free = device.free_bytes()
    plan = planned("n337", solved_on("n337", 8, ()))
    x, _ = truth_of("n337", plan.input_patch[0])
    plan.run(x)
    assert device.free_bytes() < free
    plan._program = None
    assert device.free_bytes() == free


@pytest.mark.parametrize("share", [2, 5])
def test_layers_are_streamed_where_there_is_less_device_memory(device, share):
    wide = solved_on("n337", 8, ())
    assert all(o.device == "gpu" and o.choice.primitive != "gpu.stream" for o in wide.solution.options)
    limit = wide.solution.device_bytes // share
    lean = solved_on("n337", 8, (), device_bytes=limit)
    assert "gpu.stream" in [o.choice.primitive for o in lean.solution.options]
    assert lean.solution.device_bytes <= limit and lean.solution.seconds >= wide.solution.seconds
    plan = planned("n337", lean)
    x, expected = truth_of("n337", plan.input_patch[0])
    device.reset_peak()
    assert error_of(plan.run(x), expected) <= 2e-5
    assert device.peak_bytes <= limit


@pytest.mark.parametrize("name", ["n337", "n926"])
def test_every_split_computes_the_network(device, name):
    candidate, predictor = Candidate(network(name).step, 1, "fragments", 2), Predictor(2, gpu=EQUAL)
    walk = Walk(network(name), candidate, ())
    for at in range(1, len(walk.nodes)):
        found = solve_split(network(name), candidate, (), at, predictor, 1e-5, (2000 * MIB, 512 * MIB))
        assert isinstance(found, SplitSolution), f"no choice with {at} layers on the CPU"
        assert all(o.device == "cpu" for o in found.parts[0].options)
        solved = Solved(candidate, (), walk.calls, found, at)
        assert solved.voxels_per_s == pytest.approx(np.prod(candidate.output) / found.seconds)
        assert split_error(name, planned(name, solved), found) <= 2e-5, f"with {at} layers on the CPU"


def split_error(name, plan, found):
    """The error of a split plan on two patches, one after the other."""
    x, expected = truth_of(name, plan.input_patch[0])
    made = plan.program()
    assert isinstance(made, Pipeline)
    assert made.arena_bytes <= found.arena_bytes and made.resident_bytes == found.resident_bytes
    assert made.device_arena_bytes <= found.device_arena_bytes
    return error_of(plan.run(np.concatenate([x] * 2)), np.concatenate([expected] * 2))


def test_the_split_is_the_best_of_all(device):
    candidate, predictor = Candidate((8, 8, 8), 1, "fragments", 2), Predictor(2, gpu=EQUAL)
    budgets = 2000 * MIB, 512 * MIB
    solved = solve_candidate(network("n926"), candidate, predictor, *budgets[:1], 2e-5, budgets[1])
    by_split = seconds_by_split(network("n926"), candidate, solved.levels, predictor, 1e-5, budgets)
    least = min(max(pair) for pair in by_split if pair)
    alone = [solve_candidate(network("n926"), candidate, Predictor(2), budgets[0]).solution.seconds]
    alone.append(solve_candidate(network("n926"), candidate, predictor, budgets[0], 2e-5, budgets[1], False).solution.seconds)
    assert solved.split is None or solved.solution.seconds <= 1.01 * least
    assert solved.solution.seconds <= 1.01 * min(*alone, least)


def test_a_cut_within_a_loop_is_refused():
    with pytest.raises(InvalidShape, match="cannot be cut"):
        Walk(network("n337"), Candidate((8, 8, 8), 1, "fragments", 2), DEPTH_FIRST, (0, 4))
    assert Walk(network("n337"), Candidate((8, 8, 8), 1, "fragments", 2), DEPTH_FIRST, (0, 2)).calls


@pytest.mark.parametrize("side", ["fill", "first", "rest", "drain"])
def test_an_error_on_either_side_ends_both(device, side, monkeypatch):
    candidate, predictor = Candidate((8, 8, 8), 1, "fragments", 2), Predictor(2, gpu=EQUAL)
    found = solve_split(network("n337"), candidate, (), 2, predictor, 1e-5, (2000 * MIB, 512 * MIB))
    walk = Walk(network("n337"), candidate, ())
    made = planned("n337", Solved(candidate, (), walk.calls, found, 2)).program()

    def broken(*_):
        raise RunFailed(f"broken: {side}")

    if side in ("first", "rest"):
        monkeypatch.setattr(made.parts[side == "rest"], "run", broken)

    def nothing(job, array):
        array[:] = 0

    fill, drain = (broken if side == name else nothing for name in ("fill", "drain"))
    with pytest.raises(RunFailed, match=f"broken: {side}"):
        made.run_all(range(5), fill, drain)


@pytest.mark.timeout(120)
def test_a_drain_that_fails_once_all_is_filled_ends_both(device):
    candidate, predictor = Candidate((8, 8, 8), 1, "fragments", 2), Predictor(2, gpu=EQUAL)
    found = solve_split(network("n337"), candidate, (), 2, predictor, 1e-5, (2000 * MIB, 512 * MIB))
    walk = Walk(network("n337"), candidate, ())
    made = planned("n337", Solved(candidate, (), walk.calls, found, 2)).program()
    last = threading.Event()

    def jobs():
        yield from range(3)
        last.set()

    def broken(job, array):
        assert last.wait(100)  # both slots are filled again, and nobody will take them
        raise RunFailed("no space left")

    with pytest.raises(RunFailed, match="no space left"):
        made.run_all(jobs(), lambda job, array: array.fill(0), broken)


def test_jobs_are_drained_in_order(device):
    candidate, predictor = Candidate((8, 8, 8), 1, "fragments", 2), Predictor(2, gpu=EQUAL)
    found = solve_split(network("n337"), candidate, (), 2, predictor, 1e-5, (2000 * MIB, 512 * MIB))
    walk = Walk(network("n337"), candidate, ())
    plan = planned("n337", Solved(candidate, (), walk.calls, found, 2))
    made = plan.program()
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal(made.input.shape, np.float32) for _ in range(5)]
    outputs = []
    seconds = made.run_all(inputs, lambda job, x: np.copyto(x, job), lambda job, out: outputs.append(out.copy()))
    assert seconds > 0
    for x, out in zip(inputs, outputs, strict=True):
        np.copyto(made.input, x)
        made.run()
        assert np.array_equal(out, made.output)


def test_the_cpu_alone_needs_no_device():
    solved = solve_candidate(network("n337"), Candidate((8, 8, 8), 1, "fragments", 2), Predictor(2), 2000 * MIB)
    assert solved.split is None and all(o.device == "cpu" for o in solved.solution.options)
    assert solved.solution.device_bytes == 0
    assert CPU == ("cpu",)
