"""Transpositions of complex matrices on the device (``cu/fft_lines.cu``)."""

from __future__ import annotations

import numpy as np

from znni.gpu.device import Device, DeviceArray, Kernel, Stream

_TILE, _TILE_ROWS = 32, 8


def transposition(device: Device, row_step: int = 1) -> Kernel:
    """The kernel that `transpose` launches; rows become every `row_step`-th element of the target's."""
    return device.kernel("fft_lines.cu", "transpose_lines", {"ROW_STEP": row_step} if row_step > 1 else {})


def transpose(
    stream: Stream,
    kernel: Kernel,
    source: DeviceArray,
    target: DeviceArray,
    rows: int,
    columns: int,
    *,
    source_pitch: int,
    target_pitch: int,
    matrices: int = 1,
    source_stride: int = 0,
    target_stride: int = 0,
    places: int | None = None,
    offset: int = 0,
    conjugate: bool = False,
) -> None:
    """Transpose matrices of complex64, ``rows`` x ``columns`` each.

    Parameters
    ----------
    source_pitch, target_pitch, source_stride, target_stride : int
        Elements from row to row, and from matrix to matrix.
    places, offset : int
        Elements that are written of each row of a target, and which of them the first row of the source becomes; the others
        are zero. `places` are `rows` where they are not given.
    """
    places = rows if places is None else places
    blocks = matrices * -(-places // _TILE) * -(-columns // _TILE)
    pitches = map(np.int64, (source_pitch, source_stride))
    target_pitches = map(np.int64, (target_pitch, target_stride))
    sizes = map(np.int32, (rows, columns, places, offset))
    arguments = [source, *pitches, target, *target_pitches, *sizes, np.float32(-1 if conjugate else 1)]
    stream.launch(kernel, (blocks, 1, 1), (_TILE, _TILE_ROWS, 1), arguments)
