"""The functional face: max-pooling fragments and the way back."""

from functools import reduce

import numpy as np
import pytest

from znni.errors import InvalidShape
from znni.fragments import max_pool_fragments, recombine_fragments


def dense_pooling(x, window, jump=(1, 1, 1)):
    """Maxima over windows at every voxel; `jump` voxels apart within a window."""
    extent = [(w - 1) * j + 1 for w, j in zip(window, jump, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, (2, 3, 4))
    return windows[(..., *(slice(None, None, j) for j in jump))].max((5, 6, 7))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_each_fragment_is_the_pooling_from_its_offset(rng):
    x = rng.standard_normal((2, 3, 5, 7, 10), np.float32)
    y = max_pool_fragments(x, (2, 2, 2), (1, 2, 3))
    assert y.shape == (2 * 6, 3, 4, 3, 3) and y.dtype == np.float32
    for b in range(2):
        for fy in range(2):
            for fx in range(3):
                pooled = dense_pooling(x[b : b + 1], (2, 2, 2))[..., fy::2, fx::3]
                assert np.array_equal(y[b * 6 + fy * 3 + fx], pooled[0])


def test_the_stride_is_the_window_unless_it_is_said(rng):
    x = rng.standard_normal((1, 2, 5, 7, 9), np.float32)
    assert np.array_equal(max_pool_fragments(x, 2), max_pool_fragments(x, (2, 2, 2), (2, 2, 2)))


@pytest.mark.parametrize(
    "pools",
    [
        [((2, 2, 2), (2, 2, 2))],
        [((2, 3, 1), (2, 3, 1)), ((2, 2, 2), (1, 2, 2))],
        [((1, 2, 2), (1, 2, 2)), ((3, 2, 4), (2, 1, 4)), ((2, 2, 2), (2, 2, 2))],
    ],
)
def test_recombined_fragments_are_the_dense_poolings(rng, pools):
    strides = [stride for _, stride in pools]
    step = np.prod(strides, axis=0)
    jumps = [np.prod([(1, 1, 1), *strides[:level]], axis=0) for level in range(len(pools))]
    fov = 1 + sum(j * (np.array(w) - 1) for (w, _), j in zip(pools, jumps, strict=True))
    x = rng.standard_normal((2, 2, *(fov - 1 + step * 2)), np.float32)
    y = reduce(lambda fragments, pool: max_pool_fragments(fragments, *pool), pools, x)
    dense = reduce(lambda d, level: dense_pooling(d, level[0][0], level[1]), zip(pools, jumps, strict=True), x)
    assert np.array_equal(recombine_fragments(y, strides), dense)


def test_ways_to_write_strides(rng):
    y = rng.standard_normal((8, 1, 2, 3, 4), np.float32)
    once = recombine_fragments(y, 2)
    for strides in ((2, 2, 2), [2, 2, 2], [2], [(2, 2, 2)], np.array([2, 2, 2]), np.int64(2), [2, (1, 1, 1)]):
        assert np.array_equal(recombine_fragments(y, strides), once)
    twice = recombine_fragments(y, [(2, 1, 1), (1, 2, 2)])
    assert twice.shape == once.shape
    assert np.array_equal(recombine_fragments(y, np.array([[2, 1, 1], [1, 2, 2]])), twice)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int32, bool])
def test_takes_real_numbers_of_any_type_and_layout(rng, dtype):
    x = (rng.standard_normal((1, 1, 3, 5, 7)) * 50).astype(dtype)
    expected = max_pool_fragments(x.astype(np.float32), 2)
    assert np.array_equal(max_pool_fragments(np.asfortranarray(x), 2), expected)
    assert np.array_equal(max_pool_fragments(x.tolist(), 2), expected)


def test_threads_change_nothing(rng):
    x = rng.standard_normal((1, 3, 9, 9, 9), np.float32)
    results = [max_pool_fragments(x, 2, threads=n) for n in (1, 2, 5)]
    assert all(np.array_equal(results[0], r) for r in results)
    dense = [recombine_fragments(results[0], 2, threads=n) for n in (1, 2, 5)]
    assert all(np.array_equal(dense[0], r) for r in dense)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.zeros((1, 1, 4, 5, 5)), 2), r"stride 2 need z = 1 \+ 2 i voxels, got 4"),
        ((np.zeros((1, 1, 5, 5, 1)), 2), "at least 3 voxels along x, got 1"),
        ((np.zeros((5, 5, 5)), 2), r"\(batch, channel, z, y, x\), got 5x5x5 of float64"),
        ((np.zeros((1, 1, 5, 5, 5), complex), 2), "real numbers .* of complex128"),
        ((np.zeros((1, 1, 5, 5, 5)), 0), "window must be one integer or three .* at least 1, got 0"),
        ((np.zeros((1, 1, 5, 5, 5)), (2, 2)), r"window must be .* got \(2, 2\)"),
        ((np.zeros((1, 1, 5, 5, 5)), 2, 1.5), "stride must be one integer or three .* got 1.5"),
        ((np.zeros((1, 1, 5, 5, 5)), 2, 2, 0), "threads must be at least 1, got 0"),
        ((np.zeros((0, 1, 5, 5, 5)), 2), "every size must be at least 1"),
    ],
)
def test_what_cannot_be_pooled_is_refused_in_words(arguments, said):
    with pytest.raises((InvalidShape, ValueError), match=said):
        max_pool_fragments(*arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.zeros((7, 1, 2, 2, 2)), 2), "multiple of 8 fragments, got 7"),
        ((np.zeros((8, 1, 2, 2, 2)), []), "at least one, got an empty list"),
        ((np.zeros((8, 1, 2, 2, 2)), [(2, 2), 2]), r"stride must be .* got \(2, 2\)"),
        ((np.zeros((8, 1, 2, 2, 2)), "2"), "stride must be .* got '2'"),
        ((np.zeros((8, 1, 2, 2, 2)), None), "stride must be .* got None"),
        ((np.zeros((8, 2, 2, 2)), 2), "got 8x2x2x2 of float64"),
    ],
)
def test_what_cannot_be_recombined_is_refused_in_words(arguments, said):
    with pytest.raises(InvalidShape, match=said):
        recombine_fragments(*arguments)
