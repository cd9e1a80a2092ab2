"""A CUDA context: made current for each call on whatever thread it comes from, and what goes wrong in it said in our errors.

    with context:       pycuda, cuFFT, cuBLAS and cuDNN may be called here

It is the device's primary context, which other libraries in the process share. No thread is left with it current: pycuda ends
the process when a thread ends that has one.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from types import ModuleType, TracebackType
from typing import Self

from znni.errors import DeviceError, DeviceLost, DeviceMemory, NoDevice

#: Packages whose exceptions are those of a device.
_PACKAGES = ("pycuda", "skcuda")


class CudaContext:
    """The primary context of device `number`, retained until `close`.

    Parameters
    ----------
    driver : module
        `pycuda.driver`, initialised.
    number : int
    name : str
        The device's, for messages.

    Attributes
    ----------
    lost : str or None
        Why nothing more can be done with it.
    """

    def __init__(self, driver: ModuleType, number: int, name: str):
        self.driver, self.name = driver, name
        self.lost: str | None = None
        self.closed = False
        self._depth = threading.local()
        self._discarded: deque[object] = deque()
        try:
            self._context = driver.Device(number).retain_primary_context()
        except driver.Error as error:
            raise NoDevice(f"{name} cannot be used now: {error}") from error

    def __enter__(self) -> Self:
        depth = getattr(self._depth, "value", 0)
        if depth == 0:
            self._begin()
        self._depth.value = depth + 1
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ours = None if error is None else self._translated(error)
        self._depth.value -= 1
        if self._depth.value == 0:
            self._end()
        if ours is not None:
            raise ours from error

    def discard(self, thing: object) -> None:
        """Drop an object of pycuda's when the context is next current: dropped on another thread than it was made on, it
        would never be freed. Can be called at any time, by ``__del__``."""
        if not self.closed:
            self._discarded.append(thing)

    def close(self) -> None:
        """Release the context; a second time does nothing."""
        if self.closed:
            return
        try:
            self._context.push()
        except self.driver.Error as error:
            self._lose(error)
        else:
            if self.lost is None:
                self._discarded.clear()
            self._context.detach()
            _pop_current()  # pycuda releases the primary context, but leaves it current
        self.closed = True
        self._discarded.clear()

    def _begin(self) -> None:
        if self.closed:
            raise DeviceError(f"{self.name} was closed; nothing more can be done with it")
        if self.lost is not None:
            raise DeviceLost(self.lost)
        try:
            self._context.push()
        except self.driver.Error as error:
            raise self._lose(error) from error
        while self._discarded:
            self._discarded.popleft()

    def _end(self) -> None:
        try:
            self.driver.Context.pop()
        except self.driver.Error as error:
            raise self._lose(error) from error

    def _translated(self, error: BaseException) -> DeviceError | None:
        """Our error for one of the packages'; None for all others, which pass as they are."""
        kind = type(error)
        if kind.__module__.partition(".")[0] not in _PACKAGES:
            return None
        if isinstance(error, self.driver.MemoryError) or kind.__name__.endswith("AllocFailed"):
            return DeviceMemory(f"{self.name} has no memory left for this: {_words(error)}; {self._free_text()}")
        return self.failure(_words(error))

    def failure(self, words: str) -> DeviceError:
        """The error for a call that failed so: `DeviceLost` where the context is broken, which it then stays. To be called with
        the context current; waits for what is under way."""
        try:
            self.driver.Context.synchronize()
        except self.driver.Error as error:
            return self._lose(error, words)
        return DeviceError(f"{self.name}: {words}")

    def _lose(self, error: BaseException, words: str = "") -> DeviceLost:
        because = f"{words}; then " if words and words != _words(error) else ""
        self.lost = f"{self.name} is lost to this process: {because}{_words(error)}; start anew"
        return DeviceLost(self.lost)

    def _free_text(self) -> str:
        try:
            free, total = self.driver.mem_get_info()
        except self.driver.Error:
            return "what is free cannot be told"
        return f"{free} of {total} bytes are free"


def _words(error: BaseException) -> str:
    """scikit-cuda's errors say what they are in their names and documentation alone."""
    return str(error) or f"{type(error).__name__}: {(type(error).__doc__ or '').strip()}"


def _pop_current() -> None:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
