"""The four benchmark networks of ZNNi: n337, n537, n726 and n926.

Source: A. Zlateski, K. Lee, H. S. Seung, "ZNNi: Maximizing the Inference Throughput of 3D Convolutional Networks on
CPUs and GPUs" (SC'16), table of the benchmarked networks; in seung-lab/ZNNi, ``networks/m36, m56, m76, m96.znni``.
Status EXACT. All convolutions are valid, of stride 1, with bias and ReLU, the last one's too; poolings are 2^3, meant
densely.

======  =====  ==========  =========
name    FOV    parameters  fragments
======  =====  ==========  =========
n337    85^3   871,603     512
n537    163^3  4,035,603   512
n726    117^3  8,880,803   64
n926    155^3  18,878,723  64
======  =====  ==========  =========
"""

from __future__ import annotations

from znni.zoo.published import Published, conv, pool

WIDTH = 80
OUTPUTS = 3
POOL = "pool"

#: Edge of each convolution's cubic kernel, in order.
LAYERS = {
    "n337": (2, POOL, 3, POOL, 3, POOL, 3, 3, 3, 3),
    "n537": (4, POOL, 5, POOL, 5, POOL, 5, 5, 5, 5),
    "n726": (6, POOL, 7, POOL, 7, 7, 7, 7),
    "n926": (8, POOL, 9, POOL, 9, 9, 9, 9),
}

_FILES = {"n337": "m36", "n537": "m56", "n726": "m76", "n926": "m96"}


def networks() -> list[Published]:
    """The networks of this family."""
    published = []
    for name, table in LAYERS.items():
        layers = [pool(2) if entry == POOL else conv(entry, WIDTH) for entry in table]
        layers[-1] = conv(table[-1], OUTPUTS)
        published.append(Published(name, tuple(layers), f"ZNNi, SC'16; seung-lab/ZNNi networks/{_FILES[name]}.znni"))
    return published
