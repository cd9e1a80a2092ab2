"""The flood-filling network (FFN): an image and the logits of one object's mask in, new logits out.

Source: M. Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks" (2018);
google/ffn ``ffn/training/models/convstack_3d.py``. Status EXACT: 638,433 parameters at depth 12, field of view 33^3 moved by 8
voxels. Channel 0 is the image, (u8 - 128) / 33, channel 1 the logits; the network's update is added to them.
"""

from __future__ import annotations

from functools import partial

from znni.layers import Activate, Activation, Slice
from znni.zoo.graph import GraphBuilder, PublishedGraph

WIDTH = 32


def _stack(g: GraphBuilder, depth: int) -> None:
    width = g.narrow(WIDTH)
    x = g.conv("conv0_a", "input", width, 3, bias=True, activation="relu")
    x = g.conv("conv0_b", x, width, 3, bias=True)
    for i in range(1, depth):
        y = g.add(f"relu{i}", Activate(Activation("relu")), x)
        y = g.conv(f"conv{i}_a", y, width, 3, bias=True, activation="relu")
        x = g.sum(f"sum{i}", g.conv(f"conv{i}_b", y, width, 3, bias=True), x)
    x = g.add("relu", Activate(Activation("relu")), x)
    update = g.conv("conv_lom", x, 1, 1, bias=True)
    g.sum("logits", g.add("seed", Slice(channels=(1, 2)), "input"), update)


def networks() -> list[PublishedGraph]:
    """The networks of this family."""
    source = "FFN, M. Januszewski et al. (2018); google/ffn convstack_3d.py"
    return [
        PublishedGraph("ffn", partial(_stack, depth=12), source, "EXACT", WIDTH, (33, 33, 33), in_channels=2),
        PublishedGraph("ffn_9", partial(_stack, depth=9), source, "EXACT", WIDTH, (33, 33, 33), in_channels=2),
    ]
