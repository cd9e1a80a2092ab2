"""Merging scales and activations changes no result."""

from __future__ import annotations

import numpy as np
import pytest

from znni.folding import fold
from znni.initialise import seeded_weights
from znni.layers import Activate, Activation, Add, Affine, Conv, ConvTranspose, GroupedConv, Norm
from znni.network import Network
from znni.nodes import Node

RELU = Activation("relu")


def unfused() -> tuple[Node, ...]:
    return (
        Node("a", Conv(6, (1, 3, 3), padding=(0, 1, 1))),
        Node("a.bn", Affine(), ("a",)),
        Node("a.relu", Activate(RELU), ("a.bn",)),
        Node("b", GroupedConv(6, (3, 1, 1), 3, padding=(1, 0, 0)), ("a.relu",)),
        Node("b.bn", Affine(RELU), ("b",)),
        Node("up", ConvTranspose(4, (1, 3, 3), (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=2), ("b.bn",)),
        Node("up.bn", Affine(), ("up",)),
        Node("c", Conv(4, (1, 1, 1)), ("a.relu",)),
        Node("sum", Add(), ("up.bn", "c")),
        Node("sum.bn", Affine(), ("sum",)),
        Node("sum.elu", Activate(Activation("elu")), ("sum.bn",)),
        Node("norm", Norm("instance"), ("sum.elu",)),
        Node("norm.scale", Affine(RELU), ("norm",)),
        Node("twice", Affine(), ("norm.scale",)),
        Node("twice.again", Affine(), ("twice",)),
        Node("end", Activate(), ("twice.again",)),
    )


def test_the_result_stays_and_nodes_go():
    nodes = unfused()
    weights = seeded_weights(nodes, 2, 0)
    folded, own = fold(nodes, weights)
    assert [n.name for n in folded] == ["a.relu", "b.bn", "up.bn", "c", "sum.elu", "norm.scale", "twice.again"]
    assert folded[4].layer == Add(2, True, Activation("elu")) and folded[4].inputs == ("up.bn", "c")
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 6, 5), np.float32)
    before = Network("before", nodes, 2, weights, sliding=False).reference(x)
    after = Network("after", folded, 2, own, sliding=False).reference(x)
    np.testing.assert_allclose(after, before, atol=2e-6 * np.abs(before).max())


@pytest.mark.parametrize("reader", [Affine(), Activate(RELU)])
def test_what_another_reads_too_is_left(reader):
    nodes = (Node("a", Conv(2, (1, 1, 1))), Node("b", reader, ("a",)), Node("sum", Add(), ("a", "b")))
    folded, _ = fold(nodes, seeded_weights(nodes, 2, 0))
    assert [n.name for n in folded] == ["a", "b", "sum"]


def test_what_follows_an_activation_is_left():
    nodes = (Node("a", Conv(2, (1, 1, 1), activation=RELU)), Node("b", Affine(), ("a",)))
    folded, _ = fold(nodes, seeded_weights(nodes, 2, 0))
    assert folded == nodes
