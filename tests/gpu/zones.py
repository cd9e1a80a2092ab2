"""Arrays, on the device or the host, between guard zones that can be looked at afterwards; on any device."""

from __future__ import annotations

from math import prod

import numpy as np

from znni.gpu import Device
from znni.gpu.device import DEVICE_ALIGNMENT_BYTES
from znni.layouts import DEVICE

#: As float32 a NaN, as an integer a large one.
_PATTERN = np.uint32(0x7FA5A5A5)
_GUARD_BYTES = 4 * DEVICE_ALIGNMENT_BYTES
#: As float32 also a NaN.
ALL_ONES = 0xFF


class Zone:
    """An array that begins aligned and ends where its last byte does; full of NaN until filled.

    Parameters
    ----------
    device : Device
    shape : tuple of int
    dtype
    layout : str
        "device" for device memory, else page-locked memory of the host.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype=np.float32, layout: str = DEVICE):
        self._device, self._allocation = device, None
        self.nbytes = prod(shape) * np.dtype(dtype).itemsize
        nbytes = self.nbytes + 2 * _GUARD_BYTES
        whole = np.full(-(-nbytes // 4), _PATTERN).view(np.uint8)[:nbytes]
        self._before, self._after = whole[:_GUARD_BYTES].copy(), whole[_GUARD_BYTES + self.nbytes :].copy()
        if layout == DEVICE:
            self._allocation = device.allocate(whole.nbytes)
            self._whole = self._allocation.array
            self.array = self._whole.view(dtype, shape, _GUARD_BYTES)
            device.compute.copy(self._whole, whole)
            device.compute.synchronise()
        else:
            self._whole = device.pinned(whole.nbytes)
            self._whole[:] = whole
            self.array = self._whole[_GUARD_BYTES:][: self.nbytes].view(dtype).reshape(shape)
        self.fill(np.full(self.nbytes, ALL_ONES, np.uint8))

    def fill(self, values: np.ndarray) -> None:
        """Other contents."""
        if self._allocation is None:
            self.array[...] = values.view(self.array.dtype).reshape(self.array.shape)
        elif self.nbytes:
            self._device.compute.copy(self.array, np.ascontiguousarray(values))
            self._device.compute.synchronise()

    def contents(self) -> np.ndarray:
        """A copy of what it holds, on the host."""
        whole = self._everything()[_GUARD_BYTES:][: self.nbytes]
        return whole.view(self.array.dtype).reshape(self.array.shape).copy()

    @property
    def intact(self) -> bool:
        """Whether the guard zones are as they were."""
        whole = self._everything()
        before, after = whole[:_GUARD_BYTES], whole[_GUARD_BYTES + self.nbytes :]
        return np.array_equal(before, self._before) and np.array_equal(after, self._after)

    def _everything(self) -> np.ndarray:
        if self._allocation is None:
            return self._whole
        host = np.empty(self._whole.nbytes, np.uint8)
        self._device.compute.copy(host, self._whole)
        self._device.compute.synchronise()
        return host

    def free(self) -> None:
        """Give back device memory."""
        if self._allocation is not None:
            self._allocation.free()

    def __enter__(self) -> Zone:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
