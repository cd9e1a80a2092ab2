"""Field of view, strides and sizes of graphs."""

from __future__ import annotations

import pytest

from znni.errors import InvalidShape
from znni.graph_geometry import AxisSizes, field_of_view, period
from znni.layers import Add, Conv, ConvTranspose, DepthToSpace, GlobalPool, MaxPool, Pad, Resize, Slice
from znni.nodes import Node, channels_through

from .graphs import padded_unet, residual_sum, two_branches


def test_a_chain_sees_what_its_kernels_and_strides_say():
    nodes = (
        Node("a", Conv(2, (1, 3, 3))),
        Node("b", MaxPool((1, 2, 2), (1, 2, 2)), ("a",)),
        Node("c", Conv(2, (3, 3, 3)), ("b",)),
    )
    assert field_of_view(nodes) == (3, 8, 8)
    assert period(nodes, 0) == 1 and period(nodes, 1) == 2


def test_sizes_of_a_u_net_come_in_steps_of_its_strides():
    network = padded_unet()
    assert network.strides == (1, 4, 4) and network.step == (1, 4, 4) and network.least_output == (1, 4, 4)
    assert [list(r)[:3] for r in network.valid_patches(12)] == [[1, 2, 3], [4, 8, 12], [4, 8, 12]]
    assert network.output_patch((3, 8, 12)) == (3, 8, 12) and network.input_patch((3, 8, 12)) == (3, 8, 12)
    with pytest.raises(InvalidShape, match="along y, sizes go from 4 on by 4; nearest to 10 are 8 and 12"):
        network.check_patch((3, 10, 12))
    assert network.padded and network.same_resolution and network.forms == ("strided",)


def test_margins_are_half_the_field_of_view_but_a_quarter_of_the_patch_at_most():
    network = padded_unet()
    fov = network.field_of_view
    assert network.margin((1, 400, 400))[1:] == tuple((f - 1) // 2 for f in fov[1:])
    assert network.margin((1, 16, 16)) == (0, 4, 4)


def test_what_shrinks_and_grows_again():
    nodes = (
        Node("a", Conv(2, (1, 1, 4), stride=(1, 1, 2))),
        Node("b", ConvTranspose(2, (1, 1, 4), (1, 1, 2)), ("a",)),
        Node("c", Slice((0, 0, 1), (0, 0, 0)), ("b",)),
        Node("d", Resize((1.0, 1.0, 2.0)), ("c",)),
        Node("e", Pad((0, 0, 1), (0, 0, 1)), ("d",)),
    )
    sizes = AxisSizes(nodes, 2, channels_through(nodes, 1))
    assert sizes.period == 2
    assert sizes.size(8) == 16 and sizes.size(9) == 16 and sizes.size(3) is None
    assert sizes.input_of(16) == 8 and sizes.input_of(15) is None


def test_channels_spread_over_voxels_do_not_hide_sizes():
    nodes = (Node("a", Conv(8, (1, 1, 1))), Node("b", DepthToSpace((2, 2, 2), high=(0, 1, 0)), ("a",)))
    assert [AxisSizes(nodes, axis, channels_through(nodes, 1)).size(5) for axis in range(3)] == [10, 9, 10]


def test_branches_of_different_sizes_do_not_meet():
    nodes = (Node("a", Conv(1, (1, 1, 3))), Node("s", Add(), ("a", "input")))
    assert AxisSizes(nodes, 2, channels_through(nodes, 1)).size(9) is None
    assert AxisSizes(nodes, 1, channels_through(nodes, 1)).size(9) == 9


def test_a_global_pooling_takes_any_size():
    nodes = (Node("a", GlobalPool("max")), Node("b", Conv(3, (1, 1, 1)), ("a",)))
    sizes = AxisSizes(nodes, 2, channels_through(nodes, 1))
    assert sizes.size(7) == 1 and sizes.least() == 1


def test_a_sliding_graph_knows_its_forms():
    assert residual_sum().forms == ("fragments", "filter")
    assert residual_sum().field_of_view == (1, 10, 10) and residual_sum().step == (1, 2, 2)
    assert two_branches().forms == ("filter",)
