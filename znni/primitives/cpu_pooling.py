"""Pooling on the CPU: max-pooling, max-filtering and max-pooling fragments (MPF).

MPF makes all prod(stride) fragments in one pass over the input (Zlateski, Lee & Seung, "ZNNi: maximizing the inference
throughput of 3D convolutional networks on CPUs and GPUs", SC'16); its kernel, `pyx/pooling.pyx`, is that of the others too.
A NaN in a window makes its maximum NaN, as in PyTorch.
"""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import pooling
from znni.errors import Unsupported
from znni.layers import ONES, Layer, Shape, Triple
from znni.layouts import BLOCKED, PLAIN, array_shape, layouts_of, settings_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit


def refuse_settings(primitive: Primitive, config: Config) -> None:
    """Raise `Unsupported` unless `config` is empty, for primitives with nothing to set."""
    if settings_of(config):
        raise Unsupported(f"{primitive.name} has no settings, so its config must be {{}}, got {dict(config)!r}")


class PoolOperator(Operator):
    """Max-pooling, max-filtering or MPF of one shape."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The maxima."""
        pooling.pool(x, out, workspace, *self.primitive.windows(self.layer), self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: windows have no weights."""
        return ()


class Pool(Primitive):
    """What the three kinds of maxima over windows share. Memory: a few rows of maxima for each thread."""

    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 0.0
    efficiency = (0.1, 0.5)

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple, bool]:
        """Window, dilation, stride, and whether the strides make fragments."""
        raise NotImplementedError

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All layers of its kind whose windows fit."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Workspace for rows of maxima over z and y; nothing resident."""
        taken = array_shape(shape, layouts_of(config)[0])
        return Memory(host_workspace_bytes=pooling.workspace_bytes(taken, *self.windows(layer), threads))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Comparisons, axis by axis, and the input read and output written once."""
        window, _, stride, fragments = self.windows(layer)
        takes, gives = layouts_of(config)
        out_shape = layer.output_shape(shape)
        result = math.prod(out_shape)
        rows = result if fragments else result * stride[2]
        comparisons = rows * (window[0] + window[1] - 2) + result * (window[2] - 1)
        moved = tensor_bytes(shape, takes) + tensor_bytes(out_shape, gives)
        return Cost(flop=float(comparisons), moved_bytes=float(moved))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: maxima are values of the input."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return PoolOperator(self, layer, shape, config, threads)


class CpuMaxPool(Pool):
    """Max-pooling with any window and stride."""

    name, kind = "cpu.max_pool", "max_pool"

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple, bool]:
        """Those of the layer, without dilation."""
        return layer.window, ONES, layer.stride, False


class CpuMaxFilter(Pool):
    """Max-filtering with any window and dilation, axis by axis."""

    name, kind = "cpu.max_filter", "max_filter"

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple, bool]:
        """Those of the layer, at stride 1."""
        return layer.window, layer.dilation, ONES, False


class CpuMaxPoolFragments(Pool):
    """Max-pooling fragments with any window and stride, all fragments in one pass over the input."""

    name, kind = "cpu.mpf", "mpf"

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple, bool]:
        """Those of the layer; each offset below the stride is a fragment."""
        return layer.window, ONES, layer.stride, True


MAX_POOL = register(CpuMaxPool())
MAX_FILTER = register(CpuMaxFilter())
MPF = register(CpuMaxPoolFragments())
