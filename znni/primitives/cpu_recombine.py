"""Recombining fragments on the CPU: the sub-lattices that max-pooling fragments (MPF) made, into one dense result."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import recombine
from znni.errors import Unsupported
from znni.layers import Layer, Shape, Triple
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_LINE_FLOATS = 16


def _fragment_indices(strides: tuple[Triple, ...]) -> np.ndarray:
    """For each offset along z, then along y, then along x: what it adds to the batch index of the fragment it is from.

    Offset ``f1 + s1 * (f2 + s2 * ..)`` is of fragments f1, f2, .. of the levels, and the last level's change fastest.
    """
    indices = []
    for axis in range(3):
        for rest in range(math.prod(stride[axis] for stride in strides)):
            index = 0
            for stride in strides:
                rest, f = divmod(rest, stride[axis])
                index = index * math.prod(stride) + f * math.prod(stride[axis + 1 :])
            indices.append(index)
    return np.array(indices, np.int64)


def _neighbours(strides: tuple[Triple, ...], fragments: int) -> int:
    """How many of `fragments` fragments, next to each other in the batch, have voxels in one row of the result."""
    neighbours = 1
    for stride in reversed(strides):
        neighbours *= min(fragments, stride[2])
        fragments //= math.prod(stride)
        if fragments < 2:
            break
    return neighbours


class RecombineOperator(Operator):
    """Recombination of fragments of one shape; of a layer cut into parts, of those that `part` says."""

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._indices = _fragment_indices(layer.strides)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The interleaving."""
        if not 0 <= self.part < self.layer.parts:
            raise Unsupported(f"{self.primitive.name} has parts 0 to {self.layer.parts - 1}, got {self.part}")
        first = self.part * self.shape[0]
        recombine.recombine(x, out, self._indices, self.layer.step, first, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The table of fragments."""
        return (self._indices,)


class CpuRecombine(Primitive):
    """Interleaves the fragments of nested MPFs, row by row of the dense result."""

    name, kind = "cpu.recombine", "recombine"
    layouts = ((PLAIN, PLAIN), (BLOCKED, PLAIN))
    tolerance = 0.0

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """Any strides, at any number of levels, in any number of parts."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """A table of which fragment each offset comes from: eight bytes an offset and axis."""
        return Memory(host_resident_bytes=8 * sum(layer.step))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; every voxel is read and written once.

        A part writes voxels with others between them: it moves the cache lines that hold them.
        """
        takes, _ = layouts_of(config)
        scattered = min(layer.step[2] / _neighbours(layer.strides, shape[0]), _LINE_FLOATS)
        return Cost(flop=0.0, moved_bytes=tensor_bytes(shape, takes) + scattered * tensor_bytes(shape))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return RecombineOperator(self, layer, shape, config, threads)


RECOMBINE = register(CpuRecombine())
