"""Spectra of tiles and of kernels on the device, and what is stored of the tiles that come back (``cu/fft_tiles.cu``).

`Transforms` is what the FFT convolutions ask for; `BlockTransforms` transforms tiles as a whole, by cuFFT's 3D transforms in
place. `znni.gpu.fft_lines` is the other way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from math import log2, prod

import numpy as np

from znni.gpu.current import current
from znni.gpu.device import Device, DeviceArray, Fft, FftSpec, Kernel, Stream
from znni.gpu.fft_tiling import Tiling
from znni.layers import Conv, Shape

#: What is transformed: tiles of the input, kernels, and tiles of the result (those backward).
INPUT, KERNEL, RESULT = "input", "kernel", "result"

_BLOCK_THREADS = 256
#: Elements that a thread of the kernels moves at most, where a plane has as many.
_ELEMENTS_EACH = 8


def runs(count: int, most: int) -> Iterator[tuple[int, int]]:
    """``range(count)`` in as few runs of at most `most` as there can be, nearly equal ones: (first, length) of each."""
    length = -(-count // -(-count // max(1, min(most, count))))
    for first in range(0, count, length):
        yield first, min(length, count - first)


def _planes_launch(items: int, planes: int, rows: int, points: int) -> tuple[tuple, tuple, np.int32]:
    """Grid, block and rows to a block for kernels that go over planes."""
    width = next((w for w in (8, 16) if points <= w), 32)
    height = _BLOCK_THREADS // width
    rows_each = height * max(1, _ELEMENTS_EACH // -(-points // width))
    return (items * planes, -(-rows // rows_each), 1), (width, height, 1), np.int32(rows_each)


def _ints(*values: int) -> list[np.int32]:
    return [np.int32(v) for v in values]


class Transforms(ABC):
    """Of all that a layer on an input of `shape` has, cut as `tiling` says.

    *Items* are what is transformed: channel i % C of tile i // C, where a tile has C channels; kernels (out, in) in their
    order. Spectra are `frequencies` complex64 each, in an order that is the transforms' own.
    """

    def __init__(self, layer: Conv, shape: Shape, tiling: Tiling):
        self.layer, self.shape, self.tiling = layer, shape, tiling
        self.out_shape = layer.output_shape(shape)
        self.frequencies = tiling.frequencies
        self._plans: dict[FftSpec, Fft] = {}
        self._plans_of: dict[tuple[str, int], list[Fft]] = {}
        self._kernels: dict[str, Kernel] = {}

    @abstractmethod
    def specs(self, role: str, count: int) -> tuple[FftSpec, ...]:
        """The transforms of so many items, in the order in which they are done."""

    @abstractmethod
    def held(self, role: str) -> tuple[int, int]:
        """Planes and rows of an item as it is loaded, or before it is stored."""

    @abstractmethod
    def lines(self, role: str) -> tuple[int, int, int]:
        """Lines of an item that are transformed along z, y, x."""

    @abstractmethod
    def forward(
        self, stream: Stream, role: str, count: int, target: DeviceArray, scratch: DeviceArray, work: DeviceArray
    ) -> None:
        """Spectra in `target` of what was loaded to where `loads_to` says."""

    @abstractmethod
    def inverse(self, stream: Stream, count: int, source: DeviceArray, scratch: DeviceArray, work: DeviceArray) -> None:
        """Tiles of the result, where `loads_to` says, of their spectra in `source`, which are lost."""

    def scratch_bytes(self, role: str, count: int) -> int:
        """Bytes that transforming so many items takes beside their spectra and cuFFT's work area."""
        return 0

    def loads_to(self, spectra: DeviceArray, scratch: DeviceArray) -> DeviceArray:
        """Where items lie before they are transformed forward, and after they were backward."""
        return spectra

    def work_bytes(self, role: str, count: int) -> int:
        """Bytes of cuFFT's work area for so many items."""
        return max((current().fft_work_bytes(spec) for spec in self.specs(role, count)), default=0)

    def compile(self, device: Device) -> None:
        """Get the kernels."""
        for name in ("gather_tiles", "place_kernels"):
            self._kernels[name] = device.kernel("fft_tiles.cu", name)
        code = {"ACTIVATION": self.layer.activation.code}
        self._kernels["store_tiles"] = device.kernel("fft_tiles.cu", "store_tiles", code)

    def plan(self, device: Device, groups: Iterable[tuple[str, int]]) -> None:
        """Make cuFFT's plans for so many items of each role."""
        for role, count in groups:
            specs = self.specs(role, count)
            for spec in specs:
                if spec not in self._plans:
                    self._plans[spec] = device.fft(spec)
            self._plans_of[role, count] = [self._plans[spec] for spec in specs]

    def free(self) -> None:
        """Give the plans back."""
        self._plans_of.clear()
        while self._plans:
            self._plans.popitem()[1].free()

    def load_inputs(
        self,
        stream: Stream,
        x: DeviceArray,
        first_tile: int,
        first: int,
        count: int,
        spectra: DeviceArray,
        scratch: DeviceArray,
        work: DeviceArray,
    ) -> None:
        """Spectra of `count` items from item `first` on, counted from tile `first_tile` on."""
        planes, rows = self.held(INPUT)
        axes = self.tiling.axes
        grid, block, rows_each = _planes_launch(count, planes, rows, axes[2].points)
        whole_rows = (self._first_held(axes[0], planes), self._first_held(axes[1], rows), 0)
        arguments = [
            x,
            self.loads_to(spectra, scratch),
            *_ints(first, first_tile, self.shape[1], *self.shape[2:]),
            *_ints(*(axis.tiles for axis in axes), *(axis.step for axis in axes)),
            *_ints(*(begin - axis.padding for begin, axis in zip(whole_rows, axes, strict=True))),
            *_ints(planes, rows, axes[2].points, 2 * self.tiling.half),
            rows_each,
        ]
        stream.launch(self._kernels["gather_tiles"], grid, block, arguments)
        self.forward(stream, INPUT, count, spectra, scratch, work)

    @staticmethod
    def _first_held(axis, held: int) -> int:
        return 0 if held == axis.points else axis.first

    def load_kernels(
        self,
        stream: Stream,
        weight: DeviceArray,
        first: int,
        count: int,
        spectra: DeviceArray,
        scratch: DeviceArray,
        work: DeviceArray,
    ) -> None:
        """Spectra of `count` kernels from kernel `first` on."""
        planes, rows = self.held(KERNEL)
        points = self.tiling.points
        apart = [d if held == n else 1 for d, held, n in zip(self.layer.dilation, (planes, rows), points, strict=False)]
        grid, block, rows_each = _planes_launch(count, planes, rows, points[2])
        arguments = [
            weight,
            self.loads_to(spectra, scratch),
            *_ints(first, *self.layer.kernel, *apart, self.layer.dilation[2]),
            *_ints(planes, rows, points[2], 2 * self.tiling.half),
            rows_each,
        ]
        stream.launch(self._kernels["place_kernels"], grid, block, arguments)
        self.forward(stream, KERNEL, count, spectra, scratch, work)

    def store_results(
        self,
        stream: Stream,
        spectra: DeviceArray,
        bias: DeviceArray,
        out: DeviceArray,
        first_tile: int,
        first: int,
        count: int,
        channels: range,
        scratch: DeviceArray,
        work: DeviceArray,
    ) -> None:
        """Store of the tiles whose `spectra` these are what they give, with bias and activation; spectra are lost.

        `channels` are the output channels that items belong to.
        """
        self.inverse(stream, count, spectra, scratch, work)
        axes, activation = self.tiling.axes, self.layer.activation
        grid, block, rows_each = _planes_launch(count, *(axis.kept for axis in axes))
        arguments = [
            self.loads_to(spectra, scratch),
            bias,
            out,
            *_ints(first, first_tile, len(channels), channels.start, self.out_shape[1], *self.out_shape[2:]),
            *_ints(*(axis.tiles for axis in axes), *(axis.step for axis in axes)),
            *_ints(*self.held(RESULT), 2 * self.tiling.half),
            rows_each,
            np.float32(1 / prod(self.tiling.points)),
            np.float32(activation.a),
            np.float32(activation.b),
        ]
        stream.launch(self._kernels["store_tiles"], grid, block, arguments)

    def flop(self, role: str) -> float:
        """Of an item: 5 n log2 n a complex line, half of that a real one."""
        each = (5 * n * log2(n) * share for n, share in zip(self.tiling.points, (1, 1, 0.5), strict=True))
        return sum(lines * flop for lines, flop in zip(self.lines(role), each, strict=True))

    def elements(self, role: str) -> tuple[int, int, int]:
        """Complex numbers of an item on the lines along z, y, x; none where there is nothing to transform."""
        points = (*self.tiling.points[:2], self.tiling.half)
        return tuple(lines * n for lines, n in zip(self.lines(role), points, strict=True))

    def moved_bytes(self, role: str) -> float:
        """Of an item: written or read as real numbers, then read and written once an axis."""
        z, y, x = self.elements(role)
        return 24.0 * x + 16.0 * y + 16.0 * z

    def _run(self, stream: Stream, plan: Fft, array: DeviceArray, work: DeviceArray, inverse: bool = False) -> None:
        """In place."""
        spec = plan.spec
        elements = spec.batch * (spec.out_distance if spec.kind == "r2c" else spec.in_distance)
        spectrum = array.view(np.complex64, (elements,))
        real = array.view(np.float32, (2 * elements,))
        x, out = {"r2c": (real, spectrum), "c2r": (spectrum, real), "c2c": (spectrum, spectrum)}[spec.kind]
        plan.run(stream, x, out, work if plan.work_bytes else None, inverse)


class BlockTransforms(Transforms):
    """Transforms of whole tiles. Axes of one point are left out."""

    def specs(self, role: str, count: int) -> tuple[FftSpec, ...]:
        """One batch of 3D transforms in place."""
        *rest, last = self.tiling.points
        n = (*(m for m in rest if m > 1), last)
        real = ((*n[:-1], 2 * self.tiling.half), 1, 2 * self.frequencies)
        spectrum = ((*n[:-1], self.tiling.half), 1, self.frequencies)
        if role == RESULT:
            return (FftSpec("c2r", n, count, *spectrum, *real),)
        return (FftSpec("r2c", n, count, *real, *spectrum),)

    def held(self, role: str) -> tuple[int, int]:
        """All of them."""
        return self.tiling.points[:2]

    def lines(self, role: str) -> tuple[int, int, int]:
        """All of them."""
        z, y, _ = self.tiling.points
        return (z > 1) * y * self.tiling.half, (y > 1) * z * self.tiling.half, z * y

    def forward(self, stream, role, count, target, scratch, work) -> None:
        """See `Transforms.forward`."""
        self._run(stream, self._plans_of[role, count][0], target, work)

    def inverse(self, stream, count, source, scratch, work) -> None:
        """See `Transforms.inverse`."""
        self._run(stream, self._plans_of[RESULT, count][0], source, work, inverse=True)
