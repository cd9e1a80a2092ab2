"""What is peculiar to the fused convolution and fragments: parts, tiles and their rims, NaN, activations that fall."""

from math import prod

import numpy as np
import pytest

from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv, ConvMaxPoolFragments, MaxPoolFragments
from znni.layouts import array_shape, packed, unpacked, with_layouts
from znni.primitives import get

from .guarded import Canary
from .truth import truth

FUSED = get("cpu.direct_mpf")
RELU = Activation("relu")
PAIRS = FUSED.layouts


def fused(out_channels, kernel, window, stride, parts=1, activation=RELU, dilation=(1, 1, 1)):
    conv = Conv(out_channels, kernel, dilation=dilation, activation=activation)
    return ConvMaxPoolFragments(conv, MaxPoolFragments(window, stride), parts)


def shape_for(layer, size, batch=1, channels=1):
    """The input of which one fragment has `size` voxels."""
    pool = layer.pool
    spans = zip(layer.conv.extent, pool.window, pool.stride, size, strict=True)
    return (batch, channels, *(e + w + s * q - 2 for e, w, s, q in spans))


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(layer, x, weights, config, threads=2, part=0, offset=0):
    operator = FUSED.prepare(layer, weights, x.shape, config, threads)
    operator.part = part
    out = Canary(array_shape(operator.out_shape, operator.gives), offset=offset)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(packed(x, operator.takes), out.array, workspace.array)
    assert out.intact and workspace.intact
    return unpacked(out.array, operator.out_shape[1], operator.gives)


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


WINDOWS = [
    ((2, 2, 2), (2, 2, 2), (1, 2, 4, 8)),
    ((3, 3, 3), (3, 3, 3), (3, 9, 27)),
    ((2, 2, 3), (3, 2, 2), (2, 3, 4, 6, 12)),  # parts that are no boxes
    ((1, 3, 2), (1, 2, 4), (2, 4, 8)),
    ((1, 1, 1), (2, 3, 2), (2, 3, 4, 6, 12)),  # a part needs few voxels of the convolution
    ((3, 2, 1), (1, 1, 1), (1,)),
    ((5, 4, 3), (2, 3, 1), (3, 6)),
]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize(("window", "stride", "cuts"), WINDOWS, ids=str)
def test_parts_together_are_the_whole(window, stride, cuts, pair):
    whole = fused(19, (2, 1, 3), window, stride)
    shape = shape_for(whole, (3, 4, 7), channels=3)
    x, weights = made(whole, shape)
    expected = truth(whole, weights, x)
    config = with_layouts({"tile": [5, 6], "stream": False}, *pair)
    assert error(computed(whole, x, weights, config), expected) < 1e-6
    for parts in cuts:
        layer = fused(19, (2, 1, 3), window, stride, parts)
        count = prod(stride) // parts
        for part in range(parts):
            y = computed(layer, x, weights, config, part=part)
            assert y.shape == layer.output_shape(shape)
            assert error(y, expected[part * count : (part + 1) * count]) < 1e-6


def test_a_part_computes_no_more_than_it_needs():
    """A NaN that no window of a part touches does not matter, and shows in every window that touches it."""
    for window in (1, 2):
        layer = fused(3, (1, 1, 1), (window,) * 3, (2, 2, 2), parts=8)
        shape = shape_for(layer, (3, 3, 5))
        x, weights = made(layer, shape)
        x[0, 0, 2, 3, 4] = np.nan
        for config in FUSED.configs(layer, shape):
            for part in range(8):
                y = computed(layer, x, weights, config, part=part)
                expected = truth(fused(3, (1, 1, 1), (window,) * 3, (2, 2, 2)), weights, x)[part : part + 1]
                np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
                np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("window", [(2, 2, 2), (3, 3, 3)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_where_it_should(value, window, pair):
    layer = fused(9, (2, 2, 2), window, (2, 2, 2), activation=Activation())
    shape = shape_for(layer, (3, 4, 6), batch=2, channels=2)
    x, weights = made(layer, shape)
    x[1, 1, 3, 4, 5] = value
    config = with_layouts({"tile": [4, 4], "stream": True}, *pair)
    expected = truth(layer, weights, x)
    y = computed(layer, x, weights, config)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        Activation(),
        RELU,
        Activation("leaky_relu", 0.1),
        Activation("leaky_relu", -0.5),
        Activation("elu", 1.5),
        Activation("elu", -0.7),
        Activation("tanh", 1.7159, 2 / 3),
        Activation("tanh", -1.7159, 2 / 3),
        Activation("tanh", -1.0, -1.0),
        Activation("sigmoid"),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [(2, 2, 2), (3, 1, 2)])
def test_activations_that_rise_and_that_fall(activation, window):
    layer = fused(13, (2, 2, 2), window, (2, 2, 2), activation=activation)
    x, weights = made(layer, shape_for(layer, (2, 5, 9), channels=3))
    expected = truth(layer, weights, x)
    for pair in PAIRS:
        config = with_layouts({"tile": [6, 8], "stream": False}, *pair)
        assert error(computed(layer, x, weights, config), expected) < 1e-6


@pytest.mark.parametrize("out_channels", [1, 3, 7, 8, 9, 15, 16, 17, 24, 31, 40])
def test_channels_left_over_by_the_vectors(out_channels):
    layer = fused(out_channels, (1, 2, 2), (2, 2, 2), (2, 2, 2), activation=Activation("sigmoid"))
    x, weights = made(layer, shape_for(layer, (2, 3, 5), batch=2, channels=9))
    expected = truth(layer, weights, x)
    for pair in PAIRS:
        for stream in (False, True):
            config = with_layouts({"tile": [64, 64], "stream": stream}, *pair)
            assert error(computed(layer, x, weights, config), expected) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 33])
def test_rows_left_over_by_the_blocks_and_tiles(size):
    layer = fused(10, (2, 2, 3), (2, 2, 2), (2, 2, 2), dilation=(1, 2, 1))
    x, weights = made(layer, shape_for(layer, (2, 2, size), channels=2))
    expected = truth(layer, weights, x)
    for tile in ([1, 1], [2, 7], [3, 12], [64, 64]):
        for pair in PAIRS:
            config = with_layouts({"tile": tile, "stream": False}, *pair)
            assert error(computed(layer, x, weights, config), expected) < 1e-6


def test_terms_beyond_one_span():
    layer = fused(9, (7, 6, 5), (2, 2, 2), (2, 2, 2))
    x, weights = made(layer, shape_for(layer, (2, 2, 5), channels=9))
    for pair in PAIRS:
        config = with_layouts(FUSED.configs(layer, x.shape)[0], *pair)
        assert error(computed(layer, x, weights, config), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_streamed_stores_at_any_alignment(pair):
    layer = fused(12, (1, 2, 2), (2, 2, 2), (2, 2, 2))
    x, weights = made(layer, shape_for(layer, (2, 3, 32), channels=2))
    config = with_layouts({"tile": [4, 24]}, *pair)
    plain = computed(layer, x, weights, config | {"stream": False})
    assert error(plain, truth(layer, weights, x)) < 1e-6
    for offset in range(0, 64, 4):
        streamed = computed(layer, x, weights, config | {"stream": True}, offset=offset)
        np.testing.assert_array_equal(streamed, plain)


def test_threads_and_tiles_change_no_bit():
    layer = fused(24, (3, 3, 3), (2, 2, 2), (2, 2, 2), activation=Activation("elu", 0.7))
    x, weights = made(layer, shape_for(layer, (5, 6, 9), batch=2, channels=4))
    whole = computed(layer, x, weights, {"tile": [64, 64], "stream": False}, threads=1)
    for threads, tile in [(2, [4, 6]), (3, [2, 64]), (8, [64, 2]), (40, [6, 6])]:
        y = computed(layer, x, weights, {"tile": tile, "stream": True}, threads)
        np.testing.assert_array_equal(y, whole)


def test_memory_does_not_grow_with_the_input():
    layer = fused(80, (4, 4, 4), (2, 2, 2), (2, 2, 2), parts=8)
    shape = (1, 1, 350, 350, 350)
    for config in FUSED.configs(layer, shape):
        assert FUSED.memory(layer, shape, config, 2).host_workspace_bytes < 4 << 20


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (Conv(2, (3, 3, 3), stride=(1, 1, 2)), "stride 1, got 1x1x2"),
        (Conv(2, (3, 3, 3), padding=(1, 1, 1)), "without padding, got 1x1x1"),
    ],
)
def test_strides_and_padding_are_refused(conv, reason):
    layer = ConvMaxPoolFragments(conv, MaxPoolFragments((1, 1, 1), (1, 1, 1)))
    assert reason in FUSED.supports(layer, (1, 1, 9, 9, 9))


def test_parts_that_do_not_fit_are_refused():
    layer = fused(2, (2, 2, 2), (2, 2, 2), (2, 2, 2), parts=3)
    assert "3 parts need a batch of 1" in FUSED.supports(layer, shape_for(layer, (2, 2, 2)))
    layer = fused(2, (2, 2, 2), (2, 2, 2), (2, 2, 2), parts=2)
    assert "2 parts need a batch of 1" in FUSED.supports(layer, shape_for(layer, (2, 2, 2), batch=2))
    x, weights = made(layer, shape_for(layer, (2, 2, 2)))
    for part in (-1, 2):
        with pytest.raises(InvalidShape, match=f"this layer has parts 0 to 1, got part {part}"):
            computed(layer, x, weights, {"tile": [8, 8], "stream": False}, part=part)


@pytest.mark.parametrize(
    "config", [{}, {"tile": [0, 4], "stream": True}, {"tile": 4, "stream": True}, {"tile": [4, 4]}]
)
def test_other_configs_are_refused(config):
    layer = fused(1, (1, 1, 1), (1, 1, 1), (1, 1, 1))
    with pytest.raises(Unsupported, match=r"cpu\.direct_mpf has a tile, .* see configs\(\)"):
        FUSED.prepare(layer, {}, (1, 1, 1, 1, 1), config, 1)


def test_weights_of_other_shapes_are_refused():
    layer = fused(2, (3, 3, 3), (1, 1, 1), (1, 1, 1))
    _, weights = made(layer, (1, 4, 5, 5, 5))
    with pytest.raises(InvalidShape, match="weight must be 2x3x3x3x3, got 2x4x3x3x3"):
        FUSED.prepare(layer, weights, (1, 3, 5, 5, 5), FUSED.configs(layer, (1, 3, 5, 5, 5))[0], 1)
