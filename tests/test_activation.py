"""Activations as the kernels compute them (``pyx/activation.h``), against float64."""

import numpy as np
import pytest
from primitives.truth import activated

from znni._kernels import pointwise
from znni.errors import InvalidShape
from znni.layers import Activation

FUNCTIONS = [
    Activation(),
    Activation("relu"),
    Activation("leaky_relu", 0.01),
    Activation("elu"),
    Activation("elu", 1.5),
    Activation("tanh"),
    Activation("tanh", 1.7159, 2 / 3),
    Activation("sigmoid"),
    Activation("clip", -0.5, 6.0),
]


def computed(function: Activation, x, threads: int = 1) -> np.ndarray:
    y = np.array(x, np.float32)
    pointwise.activate(y, function.code, function.a, function.b, threads)
    return y


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Evenly over [-80, 80], and down to what is next to nothing on both sides of 0."""
    near = np.geomspace(1e-30, 80, 100_001)
    return np.concatenate([np.linspace(-80, 80, 1_000_001), near, -near]).astype(np.float32)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_is_as_exact_as_float32_is(function, values):
    y, expected = computed(function, values).astype(np.float64), activated(function, values.astype(np.float64))
    assert np.all(np.abs(y - expected) <= 3e-7 * np.abs(expected))


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_nan_stays_and_infinity_is_the_limit(function):
    y = computed(function, [np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0])
    assert np.isnan(y[0])
    limits = activated(function, np.array([np.inf, -np.inf, 3e38, -3e38, 0.0]))
    np.testing.assert_allclose(y[1:], limits, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 4095, 4096, 4097, 10_000])
def test_no_value_depends_on_where_it_lies(function, size):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32) * 5
    together = computed(function, x, threads=2)
    assert np.array_equal(together, np.concatenate([computed(function, x[i : i + 3]) for i in range(0, size, 3)]))


def test_names_and_parameters():
    assert Activation.of(None) == Activation("linear")
    assert Activation.of("leaky_relu") == Activation("leaky_relu", 0.01)
    assert Activation.of(("tanh", 1.7159, 2 / 3)) == Activation("tanh", 1.7159, 2 / 3)
    assert Activation.of(FUNCTIONS[3]) is FUNCTIONS[3]
    with pytest.raises(InvalidShape, match=r"unknown activation 'swish'; known are linear, relu"):
        Activation.of("swish")
