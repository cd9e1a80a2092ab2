"""An imitation of pycuda.driver over the host's memory: what `CudaDevice` asks for is done at once.

It shows that what is asked for is right, not that streams are: that is the simulated device's.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace

import numpy as np


def _error(name: str, *bases: type) -> type:
    return type(name, bases or (Exception,), {"__module__": "pycuda._driver"})


class FakeDriver:
    """As `pycuda.driver`, with so much memory. `fails` names functions that raise, and what."""

    def __init__(self, total_bytes: int = 1 << 24):
        self.total_bytes, self.held_bytes = total_bytes, 0
        self.fails: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.stacks = threading.local()
        self.retained = 0
        self.Error = _error("Error")
        self.MemoryError = _error("MemoryError", self.Error, MemoryError)
        self.LogicError = _error("LogicError", self.Error)
        self.LaunchError = _error("LaunchError", self.Error)
        self.event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)
        self.function_attribute = SimpleNamespace(
            MAX_THREADS_PER_BLOCK="threads", MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"
        )
        self.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=232448)
        self.Context = SimpleNamespace(pop=self._pop, synchronize=lambda: self.called("synchronize"))
        self.launches: list[tuple] = []
        self.shared: list[int] = []
        self.clock = 0

    def stack(self) -> list:
        if not hasattr(self.stacks, "value"):
            self.stacks.value = []
        return self.stacks.value

    def _pop(self) -> None:
        self.stack().pop()

    def called(self, name: str) -> None:
        """A call that wants a context."""
        if not self.stack():
            raise self.LogicError(f"{name} failed: invalid device context")
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def get_version(self) -> tuple[int, int, int]:
        return (13, 0, 0)

    def init(self) -> None: ...

    def Device(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(
            compute_capability=lambda: (9, 0),
            total_memory=lambda: self.total_bytes,
            get_attribute=lambda attribute: attribute,
            retain_primary_context=lambda: _Context(self),
        )

    def mem_get_info(self) -> tuple[int, int]:
        self.called("mem_get_info")
        return self.total_bytes - self.held_bytes, self.total_bytes

    def mem_alloc(self, nbytes: int) -> _Memory:
        self.called("mem_alloc")
        if self.held_bytes + nbytes > self.total_bytes:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return _Memory(self, nbytes)

    def pagelocked_empty(self, nbytes: int, dtype: type) -> np.ndarray:
        self.called("pagelocked_empty")
        raw = np.zeros(nbytes + 4096, dtype)
        start = -raw.ctypes.data % 4096
        return raw[start : start + nbytes]

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: _Stream) -> None:
        self.called("memcpy_htod_async")
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: _Stream) -> None:
        self.called("memcpy_dtoh_async")
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def memcpy_dtod_async(self, target: int, source: int, nbytes: int, stream: _Stream) -> None:
        self.called("memcpy_dtod_async")
        ctypes.memmove(target, source, nbytes)

    def memset_d8_async(self, target: int, value: int, nbytes: int, stream: _Stream) -> None:
        self.called("memset_d8_async")
        ctypes.memset(target, value, nbytes)

    def Memcpy2D(self) -> _Rows:
        return _Rows(self)

    def Stream(self, flags: int) -> _Stream:
        self.called("Stream")
        return _Stream(self)

    def Event(self, flags: int) -> _Event:
        self.called("Event")
        return _Event(self)

    def module_from_buffer(self, code: bytes) -> SimpleNamespace:
        self.called("module_from_buffer")

        def get_function(name: str) -> _Function:
            if name.encode() not in code:
                raise self.LogicError("cuModuleGetFunction failed: named symbol not found")
            return _Function(self)

        return SimpleNamespace(get_function=get_function)


class _Context:
    def __init__(self, driver: FakeDriver):
        self._driver = driver
        driver.retained += 1

    def push(self) -> None:
        if "push" in self._driver.fails:
            raise self._driver.fails["push"]
        self._driver.stack().append(self)

    def detach(self) -> None:
        assert self._driver.stack()[-1] is self
        self._driver.stack().pop()  # pycuda's own; the driver's keeps it
        self._driver.retained -= 1


class _Memory:
    def __init__(self, driver: FakeDriver, nbytes: int):
        self._driver, self._nbytes = driver, nbytes
        self._array = np.full(nbytes + 512, 0xFF, np.uint8)
        driver.held_bytes += nbytes

    def __int__(self) -> int:
        return -(-self._array.ctypes.data // 256) * 256

    def free(self) -> None:
        """As pycuda's: only where the context is current, and once."""
        self._driver.called("free")
        self._driver.held_bytes -= self._nbytes
        self._nbytes = 0

    def __del__(self) -> None:
        if self._driver.stack():
            self._driver.held_bytes -= self._nbytes


class _Stream:
    def __init__(self, driver: FakeDriver):
        self._driver = driver
        self.handle = id(self)

    def is_done(self) -> bool:
        self._driver.called("is_done")
        return True

    def wait_for_event(self, event: _Event) -> None:
        self._driver.called("wait_for_event")
        assert event.at is not None


class _Event:
    def __init__(self, driver: FakeDriver):
        self._driver, self.at = driver, None

    def record(self, stream: _Stream) -> _Event:
        self._driver.called("record")
        self._driver.clock += 250
        self.at = self._driver.clock
        return self

    def query(self) -> bool:
        self._driver.called("query")
        return True

    def synchronize(self) -> _Event:
        self._driver.called("event_synchronize")
        return self

    def time_since(self, earlier: _Event) -> float:
        return float(self.at - earlier.at)


class _Function:
    def __init__(self, driver: FakeDriver):
        self._driver = driver

    def get_attribute(self, attribute: str) -> int:
        return {"threads": 512}[attribute]

    def set_attribute(self, attribute: str, value: int) -> None:
        assert attribute == "shared"
        self._driver.shared.append(value)

    def _launch_kernel(self, grid, block, buffer, shared_bytes, stream) -> None:
        self._driver.called("launch")
        self._driver.launches.append((grid, block, buffer, shared_bytes))


class _Rows:
    def __init__(self, driver: FakeDriver):
        self._driver = driver

    def set_src_host(self, array: np.ndarray) -> None:
        self._source = array.ctypes.data

    def set_dst_host(self, array: np.ndarray) -> None:
        self._target = array.ctypes.data

    def set_src_device(self, pointer: int) -> None:
        self._source = pointer

    def set_dst_device(self, pointer: int) -> None:
        self._target = pointer

    def __call__(self, stream: _Stream) -> None:
        self._driver.called("rows")
        assert max(self.src_pitch, self.dst_pitch) < 1 << 31
        for row in range(self.height):
            ctypes.memmove(
                self._target + row * self.dst_pitch, self._source + row * self.src_pitch, self.width_in_bytes
            )


class FakeStream:
    """What the libraries' wrappers ask of a stream."""

    handle = 17

    def __init__(self):
        self.paced = 0

    def pace(self, calls: int = 1) -> None:
        self.paced += calls


class FakeContext:
    """What they ask of a context."""

    name = "a device"
    closed = False
    lost = None

    def __init__(self):
        self.depth = 0

    def __enter__(self) -> FakeContext:
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth -= 1

    def discard(self, thing: object) -> None: ...

    def failure(self, words: str) -> Exception:
        from znni.errors import DeviceError

        return DeviceError(words)


def on_host(array: np.ndarray):
    """A host array as a device array."""
    from znni.gpu.device import DeviceArray

    return DeviceArray(array.ctypes.data, array.shape, array.dtype)
