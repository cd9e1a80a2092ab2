"""Benchmarks on the GPU, in processes whose device is simulated: rows, both clocks, both memories, and what is refused."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from device_plans import FAST, gpu_plan
from simulated import SimulatedDevice

import znni.gpu
from reports.layers import GPU_LISTS, LISTS
from tuner.bench import device_of_list
from tuner.contender import layer_spec, plan_spec
from tuner.contest import Contender
from tuner.layer_string import parse_layer
from tuner.peers import parse_peers, peer_device, peer_names
from tuner.worker import Worker
from znni.errors import ZnniError
from znni.load import load
from znni.machine import this_machine
from znni.primitives import get
from znni.store import Store
from znni.store_rows import NO_THREADS

LAYER = "2>3 k3 in7 relu"


@pytest.fixture
def device():
    with SimulatedDevice() as made, znni.gpu.use(made):
        yield made


@pytest.fixture
def processes(device, monkeypatch):
    """Every process that is started has a simulated device, whose ceilings are known."""

    class Simulated(Worker):
        def __init__(self, tasks: str = "tuner.tasks"):
            super().__init__({"tuner.tasks": "simulated_tasks", "tuner.contender": "simulated_contender"}[tasks])

    for module in ("bench", "contest", "measure"):
        monkeypatch.setattr(f"tuner.{module}.Worker", Simulated)


@pytest.fixture
def ceilings(folder):
    with Store() as store:
        store.save_device_ceilings(this_machine().fingerprint, FAST)


def gpu_config(name):
    layer, shape = parse_layer(LAYER)
    return dict(get(name).configs(layer, shape)[0]) | {"takes": "device", "gives": "device"}


@pytest.fixture
def contender(processes):
    made = Contender("it", layer_spec(*parse_layer(LAYER), 1, primitive="gpu.direct", config=gpu_config("gpu.direct")))
    yield made
    made.close()


def test_a_contender_on_the_gpu(contender):
    assert contender.prepare(60), contender.failure
    facts = contender.facts
    assert facts["cold_s"] > 0 and facts["first_s"] > 0 and facts["simulated"]
    assert 0 <= facts["measured_device_bytes"] <= facts["predicted_device_bytes"] + 512
    contender.turn_s = 0.01
    taken = contender.turn(60)
    assert len(taken) == len(contender.walls) and min(taken) > 0
    contender.check()
    assert contender.relative_l2 < 1e-5


@pytest.mark.parametrize("error", ["DeviceMemory", "DeviceLost", "DeviceError"])
def test_a_contender_whose_device_fails_is_out(contender, error):
    assert contender.prepare(60), contender.failure
    contender._ask("fail_next", {"what": "launch" if error != "DeviceMemory" else "allocate", "error": error}, 60)
    contender.start_over(contender.spec)
    assert contender.turn(60) is None
    assert "as a test wanted" in contender.failure
    contender.start_over(contender.spec)
    assert contender.turn(60), contender.failure


def test_rows_of_a_layer_on_the_gpu(cli, processes, ceilings, monkeypatch):
    monkeypatch.setattr("tuner.bench_record.SIMULATED", "gpu")  # as if it were a real one
    found = cli("bench", LAYER, "--device", "gpu", "--primitive", "gpu.direct,gpu.fft", "--peers", "none",
                "--seconds", "0.2", "--json")  # fmt: skip
    assert found.code == 0, found.err
    data = json.loads(found.out)
    assert data["device"]["simulated"] and data["ceilings"]["upload_bytes_per_s"] == FAST.upload_bytes_per_s
    rows = {row["name"]: row for row in data["rows"]}
    assert set(rows) == {"gpu.direct", "gpu.fft"}
    for row in rows.values():
        assert row["failure"] is None, row["failure"]
        assert row["device"] == "gpu" and row["cold_s"] > 0 and len(row["wall_s"]) == len(row["seconds"])
        assert row["relative_l2"] < 1e-4 and row["measured_device_bytes"] <= row["predicted_device_bytes"] + 512
        assert "--device gpu" in row["reproduce"]
    with Store() as store:
        stored = store.measurements(threads=NO_THREADS)
    assert {(m.key.primitive, m.key.device, m.clock) for m in stored} == {
        ("gpu.direct", "gpu", "device"), ("gpu.fft", "gpu", "device"),
    }  # fmt: skip
    assert all(m.cold_s > 0 and m.wall_s > 0 for m in stored)
    words = shlex.split(rows["gpu.direct"]["reproduce"])
    text = cli(*words[1:], "--seconds", "0.05")
    assert text.code == 0, text.err
    assert "on the GPU" in text.out


def test_timings_of_a_simulated_device_are_refused(cli, processes, ceilings):
    with pytest.raises(ValueError, match="never speed"):
        cli("bench", LAYER, "--device", "gpu", "--primitive", "gpu.direct", "--peers", "none", "--seconds", "0.1")
    with Store() as store:
        assert store.measurements() == []


def test_a_plan_on_the_gpu(processes, small, device):
    plan = gpu_plan(load(small), split=1)
    plan.save("gpu.json")
    ours = Contender("plan", plan_spec("gpu.json"), 0.01)
    try:
        assert ours.prepare(60), ours.failure
        assert ours.facts["voxels"] == np.prod(plan.output_patch) and ours.facts["peak_device_bytes"] > 0
        assert min(ours.turn(60)) > 0
    finally:
        ours.close()


def test_requests_for_a_gpu_that_is_not_there(cli, monkeypatch):
    if parse_peers("all", "gpu"):
        pytest.skip("there is a GPU")
    found = cli("bench", LAYER, "--device", "gpu", "--peers", "none")
    assert found.code == 2 and found.err.count("\n") == 1
    found = cli("tune", "n337", "--memory", "1GiB", "--gpu-memory", "all")
    assert found.code == 2 and found.err.count("\n") == 1


def test_primitives_are_timed_where_they_compute(cli, processes, ceilings):
    found = cli("bench", LAYER, "--device", "gpu", "--primitive", "cpu.direct", "--peers", "none")
    assert found.code == 2 and "give --device cpu" in found.err
    found = cli("bench", LAYER, "--primitive", "gpu.direct", "--peers", "none")
    assert found.code == 2 and "give --device gpu" in found.err


def test_lists_for_the_gpu():
    assert device_of_list("gpu-published") == "gpu" and device_of_list("published") == device_of_list("n337") == "cpu"
    assert set(GPU_LISTS) <= set(LISTS)


def test_peers_on_the_gpu_are_named_only_where_there_is_one():
    assert peer_device("torch.cuda/contiguous/tf32") == "gpu" and peer_device("torch/contiguous") == "cpu"
    assert not any(peer_device(peer) == "gpu" for peer in parse_peers("all"))
    if parse_peers("all", "gpu"):
        pytest.skip("there is a GPU")
    assert not any(name.startswith("torch.cuda") for name in peer_names())
    with pytest.raises(ZnniError, match=r"torch\.cuda needs"):
        parse_peers("torch.cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("text", [LAYER, "3 pool2 in9", "4 softmax in4"])
def test_peers_on_the_gpu_compute_the_layer(text):
    pytest.importorskip("torch", reason="PyTorch is the peer")
    peers = parse_peers("all", "gpu")
    if not peers:
        pytest.skip("PyTorch has no GPU here")
    layer, shape = parse_layer(text)
    for peer in peers:
        contender = Contender(peer, layer_spec(layer, shape, 1, peer=peer), 0.01)
        try:
            assert contender.prepare(120), contender.failure
            assert min(contender.turn(60)) > 0 and min(contender.walls) > 0
            contender.check()
            assert contender.relative_l2 < (3e-3 if peer.endswith("tf32") else 1e-5)
        finally:
            contender.close()


def test_a_request_with_a_gpu_is_another_one():
    from tuner.request import Request

    network, machine = load("n337", width=2), this_machine()
    plain = Request(1 << 30)
    digests = {
        request.digest(network, machine)
        for request in (
            plain, replace(plain, gpu_memory_bytes=1 << 30), replace(plain, gpu_memory_bytes=2 << 30),
            replace(plain, gpu_memory_bytes=1 << 30, split=False),
        )
    }  # fmt: skip
    assert len(digests) == 4
