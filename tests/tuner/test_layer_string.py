"""Layers as text: what is read, that it reads back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.layer_string import BadLayer, layer_text, looks_like_layer, node_words, parse_layer
from znni.errors import InvalidShape
from znni.layers import (
    Activation,
    Conv,
    ConvMaxPoolFragments,
    MaxFilter,
    Maxout,
    MaxPool,
    MaxPoolFragments,
    Recombine,
    Relayout,
    Softmax,
)
from znni.nodes import chain

TRIPLES = st.tuples(*[st.integers(1, 4)] * 3)


@pytest.mark.parametrize(
    ("text", "layer", "shape"),
    [
        ("80>80 k9 in56", Conv(80, (9, 9, 9)), (1, 80, 56, 56, 56)),
        ("28>28 k1,3,3 in20,132,132 pad same", Conv(28, (1, 3, 3), padding=(0, 1, 1)), (1, 28, 20, 132, 132)),
        ("80>80 k3 in52 d2 n4", Conv(80, (3, 3, 3), dilation=(2, 2, 2)), (4, 80, 52, 52, 52)),
        (" 1 > 80  k2 in64 relu ", Conv(80, (2, 2, 2), activation=Activation.of("relu")), (1, 1, 64, 64, 64)),
        ("2>4 n3 in9 s2 pad 1,0,2 k3", Conv(4, (3, 3, 3), (2, 2, 2), (1, 0, 2)), (3, 2, 9, 9, 9)),
        ("2>4 k3 in9 pad=1", Conv(4, (3, 3, 3), padding=(1, 1, 1)), (1, 2, 9, 9, 9)),
        ("8>8 k5 in9 pad same d2", Conv(8, (5, 5, 5), padding=(4, 4, 4), dilation=(2, 2, 2)), (1, 8, 9, 9, 9)),
        ("8>8 k2 d2 in9 pad same", Conv(8, (2, 2, 2), padding=(1, 1, 1), dilation=(2, 2, 2)), (1, 8, 9, 9, 9)),
        ("1>2 k3 in9 tanh:1.7159:0.5", Conv(2, (3, 3, 3), activation=Activation("tanh", 1.7159, 0.5)), (1, 1, 9, 9, 9)),
        ("80 mpf2 in57 n8", MaxPoolFragments((2, 2, 2), (2, 2, 2)), (8, 80, 57, 57, 57)),
        ("80 pool2 s1,2,2 in57", MaxPool((2, 2, 2), (1, 2, 2)), (1, 80, 57, 57, 57)),
        ("80 filter2 d4 in57", MaxFilter((2, 2, 2), (4, 4, 4)), (1, 80, 57, 57, 57)),
        ("6 maxout2 in5", Maxout(2), (1, 6, 5, 5, 5)),
        ("3 softmax in5", Softmax(), (1, 3, 5, 5, 5)),
        ("3 recombine2/1,2,2 in5 n32", Recombine(((2, 2, 2), (1, 2, 2))), (32, 3, 5, 5, 5)),
        ("3 recombine2/1,2,2 in5 n8 parts4", Recombine(((2, 2, 2), (1, 2, 2)), 4), (8, 3, 5, 5, 5)),
        ("20 relayout in5", Relayout(), (1, 20, 5, 5, 5)),
        (
            "3>8 k3 in13 s1,2,1 relu mpf2,1,2/2,3,2 n2",
            ConvMaxPoolFragments(
                Conv(8, (3, 3, 3), (1, 2, 1), activation=Activation("relu")), MaxPoolFragments((2, 1, 2), (2, 3, 2))
            ),
            (2, 3, 13, 13, 13),
        ),
        (
            "3>8 k2 in8 mpf2 parts4",
            ConvMaxPoolFragments(Conv(8, (2, 2, 2)), MaxPoolFragments((2, 2, 2), (2, 2, 2)), 4),
            (1, 3, 8, 8, 8),
        ),
    ],
)
def test_reads(text, layer, shape):
    assert parse_layer(text) == (layer, shape)
    assert looks_like_layer(text)
    assert parse_layer(layer_text(layer, shape)) == (layer, shape)


ACTIVATIONS = st.one_of(
    st.sampled_from(["linear", "relu", "leaky_relu", "elu", "tanh", "sigmoid"]).map(Activation.of),
    st.builds(Activation, st.just("tanh"), st.sampled_from([1.7159, 0.5]), st.sampled_from([0.6667, 1.0])),
)
LAYERS = st.one_of(
    st.builds(Conv, st.integers(1, 99), TRIPLES, TRIPLES, TRIPLES, TRIPLES, ACTIVATIONS),
    st.builds(MaxPool, TRIPLES, TRIPLES),
    st.builds(MaxFilter, TRIPLES, TRIPLES),
)


@given(LAYERS, st.tuples(st.integers(1, 9), st.integers(1, 99), *[st.integers(13, 40)] * 3))
def test_what_is_written_reads_back(layer, shape):
    assert parse_layer(layer_text(layer, shape)) == (layer, shape)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("k9 in56", "start with its channels"),
        ("80>80 k9", "input size"),
        ("80>80 in56", "what it is"),
        ("80 k9 in56", "IN>OUT"),
        ("80>80 mpf2 in57", "IN>OUT"),
        ("80>80 k9 in56 pad", "lacks its value"),
        ("80>80 k9,9 in56", "z,y,x"),
        ("80>80 k0 in56", "at least 1"),
        ("80>80 k9 in56 q3", "'q3' is not understood"),
        ("80>80 k9 in56 in57", "in twice"),
        ("80>80 k4 in56 pad same", "give the padding in numbers"),
        ("80>80 k9 in56 n0", "at least 1"),
        ("0>80 k9 in56", "at least one channel"),
        ("80 mpf2 in57 d2", "no meaning"),
        ("80>80 k3 in9 pool2", "k and mpf together"),
        ("80>80 k3 in9 mpf2/", "z,y,x"),
        ("80>80 k3 in9 parts2", "no meaning"),
        ("80>80 k3 in9 relu:x", "activation"),
        ("80>80", "start with its channels"),
        ("", "start with its channels"),
    ],
)
def test_refuses(text, says):
    with pytest.raises(BadLayer, match=says):
        parse_layer(text)


@pytest.mark.parametrize("text", ["80>80 k9 in8", "80 mpf2 in56", "3 recombine2 in5 n7", "5 maxout2 in4"])
def test_refuses_what_does_not_fit(text):
    with pytest.raises(InvalidShape):
        parse_layer(text)


def test_networks_and_files_are_no_layers():
    assert not any(map(looks_like_layer, ["n337", "plan.json", "80.znni", "3d.h5"]))


def test_words_of_a_chain():
    layers = [Conv(80, (2, 2, 2), activation=Activation("relu")), MaxPool((2, 2, 2), (2, 2, 2)), Conv(3, (1, 3, 3))]
    assert node_words(chain(layers), 1) == ["1>80 k2 relu", "pool2", "80>3 k1,3,3"]
