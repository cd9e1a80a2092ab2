"""What the GPU primitives ask of a device, whether a real one (`cuda_device.py`) or the one that tests simulate.

Work is *enqueued* on streams: a call returns before it is done. What one stream is given is done in that order; between
streams there is no order but that of events. A host array that a stream reads or writes must be left alone until the stream
has been synchronised. No call allocates device memory but `Device.allocate`; what libraries need to work in is given to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from znni.errors import InvalidShape

#: Allocations, and what is carved out of them, start at multiples of this.
DEVICE_ALIGNMENT_BYTES = 256


def device_aligned(nbytes: int) -> int:
    """`nbytes` rounded up to `DEVICE_ALIGNMENT_BYTES`."""
    return -(-nbytes // DEVICE_ALIGNMENT_BYTES) * DEVICE_ALIGNMENT_BYTES


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in device memory that somebody else owns.

    Attributes
    ----------
    pointer : int
        Address on the device.
    shape : tuple of int
    dtype : numpy.dtype
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Rows start:stop of the first axis."""
        start, stop, step = rows.indices(self.shape[0])
        if step != 1 or stop < start:
            raise InvalidShape(f"a slice of a device array is start:stop, got {rows}")
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.pointer + start * row_bytes, (stop - start, *self.shape[1:]), self.dtype)

    def view(self, dtype: np.typing.DTypeLike, shape: Sequence[int], offset_bytes: int = 0) -> DeviceArray:
        """Part of these bytes, from `offset_bytes` on, as another array; `InvalidShape` where it would reach beyond."""
        made = DeviceArray(self.pointer + offset_bytes, tuple(int(n) for n in shape), np.dtype(dtype))
        if offset_bytes < 0 or offset_bytes + made.nbytes > self.nbytes:
            raise InvalidShape(f"{made.nbytes} bytes from {offset_bytes} on are more than the {self.nbytes} there are")
        return made


class Allocation(ABC):
    """Device memory that is owned: `array` is all of it, as bytes."""

    array: DeviceArray

    @abstractmethod
    def free(self) -> None:
        """Give it back; a second time does nothing."""


class Event(ABC):
    """A point in a stream's work."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until all work before it is done."""

    @abstractmethod
    def seconds_since(self, earlier: Event) -> float:
        """Seconds on the device from `earlier` to this one, both recorded with ``timed=True``; waits for both."""


class Kernel:
    """A compiled ``extern "C" __global__`` function."""

    #: Threads a block that it can be launched with at most.
    most_threads: int = 1024


#: What a kernel can be given: a device array (its address; None: a null pointer), or a NumPy scalar of the parameter's type.
Argument = DeviceArray | np.int32 | np.int64 | np.float32 | None


class Stream(ABC):
    """A queue of work. Every method but `synchronise` returns before the work is done."""

    @abstractmethod
    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel. `grid` and `block` are (x, y, z); `shared_bytes` is the size of its ``extern __shared__`` array.

        Grids are at most 2^31 - 1 along x and 65535 along y and z; `DeviceError` where it cannot be launched so.
        """

    @abstractmethod
    def copy(self, target: DeviceArray | np.ndarray, source: DeviceArray | np.ndarray) -> None:
        """Copy all bytes of `source` to `target`, which is as long; both C-contiguous, either or both on the device.

        Overlaps with other work only where the host's side is page-locked (`Device.pinned`).
        """

    @abstractmethod
    def copy_rows(
        self,
        target: DeviceArray | np.ndarray,
        target_pitch_bytes: int,
        source: DeviceArray | np.ndarray,
        source_pitch_bytes: int,
        width_bytes: int,
        rows: int,
    ) -> None:
        """Copy `rows` runs of `width_bytes`, which begin `pitch_bytes` apart on either side, from the first byte of each
        array on."""

    @abstractmethod
    def zero(self, target: DeviceArray) -> None:
        """Fill with zero bytes."""

    @abstractmethod
    def record(self, timed: bool = False) -> Event:
        """An event after all that was enqueued so far."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Do nothing that is enqueued from now on before `event`, of whatever stream, has come."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until all work is done. Raises the `DeviceError` of any work that failed."""


@dataclass(frozen=True)
class FftSpec:
    """A batch of equal transforms, as cuFFT's advanced layout has it; unnormalised both ways.

    Element ``(j_0, .., j_r)`` of transform `b` lies at ``b * distance + stride * (.. (j_0 * embed_1 + j_1) .. )`` of its array,
    in elements of that array's type. ``r2c`` reads float32 and writes the complex64 of the half with
    ``n[-1] // 2 + 1`` elements along the last axis; ``c2r`` is its inverse; ``c2c`` goes either way. In place where both
    arrays are the same, with equal layouts. c2r may overwrite its input.

    Attributes
    ----------
    kind : str
        "r2c", "c2r" or "c2c".
    n : tuple of int
        Points along one to three axes; at best products of 2, 3, 5 and 7.
    batch : int
    in_embed, out_embed : tuple of int
        Sizes that the axes lie in (the first one does not matter).
    in_stride, out_stride, in_distance, out_distance : int
    """

    kind: str
    n: tuple[int, ...]
    batch: int
    in_embed: tuple[int, ...]
    in_stride: int
    in_distance: int
    out_embed: tuple[int, ...]
    out_stride: int
    out_distance: int

    @classmethod
    def lines(cls, kind: str, n: int, batch: int, in_distance: int, out_distance: int) -> FftSpec:
        """Transforms of `batch` contiguous lines of `n` points, so many elements apart."""
        return cls(kind, (n,), batch, (n,), 1, in_distance, (n,), 1, out_distance)

    @classmethod
    def dense(cls, kind: str, n: Sequence[int], batch: int) -> FftSpec:
        """Transforms of `batch` contiguous blocks of ``n`` points, without padding (out of place)."""
        n = tuple(n)
        half = (*n[:-1], n[-1] // 2 + 1)
        real, spectrum = (n, half) if kind != "c2c" else (n, n)
        first, second = (spectrum, real) if kind == "c2r" else (real, spectrum)
        return cls(kind, n, batch, first, 1, prod(first), second, 1, prod(second))


class Fft(ABC):
    """A prepared batch of transforms. Its own tables aside it takes no memory: `work_bytes` are given to each `run`."""

    spec: FftSpec
    work_bytes: int

    @abstractmethod
    def run(
        self, stream: Stream, x: DeviceArray, out: DeviceArray, work: DeviceArray | None, inverse: bool = False
    ) -> None:
        """Transform; `work` is at least `work_bytes` long (None where that is 0)."""

    @abstractmethod
    def free(self) -> None:
        """Give back its tables."""


@dataclass(frozen=True)
class BlasSpec:
    """``C = alpha A B + beta C`` for `count` matrices, row-major: A is m x k, B k x n, C m x n; complex64 or float32.

    `lda`, `ldb`, `ldc` are elements from row to row, `stride_*` from matrix to matrix (0: the same one for all).
    `conjugate_a` and `transpose_a` (then A is stored k x m, `lda` apart) apply to A, likewise for B. `tf32`: products may be
    rounded to TF32 (10 bits of mantissa) before they are summed in float32.
    """

    complex: bool
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    stride_a: int
    stride_b: int
    stride_c: int
    count: int
    transpose_a: bool = False
    transpose_b: bool = False
    tf32: bool = False


class Device(ABC):
    """A device with its context. All work of the primitives goes through here.

    Attributes
    ----------
    name : str
    architecture : str
        ``sm_90``.
    total_bytes : int
        Its memory.
    multiprocessors : int
    shared_bytes : int
        Shared memory that a block may have at most.
    simulated : bool
        True for a test's device, whose times mean nothing.
    compute, uploads, downloads : Stream
        What operators enqueue on: a call's work is complete once `compute` is past it.
    peak_bytes : int
        The most that was allocated at once since `reset_peak`.
    blas_work_bytes : int
        Workspace that `blas` wants.
    """

    name: str
    architecture: str
    total_bytes: int
    multiprocessors: int
    shared_bytes: int
    simulated: bool = False
    compute: Stream
    uploads: Stream
    downloads: Stream
    blas_work_bytes: int
    driver: str = ""

    @abstractmethod
    def free_bytes(self) -> int:
        """Device memory that could be allocated now."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Allocation:
        """Device memory; `DeviceMemory`, saying how much is free, where it cannot be had."""

    @abstractmethod
    def pinned(self, nbytes: int) -> np.ndarray:
        """A page-locked uint8 array on the host, aligned to 256 bytes; freed with its last view."""

    @abstractmethod
    def kernel(self, source: str, function: str, defines: Mapping[str, int | str] | None = None) -> Kernel:
        """A function of ``cu/<source>``, compiled with these macros; kept, and cached on disk by source and architecture.

        `DeviceError`, with the compiler's words, where it cannot be compiled.
        """

    @abstractmethod
    def fft(self, spec: FftSpec) -> Fft:
        """A prepared transform."""

    @abstractmethod
    def fft_work_bytes(self, spec: FftSpec) -> int:
        """`work_bytes` of such a transform, without keeping one; remembered."""

    @abstractmethod
    def blas(
        self,
        stream: Stream,
        spec: BlasSpec,
        a: DeviceArray,
        b: DeviceArray,
        c: DeviceArray,
        work: DeviceArray,
        alpha: complex = 1.0,
        beta: complex = 0.0,
    ) -> None:
        """Enqueue matrix products."""

    @property
    @abstractmethod
    def cudnn(self):
        """A `znni.gpu.convolution.Convolutions` where a library of tuned convolutions is installed, else None."""

    @property
    @abstractmethod
    def peak_bytes(self) -> int: ...

    @abstractmethod
    def reset_peak(self) -> None:
        """Begin anew with what is allocated now."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait for all streams; raises the `DeviceError` of any work that failed."""

    @abstractmethod
    def close(self) -> None:
        """Free all memory, release the context; a second time does nothing."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        from znni.gpu.current import close_device, current, is_open

        if is_open() and current() is self:
            close_device()
        else:
            self.close()
