"""Recombining fragments on the GPU: the sub-lattices that max-pooling fragments (MPF) made, into one dense result."""

from __future__ import annotations

import math

import numpy as np

from znni.errors import Unsupported
from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.layers import Layer, Recombine, Shape
from znni.layouts import tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_THREADS = 256
#: Floats that memory moves together.
_SECTOR_FLOATS = 8


def _offsets(layer: Recombine, numbers: np.ndarray) -> np.ndarray:
    """Where in the step (z, y, x) the fragments of these numbers, within a batch element, have their voxels: (3, fragments).

    Fragments f1, f2, .. of the levels are at ``f1 + s1 * (f2 + s2 * ..)``, and the last level's change fastest.
    """
    offsets = np.zeros((3, len(numbers)), np.int64)
    for stride in reversed(layer.strides):
        own = np.stack(np.unravel_index(numbers % math.prod(stride), stride))
        offsets = own + np.array(stride)[:, None] * offsets
        numbers = numbers // math.prod(stride)
    return offsets


def _tables(layer: Recombine, shape: Shape) -> tuple[np.ndarray, int]:
    """Where each fragment begins in its part's input and in the result, (2, fragments) in elements, and how many of them,
    next to each other in the tables, have voxels in the same rows.

    Parts lie one after another, within each the fragments in the order of the result.
    """
    together, step = shape[0], layer.step
    numbers = np.arange(together * layer.parts)
    part, place = np.divmod(numbers, together)
    batch, number = np.divmod(numbers, math.prod(step))
    z, y, x = _offsets(layer, number)
    rows = np.ravel_multi_index((part, batch, z, y), (layer.parts, int(batch[-1]) + 1, *step[:2]))
    order = np.lexsort((x, rows))
    members = math.gcd(*map(int, np.unique(rows, return_counts=True)[1]))
    size = layer.output_shape(shape)[1:]
    targets = ((batch * size[0] * size[1] + z) * size[2] + y) * size[3] + x
    return np.stack([place[order] * math.prod(shape[1:]), targets[order]]), members


class RecombineOperator(GpuOperator):
    """Recombination of fragments of one shape; of a layer cut into parts, of those that `part` says."""

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._tables, self._members = _tables(layer, shape)
        self._kernel = self.device.kernel("recombine.cu", "recombine", {"MEMBERS": self._members})

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """The tables of fragments."""
        tables = carve(resident, [table.nbytes for table in self._tables])
        self._sources, self._targets = (table.view(np.int64, (table.nbytes // 8,)) for table in tables)
        for target, source in zip(tables, self._tables, strict=True):
            self.device.compute.copy(target, source)

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """The interleaving."""
        if not 0 <= self.part < self.layer.parts:
            raise Unsupported(f"{self.primitive.name} has parts 0 to {self.layer.parts - 1}, got {self.part}")
        fragments, channels, qz, qy, qx = self.shape
        rows = slice(self.part * fragments, (self.part + 1) * fragments)
        wide = 8
        while wide < min(qx * self._members, _THREADS):
            wide *= 2
        blocks = -(-qz * qy // (_THREADS // wide))
        self.device.compute.launch(
            self._kernel,
            (fragments // self._members * channels * blocks, 1, 1),
            (wide, _THREADS // wide, 1),
            [
                x,
                out,
                self._sources[rows],
                self._targets[rows],
                *map(np.int32, (channels, qz, qy, qx, *self.layer.step, blocks)),
            ],
        )


class GpuRecombine(GpuPrimitive):
    """Interleaves the fragments of nested MPFs, row by row of the dense result."""

    name, kind = "gpu.recombine", "recombine"
    tolerance = 0.0

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """Any strides, at any number of levels, in any number of parts."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Where each fragment, of all parts, begins in the input and in the result."""
        return Memory(device_resident_bytes=carved_bytes([8 * shape[0] * layer.parts] * 2))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; every voxel is read and written once, and where rows have gaps what lies there is moved too."""
        return Cost(flop=0.0, moved_bytes=tensor_bytes(shape) * (1.0 + _scattered(layer, shape)))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return RecombineOperator(self, layer, shape, config, threads)


def _scattered(layer: Recombine, shape: Shape) -> float:
    """Voxels of the result moved for each that is written: parts write some of a row only."""
    together, fragments = 1, shape[0]
    for stride in reversed(layer.strides):
        together *= min(fragments, stride[2])
        fragments //= math.prod(stride)
        if fragments < 2:
            break
    return float(min(max(1.0, layer.step[2] / together), _SECTOR_FLOATS))


RECOMBINE = register(GpuRecombine())
