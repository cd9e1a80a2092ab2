"""Memory of a CUDA device, counted, and page-locked memory of the host."""

from __future__ import annotations

import weakref

import numpy as np

from znni.errors import DeviceMemory
from znni.gpu.cuda_context import CudaContext
from znni.gpu.device import DEVICE_ALIGNMENT_BYTES, Allocation, DeviceArray


class CudaMemory:
    """What is allocated in a context.

    Attributes
    ----------
    allocated_bytes, peak_bytes : int
        Now, and at most since `reset_peak`.
    """

    def __init__(self, context: CudaContext):
        self.context = context
        self.allocated_bytes = self.peak_bytes = 0
        self._allocations: weakref.WeakSet[CudaAllocation] = weakref.WeakSet()

    def allocate(self, nbytes: int) -> CudaAllocation:
        """Device memory; `DeviceMemory` where it cannot be had."""
        driver = self.context.driver
        with self.context:
            try:
                memory = driver.mem_alloc(max(nbytes, 1))
            except driver.MemoryError as error:
                free, total = driver.mem_get_info()
                raise DeviceMemory(
                    f"{nbytes} bytes do not fit on {self.context.name}: {free} of {total} are free, {self.allocated_bytes} are "
                    f"this process's own; lower --gpu-memory, or end what else uses the device"
                ) from error
        made = CudaAllocation(self, memory, nbytes)
        self._allocations.add(made)
        self.allocated_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return made

    def pinned(self, nbytes: int) -> np.ndarray:
        """A page-locked uint8 array on the host."""
        driver = self.context.driver
        with self.context:
            try:
                pages = driver.pagelocked_empty(max(nbytes, 1), np.uint8)
            except driver.MemoryError as error:
                raise DeviceMemory(
                    f"the host cannot lock {nbytes} bytes of its memory for copies; use smaller buffers, or raise the limit on "
                    f"locked memory"
                ) from error
        return np.asarray(_Pages(self.context, pages))[:nbytes]

    def reset_peak(self) -> None:
        self.peak_bytes = self.allocated_bytes

    def close(self) -> None:
        """Free all that is left."""
        for allocation in list(self._allocations):
            allocation.free()


class CudaAllocation(Allocation):
    def __init__(self, owner: CudaMemory, memory: object, nbytes: int):
        self._owner, self._memory = owner, memory
        self.array = DeviceArray(int(memory), (nbytes,), np.dtype(np.uint8))

    def free(self) -> None:
        memory, self._memory = self._memory, None
        if memory is None:
            return
        context = self._owner.context
        self._owner.allocated_bytes -= self.array.nbytes
        if context.closed or context.lost is not None:
            context.discard(memory)  # goes with the context
        else:
            with context:
                memory.free()

    def __del__(self) -> None:
        memory, self._memory = getattr(self, "_memory", None), None
        if memory is not None:
            self._owner.allocated_bytes -= self.array.nbytes
            self._owner.context.discard(memory)


class _Pages:
    """Owns page-locked memory; its arrays keep it."""

    def __init__(self, context: CudaContext, pages: np.ndarray):
        if pages.ctypes.data % DEVICE_ALIGNMENT_BYTES:
            raise DeviceMemory(f"the host's page-locked memory lies at {pages.ctypes.data:#x}, which is not aligned")
        self._context, self._pages = context, pages
        self.__array_interface__ = pages.__array_interface__

    def __del__(self) -> None:
        pages = getattr(self, "_pages", None)
        if pages is not None:
            self._context.discard(pages)
