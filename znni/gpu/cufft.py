"""cuFFT's batched transforms, through scikit-cuda's handle. Plans allocate no work area: it is given to each run."""

from __future__ import annotations

import ctypes
from types import ModuleType

from znni.errors import DeviceError, DeviceMemory, InvalidShape
from znni.gpu.cuda_context import CudaContext
from znni.gpu.cuda_streams import CudaStream
from znni.gpu.device import DeviceArray, Fft, FftSpec

_KINDS = {"r2c": "CUFFT_R2C", "c2r": "CUFFT_C2R", "c2c": "CUFFT_C2C"}
_REAL_BYTES, _COMPLEX_BYTES = 4, 8
#: Bytes of an element of (input, output).
_ELEMENT_BYTES = {
    "r2c": (_REAL_BYTES, _COMPLEX_BYTES),
    "c2r": (_COMPLEX_BYTES, _REAL_BYTES),
    "c2c": (_COMPLEX_BYTES, _COMPLEX_BYTES),
}
#: Kernels that a transform may launch, roughly.
_LAUNCHES = 4
_ALLOC_FAILED = 2
_WORDS = {
    1: "invalid plan", _ALLOC_FAILED: "no memory left", 3: "invalid type", 4: "invalid value", 5: "internal error",
    6: "execution failed", 7: "set-up failed", 8: "a size that it cannot transform", 9: "unaligned data",
    11: "another device", 13: "no work area", 14: "not implemented", 16: "not supported", 17: "a library is missing",
    18: "its run-time compiler failed", 19: "its run-time linker failed",
}  # fmt: skip


class CudaFft(Fft):
    """A plan of cuFFT.

    Parameters
    ----------
    context : CudaContext
    cufft : module
        `skcuda.cufft`.
    spec : FftSpec
    """

    def __init__(self, context: CudaContext, cufft: ModuleType, spec: FftSpec):
        self.spec = spec
        self._context, self._library = context, cufft._libcufft
        self._execute = getattr(self._library, f"cufftExec{spec.kind.upper()}")
        self._directions = (cufft.CUFFT_FORWARD, cufft.CUFFT_INVERSE)
        self._stream: int | None = None
        self._work: int | None = None
        self._plan: ctypes.c_int | None = None
        plan, work_bytes = ctypes.c_int(), ctypes.c_size_t()
        rank = len(spec.n)
        sizes = ctypes.c_longlong * rank
        with context:
            self._check("cufftCreate", self._library.cufftCreate(ctypes.byref(plan)))
            self._plan = plan
            self._check("cufftSetAutoAllocation", self._library.cufftSetAutoAllocation(plan, 0))
            status = self._library.cufftMakePlanMany64(
                plan, rank, sizes(*map(int, spec.n)),
                sizes(*map(int, spec.in_embed)), int(spec.in_stride), int(spec.in_distance),
                sizes(*map(int, spec.out_embed)), int(spec.out_stride), int(spec.out_distance),
                getattr(cufft, _KINDS[spec.kind]), int(spec.batch), ctypes.byref(work_bytes),
            )  # fmt: skip
            if status != 0:
                self._destroy()
            self._check("cufftMakePlanMany64", status)
        self.work_bytes = int(work_bytes.value)

    def run(
        self, stream: CudaStream, x: DeviceArray, out: DeviceArray, work: DeviceArray | None, inverse: bool = False
    ) -> None:
        if self._plan is None:
            raise DeviceError("a transform was run after it had been freed")
        for array, need in zip((x, out), needed_bytes(self.spec), strict=True):
            if array.nbytes < need:
                raise InvalidShape(f"{self.spec} reaches over {need} bytes, got an array of {array.nbytes}")
        if self.work_bytes and (work is None or work.nbytes < self.work_bytes):
            given = 0 if work is None else work.nbytes
            raise InvalidShape(f"{self.spec} needs {self.work_bytes} bytes to work in, got {given}")
        with self._context:
            if stream.handle != self._stream:
                self._check("cufftSetStream", self._library.cufftSetStream(self._plan, stream.handle))
                self._stream = stream.handle
            if self.work_bytes and work.pointer != self._work:
                self._check("cufftSetWorkArea", self._library.cufftSetWorkArea(self._plan, work.pointer))
                self._work = work.pointer
            stream.pace(_LAUNCHES)
            direction = (self._directions[inverse],) if self.spec.kind == "c2c" else ()
            self._check(self._execute.__name__, self._execute(self._plan, x.pointer, out.pointer, *direction))

    def free(self) -> None:
        if self._plan is None:
            return
        if self._context.closed or self._context.lost is not None:
            self._plan = None  # its tables went with the context
            return
        with self._context:
            self._destroy()

    def __del__(self) -> None:
        if getattr(self, "_plan", None) is not None:
            self._context.discard(_Plan(self._context, self._library, self._plan))

    def _destroy(self) -> None:
        plan, self._plan = self._plan, None
        self._library.cufftDestroy(plan)

    def _check(self, call: str, status: int) -> None:
        if status == 0:
            return
        words = f"{call}: {_WORDS.get(status, 'failed')} (status {status}), for {self.spec}"
        if status == _ALLOC_FAILED:
            raise DeviceMemory(f"{self._context.name} has no memory left for a transform's tables: {words}")
        raise self._context.failure(words)


class _Plan:
    """A plan that its transform has left: destroyed when it is dropped, which the context does while it is current."""

    def __init__(self, context: CudaContext, library: ctypes.CDLL, plan: ctypes.c_int):
        self._context, self._library, self._plan = context, library, plan

    def __del__(self) -> None:
        if not self._context.closed and self._context.lost is None:
            self._library.cufftDestroy(self._plan)


def needed_bytes(spec: FftSpec) -> tuple[int, int]:
    """Bytes from the start of (input, output) to the end of what a transform reaches."""
    half = (*spec.n[:-1], spec.n[-1] // 2 + 1)
    shapes = {"r2c": (spec.n, half), "c2r": (half, spec.n), "c2c": (spec.n, spec.n)}[spec.kind]
    layouts = (
        (spec.in_embed, spec.in_stride, spec.in_distance), (spec.out_embed, spec.out_stride, spec.out_distance),
    )  # fmt: skip
    needed = []
    for shape, (embed, stride, distance), element in zip(shapes, layouts, _ELEMENT_BYTES[spec.kind], strict=True):
        last = 0
        for axis, n in enumerate(shape):
            last = last * embed[axis] + n - 1
        needed.append(((spec.batch - 1) * distance + last * stride + 1) * element)
    return needed[0], needed[1]
