"""The cutting of regions into blocks."""

from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.volume_reader import blocks, region_shape, to_float32

EXTENT = st.tuples(st.integers(0, 20), st.integers(1, 12)).map(lambda s: slice(s[0], s[0] + s[1]))
REGION = st.tuples(EXTENT, EXTENT, EXTENT)
BLOCK = st.tuples(*[st.integers(1, 20)] * 3)


@settings(deadline=None)
@given(REGION, BLOCK, st.integers(1, 5000))
def test_blocks_cover_a_region_once_and_stay_within_the_bound(region, block, most):
    seen = np.zeros([s.stop for s in region], int)
    for box in blocks(region, block, most):
        assert prod(region_shape(box)) <= most
        seen[box] += 1
    assert (seen[region] == 1).all()
    assert seen.sum() == prod(region_shape(region))


@settings(deadline=None)
@given(REGION, st.tuples(*[st.integers(2, 8)] * 3))
def test_blocks_that_fit_are_not_cut_and_those_cut_are_met_once(region, block):
    def blocks_met(box):
        ranges = [range(s.start // b, (s.stop - 1) // b + 1) for s, b in zip(box, block, strict=True)]
        return {(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]}

    fitting = [blocks_met(box) for box in blocks(region, block, prod(block))]
    assert sum(map(len, fitting)) == len(set().union(*fitting))
    order = [blocks_met(box) for box in blocks(region, block, max(1, prod(block) // 3))]
    left = set()
    for met, following in pairwise(order):
        assert not following & left  # a block that was left is not come back to
        left |= met - following


def test_values_beyond_float32_become_infinite_without_a_warning(recwarn):
    out = np.empty(3, np.float32)
    to_float32(np.array([1e300, -1e300, 2.5]), out)
    assert out.tolist() == [np.inf, -np.inf, 2.5]
    assert not recwarn.list
