"""A layer with an input and weights that follow from a seed, and how far a result is from what it should be."""

from __future__ import annotations

import numpy as np

from tuner.sampled_truth import Arrays, relative_l2, sample_points, truth_at
from znni.layers import Layer, Shape
from znni.layouts import PLAIN, packed

#: Output voxels, all channels each, on which a layer's result is compared with float64.
CHECKED_VOXELS = 64
#: Values that are drawn for an input at most: a prime, so that no row or plane is like another.
_DRAWN = 16_777_213


def seeded_layer(layer: Layer, shape: Shape, seed: int) -> tuple[Arrays, dict[str, np.ndarray]]:
    """An input of normal values (of a layer that joins, a tuple of them), and weights that keep their deviation; the same for
    the same seed."""
    rng = np.random.default_rng(seed)
    inputs = tuple(_noise(rng, own) for own in layer.input_shapes(shape))
    shapes = layer.weight_shapes(shape[1]) if hasattr(layer, "weight_shapes") else {}
    weights = {name: rng.standard_normal(own, dtype=np.float32) for name, own in shapes.items()}
    if "weight" in weights:
        weights["weight"] *= np.float32(weights["weight"][0].size ** -0.5)
    return inputs if layer.joins else inputs[0], weights


def laid_out(x: Arrays, layout: str) -> Arrays:
    """An input, or each of several, in `layout`; plain, itself."""
    if layout == PLAIN:
        return x
    return tuple(packed(own, layout) for own in x) if isinstance(x, tuple) else packed(x, layout)


def _noise(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Normal values; of large arrays, which take longer to draw than to compute with, the same ones over and over."""
    x = np.empty(shape, np.float32)
    flat = x.reshape(-1)
    drawn = flat[:_DRAWN]
    rng.standard_normal(out=drawn, dtype=np.float32)
    for start in range(drawn.size, flat.size, max(1, drawn.size)):
        part = flat[start : start + drawn.size]
        part[:] = drawn[: part.size]
    return x


def sampled_error(layer: Layer, weights: dict[str, np.ndarray], x: Arrays, out: np.ndarray) -> float:
    """Relative L2 error of `out` (batch, channel, z, y, x) against float64, on a sample of its voxels."""
    points = sample_points(out.shape, CHECKED_VOXELS)
    found = out[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]
    return relative_l2(found, truth_at(layer, weights, x, points))
