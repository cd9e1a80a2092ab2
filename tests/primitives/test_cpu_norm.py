"""`cpu.norm`: accuracy far from zero, and the same result for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from znni.layers import Norm
from znni.layouts import BLOCKED, PLAIN, array_shape, packed, unpacked, with_layouts
from znni.primitives import get

from .truth import truth

SHAPE = (2, 20, 9, 40, 53)
LAYERS = [Norm("batch"), Norm("instance"), Norm("group", 4), Norm("group")]


def normalised(layer: Norm, x: np.ndarray, weights: dict, layout: str, threads: int) -> np.ndarray:
    operator = get("cpu.norm").prepare(layer, weights, x.shape, with_layouts({}, layout, layout), threads)
    out = np.empty(array_shape(x.shape, layout), np.float32)
    operator(packed(x, layout), out, np.empty(operator.workspace_bytes, np.uint8))
    return unpacked(out, x.shape[1], layout)


def case(mean: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    weights = {name: rng.standard_normal(SHAPE[1], np.float32) for name in ("scale", "bias")}
    return rng.standard_normal(SHAPE, np.float32) + np.float32(mean), weights


@pytest.mark.parametrize("layout", [PLAIN, BLOCKED])
@pytest.mark.parametrize("mean", [0.0, 100.0, -1e4, 1e6])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.over}{layer.groups}")
def test_a_mean_beyond_the_deviation_costs_no_digits(layer, mean, layout):
    x, weights = case(mean)
    expected = truth(layer, weights, x)
    found = normalised(layer, x, weights, layout, threads=2)
    assert np.linalg.norm(found - expected) <= 2e-6 * np.linalg.norm(expected)


def test_a_drift_within_a_channel_costs_no_digits():
    x, weights = case(0.0)
    x += np.linspace(-1e3, 3e3, SHAPE[2], dtype=np.float32)[:, None, None]
    for layout in (PLAIN, BLOCKED):
        expected = truth(Norm("instance"), weights, x)
        found = normalised(Norm("instance"), x, weights, layout, threads=1)
        assert np.linalg.norm(found - expected) <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("layout", [PLAIN, BLOCKED])
def test_threads_do_not_change_a_bit(layout):
    x, weights = case(3.0)
    results = [normalised(Norm("group", 2), x, weights, layout, threads) for threads in (1, 2, 3)]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_a_constant_channel_is_its_bias():
    x, weights = case(0.0)
    x[:] = 1234.567
    for layout in (PLAIN, BLOCKED):
        found = normalised(Norm("instance"), x, weights, layout, threads=2)
        assert np.allclose(found, weights["bias"][:, None, None, None], atol=1e-6)
