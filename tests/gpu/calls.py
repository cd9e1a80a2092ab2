"""One call of a primitive on the current device, with just the memory that it says it needs."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from znni.gpu import Device
from znni.layouts import DEVICE
from znni.primitives.base import Operator


class Call:
    """An operator in its place, with its arrays; a context, which frees them. Nothing is waited for unless it is said."""

    def __init__(self, device: Device, operator: Operator):
        self.device, self.operator = device, operator
        self._stack = ExitStack()
        self._stack.callback(operator.release)
        memory = operator.memory
        self.resident = self._allocated(memory.device_resident_bytes)
        self.workspace = self._allocated(memory.device_workspace_bytes)
        self.x = self._tensor(operator.shape, operator.takes)
        self.out = self._tensor(operator.out_shape, operator.gives)
        operator.place(self.resident, self.workspace)

    def _allocated(self, nbytes: int):
        made = self.device.allocate(nbytes)
        self._stack.callback(made.free)
        return made.array

    def _tensor(self, shape, layout):
        nbytes = 4 * int(np.prod(shape))
        if layout == DEVICE:
            return self._allocated(nbytes).view(np.float32, shape)
        return self.device.pinned(nbytes).view(np.float32).reshape(shape)

    def give(self, x: np.ndarray) -> None:
        """Fill the input."""
        if isinstance(self.x, np.ndarray):
            self.x[...] = x
        else:
            self.device.compute.copy(self.x, np.ascontiguousarray(x))
            self.device.compute.synchronise()

    def enqueue(self) -> None:
        """The call itself."""
        self.operator(self.x, self.out, self.workspace)

    def result(self) -> np.ndarray:
        """A copy of the output, once `compute` is past the call."""
        self.device.compute.synchronise()
        if isinstance(self.out, np.ndarray):
            return self.out.copy()
        host = np.empty(self.out.shape, np.float32)
        self.device.compute.copy(host, self.out)
        self.device.compute.synchronise()
        return host

    def of(self, x: np.ndarray) -> np.ndarray:
        """The result on `x`."""
        self.give(x)
        self.enqueue()
        return self.result()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def advance(stream) -> int:
    """Do all that a simulated stream may do now; how many kernels and copies that were."""
    count = 0
    while stream.ready:
        count += callable(stream._items[0])
        stream.step()
    return count


def deaf(monkeypatch, waiting, recording) -> None:
    """From now on the one simulated stream does not wait for events of the other."""
    ignored = []
    record, wait = recording.record, waiting.wait

    def kept(timed: bool = False):
        ignored.append(record(timed))
        return ignored[-1]

    monkeypatch.setattr(recording, "record", kept)
    monkeypatch.setattr(waiting, "wait", lambda event: any(event is e for e in ignored) or wait(event))
