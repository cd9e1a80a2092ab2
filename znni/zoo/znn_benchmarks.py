"""The benchmark networks of ZNN: convolution, pooling, convolution, pooling, four convolutions; 40 channels wide.

Source: A. Zlateski, K. Lee, H. S. Seung, "ZNN - A Fast and Scalable Algorithm for Training 3D Convolutional Networks on
Multi-Core and Many-Core Shared Memory Machines" (IPDPS'16); in seung-lab/znn-release, ``benchmark/ZNN/*.znn`` and
``benchmark/Caffe/benchmarks``. Status EXACT. Valid, with bias, ReLU after every convolution, 3 outputs. The .znn files
of the 2D networks write their poolings as 2,2,2 on a z axis of one voxel; here they are 1,2,2, as in the Caffe files.

=========  =========  ==========
name       FOV        parameters
=========  =========  ==========
znn2d_k10  1x175x175  656,203
znn2d_k20  1x365x365  2,624,203
znn2d_k30  1x555x555  5,904,203
znn2d_k40  1x745x745  10,496,203
znn3d_k3   42^3       177,323
znn3d_k5   80^3       820,203
znn3d_k7   118^3      2,250,283
=========  =========  ==========
"""

from __future__ import annotations

from znni.layers import Triple
from znni.zoo.published import Published, conv, pool

WIDTH = 40
OUTPUTS = 3

#: Kernel of all six convolutions, window of both poolings, and the released file.
LAYERS: dict[str, tuple[Triple, Triple, str]] = {
    "znn2d_k10": ((1, 10, 10), (1, 2, 2), "2d_10"),
    "znn2d_k20": ((1, 20, 20), (1, 2, 2), "2d_20"),
    "znn2d_k30": ((1, 30, 30), (1, 2, 2), "2d_30"),
    "znn2d_k40": ((1, 40, 40), (1, 2, 2), "2d_40"),
    "znn3d_k3": ((3, 3, 3), (2, 2, 2), "3d_3"),
    "znn3d_k5": ((5, 5, 5), (2, 2, 2), "3d_5"),
    "znn3d_k7": ((7, 7, 7), (2, 2, 2), "3d_7"),
}


def networks() -> list[Published]:
    """The networks of this family."""
    published = []
    for name, (kernel, window, file) in LAYERS.items():
        hidden = conv(kernel, WIDTH)
        layers = (hidden, pool(window), hidden, pool(window), hidden, hidden, hidden, conv(kernel, OUTPUTS))
        published.append(Published(name, layers, f"ZNN, IPDPS'16; seung-lab/znn-release benchmark/ZNN/{file}.znn"))
    return published
