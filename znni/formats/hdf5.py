"""Opening HDF5 files, where h5py is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError

if TYPE_CHECKING:
    import h5py


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading; `FormatError` where it is none, is damaged, or h5py is missing."""
    try:
        import h5py
    except ImportError as error:
        raise FormatError(f"reading {path} needs h5py: pip install h5py") from error
    try:
        # The system's own open first: its errors say plainly that a file is missing or may not be read.
        with open(path, "rb"), h5py.File(path, "r") as file:
            yield file
    except FormatError:
        raise
    except OSError as error:
        if error.strerror:
            raise FormatError(f"cannot read {path}: {error.strerror}") from error
        raise FormatError(f"{path} is not a readable HDF5 file: {error}") from error
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is a damaged HDF5 file: {error}") from error


def is_group(item: object) -> bool:
    """Whether an item of an open HDF5 file is a group."""
    import h5py

    return isinstance(item, h5py.Group)


def is_dataset(item: object) -> bool:
    """Whether an item of an open HDF5 file is a dataset."""
    import h5py

    return isinstance(item, h5py.Dataset)


def float_array(dataset: object, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A dataset of float32 or float64 as float32; `what` (file and layer) begins the sentence that refuses another."""
    if not is_dataset(dataset):
        raise FormatError(f"{what} are missing; expected an array of shape {shape}")
    if dataset.dtype not in (np.dtype("f4"), np.dtype("f8")):
        raise FormatError(f"{what} must be float32 or float64, got {dataset.dtype}")
    if dataset.shape != shape:
        raise FormatError(f"{what} must have shape {shape}, got {dataset.shape}")
    with np.errstate(over="ignore"):
        array = dataset[()].astype(np.float32)
    if not np.isfinite(array).all():
        raise FormatError(f"{what} hold NaN or infinite values")
    return array
