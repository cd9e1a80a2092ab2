"""Cases of layers that move voxels, of grouped and transposed convolutions, of means, and of distances between voxels."""

from __future__ import annotations

from math import prod

from hypothesis import strategies as st

from znni.layers import (
    Activation,
    AvgPool,
    ConvTranspose,
    DepthToSpace,
    GlobalPool,
    GroupedConv,
    Pad,
    PairDistance,
    Resize,
    Slice,
)
from znni.layers.resampling import COORDINATES, PAD_MODES, RESIZE_MODES, ROUNDING


def _case(layer, shape):
    from .cases import Case  # which imports this module

    return Case(layer, tuple(shape))


def _activations():
    from .cases import ACTIVATIONS

    return st.sampled_from(ACTIVATIONS)


def _triples(values: list[int]) -> st.SearchStrategy:
    one = st.sampled_from(values)
    return st.one_of(one.map(lambda v: (v, v, v)), st.tuples(one, one, one))


@st.composite
def _shapes(draw, values: int, least: tuple[int, ...] = (1, 1, 1), multiple: int = 1, most: int = 40):
    """A shape of at most about `values` values, with at least `least` voxels and channels that divide by `multiple`."""
    from .cases import _sizes

    size = draw(_sizes(least, (1, 1, 1), max(prod(least), min(6_000, values // multiple))))
    size = tuple(n + q - 1 for n, q in zip(least, size, strict=True))
    batch = draw(st.integers(1, max(1, min(3, values // (multiple * prod(size))))))
    groups = draw(st.integers(1, max(1, min(most // multiple, values // (multiple * batch * prod(size))))))
    return (batch, groups * multiple, *size)


@st.composite
def avg_pool_cases(draw):
    """Windows, strides and borders; voxels that fill no window."""
    window, stride = draw(_triples([1, 2, 3, 4, 5])), draw(_triples([1, 2, 3]))
    padding = tuple(draw(st.integers(0, w // 2)) for w in window)
    return _case(AvgPool(window, stride, padding, draw(st.booleans())), draw(_shapes(40_000, window)))


@st.composite
def global_pool_cases(draw):
    """Means and maxima of anything."""
    return _case(GlobalPool(draw(st.sampled_from(["mean", "max"]))), draw(_shapes(60_000)))


@st.composite
def grouped_conv_cases(draw):
    """As many groups as channels, and fewer."""
    kernel, dilation = draw(_triples([1, 2, 3, 5])), draw(st.one_of(st.just((1, 1, 1)), _triples([1, 2, 3])))
    groups, inner, outer = (
        draw(st.integers(1, 20)),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.sampled_from([1, 1, 2, 3])),
    )
    padding = draw(st.one_of(st.just((0, 0, 0)), _triples([0, 1, 2])))
    stride = draw(st.one_of(st.just((1, 1, 1)), _triples([1, 2, 3])))
    layer = GroupedConv(groups * outer, kernel, groups, stride, padding, dilation, draw(_activations()))
    least = tuple(max(1, e - 2 * p) for e, p in zip(layer.extent, padding, strict=True))
    values = max(1, 1_500_000 // (prod(kernel) * outer))
    batch, _, *size = draw(_shapes(min(values, 60_000), least, groups * inner, groups * inner))
    return _case(layer, (batch, groups * inner, *size))


@st.composite
def conv_transpose_cases(draw):
    """One group, as many as channels, and between; kernels smaller and larger than the stride."""
    kernel, stride = draw(_triples([1, 2, 3, 4, 5])), draw(_triples([1, 2, 3]))
    groups, inner, outer = (
        draw(st.integers(1, 18)),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.sampled_from([1, 1, 2, 3])),
    )
    values = max(1, 1_000_000 // (prod(kernel) * outer))
    batch, _, *size = draw(_shapes(min(values, 20_000), (1, 1, 1), groups * inner, groups * inner))
    full = tuple((n - 1) * s + k for n, s, k in zip(size, stride, kernel, strict=True))
    low = tuple(draw(st.integers(0, min(2, n - 1))) for n in full)
    high = tuple(draw(st.integers(-1, min(2, n - 1 - a))) for n, a in zip(full, low, strict=True))
    layer = ConvTranspose(groups * outer, kernel, stride, low, high, groups, draw(_activations()))
    return _case(layer, (batch, groups * inner, *size))


@st.composite
def pad_cases(draw):
    """All ways to fill."""
    shape, mode = draw(_shapes(20_000)), draw(st.sampled_from(PAD_MODES))
    most = [{"reflect": n - 1, "symmetric": n}.get(mode, 5) for n in shape[2:]]
    low, high = (tuple(draw(st.integers(0, min(5, m))) for m in most) for _ in range(2))
    return _case(Pad(low, high, mode, draw(st.sampled_from([0.0, -1.5]))), shape)


@st.composite
def slice_cases(draw):
    """Of voxels, channels, or both."""
    shape = draw(_shapes(60_000))
    low = tuple(draw(st.integers(0, min(5, n - 1))) for n in shape[2:])
    high = tuple(draw(st.integers(0, min(5, n - 1 - a))) for n, a in zip(shape[2:], low, strict=True))
    channels = None
    if draw(st.booleans()):
        first = draw(st.integers(0, shape[1] - 1))
        channels = (first, draw(st.integers(first + 1, shape[1])))
    return _case(Slice(low, high, draw(_triples([1, 1, 2, 3])), channels), shape)


@st.composite
def resize_cases(draw):
    """All modes, to more voxels and to fewer."""
    shape = draw(_shapes(8_000))
    factor = draw(_triples([1.0, 2.0, 2.0, 3.0, 1.5, 0.5, 0.75, 4 / 3]))
    extra = draw(st.one_of(st.just((0, 0, 0)), _triples([0, 1, 2])))
    extra = tuple(max(e, 1 - int(n * f)) for e, n, f in zip(extra, shape[2:], factor, strict=True))
    modes = (draw(st.sampled_from(known)) for known in (RESIZE_MODES, COORDINATES, ROUNDING))
    return _case(Resize(factor, *modes, extra), shape)


@st.composite
def depth_to_space_cases(draw):
    """Any factors; results whose channels fill vectors, and others."""
    factor = draw(_triples([1, 2, 2, 3, 4]))
    phases = prod(factor)
    batch, _, *size = draw(_shapes(max(1, 40_000 // phases), most=1))
    most = max(1, 80_000 // (batch * phases * prod(size)))
    channels = draw(st.sampled_from([c for c in (1, 3, 8, 13, 16, 19, 32, 48) if c <= most] or [1]))
    full = tuple(n * f for n, f in zip(size, factor, strict=True))
    low = tuple(draw(st.integers(0, min(2, n - 1))) for n in full)
    high = tuple(draw(st.integers(0, min(3, n - 1 - a))) for n, a in zip(full, low, strict=True))
    return _case(DepthToSpace(factor, low, high), (batch, channels * phases, *size))


@st.composite
def pair_distance_cases(draw):
    """Offsets of either sign, some of them beyond the tensor."""
    one = st.integers(-6, 6)
    offsets = draw(st.lists(st.tuples(one, one, one), min_size=1, max_size=6))
    margin = draw(st.sampled_from([1.5, 20.0]))
    return _case(PairDistance(tuple(offsets), margin), draw(_shapes(20_000, most=24)))


#: Strategies of cases, by kind; `cases.Case` is theirs.
CASES = {
    "avg_pool": avg_pool_cases,
    "global_pool": global_pool_cases,
    "grouped_conv": grouped_conv_cases,
    "conv_transpose": conv_transpose_cases,
    "pad": pad_cases,
    "slice": slice_cases,
    "resize": resize_cases,
    "depth_to_space": depth_to_space_cases,
    "pair_distance": pair_distance_cases,
}

#: As (layer, shape), of which `cases` makes cases: what its tables of these names have of the other kinds.
LARGE = {
    "avg_pool": [(AvgPool((2, 2, 2), (2, 2, 2)), (2, 8, 80, 80, 80))],
    "global_pool": [(GlobalPool(), (1, 16, 64, 80, 80))],
    "grouped_conv": [(GroupedConv(16, (3, 3, 3), 16, padding=(1, 1, 1)), (1, 16, 48, 56, 56))],
    "conv_transpose": [(ConvTranspose(16, (1, 2, 2), (1, 2, 2), groups=16), (1, 16, 32, 40, 40))],
    "pad": [(Pad((1, 1, 1), (1, 1, 1)), (1, 16, 40, 48, 64))],
    "slice": [(Slice((1, 1, 1), (1, 1, 1)), (1, 16, 40, 64, 64))],
    "resize": [(Resize((1.0, 2.0, 2.0), "linear"), (1, 16, 24, 40, 40))],
    "depth_to_space": [(DepthToSpace((1, 2, 2)), (1, 64, 24, 40, 40))],
    "pair_distance": [(PairDistance(((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -3))), (1, 8, 40, 64, 64))],
}

SMALL = {
    "avg_pool": [
        (AvgPool((3, 2, 3), (2, 1, 3), (1, 0, 1), False), (2, 19, 5, 6, 17)),
        (AvgPool((2, 2, 2), (2, 2, 2)), (1, 3, 5, 4, 9)),
    ],
    "global_pool": [(GlobalPool(), (2, 19, 3, 5, 7)), (GlobalPool("max"), (2, 3, 3, 5, 7))],
    "grouped_conv": [
        (GroupedConv(19, (3, 3, 3), 19, padding=(1, 1, 1), activation=Activation("elu", 0.5)), (2, 19, 4, 5, 19)),
        (GroupedConv(6, (1, 3, 2), 3, stride=(1, 2, 3), dilation=(1, 2, 1)), (1, 9, 3, 9, 20)),
    ],
    "conv_transpose": [
        (ConvTranspose(18, (1, 2, 2), (1, 2, 2), groups=18, activation=Activation("relu")), (2, 18, 3, 4, 9)),
        (ConvTranspose(5, (3, 4, 3), (2, 2, 3), (1, 1, 0), (0, 1, -1)), (1, 3, 3, 5, 8)),
    ],
    "pad": [
        *((Pad((1, 0, 3), (2, 1, 4), mode), (2, 19, 3, 4, 9)) for mode in PAD_MODES),
        (Pad((0, 2, 0), (0, 0, 1), value=-2.0), (1, 3, 2, 2, 5)),
    ],
    "slice": [
        (Slice((1, 0, 2), (0, 1, 1), (1, 2, 3)), (2, 19, 3, 5, 23)),
        (Slice(channels=(3, 21)), (2, 24, 2, 3, 5)),
        (Slice((0, 1, 0), channels=(16, 35)), (1, 40, 2, 3, 5)),
    ],
    "resize": [
        (Resize((1.0, 2.0, 2.0)), (2, 19, 3, 4, 9)),
        (Resize((2.0, 1.5, 2.0), "linear", "align_corners", extra=(1, 0, 0)), (1, 3, 3, 4, 9)),
        (Resize((0.5, 2.0, 3.0), "linear"), (1, 16, 4, 3, 5)),
    ],
    "depth_to_space": [
        (DepthToSpace((1, 2, 2)), (2, 4 * 16, 3, 4, 9)),
        (DepthToSpace((2, 1, 3), (1, 0, 2), (0, 1, 1)), (1, 6 * 19, 2, 3, 7)),
        (DepthToSpace((1, 1, 2)), (1, 2 * 28, 2, 3, 18)),
    ],
    "pair_distance": [(PairDistance(((0, 0, 1), (0, -1, 0), (-1, 2, 0), (0, 0, -40))), (2, 5, 3, 5, 19))],
}

MISFITS = {
    "avg_pool": [
        (AvgPool((1, 3, 1), (1, 1, 1)), (1, 1, 9, 2, 9)),
        (AvgPool((2, 2, 2), (1, 1, 1), (2, 0, 0)), (1, 1, 9, 9, 9)),
    ],
    "global_pool": [(GlobalPool(), (1, 2, 3, 0, 3))],
    "grouped_conv": [
        (GroupedConv(4, (1, 1, 1), 2), (1, 3, 4, 4, 4)),
        (GroupedConv(4, (3, 1, 1), 2), (1, 2, 2, 4, 4)),
    ],
    "conv_transpose": [
        (ConvTranspose(4, (1, 1, 1), (1, 1, 1), groups=2), (1, 3, 4, 4, 4)),
        (ConvTranspose(4, (1, 1, 1), (1, 1, 1), (1, 0, 0), (1, 0, 0)), (1, 3, 2, 4, 4)),
    ],
    "pad": [
        (Pad((0, 0, 4), (0, 0, 0), "reflect"), (1, 1, 4, 4, 4)),
        (Pad((0, 5, 0), (0, 0, 0), "symmetric"), (1, 1, 4, 4, 4)),
    ],
    "slice": [(Slice((2, 0, 0), (2, 0, 0)), (1, 1, 4, 4, 4)), (Slice(channels=(1, 4)), (1, 3, 4, 4, 4))],
    "resize": [(Resize((0.2, 1.0, 1.0)), (1, 1, 4, 4, 4))],
    "depth_to_space": [
        (DepthToSpace((1, 2, 2)), (1, 6, 4, 4, 4)),
        (DepthToSpace((1, 1, 2), (0, 0, 4)), (1, 2, 4, 4, 2)),
    ],
    "pair_distance": [(PairDistance(((0, 0, 1),)), (1, 2, 3, 0, 3))],
}


def _as_cases(table: dict) -> dict:
    return {kind: [_case(*pair) for pair in pairs] for kind, pairs in table.items()}


LARGE, SMALL, MISFITS = _as_cases(LARGE), _as_cases(SMALL), _as_cases(MISFITS)
