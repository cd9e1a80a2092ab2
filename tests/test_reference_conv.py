"""Float64 convolution against its definition, by every way that it may be computed."""

from __future__ import annotations

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import reference_conv
from znni.reference_conv import Tiling, choose_tiling, convolve


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def definition(x, w, dilation):
    """One einsum per output voxel."""
    batch, *size = x.shape[:4]
    kernel = w.shape[2:]
    out = np.empty((batch, *(n - (k - 1) * d for n, k, d in zip(size, kernel, dilation, strict=True)), w.shape[0]))
    for at in np.ndindex(out.shape[1:4]):
        seen = (slice(a, a + (k - 1) * d + 1, d) for a, k, d in zip(at, kernel, dilation, strict=True))
        out[(slice(None), *at)] = np.einsum("bzyxi,oizyx->bo", x[(slice(None), *seen)], w.astype(np.float64))
    return out


def random_case(size, kernel, dilation, channels, seed=0):
    rng = np.random.default_rng(seed)
    spatial = (n + (k - 1) * d for n, k, d in zip(size[1:], kernel, dilation, strict=True))
    x = rng.standard_normal((size[0], *spatial, channels[0]))
    return x, rng.standard_normal((channels[1], channels[0], *kernel)).astype(np.float32)


triples = st.tuples(*[st.integers(1, 4)] * 3)
sizes = st.tuples(st.integers(1, 2), *[st.integers(1, 6)] * 3)


@settings(deadline=None)
@given(
    sizes, triples, triples, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.none() | triples, st.integers(0, 2**32)
)
def test_equals_the_definition(pool, size, kernel, dilation, channels, outputs, seed):
    """Directly, or by tiles of any size; an axis without taps has tiles of one voxel."""
    if math.prod(kernel) == 1:
        outputs = None
    if outputs:
        outputs = tuple(m if k > 1 else 1 for k, m in zip(kernel, outputs, strict=True))
    x, w = random_case(size, kernel, dilation, channels, seed)
    out = convolve(x, w, dilation, pool, 2, Tiling(kernel, dilation, outputs))
    np.testing.assert_allclose(out, definition(x, w, dilation), rtol=0, atol=1e-12)


@pytest.mark.parametrize("workspace_bytes", [0, 200_000, 2**30])
def test_result_does_not_depend_on_the_workspace(pool, monkeypatch, workspace_bytes):
    """However few frequencies and tiles fit at once."""
    monkeypatch.setattr(reference_conv, "WORKSPACE_BYTES", workspace_bytes)
    x, w = random_case((1, 13, 12, 17), (3, 2, 4), (2, 1, 3), (5, 4))
    out = convolve(x, w, (2, 1, 3), pool, 2, Tiling((3, 2, 4), (2, 1, 3), (4, 5, 3)))
    np.testing.assert_allclose(out, definition(x, w, (2, 1, 3)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 4, 4), (5, 5, 5), (9, 9, 9)])
def test_chosen_tiling_equals_direct(pool, kernel):
    """With channels enough that the choice is not always direct."""
    x, w = random_case((1, 12, 13, 14), kernel, (1, 2, 2), (16, 24))
    chosen = choose_tiling((1, 12, 13, 14), (*kernel, 16, 24), (1, 2, 2))
    assert (chosen.outputs is None) == (math.prod(kernel) < 125)
    out = convolve(x, w, (1, 2, 2), pool, 2)
    direct = convolve(x, w, (1, 2, 2), pool, 2, Tiling(kernel, (1, 2, 2), None))
    assert np.abs(out - direct).max() < 1e-13 * np.abs(direct).max() * math.sqrt(math.prod(kernel) * 16)


@settings(deadline=None)
@given(sizes, triples, triples, triples)
def test_tiles_cover_every_output_once(size, kernel, dilation, outputs):
    tiling = Tiling(kernel, dilation, outputs)
    covered = np.zeros(size, int)
    extent = [n + (k - 1) * d for n, k, d in zip(size[1:], kernel, dilation, strict=True)]
    for source, target in tiling.tiles(size):
        covered[target] += 1
        for read, written, n, k, d in zip(source[1:], target[1:], extent, kernel, dilation, strict=True):
            count = len(range(*written.indices(n)))
            assert read.start == written.start
            assert len(range(*read.indices(n))) == count + k - 1 <= max(outputs) + k - 1
            assert read.step == written.step == d
    assert (covered == 1).all()


def test_workspace_is_kept(pool, monkeypatch):
    """Beyond input and output, kernels in float64 and what Python needs."""
    workspace_bytes, kernel, dilation = 16 * 2**20, (5, 5, 5), (2, 2, 2)
    monkeypatch.setattr(reference_conv, "WORKSPACE_BYTES", workspace_bytes)
    x, w = random_case((1, 40, 40, 40), kernel, dilation, (16, 16))
    assert choose_tiling((1, 40, 40, 40), (*kernel, 16, 16), dilation).outputs
    tracemalloc.start()
    out = convolve(x, w, dilation, pool, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= out.nbytes + workspace_bytes + 8 * w.size + 2**20
