"""The one device of this process."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

from znni.errors import DeviceError, NoDevice
from znni.gpu.device import Device

_current: Device | None = None


def open_device(number: int = 0) -> Device:
    """Open a CUDA device, which is from now on what `current` gives; it is released on exit, or by `close_device`.

    Raises
    ------
    NoDevice
        Where there is none that can be used; says what is missing (driver, pycuda, scikit-cuda, cuFFT, cuBLAS, nvcc).
    DeviceError
        Where another device is open in this process.
    """
    global _current
    from znni.gpu.cuda_device import CudaDevice

    if _current is not None:
        raise DeviceError(f"{_current.name} is open in this process already; there is one device a process")
    _current = CudaDevice(number)
    return _current


def close_device() -> None:
    """Release the open device, if there is one, and all its memory."""
    global _current
    if _current is not None:
        device, _current = _current, None
        device.close()


def is_open() -> bool:
    """Whether a device is open."""
    return _current is not None


def current() -> Device:
    """The open device; `NoDevice` where there is none."""
    if _current is None:
        raise NoDevice("no device is open; call znni.gpu.open_device() first")
    return _current


@contextmanager
def use(device: Device) -> Iterator[Device]:
    """Make `device` the current one within a block; it is left open afterwards."""
    global _current
    before, _current = _current, device
    try:
        yield device
    finally:
        _current = before


atexit.register(close_device)
