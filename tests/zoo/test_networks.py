"""The zoo against the published figures."""

import pytest

from znni.errors import InvalidShape
from znni.geometry import pooling_step
from znni.layers import Conv, Softmax
from znni.zoo import networks

#: Field of view, parameters (None where none are published), outputs, voxels on which fragments repeat.
PUBLISHED = {
    "n337": ((85, 85, 85), 871_603, 3, (8, 8, 8)),
    "n537": ((163, 163, 163), 4_035_603, 3, (8, 8, 8)),
    "n726": ((117, 117, 117), 8_880_803, 3, (4, 4, 4)),
    "n926": ((155, 155, 155), 18_878_723, 3, (4, 4, 4)),
    "znn2d_k10": ((1, 175, 175), None, 3, (1, 4, 4)),
    "znn2d_k20": ((1, 365, 365), None, 3, (1, 4, 4)),
    "znn2d_k30": ((1, 555, 555), None, 3, (1, 4, 4)),
    "znn2d_k40": ((1, 745, 745), None, 3, (1, 4, 4)),
    "znn3d_k3": ((42, 42, 42), None, 3, (4, 4, 4)),
    "znn3d_k5": ((80, 80, 80), None, 3, (4, 4, 4)),
    "znn3d_k7": ((118, 118, 118), None, 3, (4, 4, 4)),
    "n4": ((1, 95, 95), 219_290, 2, (1, 16, 16)),
    "n4_affinity": ((1, 95, 95), None, 3, (1, 16, 16)),
    "vd2d": ((1, 109, 109), None, 2, (1, 16, 16)),
}
#: Direct multiply-adds per output voxel of an infinite patch (ZNNi).
MULTIPLY_ADDS = {"n337": 871_120, "n537": 4_035_120, "n726": 8_880_400, "n926": 18_878_320}


def convolutions(name):
    return [layer for layer in networks()[name].layers if isinstance(layer, Conv)]


def test_every_network_is_here():
    assert set(networks()) >= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    fov, parameters, outputs, step = PUBLISHED[name]
    network = networks()[name]
    assert network.name == name
    assert network.field_of_view == fov
    assert network.out_channels == outputs
    assert network.in_channels == 1
    assert pooling_step(network.layers) == step
    assert network.status == "EXACT"
    assert parameters in (None, network.parameters)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_per_voxel(name):
    biases = sum(conv.out_channels for conv in convolutions(name))
    assert networks()[name].parameters - biases == MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name[:3] not in ("n4", "n4_", "vd2")])
def test_benchmark_nets_have_relu_after_every_convolution(name):
    assert {conv.activation.name for conv in convolutions(name)} == {"relu"}


@pytest.mark.parametrize(("name", "last"), [("n4", "linear"), ("vd2d", "linear"), ("n4_affinity", "sigmoid")])
def test_heads(name, last):
    *hidden, head = convolutions(name)
    assert {conv.activation.name for conv in hidden} == {"relu"}
    assert head.activation.name == last
    assert isinstance(networks()[name].layers[-1], Softmax) == (last == "linear")


@pytest.mark.parametrize(
    ("name", "width", "widths"),
    [
        ("n337", 8, [8, 8, 8, 8, 8, 8, 3]),
        ("n4", 12, [12, 12, 12, 12, 50, 2]),
        ("vd2d", 2, [2, 2, 2, 3, 3, 4, 4, 5, 5, 17, 2]),
        ("n926", 160, [160, 160, 160, 160, 160, 3]),
        ("vd2d", 1, [1, 1, 1, 2, 2, 2, 2, 3, 3, 8, 2]),
    ],
)
def test_narrowing_keeps_proportions_and_outputs(name, width, widths):
    published = networks()[name]
    narrow = published.narrowed(width)
    assert [layer.out_channels for layer in narrow.layers if isinstance(layer, Conv)] == widths
    assert narrow.field_of_view == published.field_of_view
    assert published.narrowed(published.width) == published
    assert published.narrowed(None) is published


@pytest.mark.parametrize("width", [0, -1, 1.5, True, "8"])
def test_widths_that_are_none_are_refused(width):
    with pytest.raises(InvalidShape, match="positive integer"):
        networks()["n337"].narrowed(width)


def test_the_registry_cannot_be_changed_from_outside():
    networks().clear()
    assert networks()
