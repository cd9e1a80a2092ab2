"""The real device over an imitation of pycuda: what it asks for, its books, its errors, and that nothing is left behind."""

import gc
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import znni.gpu
from znni.errors import DeviceError, DeviceLost, DeviceMemory, InvalidShape, NoDevice
from znni.gpu import compile as compiling
from znni.gpu import cuda_device, cuda_streams
from znni.gpu.cuda_device import CudaDevice, import_pycuda, require_packages
from znni.gpu.driver import Driver

from .fake_cuda import FakeDriver


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """What a device is opened over: everything is there, and kernels compile to their text."""
    made = FakeDriver()
    monkeypatch.setattr(cuda_device, "require_packages", lambda: None)
    monkeypatch.setattr(cuda_device, "read_driver", lambda: Driver((13, 0), ("NVIDIA H200",)))
    monkeypatch.setattr(cuda_device, "gpu_driver", lambda: "580.82.07")
    monkeypatch.setattr(cuda_device, "find_nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setattr(cuda_device, "import_pycuda", lambda found: made)
    libraries = SimpleNamespace(cufft=SimpleNamespace(), cublas=SimpleNamespace(_libcublas=None))
    monkeypatch.setattr(cuda_device, "scikit_cuda", lambda cuda: libraries)
    monkeypatch.setattr(cuda_device, "with_pycuda", lambda text, options, architecture, nvcc: text.encode())
    monkeypatch.setattr(compiling, "nvcc_version", lambda nvcc: "release 13.0")
    monkeypatch.setenv("ZNNI_CACHE", str(tmp_path / "cache"))
    yield made
    assert not made.stack(), "a context was left current"


@pytest.fixture
def cuda(driver):
    device = CudaDevice()
    yield device
    device.close()
    assert driver.retained == 0


def _kernel(cuda):
    return cuda.kernel("pooling.cu", "__global__")  # a name that the source has


def test_what_it_says_of_itself(cuda):
    assert (cuda.name, cuda.architecture, cuda.driver) == ("NVIDIA H200", "sm_90", "580.82.07 CUDA 13.0")
    assert (cuda.multiprocessors, cuda.shared_bytes, cuda.total_bytes) == (16, 232448, 1 << 24)
    assert cuda.blas_work_bytes == 32 << 20 and not cuda.simulated


def test_copies_there_and_back(cuda):
    memory = cuda.allocate(4096)
    x = np.arange(60, dtype=np.float32).reshape(6, 10)
    there = memory.array.view(np.float32, x.shape)
    again = memory.array.view(np.float32, x.shape, 1024)
    back = np.empty_like(x)
    cuda.uploads.copy(there, x)
    cuda.compute.copy(again, there)
    cuda.downloads.copy(back, again)
    cuda.synchronise()
    np.testing.assert_array_equal(back, x)
    cuda.compute.zero(again)
    cuda.compute.copy(back, again)
    assert not back.any()
    cuda.compute.copy(there[:0], x[:0])


@pytest.mark.parametrize("pitch_end", [1 << 31, 40])
def test_rows_are_copied_between_pitches(cuda, monkeypatch, pitch_end):
    monkeypatch.setattr(cuda_streams, "_PITCH_END", pitch_end)
    memory = cuda.allocate(4096)
    x = np.arange(60, dtype=np.float32).reshape(6, 10)
    y = np.zeros_like(x)
    cuda.compute.copy_rows(memory.array, 16, x, 40, 16, 6)
    cuda.compute.copy_rows(memory.array.view(np.uint8, (512,), 1024), 24, memory.array, 16, 16, 6)
    cuda.compute.copy_rows(y, 40, memory.array.view(np.uint8, (512,), 1024), 24, 16, 6)
    np.testing.assert_array_equal(y[:, :4], x[:, :4])
    assert not y[:, 4:].any()
    cuda.compute.copy_rows(memory.array, 40, x, 40, 40, 6)  # one piece
    cuda.compute.copy_rows(y, 99, memory.array, 7, 240, 1)
    np.testing.assert_array_equal(y, x)
    cuda.compute.copy_rows(y, 40, memory.array, 40, 16, 0)


def test_copies_that_cannot_be(cuda):
    array = cuda.allocate(64).array
    x = np.zeros(64, np.uint8)
    frozen = x.copy()
    frozen.flags.writeable = False
    for target, source, error in (
        (array, x[:63], InvalidShape),
        (array[:32], x[::2], InvalidShape),
        (frozen, array, InvalidShape),
        (x, x, TypeError),
    ):
        with pytest.raises(error):
            cuda.compute.copy(target, source)
    for arguments in ((array, 16, x, 16, 16, 5), (array, 16, x, 8, 16, 2), (array, 33, x, 32, 32, 2)):
        with pytest.raises(InvalidShape):
            cuda.compute.copy_rows(*arguments)


def test_launches(cuda, driver):
    array = cuda.allocate(64).array
    kernel = _kernel(cuda)
    arguments = [array, np.int32(-3), np.int64(1 << 40), np.float32(0.5), None]
    cuda.compute.launch(kernel, (2**31 - 1, 2, 3), (32, 4, 1), arguments, shared_bytes=1024)
    cuda.compute.launch(kernel, (np.int64(1), 1, 1), (32, 1, 1), [], shared_bytes=100 << 10)
    cuda.compute.launch(kernel, (1, 1, 1), (32, 1, 1), [], shared_bytes=90 << 10)
    assert driver.launches == [
        ((2**31 - 1, 2, 3), (32, 4, 1), struct.pack("=Qi4xqf4xQ", array.pointer, -3, 1 << 40, 0.5, 0), 1024),
        ((1, 1, 1), (32, 1, 1), b"", 100 << 10),
        ((1, 1, 1), (32, 1, 1), b"", 90 << 10),
    ]
    assert driver.shared == [100 << 10]
    for argument in (3, 0.5, np.float64(1), np.zeros(1)):
        with pytest.raises(TypeError, match="takes device arrays"):
            cuda.compute.launch(kernel, (1, 1, 1), (1, 1, 1), [argument])


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "words"),
    [
        ((1, 65536, 1), (1, 1, 1), 0, "65536 blocks along y .65535"),
        ((0, 1, 1), (1, 1, 1), 0, "0 blocks along x"),
        ((2**31, 1, 1), (1, 1, 1), 0, "2147483648 blocks along x"),
        ((1, 1, 1), (1, 1, 65), 0, "65 threads along z"),
        ((1, 1, 1), (32, 17, 1), 0, "544 threads a block .512"),
        ((1, 1, 1), (1, 1, 1), 232449, "232449 bytes of shared memory .232448"),
    ],
)
def test_launches_that_cannot_be(cuda, grid, block, shared_bytes, words):
    with pytest.raises(DeviceError, match=words):
        cuda.compute.launch(_kernel(cuda), grid, block, [], shared_bytes)


def test_a_launch_that_fails_says_how_and_goes_on(cuda, driver):
    driver.fails["launch"] = driver.LaunchError("cuLaunchKernel failed: too many resources requested for launch")
    with pytest.raises(DeviceError, match=r"grid \(1, 1, 1\).*too many resources") as error:
        cuda.compute.launch(_kernel(cuda), (1, 1, 1), (1, 1, 1), [])
    assert not isinstance(error.value, DeviceLost)
    driver.fails.clear()
    cuda.compute.launch(_kernel(cuda), (1, 1, 1), (1, 1, 1), [])


def test_kernels_are_kept_and_missing_ones_said(cuda, driver):
    assert _kernel(cuda) is _kernel(cuda)
    assert cuda.kernel("pooling.cu", "__global__", {"A": 1}) is not _kernel(cuda)
    assert driver.calls.count("module_from_buffer") == 2
    with pytest.raises(DeviceError, match=r"pooling\.cu has no kernel surely_not_there"):
        cuda.kernel("pooling.cu", "surely_not_there")


def test_events(cuda):
    first, second = cuda.compute.record(timed=True), cuda.compute.record(timed=True)
    cuda.uploads.wait(second)
    second.synchronise()
    assert second.seconds_since(first) == pytest.approx(0.25)
    with pytest.raises(DeviceError, match="timed=True"):
        cuda.compute.record().seconds_since(first)


def test_waits_look_for_a_moment_then_sleep(cuda, driver, monkeypatch):
    monkeypatch.setattr(cuda_streams, "_SPIN_S", 0.0)
    monkeypatch.setattr(cuda.compute, "_stream", SimpleNamespace(is_done=lambda: False))
    cuda.compute.synchronise()
    assert driver.calls[-2:] == ["record", "event_synchronize"]


def test_a_full_queue_is_waited_for(cuda, driver, monkeypatch):
    monkeypatch.setattr(cuda_streams, "_CALLS_A_MARK", 4)
    array = cuda.allocate(64).array
    for _ in range(40):
        cuda.compute.zero(array)
    assert driver.calls.count("record") == 10
    assert driver.calls.count("query") == 10 - cuda_streams._MOST_MARKS


def test_memory_is_counted_and_given_back(cuda, driver):
    a, b = cuda.allocate(1000), cuda.allocate(2000)
    assert a.array.pointer % 256 == 0 and a.array.nbytes == 1000
    assert cuda.free_bytes() == driver.total_bytes - 3000
    a.free()
    a.free()
    assert (cuda.peak_bytes, driver.held_bytes) == (3000, 2000)
    cuda.reset_peak()
    assert cuda.peak_bytes == 2000
    cuda.allocate(0).free()
    del b
    gc.collect()
    cuda.free_bytes()
    assert driver.held_bytes == 0
    kept = cuda.allocate(500)
    cuda.close()
    assert driver.held_bytes == 0
    kept.free()


def test_more_than_there_is(cuda, driver):
    kept = cuda.allocate(1 << 20)
    with pytest.raises(
        DeviceMemory, match=rf"{1 << 24} bytes do not fit on NVIDIA H200: {15 << 20} of {1 << 24} are free"
    ):
        cuda.allocate(1 << 24)
    driver.fails["pagelocked_empty"] = driver.MemoryError("cuMemHostAlloc failed: out of memory")
    with pytest.raises(DeviceMemory, match="the host cannot lock 64 bytes"):
        cuda.pinned(64)
    driver.fails["memset_d8_async"] = driver.MemoryError("cuMemsetD8Async failed: out of memory")
    with pytest.raises(DeviceMemory, match="no memory left for this: cuMemsetD8Async"):
        cuda.compute.zero(kept.array)


def test_page_locked_arrays_live_as_long_as_their_views(cuda, driver):
    array = cuda.pinned(1000)
    assert array.dtype == np.uint8 and array.nbytes == 1000 and array.ctypes.data % 256 == 0
    view = array[10:20].view(np.uint16)
    del array
    gc.collect()
    assert not cuda._context._discarded
    view[:] = 7
    del view
    gc.collect()
    assert len(cuda._context._discarded) == 1
    cuda.free_bytes()
    assert not cuda._context._discarded


def test_other_threads_may_use_it_and_are_left_clean(cuda, driver):
    memory, left = cuda.allocate(64), []

    def work():
        cuda.compute.copy(memory.array, np.full(64, 3, np.uint8))
        cuda.compute.record().synchronise()
        cuda.allocate(32).free()
        left.extend(driver.stack())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert left == []
    back = np.empty(64, np.uint8)
    cuda.compute.copy(back, memory.array)
    assert (back == 3).all()


def test_a_lost_device_says_so_from_then_on(driver):
    cuda = CudaDevice()
    memory = cuda.allocate(64)
    driver.fails["is_done"] = driver.LogicError("cuStreamQuery failed: an illegal memory access was encountered")
    driver.fails["synchronize"] = driver.LogicError("cuCtxSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(
        DeviceLost, match="NVIDIA H200 is lost to this process: cuStreamQuery failed: an illegal memory access"
    ):
        cuda.compute.synchronise()
    driver.fails.clear()
    with pytest.raises(DeviceLost, match="illegal"):
        cuda.compute.zero(memory.array)
    memory.free()
    cuda.close()
    cuda.close()
    assert driver.retained == 0
    with pytest.raises(DeviceError, match="was closed"):
        cuda.allocate(1)


def test_a_context_that_cannot_be_entered_is_lost(driver):
    cuda = CudaDevice()
    driver.fails["push"] = driver.LogicError("cuCtxPushCurrent failed: context is destroyed")
    with pytest.raises(DeviceLost, match="context is destroyed"):
        cuda.free_bytes()
    cuda.close()


def test_it_is_released_where_opening_fails(driver):
    driver.fails["Stream"] = driver.LogicError("cuStreamCreate failed")
    with pytest.raises(DeviceError, match="cuStreamCreate"):
        CudaDevice()
    assert driver.retained == 0


def test_other_errors_pass_as_they_are(cuda):
    with pytest.raises(KeyError), cuda._context:
        raise KeyError("not the device's")


def test_it_is_the_current_one_until_it_is_left(driver):
    with znni.gpu.open_device() as made:
        assert znni.gpu.current() is made
        with pytest.raises(DeviceError, match="open in this process"):
            znni.gpu.open_device()
    assert not znni.gpu.is_open() and driver.retained == 0


def test_what_is_missing_is_said(driver, monkeypatch):
    with pytest.raises(NoDevice, match="there is no device 1; the driver shows 0: NVIDIA H200"):
        CudaDevice(1)

    def none(*_):
        raise NoDevice("no such thing")

    for piece in ("require_packages", "read_driver", "find_nvcc", "scikit_cuda", "import_pycuda"):
        with monkeypatch.context() as patch:
            patch.setattr(cuda_device, piece, none)
            with pytest.raises(NoDevice, match="no such thing"):
                CudaDevice()
    assert driver.retained == 0


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(cuda_device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoDevice, match=r"pycuda and scikit-cuda are not installed; pip install 'znni\[gpu\]'"):
        require_packages()
    monkeypatch.setattr(cuda_device.importlib.util, "find_spec", lambda name: None if name == "skcuda" else name)
    with pytest.raises(NoDevice, match=r"^scikit-cuda is not installed"):
        require_packages()


def test_a_pycuda_that_does_not_fit(monkeypatch):
    found = Driver((12, 8), ("NVIDIA H200",))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(NoDevice, match=r"pycuda cannot be loaded.*another CUDA or Python"):
        import_pycuda(found)
    driver = FakeDriver()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with pytest.raises(NoDevice, match=r"built for CUDA 13\.0, the driver supports 12\.8"):
        import_pycuda(found)

    def broken():
        raise driver.LogicError("cuInit failed")

    driver.init = broken
    with pytest.raises(NoDevice, match="cuInit failed"):
        import_pycuda(Driver((13, 0), ()))
