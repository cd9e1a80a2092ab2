"""cuBLAS's batched matrix products, through scikit-cuda's handle. Its work area is given to each call.

cuBLAS is column-major: a row-major m x k matrix is to it the k x m transpose. So ``C = A B`` is asked for as ``C' = B' A'``:
the factors change places, and nothing is copied.
"""

from __future__ import annotations

import ctypes
from types import ModuleType

from znni.errors import DeviceError, DeviceMemory, InvalidShape
from znni.gpu.cuda_context import CudaContext
from znni.gpu.cuda_streams import CudaStream
from znni.gpu.device import BlasSpec, DeviceArray

_KEEP, _TRANSPOSE = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
_REAL_32, _COMPLEX_32 = 0, 4  # CUDA_R_32F, CUDA_C_32F
_COMPUTE_32, _COMPUTE_TF32 = 68, 77  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
_DEFAULT_ALGORITHM = -1
#: Matrices a call: more than 65535 were refused by older versions. A power of two keeps the pieces' alignment.
_MOST_MATRICES = 1 << 15
#: Sizes are 32-bit integers in this interface.
_END_OF_INT = 1 << 31
_ALLOC_FAILED = 3
_WORDS = {
    1: "not initialised", _ALLOC_FAILED: "no memory left", 7: "invalid value", 8: "this device cannot do it",
    11: "its memory cannot be reached", 13: "execution failed", 14: "internal error", 15: "not supported",
}  # fmt: skip
#: Work area that NVIDIA recommends (cuBLAS documentation, cublasSetWorkspace), by major compute capability.
_WORK_BYTES = {9: 32 << 20, 10: 32 << 20, 12: 12 << 20}
_OTHER_WORK_BYTES = 4 << 20


def work_bytes(architecture: str) -> int:
    """Bytes that cuBLAS should be given to work in on this architecture, ``sm_90``."""
    major = int("".join(filter(str.isdigit, architecture))) // 10
    return _WORK_BYTES.get(major, _OTHER_WORK_BYTES)


class CuBlas:
    """A handle of cuBLAS; made with the first product.

    Parameters
    ----------
    context : CudaContext
    cublas : module
        `skcuda.cublas`.
    """

    def __init__(self, context: CudaContext, cublas: ModuleType):
        self._context, self._library = context, cublas._libcublas
        self._handle: int | None = None
        self._set: tuple[int, int, int] | None = None

    def multiply(
        self,
        stream: CudaStream,
        spec: BlasSpec,
        a: DeviceArray,
        b: DeviceArray,
        c: DeviceArray,
        work: DeviceArray,
        alpha: complex = 1.0,
        beta: complex = 0.0,
    ) -> None:
        """Enqueue ``C = alpha A B + beta C``, for each matrix."""
        check(spec, a, b, c)
        if spec.count == 0:
            return
        element = element_bytes(spec)
        kind = _COMPLEX_32 if spec.complex else _REAL_32
        compute = _COMPUTE_TF32 if spec.tf32 else _COMPUTE_32
        scale = ctypes.c_float * (2 if spec.complex else 1)
        alpha_there, beta_there = (scale(*_parts(value, spec.complex)) for value in (alpha, beta))
        op_a, op_b = (_TRANSPOSE if transposed else _KEEP for transposed in (spec.transpose_a, spec.transpose_b))
        with self._context:
            self._prepare(stream, work)
            for first in range(0, spec.count, _MOST_MATRICES):
                count = min(_MOST_MATRICES, spec.count - first)
                stream.pace()
                self._check(
                    "cublasGemmStridedBatchedEx",
                    self._library.cublasGemmStridedBatchedEx(
                        self._handle, op_b, op_a, int(spec.n), int(spec.m), int(spec.k), ctypes.byref(alpha_there),
                        b.pointer + int(first * spec.stride_b) * element, kind, int(spec.ldb), int(spec.stride_b),
                        a.pointer + int(first * spec.stride_a) * element, kind, int(spec.lda), int(spec.stride_a),
                        ctypes.byref(beta_there),
                        c.pointer + int(first * spec.stride_c) * element, kind, int(spec.ldc), int(spec.stride_c),
                        count, compute, _DEFAULT_ALGORITHM,
                    ),
                    spec,
                )  # fmt: skip

    def close(self) -> None:
        """Give back the handle. The context must be current."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._library.cublasDestroy_v2(handle)

    def _prepare(self, stream: CudaStream, work: DeviceArray) -> None:
        if self._handle is None:
            handle = ctypes.c_void_p()
            self._check("cublasCreate", self._library.cublasCreate_v2(ctypes.byref(handle)), None)
            self._handle = handle.value
        wanted = (stream.handle, work.pointer, work.nbytes)
        if wanted != self._set:
            self._set = None
            self._check("cublasSetStream", self._library.cublasSetStream_v2(self._handle, stream.handle), None)
            # after the stream, which sets it back to one of the library's own
            status = self._library.cublasSetWorkspace_v2(self._handle, work.pointer, work.nbytes)
            self._check("cublasSetWorkspace", status, None)
            self._set = wanted

    def _check(self, call: str, status: int, spec: BlasSpec | None) -> None:
        if status == 0:
            return
        of = "" if spec is None else f", for {spec}"
        words = f"{call}: {_WORDS.get(status, 'failed')} (status {status}){of}"
        if status == _ALLOC_FAILED:
            raise DeviceMemory(f"{self._context.name} has no memory left for cuBLAS: {words}")
        raise self._context.failure(words)


def element_bytes(spec: BlasSpec) -> int:
    """Bytes of an element of the matrices."""
    return 8 if spec.complex else 4


def check(spec: BlasSpec, a: DeviceArray, b: DeviceArray, c: DeviceArray) -> None:
    """`InvalidShape` where the matrices would reach beyond their arrays, `DeviceError` where a size is past 32 bits."""
    if max(spec.m, spec.n, spec.k, spec.lda, spec.ldb, spec.ldc, spec.count) >= _END_OF_INT:
        raise DeviceError(f"cuBLAS takes sizes below 2^31, got {spec}")
    stored = {
        "A": (a, (spec.k, spec.m) if spec.transpose_a else (spec.m, spec.k), spec.lda, spec.stride_a),
        "B": (b, (spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n), spec.ldb, spec.stride_b),
        "C": (c, (spec.m, spec.n), spec.ldc, spec.stride_c),
    }
    for name, (array, (rows, columns), leading, stride) in stored.items():
        if columns > leading:
            raise InvalidShape(f"rows of {columns} elements of {name} cannot begin {leading} apart: {spec}")
        need = ((spec.count - 1) * stride + (rows - 1) * leading + columns) * element_bytes(spec)
        if spec.count and array.nbytes < need:
            raise InvalidShape(f"{name} reaches over {need} bytes, got an array of {array.nbytes}: {spec}")


def _parts(value: complex, is_complex: bool) -> tuple[float, ...]:
    value = complex(value)
    return (value.real, value.imag) if is_complex else (value.real,)
