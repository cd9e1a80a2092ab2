"""What is peculiar to the tiled FFT convolution: transforms, tiles and sub-lattices, blocks, spectra, odd matrices."""

from math import prod

import numpy as np
import pytest

from znni._kernels import fft_tiled
from znni.errors import InvalidShape, Unsupported
from znni.fft_sizes import good_sizes
from znni.layers import Activation, Conv
from znni.layouts import array_shape, packed, unpacked, with_layouts
from znni.primitives import config_key, get

from .guarded import Canary
from .truth import truth

TILED = get("cpu.fft_tiled")
LANES = fft_tiled.LANES


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(
    layer, x, weights, tile, block=5, spectra="resident", threads=1, product="gauss", layouts=TILED.layouts[0]
):
    config = with_layouts({"tile": list(tile), "block": block, "spectra": spectra, "product": product}, *layouts)
    operator = TILED.prepare(layer, weights, x.shape, config, threads)
    out = Canary(array_shape(operator.out_shape, operator.gives))
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(packed(x, operator.takes), out.array, workspace.array)
    assert out.intact and workspace.intact
    result = unpacked(out.array, layer.out_channels, operator.gives)
    assert np.array_equal(packed(result, operator.gives), out.array, equal_nan=True), "lanes left over are not zero"
    return result


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("axis", range(3))
def test_every_size_of_transform(axis):
    """Against the definition, for every size of tile up to 512: codelets and general passes, odd and even."""
    rng = np.random.default_rng(axis)
    for n in good_sizes(3, 512):
        kernel, shape, tile = [1, 1, 1], [2, 1, 1, 1, 1], [1, 1, 1]
        kernel[axis], shape[2 + axis], tile[axis] = 3, 2 * n + 1, n
        layer = Conv(1, tuple(kernel))
        x, weights = made(layer, tuple(shape), n)
        weights["bias"][:] = 0
        expected = [np.correlate(row.astype(np.float64), weights["weight"].ravel()) for row in x.reshape(2, -1)]
        y = computed(layer, x, weights, tile, spectra=rng.choice(["resident", "recomputed"]))
        assert error(y.reshape(2, -1), expected) < 4e-7, n


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 9, 17, 33])
@pytest.mark.parametrize("out_channels", [1, 3, 8, 9, 16, 17, 31])
def test_ragged_channels(channels, out_channels):
    layer = Conv(out_channels, (2, 3, 2), activation=Activation("relu"))
    x, weights = made(layer, (2, channels, 9, 8, 10))
    expected = truth(layer, weights, x)
    for tile, block in [((6, 5, 8), 5), ((4, 9, 7), 1000)]:
        assert error(computed(layer, x, weights, tile, block, threads=2), expected) < 1e-6


@pytest.mark.parametrize("product", ["gauss", "plain"])
@pytest.mark.parametrize("rows", range(1, 26))
def test_rows_left_over_by_the_matrix_product(rows, product):
    layer = Conv(2 * LANES + 1, (1, 1, 2))
    x, weights = made(layer, (rows, 5, 1, 2, 6))
    for block in (rows, 7):
        y = computed(layer, x, weights, (1, 2, 6), block, product=product)
        assert error(y, truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize(
    "channels", [(1, 1), (LANES, LANES), (LANES + 1, 2 * LANES - 1), (3 * LANES + LANES // 2,) * 2]
)
@pytest.mark.parametrize("layouts", TILED.layouts)
def test_layouts_with_tiles_of_every_kind(channels, layouts):
    """Odd and even numbers of planes, tiles shifted back, several batch elements and blocks; lanes left over are zero."""
    layer = Conv(channels[1], (3, 2, 3), activation=Activation("sigmoid"))
    x, weights = made(layer, (2, channels[0], 11, 9, 13))
    expected = truth(layer, weights, x)
    for tile in [(6, 5, 8), (7, 10, 5), (15, 16, 18)]:
        for product, spectra in [("gauss", "quarters"), ("plain", "resident"), ("plain", "recomputed")]:
            y = computed(layer, x, weights, tile, 7, spectra, 1, product, layouts)
            assert error(y, expected) < 1e-6


def test_a_large_output_is_written_past_the_caches():
    """The same numbers as in the plain layout, which is written another way."""
    layer = Conv(LANES, (1, 2, 2), activation=Activation("relu"))
    x, weights = made(layer, (1, LANES, 63, 65, 69))
    y = computed(layer, x, weights, (2, 16, 20), layouts=("blocked", "blocked"), threads=2)
    assert 4 * y.size >= 8 << 20
    assert error(y, computed(layer, x, weights, (2, 16, 20))) < 1e-6


@pytest.mark.parametrize("layouts", [("plain", "plain"), ("blocked", "blocked")])
@pytest.mark.parametrize("dilation", [(1, 1, 1), (1, 2, 3), (2, 5, 1)])
@pytest.mark.parametrize("padding", [(1, 1, 1), (2, 0, 1), (0, 2, 2), (4, 3, 9)])
def test_padding_is_of_zeros(padding, dilation, layouts):
    """Also more of it than the kernel reaches over, and where a tile, a sub-lattice or a plane holds nothing else."""
    layer = Conv(3, (3, 2, 3), padding=padding, dilation=dilation)
    for size in [(9, 7, 11), (5, 6, 7), (1, 13, 2)]:
        least = tuple(max(n, e - 2 * p) for n, e, p in zip(size, layer.extent, padding, strict=True))
        x, weights = made(layer, (2, LANES + 1, *least))
        expected = truth(layer, weights, x)
        for tile in [(4, 4, 6), (5, 6, 8), (32, 32, 32)]:
            y = computed(layer, x, weights, tile, 50, layouts=layouts)
            assert np.linalg.norm(y - expected) / expected.size**0.5 < 1e-6


def test_padding_of_a_kernel_of_one():
    """Tiles of one point that lie in the padding."""
    layer = Conv(2, (1, 1, 1), padding=(1, 2, 3))
    x, weights = made(layer, (1, 3, 2, 1, 2))
    for layouts in TILED.layouts:
        y = computed(layer, x, weights, (1, 1, 1), layouts=layouts)
        assert error(y, truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("size", [3, 4, 5, 7, 8, 11, 12, 13, 20, 21, 29])
def test_tiles_that_do_not_divide_the_output(size):
    """The last tile is shifted back, one tile holds it all, or the tile is larger than the input."""
    layer = Conv(3, (3, 2, 3))
    for shape in [(1, 2, size, 5, 9), (1, 2, 4, size, 6), (2, 1, 5, 4, size)]:
        x, weights = made(layer, shape)
        expected = truth(layer, weights, x)
        for tile in [(3, 2, 3), (4, 5, 8), (6, 6, 6), (9, 7, 10), (12, 12, 12), (32, 32, 32)]:
            assert error(computed(layer, x, weights, tile, block=70), expected) < 1e-6


@pytest.mark.parametrize("dilation", [(2, 2, 2), (1, 2, 3), (3, 1, 1), (4, 3, 4), (1, 1, 9)])
def test_dilation_by_sub_lattices(dilation):
    """Sub-lattices of equal and unequal size, and fewer of them than the dilation has."""
    layer = Conv(5, (3, 2, 3), dilation=dilation)
    extent = layer.extent
    for more in [(0, 0, 0), (1, 2, 3), (7, 6, 9), (10, 11, 12)]:
        x, weights = made(layer, (2, 3, *(e + m for e, m in zip(extent, more, strict=True))))
        expected = truth(layer, weights, x)
        for tile in [(5, 4, 6), (8, 8, 8), (3, 2, 3)]:
            assert error(computed(layer, x, weights, tile, block=150), expected) < 1e-6


def test_what_a_tile_does_not_need_is_not_read():
    """NaN and infinities stay where they are: in the tiles that read them, out of other lanes and batch elements."""
    layer = Conv(3, (3, 3, 3), dilation=(2, 2, 2), padding=(0, 1, 2))
    x, weights = made(layer, (3, 2, 13, 13, 13))
    for layouts in TILED.layouts:
        clean = computed(layer, x, weights, (8, 8, 8), block=50, layouts=layouts)
        for poison in (np.nan, np.inf, np.float32(3e38)):
            bad = x.copy()
            bad[1] = poison
            y = computed(layer, bad, weights, (8, 8, 8), block=50, layouts=layouts)
            assert np.array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_and_spectra_do_not_change_a_bit(threads):
    layer = Conv(9, (3, 3, 3), activation=Activation("tanh", 1.7159, 2 / 3))
    x, weights = made(layer, (2, 4, 12, 13, 14))
    first = computed(layer, x, weights, (6, 6, 6), block=1000)
    assert error(first, truth(layer, weights, x)) < 1e-6
    for block in (1, 12, 29):
        for spectra in ("resident", "recomputed", "quarters"):
            assert np.array_equal(computed(layer, x, weights, (6, 6, 6), block, spectra, threads), first)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (5, 1, 1), (1, 1, 6), (9, 9, 9), (7, 2, 4)])
def test_anisotropic_kernels(kernel):
    layer = Conv(6, kernel, activation=Activation("elu", 0.7))
    x, weights = made(layer, (1, 5, 12, 11, 15))
    expected = truth(layer, weights, x)
    for config in TILED.configs(layer, x.shape):
        assert error(computed(layer, x, weights, config["tile"], config["block"]), expected) < 1e-6


@pytest.mark.parametrize("product", ["gauss", "plain"])
@pytest.mark.parametrize("spectra", ["resident", "recomputed", "quarters"])
@pytest.mark.parametrize("kernel", [(9, 2, 17), (8, 3, 16), (10, 1, 30)])
def test_kernels_too_long_to_be_summed(kernel, spectra, product):
    """On both sides of where FFTs of kernels take over from sums, along z and x; frequencies along x even and odd."""
    layer = Conv(9, kernel)
    x, weights = made(layer, (1, 3, 14, 5, 37))
    expected = truth(layer, weights, x)
    for tile in [(12, 4, 30), (10, 5, 35), (14, 5, 32)]:
        assert error(computed(layer, x, weights, tile, 3, spectra, product=product), expected) < 1e-6


@pytest.mark.parametrize("n", [8, 9, 10, 12, 14, 15])
@pytest.mark.parametrize("kernel", range(1, 9))
def test_short_kernels_are_summed_along_z(kernel, n):
    """Frequencies that share their sums: of sizes that 4 divides, that only 2 does, and odd ones."""
    layer = Conv(2 * LANES + 1, (kernel, 2, 1))
    x, weights = made(layer, (1, 3, 17, 5, 4))
    for product in ("gauss", "plain"):
        assert error(computed(layer, x, weights, (n, 4, 4), product=product), truth(layer, weights, x)) < 1e-6


def test_timing_its_stages_changes_nothing():
    layer = Conv(9, (9, 3, 3))
    x, weights = made(layer, (1, 3, 14, 9, 11))
    for tile in [(12, 6, 8), (14, 5, 9)]:
        config = {"tile": list(tile), "block": 3, "spectra": "quarters"}
        operator = TILED.prepare(layer, weights, x.shape, config, 2)
        out, workspace = np.empty(operator.out_shape, np.float32), Canary((operator.workspace_bytes,), np.uint8)
        stages = np.zeros((2, len(operator.stages)))
        operator.compute(x, out, workspace.array, stages)
        assert (stages >= 0).all() and (stages.sum(0) > 0).all()
        assert np.array_equal(out, computed(layer, x, weights, tile, 3, "quarters", 2))


def test_the_error_of_a_layer_of_many_channels():
    layer = Conv(80, (5, 5, 5))
    x, weights = made(layer, (1, 80, 16, 16, 16))
    assert error(computed(layer, x, weights, (16, 16, 16)), truth(layer, weights, x)) < 1e-6


def test_configs_offer_speed_and_thrift():
    layer, shape = Conv(80, (9, 9, 9)), (8, 80, 42, 42, 42)
    configs = TILED.configs(layer, shape)
    assert 4 <= len(configs) <= 10 and len({config_key(c) for c in configs}) == len(configs)
    assert {c["spectra"] for c in configs} == {"resident", "recomputed", "quarters"}
    assert {c["product"] for c in configs} == {"gauss", "plain"}
    assert len({config_key({"tile": sorted(c["tile"])}) for c in configs}) >= 3
    assert len({c["block"] for c in configs}) > 1

    def held(config):
        memory = TILED.memory(layer, shape, config, 2)
        return memory.host_resident_bytes + memory.host_workspace_bytes

    assert min(map(held, configs)) < held(configs[0]) / 4


def test_memory_follows_the_config():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)
    config = {"tile": [16, 16, 16], "block": 32, "spectra": "resident"}
    resident = TILED.memory(layer, shape, config, 2)
    recomputed = TILED.memory(layer, shape, config | {"spectra": "recomputed"}, 2)
    spectra_bytes = recomputed.host_workspace_bytes - resident.host_workspace_bytes
    # 130 columns of 80 x 80 pairs, 3 planes, 8 bytes
    assert 130 * 80 * 80 * 3 * 8 <= spectra_bytes <= 1.01 * 130 * 80 * 80 * 3 * 8
    assert abs(resident.host_resident_bytes - recomputed.host_resident_bytes - spectra_bytes) < 64
    quarters = TILED.memory(layer, shape, config | {"spectra": "quarters"}, 2)
    part_bytes = quarters.host_workspace_bytes - resident.host_workspace_bytes
    assert part_bytes <= 48 / 130 * spectra_bytes  # of 9 kx at most 3 at a time, 16 columns each
    assert quarters.host_resident_bytes == recomputed.host_resident_bytes
    plain = TILED.memory(layer, shape, config | {"product": "plain"}, 2)
    assert plain.host_workspace_bytes < resident.host_workspace_bytes
    small = TILED.memory(layer, shape, config | {"block": 8}, 2)
    assert small.host_workspace_bytes < 0.3 * resident.host_workspace_bytes
    assert TILED.memory(layer, shape, config | {"block": 64}, 2) == TILED.memory(
        layer, shape, config | {"block": 99}, 2
    )


def test_cost_counts_products_and_transforms():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)
    config = {"tile": [16, 16, 16], "block": 64, "spectra": "resident"}
    cost = TILED.cost(layer, shape, config)
    products = 6 * 64 * 130 * 16 * 80 * 80  # 64 tiles of 130 columns of 16 frequencies
    assert products < cost.flop < 1.5 * products
    recomputed = TILED.cost(layer, shape, config | {"spectra": "recomputed"})
    assert cost.flop < recomputed.flop < 1.05 * cost.flop and cost.moved_bytes < recomputed.moved_bytes
    plain = TILED.cost(layer, shape, config | {"product": "plain"})
    assert abs(plain.flop - cost.flop - products / 3) < 1
    four = TILED.cost(layer, (4, *shape[1:]), config)
    assert 3.9 < four.flop / cost.flop <= 4


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Conv(2, (3, 3, 3), stride=(1, 2, 1)), "stride 1 only, got 1x2x1"),
        (Conv(2, (300, 1, 1)), "at most 256 an axis, got 300x1x1"),
        (Conv(2, (9, 3, 3)), "at least 9 voxels along z, got 8"),
    ],
)
def test_what_it_does_not_support(layer, reason):
    assert reason in TILED.supports(layer, (1, 1, 8, 8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": [8, 8]}, "three sizes"),
        ({"tile": 8}, "three sizes"),
        ({"block": 0}, "at least 1 tile"),
        ({"spectra": "kept"}, "'resident', 'recomputed' or 'quarters'"),
        ({"product": "strassen"}, "'gauss' or 'plain'"),
        ({"tile": [2, 8, 8]}, "has 3 .the kernel. to 512 points"),
        ({"tile": [8, 8, 22]}, "product of 2, 3, 5 and 7; got 8x8x22"),
        ({"tile": [8, 8, 1024]}, "to 512 points an axis"),
    ],
)
def test_configs_that_cannot_be(change, message):
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    config = {"tile": [8, 8, 8], "block": 1, "spectra": "resident"} | change
    with pytest.raises(Unsupported, match=message):
        TILED.memory(layer, shape, config, 1)
    with pytest.raises(Unsupported, match=message):
        TILED.prepare(layer, made(layer, shape)[1], shape, config, 1)


def test_weights_of_another_layer():
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    weights = made(layer, shape)[1] | {"weight": np.zeros((2, 1, 3, 3, 4), np.float32)}
    with pytest.raises(InvalidShape, match="weight must be 2x1x3x3x3, got 2x1x3x3x4"):
        TILED.prepare(layer, weights, shape, TILED.configs(layer, shape)[0], 1)


def test_a_workspace_that_is_not_aligned():
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    x, weights = made(layer, shape)
    operator = TILED.prepare(layer, weights, shape, TILED.configs(layer, shape)[0], 1)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8, offset=4).array
    with pytest.raises(ValueError, match="multiple of 64 bytes"):
        operator(x, np.empty(operator.out_shape, np.float32), workspace)
