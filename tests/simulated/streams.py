"""Streams and events: queues of work, of which nothing is done before somebody waits for it.

What is then done, and in which order, is drawn at random among all that streams and events allow: work that is not ordered
comes out in the wrong order sooner or later, and what nobody waited for is not done at all.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from znni.errors import DeviceError
from znni.gpu.device import Argument, DeviceArray, Event, Kernel, Stream

from .compiler import SimulatedKernel

_MOST_GRID = (2**31 - 1, 65535, 65535)
_MOST_BLOCK = (1024, 1024, 64)
_MOST_PITCH = 2**31 - 1

Work = Callable[[], None]


class SimulatedEvent(Event):
    """Done once its place in the stream was come by."""

    def __init__(self, queue: Queue, timed: bool):
        self._queue, self.timed, self.done, self.at = queue, timed, False, 0

    def synchronise(self) -> None:
        self._queue.run_until(lambda: self.done)

    def seconds_since(self, earlier: Event) -> float:
        if not (self.timed and earlier.timed):
            raise DeviceError("both events must be recorded with timed=True")
        self._queue.run_until(lambda: self.done and earlier.done)
        return 1e-6 * max(1, self.at - earlier.at)


class Queue:
    """The work of all streams of a device."""

    def __init__(self, device, seed: int):
        self.device, self.random = device, random.Random(seed)
        self.streams: list[SimulatedStream] = []
        self._failed: list[DeviceError] = []
        self._count = itertools.count(1)

    def run_until(self, reached: Callable[[], bool], report: bool = True) -> None:
        """Do work in some legal order until `reached`; raises what failed."""
        with self.device.lock:
            if report:
                self.device.check_usable()
            order = self.random.sample(self.streams, len(self.streams))
            eager = self.random.random()  # how often a stream is preferred to those after it
            while not reached():
                ready = [stream for stream in order if stream.ready]
                assert ready, "streams wait for each other, which events cannot bring about"
                chosen = ready[0] if self.random.random() < eager else self.random.choice(ready)
                try:
                    chosen.step()
                except DeviceError as error:
                    self.failed(error)
            if report:
                self.raise_failed()

    def failed(self, error: DeviceError) -> None:
        """Keep a failure for who waits next."""
        self._failed.append(error)
        self.device.noticed(error)

    def raise_failed(self) -> None:
        """Raise the first failure that nobody was told of; with it the others are told."""
        if self._failed:
            error = self._failed[0]
            self._failed.clear()
            raise error

    def drop(self) -> None:
        """Forget all work."""
        with self.device.lock:
            for stream in self.streams:
                stream.clear()

    def tick(self) -> int:
        return next(self._count)


class SimulatedStream(Stream):
    """One queue."""

    def __init__(self, name: str, queue: Queue):
        self.name, self._queue, self._device = name, queue, queue.device
        self._items: deque[Work | tuple[str, SimulatedEvent]] = deque()

    @property
    def ready(self) -> bool:
        """Whether there is work that may be done now."""
        if not self._items:
            return False
        item = self._items[0]
        return not isinstance(item, tuple) or item[0] == "record" or item[1].done

    @property
    def empty(self) -> bool:
        return not self._items

    def clear(self) -> None:
        for item in self._items:
            if isinstance(item, tuple):
                item[1].done = True
        self._items.clear()

    def step(self) -> None:
        """Do the first piece of work."""
        item, at = self._items.popleft(), self._queue.tick()
        if isinstance(item, tuple):
            kind, event = item
            if kind == "record":
                event.done, event.at = True, at
        else:
            item()

    def enqueue(self, what: str, work: Work) -> None:
        """Later; at once or later an injected failure of `what`."""
        with self._device.lock:
            self._items.append(self._device.faults.meet(what, work))

    # what the contract has

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        self._device.check_usable()
        assert isinstance(kernel, SimulatedKernel)
        name, memory = kernel.function, self._device.memory
        grid, block = (tuple(int(n) for n in size) for size in (grid, block))
        for what, size, most in (("grid", grid, _MOST_GRID), ("block", block, _MOST_BLOCK)):
            if len(size) != 3 or any(not 1 <= n <= m for n, m in zip(size, most, strict=True)):
                raise DeviceError(f"{name} cannot be launched with a {what} of {size}: 1 to {most} it may be")
        if np.prod(block) > kernel.most_threads:
            raise DeviceError(f"{name} takes {kernel.most_threads} threads a block, got {block}")
        if not 0 <= shared_bytes <= self._device.shared_bytes:
            raise DeviceError(f"{name} can have {self._device.shared_bytes} bytes of shared memory, got {shared_bytes}")
        values = kernel.packed(arguments)
        arrays = [argument for argument in arguments if isinstance(argument, DeviceArray)]
        for array in arrays:
            memory.check(array, name)

        def work():
            for array in arrays:
                memory.check(array, name)
            kernel.run(grid, block, values, int(shared_bytes), self._queue.random.getrandbits(32))
            memory.check_guards(name)

        self._device.launches.append(name)
        self.enqueue("launch", work)

    def copy(self, target: DeviceArray | np.ndarray, source: DeviceArray | np.ndarray) -> None:
        self._device.check_usable()
        if target.nbytes != source.nbytes:
            raise DeviceError(f"a copy is of equally many bytes, got {source.nbytes} -> {target.nbytes}")
        self.copy_rows(target, max(1, target.nbytes), source, max(1, source.nbytes), source.nbytes, 1, pitched=False)

    def copy_rows(
        self,
        target: DeviceArray | np.ndarray,
        target_pitch_bytes: int,
        source: DeviceArray | np.ndarray,
        source_pitch_bytes: int,
        width_bytes: int,
        rows: int,
        pitched: bool = True,
    ) -> None:
        self._device.check_usable()
        ends = []
        for array, pitch in ((target, target_pitch_bytes), (source, source_pitch_bytes)):
            if width_bytes < 0 or rows < 0 or (rows > 1 and pitch < width_bytes):
                raise DeviceError(f"{rows} rows of {width_bytes} bytes cannot lie {pitch} bytes apart")
            if pitched and pitch > _MOST_PITCH:
                raise DeviceError(f"rows of a copy lie at most {_MOST_PITCH} bytes apart, got {pitch}")
            need = (rows - 1) * pitch + width_bytes if rows and width_bytes else 0
            if need > array.nbytes:
                raise DeviceError(f"a copy needs {need} bytes of an array of {array.nbytes}")
            ends.append(need)
        if isinstance(target, np.ndarray) and isinstance(source, np.ndarray):
            raise DeviceError("a copy has the device on one side at least")
        for array in (target, source):
            if isinstance(array, np.ndarray):
                if not array.flags.c_contiguous:
                    raise DeviceError("a copy takes C-contiguous arrays")
            else:
                self._device.memory.check(array, "a copy")
        if isinstance(target, np.ndarray) and not target.flags.writeable:
            raise DeviceError("a copy cannot write an array that is read-only")
        if isinstance(target, DeviceArray) and isinstance(source, DeviceArray):
            apart = target.pointer + ends[0] <= source.pointer or source.pointer + ends[1] <= target.pointer
            if not apart and ends[0]:
                raise DeviceError("a copy's source and target overlap")
        if not (rows and width_bytes):
            return

        def work():
            to, of = (
                np.lib.stride_tricks.as_strided(self._bytes(array), (rows, width_bytes), (pitch, 1))
                for array, pitch in ((target, target_pitch_bytes), (source, source_pitch_bytes))
            )
            to[:] = of

        self.enqueue("copy", work)

    def _bytes(self, array: DeviceArray | np.ndarray) -> np.ndarray:
        if isinstance(array, np.ndarray):
            return array.reshape(-1).view(np.uint8)
        return self._device.memory.view(array).reshape(-1).view(np.uint8)

    def zero(self, target: DeviceArray) -> None:
        self._device.check_usable()
        self._device.memory.check(target, "zeroing")

        def work():
            self._bytes(target)[:] = 0

        self.enqueue("copy", work)

    def record(self, timed: bool = False) -> SimulatedEvent:
        self._device.check_usable()
        with self._device.lock:
            event = SimulatedEvent(self._queue, timed)
            self._items.append(("record", event))
            return event

    def wait(self, event: Event) -> None:
        self._device.check_usable()
        with self._device.lock:
            self._items.append(("wait", event))

    def synchronise(self) -> None:
        self._device.check_usable()
        # what others enqueue meanwhile need not be waited for
        last = self.record()
        self._queue.run_until(lambda: last.done)
        self._device.memory.check_guards("some work")
