"""What is peculiar to streaming: the memory it keeps to, every way to cut a layer, and copies beside the work."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from primitives.cases import Case
from primitives.truth import truth
from simulated import SimulatedDevice

import znni.gpu
from znni.errors import DeviceMemory, Unsupported
from znni.gpu.sublayers import layer_bytes
from znni.layers import Activation, Conv
from znni.layouts import tensor_bytes
from znni.primitives import get, gpu_stream
from znni.primitives.gpu_stream import STREAM

from .calls import Call, advance, deaf

SMALL = Case(Conv(5, (3, 2, 3), activation=Activation("tanh", 1.7159, 2 / 3)), (3, 3, 9, 8, 11))
DIRECT = {"conv": "gpu.direct", "with": dict(get("gpu.direct").configs(SMALL.layer, SMALL.shape)[-1])}
#: Large enough for a fiftieth of them to be worth the name.
LAYERS = {
    "few channels": Case(Conv(6, (3, 3, 3), activation=Activation("relu")), (1, 1, 150, 24, 26)),
    "many fragments": Case(Conv(4, (2, 2, 2)), (24, 6, 16, 17, 18)),
    "many channels": Case(Conv(12, (3, 2, 2), activation=Activation("elu", 0.5)), (1, 12, 120, 12, 14)),
}


def pieces(batch=1, out=1, into=1, z=1, weights="resident") -> dict:
    return {"batch": batch, "out": out, "in": into, "z": z, "weights": weights}


@cache
def solved(case: Case):
    values, weights = case.arrays(0)
    return values, weights, truth(case.layer, weights, values)


def error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def called(device, case: Case, config) -> np.ndarray:
    values, weights, _ = solved(case)
    with Call(device, STREAM.prepare(case.layer, weights, case.shape, config, 1)) as call:
        return call.of(values)


def device_bytes(memory) -> int:
    return memory.device_resident_bytes + memory.device_workspace_bytes


@pytest.mark.parametrize("share", [2, 4, 8, 16, 32, 50])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_computed_in_a_share_of_its_bytes(name, share):
    """The device has no more memory than that, from a half down to a fiftieth of input, output and weights."""
    case = LAYERS[name]
    cap = layer_bytes(case.layer, case.shape) // share
    with SimulatedDevice(cap, seed=share) as device, znni.gpu.use(device):
        assert tensor_bytes(case.shape) + tensor_bytes(case.layer.output_shape(case.shape)) > cap
        configs = STREAM.configs(case.layer, case.shape)
        need = {n: device_bytes(STREAM.memory(case.layer, case.shape, c, 1)) for n, c in enumerate(configs)}
        fitting = [n for n in need if need[n] + 512 <= cap]
        assert fitting, f"none of {len(configs)} configs fits into {cap} bytes: {need}"
        found = called(device, case, configs[fitting[0]])
        assert need[fitting[0]] <= device.peak_bytes <= cap
        assert error(found, solved(case)[2]) < STREAM.tolerance_of(configs[fitting[0]])


def test_what_is_not_cut_does_not_fit():
    case = LAYERS["few channels"]
    _, weights, _ = solved(case)
    with SimulatedDevice(layer_bytes(case.layer, case.shape) // 2) as device, znni.gpu.use(device):
        operator = STREAM.prepare(case.layer, weights, case.shape, DIRECT | pieces(), 1)
        with pytest.raises(DeviceMemory):
            Call(device, operator)
        assert device.peak_bytes <= device.total_bytes


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize(
    "cut",
    [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (3, 1, 1, 3),
        (1, 2, 1, 1),
        (1, 5, 1, 2),
        (1, 1, 2, 1),
        (1, 1, 3, 2),
        (2, 3, 2, 4),
        (9,) * 4,
    ],
)
def test_any_cut_computes_the_same(device, cut, weights):
    """Pieces of equal and of unequal size, one after the other and all at once, more than there is to cut."""
    assert error(called(device, SMALL, DIRECT | pieces(*cut, weights)), solved(SMALL)[2]) < 5e-6


@pytest.mark.parametrize(
    ("conv", "layer"),
    [
        ("gpu.direct", Conv(3, (2, 3, 2), stride=(2, 1, 3), dilation=(2, 1, 2))),
        ("gpu.direct", Conv(3, (1, 3, 2), stride=(3, 2, 1), padding=(0, 2, 1))),
        ("gpu.fft_tiled", Conv(3, (3, 4, 2), activation=Activation("sigmoid"))),
        ("gpu.fft_pruned", Conv(3, (3, 4, 2), activation=Activation("leaky_relu", 0.1))),
        ("gpu.cudnn", Conv(3, (3, 2, 2), dilation=(2, 1, 1))),
    ],
)
@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_any_primitive_and_layer_can_be_cut(device, conv, layer, weights):
    case = Case(layer, (2, 4, 12, 9, 8))
    inner = get(conv).configs(layer, case.shape)[0]
    for cut in ((2, 2, 2, 3), (1, 3, 1, 2), (1, 1, 4, 5)):
        found = called(device, case, {"conv": conv, "with": dict(inner)} | pieces(*cut, weights))
        assert error(found, solved(case)[2]) < 1e-5


def test_rows_too_far_apart_for_one_copy_go_one_by_one(device, monkeypatch):
    monkeypatch.setattr(gpu_stream, "_MOST_PITCH_BYTES", 1000)
    found = called(device, SMALL, DIRECT | pieces(1, 2, 2, 3))
    assert error(found, solved(SMALL)[2]) < 5e-6


def test_a_call_waits_for_nothing(device):
    """All of it is enqueued, to the last copy, before any of it is done."""
    values, weights, expected = solved(SMALL)
    with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, DIRECT | pieces(3, 1, 1, 2), 1)) as call:
        call.give(values)
        device.synchronise()
        call.enqueue()
        assert np.isnan(call.out).all()
        assert not any(stream.empty for stream in (device.uploads, device.compute, device.downloads))
        assert error(call.result(), expected) < 5e-6


def test_copies_and_work_go_side_by_side(device):
    """While one input is computed the next is copied in and the result before it copied out; no stream gets further ahead."""
    values, weights, expected = solved(SMALL)
    with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, DIRECT | pieces(3, 1, 1, 2), 1)) as call:
        call.give(values)
        device.synchronise()
        call.enqueue()
        assert advance(device.uploads) == advance(device.compute) == 0, (
            "it begins when it is its turn, and not without input"
        )
        assert advance(device.uploads) == 2, "two inputs are copied in, of which none is computed yet"
        assert advance(device.compute) == 2, "and both are computed, of which none is copied out yet"
        assert advance(device.uploads) == 2, "the next two inputs take their place"
        assert advance(device.compute) == 0, "but there is no place for their results"
        assert advance(device.downloads) == 2
        assert [advance(stream) for stream in (device.compute, device.downloads, device.uploads)] == [2] * 3
        assert error(call.result(), expected) < 5e-6


def test_weights_are_copied_in_beside_the_work(device):
    config = DIRECT | pieces(1, 5, 1, 1, "streamed")
    values, weights, expected = solved(SMALL)
    with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, config, 1)) as call:
        call.give(values)
        device.synchronise()
        call.enqueue()
        assert advance(device.uploads) == advance(device.compute) == 0
        assert advance(device.uploads) == 3, "the input, and the weights of two sub-layers"
        assert advance(device.compute) == 2
        assert advance(device.uploads) == 2
        assert error(call.result(), expected) < 5e-6


@pytest.mark.parametrize(
    ("waiting", "recording"),
    [("compute", "uploads"), ("uploads", "compute"), ("downloads", "compute"), ("compute", "downloads")],
)
@pytest.mark.parametrize("config", [pieces(3, 1, 1, 4), pieces(1, 5, 3, 1, "streamed")], ids=["planes", "channels"])
def test_without_an_event_results_are_wrong(device, monkeypatch, waiting, recording, config):
    """The simulated streams do what they may in any order: no wait is there in vain, and that all are there is seen."""
    values, weights, expected = solved(SMALL)
    with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, DIRECT | config, 1)) as call:
        for _ in range(3):
            assert error(call.of(values), expected) < 5e-6
        deaf(monkeypatch, getattr(device, waiting), getattr(device, recording))
        wrong = 0
        for _ in range(12):
            call.out[:] = np.nan
            call.enqueue()
            device.synchronise()
            wrong += not error(call.out, expected) < 5e-6
    assert wrong


def test_compute_is_past_all_of_it(device):
    """What is enqueued on `compute` after a call finds the workspace free and the result on the host."""
    values, weights, expected = solved(SMALL)
    for config in (pieces(3, 1, 1, 4), pieces(1, 5, 3, 1, "streamed")):
        with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, DIRECT | config, 1)) as call:
            call.give(values)
            call.enqueue()
            device.compute.zero(call.workspace)
            assert error(call.result(), expected) < 5e-6
            call.enqueue()
            call.enqueue()
            assert error(call.result(), expected) < 5e-6


def test_a_second_call_begins_after_the_first_work_on_compute(device):
    """The input may be what the work before it on `compute` makes."""
    values, weights, expected = solved(SMALL)
    config = DIRECT | pieces(3, 1, 1, 4)
    source = device.allocate(values.nbytes)
    device.compute.copy(source.array, values)
    for _ in range(5):
        with Call(device, STREAM.prepare(SMALL.layer, weights, SMALL.shape, config, 1)) as call:
            call.x[:] = np.nan
            device.compute.copy(call.x, source.array.view(np.float32, values.shape))
            call.enqueue()
            assert error(call.result(), expected) < 5e-6


def test_memory_is_that_of_pieces_and_of_their_operators(device):
    layer, shape = Conv(8, (3, 3, 3)), (2, 8, 20, 20, 20)
    own = get("gpu.direct").memory(Conv(4, (3, 3, 3)), (1, 4, 20, 20, 20), DIRECT["with"], 1).device_resident_bytes
    x, result = tensor_bytes((1, 4, 20, 20, 20)), tensor_bytes((1, 4, 18, 18, 18))
    for weights, kept, host in (("resident", 4, 0), ("streamed", 2, 4)):
        memory = STREAM.memory(layer, shape, DIRECT | pieces(2, 2, 2, 1, weights), 1)
        assert memory.device_resident_bytes == kept * own
        assert memory.host_resident_bytes == host * own
        assert memory.device_workspace_bytes == sum(-(-n // 256) * 256 for n in (x, x, result, result, result))


def test_smaller_shares_take_less_memory(device):
    for case in LAYERS.values():
        configs = [c for c in STREAM.configs(case.layer, case.shape) if c["conv"] == "gpu.direct"]
        need = [device_bytes(STREAM.memory(case.layer, case.shape, c, 1)) for c in configs]
        assert need == sorted(need, reverse=True) and len(need) == 4
        assert need[-1] < layer_bytes(case.layer, case.shape) / 50


@pytest.mark.parametrize(
    "change",
    [{"conv": "cpu.direct"}, {"with": 3}, {"batch": 0}, {"in": "2"}, {"weights": "lost"}],
)
def test_configs_that_make_no_sense_are_refused(device, change):
    with pytest.raises(Unsupported, match=r"a config of gpu.stream has a conv of .* got .*; see configs\(\)"):
        STREAM.prepare(SMALL.layer, solved(SMALL)[1], SMALL.shape, DIRECT | pieces() | change, 1)


def test_costs_are_those_of_the_link(device):
    """Whatever the cut, all that is computed is computed; pieces along z, or of both kinds of channels, copy more."""
    layer, shape = Conv(8, (3, 3, 3)), (2, 8, 20, 20, 20)
    plain = STREAM.cost(layer, shape, DIRECT | pieces())
    assert plain.moved_bytes == tensor_bytes(shape) + tensor_bytes(layer.output_shape(shape))
    for cut in product((1, 2), repeat=3):
        assert STREAM.cost(layer, shape, DIRECT | pieces(*cut)).moved_bytes == plain.moved_bytes
    slabs = STREAM.cost(layer, shape, DIRECT | pieces(z=6))
    assert slabs.flop == plain.flop and slabs.moved_bytes > plain.moved_bytes
    assert STREAM.cost(layer, shape, DIRECT | pieces(1, 4, 4)).moved_bytes > plain.moved_bytes
