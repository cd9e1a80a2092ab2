"""A network: named nodes of layers with their weights, and the arithmetic of shapes through it.

Nodes name the nodes they read from, so that a graph is as good as a chain; the networks so far are chains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from znni import geometry
from znni.errors import FormatError, InvalidShape
from znni.layers import Conv, Layer, Maxout, Shape, Triple, by_x, describe
from znni.lowering import lower
from znni.nodes import INPUT, Node
from znni.schedule import Levels, scheduled


def shapes_through(nodes: Sequence[Node], shape: Shape) -> dict[str, Shape]:
    """The shape of every node's result (and of `INPUT`) for an input of `shape`."""
    shapes = {INPUT: tuple(shape)}
    for node in nodes:
        shapes[node.name] = node.layer.output_shape(shapes[node.inputs[0]])
    return shapes


class Network:
    """A trained (or seeded) sliding-window network.

    Parameters
    ----------
    name : str
    nodes : sequence of Node
        In an order in which each node follows what it reads; poolings are `MaxPool`, meant densely.
    in_channels : int
    weights : mapping of node name to {"weight", "bias"}
        float32, cross-correlation; checked against the layers, and for NaN and infinity (`FormatError`).
    source : str
        Where it came from, in a form that `znni.load` takes: a zoo name or a file's path.
    seed, width : int or None
        What a zoo network was made with.
    weights_source : str or None
        The file that the weights came from, where that is not `source`.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        in_channels: int,
        weights: Mapping[str, Mapping[str, np.ndarray]],
        *,
        source: str | None = None,
        seed: int | None = None,
        width: int | None = None,
        weights_source: str | None = None,
    ):
        self.name, self.nodes, self.in_channels = name, tuple(nodes), in_channels
        self.source, self.seed, self.width = source or name, seed, width
        self.weights_source = weights_source
        self.weights = self._checked(weights)

    def _checked(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        checked, channels = {}, {INPUT: self.in_channels}
        for node in self.nodes:
            incoming = channels[node.inputs[0]]
            channels[node.name] = incoming
            if isinstance(node.layer, Maxout):
                channels[node.name] = incoming // node.layer.group
            if not isinstance(node.layer, Conv):
                continue
            channels[node.name] = node.layer.out_channels
            own = checked[node.name] = {}
            for key, shape in node.layer.weight_shapes(incoming).items():
                if node.name not in weights or key not in weights[node.name]:
                    raise FormatError(f"{self.name}: layer {node.name} has no {key}; expected shape {by_x(shape)}")
                array = np.ascontiguousarray(weights[node.name][key], dtype=np.float32)
                if array.shape != shape:
                    raise FormatError(
                        f"{self.name}: {key} of layer {node.name} must be {by_x(shape)}, got {by_x(array.shape)}"
                    )
                if not np.isfinite(array).all():
                    raise FormatError(f"{self.name}: {key} of layer {node.name} holds NaN or infinite values")
                own[key] = array
        self.out_channels = channels[self.nodes[-1].name]
        return checked

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(node.layer for node in self.nodes)

    @cached_property
    def field_of_view(self) -> Triple:
        """Input voxels (z, y, x) that one output voxel depends on."""
        return geometry.field_of_view(self.layers)

    @cached_property
    def step(self) -> Triple:
        """Output voxels per axis come in multiples of this where pooling runs as fragments."""
        return geometry.pooling_step(self.layers)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for own in self.weights.values() for array in own.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and biases."""
        return sum(array.nbytes for own in self.weights.values() for array in own.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the layers and the weights, by which a plan knows its network."""
        h = hashlib.sha256()
        nodes = [[node.name, describe(node.layer), node.inputs] for node in self.nodes]
        h.update(json.dumps([self.in_channels, nodes], sort_keys=True).encode())
        for node in self.nodes:
            for key, array in sorted(self.weights.get(node.name, {}).items()):
                h.update(key.encode())
                h.update(np.ascontiguousarray(array, dtype="<f4").data)
        return h.hexdigest()

    @property
    def flop_per_voxel(self) -> int:
        """Direct arithmetic (2 per multiply-add) of all convolutions per output voxel, borders not counted."""
        return 2 * sum(own["weight"].size for own in self.weights.values())

    def lowered(self, pooling: str, levels: Levels = ()) -> tuple[Node, ...]:
        """The nodes that run: poolings as ``"fragments"`` (MPF, recombined last, in the order that `levels` say) or as
        ``"filter"`` (dilated)."""
        return scheduled(lower(self.nodes, pooling), levels)

    def check_patch(self, patch: Sequence[int], pooling: str = "fragments") -> None:
        """Raise `InvalidShape`, naming the nearest valid sizes, unless `patch` is a valid input patch (z, y, x)."""
        step = self.step if pooling == "fragments" else (1, 1, 1)
        geometry.check_patch(self.name, patch, self.field_of_view, step)

    def valid_patches(self, largest: int | Triple, pooling: str = "fragments") -> tuple[range, range, range]:
        """Valid input sizes along z, y and x, up to `largest`."""
        largest = (largest,) * 3 if isinstance(largest, int) else largest
        step = self.step if pooling == "fragments" else (1, 1, 1)
        return tuple(geometry.valid_sizes(*fsn) for fsn in zip(self.field_of_view, step, largest, strict=True))

    def check_input(self, x: np.ndarray) -> np.ndarray:
        """`x` as C-contiguous float32 of five axes; `InvalidShape` where its channels or size cannot be."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise InvalidShape(
                f"{self.name} takes (batch, {self.in_channels}, z, y, x), got an array of shape {by_x(x.shape)}"
            )
        if any(n < f for n, f in zip(x.shape[2:], self.field_of_view, strict=True)):
            raise InvalidShape(
                f"input {by_x(x.shape[2:])} is smaller than the field of view {by_x(self.field_of_view)} of {self.name}"
            )
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The dense result in float64, independent of every primitive: (batch, out_channels, z, y, x)."""
        from znni.reference import reference

        return reference(self, self.check_input(x))

    def run(self, x: np.ndarray, memory_bytes: int | None = None, threads: int | None = None) -> np.ndarray:
        """The dense result in float32 by the default plan (cost model, no search).

        `memory_bytes` bounds the whole process; by default three quarters of what the machine has free.
        """
        from znni.default_plan import default_plan

        x = self.check_input(x)
        out = geometry.output_size(x.shape[2:], self.field_of_view)
        plan = default_plan(self, memory_bytes=memory_bytes, threads=threads, volume=out)
        plan.bind(self, "the default plan")
        return plan.run(x)
