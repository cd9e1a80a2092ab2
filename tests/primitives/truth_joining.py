"""What layers that join tensors, or go voxel by voxel, compute: in float64, from their definitions."""

from __future__ import annotations

import numpy as np

from znni.layers import Activate, Add, Affine, Concat, Multiply, Norm, PRelu


def _activated(layer, y):
    from .truth import activated  # which imports this module

    return activated(layer.activation, y)


def _of_channels(weight):
    return weight.astype(np.float64)[:, None, None, None]


def add(layer, weights, x):
    """The sum, scaled and shifted where the layer is affine."""
    return affine(layer, weights, sum(x[1:], x[0]))


def affine(layer, weights, x):
    """A scale and bias for each channel."""
    if weights:
        x = x * _of_channels(weights["scale"]) + _of_channels(weights["bias"])
    return _activated(layer, x)


def prelu(layer, weights, x):
    """A slope for each channel."""
    return np.where(x < 0, x * _of_channels(weights["slope"]), x)


def multiply(layer, weights, x):
    """The product, by broadcasting."""
    return _activated(layer, x[0] * x[1])


def norm(layer, weights, x):
    """NumPy's mean and variance."""
    sets = x[:, :, None]
    if layer.over == "group":
        sets = x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:])
    axes = (0, 2, 3, 4, 5) if layer.over == "batch" else (2, 3, 4, 5)
    sets = sets - sets.mean(axis=axes, keepdims=True)
    sets = sets / np.sqrt(np.square(sets).mean(axis=axes, keepdims=True) + layer.epsilon)
    return affine(layer, weights, sets.reshape(x.shape))


#: Of each class of layers, what it computes of (layer, weights, float64 x).
TRUTH = {
    Add: add,
    Affine: affine,
    Activate: affine,
    PRelu: prelu,
    Multiply: multiply,
    Norm: norm,
    Concat: lambda layer, weights, x: np.concatenate(x, axis=1),
}
