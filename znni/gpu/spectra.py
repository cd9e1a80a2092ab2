"""Products of spectra on the device: of each frequency, a matrix of images by a matrix of kernels, over input channels.

``cgemm``
    cuBLAS multiplies matrices of each frequency: spectra are transposed to ``[frequency][image][channel]`` and back.
``lines``
    A kernel of our own (``cu/spectra.cu``) multiplies them as they lie, ``[image][channel][frequency]``: nothing is
    transposed, and kernels are read once for a few images. For small batches.
"""

from __future__ import annotations

import numpy as np

from znni.gpu.device import BlasSpec, Device, DeviceArray, Kernel, Stream
from znni.gpu.transpositions import transpose, transposition

CGEMM, LINES = "cgemm", "lines"
FORMS = (CGEMM, LINES)
BYTES = 8

#: Threads of ``multiply_spectra``.
_THREADS = 128


def sums_of(items: int, outputs: int) -> tuple[int, int]:
    """Items and outputs that a thread of ``multiply_spectra`` sums up."""
    rows = 1 if items == 1 else 2 if items == 2 else 4
    columns = next(n for n in (1, 2, 4, 8) if n >= min(outputs, 16 // rows, 8))
    return rows, columns


class Products:
    """``result[item][output] = sum over channels of input[item][channel] * conj(kernel[output][channel])``.

    Items, outputs and channels each have a spectrum of `frequencies` complex64.
    """

    def __init__(self, device: Device, form: str, channels: int, frequencies: int, tf32: bool):
        self.form, self.channels, self.frequencies, self.tf32 = form, channels, frequencies, tf32
        self._device = device
        self._kernels: dict[tuple[int, int], Kernel] = {}
        self._transposition = transposition(device) if form == CGEMM else None

    def compile(self, items: int, outputs: int) -> None:
        """Get what `multiply` needs for so many."""
        tile = sums_of(items, outputs)
        if self.form == LINES and tile not in self._kernels:
            defines = dict(zip(("ITEMS", "OUTPUTS"), tile, strict=True))
            self._kernels[tile] = self._device.kernel("spectra.cu", "multiply_spectra", defines)

    def collect(
        self,
        stream: Stream,
        spectra: DeviceArray,
        matrices: DeviceArray,
        first: int,
        count: int,
        columns: int,
        kernels: bool,
    ) -> None:
        """Make `count` spectra, those of `kernels` conjugated, the elements from `first` on of matrices of `columns`."""
        n = self.frequencies
        target = matrices.view(np.complex64, ((n - 1) * columns + count,), BYTES * first)
        transpose(
            stream, self._transposition, spectra, target, count, n, source_pitch=n, target_pitch=columns, conjugate=kernels
        )  # fmt: skip

    def spread(
        self, stream: Stream, matrices: DeviceArray, spectra: DeviceArray, first: int, count: int, columns: int
    ) -> None:
        """The other way."""
        n = self.frequencies
        source = matrices.view(np.complex64, ((n - 1) * columns + count,), BYTES * first)
        transpose(stream, self._transposition, source, spectra, n, count, source_pitch=columns, target_pitch=n)

    def multiply(
        self,
        stream: Stream,
        inputs: DeviceArray,
        kernels: DeviceArray,
        results: DeviceArray,
        items: int,
        outputs: range,
        kernels_of: range,
        work: DeviceArray,
    ) -> None:
        """The results of `outputs`, whose kernels are among those, of the outputs `kernels_of`, that `kernels` holds."""
        n, channels, skipped = self.frequencies, self.channels, outputs.start - kernels_of.start
        if self.form == LINES:
            tile = sums_of(items, len(outputs))
            blocks = -(-items // tile[0]) * -(-len(outputs) // tile[1]) * -(-n // _THREADS)
            wanted = kernels.view(np.complex64, (len(outputs), channels, n), BYTES * skipped * channels * n)
            sizes = map(np.int32, (items, channels, len(outputs), n))
            stream.launch(
                self._kernels[tile], (blocks, 1, 1), (_THREADS, 1, 1), [inputs, wanted, results, *sizes]
            )  # fmt: skip
            return
        columns, whole = len(outputs), len(kernels_of) * channels
        spec = BlasSpec(
            True, items, columns, channels, channels, channels, columns, items * channels, whole, items * columns, n,
            transpose_b=True, tf32=self.tf32,
        )  # fmt: skip
        wanted = kernels.view(np.complex64, ((n - 1) * whole + columns * channels,), BYTES * skipped * channels)
        self._device.blas(stream, spec, inputs, wanted, results, work)
