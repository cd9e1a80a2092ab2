"""What is peculiar to the direct convolution with input channels in the lanes: spans, rows and channels left over."""

from math import prod

import numpy as np
import pytest

from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.layouts import BLOCKED, PLAIN, packed, with_layouts
from znni.primitives import get

from .guarded import Canary
from .truth import truth

DOTS = get("cpu.direct_dots")


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(layer, x, weights, terms=128, threads=2):
    operator = DOTS.prepare(layer, weights, x.shape, with_layouts({"terms": terms}, BLOCKED, PLAIN), threads)
    out = Canary(operator.out_shape)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(packed(x, BLOCKED), out.array, workspace.array)
    assert out.intact and workspace.intact
    return out.array


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("out_channels", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize("in_channels", [1, 7, 8, 9, 20])
def test_channels_left_over_by_blocks_and_lanes(in_channels, out_channels):
    layer = Conv(out_channels, (2, 1, 3), activation=Activation("sigmoid"))
    x, weights = made(layer, (2, in_channels, 4, 5, 13))
    expected = truth(layer, weights, x)
    for terms in (1, 5, 128):
        assert error(computed(layer, x, weights, terms), expected) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 23, 95, 96, 97, 193])
def test_rows_left_over_by_blocks_and_chunks(size):
    for out_channels in (1, 2, 3, 4):
        layer = Conv(out_channels, (1, 2, 2), dilation=(1, 2, 1), activation=Activation("relu"))
        x, weights = made(layer, (1, 9, 2, 5, size + 1))
        assert error(computed(layer, x, weights, threads=1 + size % 3), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("stride", [(2, 1, 1), (3, 2, 1)])
def test_strides_along_z_and_y(stride):
    layer = Conv(3, (3, 2, 2), stride=stride, dilation=(2, 1, 3))
    x, weights = made(layer, (2, 10, 9, 8, 17))
    assert error(computed(layer, x, weights), truth(layer, weights, x)) < 1e-6


def test_threads_change_no_bit():
    layer = Conv(3, (3, 3, 3), activation=Activation("elu", 0.7))
    x, weights = made(layer, (2, 21, 7, 9, 30))
    whole = computed(layer, x, weights, threads=1)
    for threads in (2, 3, 40):
        np.testing.assert_array_equal(computed(layer, x, weights, threads=threads), whole)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Conv(2, (3, 3, 3), padding=(1, 0, 0)), "without padding, got 1x0x0"),
        (Conv(2, (3, 3, 3), stride=(1, 1, 2)), "stride 1 along x, got 2"),
    ],
)
def test_padding_and_strides_along_x_are_refused(layer, reason):
    assert reason in DOTS.supports(layer, (1, 1, 9, 9, 9))


def test_other_configs_and_layouts_are_refused():
    layer = Conv(1, (1, 1, 1))
    with pytest.raises(Unsupported, match=r"cpu\.direct_dots has terms of at least 1, got .* see configs\(\)"):
        DOTS.prepare(layer, {}, (1, 1, 1, 1, 1), with_layouts({"terms": 0}, BLOCKED, PLAIN), 1)
    x, weights = made(layer, (1, 1, 1, 1, 1))
    with pytest.raises(Unsupported, match="cannot take a plain input and give a plain output"):
        DOTS.prepare(layer, weights, x.shape, {"terms": 1}, 1)


def test_weights_of_other_shapes_are_refused():
    layer = Conv(2, (3, 3, 3))
    _, weights = made(layer, (1, 4, 5, 5, 5))
    with pytest.raises(InvalidShape, match="weight must be 2x3x3x3x3, got 2x4x3x3x3"):
        DOTS.prepare(layer, weights, (1, 3, 5, 5, 5), with_layouts({"terms": 8}, BLOCKED, PLAIN), 1)
