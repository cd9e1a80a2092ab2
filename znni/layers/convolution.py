"""Convolutions, plain, grouped and transposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from znni.errors import InvalidShape
from znni.layers.base import LINEAR, ONES, ZEROS, Activation, Layer, Shape, Triple, by_x, check_size


@dataclass(frozen=True)
class Conv(Layer):
    """Cross-correlation with bias and activation. Weights: ``weight`` (out, in, kz, ky, kx), ``bias`` (out,)."""

    kind: ClassVar[str] = "conv"
    out_channels: int
    kernel: Triple
    stride: Triple = ONES
    padding: Triple = ZEROS
    dilation: Triple = ONES
    activation: Activation = LINEAR

    @property
    def extent(self) -> Triple:
        """Input voxels that the dilated kernel spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where the kernel does not fit."""
        padded = tuple(n + 2 * p for n, p in zip(shape[2:], self.padding, strict=True))
        check_size((*shape[:2], *padded), self.extent, f"a convolution with kernel {by_x(self.kernel)}")
        size = ((n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True))
        return (shape[0], self.out_channels, *size)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, given the channels that come in."""
        return {"weight": (self.out_channels, in_channels, *self.kernel), "bias": (self.out_channels,)}


def _grouped(groups: int, in_channels: int, out_channels: int) -> None:
    if in_channels % groups or out_channels % groups:
        raise InvalidShape(f"{groups} groups need channels that divide by it, got {in_channels} in and {out_channels} out")


@dataclass(frozen=True)
class GroupedConv(Layer):
    """Cross-correlation within groups of channels. Weights: ``weight`` (out, in / groups, kz, ky, kx), ``bias`` (out,)."""

    kind: ClassVar[str] = "grouped_conv"
    out_channels: int
    kernel: Triple
    groups: int
    stride: Triple = ONES
    padding: Triple = ZEROS
    dilation: Triple = ONES
    activation: Activation = LINEAR

    @property
    def extent(self) -> Triple:
        """Input voxels that the dilated kernel spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where the kernel or the groups do not fit."""
        _grouped(self.groups, shape[1], self.out_channels)
        padded = tuple(n + 2 * p for n, p in zip(shape[2:], self.padding, strict=True))
        check_size((*shape[:2], *padded), self.extent, f"a convolution with kernel {by_x(self.kernel)}")
        size = ((n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True))
        return (shape[0], self.out_channels, *size)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, given the channels that come in."""
        return {"weight": (self.out_channels, in_channels // self.groups, *self.kernel), "bias": (self.out_channels,)}


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """Transposed convolution: each input voxel i adds its kernel to the output from ``i * stride - low`` on.

    `low` and `high` voxels are cut off both ends (`high` may be negative: PyTorch's output padding). Weights: ``weight``
    (in, out / groups, kz, ky, kx), as PyTorch and ONNX have it, ``bias`` (out,). With one group it is lowered to a convolution
    and a `DepthToSpace` (`znni.lowering`).
    """

    kind: ClassVar[str] = "conv_transpose"
    out_channels: int
    kernel: Triple
    stride: Triple
    low: Triple = ZEROS
    high: Triple = ZEROS
    groups: int = 1
    activation: Activation = LINEAR

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where nothing is left, or the groups do not fit."""
        _grouped(self.groups, shape[1], self.out_channels)
        size = tuple(
            (n - 1) * s + k - a - b
            for n, s, k, a, b in zip(shape[2:], self.stride, self.kernel, self.low, self.high, strict=True)
        )
        if min(size) < 1:
            raise InvalidShape(f"a transposed convolution of {by_x(shape)} would give {by_x(size)} voxels")
        return (shape[0], self.out_channels, *size)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, given the channels that come in."""
        return {"weight": (in_channels, self.out_channels // self.groups, *self.kernel), "bias": (self.out_channels,)}
