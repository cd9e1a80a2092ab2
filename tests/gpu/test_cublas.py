"""cuBLAS is asked for the right products: a handle that computes them column-major, as the library documents, against NumPy."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.errors import DeviceError, DeviceMemory, InvalidShape
from znni.gpu import BlasSpec, cublas
from znni.gpu.cublas import CuBlas, work_bytes

from .fake_cuda import FakeContext, FakeStream, on_host

WORK = np.zeros(64, np.uint8)


def _column_major(pointer, rows, columns, leading, dtype):
    flat = (ctypes.c_byte * (((columns - 1) * leading + rows) * dtype.itemsize)).from_address(pointer)
    flat = np.frombuffer(flat, dtype)
    return np.lib.stride_tricks.as_strided(
        flat, (rows, columns), (dtype.itemsize, leading * dtype.itemsize), writeable=True
    )


class Handle:
    """Of cuBLAS; `counts` are the batches that it was given, `log` the order of calls."""

    def __init__(self):
        self.counts, self.computes, self.log, self.status = [], [], [], 0

    def cublasCreate_v2(self, handle):
        self.log.append("create")
        handle._obj.value = 99
        return 0

    def cublasDestroy_v2(self, handle):
        self.log.append("destroy")
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.log.append("stream")
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, nbytes):
        self.log.append("workspace")
        return 0

    def cublasGemmStridedBatchedEx(
        self, handle, op_a, op_b, m, n, k, alpha, a, a_kind, lda, stride_a, b, b_kind, ldb, stride_b, beta, c, c_kind, ldc,
        stride_c, count, compute, algorithm,
    ):  # fmt: skip
        assert (handle, algorithm) == (99, -1) and a_kind == b_kind == c_kind
        if self.status:
            return self.status
        dtype = np.dtype({0: np.float32, 4: np.complex64}[a_kind])
        alpha, beta = (complex(*value._obj) for value in (alpha, beta))
        for i in range(count):
            x, y = (
                _column_major(p + i * stride * dtype.itemsize, *(shape[::-1] if op else shape), leading, dtype)
                for p, stride, op, shape, leading in (
                    (a, stride_a, op_a, (m, k), lda),
                    (b, stride_b, op_b, (k, n), ldb),
                )
            )
            out = _column_major(c + i * stride_c * dtype.itemsize, m, n, ldc, dtype)
            product = alpha * ((x.T if op_a else x) @ (y.T if op_b else y)) + beta * out
            out[...] = product if dtype.kind == "c" else product.real
        self.counts.append(count)
        self.computes.append(compute)
        return 0


def _blas():
    handle, context = Handle(), FakeContext()
    return CuBlas(context, SimpleNamespace(_libcublas=handle)), handle


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    pads=st.tuples(*[st.integers(0, 3)] * 3),
    transposed=st.tuples(st.booleans(), st.booleans()),
    is_complex=st.booleans(),
    tf32=st.booleans(),
    shared=st.booleans(),
    beta=st.sampled_from([0.0, 1.0, -0.5]),
)
def test_row_major_products(sizes, pads, transposed, is_complex, tf32, shared, beta):
    m, n, k, count = sizes
    rng = np.random.default_rng(0)
    stored = [(k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n), (m, n)]
    arrays = []
    for (rows, columns), pad in zip(stored, pads, strict=True):
        values = rng.standard_normal((count, rows, columns + pad, 2)).astype(np.float32)
        arrays.append(np.ascontiguousarray(values.view(np.complex64)[..., 0] if is_complex else values[..., 0]))
    a, b, c = arrays
    x, y, before = (array[..., :columns].copy() for array, (_, columns) in zip(arrays, stored, strict=True))
    if shared:
        x[:] = x[0]
    x, y = (v.transpose(0, 2, 1) if t else v for v, t in zip((x, y), transposed, strict=True))
    alpha = 0.5 + 0.25j if is_complex else 0.5
    spec = BlasSpec(
        is_complex, m, n, k, a.shape[2], b.shape[2], c.shape[2], 0 if shared else a[0].size, b[0].size, c[0].size, count,
        *transposed, tf32,
    )  # fmt: skip
    blas, handle = _blas()
    padding = c[..., n:].copy()
    blas.multiply(FakeStream(), spec, *map(on_host, (a, b, c)), on_host(WORK), alpha, beta)
    np.testing.assert_allclose(c[..., :n], alpha * (x @ y) + beta * before, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(c[..., n:], padding)
    assert handle.computes == [77 if tf32 else 68]


def test_many_matrices_go_in_pieces(monkeypatch):
    monkeypatch.setattr(cublas, "_MOST_MATRICES", 4)
    blas, handle = _blas()
    a, b = np.random.default_rng(0).standard_normal((2, 11, 2, 2)).astype(np.float32)
    c = np.empty_like(a)
    blas.multiply(FakeStream(), BlasSpec(False, 2, 2, 2, 2, 2, 2, 4, 4, 4, 11), *map(on_host, (a, b, c)), on_host(WORK))
    np.testing.assert_allclose(c, a @ b, rtol=1e-5)
    assert handle.counts == [4, 4, 3]


def test_the_work_area_is_set_after_the_stream_and_only_anew_where_they_change():
    blas, handle = _blas()
    x = np.ones((1, 1, 1), np.float32)
    spec, stream = BlasSpec(False, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), FakeStream()
    for work in (WORK, WORK, WORK[32:]):
        blas.multiply(stream, spec, *map(on_host, (x, x, x.copy())), on_host(work))
    blas.close()
    blas.close()
    assert handle.log == ["create", "stream", "workspace", "stream", "workspace", "destroy"]


@pytest.mark.parametrize(("status", "error"), [(3, DeviceMemory), (13, DeviceError)])
def test_what_the_library_says_is_passed_on(status, error):
    blas, handle = _blas()
    handle.status = status
    x = np.ones((1, 1, 1), np.float32)
    with pytest.raises(error, match=f"status {status}"):
        blas.multiply(
            FakeStream(), BlasSpec(False, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), *map(on_host, (x, x, x)), on_host(WORK)
        )


def test_matrices_must_lie_within_their_arrays():
    blas, _ = _blas()
    x = np.ones((1, 2, 2), np.float32)
    for spec in (
        BlasSpec(False, 2, 2, 2, 2, 2, 2, 4, 4, 4, 2),
        BlasSpec(False, 2, 2, 2, 3, 2, 2, 4, 4, 4, 1),
        BlasSpec(False, 2, 2, 2, 2, 1, 2, 4, 4, 4, 1),
        BlasSpec(True, 2, 2, 2, 2, 2, 2, 4, 4, 4, 1),
    ):
        with pytest.raises(InvalidShape):
            blas.multiply(FakeStream(), spec, *map(on_host, (x, x, x)), on_host(WORK))
    with pytest.raises(DeviceError, match=r"2\^31"):
        blas.multiply(FakeStream(), BlasSpec(False, 1, 1, 1, 1 << 31, 1, 1, 0, 0, 0, 1), *map(on_host, (x, x, x)), None)


def test_the_work_area_follows_the_architecture():
    assert [work_bytes(name) >> 20 for name in ("sm_75", "sm_86", "sm_90", "sm_100", "sm_120")] == [4, 4, 32, 32, 12]
