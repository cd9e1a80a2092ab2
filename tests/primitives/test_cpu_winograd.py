"""What is peculiar to Winograd convolution: transforms, their errors, overhanging tiles, strips, layouts and blocks."""

from itertools import product
from math import prod

import numpy as np
import pytest

from znni._kernels import winograd
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.layouts import BLOCKED, PLAIN, array_shape, packed, unpacked, with_layouts
from znni.primitives import config_key, get
from znni.primitives.cpu_winograd import OUTPUTS
from znni.winograd_points import finite_points, kernel_transform, matrices

from .guarded import Canary
from .truth import truth

WINOGRAD = get("cpu.winograd")
LANES = winograd.LANES
PAIRS = list(product((PLAIN, BLOCKED), repeat=2))
FORMS = [(m, r) for r, outputs in OUTPUTS.items() for m in outputs]


def made(layer, shape, seed=0):
    """Input and weights that give results of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in layer.weight_shapes(shape[1]).items()}
    weights["weight"] /= np.float32(prod(weights["weight"].shape[1:]) ** 0.5)
    return x, weights


def computed(layer, x, weights, tile, block=5, threads=1, layouts=(PLAIN, PLAIN)):
    config = with_layouts({"tile": list(tile), "block": block}, *layouts)
    operator = WINOGRAD.prepare(layer, weights, x.shape, config, threads)
    out = Canary(array_shape(operator.out_shape, operator.gives))
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8)
    operator(packed(x, operator.takes), out.array, workspace.array)
    assert out.intact and workspace.intact
    return unpacked(out.array, layer.out_channels, operator.gives)


def error(y, expected):
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


def smallest(layer):
    """The tile of the fewest outputs."""
    return [OUTPUTS[k][0] for k in layer.kernel]


@pytest.mark.parametrize(("m", "r"), FORMS)
def test_the_matrices_compute_a_correlation_exactly(m, r):
    """For every pair of unit vectors, in rational numbers."""
    a, g, b = matrices(m, r)
    n = m + r - 1
    for i, k in product(range(n), range(r)):
        points = [g[p][k] * b[p][i] for p in range(n)]
        y = [sum(row[p] * points[p] for p in range(n)) for row in a]
        assert y == [int(o + k == i) for o in range(m)]


@pytest.mark.parametrize("n", [4, 6, 8])
def test_points_come_in_pairs(n):
    points = finite_points(n)
    assert len(set(points)) == len(points) == n - 1
    assert sorted(points) == sorted(-p for p in points)
    assert all(np.float32(p) == p for p in points)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("m", "r"), [form for form in FORMS if form[1] > 1])
def test_every_form_along_every_axis(axis, m, r):
    """Impulses against impulses: the codelets belong to the kernel transform, and errors stay small."""
    kernel, tile, size = [1, 1, 1], [1, 1, 1], [2, 2, 2]
    kernel[axis], tile[axis], size[axis] = r, m, 2 * m + r + 2
    layer = Conv(3, tuple(kernel))
    x, weights = made(layer, (2, 5, *size))
    expected = truth(layer, weights, x)
    for layouts in PAIRS:
        assert error(computed(layer, x, weights, tile, layouts=layouts), expected) < 1e-6
    assert kernel_transform(m, r).shape == (m + r - 1, r)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 5, 5), (1, 5, 5), (3, 5, 5), (3, 1, 5), (1, 1, 3)])
def test_every_config_keeps_to_its_error(kernel):
    """All tiles that there are, on channels of one and of several runs of the matrix product's sums."""
    for channels in (16, 40):
        layer = Conv(4, kernel)
        x, weights = made(layer, (1, channels, *(2 * k + 5 for k in kernel)), 1)
        weights["bias"][:] = 0
        expected = truth(layer, weights, x)
        for tile in product(*(OUTPUTS[k] for k in kernel)):
            said = WINOGRAD.error(layer, x.shape, {"tile": list(tile), "block": 6})
            e = error(computed(layer, x, weights, tile, 6, layouts=(BLOCKED, BLOCKED)), expected)
            assert said / 2 < e < 1.3 * said, (tile, said, e)
            assert said < WINOGRAD.tolerance


def test_larger_tiles_err_more():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 20, 20, 20)
    two, four, six = (WINOGRAD.error(layer, shape, {"tile": [m] * 3, "block": 24}) for m in (2, 4, 6))
    assert 2e-7 < two < 3e-7 < four < 2e-6 < six < 1.2e-5
    flat = Conv(80, (1, 3, 3))
    assert WINOGRAD.error(flat, shape, {"tile": [1, 6, 6], "block": 24}) < six / 4


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 17, 28, 36, 41])
@pytest.mark.parametrize("out_channels", [1, 3, 8, 9, 17, 28, 36])
def test_ragged_channels(channels, out_channels):
    layer = Conv(out_channels, (3, 1, 3), padding=(1, 0, 1), activation=Activation("relu"))
    x, weights = made(layer, (2, channels, 5, 2, 9))
    expected = truth(layer, weights, x)
    for layouts in PAIRS:
        assert error(computed(layer, x, weights, (2, 1, 4), layouts=layouts), expected) < 1e-6


@pytest.mark.parametrize("rows", range(1, 26))
def test_rows_left_over_by_the_matrix_product(rows):
    for vectors in (1, 2, 3):
        layer = Conv(vectors * LANES, (1, 1, 3))
        x, weights = made(layer, (rows, 5, 1, 1, 4))
        assert error(computed(layer, x, weights, (1, 1, 2), block=rows), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("depth", [1, 19, 20, 21, 40, 41, 100])
def test_sums_in_runs(depth):
    layer = Conv(9, (1, 3, 1))
    x, weights = made(layer, (1, depth, 2, 9, 7))
    assert error(computed(layer, x, weights, (1, 2, 1), block=7), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize("size", [3, 4, 5, 7, 8, 11, 12, 13, 20, 29, 37])
def test_tiles_that_overhang(size):
    layer = Conv(3, (3, 3, 3))
    for shape in [(1, 2, size, 5, 9), (1, 2, 4, size, 6), (2, 1, 5, 4, size)]:
        x, weights = made(layer, shape)
        expected = truth(layer, weights, x)
        for tile, layouts in product([(2, 2, 2), (4, 2, 6), (6, 6, 6)], PAIRS):
            assert error(computed(layer, x, weights, tile, 70, layouts=layouts), expected) < 2e-5


@pytest.mark.parametrize("padding", [(1, 1, 1), (2, 2, 2), (0, 1, 2), (4, 0, 5), (0, 0, 9)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 5, 5)])
def test_padding(kernel, padding):
    """Same, full and beyond: where a whole tile lies in the padding, only the bias is left."""
    layer = Conv(5, kernel, padding=padding, activation=Activation("elu", 0.7))
    x, weights = made(layer, (2, 3, 4, 7, 10))
    expected = truth(layer, weights, x)
    for tile, layouts in product([smallest(layer), [OUTPUTS[k][-1] for k in kernel]], PAIRS):
        assert error(computed(layer, x, weights, tile, layouts=layouts), expected) < 1e-5


@pytest.mark.parametrize("padding", [(0, 0, 0), (2, 1, 3)])
@pytest.mark.parametrize("dilation", [(2, 2, 2), (1, 2, 3), (3, 1, 1), (4, 3, 4), (1, 1, 9)])
def test_dilation_by_sub_lattices(dilation, padding):
    """Sub-lattices of equal and unequal size, and fewer of them than the dilation has."""
    layer = Conv(5, (3, 1, 3), padding=padding, dilation=dilation)
    extent = layer.extent
    for more in [(0, 0, 0), (1, 2, 3), (7, 6, 9), (10, 11, 12)]:
        x, weights = made(layer, (2, 3, *(e + m for e, m in zip(extent, more, strict=True))))
        expected = truth(layer, weights, x)
        for tile, layouts in product([(2, 1, 2), (4, 1, 6)], PAIRS):
            assert error(computed(layer, x, weights, tile, layouts=layouts), expected) < 1e-5


@pytest.mark.parametrize("name", sorted(Activation.CODES))
def test_lanes_beyond_the_channels_are_zero_after_any_activation(name):
    layer = Conv(LANES + 3, (1, 3, 3), padding=(0, 1, 1), activation=Activation(name, 0.5, 0.7))
    x, weights = made(layer, (1, 3, 2, 6, 9))
    weights["bias"] += 3
    config = {"tile": [1, 4, 4], "block": 3, "takes": BLOCKED, "gives": BLOCKED}
    operator = WINOGRAD.prepare(layer, weights, x.shape, config, 1)
    out = np.full(array_shape(operator.out_shape, BLOCKED), np.nan, np.float32)
    operator(packed(x, BLOCKED), out, Canary((operator.memory.host_workspace_bytes,), np.uint8).array)
    assert (out[:, -1, ..., 3:] == 0).all()
    assert error(unpacked(out, LANES + 3, BLOCKED), truth(layer, weights, x)) < 1e-6


def test_other_batch_elements_do_not_matter():
    """NaN and infinities stay in the batch element that holds them."""
    layer = Conv(3, (3, 3, 3), padding=(1, 1, 1))
    x, weights = made(layer, (3, 2, 6, 7, 9))
    for layouts in PAIRS:
        clean = computed(layer, x, weights, (4, 4, 4), 50, layouts=layouts)
        for poison in (np.nan, np.inf, np.float32(3e38)):
            bad = x.copy()
            bad[1] = poison
            y = computed(layer, bad, weights, (4, 4, 4), 50, layouts=layouts)
            assert np.array_equal(y[[0, 2]], clean[[0, 2]])


def test_blocks_threads_and_layouts_do_not_change_a_bit():
    layer = Conv(9, (3, 3, 3), activation=Activation("tanh", 1.7159, 2 / 3))
    x, weights = made(layer, (2, 4, 12, 13, 14))
    first = computed(layer, x, weights, (4, 4, 4), block=1000)
    assert error(first, truth(layer, weights, x)) < 1e-6
    for block, threads, layouts in product((1, 2, 12, 29), (1, 2, 3), PAIRS):
        assert np.array_equal(computed(layer, x, weights, (4, 4, 4), block, threads, layouts), first)


def test_timing_its_stages_changes_nothing():
    layer = Conv(9, (3, 3, 3))
    x, weights = made(layer, (1, 3, 14, 9, 11))
    operator = WINOGRAD.prepare(layer, weights, x.shape, {"tile": [4, 2, 6], "block": 5}, 2)
    out, workspace = np.empty(operator.out_shape, np.float32), Canary((operator.workspace_bytes,), np.uint8)
    stages = np.zeros((2, len(operator.stages)))
    operator.compute(x, out, workspace.array, stages)
    assert (stages >= 0).all() and (stages.sum(0) > 0).all()
    assert np.array_equal(out, computed(layer, x, weights, (4, 2, 6), threads=2))


def test_configs_offer_speed_accuracy_and_thrift():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)
    configs = WINOGRAD.configs(layer, shape)
    assert 3 <= len(configs) <= 8 and len({config_key(c) for c in configs}) == len(configs)
    errors = [WINOGRAD.error(layer, shape, config) for config in configs]
    assert min(errors) < errors[0] / 2
    kept = [WINOGRAD.memory(layer, shape, config, 2).host_resident_bytes for config in configs]
    assert min(kept) < kept[0] / 2


@pytest.mark.parametrize(("size", "m"), [(4, 2), (6, 4), (8, 6), (10, 4), (14, 6), (14, 4)])
def test_the_guess_does_not_overhang_in_vain(size, m):
    """Few outputs want the tile that they fill."""
    tiles = [c["tile"] for c in WINOGRAD.configs(Conv(64, (3, 3, 3)), (1, 64, 50, 50, size))]
    assert m in [tile[2] for tile in tiles]


@pytest.mark.parametrize(
    ("dilation", "size", "most"), [(1, 3, 2), (1, 4, 2), (1, 5, 4), (1, 6, 4), (1, 7, 6), (2, 8, 2)]
)
def test_no_tile_is_larger_than_the_output_needs(dilation, size, most):
    """A single output of F(6, 3) along three axes may err by 3e-5."""
    layer = Conv(3, (1, 1, 3), dilation=(1, 1, dilation))
    assert max(c["tile"][2] for c in WINOGRAD.configs(layer, (1, 2, 3, 3, size))) == most


def test_memory_follows_the_config():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)
    config = {"tile": [4, 4, 4], "block": 24}
    memory = WINOGRAD.memory(layer, shape, config, 2)
    assert memory.host_resident_bytes == 4 * 216 * 80 * 80
    slots = 2 * 217 * 24 * 80 * 4
    assert slots < memory.host_workspace_bytes < 1.1 * slots
    assert WINOGRAD.memory(layer, shape, config, 1).host_workspace_bytes * 2 == memory.host_workspace_bytes
    small = WINOGRAD.memory(layer, shape, config | {"block": 12}, 2)
    assert small.host_workspace_bytes < 0.6 * memory.host_workspace_bytes
    all_tiles = WINOGRAD.memory(layer, shape, config | {"block": 14**3}, 2)
    assert all_tiles == WINOGRAD.memory(layer, shape, config | {"block": 99999}, 2)


def test_cost_counts_products_and_transforms():
    layer, shape = Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)
    cost = WINOGRAD.cost(layer, shape, {"tile": [4, 4, 4], "block": 24})
    products = 2 * 14**3 * 216 * 80 * 80
    assert products < cost.flop < 1.2 * products
    assert cost.moved_bytes == 4 * (80 * 58**3 + 80 * 56**3 + 216 * 80 * 80)
    four = WINOGRAD.cost(layer, (4, *shape[1:]), {"tile": [4, 4, 4], "block": 24})
    assert four.flop == 4 * cost.flop


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Conv(2, (3, 3, 3), stride=(1, 2, 1)), "stride 1 only, got 1x2x1"),
        (Conv(2, (3, 2, 3)), "kernels of 1, 3 or 5 along each axis, got 3x2x3"),
        (Conv(2, (1, 1, 1)), "a kernel of 1x1x1 is a matrix product"),
        (Conv(2, (5, 3, 3), dilation=(2, 1, 1)), "at least 9 voxels along z, got 8"),
    ],
)
def test_what_it_does_not_support(layer, reason):
    assert reason in WINOGRAD.supports(layer, (1, 1, 8, 8, 8))


@pytest.mark.parametrize(
    "change", [{"tile": [4, 4]}, {"tile": 4}, {"block": 0}, {"block": 1.5}, {"tile": [4, 4, 3]}, {"tile": [2, 4, 4]}]
)
def test_configs_that_cannot_be(change):
    layer, shape = Conv(2, (1, 3, 5)), (1, 1, 8, 8, 8)
    config = {"tile": [1, 4, 4], "block": 1} | change
    for call in (
        lambda: WINOGRAD.memory(layer, shape, config, 1),
        lambda: WINOGRAD.prepare(layer, made(layer, shape)[1], shape, config, 1),
    ):
        with pytest.raises(Unsupported, match=r"5: 2 or 4\) and a block of at least 1 tile"):
            call()


def test_weights_of_another_layer():
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    weights = made(layer, shape)[1] | {"weight": np.zeros((2, 1, 3, 3, 4), np.float32)}
    with pytest.raises(InvalidShape, match="weight must be 2x1x3x3x3, got 2x1x3x3x4"):
        WINOGRAD.prepare(layer, weights, shape, WINOGRAD.configs(layer, shape)[0], 1)


def test_a_workspace_that_is_not_aligned():
    layer, shape = Conv(2, (3, 3, 3)), (1, 1, 8, 8, 8)
    x, weights = made(layer, shape)
    operator = WINOGRAD.prepare(layer, weights, shape, WINOGRAD.configs(layer, shape)[0], 1)
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8, offset=4).array
    with pytest.raises(ValueError, match="multiple of 64 bytes"):
        operator(x, np.empty(operator.out_shape, np.float32), workspace)
