"""Benchmarks of layers, networks and plans: rows and scores, and that contenders are what they say. No test asserts a time."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from reports.layers import LISTS
from tuner.bench_record import RATE_FLOP, RATE_LAYER, RATE_SHAPE, known_rate
from tuner.bench_rows import rows_text
from tuner.contender import layer_spec, plan_spec
from tuner.contest import Contender, middle, ratio, rounds
from tuner.layer_string import layer_text, parse_layer
from tuner.peers import parse_peers, prepare_peer, why_not
from tuner.sampled_truth import relative_l2, sample_points, truth_at, written_points
from tuner.scout import Scout, layout_pairs
from znni.errors import ZnniError
from znni.layers import Recombine, layer_of
from znni.layouts import BLOCKED, PLAIN
from znni.machine import this_machine
from znni.predict import Predictor
from znni.primitives import get, registered
from znni.store import Store
from znni.store_rows import MeasurementKey
from znni.timing import Timing

LAYERS = [
    "3>5 k3,2,4 in9,8,10 relu",
    "2>4 k3 in8 pad 1,0,2 d2 n2 tanh:1.7159:0.6667",
    "4>2 k2 in9 s2 elu",
    "3>3 k1 in5 leaky_relu",
    "3>2 k3 in6 sigmoid",
    "3 mpf2 in9 n2",
    "3 mpf2,3,1 s1,2,1 in5,8,4",
    "3 pool2 in9",
    "3 filter2 d2,1,1 in6",
    "4 maxout2 in4 n2",
    "3 softmax in4",
    "2 recombine2/1,2,2 in3 n64",
]


@pytest.fixture
def inputs():
    def make(layer, shape):
        rng = np.random.default_rng(7)
        x = rng.standard_normal(shape, dtype=np.float32)
        shapes = layer.weight_shapes(shape[1]) if layer.kind == "conv" else {}
        return x, {name: rng.standard_normal(own, dtype=np.float32) for name, own in shapes.items()}

    return make


def at(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    return array[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]


@pytest.mark.parametrize("text", LAYERS)
def test_sampled_truth_is_the_definition(text, inputs, evaluate):
    from znni.layers import Conv
    from znni.nodes import Node

    layer, shape = parse_layer(text)
    x, weights = inputs(layer, shape)
    points = sample_points(layer.output_shape(shape), 32)
    found = truth_at(layer, weights, x, points)
    if isinstance(layer, Conv):
        torch = pytest.importorskip("torch", reason="padding, strides and activations are compared with PyTorch")
        y = torch.nn.functional.conv3d(
            *(torch.from_numpy(a).double() for a in (x, weights["weight"], weights["bias"])),
            layer.stride, layer.padding, layer.dilation,
        )  # fmt: skip
        a, b = layer.activation.a, layer.activation.b
        whole = {
            "relu": torch.relu,
            "tanh": lambda y: a * torch.tanh(b * y),
            "elu": lambda y: torch.nn.functional.elu(y, a),
            "leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, a),
            "sigmoid": torch.sigmoid,
        }[layer.activation.name](y).numpy()
    else:
        whole = evaluate([Node("it", layer)], {}, x.astype(np.float64))
    assert relative_l2(at(whole, points), found) < 1e-12


def test_relative_l2():
    truth = np.array([3.0, 4.0])
    assert relative_l2(truth, truth) == 0
    assert relative_l2(np.array([3.0, 5.0]), truth) == pytest.approx(0.2)


def test_recombining_a_part_writes_the_sampled_points():
    layer, shape = Recombine(((2, 2, 2), (1, 2, 2)), 4), (8, 1, 3, 4, 5)
    points = written_points(layer, shape, 50)
    numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    seen = truth_at(layer, {}, numbers, points)  # of the whole, it would reach beyond the part
    assert (points < np.array([1, 3 * 2, 4 * 4, 5 * 4])).all()
    assert len(np.unique(seen)) > 20


PEERS = ["torch/contiguous", "torch/channels_last_3d", "onnxruntime", "openvino"]


@pytest.mark.parametrize(
    ("peer", "text"), [(p, t) for p in PEERS for t in LAYERS if why_not(p, parse_layer(t)[0]) is None]
)
def test_peers_compute_the_layer(peer, text, inputs):
    try:
        parse_peers(peer)
    except ZnniError as error:
        pytest.skip(str(error))
    layer, shape = parse_layer(text)
    x, weights = inputs(layer, shape)
    prepared = prepare_peer(peer, layer, weights, x, threads=1)
    prepared.run()
    result = prepared.result()
    assert result.shape == layer.output_shape(shape)
    points = sample_points(result.shape, 32)
    assert relative_l2(at(result, points), truth_at(layer, weights, x, points)) < 1e-5


def test_unknown_peers_are_refused():
    with pytest.raises(ZnniError, match="no peer is named 'caffe'; known are torch"):
        parse_peers("caffe")
    with pytest.raises(ZnniError, match="no peer is named 'torch/sparse'"):
        parse_peers("torch/sparse")
    assert parse_peers("") == parse_peers("none") == ()


def test_all_peers_are_those_installed():
    for peer in parse_peers("all"):
        assert parse_peers(peer) == (peer,)
    pytest.importorskip("torch", reason="PyTorch is the peer")
    assert {"torch/contiguous", "torch/channels_last_3d"} == set(parse_peers("torch")) <= set(parse_peers("all"))


def test_a_layer(cli):
    found = cli("bench", "3>5 k3 in12 relu", "--peers", "none", "--seconds", "0.4", "--threads", "1", "--json")
    assert found.code == 0, found.err
    data = json.loads(found.out)
    assert data["machine"]["fingerprint"] == this_machine().fingerprint
    rows = {row["name"]: row for row in data["rows"]}
    assert {"cpu.direct", "cpu.fft"} <= set(rows)
    assert not any(get(row["primitive"]).foreign for row in rows.values())
    for row in rows.values():
        assert row["layer"] == "3>5 k3 in12 relu"
        assert row["failure"] is None
        assert row["relative_l2"] <= 1e-5
        assert row["interval"][0] <= row["ns_per_voxel"] <= row["interval"][1]
        assert row["predicted_bytes"] >= 0
        assert row["flop_per_s"] > 0
        assert row["arithmetic_fraction"] > 0
        assert row["traffic_fraction"] > 0
        assert row["threads"] == 1
    assert [row["ns_per_voxel"] for row in data["rows"]] == sorted(row["ns_per_voxel"] for row in data["rows"])
    layer, _ = parse_layer("3>5 k3 in12 relu")
    with Store() as store:
        stored = store.measurements(machine=this_machine().fingerprint, layer=layer)
    assert {m.key.primitive for m in stored} == {row["primitive"] for row in rows.values()}
    assert sorted(m.samples for m in stored) == sorted(tuple(row["seconds"]) for row in rows.values())
    assert all(m.finished for m in stored)


def test_the_command_of_a_row_times_it_again(cli, folder):
    """In its layout, too; the JSON in the file is that on stdout."""
    name = next(
        (n for n, p in registered().items() if p.kind == "conv" and (BLOCKED, BLOCKED) in p.layouts), "cpu.direct"
    )
    once = ("--seconds", "0.2", "--threads", "1", "--json")
    first = json.loads(cli("bench", "9>8 k3 in10", "--primitive", name, "--peers", "none", *once).out)["rows"]
    assert len(first) == len(layout_pairs(get(name)))
    for row in first:
        words = shlex.split(row["reproduce"])
        assert words[:2] == ["znni-tune", "bench"]
        found = cli(*words[1:], "--seconds", "0.1", "--json", "-o", "rows.json")
        assert found.code == 0, found.err
        (again,) = json.loads(found.out)["rows"]
        assert (again["name"], again["config"], again["layer"]) == (row["name"], row["config"], row["layer"])
        assert again["relative_l2"] < 1e-5
        assert json.loads((folder / "rows.json").read_text()) == json.loads(found.out)


def test_bad_requests(cli, folder):
    def refused(says: str, *arguments: str) -> None:
        found = cli("bench", "3>5 k3 in12", "--peers", "none", *arguments)
        assert found.code == 2
        assert says in found.err

    refused("--config goes with one primitive", "--config", "{}")
    refused("--config takes a JSON object", "--primitive", "cpu.direct", "--config", "tile=3")
    refused("--config takes a JSON object", "--primitive", "cpu.direct", "--config", "[1]")
    refused("no primitive of those named computes", "--primitive", "none")
    refused("cannot write nowhere/rows.json", "-o", "nowhere/rows.json")
    refused("cannot write .", "-o", ".")


def test_a_primitive_competes_in_the_layouts_that_it_keeps():
    for primitive in registered().values():
        pairs = layout_pairs(primitive)
        assert set(pairs) <= set(primitive.layouts)
        if (BLOCKED, BLOCKED) in primitive.layouts:
            plain = [(PLAIN, PLAIN)] if (PLAIN, PLAIN) in primitive.layouts else []  # depthwise ones are blocked alone
            assert pairs == [(BLOCKED, BLOCKED), *plain]
    assert layout_pairs(get("cpu.relayout")) == [(PLAIN, BLOCKED), (BLOCKED, PLAIN)]


def test_a_scout_tries_configs_in_each_layout():
    layer, shape = parse_layer("9>8 k3 in10")
    scout = Scout(layer, shape, 1, Predictor(1))
    try:
        for name in ("cpu.direct", "cpu.fft_tiled"):
            primitive = get(name)
            configs = scout.choose(primitive, budget_s=1.0)
            for config in configs:
                primitive.memory(layer, shape, config, 1)
            assert 1 <= len(configs) <= len(layout_pairs(primitive))
        assert scout.best_s > 0
    finally:
        scout.close()


def test_listed_layers_can_be_computed_and_named():
    for layers in LISTS.values():
        for layer, shape in layers:
            assert parse_layer(layer_text(layer, shape)) == (layer, shape)
            assert any(p.kind == "conv" and not p.supports(layer, shape) for p in registered().values())


def test_a_list_of_layers(cli, folder, monkeypatch):
    small = (parse_layer("2>3 k3 in6"), parse_layer("3>2 k1 in5"))
    monkeypatch.setitem(LISTS, "published", small)
    found = cli(
        "bench", "published", "--primitive", "cpu.direct", "--peers", "none", "--seconds", "0.1", "-o", "rows.json"
    )
    assert found.code == 0, found.err
    data = json.loads((folder / "rows.json").read_text())
    assert [row["layer"] for row in data["rows"] if row["name"] == "cpu.direct"] == ["2>3 k3 in6", "3>2 k1 in5"]
    assert data["command"].startswith("znni-tune bench published")
    assert data["machine"]["fingerprint"] == this_machine().fingerprint
    assert found.out.count("znni-tune bench") == len(data["rows"])


def test_a_layer_beside_pytorch(cli):
    pytest.importorskip("torch", reason="PyTorch is the peer")
    found = cli("bench", "3>5 k3 in12", "--primitive", "cpu.direct", "--peers", "torch", "--seconds", "0.4", "--json")
    assert found.code == 0, found.err
    rows = {row["name"]: row for row in json.loads(found.out)["rows"]}
    assert set(rows) - {"cpu.direct blocked"} == {"cpu.direct", "torch/contiguous", "torch/channels_last_3d"}
    assert "--primitive none --peers torch/contiguous" in rows["torch/contiguous"]["reproduce"]
    ours = rows["cpu.direct"]
    assert ours["best_peer"].startswith("torch/")
    spread = ours["speed_over_best_peer"]
    assert spread["low"] <= spread["median"] <= spread["high"]
    assert "best peer torch/" in rows_text(list(rows.values()))
    # What peers took is kept, but nothing is predicted from it.
    with Store() as store:
        machine = this_machine().fingerprint
        assert {m.key.device for m in store.measurements(machine=machine, primitive="torch")} == {"peer"}
        assert {m.primitive for m in store.measured(machine, this_machine().cores)} == {"cpu.direct"}


ONE_EACH = "cpu.direct,cpu.direct_mpf,cpu.mpf,cpu.recombine"


def test_contenders_that_do_not_fit_together_take_turns_with_memory(cli, monkeypatch):
    monkeypatch.setattr("tuner.bench.available_bytes", lambda: 0)
    found = cli(
        "bench", "3>5 k3 in12", "--seconds", "0.1", "--threads", "1", "--primitive", "cpu.direct,cpu.fft", "--json",
        "--peers", "none",
    )  # fmt: skip
    assert found.code == 0, found.err
    for row in json.loads(found.out)["rows"]:
        assert row["samples"] >= 1
        assert row["failure"] is None
        assert row["relative_l2"] <= 1e-5


def test_layers_of_a_network(cli, small):
    found = cli("bench", small, "--memory", "90MiB", "--seconds", "0.1", "--primitive", ONE_EACH, "--json")
    assert found.code == 0, found.err
    layers = list(dict.fromkeys(row["layer"].split(" in")[0] for row in json.loads(found.out)["rows"]))
    # the first pooling may be fused with the convolution before it
    assert [name for name in layers if name != "4 mpf2"] == ["1>4 k3", "4>2 k3", "2 recombine2"]


def test_a_plan(cli, plan):
    found = cli("bench", plan, "--seconds", "0.2", "--json")
    assert found.code == 0, found.err
    data = json.loads(found.out)
    assert data["rounds"] >= 3
    assert data["interval"][0] <= data["voxels_per_s"] <= data["interval"][1]
    assert 0 < data["peak_bytes"] <= data["limit_bytes"]
    assert data["score"] is None
    assert "voxels/s" in cli("bench", plan, "--seconds", "0.1").out


@pytest.mark.timeout(180)
def test_the_score_of_a_plan(cli, plan, small, monkeypatch):
    pytest.importorskip("torch", reason="a score is relative to PyTorch")
    monkeypatch.setattr("tuner.bench_plan.RATE_TURN_S", 0.01)
    from znni.load import load

    found = cli("bench", plan, "--peers", "torch", "--seconds", "1", "--json")
    assert found.code == 0, found.err
    data = json.loads(found.out)
    flop = load(small).flop_per_voxel
    assert data["rate_by"].startswith("torch/")
    low, high = data["score_spread"]
    assert low <= data["score"] <= high
    assert data["score"] == pytest.approx(data["voxels_per_s"] * flop / data["rate_flop_per_s"], rel=1.0)
    explained = json.loads(cli("explain", plan, "--json").out)
    assert explained["rate_flop_per_s"] > 0
    assert explained["score"] is not None


def test_the_known_rate_is_the_better_format(tmp_path):
    machine = this_machine()
    with Store(tmp_path / "store.db") as store:
        assert known_rate(store, machine, 2) is None
        for variant, seconds in (("contiguous", 1.0), ("channels_last_3d", 0.5), ("channels_last_3d", 0.8)):
            key = MeasurementKey(
                RATE_LAYER, RATE_SHAPE, "torch", {"variant": variant}, 2, machine.fingerprint, "torch 2", "peer"
            )
            row = store.open_measurement(key)
            row.add_sample(seconds)
            row.finish(Timing((seconds,), (), 1, seconds, 0.0, None, single=True))
        assert known_rate(store, machine, 2) == RATE_FLOP / 0.8
        assert known_rate(store, machine, 1) is None


def test_a_contender_that_dies_says_why():
    layer, shape = parse_layer("2>2 k1 in4")
    contender = Contender("it", layer_spec(layer, shape, 1, primitive="cpu.nothing"))
    try:
        assert not contender.prepare(timeout_s=60)
        assert "no primitive is named 'cpu.nothing'" in contender.failure
        assert contender.turn(timeout_s=1) is None
        assert rounds([contender], 0.1) == 0
    finally:
        contender.close()


def test_a_hopeless_contender_drops_out():
    class Fixed(Contender):
        def __init__(self, name: str, seconds: float):
            super().__init__(name, {})
            self._seconds = seconds

        def turn(self, timeout_s):
            self.samples.append([self._seconds])
            return self.samples[-1]

    fast, slow, hopeless, rival = (Fixed(str(s), s) for s in (1.0, 2.0, 100.0, 50.0))
    done = rounds([fast, slow, hopeless, rival], budget_s=0.05, least=3, rivals=[hopeless, rival])
    assert done >= 3
    assert len(fast.samples) == len(slow.samples) == done
    assert len(hopeless.samples) == 1
    assert len(rival.samples) == 3  # others are compared with it
    assert ratio(fast, slow) == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": done}
    assert ratio(fast, hopeless)["rounds"] == 1


def test_idle_contenders_are_stopped():
    layer, shape = parse_layer("2>2 k1 in4")
    contender = Contender("it", layer_spec(layer, shape, 1, primitive="cpu.direct", config={}))
    try:
        contender.prepare(timeout_s=60)
        pid = contender._worker.pid
        if contender.alive:
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    finally:
        contender.close()
    assert not os.path.exists(f"/proc/{pid}/stat")


def test_specs_are_plain_data():
    layer, shape = parse_layer("2>2 k1 in4")
    spec = layer_spec(layer, shape, 3, peer="torch/contiguous")
    again = json.loads(json.dumps(spec))
    assert layer_of(again["layer"]) == layer
    assert again["shape"] == list(shape)
    assert plan_spec("p.json") == {"plan": "p.json"}


def test_middle():
    assert middle([3, 1, 2]) == 2
    assert middle([4, 1, 2, 3]) == 2.5
