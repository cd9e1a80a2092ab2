"""The two dense forms of pooling against each other and against the sliding window itself."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import geometry
from znni.errors import InvalidShape
from znni.initialise import seeded_weights
from znni.layers import Conv, MaxFilter, MaxPool, MaxPoolFragments, Recombine, Softmax
from znni.lowering import lower
from znni.network import shapes_through
from znni.nodes import chain


def least_input(layers, blocks=1):
    """The input size that gives `blocks` times the pooling step of output voxels."""
    output = tuple(blocks * s for s in geometry.pooling_step(layers))
    return geometry.input_size(output, geometry.field_of_view(layers))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_both_forms_give_the_same_shape(chains, data):
    layers = data.draw(chains)
    ends = []
    for pooling in ("fragments", "filter"):
        nodes = lower(chain(layers), pooling)
        ends.append(shapes_through(nodes, (2, 3, *least_input(layers, 2)))[nodes[-1].name])
    assert ends[0] == ends[1]
    assert ends[0][0] == 2


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_both_forms_are_the_network_applied_at_every_voxel(chains, evaluate, data):
    layers = data.draw(chains)
    fov = geometry.field_of_view(layers)
    nodes = chain(layers)
    weights = seeded_weights(nodes, 2, 5)
    x = np.random.default_rng(3).standard_normal((1, 2, *least_input(layers)))
    fragments = evaluate(lower(nodes, "fragments"), weights, x)
    filters = evaluate(lower(nodes, "filter"), weights, x)
    np.testing.assert_allclose(fragments, filters, atol=1e-12)
    for corner in itertools.islice(itertools.product(*map(range, filters.shape[2:])), 0, None, 3):
        seen = x[(..., *(slice(c, c + f) for c, f in zip(corner, fov, strict=True)))]
        there = filters[(..., *(slice(c, c + 1) for c in corner))]
        np.testing.assert_allclose(evaluate(nodes, weights, seen), there, atol=1e-12)


def test_names_stay_and_recombination_comes_last():
    nodes = chain([Conv(2, (3, 3, 3)), MaxPool((2, 2, 2), (1, 2, 2)), Conv(1, (1, 1, 1)), Softmax()])
    lowered = lower(nodes, "fragments")
    assert [node.name for node in lowered] == [*(node.name for node in nodes), "recombine"]
    assert lowered[1].layer == MaxPoolFragments((2, 2, 2), (1, 2, 2))
    assert lowered[-1].layer == Recombine(((1, 2, 2),))
    assert lowered[-1].inputs == (nodes[-1].name,)


def test_filters_dilate_what_follows():
    layers = [MaxPool((2, 2, 2), (1, 2, 2)), Conv(1, (3, 3, 3)), MaxPool((3, 3, 3), (3, 3, 1)), MaxFilter((2, 2, 2))]
    lowered = [node.layer for node in lower(chain(layers), "filter")]
    assert [layer.dilation for layer in lowered] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (3, 6, 2)]


def test_without_strides_there_is_nothing_to_recombine():
    nodes = chain([MaxPool((2, 2, 2), (1, 1, 1)), Conv(1, (1, 1, 1))])
    assert [node.layer.kind for node in lower(nodes, "fragments")] == ["max_filter", "conv"]


def test_unknown_form_is_refused():
    with pytest.raises(InvalidShape, match="fragments, filter"):
        lower(chain([MaxPool((2, 2, 2), (2, 2, 2))]), "dense")
