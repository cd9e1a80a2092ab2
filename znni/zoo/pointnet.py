"""PointNet autoencoders of neuron shape: points as (batch, 3, 1, 1, N) in, as (batch, 3 N, 1, 1, 1) out.

A later paper of the group that published neuron shapes describes a PointNet autoencoder with 1,024 latent numbers; which
code is its own is not known, so both released candidates are here, status PARTIAL: ``pointnet_ae_qi``
(charlesq34/pointnet-autoencoder models/model.py; N = 1024) and ``pointnet_ae_nge`` (nicholasturner1/NeuronEncodings;
N = 250, 128 latent numbers). Batch norm is folded. Shared layers are 1x1x1 convolutions, the maximum over points a global
pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from znni.layers import GlobalPool
from znni.zoo.graph import GraphBuilder, PublishedGraph


def _autoencoder(g: GraphBuilder, points: Sequence[int], dense: Sequence[int], count: int, norm_last: bool) -> None:
    x = "input"
    for i, width in enumerate(points, 1):
        last = i == len(points)
        normed = not last or norm_last
        x = g.conv(f"point{i}", x, g.narrow(width), 1, bias=True, norm=normed, activation="relu" if normed else None)
    x = g.add("max", GlobalPool("max"), x)
    for i, width in enumerate(dense, 1):
        x = g.conv(f"dense{i}", x, g.narrow(width), 1, bias=True, norm=True, activation="relu")
    g.conv("points", x, 3 * count, 1, bias=True)


def networks() -> list[PublishedGraph]:
    """The networks of this family."""
    qi = partial(_autoencoder, points=(64, 64, 64, 128, 1024), dense=(1024, 1024), count=1024, norm_last=True)
    nge = partial(
        _autoencoder, points=(512, 256, 256, 128, 128), dense=(384, 768, 768, 1536), count=250, norm_last=True
    )
    return [
        PublishedGraph(
            "pointnet_ae_qi", qi, "charlesq34/pointnet-autoencoder models/model.py", "PARTIAL", 64, (1, 1, 1024),
            in_channels=3, fixed=True,
        ),
        PublishedGraph(
            "pointnet_ae_nge", nge, "nicholasturner1/NeuronEncodings", "PARTIAL", 512, (1, 1, 250), in_channels=3,
            fixed=True,
        ),
    ]  # fmt: skip
