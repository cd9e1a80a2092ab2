"""What a device can do at most: FLOP/s of multiply-adds in registers, bytes/s of STREAM's triad, and of copies to and from it.

Each is the best of a few runs between two events of the device's own, the first of which also warm it up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from znni.errors import DeviceError
from znni.gpu.device import Device, Stream

_RUNS = 5
#: A run of multiply-adds lasts at least so long, so that starting it does not count.
_LEAST_S = 5e-3
_THREADS = 256
#: Blocks of that many threads that a multiprocessor can hold: 2048 threads, or what it has.
_BLOCKS = 8
#: As ``cu/ceilings.cu`` has them.
_CHAINS, _UNROLL, _LOADS = 8, 16, 4
_MOST_ROUNDS = 1 << 24
#: Tiles that a block of the triad goes through; a tile is `_LOADS` elements a thread.
_TILES = 4
#: Each array of the triad, and the host's: far more than any cache holds.
_ARRAY_BYTES = 512 << 20
#: And at most this share of the memory that is free, all three together.
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True)
class DeviceCeilings:
    """Peak rates of a device: float32 arithmetic, its memory, and the link to page-locked host memory either way."""

    flop_per_s: float
    bytes_per_s: float
    upload_bytes_per_s: float
    download_bytes_per_s: float


def measure_device_ceilings(device: Device) -> DeviceCeilings:
    """Measure the ceilings, in well under a second beside compiling two kernels and page-locking half a gibibyte.

    Raises
    ------
    DeviceError
        For a simulated device, on which results can be checked but nothing can be timed.
    """
    if device.simulated:
        raise DeviceError("a simulated device proves results, never speed: it has no ceilings to measure")
    defines = {"CHAINS": _CHAINS, "UNROLL": _UNROLL, "LOADS": _LOADS}
    flop_per_s = _flop_per_s(device, defines)
    block_bytes = 4 * _TILES * _LOADS * _THREADS
    blocks = max(1, int(min(_ARRAY_BYTES, _SHARE_OF_FREE * device.free_bytes() / 3)) // block_bytes)
    nbytes = blocks * block_bytes
    memory = device.allocate(3 * nbytes)
    try:
        a, b, c = (memory.array.view(np.float32, (nbytes // 4,), i * nbytes) for i in range(3))
        device.compute.zero(memory.array)
        kernel = device.kernel("ceilings.cu", "triad", defines)
        arguments = [a, b, c, np.float32(3.0), np.int32(_TILES)]
        triad_s = _best(
            device.compute, lambda: device.compute.launch(kernel, (blocks, 1, 1), (_THREADS, 1, 1), arguments)
        )
        host = device.pinned(nbytes)
        host[:] = 0  # takes its pages now
        upload_s = _best(device.uploads, lambda: device.uploads.copy(memory.array[:nbytes], host))
        download_s = _best(device.downloads, lambda: device.downloads.copy(host, memory.array[:nbytes]))
        device.synchronise()
    finally:
        memory.free()
    return DeviceCeilings(flop_per_s, 3 * nbytes / triad_s, nbytes / upload_s, nbytes / download_s)


def _flop_per_s(device: Device, defines: dict[str, int]) -> float:
    """Of as many threads as fit, for long enough."""
    blocks = device.multiprocessors * _BLOCKS
    kernel = device.kernel("ceilings.cu", "multiply_adds", defines)
    memory = device.allocate(4 * blocks * _THREADS)
    out = memory.array.view(np.float32, (blocks * _THREADS,))

    def of(rounds: int) -> float:
        arguments = [out, np.int32(rounds), np.float32(0.999), np.float32(1e-3)]
        return _best(device.compute, lambda: device.compute.launch(kernel, (blocks, 1, 1), (_THREADS, 1, 1), arguments))

    try:
        rounds, seconds = 256, of(256)
        while seconds < _LEAST_S and rounds < _MOST_ROUNDS:
            rounds *= 4
            seconds = of(rounds)
    finally:
        memory.free()
    return 2.0 * _CHAINS * _UNROLL * rounds * blocks * _THREADS / seconds


def _best(stream: Stream, enqueue: Callable[[], None]) -> float:
    """Seconds of the fastest of a few runs, by the device's own clock."""
    found = []
    for _ in range(_RUNS):
        begun = stream.record(timed=True)
        enqueue()
        found.append(stream.record(timed=True).seconds_since(begun))
    return min(found)
