"""What is peculiar to pooling: NaN, infinities, PyTorch's agreement, windows of every kind, and the order of fragments."""

import itertools

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import Unsupported
from znni.layers import MaxFilter, MaxPool, MaxPoolFragments
from znni.layouts import BLOCKED, LANES, LAYOUTS, PLAIN, array_shape, packed, unpacked, with_layouts
from znni.primitives import get
from znni.primitives.cpu_pooling import MAX_FILTER, MAX_POOL, MPF

from .guarded import Canary
from .truth import truth


def computed(primitive, layer, x, threads=2, layout=PLAIN, offset=0):
    operator = primitive.prepare(layer, {}, x.shape, with_layouts({}, layout, layout), threads)
    out = Canary(array_shape(operator.out_shape, layout), offset=offset)
    operator(packed(x, layout), out.array, aligned_empty(operator.memory.host_workspace_bytes))
    assert out.intact
    return unpacked(out.array, operator.out_shape[1], layout)


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("primitive", "layer", "shape"), LAYERS, ids=str)
def test_nan_and_infinities_come_through(primitive, layer, shape, layout):
    x = holed(shape)
    np.testing.assert_array_equal(computed(primitive, layer, x, layout=layout), truth(layer, {}, x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("primitive", "layer", "shape"), LAYERS, ids=str)
def test_parts_of_threads_join(primitive, layer, shape, layout):
    """Threads begin anywhere in a plane, where there are no maxima from the rows before."""
    x = holed(shape)
    whole = computed(primitive, layer, x, threads=1, layout=layout)
    for threads in (2, 3, 5, 8, 13):
        np.testing.assert_array_equal(computed(primitive, layer, x, threads, layout), whole)


@pytest.mark.parametrize("offset", [0, 4, 32])
@pytest.mark.parametrize(
    ("primitive", "layer", "size"),
    [
        (MPF, MaxPoolFragments((2, 2, 2), (2, 2, 2)), (73, 81, 47)),
        (MPF, MaxPoolFragments((1, 3, 2), (1, 2, 3)), (80, 80, 49)),
        (MAX_FILTER, MaxFilter((2, 2, 2), (2, 2, 2)), (81, 80, 47)),
    ],
    ids=str,
)
def test_large_blocked_results(primitive, layer, size, offset):
    """Past 16 MiB; rows begin in the middle of a cache line, too."""
    x = holed((1, 2 * LANES - 3, *size))
    assert layer.output_shape(x.shape)[0] * np.prod(layer.output_shape(x.shape)[2:]) * 2 * LANES * 4 >= 1 << 24
    result = computed(primitive, layer, x, 3, BLOCKED, offset)
    np.testing.assert_array_equal(result, computed(primitive, layer, x))


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


@pytest.mark.parametrize("name", ["cpu.max_pool", "cpu.max_filter", "cpu.mpf"])
def test_settings_that_do_not_exist_are_refused(name):
    primitive = get(name)
    layer = {
        "max_pool": MaxPool((2, 2, 2), (2, 2, 2)),
        "max_filter": MaxFilter((2, 2, 2)),
        "mpf": MaxPoolFragments((2, 2, 2), (1, 1, 1)),
    }[primitive.kind]
    with pytest.raises(Unsupported, match=f"{name} has no settings, .* got {{'tile': 8}}"):
        primitive.prepare(layer, {}, (1, 1, 4, 4, 4), {"tile": 8}, 1)


def test_memory_is_a_few_rows_for_each_thread():
    layer = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    one = MPF.memory(layer, (4, 80, 101, 101, 101), {}, 1).host_workspace_bytes
    assert 0 < one <= 4 * 101 * 4 * 2
    assert MPF.memory(layer, (4, 80, 101, 101, 101), {}, 3).host_workspace_bytes == 3 * one
    blocked = MPF.memory(layer, (4, 80, 101, 101, 101), {"takes": BLOCKED, "gives": BLOCKED}, 1).host_workspace_bytes
    assert 0 < blocked <= 4 * (101 * LANES + 16)
    assert MAX_FILTER.memory(MaxFilter((2, 2, 1)), (1, 1, 9, 9, 9), {}, 2).host_workspace_bytes == 0
