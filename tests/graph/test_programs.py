"""Graphs planned, run and verified: the result is the reference's, within the bytes that were predicted."""

from __future__ import annotations

import numpy as np
import pytest

from znni.default_plan import default_plan
from znni.errors import InvalidShape, MemoryLimit
from znni.plan import Plan
from znni.process_memory import resident_bytes
from znni.verify import compare, verify

from .graphs import padded_unet, residual_sum, two_branches

GIB = 1 << 30


def error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean((0, 2, 3, 4), keepdims=True)))


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("size", [(3, 16, 20), (1, 4, 4), (5, 12, 8)])
def test_a_padded_u_net_gives_what_its_reference_gives(width, size):
    network = padded_unet(width)
    x = np.random.default_rng(0).standard_normal((2, 1, *size), np.float32)
    assert error(network.run(x), network.reference(x)) < 2e-5


@pytest.mark.parametrize("network", [residual_sum(), two_branches()], ids=lambda network: network.name)
def test_a_sliding_graph_gives_what_its_reference_gives(network):
    x = np.random.default_rng(0).standard_normal((1, 1, 3, 21, 24), np.float32)
    found, expected = network.run(x), network.reference(x)
    assert found.shape == expected.shape
    assert error(found, expected) < 2e-5


def test_a_plan_is_saved_read_and_verified(tmp_path):
    network = padded_unet()
    plan = default_plan(network, memory_bytes=resident_bytes() + GIB, patch=(4, 16, 16))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json", network)
    assert again.digest == plan.digest and again.pooling == "strided" and again.output_patch == (4, 16, 16)
    found = verify(again)
    assert found["passed"] and "all of 4x16x16" in found["reference"]


def test_a_program_takes_what_was_predicted():
    network = padded_unet(8)
    plan = default_plan(network, memory_bytes=resident_bytes() + GIB, patch=(6, 32, 32))
    plan.bind(network)
    program = plan.program()
    assert program.arena_bytes == plan.memory["arena_bytes"]
    assert program.resident_bytes == plan.memory["resident_bytes"]


def test_a_limit_makes_the_arena_smaller_and_the_result_no_other():
    network = padded_unet(8)
    patch = (6, 32, 32)
    free = default_plan(network, memory_bytes=resident_bytes() + GIB, patch=patch)
    held = free.memory["predicted_peak_bytes"] - free.memory["arena_bytes"] - free.memory["resident_bytes"]
    least, most = 0, free.memory["arena_bytes"] + free.memory["resident_bytes"]
    while most - least > 4096:
        middle = (least + most) // 2
        try:
            tight = default_plan(network, memory_bytes=held + middle, baseline_bytes=held - (16 << 20), patch=patch)
            most = middle
        except MemoryLimit:
            least = middle
    assert tight.memory["arena_bytes"] + tight.memory["resident_bytes"] <= most
    tight.bind(network)
    assert compare(network, tight.run, patch).passed


def test_patches_of_a_volume_are_put_together(tmp_path):
    network = padded_unet()
    plan = default_plan(network, memory_bytes=resident_bytes() + GIB, patch=(4, 16, 16))
    plan.bind(network)
    x = np.random.default_rng(0).standard_normal((1, 4, 40, 36)).astype(np.float32)
    np.save(tmp_path / "in.npy", x[0])
    plan.run_volume(tmp_path / "in.npy", tmp_path / "out.npy")
    found = np.load(tmp_path / "out.npy")
    assert found.shape == (3, 4, 40, 36)
    # a voxel comes of the patch that sees further: the first one as far as its margin allows
    first = plan.run(x[None][..., :16, :16])[0]
    assert np.array_equal(found[..., :12, :12], first[..., :12, :12])
    last = plan.run(x[None][..., -16:, -16:])[0]
    assert np.array_equal(found[..., -4:, -4:], last[..., -4:, -4:])


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(InvalidShape, match="along x, sizes go from 4 on by 4; nearest to 18 are 16 and 20"):
        padded_unet().run(np.zeros((1, 1, 2, 16, 18), np.float32))
