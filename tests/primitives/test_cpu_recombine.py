"""What is peculiar to recombining fragments: any number of levels and neighbours, and parts of the fragments at a time."""

from math import prod

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import Unsupported
from znni.layers import MaxPoolFragments, Recombine
from znni.layouts import BLOCKED, LAYOUTS, packed, with_layouts
from znni.primitives.cpu_pooling import MPF
from znni.primitives.cpu_recombine import RECOMBINE

from .guarded import Canary
from .truth import truth


def numbered(shape):
    return np.arange(prod(shape), dtype=np.float32).reshape(shape)


def computed(layer, x, takes="plain", threads=2):
    """All parts, one after the other; each must write its own voxels and no others."""
    fragments = len(x) // layer.parts
    operator = RECOMBINE.prepare(layer, {}, (fragments, *x.shape[1:]), with_layouts({}, takes, "plain"), threads)
    out = np.full(operator.out_shape, -7, np.float32)
    for operator.part in range(layer.parts):
        before = out.copy()
        operator(packed(x[operator.part * fragments :][:fragments], takes), out, aligned_empty(0))
        assert np.count_nonzero(out != before) == fragments * prod(x.shape[1:])
        assert (before[out != before] == -7).all()
    return out


def fragments(layer, x):
    operator = MPF.prepare(layer, {}, x.shape, {}, 2)
    out = np.empty(operator.out_shape, np.float32)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    return out


@pytest.mark.parametrize("sx", range(1, 20))
@pytest.mark.parametrize("qx", [1, 5, 7, 8, 9, 16, 19])
def test_recombining_any_number_of_rows(sx, qx):
    """Interleaving goes by 2, 4 and 8 rows where it can, with eight voxels of each at a time."""
    layer = Recombine(((1, 1, sx),))
    x = numbered((2 * sx, 2, 1, 2, qx))
    np.testing.assert_array_equal(computed(layer, x), truth(layer, {}, x))


def test_recombining_undoes_fragmenting_level_by_level():
    layer, x = MaxPoolFragments((1, 1, 1), (2, 1, 3)), numbered((2, 2, 8, 3, 18))
    twice = fragments(MaxPoolFragments((1, 1, 1), (2, 3, 2)), fragments(layer, x))
    np.testing.assert_array_equal(computed(Recombine(((2, 1, 3), (2, 3, 2))), twice), x)


def test_any_number_of_levels():
    layer = Recombine(((1, 1, 1),) * 40 + ((1, 1, 2),))
    x = numbered((2, 1, 1, 3, 4))
    np.testing.assert_array_equal(computed(layer, x), computed(Recombine(((1, 1, 2),)), x))


@pytest.mark.parametrize("takes", LAYOUTS)
@pytest.mark.parametrize(
    ("strides", "batch"),
    [
        (((2, 2, 2), (2, 2, 2)), 1),
        (((1, 2, 3), (2, 1, 4)), 2),
        (((2, 1, 2), (1, 3, 1), (2, 2, 2)), 1),
        (((1, 1, 80),), 1),
        (((3, 2, 1),), 3),
    ],
)
def test_parts_make_the_whole(strides, batch, takes):
    """A part may be one fragment, an inner level, less, or several batch elements and a half."""
    number = batch * prod(map(prod, strides))
    for parts in [p for p in range(1, number + 1) if number % p == 0]:
        for qx in (1, 5, 16):
            x = numbered((number, 11, 2, 3, qx))
            layer = Recombine(strides, parts)
            assert layer.output_shape((number // parts, *x.shape[1:])) == Recombine(strides).output_shape(x.shape)
            out = computed(layer, x, takes, threads=1 + parts % 3)
            np.testing.assert_array_equal(out, truth(Recombine(strides), {}, x))


@pytest.mark.parametrize("takes", LAYOUTS)
@pytest.mark.parametrize("offset", [0, 4])
def test_large_results(takes, offset):
    """Past 16 MiB, whole rows are written past the caches."""
    layer, x = Recombine(((1, 2, 3),)), numbered((6, 11, 19, 31, 131))
    operator = RECOMBINE.prepare(layer, {}, x.shape, with_layouts({}, takes, "plain"), 3)
    out = Canary(operator.out_shape, offset=offset)
    operator(packed(x, takes), out.array, aligned_empty(0))
    assert out.intact
    np.testing.assert_array_equal(out.array, truth(layer, {}, x))


def test_a_part_that_is_none_is_refused():
    operator = RECOMBINE.prepare(Recombine(((1, 2, 2),), 2), {}, (2, 1, 1, 1, 1), {}, 1)
    operator.part = 2
    with pytest.raises(Unsupported, match="parts 0 to 1, got 2"):
        operator(numbered(operator.shape), np.empty(operator.out_shape, np.float32), aligned_empty(0))


def test_scattered_voxels_cost_more_bytes():
    """Neighbours along x fill cache lines; voxels alone in theirs move all of it."""
    strides, shape = ((2, 2, 2), (2, 2, 2)), (1, 8, 16, 16)
    cost = {
        parts: RECOMBINE.cost(Recombine(strides, parts), (64 // parts, *shape), {}).moved_bytes * parts
        for parts in (1, 2, 4, 8, 16, 32, 64)
    }
    values = 4 * 64 * prod(shape)
    assert [cost[parts] / values for parts in cost] == [2, 2, 2, 3, 3, 3, 5]


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(Unsupported, match=r"cpu.recombine has no settings, .* got {'tile': 8}"):
        RECOMBINE.prepare(Recombine(((1, 1, 1),)), {}, (1, 1, 4, 4, 4), {"tile": 8}, 1)


def test_it_gives_plain_results_only():
    with pytest.raises(Unsupported, match="cannot take a blocked input and give a blocked output"):
        RECOMBINE.prepare(Recombine(((1, 1, 1),)), {}, (1, 1, 4, 4, 4), {"takes": BLOCKED, "gives": BLOCKED}, 1)
