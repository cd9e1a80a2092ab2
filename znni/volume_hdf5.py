"""HDF5 volumes through h5py: reading a dataset, and laying out the file that a result is written into."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from znni.errors import FormatError
from znni.volume_reader import DECODE_ERRORS, Region, VolumeReader, blocks, region_shape, to_float32

#: The dataset that is read where none is named, and the one that is written (as Chunkflow has it).
MAIN = "main"

SCRATCH_BYTES = 1 << 20


def _h5py(path: str) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise FormatError(f"{path} needs h5py; install it with pip install 'znni[volumes]'") from error
    return h5py


class Hdf5Volume(VolumeReader):
    """A dataset of an HDF5 file, read in boxes of whole chunks through a scratch buffer.

    Parameters
    ----------
    path : str
    dataset : str, optional
        By default ``main``, else the only one in the file.

    Raises
    ------
    FormatError
        No such dataset, or one that is no volume or cannot be read (a filter that is not installed).
    """

    def __init__(self, path: str, dataset: str | None = None):
        h5py = _h5py(path)
        try:
            self._file = h5py.File(path, "r")
        except DECODE_ERRORS as error:
            raise FormatError(f"{path} is not a readable HDF5 file: {error}") from error
        try:
            name = self._name(h5py, path, dataset)
            found = self._file[name]
            label = path if dataset is None else f"{path}:{dataset}"
            super().__init__(label, found.shape or (), found.dtype)
            chunk = found.chunks or (1,) * (found.ndim - 1) + found.shape[-1:]
            self.block = tuple(chunk[-3:])
            chunk_bytes = int(np.prod(chunk)) * self.dtype.itemsize if found.chunks else 0
            filtered = found.id.get_create_plist().get_nfilters() > 0
            del found  # the cache is set when a dataset is first opened
            # a filtered chunk must stay decoded while boxes are cut from it; others are read in place
            cache_bytes = max(SCRATCH_BYTES, chunk_bytes) if filtered else 0
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            access.set_chunk_cache(521, cache_bytes, 1.0)
            self._dataset = h5py.Dataset(h5py.h5d.open(self._file.id, name.encode(), access))
            self._scratch = np.empty(SCRATCH_BYTES // self.dtype.itemsize, self.dtype)
            self._buffer_bytes = self._scratch.nbytes + cache_bytes + 2 * chunk_bytes * filtered
            try:
                self._dataset[(0,) * self._dataset.ndim]
            except DECODE_ERRORS as error:
                raise FormatError(f"{label} cannot be read: {error}") from error
        except BaseException:
            self.close()
            raise

    def _name(self, h5py: ModuleType, path: str, dataset: str | None) -> str:
        if dataset is not None:
            found = self._file.get(dataset)
            if isinstance(found, h5py.Dataset):
                return dataset
        names: list[str] = []
        self._file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        listed = ", ".join(names) or "none"
        if dataset is not None:
            raise FormatError(f"{path} has no dataset {dataset!r}; it has {listed}")
        if MAIN in names:
            return MAIN
        if len(names) != 1:
            raise FormatError(
                f"{path} has no dataset {MAIN!r} and not just one; name one of {listed} as {path}:DATASET"
            )
        return names[0]

    @property
    def buffer_bytes(self) -> int:
        """The scratch buffer, and HDF5's cache with the chunk that is being decoded."""
        return self._buffer_bytes

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, region: Region, out: np.ndarray) -> None:
        channels = self.shape[0]
        for box in blocks(region, self.block, self._scratch.size // channels):
            shape = (channels, *region_shape(box))
            values = self._scratch[: int(np.prod(shape))].reshape(shape)
            whole = (slice(0, channels), *box)
            axes = self._dataset.ndim
            self._dataset.read_direct(values.reshape(shape[4 - axes :]), whole[4 - axes :])
            within = tuple(slice(b.start - r.start, b.stop - r.start) for b, r in zip(box, region, strict=True))
            to_float32(values, out[(slice(None), *within)])


def lay_out_hdf5(path: str, shape: tuple[int, ...]) -> int:
    """Make an HDF5 file with a contiguous float32 dataset ``main``, its space set aside but not filled.

    Returns the byte at which its voxels start: they can be written without HDF5, which would hold on to memory.
    """
    h5py = _h5py(path)
    with h5py.File(path, "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        return h5py.h5d.create(file.id, MAIN.encode(), h5py.h5t.NATIVE_FLOAT, space, creation).get_offset()
