"""Layers that join tensors, or go voxel by voxel, as the tuner measures them: seeded inputs, sampled truth."""

from __future__ import annotations

import numpy as np
import pytest
from primitives.cases import SMALL
from primitives.truth import truth

from tuner.sampled_truth import relative_l2, sample_points, truth_at
from tuner.seeded_layer import laid_out, seeded_layer
from tuner.tasks import measure_layer
from znni.layers import Add, Multiply, Norm, describe
from znni.layouts import BLOCKED, PLAIN, array_shape

KINDS = ("add", "affine", "activate", "prelu", "multiply", "norm", "concat", "avg_pool", "grouped_conv", "resize")


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_truth_is_the_definition(kind):
    for case in SMALL[kind]:
        x, weights = seeded_layer(case.layer, case.shape, 3)
        points = sample_points(case.layer.output_shape(case.shape), 16)
        found = truth_at(case.layer, weights, x, points)
        whole = truth(case.layer, weights, x)
        assert relative_l2(found, whole[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]) < 1e-10


def test_inputs_of_a_join_differ():
    x, weights = seeded_layer(Add(affine=True), (1, 3, 4, 5, 6), 3)
    again, _ = seeded_layer(Add(affine=True), (1, 3, 4, 5, 6), 3)
    assert len(x) == 2 and not np.array_equal(*x) and all(map(np.array_equal, x, again))
    assert set(weights) == {"scale", "bias"}


def test_each_input_is_laid_out():
    x, _ = seeded_layer(Multiply(per_channel=True), (1, 3, 4, 5, 6), 3)
    assert laid_out(x, PLAIN) is x
    assert [own.shape for own in laid_out(x, BLOCKED)] == [array_shape(own.shape, BLOCKED) for own in x]


@pytest.mark.parametrize("layout", [PLAIN, BLOCKED])
@pytest.mark.parametrize("layer", [Add(), Multiply(per_channel=True), Norm("instance")], ids=lambda layer: layer.kind)
def test_a_measurement_checks_the_result(layer, layout):
    payload = {"layer": describe(layer), "shape": (1, 19, 5, 6, 7), "primitive": f"cpu.{layer.kind}", "threads": 1}
    payload |= {"config": {"takes": layout, "gives": layout}, "cap_s": 0.2, "check": True}
    assert measure_layer(payload, lambda seconds: None)["relative_l2"] < 2e-6
