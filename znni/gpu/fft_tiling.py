"""Images cut into overlapping tiles for transforms (overlap-save); a tile may be the whole padded image.

A tile of n points gives n - extent + 1 outputs an axis, those that its periodic continuation does not reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from znni.fft_sizes import next_good_size
from znni.layers import Conv, Shape, Triple


@dataclass(frozen=True)
class Axis:
    """One axis of a `Tiling`.

    Attributes
    ----------
    size : int
        Voxels of the image.
    padding, kernel, dilation, outputs : int
        As the layer has them.
    points : int
        Of the transform.
    """

    size: int
    padding: int
    kernel: int
    dilation: int
    outputs: int
    points: int

    @property
    def step(self) -> int:
        """Outputs of a tile, which is how far apart tiles lie."""
        return self.points - (self.kernel - 1) * self.dilation

    @property
    def tiles(self) -> int:
        """Tiles that give all outputs."""
        return -(-self.outputs // self.step)

    @property
    def first(self) -> int:
        """The first of a tile's points at which the image can lie."""
        return min(self.padding, self.points) if self.tiles == 1 else 0

    @property
    def loaded(self) -> int:
        """Points from `first` on at which it can lie."""
        return min(self.size, self.points - self.first) if self.tiles == 1 else self.points

    @property
    def kept(self) -> int:
        """Outputs that are taken of a tile, at most."""
        return min(self.step, self.outputs)


@dataclass(frozen=True)
class Tiling:
    """Tiles of all images of a batch, numbered along x, y, z, then the batch."""

    axes: tuple[Axis, Axis, Axis]
    batch: int

    @classmethod
    def of(cls, layer: Conv, shape: Shape, points: Triple) -> Tiling:
        """Tiles of so many points each, for `layer` on an input of `shape`."""
        sizes = zip(
            shape[2:], layer.padding, layer.kernel, layer.dilation, layer.output_shape(shape)[2:], points, strict=True
        )
        return cls(tuple(Axis(*of_axis) for of_axis in sizes), shape[0])

    @classmethod
    def whole(cls, layer: Conv, shape: Shape) -> Tiling:
        """A tile an image; but where the kernel is 1, each plane (each row) is a tile, and nothing is transformed."""
        wanted = [
            1 if k == 1 else next_good_size(n + 2 * p)
            for n, p, k in zip(shape[2:4], layer.padding, layer.kernel, strict=False)
        ]
        # of even sizes the real transforms are done by complex ones of half the size
        return cls.of(layer, shape, (*wanted, 2 * next_good_size(-(-(shape[4] + 2 * layer.padding[2]) // 2))))

    @property
    def points(self) -> Triple:
        """Of the transforms."""
        return tuple(axis.points for axis in self.axes)

    @property
    def tiles(self) -> int:
        """Of all images together."""
        return self.batch * prod(axis.tiles for axis in self.axes)

    @property
    def half(self) -> int:
        """Complex numbers along x."""
        return self.points[2] // 2 + 1

    @property
    def frequencies(self) -> int:
        """Complex numbers of a tile's spectrum."""
        return self.points[0] * self.points[1] * self.half
