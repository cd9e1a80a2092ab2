"""What every reader of a volume offers, whatever the file: its shape, and regions of it as float32."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from znni.errors import FormatError, InvalidShape, RunFailed
from znni.layers import Triple, by_x

#: A box of voxels: slices along z, y and x with start and stop.
Region = tuple[slice, slice, slice]

#: What may be wrong with a file while it is decoded, as the libraries say it.
DECODE_ERRORS = (OSError, ValueError, RuntimeError, EOFError, LookupError, ArithmeticError, struct.error, zlib.error)


def region_shape(region: Region) -> Triple:
    """Voxels of a region along z, y and x."""
    return tuple(s.stop - s.start for s in region)


class VolumeReader(ABC):
    """A volume on disk, of which only the region asked for is ever in memory.

    Nothing is memory-mapped: mapped pages of a file count to the process's resident set.

    Attributes
    ----------
    path : str
        The file, as messages name it.
    shape : (channels, z, y, x)
    dtype : numpy.dtype
        Of the values as stored; `read` converts to float32.
    block : (z, y, x)
        How the file is laid out (rows, strips, tiles, chunks): regions that follow these blocks are read fastest.
    """

    block: Triple

    def __init__(self, path: str, shape: Sequence[int], dtype: np.dtype):
        self.path, self.dtype = path, np.dtype(dtype)
        if self.dtype.kind not in "buif" or self.dtype.itemsize > 8:
            raise FormatError(
                f"{path} holds {self.dtype} values; expected real numbers: integers or floats of up to 64 bits"
            )
        if len(shape) not in (3, 4):
            raise FormatError(
                f"{path} has {len(shape)} axes ({by_x(shape)}); expected 3 (z, y, x) or 4 (channel, z, y, x)"
            )
        if min(shape) < 1:
            raise FormatError(f"{path} is empty: its shape is {by_x(shape)}")
        self.shape: tuple[int, int, int, int] = tuple(int(n) for n in (*(1,) * (4 - len(shape)), *shape))

    @property
    @abstractmethod
    def buffer_bytes(self) -> int:
        """The most memory that the reader holds at any moment, beside what it is given to read into."""

    @abstractmethod
    def _read(self, region: Region, out: np.ndarray) -> None:
        """Fill `out` with `region`; both have been checked."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def read(self, region: Region, out: np.ndarray) -> None:
        """Read all channels of a region.

        Parameters
        ----------
        region : slices along z, y and x
            Within the volume, with start and stop.
        out : ndarray of float32 (channels, z, y, x)
            Filled; may be a view with any strides.

        Raises
        ------
        InvalidShape
            A region outside the volume, or an `out` of another shape or type.
        RunFailed
            The file cannot be read (any more), or is damaged there.
        """
        inside = all(0 <= s.start < s.stop <= n for s, n in zip(region, self.shape[1:], strict=True))
        if not inside or out.shape != (self.shape[0], *region_shape(region)) or out.dtype != np.float32:
            where = ", ".join(f"{s.start}:{s.stop}" for s in region)
            raise InvalidShape(
                f"cannot read [{where}] of {self.path} ({by_x(self.shape)}) into {out.dtype} of {by_x(out.shape)}; "
                f"expected a region within it and float32 (channel, z, y, x) of its size"
            )
        try:
            self._read(region, out)
        except DECODE_ERRORS as error:
            raise RunFailed(f"could not read {self.path}: {error}; the file may be damaged") from error

    def __enter__(self) -> VolumeReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Copy `values` of any real type to float32 `out`; what float32 cannot hold becomes infinite, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="unsafe")


def blocks(region: Region, block: Triple, most_voxels: int) -> Iterator[Region]:
    """Cut a region into boxes of at most `most_voxels`, between the file's blocks where that is possible.

    Boxes that share a block of the file follow one another, so that a reader need keep but one decoded.
    """
    size = region_shape(region)
    if size[0] * size[1] * size[2] <= max(1, most_voxels):
        yield region
        return
    cuts = []
    for s, b in zip(region, block, strict=True):
        first, last = s.start // b, (s.stop - 1) // b
        cuts.append((first + last + 1) // 2 * b if last > first else None)
    axis = next((a for a in range(3) if cuts[a] is not None), None)
    if axis is None:
        axis = next(a for a in range(3) if size[a] > 1)
        cuts[axis] = region[axis].start + size[axis] // 2
    for start, stop in ((region[axis].start, cuts[axis]), (cuts[axis], region[axis].stop)):
        yield from blocks((*region[:axis], slice(start, stop), *region[axis + 1 :]), block, most_voxels)
