"""The simulated device: `znni.gpu.device.Device` on the CPU, as strict as a device may be.

Nothing that is enqueued is done before it is waited for, and then in a random legal order; host arrays are read and written
then, too. Memory is NaN until written and surrounded by guard zones. What libraries are given to work in is overwritten, what
they may overwrite as well. Limits and argument types are enforced. Times mean nothing.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from znni.errors import DeviceError, DeviceLost
from znni.gpu.device import BlasSpec, Device, DeviceArray, FftSpec

from . import products, transforms
from .compiler import SOURCES, SimulatedKernel, compiled
from .convolutions import SimulatedConvolutions
from .faults import Faults
from .memory import Memory, SimulatedAllocation
from .streams import Queue, SimulatedStream
from .transforms import SimulatedFft


class SimulatedDevice(Device):
    """A device with so much memory.

    Parameters
    ----------
    total_bytes : int
    seed : int
        Of the orders in which work is done.
    cudnn : bool
        Whether a library of convolutions is installed.
    shared_bytes : int
    architecture : str
    sources : Path
        Where the kernels lie; headers of znni/gpu/cu are found in any case.

    Attributes
    ----------
    launches : list of str
        The names of the kernels that were launched.
    kernels : list of (str, str, dict)
        Source, function and macros of all kernels that were asked for.
    ffts : set
        Transforms that are not freed.
    """

    simulated = True
    name = "simulated device"
    driver = "simulated"

    def __init__(
        self,
        total_bytes: int = 1 << 30,
        seed: int = 0,
        *,
        cudnn: bool = True,
        shared_bytes: int = 99 << 10,
        architecture: str = "sm_90",
        sources: Path = SOURCES,
    ):
        self.total_bytes, self.shared_bytes, self.architecture = int(total_bytes), shared_bytes, architecture
        self.multiprocessors, self._sources = 4, sources
        self.blas_work_bytes = products.WORK_BYTES
        self.lock = threading.RLock()
        self._lost: DeviceLost | None = None
        self._closed = False
        self.faults = Faults(self.noticed)
        self.memory = Memory(self.total_bytes, self.lock, self._before_free)
        self.queue = Queue(self, seed)
        self.compute, self.uploads, self.downloads = (self._stream(n) for n in ("compute", "uploads", "downloads"))
        self._cudnn = SimulatedConvolutions(self) if cudnn else None
        self.ffts: set[SimulatedFft] = set()
        self.launches: deque[str] = deque(maxlen=10_000)
        self.kernels: list[tuple[str, str, dict]] = []

    def _stream(self, name: str) -> SimulatedStream:
        stream = SimulatedStream(name, self.queue)
        self.queue.streams.append(stream)
        return stream

    # for tests

    def fail_next(self, what: str, error=DeviceError, *, after: int = 0, later: bool = False) -> None:
        """Make a call fail: the next of `what`, or that after so many more.

        Parameters
        ----------
        what : {"allocate", "kernel", "launch", "copy", "fft", "blas", "cudnn"}
        error : DeviceError, or a class of it
            With `DeviceLost` all that comes after fails, too.
        after : int
        later : bool
            When the work is waited for, rather than when it is enqueued.
        """
        self.faults.ask(what, error, after, later)

    def reseed(self, seed: int) -> None:
        """Begin the orders in which work is done anew."""
        self.queue.random.seed(seed)

    def noticed(self, error: DeviceError) -> None:
        """A failure has happened: work that can be done no more is forgotten."""
        if isinstance(error, DeviceLost):
            self._lost = self._lost or error
            self.queue.drop()

    def check_usable(self) -> None:
        """`DeviceError` where it is lost or closed."""
        if self._lost:
            raise DeviceLost(f"{self.name} is lost: {self._lost}")
        if self._closed:
            raise DeviceError(f"{self.name} is closed")

    def _before_free(self, allocation: SimulatedAllocation) -> None:
        """Freeing waits for all work, and tells of no failure."""
        if not (self._lost or self._closed):
            self.queue.run_until(lambda: all(stream.empty for stream in self.queue.streams), report=False)
            if not allocation.intact:
                self.queue.failed(DeviceError(f"some work wrote beside an allocation of {allocation.nbytes} bytes"))

    # the contract

    def free_bytes(self) -> int:
        self.check_usable()
        return self.memory.free_bytes

    def allocate(self, nbytes: int) -> SimulatedAllocation:
        self.check_usable()
        with self.lock:
            self.faults.meet("allocate")
            return self.memory.allocate(nbytes)

    def pinned(self, nbytes: int) -> np.ndarray:
        self.check_usable()
        array = np.frombuffer(mmap.mmap(-1, max(1, int(nbytes))), np.uint8)[: int(nbytes)]
        array[:] = 0xFF
        return array

    def kernel(self, source: str, function: str, defines: Mapping[str, int | str] | None = None) -> SimulatedKernel:
        self.check_usable()
        self.faults.meet("kernel")
        made = compiled(source, function, defines, self._sources)
        self.kernels.append((source, function, dict(defines or {})))
        return made

    def fft(self, spec: FftSpec) -> SimulatedFft:
        self.check_usable()
        return SimulatedFft(self, spec)

    def fft_work_bytes(self, spec: FftSpec) -> int:
        self.check_usable()
        transforms.check(spec)
        return transforms.work_bytes(spec)

    def blas(
        self,
        stream: SimulatedStream,
        spec: BlasSpec,
        a: DeviceArray,
        b: DeviceArray,
        c: DeviceArray,
        work: DeviceArray,
        alpha: complex = 1.0,
        beta: complex = 0.0,
    ) -> None:
        self.check_usable()
        products.multiply(self, stream, spec, a, b, c, work, alpha, beta)

    @property
    def cudnn(self) -> SimulatedConvolutions | None:
        return self._cudnn

    @property
    def peak_bytes(self) -> int:
        return self.memory.peak_bytes

    def reset_peak(self) -> None:
        self.memory.peak_bytes = self.memory.used_bytes

    def synchronise(self) -> None:
        self.check_usable()
        self.queue.run_until(lambda: all(stream.empty for stream in self.queue.streams))
        self.memory.check_guards("some work")

    def close(self) -> None:
        if not self._closed:
            with self.lock:
                if not self._lost:
                    self.queue.run_until(lambda: all(stream.empty for stream in self.queue.streams), report=False)
                self._closed = True
                self.memory.free_all()
                self.ffts.clear()
