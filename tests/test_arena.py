"""Layouts never overlap in time and space, and chains reach the lower bound."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from znni.arena import ALIGNMENT_BYTES, Buffer, aligned, aligned_empty, layout, peak_live_bytes

SIZES = st.integers(0, 5000)


def assert_disjoint(buffers, offsets):
    for i, a in enumerate(buffers):
        assert offsets[i] % ALIGNMENT_BYTES == 0
        for j in range(i):
            b = buffers[j]
            if a.first <= b.last and b.first <= a.last and a.nbytes and b.nbytes:
                assert offsets[i] + aligned(a.nbytes) <= offsets[j] or offsets[j] + aligned(b.nbytes) <= offsets[i]


@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=12))
def test_chain_reaches_the_lower_bound(sizes):
    tensors = [Buffer(size, max(i - 1, 0), i) for i, (size, _) in enumerate(sizes)]
    workspaces = [Buffer(size, i, i) for i, (_, size) in enumerate(sizes)]
    placed = layout(tensors + workspaces)
    assert_disjoint(tensors + workspaces, placed.offsets)
    assert placed.total_bytes == peak_live_bytes(tensors + workspaces)


@given(st.lists(st.tuples(SIZES, st.integers(0, 9), st.integers(0, 9)), max_size=14))
def test_any_lifetimes(spans):
    buffers = [Buffer(size, min(a, b), max(a, b)) for size, a, b in spans]
    placed = layout(buffers)
    assert_disjoint(buffers, placed.offsets)
    assert placed.total_bytes >= peak_live_bytes(buffers)
    assert all(at + aligned(b.nbytes) <= placed.total_bytes for at, b in zip(placed.offsets, buffers, strict=True))


def test_aligned_empty():
    for nbytes in (0, 1, 63, 64, 1000):
        a = aligned_empty(nbytes)
        assert a.nbytes == nbytes
        assert a.dtype == np.uint8
        assert not nbytes or a.ctypes.data % ALIGNMENT_BYTES == 0
