"""Matrix products: NumPy's, in the layouts that `BlasSpec` describes."""

from __future__ import annotations

import numpy as np

from znni.errors import DeviceError
from znni.gpu.device import BlasSpec, DeviceArray

#: Made up.
WORK_BYTES = 96 << 10
_GARBAGE = 0xFF


def rounded_to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 or complex64 `x` with 10 bits of mantissa, to nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    kept = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(bits.view(np.float32)), kept.view(np.float32), bits.view(np.float32)).view(x.dtype)


def _view(device, array: DeviceArray, spec: BlasSpec, which: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Matrix `which` as stored, (count, rows, columns), and the addresses that it spans."""
    dtype = np.dtype(np.complex64 if spec.complex else np.float32)
    rows, columns = {
        "a": (spec.k, spec.m) if spec.transpose_a else (spec.m, spec.k),
        "b": (spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n),
        "c": (spec.m, spec.n),
    }[which]
    leading, stride = getattr(spec, f"ld{which}"), getattr(spec, f"stride_{which}")
    if leading < columns or stride < 0:
        raise DeviceError(f"rows of {columns} elements cannot lie {leading} apart: {spec}")
    if which == "c" and spec.count > 1 and stride < (rows - 1) * leading + columns:
        raise DeviceError(f"the products overlap: {spec}")
    need = ((spec.count - 1) * stride + (rows - 1) * leading + columns) * dtype.itemsize
    if need > array.nbytes or array.pointer % dtype.itemsize:
        raise DeviceError(f"matrix {which} takes {need} aligned bytes, got {array.nbytes}: {spec}")
    flat = device.memory.view(array, "a matrix product").reshape(-1).view(np.uint8)[:need].view(dtype)
    strides = [n * dtype.itemsize for n in (stride, leading, 1)]
    view = np.lib.stride_tricks.as_strided(flat, (spec.count, rows, columns), strides)
    return view, (array.pointer, array.pointer + need)


def multiply(
    device, stream, spec: BlasSpec, a: DeviceArray, b: DeviceArray, c: DeviceArray, work: DeviceArray, alpha, beta
) -> None:
    """Enqueue the products."""
    if min(spec.m, spec.n, spec.k, spec.count) < 1 or max(spec.m, spec.n, spec.k, spec.lda, spec.ldb, spec.ldc) >= 2**31:
        raise DeviceError(f"sizes of a matrix product are 1 to 2^31 - 1, got {spec}")
    if not spec.complex and (complex(alpha).imag or complex(beta).imag):
        raise DeviceError("real products have real factors")
    if work.nbytes < device.blas_work_bytes:
        raise DeviceError(f"a matrix product was not given its {device.blas_work_bytes} bytes to work in, got {work.nbytes}")

    def views():
        (x, x_span), (y, y_span), (out, out_span) = (
            _view(device, array, spec, which) for array, which in ((a, "a"), (b, "b"), (c, "c"))
        )
        work_span = (work.pointer, work.pointer + device.blas_work_bytes)
        for one, other in ((out_span, x_span), (out_span, y_span), *((work_span, s) for s in (x_span, y_span, out_span))):
            if one[0] < other[1] and other[0] < one[1]:
                raise DeviceError(f"what a matrix product writes overlaps what it reads: {spec}")
        return x, y, out

    def compute():
        x, y, out = views()
        device.memory.view(work, "a matrix product").reshape(-1).view(np.uint8)[: device.blas_work_bytes] = _GARBAGE
        if spec.tf32:
            x, y = rounded_to_tf32(x), rounded_to_tf32(y)
        x = x.transpose(0, 2, 1) if spec.transpose_a else x
        y = y.transpose(0, 2, 1) if spec.transpose_b else y
        scalar = out.dtype.type
        made = scalar(alpha) * np.matmul(x, y)
        out[...] = made if beta == 0 else made + scalar(beta) * out

    views()
    device.memory.check(work, "a matrix product")
    stream.enqueue("blas", compute)
