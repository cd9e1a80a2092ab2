"""`cpu.fft`: convolution by whole-patch FFTs, pruned, after the two CPU algorithms of ZNNi (``pyx/fft.pyx``).

``parallel``
    ``task``: a thread per transform and per output channel; ``data``: all threads in each transform.
``batch``
    Batch elements that go together and share the kernels' transforms; fewer need less memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod

import numpy as np

from znni._kernels import fft
from znni.fft_sizes import next_good_size
from znni.layers import Conv, Layer, Shape, Triple
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit

#: Transforms longer than this along an axis have never been wanted, and are not tested.
MOST_POINTS = 512


@dataclass(frozen=True)
class _Sizes:
    """Floats of everything that one call holds, as ``fft.convolve`` lays them out."""

    points: Triple
    row: int
    spectrum: int
    kernel_spectrum: int
    partial: int
    scratch: int
    block: int

    @classmethod
    def of(cls, layer: Conv, shape: Shape) -> _Sizes:
        points = tuple(next_good_size(n) for n in shape[2:])
        row = fft.row_floats(points[2])
        out_z = layer.output_shape(shape)[2]
        return cls(
            points,
            row,
            spectrum=2 * prod(points[:2]) * row,
            kernel_spectrum=2 * layer.kernel[0] * points[1] * row,
            partial=2 * out_z * points[1] * row,
            scratch=fft.scratch_floats(*points),
            block=points[0] * row,
        )


class CpuFft(Primitive):
    """Whole-patch FFT convolution: few channels, large kernels, first layers."""

    name = "cpu.fft"
    kind = "conv"
    whole_patch = True
    tolerance = 1e-5
    efficiency = (0.25, 0.5)

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """See `Primitive.supports`."""
        if layer.stride != (1, 1, 1):
            return "a whole-patch FFT computes stride 1 only"
        if any(layer.padding):
            return "a whole-patch FFT computes valid convolution only; padding must be 0"
        if max(shape[2:]) > MOST_POINTS:
            return f"a whole-patch FFT takes at most {MOST_POINTS} voxels along an axis"
        return unfit(layer, shape)

    def configs(self, layer: Layer, shape: Shape, machine=None) -> list[Config]:
        """See `Primitive.configs`."""
        batches = sorted({1, min(shape[0], 8), shape[0]}, reverse=True)
        few = layer.out_channels < 4
        return [
            {"parallel": parallel, "batch": batch}
            for parallel in (("data", "task") if few else ("task", "data"))
            for batch in batches
        ]

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """See `Primitive.memory`: twiddles stay; spectra, planes, partial inverses and per-thread blocks are workspace."""
        s, batch = _Sizes.of(layer, shape), config["batch"]
        teams = threads if config["parallel"] == "task" else 1
        floats = (
            batch * shape[1] * s.spectrum
            + teams * (shape[1] * s.kernel_spectrum + batch * s.partial)
            + threads * (2 * (1 + batch) * s.block + s.scratch)
        )
        return Memory(4 * sum(fft.table_floats(n) for n in s.points), 4 * floats)

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """See `Primitive.cost`: transforms over the lines that matter, and 8 FLOP per complex product and sum."""
        s, out = _Sizes.of(layer, shape), layer.output_shape(shape)
        (nz, ny, nx), (kz, ky, _), xh = s.points, layer.kernel, s.row
        per_x, per_y, per_z = 2.5 * nx * log2(nx + 1), 5 * ny * log2(ny + 1), 5 * nz * log2(nz + 1)
        forward = shape[2] * shape[3] * per_x + shape[2] * xh * per_y + ny * xh * per_z
        kernel = kz * ky * per_x + kz * xh * per_y + ny * xh * per_z
        inverse = ny * xh * per_z + out[2] * xh * per_y + out[2] * out[3] * per_x
        batch, pairs = shape[0], shape[1] * out[1]
        rounds = -(-batch // config["batch"])
        flop = (
            batch * shape[1] * forward + rounds * pairs * kernel + batch * (out[1] * inverse + pairs * 4 * s.spectrum)
        )
        # each output channel reads all input spectra again
        moved = 4 * (
            batch * shape[1] * s.spectrum * (out[1] + 3) + batch * out[1] * 2 * s.partial + prod(shape) + prod(out)
        )
        return Cost(flop, moved)

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """See `Primitive.prepare`."""
        self.refuse(layer, shape)
        return _FftOperator(self, layer, weights, shape, config, threads)


class _FftOperator(Operator):
    def __init__(self, primitive, layer, weights, shape, config, threads):
        super().__init__(primitive, layer, shape, config, threads)
        self.weight, self.bias = weights["weight"], weights["bias"]
        self.points = _Sizes.of(layer, shape).points
        self.tables = []
        for n in self.points:
            table = np.zeros(fft.table_floats(n), np.float32)
            fft.fill_table(n, table)
            self.tables.append(table)

    def compute(self, x, out, workspace):
        floats = workspace[: workspace.nbytes // 4 * 4].view(np.float32)
        act = self.layer.activation
        fft.convolve(
            x, self.weight, self.bias, out, *self.tables, self.points, self.layer.dilation, act.code, act.a, act.b,
            self.config["batch"], self.config["parallel"] == "task", self.threads, floats,
        )  # fmt: skip

    @property
    def resident_arrays(self):
        return tuple(self.tables)


register(CpuFft())
