"""Volumes as files: which reader opens a path, which writer makes one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from znni.errors import FormatError
from znni.volume_hdf5 import Hdf5Volume
from znni.volume_raw import open_npy
from znni.volume_reader import VolumeReader
from znni.volume_tiff import open_tiff
from znni.volume_writer import VolumeWriter, check_target

__all__ = ["VolumeReader", "VolumeWriter", "check_target", "create_volume", "open_volume"]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _split_dataset(path: str) -> tuple[str, str | None]:
    """``file.h5:dataset`` as its two parts; a path that exists is taken as it is."""
    file, colon, dataset = path.rpartition(":")
    if colon and dataset and not os.path.exists(path) and os.path.exists(file):
        return file, dataset
    return path, None


def open_volume(path: str | os.PathLike) -> VolumeReader:
    """Open a volume for reading, whatever its format (told by its first bytes, not its name).

    Parameters
    ----------
    path : path
        A TIFF stack, an NPY file, or an HDF5 file (its dataset ``main``, else its only one; or ``FILE:DATASET``), of
        axes (z, y, x) or (channel, z, y, x), with integers, floats or booleans.

    Returns
    -------
    VolumeReader
        To be closed, or used as a context manager.

    Raises
    ------
    FormatError
        A file that is missing, unreadable, of another format, or no volume.
    """
    file, dataset = _split_dataset(os.fspath(path))
    try:
        if os.path.isdir(file):
            raise FormatError(f"the input {file} is a folder; expected a TIFF, NPY or HDF5 file")
        with open(file, "rb") as opened:
            magic = opened.read(8)
        if magic.startswith(b"\x93NUMPY") and dataset is None:
            return open_npy(file)
        if magic.startswith(TIFF_MAGICS) and dataset is None:
            return open_tiff(file)
        if magic == HDF5_MAGIC:
            return Hdf5Volume(file, dataset)
    except OSError as error:
        raise FormatError(f"cannot read the input {file}: {error.strerror or error}") from error
    if dataset is not None:
        raise FormatError(f"the input {file} is no HDF5 file, and has no dataset {dataset!r}")
    raise FormatError(f"the input {file} is neither a TIFF, an NPY nor an HDF5 file")


def create_volume(path: str | os.PathLike, shape: Sequence[int], *, overwrite: bool = False) -> VolumeWriter:
    """Begin the file of a result: float32 (channel, z, y, x) as NPY or, dataset ``main``, HDF5 (see `VolumeWriter`)."""
    return VolumeWriter(path, shape, overwrite=overwrite)
