"""Tensors joined along their channels on the CPU."""

from __future__ import annotations

import numpy as np

from znni._kernels import combine
from znni.layers import Concat, Layer, Shape
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class ConcatOperator(Operator):
    """A joining of tensors of given shapes."""

    def compute(self, x: tuple[np.ndarray, ...], out: np.ndarray, workspace: np.ndarray) -> None:
        """One tensor after another."""
        combine.concat(x, self.layer.channels, out, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: there are no weights."""
        return ()


class CpuConcat(Primitive):
    """Copies of runs; where blocked tensors meet within a block, lanes are shifted."""

    name, kind = "cpu.concat", "concat"
    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 0.0
    efficiency = (0.5, 0.7)

    def supports(self, layer: Concat, shape: Shape) -> str | None:
        """All layers whose channels are those of the result."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: lanes are shifted in registers."""
        return Memory()

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; inputs read and the output written once."""
        takes, gives = layouts_of(config)
        read = sum(tensor_bytes(own, takes) for own in layer.input_shapes(shape))
        return Cost(flop=0.0, moved_bytes=float(read + tensor_bytes(shape, gives)))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return ConcatOperator(self, layer, shape, config, threads)


CONCAT = register(CpuConcat())
