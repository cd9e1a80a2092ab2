"""Affinities of pairs of voxels on the CPU."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import pair_distance
from znni.layers import Layer, Shape
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class PairDistanceOperator(Operator):
    """Affinities of one shape."""

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._offsets = np.array(layer.offsets, np.int64)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The affinities, offset by offset."""
        pair_distance.pair_distance(x, out, self._offsets, self.layer.margin, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The offsets."""
        return (self._offsets,)


class CpuPairDistance(Primitive):
    """Any offsets, of plain arrays; the embeddings are read twice for each of them."""

    name, kind = "cpu.pair_distance", "pair_distance"
    tolerance = 2e-6
    efficiency = (0.1, 0.5)

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All that fit."""
        return unfit(layer, shape) if layer.offsets else "there are no offsets, so nothing to compute"

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """The offsets."""
        return Memory(host_resident_bytes=24 * len(layer.offsets))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Difference, absolute value and sum of each channel; each offset reads the embeddings anew."""
        values, pairs = math.prod(shape), len(layer.offsets)
        return Cost(
            flop=3.0 * values * pairs, moved_bytes=4.0 * (values * pairs + math.prod(layer.output_shape(shape)))
        )

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return PairDistanceOperator(self, layer, shape, config, threads)


PAIR_DISTANCE = register(CpuPairDistance())
