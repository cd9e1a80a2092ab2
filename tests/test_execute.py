"""Plans on arrays: equal to the float64 reference in both forms of pooling, at any size from the field of view on."""

import numpy as np
import pytest

import znni
from znni import geometry
from znni.candidate import plan_of, solve_candidate
from znni.default_plan import default_plan
from znni.errors import InvalidShape
from znni.predict import Predictor
from znni.walk import Candidate

MIB = 1 << 20


def planned(network, output, pooling, batch=1, threads=2):
    solved = solve_candidate(network, Candidate(output, batch, pooling, threads), Predictor(threads), 2000 * MIB)
    plan = plan_of(
        network, solved, limit_bytes=2000 * MIB, baseline_bytes=0, machine={"fingerprint": "test", "kernels": "test"}
    )
    plan.bind(network)
    return plan


def relative_l2(out, truth):
    return np.linalg.norm(out - truth) / np.linalg.norm(truth - truth.mean(axis=(0, 2, 3, 4), keepdims=True))


@pytest.mark.parametrize(("name", "batch"), [("n337", 2), ("znn3d_k5", 1)])
def test_both_forms_of_pooling_equal_the_reference(name, batch):
    network = znni.load(name, seed=1, width=3)
    x = np.random.default_rng(0).standard_normal((batch, 1, *(f + 7 for f in network.field_of_view)), np.float32)
    truth = network.reference(x)
    for pooling in ("fragments", "filter"):
        out = planned(network, (8, 8, 8), pooling, batch).run(x)
        assert out.shape == truth.shape
        assert out.dtype == np.float32
        assert relative_l2(out, truth) < 2e-5


def test_flat_network():
    network = znni.load("n4", seed=1, width=4)
    x = np.random.default_rng(0).standard_normal((1, 1, 3, 110, 130), np.float32)
    truth = network.reference(x)
    for pooling in ("fragments", "filter"):
        assert relative_l2(planned(network, (1, 16, 32), pooling).run(x), truth) < 2e-5


def test_any_size_from_the_field_of_view_on():
    network = znni.load("znn3d_k3", seed=2, width=3)
    plan = planned(network, (4, 8, 12), "fragments", batch=3)
    x = np.random.default_rng(0).standard_normal((2, 1, 42, 55, 61), np.float32)
    out = plan.run(x)
    assert out.shape == (2, 3, 1, 14, 20)
    assert relative_l2(out, network.reference(x)) < 2e-5
    with pytest.raises(InvalidShape, match="smaller than the field of view"):
        plan.run(x[:, :, :41])
    with pytest.raises(InvalidShape, match="takes"):
        plan.run(x[:, 0])


def test_network_run_takes_the_default_plan():
    network = znni.load("n337", seed=5, width=2)
    x = np.random.default_rng(0).standard_normal((1, 1, 90, 87, 101), np.float32)
    out = network.run(x)
    assert relative_l2(out, network.reference(x)) < 2e-5


def test_predicted_program_bytes_are_what_it_takes():
    network = znni.load("n337", seed=5, width=8)  # whole vectors of channels: no layout takes more than another
    plan = default_plan(network, memory_bytes=400 * MIB, threads=2, baseline_bytes=100 * MIB)
    plan.bind(network)
    program = plan.program()
    assert program.arena_bytes == plan.memory["arena_bytes"]
    assert program.resident_bytes == plan.memory["resident_bytes"]


@pytest.mark.parametrize("name", ["n337", "n926"])
def test_published_networks_equal_the_reference(name):
    network = znni.load(name, seed=1, width=8)
    output = network.step
    x = np.random.default_rng(0).standard_normal((1, 1, *geometry.input_size(output, network.field_of_view)), np.float32)
    assert relative_l2(planned(network, output, "fragments").run(x), network.reference(x)) < 2e-5
