"""`cpu.add` and its like: NaN, many tensors, results past the caches in either layout."""

from __future__ import annotations

import numpy as np
import pytest

from znni.layers import Activate, Activation, Add, Concat, Layer, Multiply
from znni.layouts import BLOCKED, PLAIN, array_shape, packed, unpacked, with_layouts
from znni.primitives import get

from .truth import truth

LAYOUTS = pytest.mark.parametrize("layout", [PLAIN, BLOCKED])


def found(layer: Layer, x, shape, layout: str) -> np.ndarray:
    operator = get(f"cpu.{layer.kind}").prepare(layer, {}, shape, with_layouts({}, layout, layout), 2)
    out = np.full(array_shape(shape, layout), np.nan, np.float32)
    given = tuple(packed(own, layout) for own in x) if layer.joins else packed(x, layout)
    operator(given, out, np.empty(0, np.uint8))
    result = unpacked(out, shape[1], layout)
    assert np.array_equal(packed(result, layout), out, equal_nan=True), "lanes beyond the last channel are not zero"
    return result


@LAYOUTS
@pytest.mark.parametrize("name", ["linear", "relu", "clip", "elu", "tanh", "sigmoid"])
def test_nan_stays_nan(name, layout):
    x = np.linspace(-3, 3, 5 * 2 * 3 * 7, dtype=np.float32).reshape(1, 5, 2, 3, 7)
    x[0, 2, 1, 1, 3] = np.nan
    result = found(Activate(Activation(name, 0.5, 1.5)), x, x.shape, layout)
    assert np.array_equal(np.isnan(result), np.isnan(x))


@LAYOUTS
@pytest.mark.parametrize("count", [2, 5, 16, 17, 33])
def test_sums_past_the_caches(count, layout):
    """Of so many tensors that they are summed in several passes."""
    shape = (1, 20, 17, 101, 127)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    result = found(Add(count), (x, *[x[:, ::-1]] * (count - 1)), shape, layout)
    expected = x + (count - 1) * x[:, ::-1].astype(np.float64)
    assert np.linalg.norm(result - expected) <= 1e-6 * np.linalg.norm(expected)


@LAYOUTS
@pytest.mark.parametrize("channels", [(16, 16), (8, 24), (7, 13, 20), (1, 32, 3)])
def test_joins_past_the_caches(channels, layout):
    shape = (2, sum(channels), 9, 101, 97)
    x = np.random.default_rng(2).standard_normal(shape, np.float32)
    parts = np.split(x, np.cumsum(channels)[:-1], axis=1)
    assert np.array_equal(found(Concat(channels), parts, shape, layout), x)


@LAYOUTS
def test_factors_differ_by_batch_element(layout):
    rng = np.random.default_rng(3)
    shape = (3, 21, 4, 5, 6)
    x = rng.standard_normal(shape, np.float32), rng.standard_normal((3, 21, 1, 1, 1), np.float32)
    layer = Multiply(per_channel=True)
    assert np.allclose(found(layer, x, shape, layout), truth(layer, {}, x), rtol=1e-6)
