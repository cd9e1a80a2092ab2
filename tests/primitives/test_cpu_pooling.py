"""What is peculiar to pooling: NaN, infinities, PyTorch's agreement, windows of every kind, and the order of fragments."""

import itertools

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import Unsupported
from znni.layers import MaxFilter, MaxPool, MaxPoolFragments, Recombine
from znni.primitives import get
from znni.primitives.cpu_pooling import MAX_FILTER, MAX_POOL, MPF, RECOMBINE

from .truth import truth


def computed(primitive, layer, x, threads=2):
    operator = primitive.prepare(layer, {}, x.shape, {}, threads)
    out = np.full(operator.out_shape, -7, np.float32)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    return out


def holed(shape, seed=0):
    """Random numbers of which some are NaN, of both signs, and some infinite."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    kind = rng.integers(0, 60, shape)
    for n, value in enumerate([np.nan, -np.nan, np.inf, -np.inf]):
        x[kind == n] = value
    return x


LAYERS = [
    (MAX_POOL, MaxPool((2, 2, 2), (2, 2, 2)), (2, 3, 8, 10, 38)),
    (MAX_POOL, MaxPool((1, 2, 2), (1, 2, 2)), (1, 2, 3, 9, 17)),
    (MAX_POOL, MaxPool((3, 3, 3), (2, 2, 2)), (1, 3, 9, 70, 21)),
    (MAX_POOL, MaxPool((2, 1, 3), (3, 2, 5)), (1, 3, 9, 7, 44)),
    (MAX_FILTER, MaxFilter((2, 2, 2), (1, 1, 1)), (2, 2, 5, 7, 33)),
    (MAX_FILTER, MaxFilter((5, 4, 3), (2, 3, 1)), (1, 2, 13, 90, 21)),
    (MAX_FILTER, MaxFilter((2, 3, 1), (1, 4, 1)), (1, 2, 5, 23, 19)),
    (MAX_FILTER, MaxFilter((1, 1, 1), (1, 1, 1)), (1, 2, 3, 5, 9)),
    (MPF, MaxPoolFragments((2, 2, 2), (2, 2, 2)), (2, 3, 9, 11, 39)),
    (MPF, MaxPoolFragments((2, 2, 2), (1, 2, 2)), (1, 2, 4, 7, 7)),
    (MPF, MaxPoolFragments((3, 3, 3), (3, 3, 3)), (1, 2, 8, 80, 29)),
    (MPF, MaxPoolFragments((1, 1, 1), (1, 2, 2)), (1, 2, 3, 8, 34)),
    (MPF, MaxPoolFragments((3, 2, 4), (2, 3, 1)), (1, 2, 8, 31, 40)),
]


@pytest.mark.parametrize(("primitive", "layer", "shape"), LAYERS, ids=str)
def test_nan_and_infinities_come_through(primitive, layer, shape):
    x = holed(shape)
    np.testing.assert_array_equal(computed(primitive, layer, x), truth(layer, {}, x))


@pytest.mark.parametrize(("primitive", "layer", "shape"), LAYERS, ids=str)
def test_parts_of_threads_join(primitive, layer, shape):
    """Threads begin anywhere in a plane, where there are no maxima from the rows before."""
    x = holed(shape)
    whole = computed(primitive, layer, x, threads=1)
    for threads in (2, 3, 5, 8, 13):
        np.testing.assert_array_equal(computed(primitive, layer, x, threads), whole)


def test_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    x = holed((2, 3, 11, 13, 17))
    for window, stride in [((2, 2, 2), (2, 2, 2)), ((3, 2, 1), (1, 2, 3))]:
        expected = torch.nn.functional.max_pool3d(torch.from_numpy(x), window, stride).numpy()
        np.testing.assert_array_equal(computed(MAX_POOL, MaxPool(window, stride), x), expected)
    expected = torch.nn.functional.max_pool3d(torch.from_numpy(x), (2, 3, 2), 1, 0, (4, 2, 3)).numpy()
    np.testing.assert_array_equal(computed(MAX_FILTER, MaxFilter((2, 3, 2), (4, 2, 3)), x), expected)


def test_fragments_are_ordered_z_slowest():
    x = np.arange(4 * 4 * 4, dtype=np.float32).reshape(1, 1, 4, 4, 4)
    y = computed(MPF, MaxPoolFragments((1, 1, 1), (2, 2, 2)), x)
    for fz, fy, fx in itertools.product(range(2), repeat=3):
        np.testing.assert_array_equal(y[(fz * 2 + fy) * 2 + fx, 0], x[0, 0, fz::2, fy::2, fx::2])


@pytest.mark.parametrize("sx", range(1, 20))
@pytest.mark.parametrize("qx", [1, 5, 7, 8, 9, 16, 19])
def test_recombining_any_number_of_rows(sx, qx):
    """Interleaving goes by 2, 4 and 8 rows where it can, with eight voxels of each at a time."""
    layer = Recombine(((1, 1, sx),))
    x = np.random.default_rng(0).standard_normal((2 * sx, 2, 1, 2, qx), np.float32)
    np.testing.assert_array_equal(computed(RECOMBINE, layer, x), truth(layer, {}, x))


def test_recombining_undoes_fragmenting_level_by_level():
    layer, x = MaxPoolFragments((1, 1, 1), (2, 1, 3)), holed((2, 2, 8, 3, 18))
    twice = computed(MPF, MaxPoolFragments((1, 1, 1), (2, 3, 2)), computed(MPF, layer, x))
    np.testing.assert_array_equal(computed(RECOMBINE, Recombine(((2, 1, 3), (2, 3, 2))), twice), x)


def test_any_number_of_levels():
    layer = Recombine(((1, 1, 1),) * 40 + ((1, 1, 2),))
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 1, 1, 3, 4)
    np.testing.assert_array_equal(computed(RECOMBINE, layer, x), computed(RECOMBINE, Recombine(((1, 1, 2),)), x))


@pytest.mark.parametrize("name", ["cpu.max_pool", "cpu.max_filter", "cpu.mpf", "cpu.recombine"])
def test_settings_that_do_not_exist_are_refused(name):
    primitive = get(name)
    layer = {
        "max_pool": MaxPool((2, 2, 2), (2, 2, 2)),
        "max_filter": MaxFilter((2, 2, 2)),
        "mpf": MaxPoolFragments((2, 2, 2), (1, 1, 1)),
        "recombine": Recombine(((1, 1, 1),)),
    }[primitive.kind]
    with pytest.raises(Unsupported, match=f"{name} has no settings, .* got {{'tile': 8}}"):
        primitive.prepare(layer, {}, (1, 1, 4, 4, 4), {"tile": 8}, 1)


def test_memory_is_a_few_rows_for_each_thread():
    layer = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    one = MPF.memory(layer, (4, 80, 101, 101, 101), {}, 1).host_workspace_bytes
    assert 0 < one <= 4 * 101 * 4 * 2
    assert MPF.memory(layer, (4, 80, 101, 101, 101), {}, 3).host_workspace_bytes == 3 * one
    assert MAX_FILTER.memory(MaxFilter((2, 2, 1)), (1, 1, 9, 9, 9), {}, 2).host_workspace_bytes == 0
