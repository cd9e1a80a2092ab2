"""Truth for one layer on a sample of output voxels: float64, by its definition, independent of every primitive."""

from __future__ import annotations

from itertools import product

import numpy as np

from znni.layers import (
    Activate,
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    ConvMaxPoolFragments,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    MaxPoolFragments,
    Multiply,
    PRelu,
    Recombine,
    Relayout,
    Shape,
    Softmax,
    Triple,
)
from znni.reference_layers import apply

#: What a layer is given: an array or, of layers that join, several.
Arrays = np.ndarray | tuple[np.ndarray, ...]
#: Kinds that are computed here, at one point after another.
_KNOWN = (Conv, MaxPool, MaxFilter, MaxPoolFragments, ConvMaxPoolFragments, Recombine, Relayout, Softmax, Maxout)
_VOXEL_BY_VOXEL = (Activate, Add, Affine, Concat, Multiply, PRelu)


def sample_points(shape: Shape, count: int, seed: int = 0) -> np.ndarray:
    """`count` voxels (batch, z, y, x) of an array of `shape`, with the first and the last among them."""
    rng = np.random.default_rng(seed)
    sizes = (shape[0], *shape[2:])
    points = np.stack([rng.integers(0, n, count) for n in sizes], axis=1)
    points[0] = 0
    points[-1] = [n - 1 for n in sizes]
    return points


def written_points(layer: Layer, shape: Shape, count: int) -> np.ndarray:
    """`count` voxels (batch, z, y, x) of what `layer` makes of an input of `shape`, all of them of its first part."""
    if not isinstance(layer, Recombine):
        return sample_points(layer.output_shape(shape), count)
    points = sample_points(shape, count)  # of fragments: those of the first part, wherever they end up
    for stride in reversed(layer.strides):
        for axis in (2, 1, 0):
            points[:, 0], offset = np.divmod(points[:, 0], stride[axis])
            points[:, 1 + axis] = points[:, 1 + axis] * stride[axis] + offset
    return points


def activated(y: np.ndarray, activation: Activation) -> np.ndarray:
    """The activation applied in float64."""
    match activation.name:
        case "linear":
            return y
        case "relu":
            return np.maximum(y, 0)
        case "leaky_relu":
            return np.where(y > 0, y, activation.a * y)
        case "elu":
            return np.where(y > 0, y, activation.a * np.expm1(np.minimum(y, 0)))
        case "tanh":
            return activation.a * np.tanh(activation.b * y)
        case "clip":
            return np.minimum(np.maximum(y, activation.a), activation.b)
    return 1 / (1 + np.exp(-y))


def truth_at(layer: Layer, weights: dict[str, np.ndarray], x: Arrays, points: np.ndarray) -> np.ndarray:
    """The layer's result at `points` (batch, z, y, x of its output): float64 (points, channels).

    `x` is a tuple of arrays for a layer that joins them. Kinds that are not windows over the input are computed by the
    reference: those that go voxel by voxel at the points alone, others (norms, resampling) as a whole.
    """
    if not isinstance(layer, _KNOWN):
        return _by_reference(layer, weights, x if isinstance(x, tuple) else (x,), points)
    matrix = None
    if weights:
        matrix = weights["weight"].reshape(len(weights["weight"]), -1).astype(np.float64)
    bias = weights.get("bias")
    return np.stack([_at(layer, matrix, bias, x, int(b), (int(z), int(y), int(v))) for b, z, y, v in points])


def _by_reference(
    layer: Layer, weights: dict[str, np.ndarray], inputs: tuple[np.ndarray, ...], points: np.ndarray
) -> np.ndarray:
    if isinstance(layer, _VOXEL_BY_VOXEL):  # each point a batch element of one voxel; a factor of channels has only one
        seen = (own[points[:, 0], :, *(points[:, 1:] % own.shape[2:]).T] for own in inputs)
        one_by_one = tuple(own.astype(np.float64)[:, :, None, None, None] for own in seen)
        return apply(layer, weights, one_by_one)[:, :, 0, 0, 0]
    whole = apply(layer, weights, tuple(own.astype(np.float64) for own in inputs))
    return whole[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]


def _window(x: np.ndarray, batch: int, start: Triple, size: Triple, dilation: Triple = (1, 1, 1)) -> np.ndarray:
    """Voxels (channels, z, y, x) of one batch element from `start` on, `dilation` apart; zeros outside of it."""
    taken = np.zeros((x.shape[1], *size))
    here, there = [], []
    for n, first, count, step in zip(x.shape[2:], start, size, dilation, strict=True):
        inside = [i for i in range(count) if 0 <= first + i * step < n]
        if not inside:
            return taken
        here.append(slice(inside[0], inside[-1] + 1))
        there.append(slice(first + inside[0] * step, first + inside[-1] * step + 1, step))
    taken[:, here[0], here[1], here[2]] = x[batch, :, there[0], there[1], there[2]]
    return taken


def _at(
    layer: Layer, matrix: np.ndarray | None, bias: np.ndarray | None, x: np.ndarray, batch: int, at: Triple
) -> np.ndarray:
    if isinstance(layer, Conv):
        start = tuple(p * s - pad for p, s, pad in zip(at, layer.stride, layer.padding, strict=True))
        seen = _window(x, batch, start, layer.kernel, layer.dilation)
        return activated(matrix @ seen.ravel() + bias, layer.activation)
    if isinstance(layer, MaxPool):
        start = tuple(p * s for p, s in zip(at, layer.stride, strict=True))
        return _window(x, batch, start, layer.window).max((1, 2, 3))
    if isinstance(layer, MaxPoolFragments):
        sz, sy, sx = layer.stride
        batch, fragment = divmod(batch, sz * sy * sx)
        offset = (fragment // (sy * sx), fragment // sx % sy, fragment % sx)
        start = tuple(p * s + o for p, s, o in zip(at, layer.stride, offset, strict=True))
        return _window(x, batch, start, layer.window).max((1, 2, 3))
    if isinstance(layer, ConvMaxPoolFragments):  # of the first part
        return _fragment_at(layer, matrix, bias, x, batch, at)
    if isinstance(layer, Relayout):
        return x[batch, :, at[0], at[1], at[2]].astype(np.float64)
    if isinstance(layer, MaxFilter):
        return _window(x, batch, at, layer.window, layer.dilation).max((1, 2, 3))
    if isinstance(layer, Recombine):
        for stride in layer.strides:
            z, y, v = (p % s for p, s in zip(at, stride, strict=True))
            batch = ((batch * stride[0] + z) * stride[1] + y) * stride[2] + v
            at = tuple(p // s for p, s in zip(at, stride, strict=True))
        return x[batch, :, at[0], at[1], at[2]].astype(np.float64)
    seen = x[batch, :, at[0], at[1], at[2]].astype(np.float64)
    if isinstance(layer, Maxout):
        return seen.reshape(-1, layer.group).max(1)
    powers = np.exp(seen - seen.max())
    return powers / powers.sum()


def _fragment_at(
    layer: ConvMaxPoolFragments, matrix: np.ndarray, bias: np.ndarray, x: np.ndarray, batch: int, at: Triple
) -> np.ndarray:
    sz, sy, sx = layer.pool.stride
    batch, fragment = divmod(batch, sz * sy * sx // layer.parts)
    offset = (fragment // (sy * sx), fragment // sx % sy, fragment % sx)
    first = tuple(p * s + o for p, s, o in zip(at, layer.pool.stride, offset, strict=True))
    inside = product(*(range(p, p + w) for p, w in zip(first, layer.pool.window, strict=True)))
    return np.max([_at(layer.conv, matrix, bias, x, batch, voxel) for voxel in inside], axis=0)


def relative_l2(found: np.ndarray, truth: np.ndarray) -> float:
    """||found - truth|| / ||truth||."""
    norm = float(np.linalg.norm(truth))
    error = float(np.linalg.norm(np.asarray(found, dtype=np.float64) - truth))
    return error / norm if norm else error
