"""What is peculiar to the direct convolution on the device: tiles, packed weights, masks, far offsets, long sums."""

import ctypes
import mmap
from math import prod

import numpy as np
import pytest
from primitives.cases import Case
from primitives.truth import truth

from znni.errors import Unsupported
from znni.gpu import DeviceArray
from znni.layers import Activation, Conv
from znni.layouts import DEVICE, with_layouts
from znni.primitives import get
from znni.primitives.gpu_direct import Tiling, packed_weights, term_table

from .calls import Call

DIRECT = get("gpu.direct")
TILES = [16, 20, 24, 32, 40, 48, 60, 64, 80, 96, 120]
#: One of each kernel.
KERNELS = [("all", 128), (4, 128), (20, 128)]


def config_of(channels, voxels):
    return with_layouts({"channels": channels, "voxels": voxels}, DEVICE, DEVICE)


def computed(device, layer, x, weights, channels, voxels):
    config = config_of(channels, voxels)
    with Call(device, DIRECT.prepare(layer, weights, x.shape, config, 1)) as call:
        return call.of(x)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def most_voxels(channels):
    """Voxels of the largest block of so many channels."""
    for voxels in (512, 256):
        try:
            DIRECT.memory(Conv(1, (1, 1, 1)), (1, 1, 1, 1, 1), config_of(channels, voxels), 1)
        except Unsupported:
            continue
        return voxels
    return 128


def test_every_tile_gives_the_same_bits(device):
    """Tiles that reach over images, and that are filled by neither channels, voxels nor terms."""
    layer = Conv(67, (2, 1, 3), activation=Activation("leaky_relu", 0.1))
    x, weights = Case(layer, (3, 3, 5, 6, 13)).arrays(0)
    expected, first = truth(layer, weights, x), None
    for channels in ("all", 4, 8, *TILES):
        found = computed(device, layer, x, weights, channels, most_voxels(channels))
        assert error(found, expected) < 1e-6, channels
        first = found if first is None else first
        np.testing.assert_array_equal(found, first, str(channels))


@pytest.mark.parametrize(("channels", "voxels"), [("all", 512), (8, 256), (16, 512)])
def test_images_of_a_voxel_or_a_few(device, channels, voxels):
    for shape in [(700, 2, 1, 1, 1), (90, 1, 1, 3, 2), (2, 3, 1, 1, 300), (3, 1, 257, 1, 1)]:
        layer = Conv(9, (1, 1, 1))
        x, weights = Case(layer, shape).arrays(1)
        assert error(computed(device, layer, x, weights, channels, voxels), truth(layer, weights, x)) < 1e-6


@pytest.mark.parametrize(("channels", "voxels"), [(4, 512), (40, 256)])
def test_padding_with_masks_of_32_and_64_bits(device, channels, voxels):
    for layer, shape in [
        (Conv(5, (3, 4, 2), (2, 1, 1), (4, 1, 3), (1, 3, 1)), (2, 3, 5, 9, 7)),
        (Conv(3, (10, 11, 10), padding=(9, 0, 5)), (1, 2, 3, 12, 6)),
        (Conv(2, (1, 1, 33), padding=(0, 0, 32)), (1, 1, 2, 3, 20)),
    ]:
        x, weights = Case(layer, shape).arrays(0)
        bits = Tiling.of(layer, shape, config_of(channels, voxels)).macros["MASK_BITS"]
        assert bits == (64 if sum(layer.kernel) > 31 else 32)
        assert error(computed(device, layer, x, weights, channels, voxels), truth(layer, weights, x)) < 1e-6


def test_padded_kernels_of_more_taps_than_masks_have_bits_are_refused():
    layer = Conv(1, (1, 1, 62), padding=(0, 0, 1))
    assert "may add up to 63 at most, got 1x1x62" in DIRECT.supports(layer, (1, 1, 9, 9, 99))
    assert DIRECT.supports(Conv(1, (1, 1, 62)), (1, 1, 9, 9, 99)) is None


@pytest.mark.parametrize(("channels", "voxels"), KERNELS)
def test_terms_and_voxels_that_fill_up_a_tile_let_nothing_in(device, channels, voxels):
    """Zeros times infinity would be NaN."""
    layer = Conv(3, (1, 1, 1))
    x, weights = Case(layer, (1, 1, 3, 5, 7)).arrays(0)
    x[0, 0, 0, 0, 0] = x[0, 0, -1, -1, -1] = np.inf
    weights["weight"][:] = np.abs(weights["weight"])
    found = computed(device, layer, x, weights, channels, voxels)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(x).repeat(3, axis=1))
    assert not np.isnan(found).any()


def test_weights_are_packed_by_tiles_slabs_and_terms():
    layer, shape = Conv(23, (1, 2, 3)), (1, 1, 2, 3, 4)
    weight = np.arange(1, 1 + 23 * 6, dtype=np.float32).reshape(23, 1, 1, 2, 3)
    flat = weight.reshape(23, 6)
    tiled = packed_weights(weight, Tiling.of(layer, shape, config_of(20, 128)))
    assert tiled.shape == (2, 6, 20) and tiled.flags.c_contiguous
    assert tiled[1, 4, 2] == flat[22, 4]
    assert not tiled[1, :, 3:].any() and np.count_nonzero(tiled) == flat.size
    few = packed_weights(weight, Tiling.of(layer, shape, config_of(8, 128)))
    assert few.shape == (3, 6, 8) and few[2, 5, 6] == flat[22, 5] and not few[2, :, 7].any()
    every = packed_weights(weight, Tiling.of(layer, shape, config_of("all", 128)))
    assert every.shape == (23, 8) and np.array_equal(every[:, :6], flat) and not every[:, 6:].any()


def test_terms_are_told_in_bytes_and_by_the_bits_they_need():
    layer = Conv(1, (2, 1, 3), padding=(1, 0, 1), dilation=(2, 1, 4))
    offsets, needs = term_table(layer, (1, 2, 10, 20, 30), 16)
    first = [0, 4, 8, 2 * 600, 2 * 600 + 4, 2 * 600 + 8]
    assert offsets[:12].tolist() == [4 * (c * 6000 + o) for c in range(2) for o in first]
    bits = [0b001_0_01 | 0b100, 0b010_1_01, 0b100_1_01]
    assert needs[1:3].tolist() == bits[1:] and needs[4].item() == 0b010_1_10
    assert (offsets[12:] == -1).all() and (needs[12:] == 2**64 - 1).all()


def test_offsets_of_terms_beyond_what_32_bits_count():
    offsets, _ = term_table(Conv(1, (3, 3, 3)), (1, 70, 400, 500, 600), 70 * 27)
    assert offsets[-1] == 4 * (69 * 400 * 500 * 600 + (2 * 500 + 2) * 600 + 2)


class Far:
    """An array of which only the pages that are touched take memory."""

    def __init__(self, shape):
        reserve_nothing = getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._memory = mmap.mmap(-1, 4 * prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing)
        self.host = np.frombuffer(self._memory, np.float32).reshape(shape)
        pointer = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.array = DeviceArray(pointer, tuple(shape), np.dtype(np.float32))


@pytest.mark.parametrize(("channels", "voxels"), KERNELS)
@pytest.mark.parametrize("padding", [0, 1])
def test_tensors_beyond_what_32_bits_count(device, monkeypatch, channels, voxels, padding):
    """Channels of 2.4e9 voxels each: strides that leave few results, then the first of all results."""
    monkeypatch.setattr(device.memory, "check", lambda *_: None)
    shape, rng = (1, 2, 1, 40_000, 60_000), np.random.default_rng(0)
    x = Far(shape)

    layer = Conv(3, (1, 1, 1), stride=(1, 20_000, 30_000), padding=(0, padding, 0))
    weights = {n: rng.standard_normal(s, np.float32) for n, s in layer.weight_shapes(2).items()}
    seen = np.zeros((1, 2, 1, *layer.output_shape(shape)[3:]), np.float32)
    rows = seen[..., padding:, :]
    rows[...] = rng.standard_normal(rows.shape, np.float32)
    x.host[:, :, :, padding * 19_999 :: 20_000, ::30_000] = rows
    operator = DIRECT.prepare(layer, weights, shape, config_of(channels, voxels), 1)
    resident, out = device.allocate(operator.memory.device_resident_bytes), Far(operator.out_shape)
    nothing = device.allocate(0).array
    operator.place(resident.array, nothing)
    operator(x.array, out.array, nothing)
    device.compute.synchronise()
    assert error(out.host, truth(Conv(3, (1, 1, 1)), weights, seen)) < 1e-6

    layer = Conv(3, (1, 1, 1))
    x.host[0, :, 0, 0, :100] = rng.standard_normal((2, 100), np.float32)
    operator = DIRECT.prepare(layer, weights, shape, config_of(channels, voxels), 1)
    operator.place(device.allocate(operator.memory.device_resident_bytes).array, nothing)
    out = Far(operator.out_shape)
    voxels_at = next(i for i, a in enumerate(operator._arguments) if isinstance(a, np.int64))
    operator._arguments[voxels_at], operator._grid = np.int64(100), (1, 1, 1)
    operator(x.array, out.array, nothing)
    device.compute.synchronise()
    found = out.host[:, :, :, :1, :101]
    assert error(found[..., :100], truth(layer, weights, x.host[:, :, :, :1, :100])) < 1e-6
    assert not found[..., 100:].any()


def test_long_sums_are_as_accurate_as_said(device):
    layer = Conv(2, (6, 6, 6))
    x, weights = Case(layer, (1, 60, 8, 8, 8)).arrays(0)
    found = error(computed(device, layer, x, weights, 4, 128), truth(layer, weights, x))
    assert 0.2 < found / DIRECT.error(layer, x.shape, config_of(4, 128)) < 1.2


def test_packed_weights_are_not_the_callers(device):
    layer = Conv(5, (2, 2, 2))
    x, weights = Case(layer, (1, 2, 5, 5, 12)).arrays(0)
    expected = truth(layer, weights, x)
    operator = DIRECT.prepare(layer, weights, x.shape, config_of(4, 128), 1)
    for array in weights.values():
        array[:] = 0
    with Call(device, operator) as call:
        assert error(call.of(x), expected) < 1e-6


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (Conv(80, (3, 3, 3)), (1, 80, 60, 60, 60), 80),
        (Conv(80, (2, 2, 2)), (1, 1, 90, 90, 90), "all"),
        (Conv(3, (3, 3, 3)), (1, 80, 60, 60, 60), 4),
        (Conv(40, (5, 5, 5)), (1, 40, 60, 60, 60), 40),
    ],
)
def test_tiles_that_fit_come_first(layer, shape, channels):
    assert DIRECT.configs(layer, shape)[0]["channels"] == channels


def test_small_tiles_first_where_a_device_would_not_be_filled():
    few = DIRECT.configs(Conv(80, (3, 3, 3)), (1, 80, 12, 12, 12))
    assert few[:2] == [{"channels": 40, "voxels": 128}, {"channels": 20, "voxels": 128}]
    assert {"channels": 80, "voxels": 128} in few


@pytest.mark.parametrize(
    "config", [{}, {"channels": 18, "voxels": 128}, {"channels": 80, "voxels": 256}, {"channels": "all", "voxels": 128}]
)
def test_other_configs_are_refused(config):
    with pytest.raises(Unsupported, match=r"a config of gpu.direct has the channels of a block .* see configs\(\)"):
        DIRECT.memory(Conv(80, (3, 3, 3)), (1, 2, 9, 9, 9), config, 1)
