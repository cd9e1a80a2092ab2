"""Layer descriptions: what is computed, never how.

Shapes are ``(batch, channels, z, y, x)``; triples are ``(z, y, x)``. A layer is immutable, hashable, and knows the shape it
makes of a shape it is given. How it is computed is a primitive's affair (`znni.primitives`).
"""

from znni.layers.base import (
    AXES,
    KINDS,
    LINEAR,
    ONES,
    ZEROS,
    Activation,
    Layer,
    Shape,
    Triple,
    by_x,
    describe,
    layer_of,
    triple,
)
from znni.layers.convolution import Conv, ConvTranspose, GroupedConv
from znni.layers.joining import Add, Concat, Multiply
from znni.layers.pointwise import Activate, Affine, Maxout, Norm, PRelu, Relayout, Softmax
from znni.layers.pooling import (
    AvgPool,
    ConvMaxPoolFragments,
    GlobalPool,
    MaxFilter,
    MaxPool,
    MaxPoolFragments,
    Recombine,
)
from znni.layers.projection import projected
from znni.layers.resampling import DepthToSpace, Pad, PairDistance, Resize, Slice

__all__ = [
    "AXES",
    "KINDS",
    "LINEAR",
    "ONES",
    "ZEROS",
    "Activate",
    "Activation",
    "Add",
    "Affine",
    "AvgPool",
    "Concat",
    "Conv",
    "ConvMaxPoolFragments",
    "ConvTranspose",
    "DepthToSpace",
    "GlobalPool",
    "GroupedConv",
    "Layer",
    "MaxFilter",
    "MaxPool",
    "MaxPoolFragments",
    "Maxout",
    "Multiply",
    "Norm",
    "PRelu",
    "Pad",
    "PairDistance",
    "Recombine",
    "Relayout",
    "Resize",
    "Shape",
    "Slice",
    "Softmax",
    "Triple",
    "by_x",
    "describe",
    "layer_of",
    "projected",
    "triple",
]
