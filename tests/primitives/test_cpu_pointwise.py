"""What is peculiar to softmax and maxout: overflow, NaN, and their agreement with PyTorch."""

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.layers import Maxout, Softmax
from znni.layouts import BLOCKED, LANES, packed
from znni.primitives.cpu_pointwise import MAXOUT, SOFTMAX

from .truth import truth


def computed(primitive, layer, x, threads=2):
    operator = primitive.prepare(layer, {}, x.shape, {}, threads)
    out = np.full(operator.out_shape, -7, np.float32)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    return out


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 7), (1, 2, 4), (3, 5, 7), (1, 4, 8), (2, 31, 33)])
def test_softmax_does_not_overflow(size):
    x = np.random.default_rng(0).standard_normal((2, 5, *size), np.float32) * 20 + 1000
    expected = truth(Softmax(), {}, x)
    np.testing.assert_allclose(computed(SOFTMAX, Softmax(), x), expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("channels", [1, 3, LANES, 2 * LANES + 5])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 31, 33)])
def test_softmax_of_blocked_channels_is_that_of_plain_ones(channels, size):
    x = np.random.default_rng(0).standard_normal((2, channels, *size), np.float32) * 5
    operator = SOFTMAX.prepare(Softmax(), {}, x.shape, {"takes": BLOCKED}, 2)
    out = np.full(x.shape, -7, np.float32)
    operator(packed(x, BLOCKED), out, aligned_empty(0))
    np.testing.assert_array_equal(out, computed(SOFTMAX, Softmax(), x))


def test_softmax_sums_to_one_and_is_one_of_one_channel():
    x = np.random.default_rng(0).standard_normal((2, 33, 3, 5, 17), np.float32) * 10
    np.testing.assert_allclose(computed(SOFTMAX, Softmax(), x).sum(axis=1), 1, rtol=3e-6)
    np.testing.assert_array_equal(computed(SOFTMAX, Softmax(), x[:, :1].copy()), 1)


def test_nan_and_infinities_are_softmaxed_as_in_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 3, 11), np.float32)
    kind = np.random.default_rng(1).integers(0, 40, x.shape)
    for n, value in enumerate([np.nan, np.inf, -np.inf]):
        x[kind == n] = value
    expected = torch.softmax(torch.from_numpy(x), dim=1).numpy()
    np.testing.assert_allclose(computed(SOFTMAX, Softmax(), x), expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
def test_maxout_takes_groups_of_adjacent_channels(group):
    x = np.random.default_rng(0).standard_normal((2, 2 * group, 3, 29, 53), np.float32)
    x[x > 2.5] = np.nan
    np.testing.assert_array_equal(computed(MAXOUT, Maxout(group), x), truth(Maxout(group), {}, x))
