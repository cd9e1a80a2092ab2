"""Networks: their weights' checks, digests, and what they say of patches and inputs."""

import numpy as np
import pytest

from znni.errors import FormatError, InvalidShape
from znni.initialise import seeded_weights
from znni.layers import Activation, Conv, Maxout, MaxPool, Softmax
from znni.network import Network, shapes_through
from znni.nodes import INPUT, chain

LAYERS = (
    Conv(4, (1, 3, 3), activation=Activation("relu")),
    MaxPool((1, 2, 2), (1, 2, 2)),
    Conv(2, (1, 2, 2)),
    Softmax(),
)
NODES = chain(LAYERS)


@pytest.fixture
def weights():
    return seeded_weights(NODES, 1, 0)


@pytest.fixture
def network(weights):
    return Network("small", NODES, 1, weights)


def test_what_it_says_of_itself(network):
    assert network.field_of_view == (1, 6, 6)
    assert network.step == (1, 2, 2)
    assert network.out_channels == 2
    assert network.parameters == 4 * 9 + 4 + 2 * 4 * 4 + 2
    assert network.weight_bytes == 4 * network.parameters
    assert network.flop_per_voxel == 2 * (4 * 9 + 2 * 4 * 4)
    assert network.layers == LAYERS
    assert network.source == "small"
    assert [node.name for node in network.nodes] == ["1_conv", "2_max_pool", "3_conv", "4_softmax"]


def test_chain_reads_from_one_to_the_next():
    assert [node.inputs for node in NODES] == [(INPUT,), ("1_conv",), ("2_max_pool",), ("3_conv",)]
    assert shapes_through(NODES, (1, 1, 1, 6, 6))["4_softmax"] == (1, 2, 1, 1, 1)


def test_valid_patches_and_the_check_agree(network):
    assert [list(sizes) for sizes in network.valid_patches((2, 11, 12))] == [[1, 2], [7, 9, 11], [7, 9, 11]]
    assert [list(sizes) for sizes in network.valid_patches(8, "filter")][1:] == [[6, 7, 8]] * 2
    network.check_patch((1, 7, 9))
    network.check_patch((1, 6, 8), "filter")
    with pytest.raises(InvalidShape, match="nearest are 7 and 9"):
        network.check_patch((1, 8, 9))


def test_maxout_divides_channels():
    nodes = chain([Conv(6, (1, 1, 1)), Maxout(3), Conv(1, (1, 1, 1))])
    network = Network("maxout", nodes, 2, seeded_weights(nodes, 2, 0))
    assert network.weights["3_conv"]["weight"].shape == (1, 2, 1, 1, 1)


def test_weights_are_float32_and_contiguous(weights):
    weights["1_conv"]["weight"] = np.asfortranarray(weights["1_conv"]["weight"].astype(np.float64))
    own = Network("small", NODES, 1, weights).weights["1_conv"]["weight"]
    assert own.dtype == np.float32
    assert own.flags.c_contiguous


def test_missing_weights_are_named(weights):
    del weights["3_conv"]["bias"]
    with pytest.raises(FormatError, match="layer 3_conv has no bias; expected shape 2"):
        Network("small", NODES, 1, weights)


def test_wrong_shapes_are_named(weights):
    with pytest.raises(FormatError, match="weight of layer 1_conv must be 4x2x1x3x3, got 4x1x1x3x3"):
        Network("small", NODES, 2, weights)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(weights, value):
    weights["3_conv"]["weight"][0, 1] = value
    with pytest.raises(FormatError, match="weight of layer 3_conv holds NaN or infinite"):
        Network("small", NODES, 1, weights)


def test_digest_follows_layers_and_weights_alone(network, weights):
    assert Network("renamed", NODES, 1, weights, seed=3).digest == network.digest
    other = chain([*LAYERS[:-1]])
    assert Network("small", other, 1, weights).digest != network.digest
    weights["1_conv"]["bias"][0] += 1
    assert Network("small", NODES, 1, weights).digest != network.digest


def test_input_is_made_float32(network):
    x = network.check_input(np.zeros((2, 1, 1, 6, 7), np.uint8))
    assert x.dtype == np.float32
    assert x.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((6, 6), "takes .batch, 1, z, y, x., got an array of shape 6x6"),
        ((1, 2, 1, 6, 6), "got an array of shape 1x2x1x6x6"),
        ((1, 1, 1, 5, 9), "input 1x5x9 is smaller than the field of view 1x6x6 of small"),
    ],
)
def test_input_that_cannot_be_is_refused(network, shape, says):
    with pytest.raises(InvalidShape, match=says):
        network.check_input(np.zeros(shape))
