"""The result of a run as a file: written beside its place, moved there when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from znni.errors import FormatError, InvalidShape, RunFailed, ZnniError
from znni.layers import by_x
from znni.volume_hdf5 import lay_out_hdf5
from znni.volume_reader import Region, region_shape

HDF5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npy", *HDF5_SUFFIXES)

#: Rows whose voxels do not lie side by side in memory are gathered through a buffer of this size.
GATHER_BYTES = 1 << 20

#: More than the bytes before the voxels of an HDF5 file.
HDF5_HEADER_BYTES = 4096

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Where `path` leads, links followed, once it is certain that a result may be put there.

    Raises
    ------
    ZnniError
        A suffix that is neither ``.npy`` nor ``.h5``, a folder that does not exist, a file that does (unless
        `overwrite`), or something that is no file.
    """
    target = Path(os.path.realpath(path))
    if Path(path).suffix.lower() not in SUFFIXES:
        raise FormatError(f"cannot tell the format of the output {path}: expected a name that ends in .npy or .h5")
    try:
        if not target.parent.is_dir():
            raise ZnniError(f"the folder {target.parent} of the output {path} does not exist; make it first")
        if target.is_dir():
            raise ZnniError(f"the output {path} is a folder; give the name of a file in it")
        if target.exists():
            if not target.is_file():
                raise ZnniError(f"the output {path} is no ordinary file; give another name")
            if not overwrite:
                raise ZnniError(
                    f"the output {path} exists; give another name, or --overwrite (overwrite=True) to replace it"
                )
    except OSError as error:
        raise ZnniError(f"cannot write the output {path}: {error.strerror}") from error
    return target


class VolumeWriter:
    """A float32 volume (channel, z, y, x) that becomes the file `path` when it is committed.

    Until then it is a file of another name in the same folder, which goes when the writer is closed uncommitted; a file
    that was at `path` stays as it was. The disk space is taken at once where the file system can. As a context manager
    it throws away what was not committed.

    Parameters
    ----------
    path : path
        ``.npy``, or ``.h5`` (or ``.hdf5``) with a dataset ``main``.
    shape : (channels, z, y, x)
    overwrite : bool
        Whether a file at `path` may be replaced.

    Raises
    ------
    ZnniError
        The file cannot be created (`check_target`).
    RunFailed
        The disk has no room for it.
    """

    def __init__(self, path: str | os.PathLike, shape: Sequence[int], *, overwrite: bool = False):
        self.path, self.shape = str(path), tuple(int(n) for n in shape)
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise InvalidShape(f"an output volume is (channel, z, y, x), got {by_x(self.shape)}")
        self._target, self._overwrite = check_target(path, overwrite), overwrite
        self._temporary = self._target.with_name(f".znni-{os.getpid()}-{secrets.token_hex(4)}.partial")
        self._suffix, self._fd = Path(path).suffix.lower(), -1
        try:
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ZnniError(f"cannot create the output {path}: {error.strerror}") from error
        try:
            self._start = self._lay_out()
            self._take_space(self._start)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels."""
        return prod(self.shape) * 4

    @property
    def buffer_bytes(self) -> int:
        """The most memory that `write` takes."""
        return GATHER_BYTES

    def _lay_out(self) -> int:
        if self._suffix in HDF5_SUFFIXES:
            self._take_space(HDF5_HEADER_BYTES)  # HDF5 itself does not recover from a disk that turns out to be full
            try:
                return lay_out_hdf5(str(self._temporary), self.shape)
            except RuntimeError as error:
                raise OSError(errno.EIO, str(error)) from error
        header = BytesIO()
        description = npy.dtype_to_descr(np.dtype(np.float32))
        npy.write_array_header_1_0(header, {"descr": description, "fortran_order": False, "shape": self.shape})
        self._write_at(np.frombuffer(header.getvalue(), np.uint8), 0)
        return header.tell()

    def _take_space(self, start: int) -> None:
        try:
            os.posix_fallocate(self._fd, start, self.voxel_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(self._fd, start + self.voxel_bytes)  # all that this file system can promise

    def _failed(self, error: OSError) -> RunFailed:
        message = (
            f"could not write the output {self.path}: {error.strerror or error}; it needs {self.voxel_bytes} bytes"
        )
        if error.errno in DISK_FULL:
            try:
                free = os.statvfs(self._target.parent)
                message += (
                    f" and {free.f_bavail * free.f_frsize} are free there; free some space, or give another folder"
                )
            except OSError:
                message += "; free some space, or give another folder"
        return RunFailed(message)

    def _write_at(self, data: np.ndarray, offset: int) -> None:
        done = os.pwrite(self._fd, data, offset)
        while done < data.nbytes:  # interrupted, or on its way to a full disk
            done += os.pwrite(self._fd, data.data.cast("B")[done:], offset + done)

    def write(self, region: Region, block: np.ndarray) -> None:
        """Write `block` (channels, z, y, x) of float32, any strides, at `region` (z, y, x).

        Raises
        ------
        InvalidShape
            A block that does not fit the region, or a region outside the volume.
        RunFailed
            The disk is full or failing.
        """
        inside = all(0 <= s.start < s.stop <= n for s, n in zip(region, self.shape[1:], strict=True))
        if not inside or block.shape != (self.shape[0], *region_shape(region)) or block.dtype != np.float32:
            where = ", ".join(f"{s.start}:{s.stop}" for s in region)
            raise InvalidShape(
                f"cannot write {block.dtype} of shape {by_x(block.shape)} at [{where}] of the output {by_x(self.shape)}"
            )
        try:
            self._write_rows(region, block)
        except OSError as error:
            raise self._failed(error) from error

    def _write_rows(self, region: Region, block: np.ndarray) -> None:
        _, z_size, y_size, x_size = self.shape
        zs, ys, xs = region
        width, pitch = xs.stop - xs.start, x_size * 4
        at_once = width if block.strides[3] == 4 else min(width, GATHER_BYTES // 4)
        for channel in range(self.shape[0]):
            for i, z in enumerate(range(zs.start, zs.stop)):
                plane = block[channel, i]
                start = self._start + (((channel * z_size + z) * y_size + ys.start) * x_size + xs.start) * 4
                if width == x_size and plane.flags.c_contiguous:
                    self._write_at(plane, start)
                    continue
                for offset, values in zip(range(start, start + len(plane) * pitch, pitch), plane, strict=True):
                    if at_once == width:
                        self._write_at(np.ascontiguousarray(values), offset)
                        continue
                    for x in range(0, width, at_once):
                        self._write_at(np.ascontiguousarray(values[x : x + at_once]), offset + x * 4)

    def commit(self) -> None:
        """Put the file in its place, flushed to the disk; `RunFailed` where that cannot be done."""
        try:
            os.fsync(self._fd)
            if self._overwrite:
                os.replace(self._temporary, self._target)
            else:
                self._move_without_replacing()
        except FileExistsError as error:
            os.close(self._fd)
            self._fd = -1
            raise RunFailed(
                f"the output {self.path} appeared during the run and is left alone; the result is in {self._temporary}"
            ) from error
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self.close()
        with suppress(OSError):  # the file is complete and in its place; some file systems flush no folders
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _move_without_replacing(self) -> None:
        try:
            os.link(self._temporary, self._target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if self._target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            os.rename(self._temporary, self._target)

    def close(self) -> None:
        """Close the file; what was not committed is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VolumeWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
