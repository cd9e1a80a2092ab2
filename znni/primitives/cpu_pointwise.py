"""Layers that are computed voxel by voxel on the CPU: softmax and maxout, both over channels."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import pointwise
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class PointwiseOperator(Operator):
    """Softmax or maxout of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The kernel of the primitive, on all voxels."""
        self.primitive.kernel(x, out, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: these layers have no weights."""
        return ()


class Pointwise(Primitive):
    """What softmax and maxout share: no memory but input and output, and one pass over both."""

    efficiency = (0.2, 0.5)
    #: Computes (x, out, threads).
    kernel = None

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All layers of its kind that fit the shape."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: a few voxels at a time are held in registers."""
        return Memory()

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return PointwiseOperator(self, layer, shape, config, threads)


class CpuSoftmax(Pointwise):
    """Softmax over channels, safe from overflow: the maximum is subtracted first."""

    name, kind = "cpu.softmax", "softmax"
    layouts = ((PLAIN, PLAIN), (BLOCKED, PLAIN))
    tolerance = 1e-6
    kernel = staticmethod(pointwise.softmax)

    #: Of one exponential, with the subtraction before it: range reduction, polynomial, scaling.
    FLOP_OF_EXP = 20

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """One exponential, and a comparison, addition and product for each value."""
        moved = sum(tensor_bytes(shape, layout) for layout in layouts_of(config))
        return Cost(flop=float((self.FLOP_OF_EXP + 3) * math.prod(shape)), moved_bytes=float(moved))


class CpuMaxout(Pointwise):
    """Maximum over groups of adjacent channels. A NaN in a group makes its maximum NaN."""

    name, kind = "cpu.maxout", "maxout"
    tolerance = 0.0
    kernel = staticmethod(pointwise.maxout)

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Comparisons; the input read and the output written once."""
        size, result = math.prod(shape), math.prod(layer.output_shape(shape))
        return Cost(flop=float(size - result), moved_bytes=4.0 * (size + result))


SOFTMAX = register(CpuSoftmax())
MAXOUT = register(CpuMaxout())
