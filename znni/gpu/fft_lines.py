"""Pruned transforms: axis by axis, and along each only the lines that matter.

A line of zeros is zero transformed: along x, only the rows of the image or the kernel are; along y, only those of its planes.
Backward, only lines of which something is kept are transformed. Between the axes lines are transposed and padded, so that
cuFFT finds them one after another (Zlateski, Lee & Seung, "ZNNi: maximizing the inference throughput of 3D convolutional
networks on CPUs and GPUs", SC'16). Kernels of few planes are not padded along z: a sum over their planes is their transform.
"""

from __future__ import annotations

from math import log2

import numpy as np

from znni.gpu.device import Device, DeviceArray, FftSpec, Kernel, Stream
from znni.gpu.transforms import INPUT, KERNEL, RESULT, Transforms
from znni.gpu.transpositions import transpose, transposition

#: Planes of a kernel, and points along z, up to which its z transforms are sums: ``transform_short_lines``.
_MOST_TAPS, _MOST_POINTS = 16, 1024
_SHORT_COLUMNS, _SHORT_THREADS = 64, 256


class LineTransforms(Transforms):
    """Transforms of lines. Spectra lie along x, y, z, the last the fastest; axes of one point are left out."""

    _steps: dict[int, Kernel]

    def specs(self, role: str, count: int) -> tuple[FftSpec, ...]:
        """Lines along x, y, z, or for the result along z, y, x; each in place."""
        (nz, ny, nx), half = self.tiling.points, self.tiling.half
        z, y, x = (count * lines for lines in self.lines(role))
        if role == KERNEL and self._short:
            z = 0
        complex_lines = [FftSpec.lines("c2c", n, lines, n, n) for n, lines in ((nz, z), (ny, y)) if lines]
        if role == RESULT:
            return (*complex_lines, FftSpec.lines("c2r", nx, x, half, 2 * half))
        return (FftSpec.lines("r2c", nx, x, 2 * half, half), *reversed(complex_lines))

    def held(self, role: str) -> tuple[int, int]:
        """Those of the image that the tile has, of the kernel, and of what is kept."""
        z, y, _ = self.tiling.axes
        return {INPUT: (z.loaded, y.loaded), KERNEL: self.layer.kernel[:2], RESULT: (z.kept, y.kept)}[role]

    def lines(self, role: str) -> tuple[int, int, int]:
        """Those that matter."""
        planes, rows = self.held(role)
        (nz, ny, _), half = self.tiling.points, self.tiling.half
        return (nz > 1) * half * ny, (ny > 1) * planes * half, planes * rows

    @property
    def _short(self) -> bool:
        """Whether the kernels' z transforms are sums."""
        return 1 < self.tiling.points[0] <= _MOST_POINTS and self.layer.kernel[0] <= _MOST_TAPS

    def flop(self, role: str) -> float:
        """See `Transforms.flop`; 8 for each plane but one of what is a sum."""
        if role != KERNEL or not self._short:
            return super().flop(role)
        padded = super().flop(role) - self.lines(role)[0] * 5 * self.tiling.points[0] * log2(self.tiling.points[0])
        return padded + 8.0 * (self.layer.kernel[0] - 1) * self.frequencies

    def moved_bytes(self, role: str) -> float:
        """See `Transforms.moved_bytes`; what is transposed between the axes is read and written once more."""
        z, y, x = self.elements(role)
        moved = 24.0 * x + 16.0 * y + 16.0 * z
        if y:
            moved += 8.0 * (x + y)
        if z:
            moved += 8.0 * ((y or x) + z)
        return moved - 16.0 * z if role == KERNEL and self._short else moved

    @property
    def _transposed(self) -> int:
        """Times that a tile is transposed, each from spectra to scratch or back."""
        return (self.tiling.points[0] > 1) + (self.tiling.points[1] > 1)

    def scratch_bytes(self, role: str, count: int) -> int:
        """See `Transforms.scratch_bytes`: the tiles as they are between the axes."""
        (_, ny, _), half = self.tiling.points, self.tiling.half
        planes, rows = self.held(role)
        return 8 * count * planes * half * (0, rows, ny)[self._transposed]

    def loads_to(self, spectra: DeviceArray, scratch: DeviceArray) -> DeviceArray:
        """See `Transforms.loads_to`: so that the last transposition ends in `spectra`."""
        return scratch if self._transposed % 2 else spectra

    def compile(self, device: Device) -> None:
        """See `Transforms.compile`."""
        super().compile(device)
        self._steps = {step: transposition(device, step) for step in {1, *self.layer.dilation[:2]}}
        if self._short:
            step = {"ROW_STEP": self.layer.dilation[0]} if self.layer.dilation[0] > 1 else {}
            self._kernels["transform_short_lines"] = device.kernel("fft_lines.cu", "transform_short_lines", step)

    def forward(
        self, stream: Stream, role: str, count: int, target: DeviceArray, scratch: DeviceArray, work: DeviceArray
    ) -> None:
        """See `Transforms.forward`."""
        (nz, ny, _), half = self.tiling.points, self.tiling.half
        planes, rows = self.held(role)
        offsets, steps = (0, 0), (1, 1)
        if role == INPUT:
            offsets = [axis.first for axis in self.tiling.axes[:2]]
        else:
            steps = self.layer.dilation[:2]
        plans = iter(self._plans_of[role, count])
        source, other = (scratch, target) if self._transposed % 2 else (target, scratch)
        self._run(stream, next(plans), source, work)
        if ny > 1:
            transpose(
                stream, self._steps[steps[1]], source, other, rows, half, places=ny, offset=offsets[1],
                matrices=count * planes, source_pitch=half, source_stride=rows * half, target_pitch=ny,
                target_stride=half * ny,
            )  # fmt: skip
            source, other = other, source
            self._run(stream, next(plans), source, work)
        if role == KERNEL and self._short:
            blocks = count * -(-(half * ny) // _SHORT_COLUMNS)
            sizes = map(np.int32, (planes, half * ny, nz))
            kernel = self._kernels["transform_short_lines"]
            stream.launch(kernel, (blocks, 1, 1), (_SHORT_THREADS, 1, 1), [source, other, *sizes])
        elif nz > 1:
            transpose(
                stream, self._steps[steps[0]], source, other, planes, half * ny, places=nz, offset=offsets[0],
                matrices=count, source_pitch=half * ny, source_stride=planes * half * ny, target_pitch=nz,
                target_stride=self.frequencies,
            )  # fmt: skip
            self._run(stream, next(plans), other, work)

    def inverse(self, stream: Stream, count: int, source: DeviceArray, scratch: DeviceArray, work: DeviceArray) -> None:
        """See `Transforms.inverse`."""
        (nz, ny, _), half = self.tiling.points, self.tiling.half
        planes, rows = self.held(RESULT)
        plans = iter(self._plans_of[RESULT, count])
        other = scratch
        if nz > 1:
            self._run(stream, next(plans), source, work, inverse=True)
            transpose(
                stream, self._steps[1], source, other, half * ny, planes, matrices=count, source_pitch=nz,
                source_stride=self.frequencies, target_pitch=half * ny, target_stride=planes * half * ny,
            )  # fmt: skip
            source, other = other, source
        if ny > 1:
            self._run(stream, next(plans), source, work, inverse=True)
            transpose(
                stream, self._steps[1], source, other, half, rows, matrices=count * planes, source_pitch=ny,
                source_stride=half * ny, target_pitch=half, target_stride=rows * half,
            )  # fmt: skip
            source = other
        self._run(stream, next(plans), source, work, inverse=True)
