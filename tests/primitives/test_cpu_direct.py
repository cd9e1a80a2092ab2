"""What is peculiar to the direct convolutions: blocks, ragged edges, layouts, slabs of padded input, long sums."""

from math import prod

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.layouts import BLOCKED, LANES, PLAIN, array_shape, packed, unpacked, with_layouts
from znni.primitives import cpu_direct, get

from .guarded import Canary
from .truth import truth

CHANNELS, VOXELS = get("cpu.direct"), get("cpu.direct_voxels")
CONFIG = {"terms": 432, "points": 96, "stream": False}
BOTH = pytest.mark.parametrize("primitive", [CHANNELS, VOXELS], ids=lambda p: p.name)


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(primitive, layer, x, weights, config=CONFIG, threads=2, offset=0):
    operator = primitive.prepare(layer, weights, x.shape, config, threads)
    out = Canary(array_shape(operator.out_shape, operator.gives), offset=offset)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(packed(x, operator.takes), out.array, workspace.array)
    assert out.intact and workspace.intact
    return unpacked(out.array, layer.out_channels, operator.gives)


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@BOTH
@pytest.mark.parametrize("out_channels", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 25, 33, 50])
def test_channels_left_over_by_the_blocks(primitive, out_channels):
    layer = Conv(out_channels, (2, 3, 2), activation=Activation("relu"))
    x, weights = made(layer, (2, 3, 5, 6, 20))
    expected = truth(layer, weights, x)
    for terms, points in [(432, 96), (7, 13), (24, 40)]:
        for pair in primitive.layouts:
            config = with_layouts({"terms": terms, "points": points, "stream": False}, *pair)
            assert error(computed(primitive, layer, x, weights, config), expected) < 1e-6


@BOTH
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 33, 67])
def test_voxels_left_over_by_the_blocks(primitive, size):
    """Rows shorter than a vector, planes joined into lines, lines cut into pieces, chunks that span the batch."""
    layer = Conv(6, (2, 2, 3))
    for shape in [(3, 2, 3, 4, size + 2), (1, 5, 2, size + 1, 5), (7, 1, 2, 2, size + 2)]:
        x, weights = made(layer, shape)
        if primitive.supports(layer, shape):
            continue
        expected = truth(layer, weights, x)
        for points in (1, 3, 8, 50, 1000):
            config = {"terms": 12 * (1 + points % 2), "points": points, "stream": False}
            for pair in primitive.layouts:
                found = computed(primitive, layer, x, weights, with_layouts(config, *pair), threads=1 + points % 3)
                assert error(found, expected) < 1e-6


@BOTH
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv(20, (1, 1, 1)), (2, 9, 7, 9, 11)),
        (Conv(5, (3, 1, 1)), (2, 4, 7, 5, 7)),
        (Conv(12, (1, 3, 3)), (1, 9, 4, 19, 30)),
        (Conv(10, (9, 9, 9)), (1, 2, 11, 12, 25)),
        (Conv(9, (3, 2, 3), dilation=(2, 3, 4)), (2, 6, 9, 9, 31)),
        (Conv(9, (3, 2, 2), stride=(2, 3, 1)), (2, 6, 10, 11, 20)),
        (Conv(80, (2, 2, 2), activation=Activation("tanh", 1.7159, 2 / 3)), (1, 1, 9, 10, 27)),
        (Conv(3, (3, 3, 3), activation=Activation("sigmoid")), (1, 40, 10, 10, 26)),
    ],
    ids=str,
)
def test_geometries(primitive, layer, shape):
    x, weights = made(layer, shape)
    expected = truth(layer, weights, x)
    for pair in primitive.layouts:
        assert error(computed(primitive, layer, x, weights, with_layouts(CONFIG, *pair)), expected) < 1e-6


@pytest.mark.parametrize("stride", [(1, 1, 2), (2, 2, 2), (3, 1, 5)])
def test_strides_along_x(stride):
    layer = Conv(18, (3, 2, 3), stride=stride, dilation=(1, 2, 1))
    x, weights = made(layer, (2, 5, 9, 10, 23))
    for pair in CHANNELS.layouts:
        found = computed(CHANNELS, layer, x, weights, with_layouts(CONFIG, *pair))
        assert error(found, truth(layer, weights, x)) < 1e-6
    assert f"needs stride 1 along x, got {stride[2]}; use cpu.direct" in VOXELS.supports(layer, x.shape)


@pytest.mark.parametrize("slab_bytes", [1, 20_000, 100_000, 1 << 30])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv(7, (3, 3, 3), padding=(1, 1, 1)), (3, 4, 9, 6, 13)),
        (Conv(5, (1, 3, 3), padding=(0, 1, 1)), (2, 6, 9, 8, 21)),
        (Conv(9, (3, 2, 3), (2, 1, 1), (4, 0, 1), (2, 1, 1)), (1, 3, 12, 7, 8)),
        (Conv(4, (1, 1, 1), padding=(2, 0, 3)), (2, 3, 3, 4, 5)),
        (Conv(3, (5, 5, 5), padding=(4, 4, 4)), (1, 2, 1, 2, 1)),
    ],
    ids=str,
)
def test_padding_in_slabs(monkeypatch, layer, shape, slab_bytes):
    monkeypatch.setattr(cpu_direct, "_SLAB_BYTES", slab_bytes)
    cpu_direct._blocking.cache_clear()
    x, weights = made(layer, shape)
    expected = truth(layer, weights, x)
    for primitive in (CHANNELS, VOXELS):
        for config in (CONFIG, CONFIG | {"points": 5, "terms": 20}):
            for pair in primitive.layouts:
                assert error(computed(primitive, layer, x, weights, with_layouts(config, *pair)), expected) < 1e-6
    cpu_direct._blocking.cache_clear()


def test_a_small_slab_takes_little_workspace():
    padded = Conv(8, (3, 3, 3), padding=(1, 1, 1))
    shape = (1, 32, 128, 64, 64)
    bare = CHANNELS.memory(Conv(8, (3, 3, 3)), shape, CONFIG, 2).host_workspace_bytes
    slab = CHANNELS.memory(padded, shape, CONFIG, 2).host_workspace_bytes - bare
    assert 0 < slab <= 2 * cpu_direct._SLAB_BYTES < 4 * prod(shape)


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu", "elu", "tanh", "sigmoid"])
def test_streamed_stores_at_any_alignment(activation):
    layer = Conv(5, (1, 2, 2), activation=Activation.of(activation))
    x, weights = made(layer, (2, 3, 3, 7, 40))
    plain = computed(VOXELS, layer, x, weights, CONFIG)
    assert error(plain, truth(layer, weights, x)) < 1e-6
    for offset in range(0, 64, 4):
        streamed = computed(VOXELS, layer, x, weights, CONFIG | {"stream": True, "points": 7}, offset=offset)
        np.testing.assert_array_equal(streamed, plain)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_large_blocked_outputs_are_streamed_at_any_alignment(monkeypatch, activation):
    layer = Conv(LANES + 3, (1, 2, 2), activation=Activation.of(activation))
    x, weights = made(layer, (2, 3, 3, 7, 40))
    config = with_layouts(CONFIG, PLAIN, BLOCKED)
    through_caches = computed(CHANNELS, layer, x, weights, config)
    assert error(through_caches, truth(layer, weights, x)) < 1e-6
    monkeypatch.setattr(cpu_direct, "_CACHED_BYTES", 0)
    cpu_direct._blocking.cache_clear()
    for offset in range(0, 64, 4):
        np.testing.assert_array_equal(computed(CHANNELS, layer, x, weights, config, offset=offset), through_caches)
    cpu_direct._blocking.cache_clear()


@BOTH
def test_threads_and_chunks_change_no_bit(primitive):
    layer = Conv(37, (3, 3, 3), activation=Activation("elu", 0.7))
    x, weights = made(layer, (2, 5, 7, 8, 21))
    whole = computed(primitive, layer, x, weights, CONFIG, threads=1)
    for threads, points in [(2, 384), (3, 17), (8, 24), (40, 100)]:
        for pair in primitive.layouts:
            config = with_layouts(CONFIG | {"points": points}, *pair)
            np.testing.assert_array_equal(computed(primitive, layer, x, weights, config, threads), whole)


@BOTH
def test_long_sums_stay_accurate(primitive):
    layer = Conv(2, (9, 9, 9))
    x, weights = made(layer, (1, 33, 10, 10, 16))
    x += 1  # sums that grow steadily lose more than those that wander
    assert error(computed(primitive, layer, x, weights), truth(layer, weights, x)) < 1e-6


def test_what_does_not_belong_to_the_result_is_not_let_in():
    """Vectors read past their rows; a NaN there must not spread."""
    layer = Conv(3, (2, 2, 2))
    x, weights = made(layer, (1, 2, 5, 6, 12))
    x[..., -1] = np.nan
    for primitive, config in ((CHANNELS, CONFIG), (VOXELS, CONFIG), (VOXELS, CONFIG | {"terms": 8, "points": 2})):
        y = computed(primitive, layer, x, weights, config)
        assert np.isnan(y[..., -1]).all() and not np.isnan(y[..., :-1]).any()


def test_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    for layer, shape in [
        (Conv(24, (3, 3, 3), dilation=(1, 2, 2)), (1, 16, 8, 12, 25)),
        (Conv(8, (3, 4, 5), (2, 1, 3), (1, 2, 0)), (2, 3, 9, 11, 22)),
    ]:
        x, weights = made(layer, shape)
        expected = torch.nn.functional.conv3d(
            *map(torch.from_numpy, (x, weights["weight"], weights["bias"])), layer.stride, layer.padding, layer.dilation
        ).numpy()
        for primitive in (CHANNELS, VOXELS):
            if not primitive.supports(layer, shape):
                for config in primitive.configs(layer, shape):
                    found = computed(primitive, layer, x, weights, config)
                    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_guesses_tell_which_lanes_a_layer_fills():
    def arithmetic(primitive, out_channels, shape):
        layer = Conv(out_channels, (3, 3, 3))
        return primitive.cost(layer, shape, primitive.configs(layer, shape)[0]).flop / primitive.efficiency[0]

    assert arithmetic(CHANNELS, 80, (1, 80, 58, 58, 58)) < arithmetic(VOXELS, 80, (1, 80, 58, 58, 58))
    assert arithmetic(CHANNELS, 80, (64, 80, 15, 15, 15)) < arithmetic(VOXELS, 80, (64, 80, 15, 15, 15))
    assert arithmetic(CHANNELS, 3, (1, 80, 42, 42, 42)) > arithmetic(VOXELS, 3, (1, 80, 42, 42, 42))


def test_large_outputs_of_few_terms_are_streamed():
    layer = Conv(80, (2, 2, 2))
    assert VOXELS.configs(layer, (1, 1, 190, 190, 190))[0]["stream"]
    assert not VOXELS.configs(layer, (1, 1, 20, 20, 20))[0]["stream"]


def test_packed_weights_are_not_the_callers():
    layer = Conv(5, (3, 3, 3))
    x, weights = made(layer, (1, 2, 5, 5, 12))
    operator = CHANNELS.prepare(layer, weights, x.shape, CONFIG, 1)
    expected = truth(layer, weights, x)
    weights["weight"][:] = 0
    weights["bias"][:] = 0
    out = np.empty(operator.out_shape, np.float32)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    assert error(out, expected) < 1e-6


@pytest.mark.parametrize("config", [{}, {"terms": 1}, {"terms": 0, "points": 8}, {"terms": 8, "points": 2.5}])
@BOTH
def test_other_configs_are_refused(primitive, config):
    with pytest.raises(Unsupported, match=rf"a config of {primitive.name} has terms and points .* see configs\(\)"):
        primitive.prepare(Conv(1, (1, 1, 1)), {}, (1, 1, 1, 1, 16), config, 1)


def test_inputs_shorter_than_a_vector_are_refused_by_voxels():
    reason = VOXELS.supports(Conv(2, (2, 2, 2)), (1, 1, 2, 2, 2))
    assert "voxels at once, and there are fewer" in reason and "use cpu.direct" in reason


def test_weights_of_other_shapes_are_refused():
    layer = Conv(2, (3, 3, 3))
    _, weights = made(layer, (1, 4, 5, 5, 5))
    with pytest.raises(InvalidShape, match="weight must be 2x3x3x3x3, got 2x4x3x3x3"):
        CHANNELS.prepare(layer, weights, (1, 3, 5, 5, 5), CONFIG, 1)
