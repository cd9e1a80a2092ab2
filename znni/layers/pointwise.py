"""Layers that go voxel by voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from znni.errors import InvalidShape
from znni.layers.base import LINEAR, Activation, Layer, Shape


@dataclass(frozen=True)
class Softmax(Layer):
    """exp(x_c) / sum_c exp(x_c) over channels, per voxel."""

    kind: ClassVar[str] = "softmax"

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


@dataclass(frozen=True)
class Maxout(Layer):
    """Maximum over groups of `group` adjacent channels."""

    kind: ClassVar[str] = "maxout"
    group: int

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; channels must divide by `group`."""
        if shape[1] % self.group:
            raise InvalidShape(f"maxout over groups of {self.group} needs channels that divide by it, got {shape[1]}")
        return (shape[0], shape[1] // self.group, *shape[2:])


@dataclass(frozen=True)
class Relayout(Layer):
    """Values as they are, in another layout (`znni.layouts`); plans have it between layers that differ in theirs."""

    kind: ClassVar[str] = "relayout"

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


@dataclass(frozen=True)
class Activate(Layer):
    """An activation on its own, where it follows nothing that could do it in passing."""

    kind: ClassVar[str] = "activate"
    activation: Activation = LINEAR

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


@dataclass(frozen=True)
class Affine(Layer):
    """activation(scale x + bias), per channel: a batch norm in inference mode. Weights: ``scale`` (c,), ``bias`` (c,)."""

    kind: ClassVar[str] = "affine"
    activation: Activation = LINEAR

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        return {"scale": (in_channels,), "bias": (in_channels,)}


@dataclass(frozen=True)
class PRelu(Layer):
    """x where it is positive, else slope x. Weights: ``slope`` (c,)."""

    kind: ClassVar[str] = "prelu"

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        return {"slope": (in_channels,)}


@dataclass(frozen=True)
class Norm(Layer):
    """activation(scale (x - mean) / sqrt(variance + epsilon) + bias), the statistics being of the input itself.

    `over`: "batch", per channel over batch and voxels (batch norm with batch statistics; of one batch element it is instance
    norm); "instance", per batch element and channel; "group", per batch element and each of `groups` groups of adjacent
    channels; one group is layer norm. The variance is the population's. Weights: ``scale`` (c,), ``bias`` (c,).
    """

    kind: ClassVar[str] = "norm"
    over: str
    groups: int = 1
    epsilon: float = 1e-5
    activation: Activation = LINEAR

    def __post_init__(self):
        if self.over not in ("batch", "instance", "group"):
            raise InvalidShape(f"a norm is over batch, instance or group, got {self.over!r}")

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself; channels must divide by the groups."""
        if self.over == "group" and shape[1] % self.groups:
            raise InvalidShape(f"a norm over {self.groups} groups needs channels that divide by it, got {shape[1]}")
        return shape

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        return {"scale": (in_channels,), "bias": (in_channels,)}
