"""Means over windows, and means and maxima over whole channels, on the CPU."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import means
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, PLAIN, array_shape, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class AvgPoolOperator(Operator):
    """Average-pooling of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The means."""
        layer = self.layer
        means.avg_pool(x, out, layer.window, layer.stride, layer.padding, layer.count_padding, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: windows have no weights."""
        return ()


class GlobalPoolOperator(Operator):
    """Global pooling of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Runs of voxels, then the runs together: the same bits with any number of threads."""
        means.global_pool(x, out, workspace, self.layer.reduce == "max", self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: there are no weights."""
        return ()


class Means(Primitive):
    """What average-pooling and global pooling share."""

    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 1e-6
    efficiency = (0.1, 0.5)
    operator: type[Operator]

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All that fit."""
        return unfit(layer, shape)

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """One operation for each voxel of each window; the input read and the output written once."""
        out_shape = layer.output_shape(shape)
        takes, gives = layouts_of(config)
        flop = math.prod(out_shape) * math.prod(getattr(layer, "window", shape[2:]))
        return Cost(flop=float(flop), moved_bytes=float(tensor_bytes(shape, takes) + tensor_bytes(out_shape, gives)))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """That of a few float32 operations."""
        return 1e-7

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return self.operator(self, layer, shape, config, threads)


class CpuAvgPool(Means):
    """Average-pooling with any window, stride and padding."""

    name, kind, operator = "cpu.avg_pool", "avg_pool", AvgPoolOperator

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: sums are held in registers."""
        return Memory()


class CpuGlobalPool(Means):
    """Mean, summed in double, or maximum of whole channels."""

    name, kind, operator = "cpu.global_pool", "global_pool", GlobalPoolOperator

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """One value of double precision for each run of voxels."""
        taken = array_shape(shape, layouts_of(config)[0])
        return Memory(host_workspace_bytes=means.global_workspace_bytes(taken))


AVG_POOL = register(CpuAvgPool())
GLOBAL_POOL = register(CpuGlobalPool())
