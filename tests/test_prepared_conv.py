"""Convolutions prepared for kept weights: what is chosen, what is computed, what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from primitives.truth import truth

import znni
from znni import fastest as timing_all
from znni.errors import InvalidShape, MemoryLimit, Unsupported
from znni.fastest import fastest
from znni.layers import Activation, Conv
from znni.layouts import PLAIN
from znni.machine import this_machine
from znni.prepared_conv import Option, conv_layer, named_padding
from znni.primitives import candidates, get
from znni.store import Store
from znni.store_rows import MeasurementKey
from znni.timing import Timing

SHAPE = (2, 3, 9, 10, 12)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A store of its own, which is not there yet."""
    path = tmp_path / "store.db"
    monkeypatch.setenv("ZNNI_STORE", str(path))
    return path


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(SHAPE, np.float32)
    weight = rng.standard_normal((5, 3, 3, 3, 3), np.float32) / 9
    return x, weight, rng.standard_normal(5, np.float32)


def close(y: np.ndarray, expected: np.ndarray) -> bool:
    return y.shape == expected.shape and np.linalg.norm(y - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("given", "layer"),
    [
        ({}, Conv(5, (3, 3, 3))),
        ({"padding": "valid"}, Conv(5, (3, 3, 3))),
        ({"padding": "same", "activation": "relu"}, Conv(5, (3, 3, 3), padding=(1, 1, 1), activation=Activation("relu"))),
        ({"padding": 1, "stride": (2, 1, 2)}, Conv(5, (3, 3, 3), (2, 1, 2), (1, 1, 1))),
        ({"padding": "same", "dilation": (1, 2, 3)}, Conv(5, (3, 3, 3), padding=(1, 2, 3), dilation=(1, 2, 3))),
        ({"padding": (0, 2, 1), "activation": ("elu", 1.5)},
         Conv(5, (3, 3, 3), padding=(0, 2, 1), activation=Activation("elu", 1.5))),
    ],
)  # fmt: skip
def test_computes(arrays, given, layer):
    x, weight, bias = arrays
    op = znni.prepare_conv3d(weight, bias, x.shape, **given)
    expected = truth(layer, {"weight": weight, "bias": bias}, x)
    assert op.layer == layer
    assert op.output_shape == expected.shape
    assert close(op(x), expected)
    out = np.empty(expected.shape, np.float32)
    assert op(x, out) is out
    assert np.array_equal(op(x), out)
    assert np.array_equal(znni.conv3d(x, weight, bias, **given), out)


def test_every_primitive_by_name(arrays):
    x, weight, bias = arrays
    layer = Conv(5, (3, 3, 3))
    expected = truth(layer, {"weight": weight, "bias": bias}, x)
    for primitive in candidates(layer, SHAPE):
        if (PLAIN, PLAIN) in primitive.layouts:
            for config in primitive.configs(layer, SHAPE):
                op = znni.prepare_conv3d(weight, bias, SHAPE, primitive=primitive.name, config=config, threads=1)
                assert (op.primitive, op.config, op.threads) == (primitive.name, dict(config), 1)
                assert op.memory == primitive.memory(layer, SHAPE, config, 1)
                assert close(op(x), expected), config
            first = znni.prepare_conv3d(weight, bias, SHAPE, primitive=primitive.name)
            assert first.config == dict(primitive.configs(layer, SHAPE)[0])
            assert primitive.name in repr(first)


def test_inputs_are_taken_as_they_come(arrays):
    """Other types, memory orders and read-only arrays; weights that change later, and no bias."""
    x, weight, _ = arrays
    kept = weight.copy()
    expected = truth(Conv(5, (3, 3, 3)), {"weight": weight, "bias": np.zeros(5)}, x)
    for primitive in ("cpu.direct", "cpu.fft_tiled"):
        op = znni.prepare_conv3d(weight, None, SHAPE, primitive=primitive)
        weight[:] = 0
        assert close(op(x.astype(np.float64)), expected)
        assert close(op(np.asfortranarray(x)), expected)
        still = x.copy()
        still.flags.writeable = False
        assert close(op(still), expected)
        weight[:] = kept
    assert close(znni.conv3d(x.tolist(), kept.tolist()), expected)


def test_threads_take_turns(arrays):
    x, weight, bias = arrays
    op = znni.prepare_conv3d(weight, bias, SHAPE, primitive="cpu.fft_tiled", threads=1)
    inputs = [x * i for i in range(1, 9)]
    expected = [op(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(op, inputs * 5))
    assert all(np.array_equal(y, expected[i % 8]) for i, y in enumerate(found))


def test_auto_makes_no_store_and_takes_what_it_knows(arrays, store):
    _, weight, bias = arrays
    guessed = znni.prepare_conv3d(weight, bias, SHAPE, threads=1)
    assert not store.exists()
    layer, machine = guessed.layer, this_machine()
    other = get("cpu.direct" if guessed.primitive != "cpu.direct" else "cpu.fft_tiled")
    config = other.configs(layer, SHAPE)[0]
    with Store() as kept:
        key = MeasurementKey(layer, SHAPE, other.name, config, 1, machine.fingerprint, machine.kernels)
        row = kept.open_measurement(key)
        row.add_sample(1e-12)
        row.finish(Timing((1e-12,), (), 1, 1e-12, 0.0, None))
    known = znni.prepare_conv3d(weight, bias, SHAPE, threads=1)
    assert (known.primitive, known.config) == (other.name, dict(config))
    assert znni.prepare_conv3d(weight, bias, SHAPE, threads=2).primitive == guessed.primitive


def test_fastest_times_all_and_auto_finds_it(arrays, store, monkeypatch):
    x, weight, bias = arrays
    monkeypatch.setattr(timing_all, "SCREEN_S", 0.01)
    op = znni.prepare_conv3d(weight, bias, SHAPE, primitive="fastest", threads=1)
    assert close(op(x), truth(op.layer, {"weight": weight, "bias": bias}, x))
    with Store() as kept:
        rows = kept.measurements(machine=this_machine().fingerprint, threads=1, layer=op.layer)
        best = min(kept.measured(this_machine().fingerprint, 1, op.layer), key=lambda row: row.seconds)
    plain = {p.name for p in candidates(op.layer, SHAPE) if not p.foreign and (PLAIN, PLAIN) in p.layouts}
    assert {row.key.primitive for row in rows} == plain
    assert all(row.finished and row.samples and row.key.shape == SHAPE for row in rows)
    assert (best.primitive, best.config) == (op.primitive, op.config)
    again = znni.prepare_conv3d(weight, bias, SHAPE, threads=1)
    assert (again.primitive, again.config) == (op.primitive, op.config)


def test_fastest_gives_up_on_the_hopeless_and_keeps_to_its_bytes(arrays, monkeypatch):
    """Time is what the test says: one config of cpu.direct is best, all of cpu.fft_tiled are hopeless."""
    _, weight, bias = arrays
    layer = Conv(5, (3, 3, 3))
    options = [
        Option.of(get(name), layer, SHAPE, config, 1)
        for name in ("cpu.direct", "cpu.fft_tiled")
        for config in get(name).configs(layer, SHAPE)
    ]
    timed = []

    def seconds(option: Option) -> float:
        return 100.0 if option.primitive.name == "cpu.fft_tiled" else 1.0 - 0.1 * options.index(option)

    def of(operator) -> Option:
        return next(o for o in options if o.primitive is operator.primitive and o.config == operator.config)

    def time_callable(option, *, cap_s, best_s, on_sample):
        timed.append(option)
        on_sample(seconds(option))
        return Timing((seconds(option),), (), 1, seconds(option), 0.0, None)

    def interleave(options, rounds, *, on_sample):
        timed.append(options)
        return [Timing((seconds(o),) * rounds, (), 1, seconds(o), 0.0, None) for o in options]

    monkeypatch.setattr(timing_all, "_call", lambda operator, x, out, workspace: of(operator))
    monkeypatch.setattr(timing_all, "time_callable", time_callable)
    monkeypatch.setattr(timing_all, "interleave", interleave)
    direct = [option for option in options if option.primitive.name == "cpu.direct"]
    chosen = fastest(layer, {"weight": weight, "bias": bias}, SHAPE, options, 1)
    assert chosen is direct[-1]
    singles = [option for option in timed if isinstance(option, Option)]
    assert [o for o in singles if o in direct] and len([o for o in singles if o not in direct]) == 1
    assert 1 < len(timed[-1]) <= timing_all.MOST_FINALISTS
    timed.clear()
    fastest(layer, {"weight": weight, "bias": bias}, SHAPE, options, 1, memory_bytes=0)
    assert all(isinstance(option, Option) for option in timed)  # no two fit together: none are timed in turn


def test_memory_is_kept_to(arrays):
    _, weight, bias = arrays
    held = znni.prepare_conv3d(weight, bias, SHAPE, primitive="cpu.direct").memory
    limit = held.host_resident_bytes + held.host_workspace_bytes
    for primitive in ("auto", "fastest", "cpu.direct"):
        op = znni.prepare_conv3d(weight, bias, SHAPE, primitive=primitive, memory_bytes=limit)
        assert op.memory.host_resident_bytes + op.memory.host_workspace_bytes <= limit
        with pytest.raises(MemoryLimit, match=r"within memory_bytes=9; cpu\.\w+ needs least, [\d,]+ bytes"):
            znni.prepare_conv3d(weight, bias, SHAPE, primitive=primitive, memory_bytes=9)


def test_bad_requests(arrays):
    _, weight, bias = arrays

    def refused(error, says, *args, **given):
        with pytest.raises(error, match=says):
            znni.prepare_conv3d(*args, **given)

    refused(InvalidShape, "got 2x3x9x10x12 and 5x3x3", weight[..., 0, 0], bias, SHAPE)
    refused(
        InvalidShape, r"\(batch, channels, z, y, x\), each at least 1, got \(3, 9, 10, 12\)", weight, bias, SHAPE[1:]
    )
    refused(InvalidShape, "each at least 1", weight, bias, (0, 3, 9, 9, 9))
    refused(InvalidShape, "weights of", weight, bias, (1, 4, 9, 9, 9))
    refused(InvalidShape, r"one bias per output channel \(5\), got an array of shape \(3,\)", weight, bias[:3], SHAPE)
    refused(InvalidShape, "needs at least 3 voxels along y", weight, bias, (1, 3, 9, 2, 9))
    refused(InvalidShape, "'same', 'valid'", weight, bias, SHAPE, padding="full")
    refused(InvalidShape, "reaches equally far both ways, got 2x3x3", weight[:, :, :2], bias, SHAPE, padding="same")
    refused(InvalidShape, "at least 1 thread", weight, bias, SHAPE, threads=0)
    refused(InvalidShape, "stride must be", weight, bias, SHAPE, stride=0)
    refused(InvalidShape, "unknown activation", weight, bias, SHAPE, activation="swish")
    refused(Unsupported, "no primitive is named 'cpu.magic'", weight, bias, SHAPE, primitive="cpu.magic")
    refused(Unsupported, "computes softmax layers", weight, bias, SHAPE, primitive="cpu.softmax")
    refused(Unsupported, "stride 1 only", weight, bias, SHAPE, primitive="cpu.fft_tiled", stride=2)
    refused(Unsupported, "goes with a primitive's name", weight, bias, SHAPE, config={})
    refused(Unsupported, "configs of|a config of", weight, bias, SHAPE, primitive="cpu.direct", config={"a": 1})
    blocked = {"takes": "blocked", "gives": "blocked"}
    refused(Unsupported, "arrays are plain here", weight, bias, SHAPE, primitive="cpu.direct", config=blocked)


def test_bad_arrays(arrays):
    x, weight, bias = arrays
    op = znni.prepare_conv3d(weight, bias, SHAPE)
    good = np.empty(op.output_shape, np.float32)

    def refused(says, *args):
        with pytest.raises(InvalidShape, match=says):
            op(*args)

    refused("prepared for an input of 2x3x9x10x12, got 1x3x9x10x12", x[:1])
    refused("out must be an array of 2x5x7x8x10 of float32, got 2x5x7x8x10 of float64", x, good.astype(np.float64))
    refused("got list", x, good.tolist())
    refused("got 1x5x7x8x10 of float32", x, good[:1])
    refused("C-contiguous and writeable", x, np.asfortranarray(good))
    still = good.copy()
    still.flags.writeable = False
    refused("C-contiguous and writeable", x, still)
    same = znni.prepare_conv3d(weight[:3], bias[:3], SHAPE, padding="same")
    with pytest.raises(InvalidShape, match="out overlaps x"):
        same(x, x)


def test_padding_by_name():
    assert named_padding("same", (1, 3, 5), (1, 1, 2)) == (0, 1, 4)
    assert named_padding("same", (2, 1, 1), (2, 1, 1)) == (1, 0, 0)
    assert named_padding("valid", (1, 3, 5), (1, 1, 2)) == (0, 0, 0)
    layer = conv_layer((4, 2, 1, 3, 5), 1, "same", 1, None)
    assert layer == replace(Conv(4, (1, 3, 5)), padding=(0, 1, 2))
    assert layer.output_shape((1, 2, 6, 7, 8)) == (1, 4, 6, 7, 8)
