"""What is peculiar to the direct convolution: its forms and blocks, ragged edges, slabs of padded input, long sums."""

from math import prod

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.primitives import cpu_direct, get

from .guarded import Canary
from .truth import truth

DIRECT = get("cpu.direct")
CHANNELS, VOXELS = {"form": "channels", "terms": 432, "points": 384}, {"form": "voxels", "terms": 432, "points": 96}


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(layer, x, weights, config, threads=2, offset=0):
    operator = DIRECT.prepare(layer, weights, x.shape, config, threads)
    out = Canary(operator.out_shape, offset=offset)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(x, out.array, workspace.array)
    assert out.intact and workspace.intact
    return out.array


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("form", ["channels", "voxels"])
@pytest.mark.parametrize("out_channels", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 25, 33, 50])
def test_channels_left_over_by_the_blocks(form, out_channels):
    layer = Conv(out_channels, (2, 3, 2), activation=Activation("relu"))
    x, weights = made(layer, (2, 3, 5, 6, 20))
    expected = truth(layer, weights, x)
    for config in [{"terms": 432, "points": 96}, {"terms": 7, "points": 13}, {"terms": 24, "points": 40}]:
        assert error(computed(layer, x, weights, config | {"form": form}), expected) < 1e-6


@pytest.mark.parametrize("form", ["channels", "voxels"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 33, 67])
def test_voxels_left_over_by_the_blocks(form, size):
    """Rows shorter than a vector, planes joined into lines, lines cut into pieces, chunks that span the batch."""
    layer = Conv(6, (2, 2, 3))
    for shape in [(3, 2, 3, 4, size + 2), (1, 5, 2, size + 1, 5), (7, 1, 2, 2, size + 2)]:
        x, weights = made(layer, shape)
        if form == "voxels" and cpu_direct._unreadable(layer, shape):
            continue
        expected = truth(layer, weights, x)
        for points in (1, 3, 8, 50, 1000):
            config = {"form": form, "terms": 12 * (1 + points % 2), "points": points}
            assert error(computed(layer, x, weights, config, threads=1 + points % 3), expected) < 1e-6


@pytest.mark.parametrize("config", [CHANNELS, VOXELS], ids=lambda c: c["form"])
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
def test_geometries(config, layer, shape):
    x, weights = made(layer, shape)
    assert error(computed(layer, x, weights, config), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("stride", [(1, 1, 2), (2, 2, 2), (3, 1, 5)])
def test_strides_along_x(stride):
    layer = Conv(18, (3, 2, 3), stride=stride, dilation=(1, 2, 1))
    x, weights = made(layer, (2, 5, 9, 10, 23))
    assert error(computed(layer, x, weights, CHANNELS), truth(layer, weights, x)) < 1e-6
    with pytest.raises(Unsupported, match=rf"'voxels'.* stride 1 along x, got {stride[2]}; use form 'channels'"):
        DIRECT.memory(layer, x.shape, VOXELS, 1)
    assert {c["form"] for c in DIRECT.configs(layer, x.shape)} == {"channels"}


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
    for config in (CHANNELS, VOXELS, CHANNELS | {"points": 20}, VOXELS | {"points": 5, "terms": 20}):
        assert error(computed(layer, x, weights, config), expected) < 1e-6
    cpu_direct._blocking.cache_clear()


def test_a_small_slab_takes_little_workspace():
    padded = Conv(8, (3, 3, 3), padding=(1, 1, 1))
    shape = (1, 32, 128, 64, 64)
    bare = DIRECT.memory(Conv(8, (3, 3, 3)), shape, CHANNELS, 2).host_workspace_bytes
    slab = DIRECT.memory(padded, shape, CHANNELS, 2).host_workspace_bytes - bare
    assert 0 < slab <= 2 * cpu_direct._SLAB_BYTES < 4 * prod(shape)


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu", "elu", "tanh", "sigmoid"])
def test_streamed_stores_at_any_alignment(activation):
    layer = Conv(5, (1, 2, 2), activation=Activation.of(activation))
    x, weights = made(layer, (2, 3, 3, 7, 40))
    plain = computed(layer, x, weights, VOXELS | {"stream": False})
    assert error(plain, truth(layer, weights, x)) < 1e-6
    for offset in range(0, 64, 4):
        streamed = computed(layer, x, weights, VOXELS | {"stream": True, "points": 7}, offset=offset)
        np.testing.assert_array_equal(streamed, plain)


@pytest.mark.parametrize("config", [CHANNELS, VOXELS], ids=lambda c: c["form"])
def test_threads_and_chunks_change_no_bit(config):
    layer = Conv(37, (3, 3, 3), activation=Activation("elu", 0.7))
    x, weights = made(layer, (2, 5, 7, 8, 21))
    whole = computed(layer, x, weights, config, threads=1)
    for threads, points in [(2, 384), (3, 17), (8, 24), (40, 100)]:
        np.testing.assert_array_equal(computed(layer, x, weights, config | {"points": points}, threads), whole)


@pytest.mark.parametrize("config", [CHANNELS, VOXELS], ids=lambda c: c["form"])
def test_long_sums_stay_accurate(config):
    layer = Conv(2, (9, 9, 9))
    x, weights = made(layer, (1, 33, 10, 10, 16))
    x += 1  # sums that grow steadily lose more than those that wander
    assert error(computed(layer, x, weights, config), truth(layer, weights, x)) < 1e-6


def test_what_does_not_belong_to_the_result_is_not_let_in():
    """Vectors read past their rows; a NaN there must not spread."""
    layer = Conv(3, (2, 2, 2))
    x, weights = made(layer, (1, 2, 5, 6, 12))
    x[..., -1] = np.nan
    for config in (CHANNELS, VOXELS, VOXELS | {"terms": 8, "points": 2}):
        y = computed(layer, x, weights, config)
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
        for config in DIRECT.configs(layer, shape):
            np.testing.assert_allclose(computed(layer, x, weights, config), expected, rtol=2e-5, atol=2e-5)


def test_the_first_guess_fills_the_lanes():
    def first(out_channels, kernel, shape):
        return DIRECT.configs(Conv(out_channels, kernel), shape)[0]

    assert first(80, (3, 3, 3), (1, 80, 58, 58, 58))["form"] == "channels"
    assert first(80, (3, 3, 3), (64, 80, 15, 15, 15))["form"] == "channels"
    assert first(3, (3, 3, 3), (1, 80, 40, 40, 40))["form"] == "voxels"
    large = first(80, (2, 2, 2), (1, 1, 190, 190, 190))
    assert large["form"] == "voxels" and large["stream"]
    assert not first(80, (2, 2, 2), (1, 1, 20, 20, 20))["stream"]


def test_packed_weights_are_not_the_callers():
    layer = Conv(5, (3, 3, 3))
    x, weights = made(layer, (1, 2, 5, 5, 12))
    operator = DIRECT.prepare(layer, weights, x.shape, CHANNELS, 1)
    expected = truth(layer, weights, x)
    weights["weight"][:] = 0
    weights["bias"][:] = 0
    out = np.empty(operator.out_shape, np.float32)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    assert error(out, expected) < 1e-6


@pytest.mark.parametrize(
    "config",
    [{}, {"form": "tiles", "terms": 8, "points": 8}, CHANNELS | {"terms": 0}, VOXELS | {"points": 2.5}, {"terms": 1}],
)
def test_other_configs_are_refused(config):
    with pytest.raises(Unsupported, match=r"cpu\.direct has a form, 'channels' or 'voxels', .* see configs\(\)"):
        DIRECT.prepare(Conv(1, (1, 1, 1)), {}, (1, 1, 1, 1, 1), config, 1)


def test_inputs_shorter_than_a_vector_are_refused_by_voxels():
    layer, shape = Conv(2, (2, 2, 2)), (1, 1, 2, 2, 2)
    with pytest.raises(Unsupported, match=r"voxels at once, and there are fewer .*; use form 'channels'"):
        DIRECT.prepare(layer, made(layer, shape)[1], shape, VOXELS, 1)


def test_weights_of_other_shapes_are_refused():
    layer = Conv(2, (3, 3, 3))
    _, weights = made(layer, (1, 4, 5, 5, 5))
    with pytest.raises(InvalidShape, match="weight must be 2x3x3x3x3, got 2x4x3x3x3"):
        DIRECT.prepare(layer, weights, (1, 3, 5, 5, 5), CHANNELS, 1)
