"""Building the graphs of the zoo: layers by name, with the trained parameters counted as their papers count them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from znni.errors import InvalidShape
from znni.graph_geometry import field_of_view
from znni.layers import (
    LINEAR,
    ONES,
    ZEROS,
    Activation,
    Add,
    Affine,
    Conv,
    ConvTranspose,
    Layer,
    Norm,
    Triple,
    triple,
)
from znni.nodes import INPUT, Node, channels_through

#: How batch norm is run: folded into what feeds it (statistics of the training), or with those of the patch.
FOLDED, DYNAMIC = "folded", "dynamic"


class GraphBuilder:
    """Collects nodes; `parameters` is what a training would train, running statistics not counted.

    Parameters
    ----------
    in_channels : int
    narrow : callable of int
        From a published width to the one wanted.
    norms : str
        `FOLDED` or `DYNAMIC`.
    """

    def __init__(self, in_channels: int, narrow: Callable[[int], int] = int, norms: str = FOLDED):
        self.in_channels, self.narrow, self.norms = in_channels, narrow, norms
        self.nodes: list[Node] = []
        self.parameters = 0

    def channels(self, name: str) -> int:
        """Channels of a node."""
        return channels_through(self.nodes, self.in_channels)[name]

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Any layer; by default it reads the one before. Returns its name."""
        before = self.nodes[-1].name if self.nodes else INPUT
        self.nodes.append(Node(name, layer, inputs or (before,)))
        return name

    def conv(
        self,
        name: str,
        source: str,
        out_channels: int,
        kernel: int | Triple,
        *,
        norm: bool = False,
        bias: bool = False,
        activation: str | Activation | None = None,
        padding: Triple | None = None,
        stride: Triple = ONES,
    ) -> str:
        """A convolution, by default padded to keep the size, with batch norm or bias, and activation."""
        kernel = triple(kernel, "kernel")
        padding = tuple(k // 2 for k in kernel) if padding is None else padding
        incoming = self.channels(source)
        self.parameters += out_channels * (incoming * prod(kernel) + bias + 2 * norm)
        return self._normed(
            name, lambda act: Conv(out_channels, kernel, stride, padding, activation=act), (source,), norm, activation
        )

    def up(
        self, name: str, source: str, out_channels: int, factor: Triple, *, bias: bool = False, activation=None
    ) -> str:
        """A transposed convolution whose kernel is its stride."""
        self.parameters += out_channels * (self.channels(source) * prod(factor) + bias)
        return self.add(name, ConvTranspose(out_channels, factor, factor, activation=Activation.of(activation)), source)

    def sum(self, name: str, *sources: str, norm: bool = False, activation: str | None = None) -> str:
        """A sum, with batch norm and activation."""
        self.parameters += 2 * self.channels(sources[0]) * norm
        affine = norm and self.norms == FOLDED
        return self._normed(name, lambda act: Add(len(sources), affine, act), sources, norm, activation)

    def norm(self, name: str, source: str, activation: str | None = None) -> str:
        """A batch norm that follows nothing it could be folded into, and an activation."""
        self.parameters += 2 * self.channels(source)
        act = Activation.of(activation)
        return self.add(name, Affine(act) if self.norms == FOLDED else Norm("batch", activation=act), source)

    def _normed(
        self, name: str, layer: Callable[[Activation], Layer], sources: tuple[str, ...], norm: bool, activation
    ) -> str:
        act = Activation.of(activation)
        if not norm or self.norms == FOLDED:
            return self.add(name, layer(act), *sources)
        self.add(f"{name}.sums", layer(LINEAR), *sources)
        return self.add(name, Norm("batch", activation=act), f"{name}.sums")


@dataclass(frozen=True)
class PublishedGraph:
    """A network of the zoo that is a graph.

    Attributes
    ----------
    name : str
    build : callable of GraphBuilder
        Adds the nodes, the last one giving the result; widths of hidden layers go through `GraphBuilder.narrow`.
    source, status : str
        As in `znni.zoo.published.Published`; ``RECON``: rebuilt from several released artefacts that agree; ``PARTIAL``: the
        block is exact, but not all of its settings are confirmed for the paper.
    width : int
        Channels of the first hidden layer.
    patch : (z, y, x)
        The input patch of the paper, or of the released code.
    sliding : bool
        Whether it is a sliding-window network.
    fixed : bool
        Whether it takes no patch but that one.
    """

    name: str
    build: Callable[[GraphBuilder], object]
    source: str
    status: str
    width: int
    patch: Triple | None = None
    in_channels: int = 1
    sliding: bool = False
    norms: str = FOLDED
    narrowed_to: int | None = None
    fixed: bool = False

    def _narrow(self, channels: int) -> int:
        if self.narrowed_to is None:
            return channels
        return max(1, (2 * channels * self.narrowed_to + self.width) // (2 * self.width))

    @cached_property
    def _built(self) -> GraphBuilder:
        builder = GraphBuilder(self.in_channels, self._narrow, self.norms)
        self.build(builder)
        return builder

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in order."""
        return tuple(self._built.nodes)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(node.layer for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Trained parameters: weights, biases, scales and shifts of norms."""
        return self._built.parameters

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return channels_through(self.nodes, self.in_channels)[self.nodes[-1].name]

    @cached_property
    def field_of_view(self) -> Triple:
        """Input voxels (z, y, x) that one output voxel depends on, at most."""
        return field_of_view(self.nodes)

    def narrowed(self, width: int | None) -> PublishedGraph:
        """This network with `width` channels in its first hidden layer, and the others in proportion (at least 1)."""
        if width is None:
            return self
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise InvalidShape(f"width must be a positive integer, got {width!r}")
        return replace(self, narrowed_to=width)


#: A padding that leaves nothing out and adds nothing.
VALID = ZEROS
