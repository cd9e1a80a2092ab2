"""Layers on the GPU, measured in a worker whose device is simulated: bytes and results are checked, failures survived."""

from __future__ import annotations

import json
import os

import pytest
from simulated import SimulatedDevice

import znni.gpu
from tuner import device_tasks
from tuner.measure import Measurer, device_figures
from tuner.tasks import TASKS, measure_layer
from tuner.worker import TaskRaised, Worker
from znni import primitives
from znni.errors import DeviceError, DeviceLost, DeviceMemory, NoDevice, RunFailed
from znni.gpu.ceilings import measure_device_ceilings
from znni.layers import Activation, Conv, MaxPool, MaxPoolFragments, Recombine, Relayout, describe
from znni.layouts import with_layouts
from znni.load import load
from znni.machine import this_machine
from znni.solve import Choice, Option
from znni.store import Store
from znni.store_rows import NO_THREADS
from znni.timing import Timing

CONV = Conv(3, (3, 2, 3), activation=Activation.of("relu"))
SHAPE = (2, 2, 7, 8, 9)
LAYERS = [
    (CONV, SHAPE),
    (MaxPool((2, 2, 2), (2, 2, 2)), (1, 3, 6, 6, 6)),
    (MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 3, 7, 7, 7)),
    (Recombine(((2, 2, 2),)), (8, 2, 3, 4, 5)),
    (Relayout(), (1, 2, 3, 4, 5)),
]


@pytest.fixture
def device():
    with SimulatedDevice() as made, znni.gpu.use(made):
        yield made


@pytest.fixture
def simulated_workers(monkeypatch):
    """Workers whose device is simulated; they go with the test."""
    made = []

    class Simulated(Worker):
        def __init__(self, tasks: str = "tuner.tasks"):
            super().__init__("simulated_tasks")
            made.append(self)

    monkeypatch.setattr("tuner.measure.Worker", Simulated)
    yield made
    for worker in made:
        worker.close()


def payload(name, layer=CONV, shape=SHAPE, **changes):
    own = primitives.get(name)
    usual = {
        "layer": describe(layer),
        "shape": shape,
        "primitive": name,
        "config": with_layouts(own.configs(layer, shape)[0], *own.layouts[0]),
        "threads": 2,
        "cap_s": 0.01,
        "check": True,
    }
    return json.loads(json.dumps(usual | changes))


def measured(request, samples=None):
    return measure_layer(request, (samples if samples is not None else []).append)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: getattr(value, "kind", None))
def test_every_primitive_is_measured_and_right(device, layer, shape):
    found = primitives.candidates(layer, shape, "gpu")
    assert found
    for primitive in found:
        samples = []
        result = measured(payload(primitive.name, layer, shape), samples)
        timing = Timing.from_dict(result["timing"])
        assert timing.samples == tuple(samples) and timing.median_s > 0
        assert (result["clock"], result["simulated"]) == ("device", True)
        assert result["cold_s"] >= result["prepare_s"] >= 0 and result["wall_s"] > 0
        assert result["relative_l2"] <= primitive.tolerance_of(payload(primitive.name, layer, shape)["config"])
        assert 0 <= result["measured_device_bytes"] <= result["predicted_device_bytes"] + 2 * 256
        figures = device_figures(result)
        assert figures.predicted_device_bytes == result["predicted_device_bytes"]
        assert device.memory.used_bytes == 0


def some_conv():
    return next(p.name for p in primitives.candidates(CONV, SHAPE, "gpu") if p.layouts == (("device", "device"),))


@pytest.mark.parametrize(
    ("what", "error", "later"),
    [
        ("allocate", DeviceMemory, False),
        ("kernel", DeviceError, False),
        ("launch", DeviceError, False),
        ("launch", DeviceLost, True),
        ("copy", DeviceError, True),
        ("copy", DeviceLost, False),
    ],
)
def test_a_failure_is_raised_and_gives_all_memory_back(device, what, error, later):
    device.fail_next(what, error, later=later)
    with pytest.raises(error, match="as a test wanted"):
        measured(payload(some_conv()))
    assert device.memory.used_bytes == 0
    assert not device.ffts
    if error is not DeviceLost:
        assert measured(payload(some_conv()))["relative_l2"] < 1e-4


def test_a_layer_that_is_too_large_says_so(monkeypatch):
    with SimulatedDevice(64 << 10) as small, znni.gpu.use(small):
        with pytest.raises(DeviceMemory):
            measured(payload(some_conv(), shape=(1, 2, 24, 24, 24)))
        assert small.memory.used_bytes == 0


def test_more_device_memory_than_said_is_found_out(device, monkeypatch):
    name = some_conv()
    call = type(primitives.get(name)).prepare

    def greedy(self, *arguments):
        operator = call(self, *arguments)
        compute = operator.compute
        held = []

        def more(*arrays):
            held.append(device.allocate(1 << 20))
            compute(*arrays)

        operator.compute = more
        return operator

    monkeypatch.setattr(type(primitives.get(name)), "prepare", greedy)
    with pytest.raises(RunFailed, match=r"MiB on the device, more than the .* MiB that it said it would"):
        measured(payload(name))


def test_wrong_and_missing_values_are_found_out(device, monkeypatch):
    name = some_conv()
    with pytest.raises(RunFailed, match="computed something else"):
        measured(payload(name, tolerance=0.0))
    monkeypatch.setattr("tuner.device_layer.DeviceLayer.call", lambda self: None)
    with pytest.raises(RunFailed, match="unwritten or not finite"):
        measured(payload(name))


def test_the_device_is_told_and_has_no_ceilings(device):
    facts = TASKS["device"]({}, print)
    assert facts["simulated"] and facts["total_bytes"] == device.total_bytes >= facts["free_bytes"]
    json.dumps(facts)
    with pytest.raises(DeviceError, match="never speed"):
        TASKS["device_ceilings"]({}, print)
    with pytest.raises(DeviceError, match="never speed"):
        measure_device_ceilings(device)


def test_without_a_device_the_error_says_what_is_missing():
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a device")
    with pytest.raises(NoDevice):
        device_tasks.device({}, print)


# through worker, measurer and store


def option(name, seconds=0.01):
    own = payload(name)
    return Option(Choice(name, own["config"]), seconds, 0, 0)


@pytest.fixture
def network():
    return load("n337", seed=1, width=2)


@pytest.fixture
def measurer(device, simulated_workers, network, tmp_path):
    with Store(tmp_path / "store.db") as store:
        made = Measurer(network, store, this_machine(), 1 << 30, "r", gpu_memory_bytes=1 << 30)
        yield made
        made.close()


def test_timings_of_a_simulated_device_are_refused(measurer):
    with pytest.raises(ValueError, match="never speed"):
        measurer.layer(CONV, SHAPE, option(some_conv()), 1)
    with pytest.raises(TaskRaised, match="never speed"):
        measurer.gpu_ceilings()
    assert measurer.store.measurements() == []


@pytest.fixture
def accepting(measurer, monkeypatch):
    """A measurer that takes its device for a real one."""
    monkeypatch.setattr(Measurer, "_device_is_simulated", lambda self: False)
    return measurer


def test_what_the_store_keeps_of_a_layer_on_the_gpu(accepting):
    found = accepting.layer(CONV, SHAPE, option(some_conv()), 2)
    (row,) = accepting.store.measurements()
    assert row.key.device == "gpu" and row.key.threads == NO_THREADS and row.clock == "device"
    assert row.median_s == found.seconds and row.wall_s > 0 and row.cold_s > 0
    assert row.predicted_device_bytes >= 0 and row.measured_device_bytes <= row.predicted_device_bytes + 512
    assert found in accepting.known(1) and found in accepting.known(7)
    assert accepting.layer(CONV, SHAPE, option("cpu.direct"), 2) not in accepting.known(1)


@pytest.mark.parametrize(
    ("what", "error"), [("launch", "DeviceError"), ("launch", "DeviceLost"), ("allocate", "DeviceMemory")]
)
def test_a_failing_device_costs_one_measurement(accepting, simulated_workers, what, error):
    (worker,) = simulated_workers
    accepting.layer(Conv(2, (2, 2, 2)), SHAPE, option(some_conv()), 1)
    first = worker.pid
    worker.call("fail_next", {"what": what, "error": error}, timeout_s=60)
    assert accepting.layer(CONV, SHAPE, option(some_conv()), 1) is None
    assert "as a test wanted" in accepting.last_failure and accepting.failures == 1
    rows = accepting.store.measurements()[1:]
    if error == "DeviceMemory":  # others may have held it: another time it may do
        assert rows == []
    else:
        assert "as a test wanted" in rows[0].failed
    assert accepting.layer(CONV, SHAPE, option(some_conv()), 1) is None, "it is not tried again"
    assert accepting.layer(Conv(2, (1, 2, 2)), SHAPE, option(some_conv()), 1)
    assert (worker.pid == first) == (error != "DeviceLost"), "a lost device goes with its process"
    assert worker.call("used_bytes", {}, timeout_s=60) == {"bytes": 0}
