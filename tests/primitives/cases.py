"""Layers and input shapes to try primitives on: drawn at random within a bound on work, and a fixed large one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from hypothesis import strategies as st

from znni.layers import (
    Activation,
    Conv,
    ConvMaxPoolFragments,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    MaxPoolFragments,
    Recombine,
    Relayout,
    Shape,
    Softmax,
)

#: What an operator is given: an array or, of layers that join, several.
Arrays = np.ndarray | tuple[np.ndarray, ...]
ONES, ZEROS = (1, 1, 1), (0, 0, 0)
#: Bounds on one example: voxels of an input channel, multiply-adds of the definition, and products of spectra.
VOXELS, MULTIPLY_ADDS, PRODUCTS = 16_000, 4_000_000, 1_500_000

ACTIVATIONS = [
    Activation(),
    Activation("relu"),
    Activation("leaky_relu", 0.01),
    Activation("elu", 1.5),
    Activation("tanh", 1.7159, 2 / 3),
    Activation("sigmoid"),
    Activation("clip", -0.4, 0.9),
]
#: Sizes of results along an axis: tiny, around the widths of vectors and tiles, and awkward primes.
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 19, 23, 29, 31, 33, 37, 41, 47, 53, 67, 97]


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input."""

    layer: Layer
    shape: Shape

    def arrays(self, seed: int) -> tuple[Arrays, dict[str, np.ndarray]]:
        """Input, of layers that join all inputs, and weights; results of a convolution are of unit variance before its
        activation."""
        rng = np.random.default_rng(seed)
        x = tuple(rng.standard_normal(shape, np.float32) for shape in self.layer.input_shapes(self.shape))
        shapes = self.layer.weight_shapes(self.shape[1]) if hasattr(self.layer, "weight_shapes") else {}
        weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        if "weight" in weights:
            weights["weight"] /= np.float32(prod(shapes["weight"][1:]) ** 0.5)
        return x if self.layer.joins else x[0], weights


def each(function: Callable, x: Arrays) -> Arrays:
    """`function` of an array, or of each of a tuple of them."""
    return tuple(map(function, x)) if isinstance(x, tuple) else function(x)


def _triples(values: list[int]) -> st.SearchStrategy:
    """One value along all axes, or one for each."""
    one = st.sampled_from(values)
    return st.one_of(one.map(lambda v: (v, v, v)), st.tuples(one, one, one))


@st.composite
def _sizes(draw, least: tuple[int, ...], step: tuple[int, ...], voxels: int) -> tuple[int, int, int]:
    """Sizes of a result whose input, ``least + step * (size - 1)`` an axis, has at most about `voxels` voxels."""
    sizes = [1, 1, 1]
    for axis in draw(st.permutations(range(3))):
        room = voxels / prod(n + s * (q - 1) for n, s, q in zip(least, step, sizes, strict=True)) * least[axis]
        fits = [q for q in SIZES if least[axis] + step[axis] * (q - 1) <= room] or [1]
        sizes[axis] = draw(st.sampled_from(fits))
    return tuple(sizes)


@st.composite
def conv_cases(draw) -> Case:
    """Convolutions: most of stride 1 and without padding, which every primitive takes."""
    kernel = draw(_triples([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    dilation = draw(st.one_of(st.just(ONES), _triples([1, 2, 3, 4])))
    stride = draw(st.one_of(st.just(ONES), st.just(ONES), st.just(ONES), _triples([1, 2, 3])))
    padding = draw(st.one_of(st.just(ZEROS), st.just(ZEROS), st.just(ZEROS), _triples([0, 1, 2, 4])))
    layer = Conv(1, kernel, stride, padding, dilation, draw(st.sampled_from(ACTIVATIONS)))
    while prod(layer.extent) > VOXELS:
        layer = replace(layer, dilation=tuple(max(1, d - 1) for d in layer.dilation))
    least = tuple(max(1, e - 2 * p) for e, p in zip(layer.extent, padding, strict=True))
    size = draw(_sizes(least, stride, VOXELS))
    source = tuple(n + s * (q - 1) for n, s, q in zip(least, stride, size, strict=True))
    batch = draw(st.integers(1, 3))
    room = min(MULTIPLY_ADDS / (prod(size) * prod(kernel)), PRODUCTS / prod(source)) / batch
    channels = draw(st.integers(1, int(min(33, max(1, room)))))
    out_channels = draw(st.integers(1, int(min(33, max(1, room / channels)))))
    if draw(st.booleans()):
        channels, out_channels = out_channels, channels
    return Case(replace(layer, out_channels=out_channels), (batch, channels, *source))


@st.composite
def pool_cases(draw, kind: str) -> Case:
    """Poolings, filters and fragments, with windows and strides that have nothing to do with each other."""
    window = draw(_triples([1, 2, 3, 4, 5, 9]))
    stride = ONES if kind == "max_filter" else draw(_triples([1, 2, 3, 4, 5]))
    dilation = draw(_triples([1, 2, 3, 4])) if kind == "max_filter" else ONES
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    least = tuple(e + s - 1 for e, s in zip(extent, stride, strict=True)) if kind == "mpf" else extent
    size = draw(_sizes(least, stride, max(VOXELS, prod(least))))
    source = tuple(n + s * (q - 1) for n, s, q in zip(least, stride, size, strict=True))
    if kind == "max_pool":  # voxels that fill no window
        source = tuple(n + draw(st.integers(0, s - 1)) for n, s in zip(source, stride, strict=True))
    layer = {
        "max_pool": lambda: MaxPool(window, stride),
        "max_filter": lambda: MaxFilter(window, dilation),
        "mpf": lambda: MaxPoolFragments(window, stride),
    }[kind]()
    images = max(1, 60_000 // prod(source))
    batch = draw(st.integers(1, min(3, images)))
    return Case(layer, (batch, draw(st.integers(1, min(33, max(1, images // batch)))), *source))


@st.composite
def conv_mpf_cases(draw) -> Case:
    """Convolutions and the fragments of their results, which leave none over."""
    case = draw(conv_cases())
    window, stride = draw(_triples([1, 2, 3])), draw(_triples([1, 2, 3]))
    conv = replace(case.layer, padding=ZEROS, stride=ONES)
    shape = list(case.shape)
    for axis in range(3):  # what the convolution makes is w - 1 + s i voxels
        have, w, s = shape[2 + axis] - conv.extent[axis] + 1, window[axis], stride[axis]
        shape[2 + axis] += w - 1 + s * max(1, (have - w + 1) // s) - have
    return Case(ConvMaxPoolFragments(conv, MaxPoolFragments(window, stride)), tuple(shape))


@st.composite
def relayout_cases(draw) -> Case:
    """Any tensor."""
    size = draw(_sizes(ONES, ONES, 6_000))
    return Case(Relayout(), (draw(st.integers(1, 3)), draw(st.integers(1, 40)), *size))


@st.composite
def recombine_cases(draw) -> Case:
    """One to three levels of fragments, few enough of them."""
    strides: list[tuple[int, int, int]] = []
    for stride in draw(st.lists(_triples([1, 2, 3, 4, 5]), min_size=1, max_size=3)):
        if prod(map(prod, strides)) * prod(stride) <= 600:
            strides.append(stride)
    fragments = prod(map(prod, strides))
    size = draw(_sizes(ONES, ONES, max(1, 20_000 // fragments)))
    batch = draw(st.integers(1, 3))
    channels = draw(st.integers(1, min(33, max(1, 60_000 // (fragments * batch * prod(size))))))
    return Case(Recombine(tuple(strides)), (batch * fragments, channels, *size))


@st.composite
def pointwise_cases(draw, kind: str) -> Case:
    """Softmax, and maxout over groups."""
    group = draw(st.integers(1, 9)) if kind == "maxout" else 1
    size = draw(_sizes(ONES, ONES, 6_000))
    batch = draw(st.integers(1, 3))
    groups = draw(st.integers(1, min(33, max(1, 100_000 // (group * batch * prod(size))))))
    return Case(Maxout(group) if kind == "maxout" else Softmax(), (batch, groups * group, *size))


def cases(kind: str) -> st.SearchStrategy[Case]:
    """Cases of layers of that kind."""
    known = {
        "conv": conv_cases,
        "recombine": recombine_cases,
        "conv_mpf": conv_mpf_cases,
        "relayout": relayout_cases,
        **{kind: lambda kind=kind: pool_cases(kind) for kind in ("max_pool", "max_filter", "mpf")},
        **{kind: lambda kind=kind: pointwise_cases(kind) for kind in ("softmax", "maxout")},
    }
    known |= cases_joining.CASES | cases_resampling.CASES
    return known[kind]()


#: For each kind, cases whose input and result take megabytes each, so that hidden copies show. The first that a
#: primitive supports is used.
LARGE = {
    "conv_mpf": [
        Case(
            ConvMaxPoolFragments(
                Conv(8, (3, 3, 3), activation=Activation("relu")), MaxPoolFragments((2, 2, 2), (2, 2, 2))
            ),
            (1, 8, 67, 67, 67),
        )
    ],
    "relayout": [Case(Relayout(), (1, 8, 70, 70, 70))],
    "conv": [Case(Conv(8, (3, 3, 3), activation=Activation("relu")), (1, 8, 66, 66, 66))],
    "max_pool": [Case(MaxPool((2, 2, 2), (2, 2, 2)), (2, 8, 80, 80, 80))],
    "max_filter": [Case(MaxFilter((2, 2, 2), (2, 2, 2)), (1, 8, 70, 70, 70))],
    "mpf": [Case(MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 8, 69, 69, 69))],
    "recombine": [Case(Recombine(((2, 2, 2), (1, 2, 2))), (32, 8, 32, 16, 16))],
    "softmax": [Case(Softmax(), (1, 8, 64, 64, 64))],
    "maxout": [Case(Maxout(2), (1, 16, 50, 64, 64))],
}
#: For each kind, small cases on which every config is tried.
SMALL = {
    "conv_mpf": [
        Case(
            ConvMaxPoolFragments(
                Conv(5, (3, 3, 3), activation=Activation("tanh", 1.7159, 2 / 3)), MaxPoolFragments((2, 2, 2), (2, 2, 2))
            ),
            (2, 3, 19, 13, 23),
        ),
        Case(
            ConvMaxPoolFragments(Conv(17, (1, 5, 4), dilation=(1, 2, 3)), MaxPoolFragments((1, 3, 2), (1, 2, 2))),
            (1, 1, 5, 20, 30),
        ),
    ],
    "relayout": [Case(Relayout(), (2, 13, 3, 5, 9)), Case(Relayout(), (1, 8, 2, 3, 16))],
    "conv": [
        Case(Conv(5, (3, 3, 3), activation=Activation("tanh", 1.7159, 2 / 3)), (2, 3, 19, 13, 23)),
        Case(Conv(17, (1, 5, 4), dilation=(1, 2, 3)), (1, 9, 5, 20, 31)),
        Case(Conv(1, (1, 1, 1), activation=Activation("elu", 0.5)), (1, 1, 1, 1, 1)),
        Case(Conv(24, (2, 2, 2), activation=Activation("relu")), (3, 16, 9, 9, 9)),
    ],
    "max_pool": [Case(MaxPool((3, 2, 3), (2, 1, 3)), (2, 3, 8, 9, 29))],
    "max_filter": [Case(MaxFilter((3, 3, 2), (1, 4, 3)), (2, 3, 9, 17, 29))],
    "mpf": [Case(MaxPoolFragments((3, 2, 3), (2, 1, 3)), (2, 3, 8, 9, 29))],
    "recombine": [Case(Recombine(((1, 2, 3), (2, 1, 4))), (96, 3, 2, 3, 9))],
    "softmax": [Case(Softmax(), (2, 3, 3, 5, 7))],
    "maxout": [Case(Maxout(3), (2, 9, 3, 5, 7))],
}
#: For each kind, layers that cannot take the shape: windows larger than the input, channels or fragments left over.
MISFITS = {
    "conv_mpf": [
        Case(ConvMaxPoolFragments(Conv(2, (3, 1, 1)), MaxPoolFragments((2, 2, 2), (2, 2, 2))), (1, 1, 7, 6, 5)),
    ],
    "relayout": [],
    "conv": [Case(Conv(2, (3, 1, 1)), (1, 1, 2, 9, 9)), Case(Conv(2, (1, 1, 3), dilation=(1, 1, 4)), (1, 1, 9, 9, 8))],
    "max_pool": [Case(MaxPool((1, 3, 1), (1, 1, 1)), (1, 1, 9, 2, 9))],
    "max_filter": [Case(MaxFilter((1, 3, 1), (1, 2, 1)), (1, 1, 9, 4, 9))],
    "mpf": [
        Case(MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 1, 5, 5, 2)),
        Case(MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 1, 5, 6, 5)),
    ],
    "recombine": [Case(Recombine(((2, 2, 2), (1, 2, 1))), (8, 1, 2, 2, 2))],
    "softmax": [],
    "maxout": [Case(Maxout(3), (1, 7, 2, 2, 2))],
}

from . import cases_joining, cases_resampling  # noqa: E402 -- they make their cases of what is above

for _more in (cases_joining, cases_resampling):
    LARGE |= _more.LARGE
    SMALL |= _more.SMALL
    MISFITS |= _more.MISFITS
