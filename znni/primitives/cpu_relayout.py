"""Conversions between plain and blocked arrays (`znni.layouts`) on the CPU."""

from __future__ import annotations

import numpy as np

from znni._kernels import relayout
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class RelayoutOperator(Operator):
    """Conversion of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The transposition of blocks of channels."""
        convert = relayout.to_blocked if self.gives == BLOCKED else relayout.to_plain
        convert(x, out, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: there are no weights."""
        return ()


class CpuRelayout(Primitive):
    """Plain to blocked, or blocked to plain, in one pass; large results are written past the caches."""

    name, kind = "cpu.relayout", "relayout"
    layouts = ((PLAIN, BLOCKED), (BLOCKED, PLAIN))
    tolerance = 0.0
    efficiency = (0.5, 0.7)

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """Any tensor."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: blocks are transposed in registers."""
        return Memory()

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; the input read and the output, with its empty lanes, written once."""
        return Cost(flop=0.0, moved_bytes=float(sum(tensor_bytes(shape, layout) for layout in layouts_of(config))))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return RelayoutOperator(self, layer, shape, config, threads)


RELAYOUT = register(CpuRelayout())
