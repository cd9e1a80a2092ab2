"""Field of view, strides and valid sizes of any graph, one axis at a time.

A voxel o of a node depends on input voxels from ``jump o + low`` to ``jump o + high``; the jump is a fraction where a node is
finer than the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

from znni.errors import InvalidShape
from znni.layers import (
    AvgPool,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    GlobalPool,
    GroupedConv,
    Layer,
    MaxFilter,
    MaxPool,
    Pad,
    Resize,
    Slice,
    projected,
)
from znni.nodes import INPUT, Node

#: Sizes that are looked through for one with a wanted result, beyond what the strides and the field of view say.
_ROOM = 64


@dataclass(frozen=True)
class Reach:
    """What a node's voxel o depends on along an axis: input voxels ``jump o + low`` to ``jump o + high``."""

    jump: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def after(self, scale: Fraction, low: Fraction, high: Fraction) -> Reach:
        """That of a layer whose voxel o reads ``scale o + low`` to ``scale o + high`` of this node."""
        return Reach(self.jump * scale, self.low + self.jump * low, self.high + self.jump * high)


def _reads(layer: Layer, axis: int) -> tuple[Fraction, Fraction, Fraction]:
    """Scale, low and high of what a voxel of a layer's result reads of its input."""
    one, zero = Fraction(1), Fraction(0)
    match layer:
        case Conv() | GroupedConv():
            low = -Fraction(layer.padding[axis])
            return Fraction(layer.stride[axis]), low, low + layer.extent[axis] - 1
        case MaxPool():
            return Fraction(layer.stride[axis]), zero, Fraction(layer.window[axis] - 1)
        case AvgPool():
            low = -Fraction(layer.padding[axis])
            return Fraction(layer.stride[axis]), low, low + layer.window[axis] - 1
        case MaxFilter():
            return one, zero, Fraction((layer.window[axis] - 1) * layer.dilation[axis])
        case ConvTranspose():
            s, cut = layer.stride[axis], layer.low[axis]
            return Fraction(1, s), Fraction(cut - layer.kernel[axis] + 1, s), Fraction(cut, s)
        case DepthToSpace():
            f, cut = layer.factor[axis], layer.low[axis]
            return Fraction(1, f), Fraction(cut - f + 1, f), Fraction(cut, f)
        case Resize():
            scale = 1 / Fraction(layer.factor[axis]).limit_denominator(1 << 12)
            near = zero if scale == 1 and not layer.extra[axis] else one
            return scale, -near, near
        case Pad():
            return one, -Fraction(layer.low[axis]), -Fraction(layer.low[axis])
        case Slice():
            return Fraction(layer.step[axis]), Fraction(layer.low[axis]), Fraction(layer.low[axis])
    return one, zero, zero


def reaches(nodes: Sequence[Node], axis: int) -> dict[str, Reach]:
    """What each node's voxels depend on. A `GlobalPool` depends on all, and is passed over."""
    found = {INPUT: Reach()}
    for node in nodes:
        own = [found[name] for name in node.inputs]
        joined = Reach(own[0].jump, min(r.low for r in own), max(r.high for r in own))
        found[node.name] = joined.after(*_reads(node.layer, axis))
    return found


def field_of_view(nodes: Sequence[Node]) -> tuple[int, int, int]:
    """Input voxels that one output voxel depends on, at most, were the input infinite."""
    ends = (reaches(nodes, axis)[nodes[-1].name] for axis in range(3))
    return tuple(int(end.high // 1 - -(-end.low // 1)) + 1 for end in ends)


def period(nodes: Sequence[Node], axis: int) -> int:
    """Input voxels after which strides repeat: the least common multiple of all jumps."""
    return lcm(*(reach.jump.numerator for reach in reaches(nodes, axis).values()))


class AxisSizes:
    """Sizes along one axis through a graph.

    Parameters
    ----------
    nodes : sequence of Node
    axis : int
    channels : mapping of node name to its channels
    """

    def __init__(self, nodes: Sequence[Node], axis: int, channels: dict[str, int]):
        self._nodes = [(node, projected(node.layer, axis), channels[node.inputs[0]]) for node in nodes]
        self._axis = axis
        end = reaches(nodes, axis)[nodes[-1].name]
        self._jump, self._reach = end.jump, int(end.high - end.low) + 1
        self.period = period(nodes, axis)
        self.size = lru_cache(maxsize=1 << 14)(self._size)

    def _size(self, n: int) -> int | None:
        """The size of the result for an input of `n` voxels, None where that cannot be."""
        sizes = {INPUT: n}
        for node, layer, channels in self._nodes:
            own = [sizes[name] for name in node.inputs]
            if isinstance(layer, GlobalPool):
                sizes[node.name] = 1
                continue
            if isinstance(layer, DepthToSpace):
                channels = layer.phases
            if layer.joins and not getattr(layer, "per_channel", False) and len(set(own)) != 1:
                return None
            if isinstance(layer, Concat):
                sizes[node.name] = own[0]
                continue
            shape = [1, channels, 1, 1, 1]
            shape[2 + self._axis] = own[0]
            try:
                sizes[node.name] = layer.output_shape(tuple(shape))[2 + self._axis]
            except InvalidShape:
                return None
        return sizes[self._nodes[-1][0].name]

    def least(self) -> int | None:
        """The smallest size that is valid, as is each that is larger by a multiple of the period; None where none is found."""
        for n in range(1, 4 * self.period + 2 * self._reach + _ROOM):
            if all(self.size(n + i * self.period) for i in (0, 1, 2)):
                return n
        return None

    def input_of(self, output: int) -> int | None:
        """The smallest valid size whose result has `output` voxels, None where there is none."""
        first = max(1, int((output - 1) * self._jump) - self._reach - _ROOM)
        last = int((output + 1) * self._jump) + self._reach + _ROOM
        return next((n for n in range(first, last + 1) if self.size(n) == output), None)
