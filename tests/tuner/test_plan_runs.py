"""Runs of plans that compute on a device: samples of one after another and of a stream, and the memory of both sides."""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np
import pytest
from device_plans import MIB, gpu_plan
from simulated import SimulatedDevice

import znni.gpu
from tuner.plan_device import device_of, opened_device, opened_for, opened_within, planned_device_bytes
from tuner.plan_runs import PlanRuns
from tuner.tasks import baseline, run_plan
from tuner.units import ALL
from znni.errors import DeviceError, DeviceLost, DeviceMemory, MemoryLimit, NoDevice
from znni.load import load

#: `znni.gpu` has a function of that name, too.
CURRENT = sys.modules["znni.gpu.current"]


@pytest.fixture
def device():
    with SimulatedDevice() as made, znni.gpu.use(made):
        yield made


@pytest.fixture
def network(small):
    return load(small)


@pytest.mark.parametrize("split", [None, 1, 2])
def test_a_plan_on_a_device_runs_end_to_end(device, network, split):
    plan = gpu_plan(network, split=split)
    assert device_of(plan) == ("gpu" if split is None else "split")
    samples = []
    found = run_plan({"plan": plan.to_dict(), "rounds": 3, "cap_s": 30.0}, samples.append)
    assert found["seconds"] == samples and len(samples) == 3 and min(samples) > 0
    assert set(found["steps"]) == {layer.name for layer in plan.layers}
    assert found["voxels"] == np.prod(plan.output_patch) and found["share"] == 1.0
    assert 0 < found["peak_device_bytes"] <= planned_device_bytes(plan)
    assert znni.gpu.is_open(), "a device that was open stays open"


class Stream:
    """A pipeline of two parts that take so long, one of them in a thread of its own."""

    def __init__(self, first_s: float, second_s: float):
        self.input, self.output, self.device, self.loops = np.zeros((1, 1, 4, 4, 4), np.float32), None, object(), ()
        self.first_s, self.second_s = first_s, second_s
        self.filled = 0

    def run_all(self, jobs, fill, drain):
        for job in jobs:
            fill(job, self.input)
            self.filled += 1
            time.sleep(self.second_s + (self.first_s if job == 0 else 0))
            drain(job, self.output)


class Split:
    split = 1


def test_the_first_patch_of_a_stream_is_no_sample():
    program, samples = Stream(0.2, 0.001), []
    runs = PlanRuns(Split(), program, np.ones(10, np.float32))
    runs.take(4, 60.0, None, samples.append)
    assert runs.seconds == samples and len(samples) == 4 and program.filled == 5
    assert max(samples) < 0.2
    assert (program.input == 1).all()
    assert len(runs.sample(2)) == 2


def test_a_cap_leaves_a_stream_one_sample():
    runs = PlanRuns(Split(), Stream(0.0, 0.001), np.ones(10, np.float32))
    runs.take(9, 1e-9, None, lambda seconds: None)
    assert len(runs.seconds) == 1


@pytest.mark.parametrize("split", [None, 1])
@pytest.mark.parametrize("error", [DeviceError, DeviceLost, DeviceMemory])
def test_a_failing_plan_gives_its_memory_back(device, network, split, error):
    plan = gpu_plan(network, split=split)
    device.fail_next("allocate" if error is DeviceMemory else "launch", error, later=error is DeviceLost)
    with pytest.raises(error, match="as a test wanted"):
        run_plan({"plan": plan.to_dict(), "rounds": 1}, lambda seconds: None)
    gc.collect()  # what the error's traceback refers to
    if error is not DeviceLost:
        assert device.memory.used_bytes == 0


def test_a_plan_that_does_not_fit_on_the_device_is_refused(network):
    with SimulatedDevice() as large, znni.gpu.use(large):
        plan = gpu_plan(network)
    with SimulatedDevice(planned_device_bytes(plan) // 2) as device, znni.gpu.use(device):
        with pytest.raises(MemoryLimit, match="--gpu-memory"):
            run_plan({"plan": plan.to_dict(), "rounds": 1}, lambda seconds: None)
        assert device.memory.used_bytes == 0


def test_the_baseline_of_a_process_with_a_device(device, network):
    source = {"source": network.source, "seed": network.seed, "width": network.width}
    assert baseline({"network": source, "gpu": True}, print)["resident_bytes"] > 0


def test_a_device_is_opened_for_plans_that_need_one_and_closed_after_them(network, monkeypatch):
    with SimulatedDevice() as device, znni.gpu.use(device):
        plan = gpu_plan(network)
    opened = []

    def open_device():
        opened.append(SimulatedDevice())
        monkeypatch.setattr(CURRENT, "_current", opened[-1])
        return opened[-1]

    monkeypatch.setattr(CURRENT, "open_device", open_device)
    with opened_for(plan) as own:
        assert own is opened[0] and znni.gpu.current() is own
        with opened_device() as same:
            assert same is own
        assert znni.gpu.is_open()
    assert not znni.gpu.is_open()
    with pytest.raises(DeviceError, match="closed"):
        own.allocate(1)
    with pytest.raises(ZeroDivisionError), opened_for(plan):
        _ = 1 / 0
    assert not znni.gpu.is_open() and len(opened) == 2


def test_a_plan_on_the_cpu_opens_nothing(plan):
    from znni.plan import Plan

    with opened_for(Plan.load(plan)) as device:
        assert device is None and not znni.gpu.is_open()


def test_without_a_device_a_plan_for_one_says_what_is_missing(network, monkeypatch):
    with SimulatedDevice() as device, znni.gpu.use(device):
        plan = gpu_plan(network)

    def none(number=0):
        raise NoDevice("no NVIDIA driver: libcuda.so.1 is missing")

    monkeypatch.setattr(CURRENT, "open_device", none)
    with pytest.raises(NoDevice, match="libcuda"):
        run_plan({"plan": plan.to_dict(), "rounds": 1}, lambda seconds: None)


def test_limits_on_device_memory(device):
    with opened_within(None) as limit:
        assert limit is None
    with opened_within(ALL) as limit:
        assert 0 < limit <= device.free_bytes() and limit % (256 * MIB) == 0
    with opened_within(300 * MIB) as limit:
        assert limit == 300 * MIB
    with pytest.raises(MemoryLimit, match="use a lower --gpu-memory, or all"), opened_within(2 << 30):
        pass


@pytest.mark.parametrize("split", [None, 1])
def test_the_commands_on_a_plan_for_a_device(cli, device, network, volume, split):
    gpu_plan(network, split=split).save("gpu.json")
    done = cli("run", "gpu.json", volume, "out.npy", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert 0 < data["device_peak_bytes"] <= data["device_limit_bytes"] == 256 * MIB
    truth = network.reference(np.load(volume)[None, None])[0]
    assert np.linalg.norm(np.load("out.npy") - truth) <= 2e-5 * np.linalg.norm(truth)
    assert "on the GPU" in cli("run", "gpu.json", volume, "out.npy", "--overwrite").out
    assert json.loads(cli("verify", "gpu.json", "--json").out)["relative_l2"] <= 2e-5
    explained = cli("explain", "gpu.json")
    assert explained.code == 0 and "GPU memory" in explained.out
    assert ("the rest on the GPU" in explained.out) == (split is not None)
