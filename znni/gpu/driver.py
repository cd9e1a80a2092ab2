"""The NVIDIA driver, asked directly: is there one, how new is it, which devices does it show? Needs no package."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

from znni.errors import NoDevice

_LIBRARY = "libcuda.so.1"
#: The oldest CUDA that is supported: the driver's, the toolkit's and the libraries'.
OLDEST_CUDA = 12
_ERROR_NO_DEVICE = 100
#: What the driver's errors mean here, and what to do.
_ADVICE = {
    34: "libcuda.so.1 is a stub that is only good for building; take it off the library path",
    _ERROR_NO_DEVICE: "it shows no device",
    803: "its library and its kernel module are of different versions; reboot, or install them anew",
    804: "the forward-compatibility package does not support this device; remove it from the library path",
}


@dataclass(frozen=True)
class Driver:
    """What the driver says.

    Attributes
    ----------
    cuda : tuple of int
        The newest CUDA that it supports, (major, minor).
    devices : tuple of str
        Names, by number.
    """

    cuda: tuple[int, int]
    devices: tuple[str, ...]


def read_driver(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> Driver:
    """Load the driver's library and ask it.

    Raises
    ------
    NoDevice
        No library, a driver that is too old or does not work, or no device; in words.
    """
    try:
        library = load(_LIBRARY)
    except OSError as error:
        raise NoDevice(
            f"no NVIDIA driver: {error}; install it until nvidia-smi lists the GPU (into a container it is passed: "
            f"docker run --gpus all)"
        ) from error
    status = library.cuInit(0)
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        cuda = (number.value // 1000, number.value % 1000 // 10)
    else:
        cuda = (0, 0)
    if status == 0 and cuda < (OLDEST_CUDA, 0):
        raise NoDevice(
            f"the NVIDIA driver is too old: it supports CUDA {cuda[0]}.{cuda[1]}, and {OLDEST_CUDA}.0 is the oldest that "
            f"can be used; update it"
        )
    if status not in (0, _ERROR_NO_DEVICE):
        raise NoDevice(
            f"the NVIDIA driver does not start: {_ADVICE.get(status, _words(library, status))} (error {status})"
        )
    devices = _devices(library) if status == 0 else ()
    if not devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise NoDevice(f"the NVIDIA driver works, but {_ADVICE[_ERROR_NO_DEVICE]}{why}")
    return Driver(cuda, devices)


def _devices(library: ctypes.CDLL) -> tuple[str, ...]:
    count, names = ctypes.c_int(), []
    if library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    for number in range(count.value):
        handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if library.cuDeviceGet(ctypes.byref(handle), number) == 0:
            library.cuDeviceGetName(name, len(name), handle)
        names.append(name.value.decode(errors="replace") or f"device {number}")
    return tuple(names)


def _words(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"unknown error").decode(errors="replace")
