"""Field of view and valid patch sizes: pure arithmetic over the layers of a sliding-window network.

A sliding-window network gives, at every voxel, what it gives when cropped to that voxel's field of view. With
max-pooling run as fragments, an input of ``fov - 1 + step * i`` voxels an axis gives ``step * i`` output voxels, where
`step` is the product of the pooling strides (ZNNi, SC'16, section II).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from znni.errors import InvalidShape
from znni.layers import AXES, ONES, Conv, Layer, MaxFilter, MaxPool, Triple, by_x


def field_of_view(layers: Iterable[Layer]) -> Triple:
    """Input voxels (z, y, x) that one output voxel of a chain of sliding-window layers depends on."""
    fov, jump = [1, 1, 1], [1, 1, 1]
    for layer in layers:
        if isinstance(layer, Conv):
            reach = [(k - 1) * d for k, d in zip(layer.kernel, layer.dilation, strict=True)]
        elif isinstance(layer, MaxFilter):
            reach = [(w - 1) * d for w, d in zip(layer.window, layer.dilation, strict=True)]
        elif isinstance(layer, MaxPool):
            reach = [w - 1 for w in layer.window]
        else:
            continue
        fov = [f + r * j for f, r, j in zip(fov, reach, jump, strict=True)]
        jump = [j * s for j, s in zip(jump, getattr(layer, "stride", ONES), strict=True)]
    return tuple(fov)


def pooling_step(layers: Iterable[Layer]) -> Triple:
    """Product of the strides of all poolings, per axis: the lattice on which fragments repeat."""
    step = [1, 1, 1]
    for layer in layers:
        if isinstance(layer, MaxPool):
            step = [a * s for a, s in zip(step, layer.stride, strict=True)]
    return tuple(step)


def input_size(output: Sequence[int], fov: Triple) -> Triple:
    """The input patch that gives an output patch of `output` voxels."""
    return tuple(o + f - 1 for o, f in zip(output, fov, strict=True))


def output_size(patch: Sequence[int], fov: Triple) -> Triple:
    """The output patch that an input patch of `patch` voxels gives."""
    return tuple(n - f + 1 for n, f in zip(patch, fov, strict=True))


def nearest_valid(n: int, fov: int, step: int) -> tuple[int, ...]:
    """The valid input sizes next to `n` along one axis: itself, or those below (where there is one) and above."""
    steps = (n - fov + 1) / step
    if steps >= 1 and steps == int(steps):
        return (n,)
    below = int(steps) if steps >= 1 else 0
    return tuple(fov - 1 + step * i for i in (below, below + 1) if i >= 1)


def valid_sizes(fov: int, step: int, largest: int) -> range:
    """All valid input sizes up to and including `largest` along one axis."""
    return range(fov - 1 + step, largest + 1, step)


def check_patch(name: str, patch: Sequence[int], fov: Triple, step: Triple) -> None:
    """Raise `InvalidShape`, naming the nearest valid sizes, unless `patch` is a valid input patch."""
    if len(patch) != len(AXES):
        raise InvalidShape(f"an input patch of {name} has three sizes (z, y, x), got {by_x(patch)}")
    for axis, n, f, s in zip(AXES, patch, fov, step, strict=True):
        sizes = nearest_valid(n, f, s)
        if sizes != (n,):
            both = " and ".join(map(str, sizes))
            nearest = f"nearest are {both}" if len(sizes) > 1 else f"the smallest is {both}"
            same = len(set(zip(fov, step, strict=True))) == 1
            rule = f"each axis must be {f - 1} + {s} i" if same else f"{axis} must be {f - 1} + {s} i"
            raise InvalidShape(f"input patch {by_x(patch)} does not fit {name}: {rule} (i >= 1); {nearest}")
