"""Whole networks by other libraries: they compute the network, and a plan is timed beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tuner.cli import main
from tuner.network_peers import prepare_network
from znni import load
from znni.default_plan import default_plan
from znni.process_memory import resident_bytes

pytest.importorskip("torch")
PATCH = (2, 8, 8)
SOURCE = {"source": "synapse_unet", "seed": 0, "width": 3}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", ["torch/contiguous", "torch/channels_last_3d", "onnxruntime", "openvino"])
def test_a_peer_computes_the_network(peer):
    if not peer.startswith("torch"):
        pytest.importorskip(peer)
        pytest.importorskip("onnx")
    network = load("synapse_unet", width=3)
    prepared = prepare_network(peer, network, SOURCE, (1, 1, *PATCH), 1)
    prepared.run()
    x = np.random.default_rng(0).standard_normal((1, 1, *PATCH), dtype=np.float32)
    np.testing.assert_allclose(prepared.result(), network.reference(x), atol=1e-5)


def test_a_padded_plan_is_timed_beside_peers_on_its_patch(tmp_path, capsys):
    network = load("synapse_unet", width=3)
    plan = default_plan(network, memory_bytes=resident_bytes() + (1 << 30), patch=PATCH)
    plan.save(tmp_path / "plan.json")
    command = ["bench", str(tmp_path / "plan.json"), "--peers", "torch/contiguous", "--seconds", "0.5", "--json"]
    assert main([*command, "--store", str(tmp_path / "store.db")]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["networks"]
    assert row["name"] == "torch/contiguous" and row["output"] == list(PATCH) and row["speed_over"]["median"] > 0
    assert row["peak_bytes"] > 0 and found["peak_bytes"] > 0 and found["score"] is None
