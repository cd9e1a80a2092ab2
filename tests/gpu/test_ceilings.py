"""The kernels whose rates are a device's ceilings compute what they say; on a real device the rates are measured."""

from __future__ import annotations

import numpy as np
import pytest

import znni.gpu
from znni.errors import DeviceError
from znni.gpu.ceilings import measure_device_ceilings

DEFINES = {"CHAINS": 3, "UNROLL": 2, "LOADS": 4}


def test_multiply_adds(device):
    threads, blocks, rounds = 32, 3, 5
    memory = device.allocate(4 * threads * blocks)
    out = memory.array.view(np.float32, (threads * blocks,))
    kernel = device.kernel("ceilings.cu", "multiply_adds", DEFINES)
    arguments = [out, np.int32(rounds), np.float32(0.5), np.float32(1.0)]
    device.compute.launch(kernel, (blocks, 1, 1), (threads, 1, 1), arguments)
    found = np.empty(threads * blocks, np.float32)
    device.compute.copy(found, out)
    device.synchronise()
    sums = np.arange(threads)[:, None] + np.arange(3.0)
    for _ in range(rounds * 2):
        sums = sums * 0.5 + 1.0
    np.testing.assert_allclose(found, np.tile(sums.sum(axis=1), blocks), rtol=1e-6)
    memory.free()


def test_triad(device):
    threads, blocks, tiles = 32, 3, 2
    n = threads * blocks * tiles * 4
    memory = device.allocate(3 * 4 * n)
    a, b, c = (memory.array.view(np.float32, (n,), i * 4 * n) for i in range(3))
    values = np.random.default_rng(0).random((2, n), np.float32)
    device.compute.copy(a, values[0])
    device.compute.copy(b, values[1])
    kernel = device.kernel("ceilings.cu", "triad", DEFINES)
    device.compute.launch(kernel, (blocks, 1, 1), (threads, 1, 1), [a, b, c, np.float32(3.0), np.int32(tiles)])
    found = np.empty(n, np.float32)
    device.compute.copy(found, c)
    device.synchronise()
    np.testing.assert_allclose(found, values[0] + np.float32(3.0) * values[1], rtol=1e-6)
    memory.free()


def test_a_simulated_device_has_no_ceilings(device):
    with pytest.raises(DeviceError, match="never speed"):
        measure_device_ceilings(device)


@pytest.mark.gpu
def test_ceilings_of_a_real_device(real_device):
    with znni.gpu.use(real_device):
        free = real_device.free_bytes()
        found = measure_device_ceilings(real_device)
        assert found.flop_per_s > 1e11 and found.bytes_per_s > 1e10
        assert found.upload_bytes_per_s > 1e8 and found.download_bytes_per_s > 1e8
        assert real_device.free_bytes() > free - (64 << 20)
