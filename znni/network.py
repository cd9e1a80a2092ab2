"""A network: named nodes of layers with their weights, and the arithmetic of shapes through it.

Nodes name the nodes they read from, so that a graph is as good as a chain.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from znni import geometry, graph_geometry
from znni.errors import FormatError, InvalidShape
from znni.graph_geometry import AxisSizes
from znni.graph_order import lean_order
from znni.layers import AXES, Layer, Shape, Triple, by_x, describe
from znni.lowering import POOLING, STRIDED, lower, lowered_weights
from znni.nodes import INPUT, Node, channels_through
from znni.schedule import Levels, scheduled


def shapes_through(nodes: Sequence[Node], shape: Shape) -> dict[str, Shape]:
    """The shape of every node's result (and of `INPUT`) for an input of `shape`."""
    shapes = {INPUT: tuple(shape)}
    for node in nodes:
        shapes[node.name] = node.layer.output_shape(node.layer.joined_shape(tuple(shapes[n] for n in node.inputs)))
    return shapes


class Network:
    """A trained (or seeded) network.

    Parameters
    ----------
    name : str
    nodes : sequence of Node
        In an order in which each node follows what it reads; the last one gives the result.
    in_channels : int
    weights : mapping of node name to {"weight", "bias"}
        float32, cross-correlation; checked against the layers, and for NaN and infinity (`FormatError`).
    source : str
        Where it came from, in a form that `znni.load` takes: a zoo name or a file's path.
    seed, width : int or None
        What a zoo network was made with.
    weights_source : str or None
        The file that the weights came from, where that is not `source`.
    sliding : bool
        Whether it is a sliding-window network: what it computes is its result at every voxel, and its `MaxPool` is meant
        densely. Otherwise it computes what its layers say of the patch as it is, strides and padding included.
    patch : (z, y, x) or None
        An input patch that it is usually run with.
    fixed : bool
        Whether it takes no other.
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
        sliding: bool = True,
        patch: Triple | None = None,
        fixed: bool = False,
    ):
        self.sliding, self.patch, self.fixed = sliding, patch, fixed
        self._orders: dict[str, tuple[Node, ...]] = {}
        self.name, self.nodes, self.in_channels = name, tuple(nodes), in_channels
        self.source, self.seed, self.width = source or name, seed, width
        self.weights_source = weights_source
        self.weights = self._checked(weights)

    def _checked(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        checked, self._channels = {}, channels_through(self.nodes, self.in_channels)
        for node in self.nodes:
            shapes = node.layer.weight_shapes(self._channels[node.inputs[0]]) if hasattr(node.layer, "weight_shapes") else {}
            if not shapes:
                continue
            own = checked[node.name] = {}
            for key, shape in shapes.items():
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
        self.out_channels = self._channels[self.nodes[-1].name]
        return checked

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(node.layer for node in self.nodes)

    @cached_property
    def field_of_view(self) -> Triple:
        """Input voxels (z, y, x) that one output voxel depends on."""
        return geometry.field_of_view(self.layers) if self.chain else graph_geometry.field_of_view(self.nodes)

    @cached_property
    def step(self) -> Triple:
        """Output voxels per axis come in steps of this (of sliding-window networks, where pooling runs as fragments)."""
        if self.sliding:
            return tuple(axis.period for axis in self._axes) if not self.chain else geometry.pooling_step(self.layers)
        return tuple(
            axis.size(n + axis.period) - axis.size(n) or 1 for axis, n in zip(self._axes, self._least, strict=True)
        )

    @cached_property
    def chain(self) -> bool:
        """Whether it is a sliding-window network of layers in sequence."""
        before = (INPUT, *(node.name for node in self.nodes))
        return self.sliding and all(node.inputs == (b,) for node, b in zip(self.nodes, before, strict=False))

    @cached_property
    def _axes(self) -> tuple[AxisSizes, ...]:
        return tuple(AxisSizes(self.nodes, axis, self._channels) for axis in range(3))

    @cached_property
    def _least(self) -> Triple:
        found = tuple(axis.least() for axis in self._axes)
        for axis, n in zip(AXES, found, strict=True):
            if n is None:
                raise InvalidShape(f"{self.name} takes no size along {axis}: its layers do not fit one another")
        return found

    @property
    def strides(self) -> Triple:
        """Input voxels per axis after which its strides repeat."""
        return tuple(axis.period for axis in self._axes)

    @cached_property
    def least_output(self) -> Triple:
        """The smallest output patch; others are larger by multiples of `step`."""
        if self.sliding:
            return self.step
        return tuple(axis.size(n) for axis, n in zip(self._axes, self._least, strict=True))

    @cached_property
    def padded(self) -> bool:
        """Whether voxels near the border of a patch feel that it ends there."""
        return not self.sliding and any(
            max(getattr(layer, "padding", (0,))) or layer.kind in ("pad", "resize", "norm", "global_pool")
            for layer in self.layers
        )

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """The forms in which its poolings can run (`znni.lowering`)."""
        if not self.sliding:
            return (STRIDED,)
        found = []
        for form in POOLING if self.step != (1, 1, 1) else POOLING[:1]:
            try:
                lower(self.nodes, form)
            except InvalidShape:
                continue
            found.append(form)
        return tuple(found)

    def input_patch(self, output: Sequence[int]) -> Triple:
        """The (smallest) input patch that gives an output patch of `output` voxels; `InvalidShape` where none does."""
        if self.sliding:
            return geometry.input_size(output, self.field_of_view)
        if self.patch is not None and self.output_patch(self.patch) == tuple(output):
            return self.patch
        found = tuple(axis.input_of(n) for axis, n in zip(self._axes, output, strict=True))
        if None in found:
            raise InvalidShape(
                f"no input patch of {self.name} gives {by_x(output)} output voxels: they come as {by_x(self.least_output)} "
                f"and steps of {by_x(self.step)} more"
            )
        return found

    def output_patch(self, patch: Sequence[int]) -> Triple:
        """The output patch that an input patch gives; `InvalidShape` where it does not fit."""
        if self.sliding:
            return geometry.output_size(patch, self.field_of_view)
        found = tuple(axis.size(n) for axis, n in zip(self._axes, patch, strict=True))
        if None in found:
            self.check_patch(patch)
        return found

    def margin(self, patch: Sequence[int]) -> Triple:
        """Output voxels at each border of a patch that are dropped where another patch can give them better.

        Of networks that pad: what the border is felt by (half of the field of view), but at most a quarter of the patch.
        """
        if not self.padded:
            return (0, 0, 0)
        out = self.output_patch(patch)
        return tuple(min((f - 1) // 2, n // 4) for f, n in zip(self.field_of_view, out, strict=True))

    def lost(self, patch: Sequence[int]) -> Triple:
        """Input voxels less output voxels of a patch."""
        out = self.output_patch(patch)
        return tuple(n - o for n, o in zip(patch, out, strict=True))

    @property
    def same_resolution(self) -> bool:
        """Whether output voxels are as far apart as input voxels."""
        return self.sliding or all(
            graph_geometry.reaches(self.nodes, axis)[self.nodes[-1].name].jump == 1 for axis in range(3)
        )

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
        said = [self.in_channels, nodes] if self.sliding else [self.in_channels, nodes, STRIDED]
        h.update(json.dumps(said, sort_keys=True).encode())
        for node in self.nodes:
            for key, array in sorted(self.weights.get(node.name, {}).items()):
                h.update(key.encode())
                h.update(np.ascontiguousarray(array, dtype="<f4").data)
        return h.hexdigest()

    @cached_property
    def flop_per_voxel(self) -> float:
        """Direct arithmetic (2 per multiply-add) of all convolutions per output voxel, borders not counted."""
        if self.sliding:
            return 2 * sum(own["weight"].size for own in self.weights.values() if "weight" in own)
        patch = self.patch or tuple(n + 2 * axis.period for n, axis in zip(self._least, self._axes, strict=True))
        return self.flop((1, self.in_channels, *patch)) / math.prod(self.output_patch(patch))

    def flop(self, shape: Shape) -> float:
        """Direct arithmetic (2 per multiply-add) of all convolutions on an input of `shape`, strides as they are."""
        shapes, total = shapes_through(self.nodes, shape), 0.0
        for node in self.nodes:
            weight = self.weights.get(node.name, {}).get("weight")
            if weight is not None:
                transposed = node.layer.kind == "conv_transpose"
                counted = shapes[node.inputs[0] if transposed else node.name]
                total += 2.0 * weight.size * counted[0] * math.prod(counted[2:])
        return total

    @cached_property
    def lowered_weights(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights of the nodes that run."""
        return lowered_weights(self.nodes, self.weights)

    def lowered(self, pooling: str, levels: Levels = ()) -> tuple[Node, ...]:
        """The nodes that run: poolings as ``"fragments"`` (MPF, recombined last, in the order that `levels` say), as
        ``"filter"`` (dilated), or as they are (``"strided"``)."""
        if not self.chain:
            return self._ordered(pooling)
        return scheduled(lower(self.nodes, pooling), levels)

    def _ordered(self, pooling: str) -> tuple[Node, ...]:
        """The nodes of a graph that run, in an order that holds little at once for a patch of the usual size."""
        if pooling not in self._orders:
            nodes = lower(self.nodes, pooling)
            if self.patch is not None:
                patch = self.patch
            elif self.sliding:
                patch = geometry.input_size([2 * s for s in self.step], self.field_of_view)
            else:
                patch = tuple(n + 4 * axis.period for n, axis in zip(self._least, self._axes, strict=True))
            shapes = shapes_through(nodes, (1, self.in_channels, *patch))
            self._orders[pooling] = lean_order(nodes, lambda name: math.prod(shapes[name]))
        return self._orders[pooling]

    def check_patch(self, patch: Sequence[int], pooling: str = "fragments") -> None:
        """Raise `InvalidShape`, naming the nearest valid sizes, unless `patch` is a valid input patch (z, y, x)."""
        if self.sliding:
            step = self.step if pooling == "fragments" else (1, 1, 1)
            geometry.check_patch(self.name, patch, self.field_of_view, step)
            return
        if len(patch) != len(AXES):
            raise InvalidShape(f"an input patch of {self.name} has three sizes (z, y, x), got {by_x(patch)}")
        if self.fixed and tuple(patch) != self.patch:
            raise InvalidShape(
                f"{self.name} was made for input patches of {by_x(self.patch)} alone, got {by_x(patch)}; "
                "export it with free spatial axes for others"
            )
        for name, axis, n, least in zip(AXES, self._axes, patch, self._least, strict=True):
            if axis.size(n) is None:
                near = " and ".join(
                    str(m) for m in (_next(axis, n, -1, least), _next(axis, n, 1, least)) if m is not None
                )
                raise InvalidShape(
                    f"input patch {by_x(patch)} does not fit {self.name}: along {name}, sizes go from {least} on by "
                    f"{axis.period}; nearest to {n} are {near}"
                )

    def valid_patches(self, largest: int | Triple, pooling: str = "fragments") -> tuple[range, range, range]:
        """Valid input sizes along z, y and x, up to `largest`."""
        largest = (largest,) * 3 if isinstance(largest, int) else largest
        if not self.sliding:
            return tuple(
                range(least, most + 1, axis.period)
                for least, most, axis in zip(self._least, largest, self._axes, strict=True)
            )
        step = self.step if pooling == "fragments" else (1, 1, 1)
        return tuple(geometry.valid_sizes(*fsn) for fsn in zip(self.field_of_view, step, largest, strict=True))

    def check_input(self, x: np.ndarray) -> np.ndarray:
        """`x` as C-contiguous float32 of five axes; `InvalidShape` where its channels or size cannot be."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise InvalidShape(
                f"{self.name} takes (batch, {self.in_channels}, z, y, x), got an array of shape {by_x(x.shape)}"
            )
        if self.sliding and any(n < f for n, f in zip(x.shape[2:], self.field_of_view, strict=True)):
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
        if not self.sliding:
            self.check_patch(x.shape[2:])
        out = self.output_patch(x.shape[2:])
        patch = None if self.sliding else tuple(x.shape[2:])
        plan = default_plan(self, memory_bytes=memory_bytes, threads=threads, volume=out, patch=patch)
        plan.bind(self, "the default plan")
        return plan.run(x)


def _next(axis: AxisSizes, n: int, way: int, least: int) -> int | None:
    """The valid size nearest to `n` that is larger (`way` 1) or smaller (-1)."""
    return next((m for m in range(n + way, n + way * (2 * axis.period + least + 1), way) if m > 0 and axis.size(m)), None)
