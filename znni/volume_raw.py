"""Volumes whose voxels lie uncompressed in a file: NPY, and (opened by `znni.volume_tiff`) most TIFF stacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.lib import format as npy

from znni.errors import FormatError
from znni.volume_reader import Region, VolumeReader, to_float32

SCRATCH_BYTES = 1 << 20

#: Rows are read together with what lies between them where that is at most this many bytes: from the page cache, a
#: row of 100 voxels by itself took as long as the copying of a gap of 12 KiB.
GAP_BYTES = 8192


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` from byte `offset` of the file on; OSError where the file ends before."""
    while view:
        got = os.preadv(fd, [view], offset)
        if not got:
            raise OSError(f"the file ends at byte {offset}, {len(view)} bytes early")
        view, offset = view[got:], offset + got


class RawVolume(VolumeReader):
    """A volume of planes at known offsets, read through a buffer of `SCRATCH_BYTES`.

    Parameters
    ----------
    path : str
    shape : 3 or 4 ints
    dtype : numpy.dtype
        As stored, byte order included.
    offsets : sequence of int
        The byte at which each plane starts: one per channel and z, or per x where `fortran`.
    fortran : bool
        The first axis runs fastest in the file: planes are (y, z, channel) for each x.

    Raises
    ------
    FormatError
        Values or a shape that are no volume, or a file that ends before its last plane.
    """

    _fd = -1

    def __init__(self, path: str, shape: Sequence[int], dtype: np.dtype, offsets: Sequence[int], fortran: bool = False):
        super().__init__(path, shape, dtype)
        self.block = (self.shape[1], 1, 1) if fortran else (1, 1, self.shape[3])
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._offsets, self._fortran = np.asarray(offsets, np.int64), fortran
            channels, z, y, x = self.shape
            self._columns = z * channels if fortran else x
            plane_bytes = y * self._columns * self.dtype.itemsize
            need, have = int(self._offsets.max()) + plane_bytes, os.fstat(self._fd).st_size
            if need > have:
                raise FormatError(f"{path} is cut short: its voxels need {need} bytes, the file has {have}")
            self._scratch = np.empty(SCRATCH_BYTES // self.dtype.itemsize, self.dtype)
            self._scratch_bytes = memoryview(self._scratch.view(np.uint8))
        except BaseException:
            self.close()
            raise

    @property
    def buffer_bytes(self) -> int:
        """The scratch buffer and the table of offsets."""
        return self._scratch.nbytes + self._offsets.nbytes

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, region: Region, out: np.ndarray) -> None:
        channels, z_size = self.shape[:2]
        zs, ys, xs = region
        if self._fortran:
            at_once = max(1, self._scratch.size // channels)
            for z in range(zs.start, zs.stop, at_once):
                stop = min(z + at_once, zs.stop)
                part = out[:, z - zs.start : stop - zs.start]
                for i, x in enumerate(range(xs.start, xs.stop)):
                    self._read_rows(x, ys, slice(z * channels, stop * channels), part[..., i].transpose(2, 1, 0))
            return
        for x in range(xs.start, xs.stop, self._scratch.size):
            stop = min(x + self._scratch.size, xs.stop)
            part = out[..., x - xs.start : stop - xs.start]
            for channel in range(channels):
                for i, z in enumerate(range(zs.start, zs.stop)):
                    self._read_rows(channel * z_size + z, ys, slice(x, stop), part[channel, i])

    def _read_rows(self, plane: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """Part of a plane into float32 `out` (rows, ...); `columns` are at most what the scratch buffer holds."""
        item, room, width = self.dtype.itemsize, self._scratch.size, columns.stop - columns.start
        together = (self._columns - width) * item <= GAP_BYTES and self._columns <= room
        pitch = self._columns if together else width
        at_once = room // pitch
        for first in range(rows.start, rows.stop, at_once):
            count = min(at_once, rows.stop - first)
            offset = int(self._offsets[plane]) + (first * self._columns + columns.start) * item
            if together:
                read_exactly(self._fd, self._scratch_bytes[: ((count - 1) * pitch + width) * item], offset)
            else:
                for row in range(count):
                    row_bytes = self._scratch_bytes[row * width * item : (row + 1) * width * item]
                    read_exactly(self._fd, row_bytes, offset + row * self._columns * item)
            block = out[first - rows.start : first - rows.start + count]
            to_float32(self._scratch[: count * pitch].reshape(count, pitch)[:, :width].reshape(block.shape), block)


def open_npy(path: str) -> RawVolume:
    """Open an NPY file of 3 axes (z, y, x) or 4 (channel, z, y, x), in C or Fortran order."""
    with open(path, "rb") as file:
        try:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(file)
        except Exception as error:  # a damaged header may make NumPy's parser raise anything
            raise FormatError(f"{path} is not a readable NPY file: {error}") from error
        start = file.tell()
    if len(shape) not in (3, 4) or dtype.kind not in "buif":
        return RawVolume(path, shape, dtype, (), fortran)  # which says what is wrong with it
    planes = shape[-1] if fortran else prod(shape[:-2])
    plane_bytes = prod(shape[:-1] if fortran else shape[-2:]) * dtype.itemsize
    need, have = start + planes * plane_bytes, os.stat(path).st_size
    if need > have:
        raise FormatError(f"{path} is cut short: its header asks for {need} bytes, the file has {have}")
    return RawVolume(path, shape, dtype, start + np.arange(planes) * plane_bytes, fortran)
