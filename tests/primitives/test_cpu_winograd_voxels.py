"""What is peculiar to Winograd convolution along y: ragged blocks, padding, pieces of rows, streamed rows, errors."""

from itertools import product
from math import prod

import numpy as np
import pytest

from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.primitives import cpu_winograd_voxels, get
from znni.primitives.cpu_winograd_voxels import OUTPUTS

from .guarded import Canary
from .truth import truth

WINOGRAD = get("cpu.winograd_voxels")
CONFIG = {"outputs": 4, "stream": False}
FORMS = [(m, r) for r, outputs in OUTPUTS.items() for m in outputs]


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(layer, x, weights, config=CONFIG, threads=2, offset=0):
    operator = WINOGRAD.prepare(layer, weights, x.shape, config, threads)
    out = Canary(operator.out_shape, offset=offset)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(x, out.array, workspace.array)
    assert out.intact and workspace.intact
    return out.array


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("m", "r"), FORMS)
def test_every_form_keeps_to_its_error(m, r):
    for channels, kernel in [(1, (1, r, r)), (1, (3, r, 3)), (2, (3, r, 5)), (1, (1, r, 1)), (7, (3, r, 3))]:
        layer, shape = Conv(24, kernel), (2, channels, 9, 29, 40)
        x, weights = made(layer, shape, 1)
        weights["bias"][:] = 0
        config = {"outputs": m, "stream": False}
        found = error(computed(layer, x, weights, config), truth(layer, weights, x))
        said = WINOGRAD.error(layer, shape, config)
        assert said / 1.5 < found < 1.3 * said, (kernel, said, found)
        assert 4 * said < WINOGRAD.tolerance


@pytest.mark.parametrize("out_channels", [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 28, 80])
def test_channels_left_over_by_the_blocks(out_channels):
    layer = Conv(out_channels, (2, 5, 2), activation=Activation("relu"))
    x, weights = made(layer, (2, 2, 5, 9, 20))
    expected = truth(layer, weights, x)
    for stream in (False, True):
        assert error(computed(layer, x, weights, CONFIG | {"stream": stream}), expected) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 67])
def test_voxels_left_over_by_the_tiles(size):
    for layer, shape in [(Conv(7, (1, 3, 3)), (2, 1, 2, size + 2, 13)), (Conv(7, (2, 5, 1)), (1, 2, 3, 13, size))]:
        x, weights = made(layer, shape)
        expected = truth(layer, weights, x)
        for m, stream in product(OUTPUTS[layer.kernel[1]], (False, True)):
            assert error(computed(layer, x, weights, {"outputs": m, "stream": stream}), expected) < 3e-6


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv(6, (1, 5, 5), padding=(0, 2, 2)), (2, 1, 3, 16, 32)),
        (Conv(6, (3, 3, 3), padding=(1, 1, 1)), (2, 2, 4, 9, 20)),
        (Conv(5, (3, 3, 3), padding=(4, 5, 9)), (1, 1, 1, 2, 3)),
        (Conv(4, (3, 5, 4), stride=(2, 1, 1), padding=(1, 0, 2), dilation=(2, 1, 3)), (2, 2, 9, 11, 23)),
        (Conv(3, (4, 3, 9), dilation=(1, 1, 2)), (1, 1, 7, 8, 40)),
        (Conv(3, (1, 3, 3), padding=(0, 2, 0), dilation=(1, 2, 1)), (1, 2, 2, 7, 20)),
        (Conv(3, (1, 3, 3), dilation=(1, 5, 3)), (1, 2, 2, 24, 32)),
        (Conv(3, (2, 4, 1), padding=(0, 0, 3), dilation=(2, 7, 1)), (2, 1, 4, 23, 16)),
    ],
    ids=str,
)
def test_geometries(layer, shape):
    x, weights = made(layer, shape)
    expected = truth(layer, weights, x)
    for m, stream in product(OUTPUTS[layer.kernel[1]], (False, True)):
        assert error(computed(layer, x, weights, {"outputs": m, "stream": stream}), expected) < 3e-6


@pytest.mark.parametrize("name", sorted(Activation.CODES))
def test_streamed_rows_at_any_alignment(name):
    """Rows of whole cache lines, and others, which are gathered."""
    for layer, shape in [(Conv(5, (1, 3, 1)), (2, 1, 2, 9, 32)), (Conv(5, (1, 3, 2)), (2, 1, 2, 9, 45))]:
        layer = Conv(layer.out_channels, layer.kernel, activation=Activation(name, 0.5, 0.7))
        x, weights = made(layer, shape)
        plain = computed(layer, x, weights)
        assert error(plain, truth(layer, weights, x)) < 2e-6
        for offset in range(0, 64, 4):
            streamed = computed(layer, x, weights, CONFIG | {"stream": True}, offset=offset)
            np.testing.assert_array_equal(streamed, plain)


@pytest.mark.parametrize("point_bytes", [1, 4_000, 9_000])
def test_rows_in_pieces(monkeypatch, point_bytes):
    layer = Conv(7, (2, 3, 5), padding=(0, 1, 2), activation=Activation("elu", 0.7))
    for length in (45, 48, 64, 80):
        x, weights = made(layer, (2, 2, 3, 7, length))
        whole = computed(layer, x, weights)
        assert error(whole, truth(layer, weights, x)) < 1e-6
        monkeypatch.setattr(cpu_winograd_voxels, "_POINT_BYTES", point_bytes)
        cpu_winograd_voxels._tiling.cache_clear()
        for stream in (False, True):
            found = computed(layer, x, weights, CONFIG | {"stream": stream}, threads=3)
            np.testing.assert_array_equal(found, whole)
        monkeypatch.undo()
        cpu_winograd_voxels._tiling.cache_clear()


def test_a_long_row_takes_little_workspace():
    layer = Conv(8, (3, 3, 3))
    short, long = (WINOGRAD.memory(layer, (1, 2, 5, 9, n), CONFIG, 2).host_workspace_bytes for n in (200, 20_000))
    assert long < 4 * short < 4 << 20


def test_threads_change_no_bit():
    layer = Conv(13, (1, 5, 5), padding=(0, 2, 2))
    x, weights = made(layer, (2, 1, 3, 19, 37))
    whole = computed(layer, x, weights, threads=1)
    for threads in (2, 3, 8, 40):
        np.testing.assert_array_equal(computed(layer, x, weights, threads=threads), whole)


def test_other_rows_and_batch_elements_do_not_matter():
    """A NaN stays in its tile of rows, and in the columns that see it."""
    layer = Conv(3, (1, 3, 3))
    x, weights = made(layer, (2, 1, 2, 14, 40))
    clean = computed(layer, x, weights)
    x[0, 0, 1, 1, 20] = np.nan
    y = computed(layer, x, weights)
    assert np.isnan(y[0, :, 1, :2, 18:21]).all()
    y[0, :, 1, :4, 18:21] = clean[0, :, 1, :4, 18:21]
    np.testing.assert_array_equal(y, clean)


def test_configs_are_of_use():
    layer = Conv(28, (1, 5, 5), padding=(0, 2, 2))
    large, small = (WINOGRAD.configs(layer, (1, 1, *size)) for size in ((18, 160, 160), (2, 20, 20)))
    assert large == [{"outputs": 4, "stream": True}, {"outputs": 2, "stream": True}]
    assert small[0] == {"outputs": 4, "stream": False} and {"outputs": 4, "stream": True} in small
    assert {c["outputs"] for c in WINOGRAD.configs(Conv(2, (1, 5, 5)), (1, 1, 2, 6, 20))} == {2}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Conv(2, (3, 3, 3), stride=(1, 2, 1)), "stride 1 along y and x, got 1x2x1; use cpu.direct"),
        (Conv(2, (3, 2, 3)), "kernels of 3 to 7 along y, got 3x2x3; use cpu.direct_voxels"),
        (Conv(2, (3, 8, 3)), "kernels of 3 to 7 along y, got 3x8x3; use cpu.direct_voxels"),
        (Conv(2, (3, 9, 3)), "at least 9 voxels along y, got 8"),
        (Conv(2, (5, 3, 3)), "at most 72 times kernel voxels along z and x, got 75; use cpu.winograd"),
    ],
)
def test_what_it_does_not_support(layer, reason):
    assert reason in WINOGRAD.supports(layer, (1, 5, 8, 8, 8))


@pytest.mark.parametrize("change", [{"outputs": 6}, {"outputs": 3}, {"outputs": None}, {"stream": 1}])
def test_configs_that_cannot_be(change):
    layer, shape = Conv(2, (1, 5, 5)), (1, 1, 8, 8, 8)
    for call in (
        lambda: WINOGRAD.memory(layer, shape, CONFIG | change, 1),
        lambda: WINOGRAD.prepare(layer, made(layer, shape)[1], shape, CONFIG | change, 1),
    ):
        with pytest.raises(Unsupported, match=r"outputs \(2 or 4, with a kernel of 5 along y\) and stream"):
            call()


def test_weights_of_another_layer():
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    weights = made(layer, shape)[1] | {"weight": np.zeros((2, 1, 3, 3, 4), np.float32)}
    with pytest.raises(InvalidShape, match="weight must be 2x1x3x3x3, got 2x1x3x3x4"):
        WINOGRAD.prepare(layer, weights, shape, CONFIG, 1)
