"""Streams, events and kernels of a CUDA device."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from znni.errors import DeviceError, InvalidShape
from znni.gpu.cuda_context import CudaContext
from znni.gpu.device import Argument, DeviceArray, Event, Kernel, Stream

#: CU_STREAM_NON_BLOCKING: what other libraries do on the default stream is not waited for.
_NON_BLOCKING = 1
#: What a launch may ask for, by axis.
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_THREADS = (1024, 1024, 64)
#: Dynamic shared memory that a kernel may have without being allowed more.
_SHARED_BYTES_UNASKED = 48 << 10
#: From here on rows are copied one by one: the driver takes no larger pitch.
_PITCH_END = 1 << 31
#: For so long a wait looks again and again; then it sleeps, and leaves the core to the CPU's half of the work.
_SPIN_S = 1e-3
#: After so many calls a mark is set, and the work before the oldest of several is waited for (`CudaStream.pace`).
_CALLS_A_MARK, _MOST_MARKS = 128, 4
#: Codes of `struct` for what kernels take; its native alignment is that of their parameters.
_CODES = {DeviceArray: "P", type(None): "P", np.int32: "i", np.int64: "q", np.float32: "f"}


class CudaKernel(Kernel):
    """A function of a module that is loaded in `context`."""

    def __init__(self, context: CudaContext, function: object, name: str):
        attributes = context.driver.function_attribute
        self.name, self.function = name, function
        self.most_threads = function.get_attribute(attributes.MAX_THREADS_PER_BLOCK)
        self._context = context
        self._shared_bytes = _SHARED_BYTES_UNASKED

    def allow_shared(self, nbytes: int) -> None:
        """Let launches have so many bytes of dynamic shared memory. The context must be current."""
        if nbytes > self._shared_bytes:
            attribute = self._context.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.function.set_attribute(attribute, nbytes)
            self._shared_bytes = nbytes

    def packed(self, arguments: Sequence[Argument]) -> bytes:
        """The arguments as they lie in the buffer of a launch."""
        try:
            codes = "".join([_CODES[type(argument)] for argument in arguments])
        except KeyError as error:
            kind = error.args[0].__name__
            raise TypeError(
                f"{self.name} takes device arrays, np.int32, np.int64 and np.float32, got a {kind}"
            ) from None
        values = [
            argument.pointer if type(argument) is DeviceArray else 0 if argument is None else argument
            for argument in arguments
        ]
        return struct.pack(codes, *values)


class CudaEvent(Event):
    def __init__(self, context: CudaContext, stream: object, timed: bool):
        driver, flags = context.driver, context.driver.event_flags
        self._context, self.timed = context, timed
        self.event = driver.Event(int(flags.BLOCKING_SYNC) | (0 if timed else int(flags.DISABLE_TIMING)))
        self.event.record(stream)

    def synchronise(self) -> None:
        with self._context:
            _await(self.event.query, self.event.synchronize)

    def seconds_since(self, earlier: Event) -> float:
        if not (self.timed and earlier.timed):
            raise DeviceError("seconds are told between events that were recorded with timed=True")
        with self._context:
            for event in (earlier, self):
                _await(event.event.query, event.event.synchronize)
            return self.event.time_since(earlier.event) * 1e-3

    def __del__(self) -> None:
        if hasattr(self, "event"):
            self._context.discard(self.event)


class CudaStream(Stream):
    """A stream of its own in `context`.

    Attributes
    ----------
    handle : int
        The CUstream, for libraries.
    """

    def __init__(self, context: CudaContext, shared_bytes: int):
        self._context, self._driver = context, context.driver
        self._shared_bytes = shared_bytes
        with context:
            self._stream = self._driver.Stream(_NON_BLOCKING)
            self.handle = int(self._stream.handle)
        #: Arrays of the host that may still be read or written.
        self._held: list[np.ndarray] = []
        self._marks: deque[CudaEvent] = deque()
        self._unmarked_calls = 0

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        grid, block = tuple(int(n) for n in grid), tuple(int(n) for n in block)
        self._check_launch(kernel, grid, block, shared_bytes)
        buffer = kernel.packed(arguments)
        with self._context:
            self.pace()
            try:
                kernel.allow_shared(shared_bytes)
                # what prepared_async_call does, but for a deprecated call to the driver before each launch
                kernel.function._launch_kernel(grid, block, buffer, int(shared_bytes), self._stream)
            except self._driver.Error as error:
                how = f"{kernel.name} with grid {grid}, block {block}, {shared_bytes} bytes of shared memory"
                raise self._context.failure(f"{how} cannot be launched: {error}") from error

    def copy(self, target: DeviceArray | np.ndarray, source: DeviceArray | np.ndarray) -> None:
        _check_copy(target, source)
        if target.nbytes != source.nbytes:
            raise InvalidShape(f"a copy needs arrays of one size, got {source.nbytes} bytes for {target.nbytes}")
        if target.nbytes == 0:
            return
        with self._context:
            self.pace()
            if isinstance(source, np.ndarray):
                self._driver.memcpy_htod_async(target.pointer, _bytes(source), self._stream)
                self._held.append(source)
            elif isinstance(target, np.ndarray):
                self._driver.memcpy_dtoh_async(_bytes(target), source.pointer, self._stream)
                self._held.append(target)
            else:
                self._driver.memcpy_dtod_async(target.pointer, source.pointer, target.nbytes, self._stream)

    def copy_rows(
        self,
        target: DeviceArray | np.ndarray,
        target_pitch_bytes: int,
        source: DeviceArray | np.ndarray,
        source_pitch_bytes: int,
        width_bytes: int,
        rows: int,
    ) -> None:
        _check_copy(target, source)
        for array, pitch in ((target, target_pitch_bytes), (source, source_pitch_bytes)):
            if rows > 1 and pitch < width_bytes:
                raise InvalidShape(f"rows of {width_bytes} bytes cannot begin {pitch} bytes apart")
            if rows > 0 and (rows - 1) * pitch + width_bytes > array.nbytes:
                raise InvalidShape(
                    f"{rows} rows of {width_bytes} bytes, {pitch} apart, reach beyond an array of {array.nbytes} bytes"
                )
        if rows <= 0 or width_bytes <= 0:
            return
        if rows == 1 or target_pitch_bytes == source_pitch_bytes == width_bytes:
            nbytes = rows * width_bytes
            self.copy(_piece(target, 0, nbytes), _piece(source, 0, nbytes))
        elif max(target_pitch_bytes, source_pitch_bytes) >= _PITCH_END:
            for row in range(rows):
                self.copy(
                    _piece(target, row * target_pitch_bytes, width_bytes),
                    _piece(source, row * source_pitch_bytes, width_bytes),
                )
        else:
            self._copy_rows(target, target_pitch_bytes, source, source_pitch_bytes, width_bytes, rows)

    def zero(self, target: DeviceArray) -> None:
        if target.nbytes:
            with self._context:
                self.pace()
                self._driver.memset_d8_async(target.pointer, 0, target.nbytes, self._stream)

    def record(self, timed: bool = False) -> CudaEvent:
        with self._context:
            return CudaEvent(self._context, self._stream, timed)

    def wait(self, event: Event) -> None:
        with self._context:
            self._stream.wait_for_event(event.event)

    def synchronise(self) -> None:
        with self._context:
            _await(
                self._stream.is_done, lambda: CudaEvent(self._context, self._stream, timed=False).event.synchronize()
            )
        self._held.clear()

    def pace(self, calls: int = 1) -> None:
        """Count what is enqueued, and wait while very much of it is still to be done: where the driver's queue is full it makes
        its caller wait, and pycuda lets no other thread run meanwhile. The context must be current."""
        self._unmarked_calls += calls
        if self._unmarked_calls >= _CALLS_A_MARK:
            self._unmarked_calls = 0
            self._marks.append(CudaEvent(self._context, self._stream, timed=False))
            if len(self._marks) > _MOST_MARKS:
                self._marks.popleft().synchronise()

    def close(self) -> None:
        """Drop the stream. The context must be current."""
        self._held.clear()
        self._marks.clear()
        self._stream = None

    def _copy_rows(self, target, target_pitch_bytes, source, source_pitch_bytes, width_bytes, rows) -> None:
        copy = self._driver.Memcpy2D()
        if isinstance(source, np.ndarray):
            copy.set_src_host(_bytes(source))
            self._held.append(source)
        else:
            copy.set_src_device(source.pointer)
        if isinstance(target, np.ndarray):
            copy.set_dst_host(_bytes(target))
            self._held.append(target)
        else:
            copy.set_dst_device(target.pointer)
        copy.src_pitch, copy.dst_pitch = source_pitch_bytes, target_pitch_bytes
        copy.width_in_bytes, copy.height = width_bytes, rows
        with self._context:
            self.pace()
            copy(self._stream)

    def _check_launch(self, kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int) -> None:
        """Say what is wrong with a launch, which the driver does not."""
        (x, y, z), (i, j, k) = grid, block
        threads = i * j * k
        if (
            min(x, y, z, i, j, k) > 0 and x <= _MOST_BLOCKS[0] and y <= _MOST_BLOCKS[1] and z <= _MOST_BLOCKS[2]
            and k <= _MOST_THREADS[2] and threads <= kernel.most_threads and 0 <= shared_bytes <= self._shared_bytes
        ):  # fmt: skip
            return
        wrong = [
            f"{n} {what} along {axis} ({most} at most)"
            for what, sizes, limits in (("blocks", grid, _MOST_BLOCKS), ("threads", block, _MOST_THREADS))
            for axis, n, most in zip("xyz", sizes, limits, strict=True)
            if not 1 <= n <= most
        ]
        if threads > kernel.most_threads:
            wrong.append(f"{threads} threads a block ({kernel.most_threads} at most)")
        if not 0 <= shared_bytes <= self._shared_bytes:
            wrong.append(f"{shared_bytes} bytes of shared memory ({self._shared_bytes} at most)")
        if wrong:
            raise DeviceError(f"{kernel.name} cannot be launched with {', '.join(wrong)}")


def _check_copy(target: DeviceArray | np.ndarray, source: DeviceArray | np.ndarray) -> None:
    for array in (target, source):
        if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
            raise InvalidShape("what is copied must be C-contiguous; use np.ascontiguousarray")
    if isinstance(target, np.ndarray):
        if isinstance(source, np.ndarray):
            raise TypeError("a stream copies to or from the device; both arrays are on the host")
        if not target.flags.writeable:
            raise InvalidShape("the target of a copy must be writeable")


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _piece(array: DeviceArray | np.ndarray, offset_bytes: int, nbytes: int) -> DeviceArray | np.ndarray:
    if isinstance(array, DeviceArray):
        return array.view(np.uint8, (nbytes,), offset_bytes)
    return _bytes(array)[offset_bytes : offset_bytes + nbytes]


def _await(done: Callable[[], bool], sleep: Callable[[], object]) -> None:
    """Wait until something is done: look again and again for a moment, then sleep."""
    until = time.perf_counter() + _SPIN_S
    while not done():
        if time.perf_counter() > until:
            sleep()
            return
