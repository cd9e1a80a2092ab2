"""What is peculiar to conversions of layouts: large results, written past the caches, from any address on."""

import numpy as np
import pytest

from znni.errors import Unsupported
from znni.layers import Relayout
from znni.layouts import BLOCKED, LANES, PLAIN, array_shape, packed, with_layouts
from znni.primitives.cpu_relayout import RELAYOUT

from .guarded import Canary


def converted(x, shape, takes, gives, threads=2, offset=0):
    operator = RELAYOUT.prepare(Relayout(), {}, shape, with_layouts({}, takes, gives), threads)
    out = Canary(array_shape(shape, gives), offset=offset)
    operator(x, out.array, np.empty(0, np.uint8))
    assert out.intact
    return out.array


def there_and_back(shape, threads, offset):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    blocked = converted(x, shape, PLAIN, BLOCKED, threads, offset)
    np.testing.assert_array_equal(blocked, packed(x, BLOCKED))
    np.testing.assert_array_equal(converted(blocked, shape, BLOCKED, PLAIN, threads, offset), x)


@pytest.mark.parametrize("voxels", range(1, 2 * LANES + 2))
def test_any_number_of_voxels(voxels):
    for threads in (1, 3, 40):
        there_and_back((2, LANES + 3, 1, 1, voxels), threads, 0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("offset", [0, 4, 32])
def test_large_results(threads, offset):
    """Past 16 MiB; rows begin anywhere in a cache line."""
    there_and_back((1, 2 * LANES - 3, 61, 89, 71 + 64 // LANES), threads, offset)


def test_bits_stay_as_they_are():
    x = np.arange(1 << 16, dtype=np.uint32) * np.uint32(65537)
    shape = (1, 16, 16, 16, 16)
    blocked = converted(x.view(np.float32).reshape(shape), shape, PLAIN, BLOCKED)
    assert np.array_equal(converted(blocked, shape, BLOCKED, PLAIN).reshape(-1).view(np.uint32), x)


@pytest.mark.parametrize("layout", [PLAIN, BLOCKED])
def test_nothing_to_convert_is_refused(layout):
    with pytest.raises(Unsupported, match=f"cannot take a {layout} input and give a {layout} output"):
        RELAYOUT.prepare(Relayout(), {}, (1, 8, 2, 2, 2), with_layouts({}, layout, layout), 1)


def test_empty_lanes_are_bytes_too():
    cost = RELAYOUT.cost(Relayout(), (1, LANES + 1, 4, 4, 4), with_layouts({}, PLAIN, BLOCKED))
    assert cost.moved_bytes == 4 * 64 * (LANES + 1 + 2 * LANES)
