"""The tuner's tasks: layers and plans measured in a worker, their bytes and results checked; no time is asserted."""

import json

import numpy as np
import pytest

from tuner import tasks
from tuner.seeded_layer import seeded_layer
from tuner.tasks import TASKS, measure_layer, run_plan
from tuner.worker import TaskRaised, Worker
from znni import primitives
from znni.default_plan import default_plan
from znni.errors import MemoryLimit, PlanMismatch, RunFailed, Unsupported
from znni.layers import Activation, Conv, MaxPool, MaxPoolFragments, Recombine, describe
from znni.layouts import with_layouts
from znni.load import load
from znni.primitives.base import Memory, Operator, Primitive
from znni.process_memory import resident_bytes
from znni.timing import Timing

MIB = 1 << 20
CONV = Conv(6, (3, 2, 3), activation=Activation.of("relu"))


@pytest.fixture(scope="module")
def worker():
    with Worker() as made:
        yield made


def payload(primitive, layer, shape, **changes):
    own = primitives.get(primitive)
    usual = {
        "layer": describe(layer),
        "shape": shape,
        "primitive": primitive,
        "config": with_layouts(own.configs(layer, shape)[0], *own.layouts[0]),
        "threads": 2,
        "cap_s": 0.05,
        "check": True,
    }
    return json.loads(json.dumps(usual | changes))


def test_ping(worker):
    assert worker.call("ping", {"a": 1}, timeout_s=60) == {"a": 1}


def test_ceilings(worker):
    found = worker.call("ceilings", {"threads": 1, "l3_bytes": 16 * MIB}, timeout_s=60)
    assert found["flop_per_s"] > 1e8 and found["bytes_per_s"] > 1e7 and found["disturbed"] in (True, False)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (CONV, (2, 5, 9, 10, 11)),
        (MaxPool((2, 2, 2), (2, 2, 2)), (1, 8, 10, 10, 10)),
        (MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 8, 11, 11, 11)),
        (Recombine(((2, 2, 2),)), (8, 3, 5, 6, 7)),
    ],
)
def test_every_primitive_is_measured_and_right(worker, layer, shape):
    for primitive in primitives.candidates(layer, shape):
        samples = []
        found = worker.call(
            "measure_layer", payload(primitive.name, layer, shape), timeout_s=60, on_sample=samples.append
        )
        timing = Timing.from_dict(found["timing"])
        assert timing.samples == tuple(samples) and timing.median_s > 0
        assert found["relative_l2"] <= primitive.tolerance
        # what a library takes for itself, once a process, is not its operator's
        assert primitive.foreign or found["measured_bytes"] <= found["predicted_bytes"] + tasks.MEMORY_SLACK_BYTES


class Scripted(Primitive):
    """A softmax that misbehaves as its config says."""

    name = "cpu.scripted"
    kind = "softmax"

    def supports(self, layer, shape):
        return "too many channels" if shape[1] > 99 else None

    def memory(self, layer, shape, config, threads):
        return Memory(host_workspace_bytes=config.get("says", 0))

    def cost(self, layer, shape, config):
        raise NotImplementedError

    def prepare(self, layer, weights, shape, config, threads):
        return ScriptedOperator(self, layer, shape, config, threads)


class ScriptedOperator(Operator):
    resident_arrays = ()

    def compute(self, x, out, workspace):
        workspace[:] = 1
        np.ones(self.config.get("wants", 1), np.uint8)
        powers = np.exp(x)
        out[:] = powers / powers.sum(axis=1, keepdims=True) * np.float32(self.config.get("times", 1))
        if self.config.get("forgets"):
            out[0, 0, 0, 0, 0] = np.nan


@pytest.fixture
def scripted(monkeypatch):
    made = Scripted()
    monkeypatch.setattr(tasks, "get", lambda name: made)

    def measure(shape=(1, 4, 6, 7, 8), **config):
        call = {"layer": {"kind": "softmax"}, "shape": shape, "primitive": made.name, "config": config}
        return measure_layer(call | {"threads": 1, "cap_s": 0.02, "check": True}, lambda seconds: None)

    return measure


def test_a_primitive_that_keeps_its_word(scripted):
    found = scripted(says=32 * MIB)
    assert found["predicted_bytes"] == 32 * MIB
    assert abs(found["measured_bytes"] - 32 * MIB) < 2 * MIB
    assert found["relative_l2"] < 1e-6


def test_more_bytes_than_said_are_found_out(scripted):
    with pytest.raises(RunFailed, match=r"cpu\.scripted took 6\d\.\d MiB, more than the 32\.0 MiB that it said"):
        scripted(says=32 * MIB, wants=32 * MIB)


def test_wrong_values_are_found_out(scripted):
    with pytest.raises(RunFailed, match=r"computed something else: relative L2 error 1\.0e-03, allowed 1e-05"):
        scripted(times=1.001)


def test_values_left_unwritten_are_found_out(scripted):
    with pytest.raises(RunFailed, match="left values unwritten or not finite"):
        scripted(forgets=True)


def test_what_a_primitive_does_not_support_is_refused(scripted):
    with pytest.raises(Unsupported, match="too many channels"):
        scripted(shape=(1, 100, 2, 2, 2))


def test_unchecked_there_is_no_error(worker):
    found = worker.call("measure_layer", payload("cpu.direct", CONV, (1, 5, 9, 9, 9), check=False), timeout_s=60)
    assert found["relative_l2"] is None


def test_inputs_follow_from_the_seed():
    x, weights = seeded_layer(CONV, (1, 5, 6, 6, 6), 3)
    again, same = seeded_layer(CONV, (1, 5, 6, 6, 6), 3)
    other, _ = seeded_layer(CONV, (1, 5, 6, 6, 6), 4)
    assert (x == again).all() and (weights["weight"] == same["weight"]).all() and not (x == other).all()
    assert weights["weight"].shape == (6, 5, 3, 2, 3) and weights["bias"].shape == (6,)
    assert 0.1 < weights["weight"].std() * 90**0.5 < 2


def test_large_inputs_repeat_what_was_drawn(monkeypatch):
    monkeypatch.setattr("tuner.seeded_layer._DRAWN", 101)
    x, _ = seeded_layer(CONV, (1, 2, 5, 6, 7), 3)
    flat = x.reshape(-1)
    assert np.isfinite(x).all() and (flat[101:202] == flat[:101]).all() and (flat[404:] == flat[:16]).all()
    assert len(np.unique(flat)) == 101


@pytest.fixture(scope="module")
def network():
    return load("n337", width=3)


@pytest.fixture(scope="module")
def plan(network):
    return default_plan(network, threads=2, volume=(8, 8, 8))


def test_a_plan_runs_end_to_end(worker, plan):
    samples = []
    request = {"plan": plan.to_dict(), "rounds": 3, "seed": 1}
    found = worker.call("run_plan", request, timeout_s=120, on_sample=samples.append)
    assert found["seconds"] == samples and 1 <= len(samples) <= 3
    assert found["single"] == (len(samples) == 1)
    assert found["voxels"] == np.prod(plan.output_patch) * plan.batch
    assert set(found["steps"]) == {layer.name for layer in plan.layers}
    assert sum(found["steps"].values()) > 0
    program_bytes = plan.memory["arena_bytes"] + plan.memory["resident_bytes"]
    assert program_bytes - MIB < found["peak_bytes"] - found["baseline_bytes"] < program_bytes + 16 * MIB


def test_a_plan_file_is_read_and_a_cap_leaves_one_sample(worker, plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    found = worker.call("run_plan", {"plan": str(tmp_path / "plan.json"), "rounds": 9, "cap_s": 1e-9}, timeout_s=120)
    assert found["single"] and found["interval_s"] is None


def test_the_peak_is_that_of_a_process_that_ran_nothing_else(worker, plan):
    worker.call("ping", {}, timeout_s=60)
    before = worker.pid
    worker.call("run_plan", {"plan": plan.to_dict(), "rounds": 1}, timeout_s=120)
    assert worker.pid != before


def test_a_plan_for_another_network_or_too_large_is_refused(worker, plan):
    with pytest.raises(TaskRaised, match="was made for n337") as caught:
        source = plan.network | {"width": 2}
        worker.call("run_plan", {"plan": plan.to_dict(), "network": source, "rounds": 1}, timeout_s=120)
    assert caught.value.kind == PlanMismatch.__name__
    with pytest.raises(TaskRaised, match="limit of 8 MiB") as caught:
        worker.call("run_plan", {"plan": plan.to_dict(), "rounds": 1, "limit_bytes": 8 * MIB}, timeout_s=120)
    assert caught.value.kind == MemoryLimit.__name__


def test_a_plan_whose_output_is_not_finite_fails(plan, monkeypatch):
    from znni.program import Program

    timed = Program.run_timed

    def spoilt(self):
        seconds = timed(self)
        self.output[..., -1] = np.inf
        return seconds

    monkeypatch.setattr(Program, "run_timed", spoilt)
    with pytest.raises(RunFailed, match="not finite"):
        run_plan({"plan": plan.to_dict(), "rounds": 1}, lambda seconds: None)


def test_the_baseline_counts_interpreter_modules_and_network(worker, network):
    source = {"source": network.source, "seed": network.seed, "width": network.width}
    found = worker.call("baseline", {"network": source}, timeout_s=120)
    assert 10 * MIB < found["resident_bytes"] <= found["peak_bytes"] < 4 * resident_bytes() + 512 * MIB
    assert found["weight_bytes"] == network.weight_bytes


def test_what_is_imported_for_a_run_is_counted(worker, plan):
    lean, full = (
        worker.call("run_plan", {"plan": plan.to_dict(), "rounds": 1, "as_run": as_run}, timeout_s=120)
        for as_run in (False, True)
    )
    assert full["baseline_bytes"] > lean["baseline_bytes"]


def test_every_task_says_what_it_takes():
    names = {"ping", "ceilings", "device", "device_ceilings", "measure_layer", "run_plan", "baseline"}
    assert set(TASKS) == names
    assert all(task.__doc__ for task in TASKS.values())
