"""Normalisation by the statistics of the input itself on the CPU: batch, instance, group and layer norm."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import norm
from znni.layers import Norm, Shape
from znni.layouts import BLOCKED, PLAIN, array_shape, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class NormOperator(Operator):
    """A norm of one shape, with its scale and bias copied."""

    def __init__(self, primitive: Primitive, layer: Norm, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._scale, self._bias = (np.array(weights[name], np.float32) for name in ("scale", "bias"))

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Statistics of all chunks, then the result."""
        layer, channels = self.layer, self.shape[1]
        group = channels // layer.groups if layer.over == "group" else 1
        activation = (layer.activation.code, layer.activation.a, layer.activation.b)
        norm.norm(
            x, out, workspace, channels, layer.over == "batch", group, layer.epsilon, self._scale, self._bias,
            *activation, self.threads,
        )  # fmt: skip

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """Scale and bias."""
        return (self._scale, self._bias)


class CpuNorm(Primitive):
    """Two passes over the input: moments about each chunk's own mean, folded into doubles; then the result.

    A mean much larger than the deviation costs no digits. The result is the same for any number of threads.
    """

    name, kind = "cpu.norm", "norm"
    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 5e-6
    efficiency = (0.2, 0.6)

    def supports(self, layer: Norm, shape: Shape) -> str | None:
        """All layers of its kind whose groups fit."""
        return unfit(layer, shape)

    def memory(self, layer: Norm, shape: Shape, config: Config, threads: int) -> Memory:
        """Scale and bias; workspace for the moments of all chunks and the factors of all channels."""
        taken = array_shape(shape, layouts_of(config)[0])
        return Memory(host_resident_bytes=2 * 4 * shape[1], host_workspace_bytes=norm.workspace_bytes(taken))

    def cost(self, layer: Norm, shape: Shape, config: Config) -> Cost:
        """Difference, square and sums of each value, then its scaling; the input is read twice."""
        takes, gives = layouts_of(config)
        moved = 2 * tensor_bytes(shape, takes) + tensor_bytes(shape, gives)
        return Cost(flop=8.0 * math.prod(shape), moved_bytes=float(moved))

    def prepare(self, layer: Norm, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator that holds scale and bias."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return NormOperator(self, layer, weights, shape, config, threads)


NORM = register(CpuNorm())
