"""Smaller shapes to measure on stay shapes that the layer takes."""

from hypothesis import given
from hypothesis import strategies as st

from tuner.measure import reduced
from znni.layers import Conv, MaxFilter, MaxPool, MaxPoolFragments, Recombine, Softmax

LAYERS = [
    Conv(4, (3, 3, 3)),
    Conv(4, (2, 1, 1), stride=(2, 1, 1)),
    MaxFilter((2, 2, 2), (2, 2, 2)),
    MaxPool((2, 2, 2), (2, 2, 2)),
    MaxPoolFragments((3, 2, 2), (2, 2, 2)),
    Recombine(((2, 2, 2),)),
    Softmax(),
]


@given(st.sampled_from(LAYERS), st.integers(1, 8), st.integers(3, 20), st.floats(1e-4, 100), st.booleans())
def test_reduced_shapes_are_valid(layer, batch, size, share, whole_patch):
    shape = (8 * batch, 2, 2 * size, 2 * size + 1, 2 * size + 1)
    if isinstance(layer, MaxPoolFragments):
        shape = (batch, 2, 2 * size, 2 * size + 1, 2 * size + 1)
    found = reduced(layer, shape, share, whole_patch)
    assert all(1 <= a <= b for a, b in zip(found, shape, strict=True))
    assert found[3:] == shape[3:]
    layer.output_shape(found)
    if share >= 1:
        assert found == shape
    if whole_patch:
        assert found[1:] == shape[1:]
