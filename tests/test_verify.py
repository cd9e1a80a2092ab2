"""Verification: which blocks are compared, and which errors it finds."""

from __future__ import annotations

import json
import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.errors import InvalidShape, RunFailed
from znni.layers import Activation, Conv, MaxPool
from znni.network import Network
from znni.nodes import chain
from znni.reference import reference
from znni.verify import Block, Verification, block_size, compare, errors, sample_blocks, verify

FOV, STEP = (14, 10, 14), (4, 2, 4)


def network(bias=0.0):
    """Two poolings, unlike along y."""
    relu = Activation("relu")
    layers = [
        Conv(3, (3, 3, 3), activation=relu),
        MaxPool((2, 2, 2), (2, 2, 2)),
        Conv(3, (3, 3, 3), activation=relu),
        MaxPool((2, 1, 2), (2, 1, 2)),
        Conv(2, (2, 2, 2)),
    ]
    rng, weights, channels = np.random.default_rng(0), {}, 1
    nodes = chain(layers)
    for node in nodes:
        if isinstance(node.layer, Conv):
            weight = rng.standard_normal(node.layer.weight_shapes(channels)["weight"]) / 3
            channels = node.layer.out_channels
            weights[node.name] = {"weight": weight, "bias": np.full(channels, 0.5)}
    weights[nodes[-1].name]["bias"] += bias
    return Network("small", nodes, 1, weights)


def run(x):
    """What a flawless plan computes."""
    return reference(network(), x).astype(np.float32)


def input_for(output):
    return tuple(n + f - 1 for n, f in zip(output, FOV, strict=True))


steps = st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 8, 8), (8, 8, 8), (4, 4, 4), (1, 16, 16), (4, 2, 6)])
sizes = st.tuples(*[st.integers(1, 70)] * 3)
views = st.sampled_from([(1, 1, 1), (1, 95, 95), (85, 85, 85), (9, 109, 109)])


@settings(deadline=None)
@given(sizes, steps, views, st.integers(1, 4), st.booleans())
def test_blocks_reach_every_fragment_border_and_element(output, step, view, batch, middle):
    blocks = sample_blocks(output, step, view, batch=batch, middle=middle)
    assert {block.element for block in blocks} == set(range(batch))
    for block in blocks:
        spans = [range(a, a + n) for a, n in zip(block.start, block.size, strict=True)]
        assert all(0 <= span.start < span.stop <= n for span, n in zip(spans, output, strict=True))
        for span, n, s in zip(spans, output, step, strict=True):
            assert {i % s for i in span} == {i % s for i in range(n)}
    first = [block for block in blocks if block.element == 0]
    for axis, n in enumerate(output):
        assert min(block.start[axis] for block in first) == 0
        assert max(block.start[axis] + block.size[axis] for block in first) == n


@pytest.mark.parametrize(
    ("output", "step", "view", "expected"),
    [
        ((64, 64, 64), (4, 4, 4), (155, 155, 155), (4, 4, 4)),
        ((64, 64, 64), (8, 8, 8), (85, 85, 85), (8, 8, 8)),
        ((64, 64, 64), (1, 1, 1), (9, 9, 9), (4, 4, 4)),
        ((64, 64, 64), (3, 3, 3), (9, 9, 9), (6, 6, 6)),
        ((1, 160, 160), (1, 16, 16), (1, 95, 95), (1, 16, 16)),
        ((9, 160, 160), (1, 8, 8), (1, 109, 109), (4, 8, 8)),
    ],
)
def test_block_size(output, step, view, expected):
    assert block_size(output, step) == expected
    low, high, middle = sample_blocks(output, step, view)
    assert low == Block(0, (0, 0, 0), expected)
    assert high.start == tuple(n - m for n, m in zip(output, expected, strict=True))
    assert middle.start == tuple(n // 2 for n in high.start)
    assert sample_blocks(output, step, view, middle=False) == (low, high)


def test_small_patches_are_compared_whole():
    """The field of view costs more than the voxels; smaller than a block, there is nothing else."""
    assert sample_blocks((16, 16, 16), (8, 8, 8), (163, 163, 163)) == (Block(0, (0, 0, 0), (16, 16, 16)),)
    assert sample_blocks((1, 3, 2), (8, 8, 8), (2, 2, 2), batch=2) == tuple(
        Block(b, (0, 0, 0), (1, 3, 2)) for b in (0, 1)
    )


def test_index_of_a_block():
    block = Block(1, (2, 3, 4), (5, 6, 7))
    assert block.index() == (slice(1, 2), slice(None), slice(2, 7), slice(3, 9), slice(4, 11))
    assert block.index((3, 1, 2)) == (slice(1, 2), slice(None), slice(2, 9), slice(3, 9), slice(4, 12))


@pytest.mark.parametrize("output", [(1, 1, 1), (3, 5, 2), (4, 4, 4), (20, 22, 24), (4, 30, 4)])
def test_a_flawless_run_passes(output):
    found = compare(network(), run, input_for(output), seed=3)
    assert found.passed
    assert found.relative_l2 < 1e-6
    assert found.max_abs_error < 1e-6
    assert found.tolerance == 2e-5
    count = len(found.blocks)
    assert found.reference.startswith(f"float64 overlap-save, {count} block{'s' * (count > 1)} of ")


def test_input_is_seeded_or_given():
    seen, patch = [], input_for((4, 4, 4))

    def noting(x):
        seen.append(x)
        return run(x)

    for seed in (0, 0, 1):
        compare(network(), noting, patch, seed=seed)
    assert seen[0].dtype == np.float32
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).any()
    given = np.ones((1, 1, *patch), np.float32)
    compare(network(), noting, patch, x=given)
    assert seen[3] is given


@pytest.mark.parametrize("fragment", list(product(*map(range, STEP))))
def test_one_wrong_fragment_is_found(fragment):
    def wrong(x):
        out = run(x)
        out[(..., *(slice(f, None, s) for f, s in zip(fragment, STEP, strict=True)))] += 1e-3
        return out

    assert not compare(network(), wrong, input_for((24, 24, 24))).passed


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("end", [0, -1])
def test_one_wrong_border_is_found(axis, end):
    def wrong(x):
        out = run(x)
        np.moveaxis(out, axis, 0)[end] += 1e-3
        return out

    assert not compare(network(), wrong, input_for((24, 24, 24))).passed


@pytest.mark.parametrize("element", range(3))
def test_one_wrong_batch_element_is_found(element):
    def wrong(x):
        out = run(x)
        out[element] += 1e-3
        return out

    assert compare(network(), run, input_for((24, 24, 24)), batch=3).passed
    assert not compare(network(), wrong, input_for((24, 24, 24)), batch=3).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_voxel_that_is_not_finite_fails(value):
    """Wherever it is; and the result can be written as JSON."""

    def wrong(x):
        out = run(x)
        out[0, 1, 5, 20, 7] = value
        return out

    found = compare(network(), wrong, input_for((24, 24, 24)))
    assert not found.passed
    assert found.relative_l2 == found.max_abs_error == math.inf
    assert found.blocks == ()
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Verification.from_dict(data) == found


def test_a_result_survives_json():
    found = compare(network(), run, input_for((20, 22, 24)), tolerance=1e-5)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"reference", "max_abs_error", "relative_l2", "tolerance"} <= data.keys()
    assert Verification.from_dict(data) == found


def test_nearly_constant_output_hides_no_error():
    """An error of 1e-6 of the output, but not of its deviation."""
    lifted = network(bias=1e4)

    def wrong(x):
        return reference(lifted, x) + 1e-2

    found = compare(lifted, wrong, input_for((8, 8, 8)))
    assert not found.passed
    assert found.max_abs_error == pytest.approx(1e-2, rel=1e-6)


def test_errors_are_relative_to_the_deviation_per_channel():
    truth = np.stack([np.full((2, 2, 2), 5.0), np.arange(8.0).reshape(2, 2, 2)])[None]
    found = truth.copy()
    found[0, 0, 1, 1, 1] += 3
    found[0, 1, 0, 0, 0] -= 4
    max_abs_error, relative_l2 = errors([(found[..., :1], truth[..., :1]), (found[..., 1:], truth[..., 1:])])
    assert max_abs_error == 4
    assert relative_l2 == pytest.approx(5 / math.sqrt(42))


def test_errors_of_constant_output():
    """Relative to its norm, a deviation that is rounding included; nothing is relative to zero."""
    zero, tenth = np.zeros((1, 1, 1, 1, 7)), np.full((1, 1, 1, 1, 7), 0.1)
    assert errors([(tenth * 1.01, tenth)])[1] == pytest.approx(0.01)
    assert errors([(zero, zero)]) == (0, 0)
    assert errors([(tenth, zero)])[1] == math.inf


def test_what_is_refused():
    with pytest.raises(InvalidShape, match="smaller than the field of view 14x10x14"):
        compare(network(), run, (13, 20, 20))
    with pytest.raises(InvalidShape, match="must be 1x1x17x13x17, got 1x1x17x13x18"):
        compare(network(), run, (17, 13, 17), x=np.zeros((1, 1, 17, 13, 18), np.float32))
    with pytest.raises(RunFailed, match="gave 1x2x4x4x3, expected 1x2x4x4x4"):
        compare(network(), lambda x: run(x)[..., :3], (17, 13, 17))


class Kept(dict):
    """A store of verifications."""

    def verification(self, plan):
        return self.get(plan)

    def save_verification(self, plan, result):
        self[plan] = json.dumps(result) and result


def test_a_plan_is_compared_once_per_digest():
    runs, store = [], Kept()

    def counted(x):
        runs.append(x.shape)
        return run(x)

    patch = input_for((8, 8, 8))
    plan = SimpleNamespace(digest="d", run=counted, input_patch=patch, batch=2, bound_network=network)
    found = verify(plan, store=store)
    assert found["passed"]
    assert verify(plan, store=store) == found
    assert runs == [(2, 1, *patch)]
    strict = verify(plan, store=store, tolerance=found["relative_l2"] / 2)
    assert not strict["passed"]
    assert len(runs) == 1
    assert verify(plan)["relative_l2"] == found["relative_l2"]
    assert len(runs) == 2
