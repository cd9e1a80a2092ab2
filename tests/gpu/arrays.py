"""Arrays for tests on a device: made, taken there and back."""

from __future__ import annotations

import numpy as np

from znni.gpu import DeviceArray


def up(device, values: np.ndarray) -> DeviceArray:
    array = device.allocate(values.nbytes).array.view(values.dtype, values.shape)
    device.compute.copy(array, values)
    device.compute.synchronise()
    return array


def down(device, array: DeviceArray) -> np.ndarray:
    host = np.empty(array.shape, array.dtype)
    device.compute.copy(host, array)
    device.compute.synchronise()
    return host


def empty(device, shape, dtype=np.float32) -> DeviceArray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return device.allocate(nbytes).array.view(dtype, shape)


def numbered(*shape) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def random_array(*shape, dtype=np.float32) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype == np.complex64 else values).astype(dtype)
