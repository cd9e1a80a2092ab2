"""What only a real device can show. The contract of the primitives runs on it too (test_contract.py)."""

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from znni.errors import DeviceError, DeviceMemory
from znni.gpu import BlasSpec, FftSpec
from znni.gpu.convolution import ConvolutionSpec
from znni.gpu.cudnn import out_shape, weight_shape

pytestmark = pytest.mark.gpu

SCALE = """
#include "factor.cuh"
extern "C" __global__ void scaled(const float *x, float *y, int n, long long offset, float by) {
    extern __shared__ float tile[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i + offset] = tile[threadIdx.x] * by * FACTOR;
}
extern "C" __global__ void spoiled(float *x) { *x = 1.0f; }
"""


@pytest.fixture
def cuda(real_device):
    """The machine's device; whatever a test allocates it gives back."""
    real_device.reset_peak()
    held = real_device.peak_bytes
    yield real_device
    real_device.synchronise()
    real_device.reset_peak()
    assert real_device.peak_bytes == held


@pytest.fixture
def arrays(cuda):
    """Puts host arrays on the device."""
    held = []

    def put(array):
        memory = cuda.allocate(array.nbytes)
        held.append(memory)
        there = memory.array.view(array.dtype, array.shape)
        cuda.compute.copy(there, np.ascontiguousarray(array))
        return there

    yield put
    cuda.synchronise()
    for memory in held:
        memory.free()


def _back(cuda, array):
    host = np.empty(array.shape, array.dtype)
    cuda.compute.copy(host, array)
    cuda.compute.synchronise()
    return host


def _random(shape, dtype=np.float32):
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal((*shape, 2)).astype(np.float32)
    return x.view(np.complex64)[..., 0].copy() if np.dtype(dtype).kind == "c" else x[..., 0].copy()


def _error(value, truth):
    return np.linalg.norm((value - truth).ravel()) / np.linalg.norm(truth.ravel())


def test_it_says_what_it_is(cuda):
    assert cuda.name and cuda.architecture.startswith("sm_") and not cuda.simulated
    assert cuda.total_bytes >= cuda.free_bytes() > 0
    assert cuda.multiprocessors > 0 and cuda.shared_bytes >= 48 << 10


def test_copies_of_all_kinds(cuda):
    pinned = cuda.pinned(1 << 20)
    pinned[:] = np.arange(1 << 20) % 251
    memory = cuda.allocate(2 << 20)
    first, second = memory.array[: 1 << 20], memory.array[1 << 20 :]
    cuda.uploads.copy(first, pinned)
    cuda.compute.wait(cuda.uploads.record())
    cuda.compute.copy(second, first)
    cuda.downloads.wait(cuda.compute.record())
    back = cuda.pinned(1 << 20)
    cuda.downloads.copy(back, second)
    cuda.downloads.synchronise()
    np.testing.assert_array_equal(back, pinned)
    cuda.compute.zero(second)
    assert not _back(cuda, second).any()
    memory.free()


def test_rows_of_all_kinds(cuda, arrays):
    x = _random((7, 33))
    packed, wide = arrays(np.zeros((7, 5), np.float32)), arrays(np.zeros((7, 9), np.float32))
    cuda.compute.copy_rows(packed, 20, x, 132, 20, 7)
    cuda.compute.copy_rows(wide, 36, packed, 20, 20, 7)
    y = np.zeros_like(x)
    cuda.compute.copy_rows(y, 132, wide, 36, 20, 7)
    cuda.compute.synchronise()
    np.testing.assert_array_equal(y[:, :5], x[:, :5])
    assert not y[:, 5:].any() and not _back(cuda, wide)[:, 5:].any()


def test_copies_beyond_4_gib(cuda):
    nbytes = (4 << 30) + 4096
    if cuda.free_bytes() < 3 * nbytes:
        pytest.skip("it has too little memory")
    memory = cuda.allocate(2 * nbytes)
    one, other = memory.array[:nbytes], memory.array[nbytes:]
    cuda.compute.zero(one)
    mark = np.arange(4096, dtype=np.int64).astype(np.uint8)
    cuda.compute.copy(one[nbytes - 4096 :], mark)
    cuda.compute.copy(other, one)
    np.testing.assert_array_equal(_back(cuda, other[nbytes - 4096 :]), mark)
    pitch = 3 << 30
    gathered = one[1 << 20 : (1 << 20) + 3 * 4096]
    cuda.compute.copy_rows(gathered, 4096, memory.array, pitch, 4096, 3)
    ends = np.ones(3 * 4096, np.uint8)
    cuda.compute.copy(ends, gathered)
    cuda.compute.synchronise()
    assert not ends.any()
    memory.free()


def test_events_take_time(cuda, arrays):
    x = arrays(np.zeros(1 << 22, np.uint8))
    first = cuda.compute.record(timed=True)
    for _ in range(3000):
        cuda.compute.zero(x)
    last = cuda.compute.record(timed=True)
    assert last.seconds_since(first) > 0
    with pytest.raises(DeviceError):
        cuda.compute.record().seconds_since(first)


@pytest.mark.parametrize("n", [(48,), (12, 20), (8, 9, 10)])
def test_ffts_agree_with_numpy(cuda, arrays, n):
    batch, axes = 5, tuple(range(1, 1 + len(n)))
    x = _random((batch, *n))
    there = arrays(x)
    half = np.fft.rfftn(x, axes=axes)
    spectrum = arrays(np.zeros(half.shape, np.complex64))
    forward, back = cuda.fft(FftSpec.dense("r2c", n, batch)), cuda.fft(FftSpec.dense("c2r", n, batch))
    assert forward.work_bytes == cuda.fft_work_bytes(forward.spec)
    work = arrays(np.zeros(max(forward.work_bytes, back.work_bytes, 1), np.uint8))
    forward.run(cuda.compute, there, spectrum, work)
    assert _error(_back(cuda, spectrum), half) < 1e-5
    out = arrays(np.zeros_like(x))
    back.run(cuda.compute, spectrum, out, work)
    assert _error(_back(cuda, out) / np.prod(n), x) < 1e-5
    forward.free()
    back.free()


def test_strided_transforms_in_place(cuda, arrays):
    x = _random((6, 10, 14), np.complex64)
    there = arrays(x)
    fft = cuda.fft(FftSpec("c2c", (10,), 14, (10,), 14, 1, (10,), 14, 1))
    work = arrays(np.zeros(max(fft.work_bytes, 1), np.uint8))
    for plane in range(6):
        fft.run(cuda.compute, there[plane : plane + 1], there[plane : plane + 1], work)
    assert _error(_back(cuda, there), np.fft.fft(x, axis=1)) < 1e-5
    for plane in range(6):
        fft.run(cuda.compute, there[plane : plane + 1], there[plane : plane + 1], work, inverse=True)
    assert _error(_back(cuda, there) / 10, x) < 1e-5
    fft.free()


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_products_agree_with_numpy(cuda, arrays, is_complex, transposed, tf32):
    m, n, k, count = 48, 40, 64, 20
    dtype = np.complex64 if is_complex else np.float32
    a = _random((count, k, m) if transposed[0] else (count, m, k), dtype)
    b = _random((count, n, k) if transposed[1] else (count, k, n), dtype)
    c = arrays(np.zeros((count, m, n), dtype))
    spec = BlasSpec(
        is_complex, m, n, k, a.shape[2], b.shape[2], n, a[0].size, b[0].size, m * n, count, *transposed, tf32=tf32
    )  # fmt: skip
    work = arrays(np.zeros(cuda.blas_work_bytes, np.uint8))
    cuda.blas(cuda.compute, spec, arrays(a), arrays(b), c, work)
    x, y = (v.transpose(0, 2, 1) if t else v for v, t in zip((a, b), transposed, strict=True))
    truth = x.astype(np.complex128) @ y.astype(np.complex128)
    error = _error(_back(cuda, c), truth if is_complex else truth.real)
    assert error < (3e-3 if tf32 else 2e-6)


def test_very_many_small_products(cuda, arrays):
    count = 70_000
    a, b = _random((count, 2, 3), np.complex64), _random((count, 3, 2), np.complex64)
    c = arrays(np.zeros((count, 2, 2), np.complex64))
    work = arrays(np.zeros(cuda.blas_work_bytes, np.uint8))
    cuda.blas(cuda.compute, BlasSpec(True, 2, 2, 3, 3, 2, 2, 6, 6, 4, count), arrays(a), arrays(b), c, work)
    assert _error(_back(cuda, c), a @ b) < 1e-5


@pytest.mark.parametrize("tf32", [False, True])
def test_cudnn_convolves(cuda, arrays, tf32):
    if cuda.cudnn is None:
        pytest.skip("cuDNN is not installed")
    torch = pytest.importorskip("torch")
    spec = ConvolutionSpec((2, 8, 12, 13, 14), 16, (3, 3, 3), (1, 1, 1), (1, 0, 1), (1, 2, 1), tf32)
    x, w = _random(spec.shape), _random(weight_shape(spec))
    truth = torch.nn.functional.conv3d(
        *(torch.from_numpy(v).double() for v in (x, w)), padding=spec.padding, dilation=spec.dilation
    ).numpy()
    x_there, w_there, done = arrays(x), arrays(w), []
    for name in cuda.cudnn.algorithms():
        need = cuda.cudnn.workspace_bytes(spec, name)
        if need is None:
            continue
        out = arrays(np.full(out_shape(spec), np.nan, np.float32))
        work = arrays(np.zeros(max(need, 1), np.uint8))
        try:
            cuda.cudnn.convolve(cuda.compute, spec, name, x_there, w_there, out, work)
        except DeviceError:
            continue  # it may refuse only when asked to compute
        assert _error(_back(cuda, out), truth) < (3e-3 if tf32 else 2e-5), name
        done.append(name)
    assert done
    assert cuda.cudnn.workspace_bytes(replace(spec, shape=(1, 128, 256, 256, 256)), "implicit_gemm") is None


@pytest.fixture
def kernels(cuda, tmp_path, monkeypatch):
    """The device, with kernels of a test's own."""
    (tmp_path / "scale.cu").write_text(SCALE)
    (tmp_path / "factor.cuh").write_text("#ifndef FACTOR\n#define FACTOR 1.0f\n#endif\n")
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void wrong() { nonsense; }\n')
    monkeypatch.setattr(cuda._compiler, "_sources", tmp_path)
    return cuda


def test_kernels_take_all_kinds_of_arguments(kernels, arrays):
    n = 1000
    x = _random((n,))
    there, out = arrays(x), arrays(np.zeros(n + 24, np.float32))
    for nbytes in (4 * 128, min(kernels.shared_bytes, 100 << 10)):
        kernel = kernels.kernel("scale.cu", "scaled", {"FACTOR": "2.0f"})
        arguments = [there, out, np.int32(n), np.int64(24), np.float32(1.5)]
        kernels.compute.launch(kernel, (8, 1, 1), (128, 1, 1), arguments, shared_bytes=nbytes)
        np.testing.assert_array_equal(_back(kernels, out)[24:], x * np.float32(1.5) * 2)


def test_what_cannot_be_compiled_or_launched_is_an_error(kernels):
    with pytest.raises(DeviceError, match="nonsense"):
        kernels.kernel("wrong.cu", "wrong")
    with pytest.raises(DeviceError, match="no kernel missing"):
        kernels.kernel("scale.cu", "missing")
    kernel = kernels.kernel("scale.cu", "scaled")
    with pytest.raises(DeviceError, match="65536 blocks along y"):
        kernels.compute.launch(kernel, (1, 65536, 1), (1, 1, 1), [])
    kernels.synchronise()


def test_too_much_memory_is_an_error_and_all_goes_on(cuda):
    free = cuda.free_bytes()
    with pytest.raises(DeviceMemory, match="are free"):
        cuda.allocate(2 * cuda.total_bytes)
    memory = cuda.allocate(1 << 20)
    cuda.compute.zero(memory.array)
    cuda.compute.synchronise()
    memory.free()
    assert cuda.free_bytes() >= free - (64 << 20)


def test_another_thread_may_use_it(cuda, arrays):
    x = _random((1000,))
    there, found = arrays(x), []

    def work():
        pinned = cuda.pinned(4000).view(np.float32)
        cuda.downloads.copy(pinned, there)
        cuda.downloads.record().synchronise()
        found.append(pinned.copy())

    cuda.compute.synchronise()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], x)


def test_a_kernel_that_writes_astray_loses_the_device_and_only_this_process(tmp_path, cuda):
    (tmp_path / "scale.cu").write_text(SCALE.replace('#include "factor.cuh"', "#define FACTOR 1"))
    program = f"""
import pathlib, numpy as np, znni.gpu
from znni.errors import DeviceLost
from znni.gpu import DeviceArray
device = znni.gpu.open_device()
device._compiler._sources = pathlib.Path({str(tmp_path)!r})
memory = device.allocate(1 << 20)
kernel = device.kernel("scale.cu", "spoiled")
device.compute.launch(kernel, (1, 1, 1), (1, 1, 1), [DeviceArray(64, (1,), np.dtype(np.float32))])
for attempt in (device.compute.synchronise, device.free_bytes, lambda: device.allocate(8)):
    try:
        attempt()
    except DeviceLost as error:
        print(error)
    else:
        raise SystemExit("it went on")
znni.gpu.close_device()
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is lost to this process") == 3 and done.stdout.endswith("closed\n")
    cuda.synchronise()


def test_it_can_be_closed_and_opened_again_in_a_process():
    program = """
import numpy as np, znni.gpu
for _ in range(2):
    with znni.gpu.open_device() as device:
        memory = device.allocate(1 << 20)
        device.compute.zero(memory.array)
        device.compute.synchronise()
znni.gpu.open_device().pinned(64)  # and one is left to the end of the process
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    if "NoDevice" in done.stderr:
        pytest.skip("there is no device")
    assert done.returncode == 0 and "PyCUDA" not in done.stderr, done.stderr
