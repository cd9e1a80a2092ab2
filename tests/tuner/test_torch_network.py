"""A whole network by PyTorch is the network; and its patch is the fastest of those that fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from device_plans import gpu_plan

from tuner.bench_plan import _network_row
from tuner.contender import network_spec, plan_spec
from tuner.contest import Contender
from tuner.peers import parse_peers
from tuner.torch_network import fastest_side, sides, torch_network
from znni.load import load


@pytest.mark.parametrize("name", ["n337", "small"])
def test_it_computes_the_network(name, small):
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    network = load(name, width=2) if name == "n337" else load(small)
    x = np.random.default_rng(0).standard_normal((1, 1, *(n + 3 for n in network.field_of_view)), np.float32)
    with torch.no_grad():
        found = torch_network(network)(torch.from_numpy(x)).numpy()
    truth = network.reference(x)
    assert found.shape == truth.shape
    assert np.linalg.norm(found - truth) <= 2e-5 * np.linalg.norm(truth)


def test_sides_grow():
    tried = list(sides())
    assert tried[0] == 8 and tried[-1] <= 1024
    assert all(1.1 < (b / a) ** 3 < 2.1 for a, b in pairwise(tried))


def test_the_patch_is_the_fastest_that_fits():
    tried = []

    def seconds_of(side):
        tried.append(side)
        return None if side > 100 else 1.0 + side**3 / 1e5 + (1e9 if side > 60 else 0)

    best = fastest_side(seconds_of, 60.0)
    assert 50 < best <= 60 and tried[-1] > 100
    assert fastest_side(lambda side: None, 60.0) is None
    assert fastest_side(lambda side: 1.0, 0.0) == 8


def test_a_row_compares_with_the_plan():
    ours, theirs = Contender("plan", {}), Contender("torch.cuda/contiguous", {})
    ours.facts, ours.samples = {"voxels": 1000}, [[1.0], [1.0, 3.0, 1.0]]
    theirs.facts, theirs.samples = {"voxels": 500, "output": [5, 10, 10]}, [[2.0], [4.0]]
    row = _network_row(theirs, ours)
    assert row["speed_over"] == {"median": 6.0, "low": 4.0, "high": 8.0, "rounds": 2}
    assert row["voxels_per_s"] == pytest.approx((250 + 125) / 2)
    theirs.samples, theirs.failure = [], "no patch fits"
    assert _network_row(theirs, ours)["speed_over"] is None


@pytest.mark.gpu
def test_on_the_gpu_within_a_limit(small):
    peers = parse_peers("all", "gpu")
    if not peers:
        pytest.skip("PyTorch has no GPU here")
    network = load(small)
    source = {"source": network.source, "seed": network.seed, "width": network.width}
    for peer in peers:
        contender = Contender(peer, network_spec(source, peer, 1 << 30, 5.0), 0.1)
        try:
            assert contender.prepare(120), contender.failure
            assert contender.facts["peak_device_bytes"] <= 1 << 30
            assert contender.turn(60)
        finally:
            contender.close()


@pytest.mark.gpu
def test_a_plan_beside_it(cli, small):
    import znni.gpu

    if not parse_peers("all", "gpu"):
        pytest.skip("PyTorch has no GPU here")
    with znni.gpu.open_device():
        gpu_plan(load(small)).save("gpu.json")
    assert plan_spec("gpu.json") == {"plan": "gpu.json"}
    found = cli("bench", "gpu.json", "--peers", "torch.cuda", "--seconds", "5")
    assert found.code == 0, found.err
    assert found.out.count("times as fast") == 4
