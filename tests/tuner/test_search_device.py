"""Whole tunings with a GPU, which is simulated: limits kept on both sides, and a search that goes on when the device fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from device_plans import MIB, gpu_plan
from simulated import SimulatedDevice

import znni.gpu
from tuner.measure import Measurer
from tuner.request import Request
from tuner.search import tune
from tuner.worker import Worker
from znni.gpu.ceilings import DeviceCeilings
from znni.load import load
from znni.machine import this_machine
from znni.store import Store

#: Fast enough that the model wants it.
CEILINGS = DeviceCeilings(1e14, 1e13, 1e11, 1e11)
REQUEST = Request(
    memory_bytes=4000 * MIB, threads=2, budget_s=40.0, output=(8, 8, 8), gpu_memory_bytes=128 * MIB, split=False
)


class Simulated(Worker):
    """A worker whose device is simulated."""

    def __init__(self, tasks: str = "tuner.tasks"):
        super().__init__("simulated_tasks")


@pytest.fixture
def store(folder):
    with Store() as opened:
        opened.save_device_ceilings(this_machine().fingerprint, CEILINGS)
        yield opened


@pytest.fixture
def device(monkeypatch):
    """The simulated device of this process, which is taken for a real one; workers have their own."""
    monkeypatch.setattr("tuner.measure.Worker", Simulated)
    monkeypatch.setattr(Measurer, "_device_is_simulated", lambda self: False)
    # a simulated device is slow: few layers are measured, each for a moment, and the search ends early
    monkeypatch.setattr("tuner.measure.CAP_S", 0.02)
    monkeypatch.setattr("tuner.measure.PLAN_CAP_S", 0.02)
    monkeypatch.setattr("tuner.search._IDLE_TRIALS", 2)
    monkeypatch.setattr("tuner.layer_measurements.LayerMeasurements.alternatives", lambda *_: None)
    with SimulatedDevice() as made, znni.gpu.use(made):
        yield made


def test_a_plan_beyond_its_limit_on_the_device_fails(device, store, small):
    network = load(small)
    plan = gpu_plan(network)
    measurer = Measurer(network, store, this_machine(), 4000 * MIB, "r", gpu_memory_bytes=1000)
    try:
        assert measurer.plan(plan, 60.0) is None
        assert "bytes on the device is above the limit of 1000" in measurer.last_failure
        (run,) = store.plan_runs()
        assert run.failed == measurer.last_failure and run.peak_device_bytes > 1000
        assert run.predicted_device_bytes >= run.peak_device_bytes and run.device == "gpu"
    finally:
        measurer.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("split", "what", "error"),
    [
        (True, "launch", "DeviceLost"),
        pytest.param(False, "launch", "DeviceError", marks=pytest.mark.heavy),
        pytest.param(False, "allocate", "DeviceMemory", marks=pytest.mark.heavy),
        pytest.param(False, None, None, marks=pytest.mark.heavy),
    ],
)
def test_a_search_goes_on_when_the_device_fails(device, store, small, tmp_path, monkeypatch, split, what, error):
    """The devices of the first three processes fail once each: at the baseline, the default plan and the layers."""
    if what:
        (tmp_path / "processes").mkdir()
        fault = {"what": what, "error": error, "processes": 3, "folder": str(tmp_path / "processes")}
        monkeypatch.setenv("SIMULATED_FAULT", json.dumps(fault))
    events = []
    plan = tune(load(small), replace(REQUEST, split=split), store, progress=events.append)
    assert plan.search["complete"] and plan.verification["relative_l2"] <= REQUEST.tolerance
    assert plan.throughput["measured_voxels_per_s"] > 0
    assert plan.memory["measured_peak_bytes"] <= REQUEST.memory_bytes
    assert plan.limits["device_bytes"] == REQUEST.gpu_memory_bytes
    json.dumps(plan.to_dict())

    failed = [row.failed for row in (*store.measurements(), *store.plan_runs()) if row.failed]
    assert all("as a test wanted" in reason for reason in failed)
    assert (events[-1]["failed"] > 0) == bool(what), "the device did fail"
    assert bool(failed) == (what == "launch") or error == "DeviceMemory"
    ran = [run for run in store.plan_runs() if run.device != "cpu" and not run.failed]
    assert ran and all(0 < run.peak_device_bytes <= REQUEST.gpu_memory_bytes for run in ran)
