"""What is said of a plan: figures that follow from it, in JSON and in text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.explain import config_text, explain, explain_text
from znni.default_plan import default_plan
from znni.load import load
from znni.plan import Plan


def test_figures(cli, plan, small):
    found = cli("explain", plan, "--json")
    assert found.code == 0, found.err
    data = json.loads(found.out)
    written = json.loads(Path(plan).read_text())
    assert data["runs_here"]
    assert data["field_of_view"] == [8, 8, 8]
    assert data["patch"] == written["patch"]
    assert data["digest"] == Plan.read(plan).digest
    assert [layer["name"] for layer in data["layers"]] == [layer["name"] for layer in written["layers"]]
    side = written["patch"]["input"][0]
    assert data["layers"][0]["layer"].startswith(f"1>4 k3 in{side} relu")
    assert {"1_conv", "3_conv", "recombine"} <= {layer["name"] for layer in data["layers"]}
    assert sum(layer["share"] for layer in data["layers"]) == pytest.approx(1)
    assert {layer["basis"] for layer in data["layers"]} <= {"measured", "scaled", "model"}
    assert data["memory"]["limit_bytes"] == written["limits"]["host_bytes"]
    assert data["throughput"]["measured_voxels_per_s"] is None
    assert data["score"] is None
    assert data["verification"] is None


def test_border_efficiency_is_what_an_infinite_patch_would_need(plan, small):
    network, made = load(small), Plan.load(plan)
    n, out = made.input_patch[0], made.output_patch[0]
    weights, fragments = (4 * 27, 4 * 2 * 27), 8
    again = made.levels[0].parts if made.levels and made.levels[0].fused else 1
    done = again * weights[0] * (n - 2) ** 3 + weights[1] * fragments * ((n - 3) // 2 - 2) ** 3
    efficiency = made.throughput["border_efficiency"]
    assert efficiency == pytest.approx(sum(weights) * out**3 / done)
    one = default_plan(network, memory_bytes=4 << 30, baseline_bytes=80 << 20, threads=1, volume=(2, 2, 2))
    assert one.throughput["border_efficiency"] < efficiency < 1
    assert "borders     0." in explain_text(explain(made, network, None))


def test_a_network_without_pooling_needs_no_recombination(folder):
    Path("flat.znni").write_text("INPUTS:1, LAYERS:2\nCONV 1,3,3 2\nCONV 1,3,3 2\n")
    network = load("flat.znni")
    made = default_plan(network, memory_bytes=4 << 30, baseline_bytes=80 << 20, threads=1, volume=(1, 6, 6))
    found = explain(made, network, None)
    assert [layer["layer"] for layer in found["layers"]] == ["1>2 k1,3,3 in1,10,10 relu", "2>2 k1,3,3 in1,8,8 relu"]
    assert found["field_of_view"] == [1, 5, 5]


def test_text(cli, plan, small):
    text = cli("explain", plan).out
    for part in (
        "small.znni",
        "poolings as",
        "2 threads",
        "1_conv",
        "mpf",
        "not measured yet",
        "verified    not yet",
    ):
        assert part in text


def test_text_of_what_was_measured_and_verified(plan, small):
    network, made = load(small), Plan.load(plan)
    made.throughput |= {"measured_voxels_per_s": 123456.0, "interval": [120000.0, 130000.0]}
    made.memory["measured_peak_bytes"] = 300 << 20
    made.verification = {"reference": "float64", "max_abs_error": 1e-6, "relative_l2": 3e-7, "tolerance": 2e-5}
    made.search |= {"complete": True, "trials": 7, "measurements": 12}
    rate = 1e11
    found = explain(made, network, None, rate)
    assert found["score"] == pytest.approx(123456 * network.flop_per_voxel / rate)
    text = explain_text(found)
    assert "measured 123,456 voxels/s (120,000 .. 130,000)" in text
    assert "measured 300 MiB" in text
    assert "1 is PyTorch's conv3d at 100 GFLOP/s" in text
    assert "3.00e-07, within the tolerance 2e-05" in text
    assert "complete: 7 trials, 12 measurements" in text
    made.verification["relative_l2"] = 1.0
    assert "MISSES" in explain_text(explain(made, network, None))


def test_a_plan_whose_network_is_gone(cli, plan):
    Path("small.znni").unlink()
    data = json.loads(cli("explain", plan, "--json").out)
    assert not data["runs_here"]
    assert "small.znni" in data["why_not"]
    assert data["field_of_view"] == [8, 8, 8]
    assert "cannot run" in cli("explain", plan).out


def test_configs_in_short():
    nested = {"conv": "cpu.direct", "with": {"form": "channels"}, "gives": "blocked"}
    assert config_text(nested) == "conv=cpu.direct with(form=channels) gives=blocked"
    assert config_text({}) == "-"
    assert config_text({"tile": [8, 16, 16], "resident": True, "stream": False, "batch": 2}) == (
        "tile=8,16,16 resident no-stream batch=2"
    )


#: A plan split after its first layer, as `znni.candidate` writes one.
def split_plan(plan: str) -> Plan:
    made = Plan.load(plan)
    gpu = {"takes": "device", "gives": "device"}

    def layer(name, primitive, config, predicted_s, device_bytes=0):
        return replace(
            made.layers[0], name=name, primitive=primitive, config=config, predicted_s=predicted_s, device_bytes=device_bytes
        )

    made.layers = [
        layer("1_conv", "cpu.direct", {}, 3e-3),
        layer("relayout_2_pool", "gpu.upload", {"gives": "device"}, 1e-3),
        layer("2_pool", "gpu.mpf", gpu, 1e-3, 1 << 20),
        layer("3_conv", "gpu.direct", gpu | {"tile": [8, 8]}, 2e-3, 3 << 20),
    ]
    made.split = 1
    made.schedule = made.schedule | {"levels": [], "split_seconds": [[3e-3, 4e-3], [5e-3, 1e-3], None]}
    made.limits = made.limits | {"device_bytes": 1 << 30}
    made.memory = made.memory | {"device_arena_bytes": 3 << 20, "device_resident_bytes": 1 << 20}
    return made


def test_why_the_split_is_where_it_is(plan, small):
    found = explain(split_plan(plan), load(small), None)
    assert [layer["where"] for layer in found["layers"]] == ["CPU", "CPU > GPU", "GPU", "GPU"]
    assert [layer["share"] for layer in found["layers"]] == pytest.approx([0.75, 0.25, 0.25, 0.5])
    assert [(c["theta"], c["seconds"], c["chosen"]) for c in found["split_choices"]] == [
        (1, 4e-3, True), (2, 5e-3, False), (3, None, False),
    ]  # fmt: skip
    text = explain_text(found)
    for part in (
        "the first 1 layers on the CPU, the rest on the GPU",
        "CPU > GPU",
        "on the GPU",
        "tile=8,8",
        "* 1",
        "does not fit",
        "here the GPU's; the CPU is idle for 25 % of it; no other split was predicted to be faster",
        "GPU memory  predicted 4.00 MiB, measured -, limit 1.00 GiB",
    ):
        assert part in text, text
    assert "gives" not in text
    json.dumps(found)


def test_a_split_that_is_not_the_fastest_by_prediction_is_not_called_so(plan, small):
    made = split_plan(plan)
    made.schedule["split_seconds"][1] = [2e-3, 1e-3]
    assert "no other split" not in explain_text(explain(made, None, None))


def test_a_plan_on_the_cpu_says_nothing_of_gpus(plan, small):
    text = explain_text(explain(Plan.load(plan), load(small), None))
    assert "GPU" not in text and "split" not in text
