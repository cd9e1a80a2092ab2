"""Device memory: allocations between guard zones, under a cap; NaN until written, out of reach once freed."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from functools import cache

import numpy as np

from znni.errors import DeviceError, DeviceMemory
from znni.gpu.device import DEVICE_ALIGNMENT_BYTES, Allocation, DeviceArray, device_aligned

#: As float32 a NaN, as an integer a large one; other NaN than what fresh memory is full of.
_GUARD = np.uint32(0x7FA5A5A5)
_GUARD_BYTES = 1024
_FRESH = 0xFF
#: Freed allocations that are remembered, for better words.
_REMEMBERED = 200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PRIVATE, _MAP_FIXED, _MAP_NORESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "mprotect")



class _Bytes:
    """Memory at an address, as NumPy takes it."""

    def __init__(self, address: int, nbytes: int):
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def bytes_at(address: int, nbytes: int) -> np.ndarray:
    """uint8 view of memory at an address."""
    return np.asarray(_Bytes(address, nbytes)) if nbytes else np.empty(0, np.uint8)


class _AddressSpace:
    """A range of addresses of this process that nobody else's memory lies in, and that nothing may touch but allocations:
    what strays, however far, is caught, and no address is given twice."""

    #: Sizes to try: a process may be limited.
    _SIZES = tuple(1 << bits for bits in (44, 42, 40, 38))
    #: Nothing lies closer to its ends, nor to other allocations, than this.
    _MARGIN, _GAP = 1 << 35, 1 << 20

    def __init__(self):
        self._lock = threading.Lock()
        for size in self._SIZES:
            start = _libc.mmap(None, size, 0, _PRIVATE | _MAP_NORESERVE, -1, 0)
            if start != _FAILED:
                break
        else:
            raise OSError(ctypes.get_errno(), "no range of addresses can be had for simulated memory")
        self._next, self._end = start + self._MARGIN, start + size - self._MARGIN

    def map(self, nbytes: int) -> int:
        """The address of so many bytes, a multiple of the page size, that may be used."""
        with self._lock:
            start, self._next = self._next, self._next + -(-(nbytes + self._GAP) // self._GAP) * self._GAP
        if start + nbytes > self._end:
            raise MemoryError("the addresses for simulated memory are used up")
        _checked(_libc.mprotect(start, nbytes, mmap.PROT_READ | mmap.PROT_WRITE))
        return start

    def unmap(self, start: int, nbytes: int) -> None:
        """Its pages go back to the system, and its addresses out of use."""
        if _libc.mmap(start, nbytes, 0, _PRIVATE | _MAP_NORESERVE | _MAP_FIXED, -1, 0) == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")


@cache
def _addresses() -> _AddressSpace:
    return _AddressSpace()


class SimulatedAllocation(Allocation):
    """Whole pages, with guard zones on both sides within them, and nothing before and after."""

    def __init__(self, memory: Memory, nbytes: int):
        self._memory, self.nbytes, self.freed = memory, nbytes, False
        page = mmap.PAGESIZE
        mapped = -(-(nbytes + 2 * _GUARD_BYTES) // page) * page
        start = _addresses().map(mapped)
        self._unmap = weakref.finalize(self, _addresses().unmap, start, mapped)
        whole = bytes_at(start, mapped)
        at = _GUARD_BYTES  # a multiple of the alignment, from the start of a page
        assert at % DEVICE_ALIGNMENT_BYTES == 0
        self._before, self.bytes, self._after = whole[:at], whole[at : at + nbytes], whole[at + nbytes :]
        whole.view(np.uint32)[:] = _GUARD
        self._guards = (self._before.copy(), self._after.copy())
        self.bytes[:] = _FRESH
        self.address = start + at
        self.array = DeviceArray(self.address, (nbytes,), np.dtype(np.uint8))

    @property
    def intact(self) -> bool:
        """Whether the guard zones are as they were."""
        zones = zip((self._before, self._after), self._guards, strict=True)
        return self.freed or all(np.array_equal(zone, guard) for zone, guard in zones)

    def mend(self) -> None:
        """Guard zones as they were."""
        self._before[:], self._after[:] = self._guards

    def free(self) -> None:
        if not self.freed:
            self._memory.free(self)

    def withdraw(self) -> None:
        """Whatever touches it from now on fails."""
        self.freed = True
        self._before = self._after = self.bytes = None
        self._unmap()


class Memory:
    """All allocations of a device."""

    def __init__(self, total_bytes: int, lock, before_free=None):
        self._lock = lock
        self.total_bytes, self.used_bytes, self.peak_bytes = total_bytes, 0, 0
        self.live: list[SimulatedAllocation] = []
        self._gone: deque[SimulatedAllocation] = deque(maxlen=_REMEMBERED)
        self._before_free = before_free

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    def allocate(self, nbytes: int) -> SimulatedAllocation:
        nbytes = int(nbytes)
        if nbytes < 0:
            raise DeviceError(f"{nbytes} bytes were asked for")
        with self._lock:
            if device_aligned(nbytes) > self.free_bytes:
                raise DeviceMemory(
                    f"{nbytes} bytes of device memory were asked for, {self.free_bytes} of {self.total_bytes} are free"
                )
            made = SimulatedAllocation(self, nbytes)
            self.live = [*self.live, made]  # anew, since other threads may go through it meanwhile
            self.used_bytes += device_aligned(nbytes)
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return made

    def free(self, allocation: SimulatedAllocation) -> None:
        """As the driver does: once all work that was enqueued is done."""
        with self._lock:
            if self._before_free:
                self._before_free(allocation)
            self.live = [other for other in self.live if other is not allocation]
            self.used_bytes -= device_aligned(allocation.nbytes)
            allocation.withdraw()
            self._gone.append(allocation)

    def free_all(self) -> None:
        for allocation in list(self.live):
            self.free(allocation)

    def check_guards(self, what: str) -> None:
        """`DeviceError` where something beside an allocation was written."""
        with self._lock:
            for allocation in self.live:
                if not allocation.intact:
                    allocation.mend()
                    raise DeviceError(f"{what} wrote beside an allocation of {allocation.nbytes} bytes")

    def owner(self, array: DeviceArray) -> SimulatedAllocation | None:
        """The allocation that all of `array` lies in."""
        for allocation in self.live:
            if allocation.address <= array.pointer and array.pointer + array.nbytes <= allocation.address + allocation.nbytes:
                return allocation
        return None

    def check(self, array: DeviceArray, what: str) -> None:
        """`DeviceError` where `array` is not memory that is allocated now."""
        if array.nbytes and self.owner(array) is None:
            gone = any(a.address <= array.pointer < a.address + max(1, a.nbytes) for a in list(self._gone))
            state = "was freed" if gone else "is not allocated, or reaches beyond what is"
            raise DeviceError(f"{what} uses {array.nbytes} bytes of device memory that {state}")

    def view(self, array: DeviceArray, what: str = "a copy") -> np.ndarray:
        """The memory itself, as a NumPy array; checked."""
        self.check(array, what)
        return bytes_at(array.pointer, array.nbytes).view(array.dtype).reshape(array.shape)
