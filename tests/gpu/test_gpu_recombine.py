"""What is peculiar to recombining fragments on the device: any number of levels, and parts of the fragments at a time."""

from math import prod

import numpy as np
import pytest
from primitives.truth import truth

from znni.errors import Unsupported
from znni.layers import MaxPoolFragments, Recombine
from znni.layouts import DEVICE
from znni.primitives.gpu_pooling import MPF
from znni.primitives.gpu_recombine import RECOMBINE

from .calls import Call


def numbered(shape):
    return np.arange(prod(shape), dtype=np.float32).reshape(shape)


def prepared(layer, shape):
    return RECOMBINE.prepare(layer, {}, shape, {"takes": DEVICE, "gives": DEVICE}, 1)


def computed(device, layer, x):
    """All parts, one after the other; each must write its own voxels and no others."""
    fragments = len(x) // layer.parts
    with Call(device, prepared(layer, (fragments, *x.shape[1:]))) as call:
        before = call.result()
        for call.operator.part in range(layer.parts):
            out = call.of(x[call.operator.part * fragments :][:fragments])
            written = np.isnan(before) & ~np.isnan(out)
            assert np.count_nonzero(written) == fragments * prod(x.shape[1:])
            assert np.array_equal(before[~written], out[~written], equal_nan=True)
            before = out
    return out


@pytest.mark.parametrize("sx", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("qx", [1, 8, 19, 300])
def test_recombining_any_number_of_rows(device, sx, qx):
    layer, x = Recombine(((1, 1, sx),)), numbered((2 * sx, 2, 1, 2, qx))
    np.testing.assert_array_equal(computed(device, layer, x), truth(layer, {}, x))


@pytest.mark.parametrize(
    ("strides", "batch"),
    [
        (((2, 2, 2), (2, 2, 2)), 1),
        (((1, 2, 3), (2, 1, 4)), 2),
        (((2, 1, 2), (1, 3, 1), (2, 2, 2)), 1),
        (((1, 1, 20),), 1),
        (((3, 2, 1),), 3),
    ],
)
def test_parts_make_the_whole(device, strides, batch):
    """A part may be one fragment, an inner level, less, or several batch elements and a half."""
    number = batch * prod(map(prod, strides))
    x = numbered((number, 3, 2, 3, 5))
    expected = truth(Recombine(strides), {}, x)
    for parts in [p for p in range(1, number + 1) if number % p == 0]:
        np.testing.assert_array_equal(computed(device, Recombine(strides, parts), x), expected)


def test_recombining_undoes_fragmenting_level_by_level(device):
    found = x = numbered((2, 2, 8, 3, 18))
    for stride in ((2, 1, 3), (2, 3, 2)):
        layer = MaxPoolFragments((1, 1, 1), stride)
        with Call(device, MPF.prepare(layer, {}, found.shape, {"takes": DEVICE, "gives": DEVICE}, 1)) as call:
            found = call.of(found)
    np.testing.assert_array_equal(computed(device, Recombine(((2, 1, 3), (2, 3, 2))), found), x)


def test_rows_are_written_as_they_lie(device):
    """Fragments that lie in the same rows go into them together, however many a part has of them."""
    members = {}
    for parts in (1, 2, 4, 8, 16, 64):
        prepared(Recombine(((2, 2, 2), (2, 2, 2)), parts), (64 // parts, 1, 2, 2, 2))
        members[parts] = device.kernels[-1][2]["MEMBERS"]
    assert members == {1: 4, 2: 4, 4: 4, 8: 2, 16: 2, 64: 1}


def test_a_part_that_is_none_is_refused(device):
    with Call(device, prepared(Recombine(((1, 2, 2),), 2), (2, 1, 1, 1, 1))) as call:
        call.operator.part = 2
        with pytest.raises(Unsupported, match="parts 0 to 1, got 2"):
            call.of(numbered(call.operator.shape))


def test_scattered_voxels_cost_more_bytes():
    """Neighbours along x fill sectors; voxels alone in theirs move all of it."""
    strides, shape = ((2, 2, 2), (2, 2, 2)), (1, 8, 16, 16)
    cost = {
        parts: RECOMBINE.cost(Recombine(strides, parts), (64 // parts, *shape), {}).moved_bytes * parts
        for parts in (1, 2, 4, 8, 16, 32, 64)
    }
    values = 4 * 64 * prod(shape)
    assert [cost[parts] / values for parts in cost] == [2, 2, 2, 3, 3, 3, 5]


def test_settings_that_do_not_exist_are_refused(device):
    with pytest.raises(Unsupported, match=r"gpu.recombine has no settings, .* got {'tile': 8}"):
        RECOMBINE.prepare(Recombine(((1, 1, 1),)), {}, (1, 1, 4, 4, 4), {"tile": 8}, 1)
