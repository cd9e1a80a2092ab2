"""Residual U-Nets for affinities, boundaries and synapses in anisotropic EM.

All are "same" padded. M(d) is the module of Lee et al.: a = ELU(BN(conv 1x3x3)), b = ELU(BN(conv K)),
out = ELU(BN(conv K(b) + a)), K being 1x3x3 at the finest level, 3x3x3 below. Convolutions with batch norm have no bias;
names with ``_dynamic`` run batch norm with the statistics of the patch, as upstream does with several of them.

========================  ==========  ==========  ======================================================================
name                      status      parameters  source
========================  ==========  ==========  ======================================================================
superhuman                RECON       1,443,291   K. Lee et al., "Superhuman accuracy on the SNEMI3D connectomics
                                                  challenge" (2017); NeuroTorch RSUNet, znnphi_interface, third-party
                                                  digests, which agree; 3 affinities as used for inference
superhuman_12             RECON       1,449,600   the same with the 12 affinities of its training
superhuman_torms3         EXACT       2,215,876   torms3/Superhuman code/rsunet.py; 12 affinities; trilinear up-sampling
                                                  with corners aligned, as in PyTorch 0.3
rsunet_caffe_pznet        EXACT       1,307,419   supersergiy/znnphi_interface tests/unet.prototxt (PZnet, Chunkflow)
rsunet_deepem             EXACT       2,655,363   seung-lab/DeepEM deepem/models/rsunet.py, default widths
devoem24                  PARTIAL     2,663,784   dense voxel embeddings (K. Lee et al.): the same trunk, 24 embeddings;
                                                  width, patch and number of embeddings are not confirmed
avan                      EXACT       887,530     voxel association; seung-lab/modelzoo asynet_mip2_rsz_d3_md_1430k
synapse_unet              EXACT       408,433     synaptic clefts; seung-lab/modelzoo, the same family, sigmoid head
neurotorch_2019           EXACT       3,150,497   J. Gornet et al.; jgornet/NeuroTorch RSUNet.py at 1f3fd23
neurotorch_2018           EXACT       1,441,889   the same file before
========================  ==========  ==========  ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from znni.layers import ConvTranspose, Layer, MaxPool, Resize, Triple
from znni.zoo.graph import DYNAMIC, GraphBuilder, PublishedGraph

FLAT: Triple = (1, 3, 3)
CUBE: Triple = (3, 3, 3)
WIDE: Triple = (1, 5, 5)
POOL: Triple = (1, 2, 2)


def _module(g: GraphBuilder, name: str, source: str, width: int, first: Triple, kernel: Triple) -> str:
    a = g.conv(f"{name}.a", source, width, first, norm=True, activation="elu")
    b = g.conv(f"{name}.b", a, width, kernel, norm=True, activation="elu")
    c = g.conv(f"{name}.c", b, width, kernel)
    return g.sum(name, c, a, norm=True, activation="elu")


def _factorised(g: GraphBuilder, name: str, source: str, width: int) -> str:
    """The module with 3x3x3 cut in 1x3x3 and 3x1x1."""
    a = g.conv(f"{name}.a", source, width, FLAT, norm=True, activation="elu")
    b = g.conv(f"{name}.b", g.conv(f"{name}.b.yx", a, width, FLAT), width, (3, 1, 1), norm=True, activation="elu")
    c = g.conv(f"{name}.c", g.conv(f"{name}.c.yx", b, width, FLAT), width, (3, 1, 1))
    return g.sum(name, c, a, norm=True, activation="elu")


def _lee(
    g: GraphBuilder,
    widths: Sequence[int],
    outputs: int,
    *,
    io: Triple = WIDE,
    embed_out: Triple | None = FLAT,
    pool: Triple = POOL,
    up: str = "transposed",
    flat_levels: int = 1,
    first: Triple = FLAT,
    factorised_from: int | None = None,
    head: str | None = "sigmoid",
    head_kernel: Triple | None = None,
) -> None:
    widths = [g.narrow(w) for w in widths]
    depth = len(widths) - 1

    def module(name: str, source: str, level: int) -> str:
        if factorised_from is not None and level >= factorised_from:
            return _factorised(g, name, source, widths[level])
        kernel = FLAT if level < flat_levels else CUBE
        return _module(g, name, source, widths[level], first, kernel)

    x = g.conv("embed_in", "input", widths[0], io, bias=True, activation="elu")
    skips = []
    for level in range(depth):
        x = module(f"down{level}", x, level)
        skips.append(x)
        x = g.add(f"pool{level}", MaxPool(pool, pool), x)
    x = module("bridge", x, depth)
    for level in reversed(range(depth)):
        x = _up(g, f"up{level}", x, widths[level], pool, up, level)
        x = g.sum(f"merge{level}", x, skips[level], norm=True, activation="elu")
        x = module(f"up{level}.module", x, level)
    if embed_out is not None:
        x = g.conv("embed_out", x, widths[0], embed_out, bias=True, activation="elu")
    g.conv("head", x, outputs, head_kernel or io, bias=True, activation=head)


def _up(g: GraphBuilder, name: str, source: str, width: int, pool: Triple, up: str, level: int) -> str:
    if up == "transposed":
        return g.up(name, source, width, pool)
    factor = tuple(float(p) for p in pool)
    if up == "nearest":  # then a convolution
        x = g.add(f"{name}.nearest", Resize(factor, "nearest", "asymmetric", "floor"), source)
        return g.conv(name, x, width, CUBE if level else FLAT)
    x = g.add(f"{name}.linear", Resize(factor, "linear", "align_corners"), source)
    return g.conv(name, x, width, 1)


def _deepem(g: GraphBuilder, widths: Sequence[int], outputs: int, head: str | None = "sigmoid") -> None:
    widths = [g.narrow(w) for w in widths]

    def step(name: str, source: str, width: int) -> str:
        return g.conv(f"{name}.conv", g.norm(f"{name}.norm", source, "relu"), width, CUBE)

    def block(name: str, source: str, width: int) -> str:
        a = step(f"{name}.1", source, width)
        b = step(f"{name}.3", step(f"{name}.2", a, width), width)
        return step(f"{name}.4", g.sum(f"{name}.sum", b, a), width)

    x = block("down0", g.conv("embed_in", "input", widths[0], WIDE), widths[0])
    skips = []
    for level, width in enumerate(widths[1:], 1):
        skips.append(x)
        x = block(f"down{level}", g.add(f"pool{level}", MaxPool(POOL, POOL), x), width)
    for level in reversed(range(len(widths) - 1)):
        source = widths[level + 1]
        # fixed bilinear weights upstream, not trained
        up = ConvTranspose(source, (1, 4, 4), POOL, (0, 1, 1), (0, 1, 1), groups=source)
        x = g.conv(f"up{level}.narrow", g.add(f"up{level}", up, x), widths[level], 1)
        x = block(f"up{level}.block", g.sum(f"merge{level}", x, skips[level]), widths[level])
    g.conv("head", g.norm("last", x, "relu"), outputs, WIDE, bias=True, activation=head)


def is_bilinear(layer: Layer) -> bool:
    """Whether a layer is the up-sampling of the DeepEM networks, whose weights are fixed."""
    return isinstance(layer, ConvTranspose) and layer.groups == layer.out_channels and layer.kernel == (1, 4, 4)


def bilinear_weights(layer: ConvTranspose) -> dict[str, np.ndarray]:
    """The weights of such a layer: (0.25, 0.75, 0.75, 0.25) along y and x, no bias."""
    line = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    weight = np.broadcast_to(np.outer(line, line), (layer.out_channels, 1, *layer.kernel))
    return {"weight": np.ascontiguousarray(weight), "bias": np.zeros(layer.out_channels, np.float32)}


_SUPERHUMAN = (28, 36, 48, 64, 80)
_PATCH = (18, 160, 160)


def networks() -> list[PublishedGraph]:
    """The networks of this family."""
    superhuman = "K. Lee et al., Superhuman SNEMI3D (2017); NeuroTorch RSUNet.py, znnphi_interface unet.prototxt, digests"
    deepem = "seung-lab/DeepEM deepem/models/rsunet.py"
    neurotorch = "J. Gornet et al. (2019); jgornet/NeuroTorch neurotorch/nets/RSUNet.py"
    found = [
        PublishedGraph("superhuman", partial(_lee, widths=_SUPERHUMAN, outputs=3), superhuman, "RECON", 28, _PATCH),
        PublishedGraph("superhuman_12", partial(_lee, widths=_SUPERHUMAN, outputs=12), superhuman, "RECON", 28, _PATCH),
        PublishedGraph(
            "superhuman_torms3",
            partial(
                _lee, widths=(24, 32, 48, 72, 104), outputs=12, embed_out=WIDE, up="linear", flat_levels=0, first=CUBE,
                head_kernel=(1, 1, 1),
            ),
            "torms3/Superhuman code/rsunet.py", "EXACT", 24, (32, 160, 160),
        ),
        PublishedGraph(
            "rsunet_caffe_pznet",
            partial(_lee, widths=(28, 36, 48, 64, 80, 96), outputs=3, flat_levels=2, factorised_from=2),
            "supersergiy/znnphi_interface tests/unet.prototxt", "EXACT", 28, (18, 192, 192),
        ),
        PublishedGraph(
            "rsunet_deepem", partial(_deepem, widths=(16, 32, 64, 128), outputs=3), deepem, "EXACT", 16, (20, 256, 256)
        ),
        PublishedGraph(
            "devoem24", partial(_deepem, widths=(16, 32, 64, 128), outputs=24, head=None),
            f"dense voxel embeddings, K. Lee et al.; {deepem}", "PARTIAL", 16, (20, 256, 256),
        ),
        PublishedGraph(
            "avan", partial(_lee, widths=(28, 36, 48, 64), outputs=2, up="nearest"),
            "voxel association; seung-lab/modelzoo asynet_mip2_rsz_d3_md_1430k", "EXACT", 28, _PATCH, in_channels=2,
        ),
        PublishedGraph(
            "synapse_unet", partial(_lee, widths=(28, 36, 48), outputs=1, up="nearest"),
            "synaptic clefts; seung-lab/modelzoo", "EXACT", 28, _PATCH,
        ),
        PublishedGraph(
            "neurotorch_2019",
            partial(
                _lee, widths=(16, 16, 64, 128, 80), outputs=1, io=CUBE, embed_out=CUBE, pool=(2, 2, 2), flat_levels=0,
                head=None,
            ),
            f"{neurotorch} at 1f3fd23", "EXACT", 16, (32, 128, 128),
        ),
        PublishedGraph(
            "neurotorch_2018", partial(_lee, widths=_SUPERHUMAN, outputs=1, head=None), f"{neurotorch} before 2019",
            "EXACT", 28, (32, 128, 128),
        ),
    ]  # fmt: skip
    return found + [_dynamic(network) for network in found]


def _dynamic(network: PublishedGraph) -> PublishedGraph:
    """The same network with statistics of the patch."""
    return PublishedGraph(
        f"{network.name}_dynamic", network.build, network.source, network.status, network.width, network.patch,
        network.in_channels, norms=DYNAMIC,
    )  # fmt: skip
