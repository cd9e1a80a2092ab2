"""Cases of layers that join tensors, or go voxel by voxel."""

from __future__ import annotations

from hypothesis import strategies as st

from znni.layers import Activate, Activation, Add, Affine, Concat, Multiply, Norm, PRelu

from .cases import ACTIVATIONS, ONES, Case, _sizes

_ACTIVATIONS = st.sampled_from(ACTIVATIONS)


@st.composite
def _cases(draw, layers: st.SearchStrategy) -> Case:
    """Any tensor, and a layer that takes any."""
    size = draw(_sizes(ONES, ONES, 6_000))
    return Case(draw(layers), (draw(st.integers(1, 3)), draw(st.integers(1, 40)), *size))


@st.composite
def norm_cases(draw) -> Case:
    """All three kinds of statistics; groups that divide."""
    groups, size = draw(st.integers(1, 6)), draw(_sizes(ONES, ONES, 6_000))
    over = draw(st.sampled_from(["batch", "instance", "group"]))
    channels = groups * draw(st.integers(1, 40 // groups))
    layer = Norm(over, groups if over == "group" else 1, draw(st.sampled_from([1e-5, 1e-3])), draw(_ACTIVATIONS))
    return Case(layer, (draw(st.integers(1, 3)), channels, *size))


@st.composite
def concat_cases(draw) -> Case:
    """Parts of any channels: of whole blocks, and of less than a lane's neighbours."""
    channels = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17, 24, 32, 33]), min_size=1, max_size=5))
    size = draw(_sizes(ONES, ONES, 3_000))
    return Case(Concat(tuple(channels)), (draw(st.integers(1, 3)), sum(channels), *size))


#: Strategies of cases, by kind.
CASES = {
    "add": lambda: _cases(st.builds(Add, st.sampled_from([1, 2, 3, 4, 16, 17, 40]), st.booleans(), _ACTIVATIONS)),
    "affine": lambda: _cases(st.builds(Affine, _ACTIVATIONS)),
    "activate": lambda: _cases(st.builds(Activate, _ACTIVATIONS)),
    "prelu": lambda: _cases(st.just(PRelu())),
    "multiply": lambda: _cases(st.builds(Multiply, st.booleans(), _ACTIVATIONS)),
    "norm": norm_cases,
    "concat": concat_cases,
}
#: What `cases` has in tables of these names, for these kinds. A result of LARGE ones is streamed past the caches.
LARGE = {
    "add": [Case(Add(3, True, Activation("relu")), (1, 19, 60, 64, 71))],
    "affine": [Case(Affine(Activation("relu")), (1, 19, 60, 64, 71))],
    "activate": [Case(Activate(Activation("elu", 0.5)), (1, 19, 60, 64, 71))],
    "prelu": [Case(PRelu(), (1, 19, 60, 64, 71))],
    "multiply": [Case(Multiply(), (1, 19, 60, 64, 71))],
    "norm": [Case(Norm("instance"), (1, 19, 60, 64, 71))],
    "concat": [Case(Concat((16, 3)), (1, 19, 60, 64, 71))],
}
SMALL = {
    "add": [
        Case(Add(), (2, 19, 3, 5, 9)),
        Case(Add(3, True, Activation("elu", 0.5)), (2, 19, 3, 5, 9)),
        Case(Add(40, True, Activation("sigmoid")), (1, 3, 1, 2, 9)),
        Case(Add(activation=Activation("relu")), (1, 16, 7, 30, 90)),
    ],
    "affine": [Case(Affine(), (2, 19, 3, 5, 9)), Case(Affine(Activation("clip", 0.1, 0.5)), (2, 3, 3, 5, 9))],
    "activate": [Case(Activate(activation), (2, 19, 3, 5, 9)) for activation in ACTIVATIONS],
    "prelu": [Case(PRelu(), (2, 19, 3, 5, 9))],
    "multiply": [
        Case(Multiply(), (2, 19, 3, 5, 9)),
        Case(Multiply(True, Activation("sigmoid")), (2, 19, 3, 5, 9)),
        Case(Multiply(True), (1, 3, 1, 1, 1)),
    ],
    "norm": [
        Case(Norm("batch", activation=Activation("relu")), (3, 19, 3, 5, 9)),
        Case(Norm("instance"), (2, 19, 11, 30, 61)),
        Case(Norm("group", 3, activation=Activation("sigmoid")), (2, 18, 7, 30, 61)),
        Case(Norm("group"), (2, 5, 1, 2, 3)),
    ],
    "concat": [
        Case(Concat((16, 32, 5)), (2, 53, 3, 5, 9)),
        Case(Concat((3, 1, 20, 17, 40, 2)), (2, 83, 3, 5, 9)),
        Case(Concat((1, 1, 1)), (1, 3, 2, 3, 4)),
        Case(Concat((7,)), (1, 7, 2, 3, 4)),
        Case(Concat((5, 35)), (1, 40, 3, 30, 50)),
    ],
}
MISFITS = {
    "add": [Case(Add(), (1, 2, 3, 0, 4))],
    "affine": [],
    "activate": [],
    "prelu": [],
    "multiply": [],
    "norm": [Case(Norm("group", 3), (1, 7, 3, 4, 5))],
    "concat": [Case(Concat((3, 4)), (1, 8, 3, 4, 5))],
}
