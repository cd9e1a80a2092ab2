"""Poolings: maxima and means over windows, fragments and their recombination, a convolution fused with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from znni.errors import InvalidShape
from znni.layers.base import AXES, ONES, ZEROS, Layer, Shape, Triple, by_x, check_size
from znni.layers.convolution import Conv


@dataclass(frozen=True)
class MaxPool(Layer):
    """Maximum over windows at a stride. In a sliding-window network it stands for pooling at every offset."""

    kind: ClassVar[str] = "max_pool"
    window: Triple
    stride: Triple

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; voxels that fill no window are dropped."""
        check_size(shape, self.window, f"a max-pooling with window {by_x(self.window)}")
        size = ((n - w) // s + 1 for n, w, s in zip(shape[2:], self.window, self.stride, strict=True))
        return (*shape[:2], *size)


@dataclass(frozen=True)
class MaxFilter(Layer):
    """Maximum over a dilated window at stride 1: the dense form of a max-pooling."""

    kind: ClassVar[str] = "max_filter"
    window: Triple
    dilation: Triple = ONES

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`."""
        extent = tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True))
        check_size(shape, extent, f"a max-filter with window {by_x(self.window)}")
        return (*shape[:2], *(n - e + 1 for n, e in zip(shape[2:], extent, strict=True)))


@dataclass(frozen=True)
class MaxPoolFragments(Layer):
    """Max-pooling at all prod(stride) offsets (MPF; ZNNi, SC'16).

    Fragment ``f = (fz * sy + fy) * sx + fx`` of batch element ``b`` is batch element ``b * prod(stride) + f`` of the result:
    the pooling of the input from voxel (fz, fy, fx) on. All fragments must be equally large.
    """

    kind: ClassVar[str] = "mpf"
    window: Triple
    stride: Triple

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where fragments would differ in size."""
        check_size(
            shape, tuple(w + s - 1 for w, s in zip(self.window, self.stride, strict=True)), "max-pooling fragments"
        )
        size = []
        for axis, n, w, s in zip(AXES, shape[2:], self.window, self.stride, strict=True):
            if (n - w + 1) % s:
                raise InvalidShape(
                    f"max-pooling fragments of window {w}, stride {s} need {axis} = {w - 1} + {s} i voxels, got {n}"
                )
            size.append((n - w + 1) // s)
        return (shape[0] * self.stride[0] * self.stride[1] * self.stride[2], shape[1], *size)


@dataclass(frozen=True)
class AvgPool(Layer):
    """Mean over windows at a stride, with zeros around the input; where `count_padding` is false, these do not count."""

    kind: ClassVar[str] = "avg_pool"
    window: Triple
    stride: Triple
    padding: Triple = ZEROS
    count_padding: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; voxels that fill no window are dropped."""
        if any(2 * p > w for p, w in zip(self.padding, self.window, strict=True)):
            raise InvalidShape(f"padding {by_x(self.padding)} is more than half of the window {by_x(self.window)}")
        padded = tuple(n + 2 * p for n, p in zip(shape[2:], self.padding, strict=True))
        check_size((*shape[:2], *padded), self.window, f"an average-pooling with window {by_x(self.window)}")
        size = ((n - w) // s + 1 for n, w, s in zip(padded, self.window, self.stride, strict=True))
        return (*shape[:2], *size)


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Mean or maximum (`reduce`: "mean", "max") over all voxels of each channel: (batch, channels, 1, 1, 1)."""

    kind: ClassVar[str] = "global_pool"
    reduce: str = "mean"

    def __post_init__(self):
        if self.reduce not in ("mean", "max"):
            raise InvalidShape(f"a global pooling reduces by mean or max, got {self.reduce!r}")

    def output_shape(self, shape: Shape) -> Shape:
        """One voxel."""
        return (*shape[:2], 1, 1, 1)


@dataclass(frozen=True)
class ConvMaxPoolFragments(Layer):
    """A convolution and the max-pooling fragments of its result, which is never held as a whole.

    Weights are the convolution's. With `parts` > 1, which needs a batch of 1, one call makes 1 / parts of the fragments,
    next to each other, and computes of the convolution what these need (`znni.primitives.base.Operator.part`).
    """

    kind: ClassVar[str] = "conv_mpf"
    #: Fields that are layers of their own, with their kinds.
    inner_kinds: ClassVar[dict[str, str]] = {"conv": Conv.kind, "pool": MaxPoolFragments.kind}
    conv: Conv
    pool: MaxPoolFragments
    parts: int = 1

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape` by one part; `InvalidShape` where fragments would differ in size."""
        batch, *rest = self.pool.output_shape(self.conv.output_shape(shape))
        if batch // shape[0] % self.parts or (self.parts > 1 and shape[0] > 1):
            raise InvalidShape(
                f"{self.parts} parts need a batch of 1 and a multiple of as many fragments, got a batch of {shape[0]} with "
                f"{batch // shape[0]} fragments each"
            )
        return (batch // self.parts, *rest)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the convolution's weights."""
        return self.conv.weight_shapes(in_channels)


@dataclass(frozen=True)
class Recombine(Layer):
    """Interleaves the fragments of successive MPF layers (`strides`, first layer first) into one dense result."""

    kind: ClassVar[str] = "recombine"
    strides: tuple[Triple, ...]
    #: Calls that the work is cut into: one takes 1 / parts of all fragments, next to each other in the batch, and writes
    #: the voxels of the dense result that they are, and no others (`znni.primitives.base.Operator.part`).
    parts: int = 1

    @property
    def step(self) -> Triple:
        """Product of the strides per axis."""
        z = y = x = 1
        for s in self.strides:
            z, y, x = z * s[0], y * s[1], x * s[2]
        return (z, y, x)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; all parts together must hold all fragments."""
        step = self.step
        fragments = step[0] * step[1] * step[2]
        if shape[0] * self.parts % fragments:
            raise InvalidShape(
                f"recombining needs a batch that is a multiple of {fragments} fragments, got {shape[0] * self.parts}"
            )
        return (shape[0] * self.parts // fragments, shape[1], *(n * s for n, s in zip(shape[2:], step, strict=True)))


