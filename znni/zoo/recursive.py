"""The 2D networks of "Recursive Training of 2D-3D Convolutional Networks": N4 (two heads) and VD2D.

Source: K. Lee, A. Zlateski, A. Vishwanathan, H. S. Seung (NIPS'15); in seung-lab/znn-release,
``networks/N4_relu.znn``, ``N4_A.znn`` and ``VD2D.znn``. Status EXACT. Valid, with bias, ReLU on hidden layers; dropout
is the identity at inference.

The boundary networks (``n4``, ``vd2d``) end in two linear maps that were trained under a softmax loss: here a
`Softmax` over the two channels is a layer of its own, the last. The files themselves name no softmax, so that what
`znni.load` makes of a .znn or ZNN HDF5 file ends in the linear maps. ``n4_affinity`` ends in three logistic maps.

===========  =========  ==========  =======
name         FOV        parameters  outputs
===========  =========  ==========  =======
n4           1x95x95    219,290     2
n4_affinity  1x95x95    219,491     3
vd2d         1x109x109  230,714     2
===========  =========  ==========  =======
"""

from __future__ import annotations

from znni.layers import Layer, Softmax
from znni.zoo.published import Published, conv, pool

_PAPER = "Recursive 2D-3D, NIPS'15; seung-lab/znn-release networks"


def _square(kernel: int, out_channels: int, activation: str | None = "relu") -> Layer:
    return conv((1, kernel, kernel), out_channels, activation)


_POOL = pool((1, 2, 2))

N4_BODY = (
    _square(4, 48), _POOL,
    _square(5, 48), _POOL,
    _square(4, 48), _POOL,
    _square(4, 48), _POOL,
    _square(3, 200),
)  # fmt: skip

VD2D_BODY = (
    _square(3, 24), _square(3, 24), _square(2, 24), _POOL,
    _square(3, 36), _square(3, 36), _POOL,
    _square(3, 48), _square(3, 48), _POOL,
    _square(3, 60), _square(3, 60), _POOL,
    _square(3, 200),
)  # fmt: skip

_BOUNDARY = (_square(1, 2, None), Softmax())


def networks() -> list[Published]:
    """The networks of this family."""
    return [
        Published("n4", (*N4_BODY, *_BOUNDARY), f"{_PAPER}/N4_relu.znn"),
        Published("n4_affinity", (*N4_BODY, _square(1, 3, "sigmoid")), f"{_PAPER}/N4_A.znn"),
        Published("vd2d", (*VD2D_BODY, *_BOUNDARY), f"{_PAPER}/VD2D.znn"),
    ]
