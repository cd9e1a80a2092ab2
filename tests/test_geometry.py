"""Field of view and valid sizes against shapes propagated through the layers that run."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import geometry
from znni.errors import InvalidShape
from znni.layers import Conv, MaxFilter, MaxPool
from znni.lowering import lower
from znni.network import shapes_through
from znni.nodes import chain

AXIS = st.integers(0, 2)


def propagated(layers, pooling, axis, n):
    """The output size along `axis` for an input of n voxels there and valid ones elsewhere; None if refused."""
    fov, step = geometry.field_of_view(layers), geometry.pooling_step(layers)
    size = [f - 1 + s for f, s in zip(fov, step, strict=True)]
    size[axis] = n
    nodes = lower(chain(layers), pooling)
    try:
        return shapes_through(nodes, (1, 1, *size))[nodes[-1].name]
    except InvalidShape:
        return None


@settings(max_examples=60, deadline=None)
@given(st.data(), AXIS)
def test_field_of_view_is_the_least_input_that_has_an_output(chains, data, axis):
    layers = data.draw(chains)
    fov = geometry.field_of_view(layers)[axis]
    fits = [n for n in range(1, fov + 4) if propagated(layers, "filter", axis, n) is not None]
    assert fits == list(range(fov, fov + 4))
    assert [propagated(layers, "filter", axis, n)[2 + axis] for n in fits] == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.data(), AXIS)
def test_valid_sizes_are_those_that_fragments_take(chains, data, axis):
    layers = data.draw(chains)
    fov, step = geometry.field_of_view(layers)[axis], geometry.pooling_step(layers)[axis]
    largest = fov + 3 * step
    shapes = {n: propagated(layers, "fragments", axis, n) for n in range(1, largest + 1)}
    valid = geometry.valid_sizes(fov, step, largest)
    assert [n for n, shape in shapes.items() if shape] == list(valid)
    assert all(shapes[n][0] == 1 and shapes[n][2 + axis] == n - fov + 1 for n in valid)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 300))
def test_nearest_valid_sizes_enclose(fov, step, n):
    valid = list(geometry.valid_sizes(fov, step, 400))
    nearest = geometry.nearest_valid(n, fov, step)
    below, above = [v for v in valid if v <= n], [v for v in valid if v >= n]
    expected = (n,) if n in valid else (*below[-1:], above[0])
    assert nearest == expected


@given(st.tuples(*[st.integers(1, 99)] * 3), st.tuples(*[st.integers(1, 99)] * 3))
def test_input_and_output_sizes_are_inverse(output, fov):
    assert geometry.output_size(geometry.input_size(output, fov), fov) == output


def test_dilation_stride_and_windows_count():
    layers = [Conv(1, (1, 2, 3), dilation=(1, 2, 1)), MaxPool((2, 3, 2), (1, 2, 2)), MaxFilter((1, 2, 2), (1, 1, 3))]
    assert geometry.field_of_view(layers) == (2, 7, 10)
    assert geometry.pooling_step(layers) == (1, 2, 2)


def test_error_names_the_rule_and_the_nearest_sizes():
    with pytest.raises(InvalidShape) as error:
        geometry.check_patch("n337", (97, 97, 97), (85, 85, 85), (8, 8, 8))
    assert str(error.value) == (
        "input patch 97x97x97 does not fit n337: each axis must be 84 + 8 i (i >= 1); nearest are 92 and 100"
    )


@pytest.mark.parametrize(("patch", "says"), [((1, 111, 110), "y must be 94 + 16 i"), ((1, 110, 50), "smallest is 110")])
def test_error_names_the_axis_where_axes_differ(patch, says):
    with pytest.raises(InvalidShape, match=re.escape(says)):
        geometry.check_patch("n4", patch, (1, 95, 95), (1, 16, 16))


def test_valid_patch_passes():
    geometry.check_patch("n337", (92, 100, 108), (85, 85, 85), (8, 8, 8))


def test_patch_of_two_axes_is_refused():
    with pytest.raises(InvalidShape, match="z, y, x"):
        geometry.check_patch("n4", (110, 110), (1, 95, 95), (1, 16, 16))
