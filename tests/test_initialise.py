"""Seeded weights: alive in every channel, equal on every machine."""

import numpy as np
import pytest

from znni import geometry
from znni.errors import ZnniError
from znni.initialise import seeded_weights
from znni.layers import Activation, Conv, MaxFilter, Maxout, MaxPool
from znni.load import load
from znni.nodes import chain
from znni.zoo import networks


def features(evaluate, nodes, weights, x):
    """The result of every node, one by one."""
    for node in nodes:
        x = evaluate([node], weights, x)
        yield node, x


def assert_alive(evaluate, published, seed, blocks):
    """On white noise every channel of every layer varies, by about 1 after ReLU, and is not mostly zero."""
    nodes = chain(published.layers)
    weights = seeded_weights(nodes, 1, seed)
    output = tuple(blocks * s if s > 1 else 1 for s in geometry.pooling_step(published.layers))
    size = geometry.input_size(output, published.field_of_view)
    x = np.random.default_rng(7).standard_normal((1, 1, *size), np.float32)
    for node, y in features(evaluate, nodes, weights, x):
        deviation = y.std(axis=(0, 2, 3, 4))
        assert deviation.min() > 0.1, node.name
        if isinstance(node.layer, Conv) and node.layer.activation.name == "relu":
            assert 0.5 < deviation.mean() < 2, node.name
            assert ((y == 0).mean(axis=(0, 2, 3, 4)) < 0.9).all(), node.name


@pytest.mark.parametrize("name", ["n337", "n537", "n726", "n926"])
def test_narrow_benchmark_nets_are_alive(evaluate, name):
    assert_alive(evaluate, networks()[name].narrowed(8), 0, blocks=2)


def test_n337_is_alive_at_full_width(evaluate):
    assert_alive(evaluate, networks()["n337"], 0, blocks=2)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["n4", "n4_affinity", "vd2d", "znn2d_k10"])
def test_2d_nets_are_alive(evaluate, name, seed):
    assert_alive(evaluate, networks()[name], seed, blocks=6)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_mean_of_the_input_does_not_matter(evaluate, offset):
    nodes = chain(networks()["n337"].narrowed(4).layers)
    x = np.random.default_rng(0).standard_normal((1, 1, 93, 93, 93))
    weights = seeded_weights(nodes, 1, 0)
    assert evaluate(nodes, weights, x + offset).std(axis=(0, 2, 3, 4)).min() > 0.1


#: Clipping to one value, as by default, leaves nothing.
SPREADING = [(name,) for name in Activation.CODES if name != "clip"] + [("tanh", 1.7159, 0.6666), ("clip", 0.0, 6.0)]


@pytest.mark.parametrize("activation", SPREADING, ids=str)
def test_every_activation_spreads(evaluate, activation):
    hidden = Conv(6, (2, 2, 2), activation=Activation(*activation))
    nodes = chain([hidden, MaxPool((2, 2, 2), (2, 2, 2)), MaxFilter((1, 2, 2)), hidden, Maxout(2), hidden])
    x = np.random.default_rng(1).standard_normal((1, 2, 24, 24, 24))
    for node, y in features(evaluate, nodes, seeded_weights(nodes, 2, 0), x):
        if isinstance(node.layer, Conv):
            assert 0.25 < y.std(axis=(0, 2, 3, 4)).mean() < 2


def test_shapes_and_types():
    nodes = chain([Conv(5, (1, 2, 3)), Maxout(5), Conv(2, (1, 1, 1))])
    weights = seeded_weights(nodes, 3, 1)
    assert {name: {k: a.shape for k, a in own.items()} for name, own in weights.items()} == {
        "1_conv": {"weight": (5, 3, 1, 2, 3), "bias": (5,)},
        "3_conv": {"weight": (2, 1, 1, 1, 1), "bias": (2,)},
    }
    assert {a.dtype for own in weights.values() for a in own.values()} == {np.dtype(np.float32)}
    assert all(np.abs(own["weight"]).min() > 0 for own in weights.values())


def test_the_seed_alone_decides():
    assert load("n337", seed=5, width=4).digest == load("n337", seed=5, width=4).digest
    assert load("n337", seed=5, width=4).digest != load("n337", seed=6, width=4).digest


@pytest.mark.parametrize(
    ("name", "width", "digest"),
    [
        ("n337", 8, "4d11cac5e12312a0"),
        ("n926", 3, "a3038c32fff5485a"),
        ("n4", None, "b7dfd89a3f959415"),
        ("n4_affinity", None, "79a329debf9065b7"),
        ("vd2d", 7, "b34dfa1112122d96"),
    ],
)
def test_digests_are_the_same_on_every_machine(name, width, digest):
    assert load(name, seed=11, width=width).digest[:16] == digest


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(ZnniError, match="non-negative integer"):
        seeded_weights(chain([Conv(1, (1, 1, 1))]), 1, seed)


def test_a_layer_too_large_for_any_machine_is_refused():
    with pytest.raises(ZnniError, match="layer 1_conv would have 999000000000 weights"):
        seeded_weights(chain([Conv(999, (1000, 1000, 1000))]), 1, 0)
