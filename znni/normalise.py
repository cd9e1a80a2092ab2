"""Normalising a volume on its way into a network, by the statistics of whole slices or of the whole volume.

Statistics are float64, gathered in one pass over the file by merging those of blocks (Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", 1979).
"""

from __future__ import annotations

import numpy as np

from znni.errors import FormatError, ZnniError
from znni.volume_reader import Region, VolumeReader, blocks, region_shape

MODES = ("none", "slice", "volume", "uint8")

#: Voxels that the pass over a volume holds at once, all channels together ...
SCAN_VOXELS = 1 << 17

#: ... and the bytes that takes: as float32 and as float64.
SCAN_BYTES = SCAN_VOXELS * 12


def _merge(n: np.ndarray, mean: np.ndarray, m2: np.ndarray, n2: int, mean2: np.ndarray, m22: np.ndarray) -> tuple:
    """Count, mean and sum of squared deviations of two sets together."""
    total = n + n2
    delta = mean2 - mean
    return total, mean + delta * (n2 / total), m2 + m22 + delta * delta * (n * n2 / total)


class Statistics:
    """Mean and population standard deviation of every z-slice of every channel, and of every whole channel.

    Attributes
    ----------
    slice_mean, slice_deviation : ndarray of float64 (channels, z)
    volume_mean, volume_deviation : ndarray of float64 (channels,)

    Raises
    ------
    FormatError
        NaN or infinite values (also once float32), with the first z-slice that holds them.
    """

    def __init__(self, reader: VolumeReader):
        channels, z, y, x = reader.shape
        n, mean, m2 = np.zeros((channels, z)), np.zeros((channels, z)), np.zeros((channels, z))
        single, double = np.empty(SCAN_VOXELS, np.float32), np.empty(SCAN_VOXELS)
        whole = (slice(0, z), slice(0, y), slice(0, x))
        for box in blocks(whole, reader.block, SCAN_VOXELS // channels):
            shape = (channels, *region_shape(box))
            size = int(np.prod(shape))
            values = single[:size].reshape(shape)
            reader.read(box, values)
            at = (slice(None), box[0])
            with np.errstate(invalid="ignore"):  # what is not finite is refused below
                found = _moments(values, double[:size].reshape(shape))
                n[at], mean[at], m2[at] = _merge(n[at], mean[at], m2[at], *found)
        bad = np.flatnonzero(~np.isfinite(mean).all(axis=0))
        if bad.size:
            raise FormatError(
                f"{reader.path} holds values that are NaN or, as float32, infinite: first in z-slice {bad[0]} "
                f"(counted from 0), in {bad.size} of {z} slices; replace them before the run"
            )
        self.slice_mean, self.slice_deviation = mean, np.sqrt(m2 / n)
        self.volume_mean = mean.mean(axis=1)  # slices are of one size
        between = np.square(mean - self.volume_mean[:, None]).mean(axis=1)
        self.volume_deviation = np.sqrt(np.square(self.slice_deviation).mean(axis=1) + between)


def _moments(values: np.ndarray, double: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Count, mean and sum of squared deviations of float32 (channels, z, y, x) over y and x; `double` is scratch."""
    n = values.shape[2] * values.shape[3]
    double[...] = values
    mean = double.sum(axis=(2, 3)) / n
    double -= mean[..., None, None]
    np.square(double, out=double)
    return n, mean, double.sum(axis=(2, 3))


class Normaliser:
    """What is done to the voxels of one volume before they enter a network.

    ``slice`` subtracts the mean of each whole z-slice and divides by its population standard deviation; ``volume``
    does so for the whole volume. Either treats each channel by itself (an image and a mask have nothing to share), and
    gives 0 where all values are equal. ``uint8`` divides by 255, ``none`` leaves values alone. Volumes of floats are
    read once for NaN and infinite values, whatever the mode.

    Parameters
    ----------
    mode : one of `MODES`
    reader : VolumeReader
        Read once, as a whole, unless its values are integers and `mode` needs no statistics.

    Raises
    ------
    FormatError
        Values that are not finite, or that are not uint8 for ``uint8``.
    ZnniError
        An unknown mode.
    """

    def __init__(self, mode: str, reader: VolumeReader):
        if mode not in MODES:
            raise ZnniError(f"unknown normalisation {mode!r}; expected one of {', '.join(MODES)}")
        if mode == "uint8" and reader.dtype != np.uint8:
            raise FormatError(
                f"normalisation uint8 divides values of 0 to 255 by 255, but {reader.path} holds {reader.dtype}; "
                f"use slice, volume or none"
            )
        self.mode = mode
        self._mean = self._deviation = None
        if mode not in ("slice", "volume") and reader.dtype.kind != "f":
            return
        found = Statistics(reader)
        if mode == "slice":
            self._mean, self._deviation = found.slice_mean, found.slice_deviation
        elif mode == "volume":
            size = found.slice_mean.shape
            self._mean = np.broadcast_to(found.volume_mean[:, None], size)
            self._deviation = np.broadcast_to(found.volume_deviation[:, None], size)

    def apply(self, region: Region, values: np.ndarray) -> None:
        """Normalise float32 `values` (channels, z, y, x), which are `region` of the volume, in place."""
        if self.mode == "uint8":
            np.divide(values, np.float32(255), out=values)
        if self._mean is None:
            return
        mean = self._mean[:, region[0], None, None]
        deviation = self._deviation[:, region[0], None, None]
        deviation = np.where(deviation > 0, deviation, np.inf)
        # float64 arithmetic (NumPy does it in small buffers): a float32 mean would shift the whole slice
        np.subtract(values, mean, out=values, dtype=np.float64, casting="same_kind")
        np.divide(values, deviation, out=values, dtype=np.float64, casting="same_kind")
