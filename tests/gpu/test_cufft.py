"""cuFFT is asked for the right transforms: a handle that reads its advanced layout as is documented, against NumPy."""

import ctypes
import gc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.errors import DeviceError, DeviceMemory, InvalidShape
from znni.gpu import FftSpec
from znni.gpu.cufft import CudaFft, needed_bytes

from .fake_cuda import FakeContext, FakeStream, on_host

R2C, C2R, C2C = 0x2A, 0x2C, 0x29
WORK_BYTES = 48


class Library:
    """cuFFT's handle. A transform that was not given stream and work area fails; auto allocation is refused."""

    def __init__(self):
        self.plans, self.status, self.destroyed = {}, {}, []
        self.cufftExecR2C = self._execute("r2c")
        self.cufftExecC2R = self._execute("c2r")
        self.cufftExecC2C = self._execute("c2c")

    def cufftCreate(self, plan):
        plan._obj.value = len(self.plans) + 1
        self.plans[plan._obj.value] = SimpleNamespace(auto=True, stream=None, work=None)
        return 0

    def cufftDestroy(self, plan):
        self.destroyed.append(plan.value)
        return 0

    def cufftSetAutoAllocation(self, plan, auto):
        self.plans[plan.value].auto = bool(auto)
        return 0

    def cufftMakePlanMany64(
        self, plan, rank, n, in_embed, in_stride, in_distance, out_embed, out_stride, out_distance, kind, batch, work
    ):
        assert rank == len(n) and not self.plans[plan.value].auto
        assert all(isinstance(values, ctypes.c_longlong * rank) for values in (n, in_embed, out_embed))
        self.plans[plan.value].__dict__.update(
            kind=kind, n=tuple(n), batch=batch,
            layouts=((tuple(in_embed), in_stride, in_distance), (tuple(out_embed), out_stride, out_distance)),
        )  # fmt: skip
        work._obj.value = WORK_BYTES
        return self.status.get("make", 0)

    def cufftSetStream(self, plan, stream):
        self.plans[plan.value].stream = stream
        return 0

    def cufftSetWorkArea(self, plan, pointer):
        self.plans[plan.value].work = pointer
        return 0

    def _execute(self, name):
        def execute(plan, x, out, *direction):
            made = self.plans[plan.value]
            if made.stream is None or made.work is None:
                return 13
            axes = tuple(range(1, 1 + len(made.n)))
            half = (*made.n[:-1], made.n[-1] // 2 + 1)
            size = np.prod(made.n)
            if name == "r2c":
                values = np.fft.rfftn(self._view(x, made, 0, made.n, np.float32), axes=axes)
                shape, dtype = half, np.complex64
            elif name == "c2r":
                values = np.fft.irfftn(self._view(x, made, 0, half, np.complex64), s=made.n, axes=axes) * size
                shape, dtype = made.n, np.float32
            else:
                data = self._view(x, made, 0, made.n, np.complex64)
                values = np.fft.fftn(data, axes=axes) if direction[0] == -1 else np.fft.ifftn(data, axes=axes) * size
                shape, dtype = made.n, np.complex64
            self._view(out, made, 1, shape, dtype)[...] = values
            return 0

        return execute

    @staticmethod
    def _view(pointer, made, side, shape, dtype):
        embed, stride, distance = made.layouts[side]
        steps = [stride * int(np.prod(embed[axis + 1 :])) for axis in range(len(shape))]
        size = (made.batch - 1) * distance + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1
        item = np.dtype(dtype).itemsize
        flat = np.frombuffer((ctypes.c_byte * (size * item)).from_address(pointer), dtype)
        strides = [step * item for step in (distance, *steps)]
        return np.lib.stride_tricks.as_strided(flat, (made.batch, *shape), strides, writeable=True)


def _module():
    return SimpleNamespace(
        _libcufft=Library(), CUFFT_R2C=R2C, CUFFT_C2R=C2R, CUFFT_C2C=C2C, CUFFT_FORWARD=-1, CUFFT_INVERSE=1
    )


def _fft(spec):
    module = _module()
    return CudaFft(FakeContext(), module, spec), module._libcufft


def _run(fft, x, out, inverse=False):
    work = np.zeros(WORK_BYTES, np.uint8)
    fft.run(FakeStream(), on_host(x), on_host(out), on_host(work), inverse)


@settings(max_examples=30, deadline=None)
@given(n=st.lists(st.integers(1, 6), min_size=1, max_size=3), batch=st.integers(1, 4), data=st.data())
def test_dense_transforms(n, batch, data):
    rng = np.random.default_rng(0)
    kind = data.draw(st.sampled_from(["r2c", "c2c"]))
    axes = tuple(range(1, 1 + len(n)))
    spec = FftSpec.dense(kind, n, batch)
    x = rng.standard_normal((batch, *n)).astype(np.float32)
    x = x if kind == "r2c" else (x + 1j * x[::-1]).astype(np.complex64)
    truth = np.fft.rfftn(x, axes=axes) if kind == "r2c" else np.fft.fftn(x, axes=axes)
    out = np.empty(truth.shape, np.complex64)
    fft, _ = _fft(spec)
    assert fft.work_bytes == WORK_BYTES and fft.spec == spec
    assert needed_bytes(spec) == (x.nbytes, out.nbytes)
    _run(fft, x, out)
    np.testing.assert_allclose(out, truth, rtol=1e-4, atol=1e-4)
    back, _ = _fft(FftSpec.dense("c2r" if kind == "r2c" else "c2c", n, batch))
    again = np.empty_like(x)
    _run(back, out, again, inverse=True)
    np.testing.assert_allclose(again / np.prod(n), x, rtol=1e-4, atol=1e-4)


def test_strided_lines_in_place_with_room():
    """Lines along the middle axis of (4, 5, 3), as `FftSpec` has no batch of two axes: one plane at a time."""
    x = (np.arange(60) + 1j).astype(np.complex64).reshape(4, 5, 3)
    truth = np.fft.fft(x, axis=1)
    spec = FftSpec("c2c", (5,), 3, (5,), 3, 1, (5,), 3, 1)
    fft, _ = _fft(spec)
    for plane in x:
        _run(fft, plane, plane)
    np.testing.assert_allclose(x, truth, rtol=1e-4, atol=1e-4)


def test_real_lines_into_rows_that_are_farther_apart():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    out = np.zeros((3, 7), np.complex64)
    fft, _ = _fft(FftSpec.lines("r2c", 6, 3, 8, 7))
    _run(fft, x, out)
    np.testing.assert_allclose(out[:, :4], np.fft.rfft(x[:, :6]), rtol=1e-4, atol=1e-5)
    assert not out[:, 4:].any()


def test_a_plan_is_destroyed_once():
    fft, library = _fft(FftSpec.dense("r2c", (4,), 1))
    fft.free()
    fft.free()
    assert library.destroyed == [1]
    with pytest.raises(DeviceError, match="freed"):
        _run(fft, np.zeros(4, np.float32), np.zeros(3, np.complex64))


def test_a_plan_that_is_dropped_is_destroyed_by_the_context():
    discarded = []
    context, module = FakeContext(), _module()
    context.discard = discarded.append
    CudaFft(context, module, FftSpec.dense("r2c", (4,), 1))
    gc.collect()
    assert len(discarded) == 1 and not module._libcufft.destroyed
    discarded.clear()
    gc.collect()
    assert module._libcufft.destroyed == [1]


@pytest.mark.parametrize(("status", "error"), [(2, DeviceMemory), (8, DeviceError)])
def test_a_plan_that_cannot_be_made_leaves_nothing(status, error):
    module = _module()
    module._libcufft.status["make"] = status
    with pytest.raises(error, match=f"status {status}"):
        CudaFft(FakeContext(), module, FftSpec.dense("r2c", (4,), 1))
    assert module._libcufft.destroyed == [1]


def test_arrays_and_work_area_must_be_large_enough():
    fft, _ = _fft(FftSpec.dense("r2c", (4, 4), 2))
    x, out, work = (np.zeros(n, t) for n, t in ((32, np.float32), (24, np.complex64), (WORK_BYTES, np.uint8)))
    for arrays in ((x[:31], out, work), (x, out[:23], work), (x, out, work[:-1]), (x, out, None)):
        with pytest.raises(InvalidShape):
            fft.run(FakeStream(), *(None if array is None else on_host(array) for array in arrays))
