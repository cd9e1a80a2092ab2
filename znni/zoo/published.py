"""What the zoo knows of a published network: its layers, where they were read, and how to narrow it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from znni.errors import InvalidShape
from znni.geometry import field_of_view
from znni.layers import Activation, Conv, Layer, MaxPool, Triple, triple
from znni.nodes import Node, chain


def conv(kernel: int | Triple, out_channels: int, activation: str | None = "relu") -> Conv:
    """A valid convolution of stride 1 with bias; one integer for `kernel` means a cube."""
    return Conv(out_channels, triple(kernel, "kernel"), activation=Activation.of(activation))


def pool(window: int | Triple) -> MaxPool:
    """A max-pooling whose stride is its window."""
    return MaxPool(triple(window, "window"), triple(window, "window"))


def parameters(layers: Iterable[Layer], in_channels: int) -> int:
    """Weights and biases of a chain of layers."""
    count, channels = 0, in_channels
    for layer in layers:
        if isinstance(layer, Conv):
            kz, ky, kx = layer.kernel
            count += layer.out_channels * (channels * kz * ky * kx + 1)
            channels = layer.out_channels
    return count


@dataclass(frozen=True)
class Published:
    """A network of the zoo.

    Attributes
    ----------
    name : str
    layers : tuple of Layer
        In order; poolings are meant densely.
    in_channels : int
    source : str
        The paper, and the released file that the layers were read from.
    status : str
        ``EXACT``: read from a released network file or source, layer by layer.
    """

    name: str
    layers: tuple[Layer, ...]
    source: str
    status: str = "EXACT"
    in_channels: int = 1

    #: Poolings are meant densely.
    sliding = True
    #: No patch is usual: the larger the better.
    patch = None
    fixed = False

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layers as nodes of a chain."""
        return chain(self.layers)

    @cached_property
    def field_of_view(self) -> Triple:
        """Input voxels (z, y, x) that one output voxel depends on."""
        return field_of_view(self.layers)

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return next(layer.out_channels for layer in reversed(self.layers) if isinstance(layer, Conv))

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return parameters(self.layers, self.in_channels)

    @property
    def width(self) -> int:
        """Channels of the first hidden layer, the measure by which `narrowed` scales all hidden layers."""
        return next(layer.out_channels for layer in self.layers if isinstance(layer, Conv))

    def narrowed(self, width: int | None) -> Published:
        """This network with `width` channels in its first hidden layer, and the others in proportion (at least 1).

        Input and output channels stay; None changes nothing.
        """
        if width is None:
            return self
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise InvalidShape(f"width must be a positive integer, got {width!r}")
        last = max(i for i, layer in enumerate(self.layers) if isinstance(layer, Conv))
        layers = list(self.layers)
        for i, layer in enumerate(layers):
            if isinstance(layer, Conv) and i != last:
                scaled = (2 * layer.out_channels * width + self.width) // (2 * self.width)
                layers[i] = replace(layer, out_channels=max(1, scaled))
        return replace(self, layers=tuple(layers))
