"""Named lists of layers that figures are made of: timed by ``znni-tune bench NAME``, and watched by asv."""

from __future__ import annotations

from znni.layers import Conv, Shape

_SAME_3, _SAME_1_3, _SAME_1_5 = (1, 1, 1), (0, 1, 1), (0, 2, 2)

#: Every other part of a network rests on these: 80 -> 80 channels as in ZNNi's networks (Zlateski, Lee, Seung, SC'16), and
#: the first layer and the levels of the RSUNet (Lee, Zung, Li, Jain, Seung, 2017) on patches of 18 x 160 x 160.
PUBLISHED: tuple[tuple[Conv, Shape], ...] = (
    (Conv(80, (3, 3, 3)), (1, 80, 58, 58, 58)),
    (Conv(80, (5, 5, 5)), (1, 80, 52, 52, 52)),
    (Conv(80, (7, 7, 7)), (1, 80, 56, 56, 56)),
    (Conv(80, (9, 9, 9)), (1, 80, 56, 56, 56)),
    (Conv(28, (1, 3, 3), padding=_SAME_1_3), (1, 28, 18, 160, 160)),
    (Conv(36, (3, 3, 3), padding=_SAME_3), (1, 36, 18, 80, 80)),
    (Conv(64, (3, 3, 3), padding=_SAME_3), (1, 64, 18, 40, 40)),
    (Conv(28, (1, 5, 5), padding=_SAME_1_5), (1, 1, 18, 160, 160)),
    (Conv(80, (1, 1, 1)), (1, 80, 56, 56, 56)),
)

#: Those of ZNNi's networks, and the same on inputs of a size that a GPU has room for.
GPU_PUBLISHED: tuple[tuple[Conv, Shape], ...] = (
    *PUBLISHED[:4],
    (Conv(80, (3, 3, 3)), (1, 80, 130, 130, 130)),
    (Conv(80, (5, 5, 5)), (1, 80, 132, 132, 132)),
    (Conv(80, (7, 7, 7)), (1, 80, 134, 134, 134)),
    (Conv(80, (9, 9, 9)), (1, 80, 136, 136, 136)),
)

LISTS: dict[str, tuple[tuple[Conv, Shape], ...]] = {"published": PUBLISHED, "gpu-published": GPU_PUBLISHED}
#: Those of them that are timed on the GPU.
GPU_LISTS = ("gpu-published",)
