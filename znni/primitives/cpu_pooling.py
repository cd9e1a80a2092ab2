"""Pooling on the CPU: max-pooling, max-filtering, max-pooling fragments (MPF), and recombining fragments.

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
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit


def refuse_settings(primitive: Primitive, config: Config) -> None:
    """Raise `Unsupported` unless `config` is empty, for primitives with nothing to set."""
    if config:
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
        return Memory(host_workspace_bytes=pooling.workspace_bytes(shape, *self.windows(layer), threads))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Comparisons, axis by axis, and the input read and output written once."""
        window, _, stride, fragments = self.windows(layer)
        result = math.prod(layer.output_shape(shape))
        rows = result if fragments else result * stride[2]
        comparisons = rows * (window[0] + window[1] - 2) + result * (window[2] - 1)
        return Cost(flop=float(comparisons), moved_bytes=4.0 * (math.prod(shape) + result))

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


class RecombineOperator(Operator):
    """Recombination of fragments of one shape."""

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._indices = _fragment_indices(layer.strides)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The interleaving."""
        pooling.recombine(x, out, self._indices, self.layer.step, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The table of fragments."""
        return (self._indices,)


class CpuRecombine(Primitive):
    """Interleaves the fragments of nested MPFs, row by row of the dense result."""

    name, kind = "cpu.recombine", "recombine"
    tolerance = 0.0

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """Any strides, at any number of levels."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """A table of which fragment each offset comes from: eight bytes an offset and axis."""
        return Memory(host_resident_bytes=8 * sum(layer.step))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; every voxel is read and written once."""
        return Cost(flop=0.0, moved_bytes=8.0 * math.prod(shape))

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return RecombineOperator(self, layer, shape, config, threads)


MAX_POOL = register(CpuMaxPool())
MAX_FILTER = register(CpuMaxFilter())
MPF = register(CpuMaxPoolFragments())
RECOMBINE = register(CpuRecombine())
