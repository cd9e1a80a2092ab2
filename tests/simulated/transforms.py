"""Fourier transforms: SciPy's, in single precision, in the layouts that `FftSpec` describes."""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.fft

from znni.errors import DeviceError
from znni.gpu.device import DeviceArray, Fft, FftSpec

_GARBAGE = 0xFF


def _types(spec: FftSpec) -> tuple[np.dtype, np.dtype]:
    """Element types of input and output."""
    real, spectrum = np.dtype(np.float32), np.dtype(np.complex64)
    return {"r2c": (real, spectrum), "c2r": (spectrum, real), "c2c": (spectrum, spectrum)}[spec.kind]


def _sizes(spec: FftSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements along each axis of input and output."""
    half = (*spec.n[:-1], spec.n[-1] // 2 + 1)
    return (half if spec.kind == "c2r" else spec.n, half if spec.kind == "r2c" else spec.n)


def _strides(embed: tuple[int, ...], stride: int, distance: int) -> tuple[int, ...]:
    """Elements from transform to transform, and along each axis."""
    return (distance, *(stride * prod(embed[axis + 1 :]) for axis in range(len(embed))))


def work_bytes(spec: FftSpec) -> int:
    """Made up: as much as the result."""
    return 8 * spec.batch * prod(_sizes(spec)[1]) + 64


def check(spec: FftSpec) -> None:
    """`DeviceError` where no such transform could be."""
    if spec.kind not in ("r2c", "c2r", "c2c") or not 1 <= len(spec.n) <= 3:
        raise DeviceError(f"there is no transform {spec.kind!r} of {len(spec.n)} axes")
    if len(spec.in_embed) != len(spec.n) or len(spec.out_embed) != len(spec.n):
        raise DeviceError(f"embeds must have as many axes as the transform, got {spec}")
    if min(*spec.n, spec.batch, spec.in_stride, spec.out_stride) < 1:
        raise DeviceError(f"sizes and strides of a transform are at least 1, got {spec}")
    for size, embed in zip(_sizes(spec), (spec.in_embed, spec.out_embed), strict=True):
        if any(n > e for n, e in zip(size[1:], embed[1:], strict=True)):
            raise DeviceError(f"axes of {size} do not fit into {embed}: {spec}")


class SimulatedFft(Fft):
    """One prepared transform."""

    def __init__(self, device, spec: FftSpec):
        check(spec)
        self._device, self.spec, self.work_bytes = device, spec, work_bytes(spec)
        device.ffts.add(self)

    def free(self) -> None:
        self._device.ffts.discard(self)

    def run(
        self, stream, x: DeviceArray, out: DeviceArray, work: DeviceArray | None, inverse: bool = False
    ) -> None:
        self._device.check_usable()
        if self not in self._device.ffts:
            raise DeviceError("a transform was used after it was freed")
        if work is None or work.nbytes < self.work_bytes or work.pointer % 256:
            raise DeviceError(f"a transform was not given its {self.work_bytes} bytes to work in, got {work}")
        if self.spec.kind != "c2c" and inverse != (self.spec.kind == "c2r"):
            raise DeviceError(f"{self.spec.kind} goes one way only, got inverse={inverse}")
        self._views(x, out, work)
        stream.enqueue("fft", lambda: self._compute(x, out, work, inverse))

    def _views(self, x: DeviceArray, out: DeviceArray, work: DeviceArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The elements of input and output as (batch, axes), and the work area."""
        spec, views, spans = self.spec, [], []
        layouts = (
            _strides(spec.in_embed, spec.in_stride, spec.in_distance),
            _strides(spec.out_embed, spec.out_stride, spec.out_distance),
        )
        for array, dtype, size, strides in zip((x, out), _types(spec), _sizes(spec), layouts, strict=True):
            shape = (spec.batch, *size)
            need = (sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1) * dtype.itemsize
            if need > array.nbytes or array.pointer % dtype.itemsize:
                raise DeviceError(f"a transform needs {need} aligned bytes of an array of {array.nbytes}: {spec}")
            flat = self._device.memory.view(array, "a transform").reshape(-1).view(np.uint8)[: need].view(dtype)
            views.append(
                np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])
            )
            spans.append((array.pointer, array.pointer + need))
        spans.append((work.pointer, work.pointer + self.work_bytes))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            meet = spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]
            if meet and not (j == 1 and x.pointer == out.pointer and self._in_place(layouts)):
                raise DeviceError(f"input, output and work area of a transform overlap: {spec}")
        return *views, self._device.memory.view(work, "a transform").reshape(-1).view(np.uint8)

    def _in_place(self, layouts) -> bool:
        """Whether input and output of a transform in place lie alike."""
        spec = self.spec
        if spec.kind == "c2c":
            return layouts[0] == layouts[1]
        real, spectrum = layouts if spec.kind == "r2c" else layouts[::-1]
        # along the last axis both begin at the same place; along the others they must keep step
        return real[-1] == spectrum[-1] and all(r == 2 * s for r, s in zip(real[:-1], spectrum[:-1], strict=True))

    def _compute(self, x: DeviceArray, out: DeviceArray, work: DeviceArray, inverse: bool) -> None:
        values, results, scratch = self._views(x, out, work)
        axes = tuple(range(1, 1 + len(self.spec.n)))
        match self.spec.kind:
            case "r2c":
                made = scipy.fft.rfftn(values, axes=axes)
            case "c2r":
                made = scipy.fft.irfftn(values, s=self.spec.n, axes=axes, norm="forward")
                if x.pointer != out.pointer:
                    values[...] = np.nan  # it may overwrite its input, and so it does
            case _:
                made = scipy.fft.ifftn(values, axes=axes, norm="forward") if inverse else scipy.fft.fftn(values, axes=axes)
        assert made.dtype == results.dtype
        results[...] = made
        scratch[: self.work_bytes] = _GARBAGE
