"""TIFF stacks, a page for each z-slice: uncompressed ones read by offset, others decoded by strip or tile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError, ZnniError
from znni.layers import by_x
from znni.volume_raw import RawVolume, read_exactly
from znni.volume_reader import Region, VolumeReader, to_float32

if TYPE_CHECKING:
    import tifffile

#: Copies of a strip or tile that are alive at once while it is decoded: the bytes unpacked, the values in the machine's
#: byte order, and the one decoded before.
DECODED_COPIES = 3


class SegmentedTiff(VolumeReader):
    """A TIFF stack that must be decoded, a strip or tile at a time; the last one decoded is kept.

    Takes over `file`, and closes it when this constructor fails.
    """

    _fd = -1

    def __init__(self, path: str, file: tifffile.TiffFile, shape: Sequence[int], pages: Sequence):
        self._file, keyframe = file, pages[0].keyframe
        try:
            super().__init__(path, shape, keyframe.dtype)
            length, width = keyframe.imagelength, keyframe.imagewidth
            tile = (keyframe.tilelength, keyframe.tilewidth) if keyframe.is_tiled else (keyframe.rowsperstrip, width)
            self.block = (1, min(tile[0], length), tile[1])
            self._across = ceil(width / tile[1])
            segments = ceil(length / tile[0]) * self._across
            if any(page.keyframe.hash != keyframe.hash for page in pages):
                raise FormatError(f"the pages of {path} are stored in several ways; save it again as a plain stack")
            if any(len(page.dataoffsets) != segments or len(page.databytecounts) != segments for page in pages):
                raise FormatError(f"{path} is damaged: expected {segments} strips or tiles in each of its pages")
            self._offsets = np.array([page.dataoffsets for page in pages], np.int64)
            self._counts = np.array([page.databytecounts for page in pages], np.int64)
            self._decode, self._nodata = keyframe.decode, keyframe.nodata
            self._tables = {"jpegtables": keyframe.jpegtables, "jpegheader": keyframe.jpegheader}
            self._segment_bytes = tile[0] * tile[1] * self.dtype.itemsize
            self._last: tuple[tuple[int, int], np.ndarray] | None = None
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            need, have = int(np.where(self._counts, self._offsets + self._counts, 0).max()), os.fstat(self._fd).st_size
            if need > have:
                raise FormatError(f"{path} is cut short: its pages need {need} bytes, the file has {have}")
            try:
                self._decoded(0, 0)
            except Exception as error:  # codecs have their own
                raise FormatError(
                    f"{path} cannot be decoded: {error}; save it uncompressed, or install what is missing "
                    f"(pip install imagecodecs)"
                ) from error
        except BaseException:
            self.close()
            raise

    @property
    def buffer_bytes(self) -> int:
        """Strips or tiles while they are decoded, the largest as compressed, and the tables of where they are."""
        tables = self._offsets.nbytes + self._counts.nbytes
        return DECODED_COPIES * self._segment_bytes + int(self._counts.max()) + tables

    def close(self) -> None:
        """Close the file."""
        self._last = None
        self._file.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _decoded(self, page: int, segment: int) -> np.ndarray | None:
        """A strip or tile as (y, x), cropped to the image; None where the file leaves it out."""
        if self._last is None or self._last[0] != (page, segment):
            self._last = None
            count = int(self._counts[page, segment])
            if not count:
                return None
            data = bytearray(count)
            read_exactly(self._fd, memoryview(data), int(self._offsets[page, segment]))
            values = self._decode(bytes(data), segment, **self._tables)[0]
            self._last = (page, segment), values[0, :, :, 0]
        return self._last[1]

    def _read(self, region: Region, out: np.ndarray) -> None:
        zs, ys, xs = region
        _, height, width = self.block
        for channel in range(self.shape[0]):
            for z in range(zs.start, zs.stop):
                plane = out[channel, z - zs.start]
                for row in range(ys.start // height, ceil(ys.stop / height)):
                    top, bottom = max(ys.start, row * height), min(ys.stop, (row + 1) * height)
                    for column in range(xs.start // width, ceil(xs.stop / width)):
                        left, right = max(xs.start, column * width), min(xs.stop, (column + 1) * width)
                        part = plane[top - ys.start : bottom - ys.start, left - xs.start : right - xs.start]
                        values = self._decoded(channel * self.shape[1] + z, row * self._across + column)
                        if values is None:
                            part[...] = self._nodata
                            continue
                        rows = slice(top - row * height, bottom - row * height)
                        to_float32(values[rows, left - column * width : right - column * width], part)


def _stack(path: str, file: tifffile.TiffFile) -> tuple[tuple[int, ...], list, bool]:
    """Shape (z, y, x) or (channel, z, y, x) of the stack in a file, its pages, and whether z comes before channel."""
    series, expected = file.series, "expected a stack of grey z-slices, a page each"
    first = series[0]
    axes, shape = first.get_axes(False), first.get_shape(False)
    kept = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YXS"]
    size = dict(zip(axes, shape, strict=True))
    if size.get("S", 1) > 1:
        raise FormatError(f"{path} is a colour image ({by_x(first.shape)}, axes {first.axes}); {expected}")
    if len(series) > 1:
        if any(s.shape != first.shape or s.dtype != first.dtype or s.axes != "YX" for s in series):
            sizes = ", ".join(sorted({by_x(s.shape) for s in series}))
            raise FormatError(f"{path} holds {len(series)} images ({sizes}); {expected}, all of one size and type")
        return (len(series), *first.shape), [s.pages[0] for s in series], False
    if not (first.kind == "shaped" and len(kept) <= 2):
        kept = [(axis, n) for axis, n in kept if n > 1]
    names, plane = "".join(axis for axis, _ in kept), (size.get("Y", 1), size.get("X", 1))
    if not kept:
        raise FormatError(
            f"{path} is a two-dimensional image ({by_x(plane)}); {expected}, "
            f"or a single slice as .npy of shape 1x{by_x(plane)}"
        )
    if len(kept) > 2 or (len(kept) == 2 and "T" in names) or "YX" not in axes:
        raise FormatError(f"{path} has axes {first.axes} ({by_x(first.shape)}); {expected}, or channels of such stacks")
    return (*(n for _, n in kept), *plane), list(first.pages), names == "ZC"


def open_tiff(path: str) -> VolumeReader:
    """Open a TIFF stack: z pages, or channels of z pages (ImageJ and OME axes in either order).

    A single leading axis, whatever its name, is z: writers call it time or channel. Pages written one by one are a
    stack too.

    Raises
    ------
    FormatError
        No TIFF; a colour or two-dimensional image; pages of several sizes; a time series; or a compression that cannot
        be decoded here.
    """
    try:
        import tifffile
    except ImportError as error:
        raise FormatError(f"reading {path} needs tifffile; install it with pip install 'znni[volumes]'") from error
    file = reader = None
    try:
        file = tifffile.TiffFile(path)
        reader = _open(path, file)
    except ZnniError:
        raise
    except Exception as error:  # a damaged header may make tifffile raise anything
        raise FormatError(f"{path} is not a readable TIFF file: {error}") from error
    finally:
        if file is not None and not isinstance(reader, SegmentedTiff):
            file.close()
    return reader


def _open(path: str, file: tifffile.TiffFile) -> VolumeReader:
    shape, pages, z_first = _stack(path, file)
    series = file.series[0]
    if series.keyframe.dtype is None or series.transform is not None:
        raise FormatError(f"{path} holds values that znni does not read; expected integers or floats")
    planes, dtype = int(np.prod(shape[:-2])), series.dtype.newbyteorder(file.byteorder)
    order = np.arange(planes)
    if z_first:
        order = order.reshape(shape[:2]).T.ravel()
        shape = (shape[1], shape[0], *shape[2:])
    if len(file.series) == 1 and not series.is_multifile and series.dataoffset is not None:
        # also ImageJ stacks over 4 GB, which have a single page
        return RawVolume(path, shape, dtype, series.dataoffset + order * (shape[-2] * shape[-1] * dtype.itemsize))
    if len(pages) != planes or any(page is None or page.parent is not file for page in pages):
        raise FormatError(
            f"{path} does not hold a page for each of its {planes} z-slices; save it again as a plain stack, "
            f"such as tifffile.imwrite writes"
        )
    pages = [pages[i] for i in order]
    if all(page.is_final for page in pages):
        return RawVolume(path, shape, dtype, [page.dataoffsets[0] for page in pages])
    return SegmentedTiff(path, file, shape, pages)
