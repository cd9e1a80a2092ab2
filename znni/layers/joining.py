"""Layers that read several tensors.

Each is known by one shape, from which those of all that it reads follow (`Layer.input_shapes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from znni.errors import InvalidShape
from znni.layers.base import LINEAR, Activation, Layer, Shape, by_x


@dataclass(frozen=True)
class Add(Layer):
    """activation(scale (x1 + x2 + ..) + bias) of `count` tensors of one shape.

    Where `affine`, with weights ``scale`` (c,), ``bias`` (c,): a batch norm after the sum; else scale 1, bias 0.
    """

    kind: ClassVar[str] = "add"
    joins: ClassVar[bool] = True
    count: int = 2
    affine: bool = False
    activation: Activation = LINEAR

    def input_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """`count` times that shape."""
        return (shape,) * self.count

    def joined_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The one shape of all; `InvalidShape` where they differ."""
        if len(shapes) != self.count or len(set(shapes)) != 1:
            raise InvalidShape(f"a sum of {self.count} needs as many of one shape, got {', '.join(map(by_x, shapes))}")
        return shapes[0]

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights; none where it is not affine."""
        return {"scale": (in_channels,), "bias": (in_channels,)} if self.affine else {}


@dataclass(frozen=True)
class Multiply(Layer):
    """activation(x1 x2); where `per_channel`, x2 has one voxel a channel: (batch, channels, 1, 1, 1) (squeeze-excitation)."""

    kind: ClassVar[str] = "multiply"
    joins: ClassVar[bool] = True
    per_channel: bool = False
    activation: Activation = LINEAR

    def input_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """That shape, and that of the second factor."""
        return (shape, (*shape[:2], 1, 1, 1) if self.per_channel else shape)

    def joined_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The first one's; `InvalidShape` where the second does not go with it."""
        if len(shapes) != 2 or tuple(shapes) != self.input_shapes(shapes[0]):
            raise InvalidShape(f"these cannot be multiplied: {', '.join(map(by_x, shapes))}")
        return shapes[0]

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


@dataclass(frozen=True)
class Concat(Layer):
    """Tensors of `channels` channels each, one after another along the channels; known by the shape of the result."""

    kind: ClassVar[str] = "concat"
    joins: ClassVar[bool] = True
    channels: tuple[int, ...]

    def input_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """One for each of `channels`."""
        return tuple((shape[0], c, *shape[2:]) for c in self.channels)

    def joined_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """That of the result; `InvalidShape` where they differ in more than channels."""
        shape = (shapes[0][0], sum(self.channels), *shapes[0][2:])
        if tuple(shapes) != self.input_shapes(shape):
            raise InvalidShape(
                f"these cannot be joined along {'+'.join(map(str, self.channels))} channels: {', '.join(map(by_x, shapes))}"
            )
        return shape

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself, whose channels must be those of all inputs together."""
        if shape[1] != sum(self.channels):
            raise InvalidShape(f"{'+'.join(map(str, self.channels))} channels are not {shape[1]}")
        return shape
