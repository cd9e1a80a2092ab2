"""Layers that move voxels: padding, slicing, resizing, channels to voxels, distances between voxels."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import ClassVar

from znni.errors import InvalidShape
from znni.layers.base import AXES, ONES, ZEROS, Layer, Shape, Triple, by_x

#: Ways in which a `Pad` fills: a value, the nearest voxel of the border, the mirror image without and with that voxel.
PAD_MODES = ("constant", "edge", "reflect", "symmetric")
RESIZE_MODES = ("nearest", "linear")
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


@dataclass(frozen=True)
class Pad(Layer):
    """`low` voxels more before, and `high` after the input, by `mode` (`PAD_MODES`; `value` where that is "constant")."""

    kind: ClassVar[str] = "pad"
    low: Triple
    high: Triple
    mode: str = "constant"
    value: float = 0.0

    def __post_init__(self):
        if self.mode not in PAD_MODES:
            raise InvalidShape(f"padding is one of {', '.join(PAD_MODES)}, got {self.mode!r}")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where a mirror image would need more voxels than there are."""
        most = {"reflect": 1, "symmetric": 0}.get(self.mode)
        for axis, n, a, b in zip(AXES, shape[2:], self.low, self.high, strict=True):
            if most is not None and max(a, b) > n - most:
                raise InvalidShape(f"{self.mode} padding by {a} and {b} needs more than the {n} voxels along {axis}")
        return (*shape[:2], *(n + a + b for n, a, b in zip(shape[2:], self.low, self.high, strict=True)))


@dataclass(frozen=True)
class Slice(Layer):
    """Every `step`-th voxel but the first `low` and the last `high`; of `channels` (first, stop) alone, where given."""

    kind: ClassVar[str] = "slice"
    low: Triple = ZEROS
    high: Triple = ZEROS
    step: Triple = ONES
    channels: tuple[int, int] | None = None

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where nothing is left."""
        left = tuple(n - a - b for n, a, b in zip(shape[2:], self.low, self.high, strict=True))
        first, stop = self.channels or (0, shape[1])
        if min(left) < 1 or not 0 <= first < stop <= shape[1]:
            raise InvalidShape(f"a slice by {by_x(self.low)} and {by_x(self.high)}, channels {first}:{stop}, of {by_x(shape)}")
        return (shape[0], stop - first, *(-(-n // s) for n, s in zip(left, self.step, strict=True)))


@dataclass(frozen=True)
class Resize(Layer):
    """Interpolation to ``floor(n * factor) + extra`` voxels an axis, as ONNX's Resize (opset 13 and later) defines it.

    `mode` is one of `RESIZE_MODES`, `coordinates` of `COORDINATES`, and `rounding` (of "nearest") of `ROUNDING`. The scale by
    which coordinates go is `factor` along axes where `extra` is 0, else that of the two sizes.
    """

    kind: ClassVar[str] = "resize"
    factor: tuple[float, float, float]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    extra: Triple = ZEROS

    def __post_init__(self):
        for name, known in (("mode", RESIZE_MODES), ("coordinates", COORDINATES), ("rounding", ROUNDING)):
            if getattr(self, name) not in known:
                raise InvalidShape(f"{name} of a resize is one of {', '.join(known)}, got {getattr(self, name)!r}")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where nothing is left."""
        size = tuple(floor(n * f) + e for n, f, e in zip(shape[2:], self.factor, self.extra, strict=True))
        if min(size) < 1:
            raise InvalidShape(f"resizing {by_x(shape)} by {self.factor} leaves {by_x(size)} voxels")
        return (*shape[:2], *size)


@dataclass(frozen=True)
class DepthToSpace(Layer):
    """Channels spread over voxels: channel ``phase * c + o`` of the input, ``phase = (rz * fy + ry) * fx + rx``, is voxel
    ``q * factor + r`` of channel o of the result; of which `low` and `high` voxels are cut off both ends."""

    kind: ClassVar[str] = "depth_to_space"
    factor: Triple
    low: Triple = ZEROS
    high: Triple = ZEROS

    @property
    def phases(self) -> int:
        """Input channels to one of the result."""
        return self.factor[0] * self.factor[1] * self.factor[2]

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where channels do not divide, or nothing is left."""
        size = tuple(n * f - a - b for n, f, a, b in zip(shape[2:], self.factor, self.low, self.high, strict=True))
        if shape[1] % self.phases or min(size) < 1:
            raise InvalidShape(f"{by_x(shape)} cannot be spread by {by_x(self.factor)}: it would be {by_x(size)} voxels")
        return (shape[0], shape[1] // self.phases, *size)


@dataclass(frozen=True)
class PairDistance(Layer):
    """The metric graph of voxel embeddings: for each of `offsets`, the affinity of voxel v and voxel v + offset,
    ``max(0, (2 margin - ||x_v - x_{v + offset}||_1) / (2 margin))^2``; 0 where v + offset lies outside (K. Lee et al.)."""

    kind: ClassVar[str] = "pair_distance"
    offsets: tuple[tuple[int, int, int], ...]
    margin: float = 1.5

    def output_shape(self, shape: Shape) -> Shape:
        """One channel for each offset."""
        return (shape[0], len(self.offsets), *shape[2:])
