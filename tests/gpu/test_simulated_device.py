"""The simulated device itself: that it computes what a device would, and shows what one would hide."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from simulated import SimulatedDevice

import znni
from znni.errors import DeviceError, DeviceLost, DeviceMemory
from znni.gpu import DeviceArray, FftSpec

from .arrays import down, empty, numbered, up

SOURCE = """
#include "shared.cuh"
#ifndef WIDTH
#define WIDTH 64
#endif

extern "C" __global__ void scale(const float *__restrict__ x, float *__restrict__ out, int n, long long skip, float by) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = by * x[i + skip];
}

extern "C" __global__ void __launch_bounds__((WIDTH) * 1, 2) reverse(const float *x, float *out, int barrier) {
    __shared__ float tile[WIDTH];
    tile[threadIdx.x] = x[blockIdx.x * WIDTH + threadIdx.x];
    if (barrier) __syncthreads();
    out[blockIdx.x * WIDTH + threadIdx.x] = tile[WIDTH - 1 - threadIdx.x];
}

extern "C" __global__ void sum(const float *x, float *out, int levels) {
    ZN_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    for (int level = levels - 1; level >= 0; --level) {
        __syncthreads();
        if (threadIdx.x < 1 << level) tile[threadIdx.x] += tile[threadIdx.x + (1 << level)];
    }
    if (threadIdx.x == 0) *out = tile[0];
}

extern "C" __global__ void leave_early(float *out, int last) {
    if ((int)threadIdx.x > last) return;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void wait_apart(float *out) {
    if (threadIdx.x % 2) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void keep(float *out, int write) {
    __shared__ float tile[4];
    if (write) tile[threadIdx.x] = 1.0f;
    out[blockIdx.x * 4 + threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void beyond(float *out, int i) {
    __shared__ float tile[4];
    tile[i] = 1.0f;
    out[0] = tile[0];
}

extern "C" __global__ void misaligned(const float *x, float *out, int skip) {
    float4 four = *(const float4 *)(x + skip);
    *out = four.x + four.w;
}

extern "C" __global__ void divide(int *out, int by) { *out = 7 / by; }

extern "C" __global__ void where(int4 *out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = make_int4(blockIdx.y, threadIdx.x, threadIdx.y, threadIdx.z);
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("kernels")
    (made / "own.cu").write_text(SOURCE)
    return made


@pytest.fixture
def device(folder):
    with SimulatedDevice(1 << 20, sources=folder) as made:
        yield made


# kernels


def test_a_kernel_without_barriers(device):
    x, out = up(device, numbered(1000)), up(device, np.zeros(1000, np.float32))
    kernel = device.kernel("own.cu", "scale")
    device.compute.launch(kernel, (7, 1, 1), (128, 1, 1), [x, out, np.int32(890), np.int64(10), np.float32(2)])
    expected = np.where(np.arange(1000) < 890, 2 * np.roll(numbered(1000), -10), 0)
    np.testing.assert_array_equal(down(device, out), expected)


@pytest.mark.parametrize("width", [1, 2, 64, 1024])
def test_a_kernel_with_a_barrier(device, width):
    x, out = up(device, numbered(3, width)), empty(device, (3, width))
    kernel = device.kernel("own.cu", "reverse", {"WIDTH": width})
    assert kernel.most_threads == width
    device.compute.launch(kernel, (3, 1, 1), (width, 1, 1), [x, out, np.int32(1)])
    np.testing.assert_array_equal(down(device, out), numbered(3, width)[:, ::-1])


def test_a_missing_barrier_shows(device):
    x, out = up(device, numbered(3, 64)), empty(device, (3, 64))
    device.compute.launch(device.kernel("own.cu", "reverse"), (3, 1, 1), (64, 1, 1), [x, out, np.int32(0)])
    assert np.isnan(down(device, out)).any()


@pytest.mark.parametrize("levels", [0, 1, 5, 10])
def test_barriers_in_a_loop_and_shared_memory_of_the_launch(device, levels):
    x, out = up(device, numbered(1 << levels)), empty(device, (1,))
    arguments = [x, out, np.int32(levels)]
    device.compute.launch(device.kernel("own.cu", "sum"), (1, 1, 1), (1 << levels, 1, 1), arguments, 4 << levels)
    assert down(device, out) == numbered(1 << levels).sum()


def test_too_little_shared_memory_shows(device):
    x, out = up(device, numbered(64)), empty(device, (1,))
    device.compute.launch(device.kernel("own.cu", "sum"), (1, 1, 1), (64, 1, 1), [x, out, np.int32(6)], 252)
    with pytest.raises(DeviceError, match="sum failed: memory beyond the block's shared memory is written"):
        device.synchronise()


@pytest.mark.parametrize("last", [0, 5, 6])
def test_threads_that_end_before_a_barrier_are_an_error(device, last):
    kernel = device.kernel("own.cu", "leave_early")
    device.compute.launch(kernel, (1, 1, 1), (8, 1, 1), [empty(device, (8,)), np.int32(last)])
    with pytest.raises(DeviceError, match=rf"is reached by {last + 1} threads of a block, not by the other {7 - last}"):
        device.compute.synchronise()
    device.compute.launch(kernel, (1, 1, 1), (8, 1, 1), [empty(device, (8,)), np.int32(7)])
    device.compute.synchronise()


def test_threads_at_different_barriers_are_an_error(device):
    device.compute.launch(device.kernel("own.cu", "wait_apart"), (1, 1, 1), (8, 1, 1), [empty(device, (8,))])
    with pytest.raises(DeviceError, match="wait_apart failed: threads of a block wait at different barriers, of lines"):
        device.compute.synchronise()


def test_shared_memory_is_nan_when_a_block_begins(device):
    out = empty(device, (2, 4))
    for write in (1, 0):
        device.compute.launch(device.kernel("own.cu", "keep"), (2, 1, 1), (4, 1, 1), [out, np.int32(write)])
        assert (np.isnan(down(device, out)) == (not write)).all()


def test_indices_beyond_an_array_are_an_error(device):
    for i in (4, -1):
        device.compute.launch(device.kernel("own.cu", "beyond"), (1, 1, 1), (1, 1, 1), [empty(device, (1,)), np.int32(i)])
        with pytest.raises(DeviceError, match=rf"index {i} is beyond an array, line \d+ of own.cu"):
            device.compute.synchronise()


def test_misaligned_vectors_are_an_error(device):
    x, out, kernel = up(device, numbered(8)), empty(device, (1,)), device.kernel("own.cu", "misaligned")
    device.compute.launch(kernel, (1, 1, 1), (1, 1, 1), [x, out, np.int32(4)])
    assert down(device, out) == 5 + 8
    device.compute.launch(kernel, (1, 1, 1), (1, 1, 1), [x, out, np.int32(1)])
    with pytest.raises(DeviceError, match="a misaligned address is used"):
        device.compute.synchronise()


def test_addresses_of_nobody_and_division_by_zero_lose_the_device(folder):
    for function, arguments, said in (
        ("scale", (None, None, np.int32(1), np.int64(0), np.float32(1)), "an address is used that is nobody's"),
        ("divide", (None, np.int32(0)), "divided by zero"),
    ):
        with SimulatedDevice(1 << 20, sources=folder) as device:
            device.compute.launch(device.kernel("own.cu", function), (1, 1, 1), (1, 1, 1), arguments)
            with pytest.raises(DeviceLost, match=said):
                device.compute.synchronise()
            with pytest.raises(DeviceLost, match=f"is lost: {function} failed"):
                device.allocate(1)


def test_three_dimensions(device):
    grid, block = (2, 3, 4), (5, 2, 3)
    out = empty(device, (24 * 30, 4), np.int32)
    device.compute.launch(device.kernel("own.cu", "where"), grid, block, [out])
    found = down(device, out).reshape(4, 3, 2, 3, 2, 5, 4)
    expected = np.meshgrid(*map(np.arange, found.shape[:-1]), indexing="ij")
    for axis, place in zip((1, 5, 4, 3), range(4), strict=True):
        np.testing.assert_array_equal(found[..., place], expected[axis])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "said"),
    [
        ((1, 65536, 1), (1, 1, 1), 0, "grid of"),
        ((0, 1, 1), (1, 1, 1), 0, "grid of"),
        ((1, 1, 1), (1, 1, 65), 0, "block of"),
        ((1, 1, 1), (64, 2, 1), 0, "takes 64 threads a block"),
        ((1, 1, 1), (1, 1, 1), 1 << 20, "bytes of shared memory"),
    ],
)
def test_limits_of_a_launch(device, grid, block, shared, said):
    x = empty(device, (64,))
    with pytest.raises(DeviceError, match=said):
        device.compute.launch(device.kernel("own.cu", "reverse"), grid, block, [x, x, np.int32(1)], shared)


def test_arguments_must_be_of_the_kernels_types(device):
    x, kernel = empty(device, (64,)), device.kernel("own.cu", "scale")
    for arguments, said in (
        ([x, x, np.int64(1), np.int64(1), np.float32(1)], "argument 2 of scale is given as int64"),
        ([x, x, np.int32(1), 1, np.float32(1)], "argument 3 of scale is given as int"),
        ([x, x, np.int32(1), np.int64(1), np.float64(1)], "argument 4 of scale is given as float64"),
        ([x, x, np.int32(1)], "scale takes 5 arguments, got 3"),
    ):
        with pytest.raises(DeviceError, match=said):
            device.compute.launch(kernel, (1, 1, 1), (1, 1, 1), arguments)


def test_sources_that_cannot_be_compiled(device, folder):
    (folder / "wrong.cu").write_text('extern "C" __global__ void wrong(float *x) { *x = missing; }')
    with pytest.raises(DeviceError, match=r"(?s)wrong.cu cannot be compiled:.*missing.*not declared"):
        device.kernel("wrong.cu", "wrong")
    with pytest.raises(DeviceError, match=r"own.cu has no kernel absent; it has beyond, "):
        device.kernel("own.cu", "absent")
    with pytest.raises(DeviceError, match=r"there is no kernel source none.cu"):
        device.kernel("none.cu", "none")


# streams


def late(device, event: bool) -> np.ndarray:
    """An upload, a kernel on another stream, and a download: with or without events between."""
    x, out, host = empty(device, (64,)), empty(device, (64,)), np.zeros(64, np.float32)
    device.uploads.copy(x, numbered(64))
    if event:
        device.compute.wait(device.uploads.record())
    arguments = [x, out, np.int32(64), np.int64(0), np.float32(3)]
    device.compute.launch(device.kernel("own.cu", "scale"), (1, 1, 1), (64, 1, 1), arguments)
    if event:
        device.downloads.wait(device.compute.record())
    device.downloads.copy(host, out)
    device.downloads.synchronise()
    return host


def test_events_order_streams(folder):
    for seed in range(20):
        with SimulatedDevice(1 << 20, seed, sources=folder) as device:
            np.testing.assert_array_equal(late(device, True), 3 * numbered(64))


def test_missing_events_show(folder):
    wrong = 0
    for seed in range(20):
        with SimulatedDevice(1 << 20, seed, sources=folder) as device:
            wrong += not np.array_equal(late(device, False), 3 * numbered(64))
    assert wrong >= 10


def test_nothing_is_done_before_it_is_waited_for(device):
    host, values = np.zeros(64, np.float32), numbered(64)
    x = empty(device, (64,))
    device.compute.copy(x, values)
    values += 1  # too early: it is read later
    device.compute.copy(host, x)
    assert not host.any()
    device.compute.synchronise()
    np.testing.assert_array_equal(host, numbered(64) + 1)


def test_waiting_for_an_event_does_no_more_than_that(device):
    """What comes after it in the same stream is left, as it may be."""
    x, host = up(device, numbered(64)), np.zeros(64, np.float32)
    event = device.compute.record()
    device.compute.copy(host, x)
    event.synchronise()
    assert not host.any()
    device.synchronise()
    assert host.all()


def test_times_are_positive_and_need_timed_events(device):
    first = device.compute.record(timed=True)
    device.compute.zero(empty(device, (4,)))
    second = device.uploads.record(timed=True)
    assert second.seconds_since(first) > 0 and first.seconds_since(second) > 0
    with pytest.raises(DeviceError, match="timed=True"):
        second.seconds_since(device.compute.record())
    assert device.simulated


def test_threads_may_share_it(device):
    """Each with memory and a stream of its own."""

    def work(stream) -> list[bool]:
        right = []
        for round in range(50):
            allocation, host = device.allocate(256), np.zeros(64, np.float32)
            x = allocation.array.view(np.float32, (64,))
            stream.copy(x, numbered(64) + round)
            stream.copy(host, x)
            stream.synchronise()
            right.append(np.array_equal(host, numbered(64) + round))
            allocation.free()
        return right

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, (device.compute, device.uploads, device.downloads)))
    assert np.all(found) and device.free_bytes() == device.total_bytes


# memory and copies


def test_memory_is_capped_and_counted(device):
    assert device.free_bytes() == device.total_bytes == 1 << 20
    half = device.allocate(1 << 19)
    with pytest.raises(DeviceMemory, match=f"{(1 << 19) + 1} bytes of device memory were asked for, {1 << 19} of"):
        device.allocate((1 << 19) + 1)
    rest = device.allocate(1 << 19)
    assert device.free_bytes() == 0 and device.peak_bytes == 1 << 20
    half.free()
    half.free()
    assert device.free_bytes() == 1 << 19 and device.peak_bytes == 1 << 20
    device.reset_peak()
    assert device.peak_bytes == 1 << 19
    rest.free()
    device.allocate(1)
    assert device.free_bytes() == (1 << 20) - 256


def test_fresh_memory_is_nan(device):
    assert np.isnan(down(device, empty(device, (100,)))).all()


@pytest.mark.parametrize("skip", [-1, 64])
def test_writes_beside_an_allocation_show(device, skip):
    x, out = up(device, numbered(64)), empty(device, (64,))
    target = DeviceArray(out.pointer + 4 * skip, (1,), np.dtype(np.float32))
    with pytest.raises(DeviceError, match="is not allocated, or reaches beyond"):
        device.compute.copy(target, x[:1])
    # a kernel that is given all of it may still stray
    arguments = [x, out, np.int32(65), np.int64(-1), np.float32(1)]
    device.compute.launch(device.kernel("own.cu", "scale"), (2, 1, 1), (64, 1, 1), arguments)
    with pytest.raises(DeviceError, match="scale wrote beside an allocation of 256 bytes"):
        device.compute.synchronise()
    device.synchronise()  # told once


def test_freed_memory_cannot_be_used(device):
    allocation = device.allocate(256)
    array = allocation.array.view(np.float32, (64,))
    allocation.free()
    with pytest.raises(DeviceError, match="was freed"):
        device.compute.zero(array)


def test_freeing_waits_for_work(device):
    host, allocation = np.zeros(64, np.float32), device.allocate(256)
    device.compute.copy(allocation.array, numbered(64))
    device.compute.copy(host, allocation.array)
    allocation.free()
    np.testing.assert_array_equal(host, numbered(64))


def test_rows_are_copied_between_pitches(device):
    x, host = up(device, np.full((5, 7), -1, np.float32)), numbered(4, 6)
    device.compute.copy_rows(x, 28, host[1:], 24, 12, 3)
    expected = np.full((5, 7), -1, np.float32)
    expected[:3, :3] = host[1:, :3]
    np.testing.assert_array_equal(down(device, x), expected)
    back = np.zeros((3, 4), np.float32)
    device.compute.copy_rows(back, 16, x, 28, 12, 3)
    device.compute.synchronise()
    np.testing.assert_array_equal(back[:, :3], host[1:, :3])
    assert not back[:, 3].any()


def test_copies_that_do_not_fit_are_refused(device):
    x = empty(device, (8, 8))
    host = numbered(8, 8)
    for wrong in (
        lambda: device.compute.copy(x, host[1:]),
        lambda: device.compute.copy(x[:4], host[:, ::2]),
        lambda: device.compute.copy(host, host.copy()),
        lambda: device.compute.copy(x[:2], x[1:3]),
        lambda: device.compute.copy_rows(x, 32, host, 32, 32, 9),
        lambda: device.compute.copy_rows(x, 16, host, 32, 32, 2),
        lambda: device.compute.copy_rows(x, 2**31, host, 32, 32, 1),
    ):
        with pytest.raises(DeviceError):
            wrong()


def test_pinned_memory(device):
    array = device.pinned(1000)
    assert array.nbytes == 1000 and array.ctypes.data % 256 == 0 and array.dtype == np.uint8
    assert device.pinned(0).nbytes == 0


# failures


def test_failures_on_demand(device):
    device.fail_next("allocate", DeviceMemory)
    with pytest.raises(DeviceMemory, match="allocate failed, as a test wanted"):
        device.allocate(1)
    device.fail_next("copy", DeviceError("it broke"), after=1)
    x = empty(device, (4,))
    device.compute.zero(x)
    with pytest.raises(DeviceError, match="it broke"):
        device.compute.zero(x)
    device.compute.zero(x)
    np.testing.assert_array_equal(down(device, x), 0)


def test_failures_of_work_come_when_it_is_waited_for(device):
    x = empty(device, (64,))
    device.fail_next("launch", later=True)
    arguments = [x, x, np.int32(0), np.int64(0), np.float32(0)]
    device.compute.launch(device.kernel("own.cu", "scale"), (1, 1, 1), (1, 1, 1), arguments)
    event = device.compute.record()
    with pytest.raises(DeviceError, match="launch failed"):
        event.synchronise()
    device.synchronise()


def test_a_lost_device_stays_lost(device):
    allocation = device.allocate(256)
    device.fail_next("copy", DeviceLost, later=True)
    device.uploads.zero(allocation.array)
    device.compute.zero(allocation.array)
    with pytest.raises(DeviceLost):
        device.synchronise()
    for call in (
        device.synchronise,
        device.compute.synchronise,
        device.compute.record,
        device.free_bytes,
        lambda: device.allocate(1),
        lambda: device.pinned(1),
        lambda: device.kernel("own.cu", "scale"),
        lambda: device.compute.zero(allocation.array),
        lambda: device.fft_work_bytes(FftSpec.dense("r2c", (8,), 1)),
    ):
        with pytest.raises(DeviceLost, match="is lost"):
            call()
    allocation.free()
    device.close()


def test_a_closed_device_does_nothing(device):
    allocation = device.allocate(256)
    device.close()
    device.close()
    allocation.free()
    with pytest.raises(DeviceError, match="is closed"):
        device.allocate(1)


def test_the_package_does_not_know_of_it():
    sources = Path(znni.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "SimulatedDevice" in path.read_text()]
