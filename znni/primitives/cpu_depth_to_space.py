"""Channels spread over voxels on the CPU, in one pass at the pace of the memory."""

from __future__ import annotations

import numpy as np

from znni._kernels import depth_to_space
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class DepthToSpaceOperator(Operator):
    """Spreading of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Copies of voxels."""
        layer = self.layer
        depth_to_space.depth_to_space(x, out, layer.factor, layer.low, self.out_shape[1], self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: there are no weights."""
        return ()


class CpuDepthToSpace(Primitive):
    """Any factors and channels; fastest blocked, where the channels of the result fill vectors."""

    name, kind = "cpu.depth_to_space", "depth_to_space"
    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 0.0
    efficiency = (0.5, 0.5)

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All that fit."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: values go from input to output."""
        return Memory()

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; the input read and the output written once."""
        takes, gives = layouts_of(config)
        moved = tensor_bytes(shape, takes) + tensor_bytes(layer.output_shape(shape), gives)
        return Cost(flop=0.0, moved_bytes=float(moved))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return DepthToSpaceOperator(self, layer, shape, config, threads)


DEPTH_TO_SPACE = register(CpuDepthToSpace())
