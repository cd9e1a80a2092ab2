"""The graphs of "Recursive Training of 2D-3D Convolutional Networks": VD2D3D, and its multiscale successor.

Source: K. Lee, A. Zlateski, A. Vishwanathan, H. S. Seung (NIPS'15); seung-lab/znn-release ``networks/VD2D3D.znn``, and
seung-lab/ZNNi ``VD2d3d-MP-p1, p2, p3.znni`` with ``code/multiscale/znni_cpu.cpp``. Status EXACT. Valid sliding-window networks.

``vd2d3d`` (FOV 5x85x85) has two input channels, the image and the boundary map that VD2D gives for it (mirror-padded, of the
same size): the recursion. The last convolutions of both branches feed the same 24 maps. ``vd2d3d_ms`` (FOV 9x109x109) has three
branches that pool once, twice and three times; each takes the middle of the input that it sees, and their 200 maps are summed.
"""

from __future__ import annotations

from collections.abc import Sequence

from znni.graph_geometry import field_of_view
from znni.layers import MaxFilter, MaxPool, Slice, Softmax, Triple
from znni.zoo.graph import VALID, GraphBuilder, PublishedGraph

_FLAT: Triple = (1, 2, 2)
_POOL = "pool"
_FILTER = "filter"
_STEM = ((1, 3, 24), (1, 3, 24), (1, 2, 24))
#: Convolutions (z, edge, width), poolings and filters (with their windows) of the three branches.
_BRANCHES = (
    (*_STEM, _POOL, (1, 3, 36), (1, 3, 36), (_FILTER, _FLAT), (2, 3, 36), (2, 3, 36), (_FILTER, (2, 2, 2)), (2, 3, 48),
     (2, 3, 48), (_FILTER, (2, 2, 2)), (2, 3, 60), (2, 3, 60)),
    (*_STEM, _POOL, (1, 3, 36), (1, 3, 36), _POOL, (1, 3, 48), (1, 3, 48), (_FILTER, (2, 2, 2)), (2, 3, 48), (2, 3, 48),
     (_FILTER, (2, 2, 2)), (2, 3, 60), (2, 3, 60)),
    (*_STEM, _POOL, (1, 3, 36), (1, 3, 36), _POOL, (1, 3, 48), (1, 3, 48), _POOL, (1, 3, 60), (2, 3, 60),
     (_FILTER, (2, 2, 2)), (2, 3, 60), (2, 3, 60)),
)  # fmt: skip
_MULTISCALE_FOV: Triple = (9, 109, 109)


def _conv(
    g: GraphBuilder,
    name: str,
    source: str,
    kernel: Triple,
    width: int,
    activation: str | None = "relu",
    bias: bool = True,
) -> str:
    return g.conv(name, source, width, kernel, bias=bias, padding=VALID, activation=activation)


def _chain(g: GraphBuilder, prefix: str, source: str, entries: Sequence) -> str:
    x = source
    for i, entry in enumerate(entries, 1):
        name = f"{prefix}{i}"
        if entry == _POOL:
            x = g.add(name, MaxPool(_FLAT, _FLAT), x)
        elif entry[0] == _FILTER:
            x = g.add(name, MaxFilter(entry[1]), x)
        else:
            z, edge, width = entry
            x = _conv(g, name, x, (z, edge, edge), g.narrow(width))
    return x


def _vd2d3d(g: GraphBuilder) -> None:
    ends = []
    for channel, name in enumerate(("image", "map")):
        x = g.add(name, Slice(channels=(channel, channel + 1)), "input")
        x = _chain(g, f"{name}.", x, _STEM[:2])
        ends.append(_conv(g, f"{name}.3", x, (1, 2, 2), g.narrow(24), None, bias=not ends))  # one bias for both
    x = g.sum("both", *ends, activation="relu")
    x = _chain(g, "trunk", x, (_POOL, (1, 3, 36), (1, 3, 36), _POOL, (1, 3, 48), (1, 3, 48)))
    x = g.add("pool3", MaxPool((2, 2, 2), _FLAT), x)
    x = _chain(g, "deep", x, ((2, 3, 60), (2, 3, 60), (2, 3, 100)))
    _conv(g, "boundary", x, (1, 1, 1), 2, None)
    g.add("softmax", Softmax())


def _multiscale(g: GraphBuilder) -> None:
    ends = []
    for number, entries in enumerate(_BRANCHES, 1):
        alone = GraphBuilder(1)
        _chain(alone, "", "input", entries)
        spare = [whole - own for whole, own in zip(_MULTISCALE_FOV, field_of_view(alone.nodes), strict=True)]
        low = tuple(n // 2 for n in spare)
        high = tuple(n - n // 2 for n in spare)
        x = g.add(f"p{number}", Slice(low, high), "input") if any(spare) else "input"
        x = _chain(g, f"p{number}.", x, entries)
        ends.append(_conv(g, f"p{number}.end", x, (1, 1, 1), g.narrow(200), None, bias=not ends))  # one bias for all
    x = g.sum("all", *ends, activation="relu")
    _conv(g, "affinities", x, (1, 1, 1), 3, "sigmoid")


def networks() -> list[PublishedGraph]:
    """The networks of this family."""
    return [
        PublishedGraph(
            "vd2d3d", _vd2d3d, "Recursive 2D-3D, NIPS'15; seung-lab/znn-release networks/VD2D3D.znn", "EXACT", 24,
            in_channels=2, sliding=True,
        ),
        PublishedGraph(
            "vd2d3d_ms", _multiscale, "seung-lab/ZNNi VD2d3d-MP-p1..p3.znni, code/multiscale/znni_cpu.cpp", "EXACT", 24,
            sliding=True,
        ),
    ]  # fmt: skip
