"""A layer on the GPU with all its memory in place, ready to be called and timed: what tasks and contenders measure."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from znni.errors import DeviceError
from znni.gpu.current import current, is_open, open_device
from znni.gpu.device import Device, DeviceArray, FftSpec
from znni.gpu.operator import GpuOperator, carve, carved_bytes
from znni.layers import Layer
from znni.layouts import DEVICE, layouts_of
from znni.primitives.base import Config, Primitive, Weights
from znni.timing import LEAST_SAMPLE_SECONDS

#: Bytes that the output is filled with NaN by at a time.
_FILL_BYTES = 64 << 20


def the_device() -> Device:
    """The device of this process: the one that is open, else the first of this machine, opened now."""
    return current() if is_open() else open_device()


class DeviceLayer:
    """A GPU primitive prepared for a layer: weights in place, input uploaded, output full of NaN. A context manager.

    Parameters
    ----------
    device : Device
    primitive : Primitive
        One whose operators are `GpuOperator`.
    layer : Layer
    weights : mapping of str to ndarray
    x : ndarray of float32 (batch, channels, z, y, x)
    config : mapping

    Attributes
    ----------
    operator : GpuOperator
    tensor_bytes : int
        Device memory of input and output.
    prepare_s : float
        Seconds on the host until the operator was prepared.

    Raises
    ------
    DeviceMemory
        Where the device has not that much free. Nothing stays allocated where anything goes wrong.
    """

    def __init__(
        self, device: Device, primitive: Primitive, layer: Layer, weights: Weights, x: np.ndarray, config: Config
    ):
        self.device = device
        self._cleanup = contextlib.ExitStack()
        try:
            start = time.perf_counter()
            self.operator: GpuOperator = primitive.prepare(layer, weights, x.shape, config, 1)
            self.prepare_s = time.perf_counter() - start
            self._cleanup.callback(self.operator.release)
            self._take(x, *layouts_of(config))
            device.synchronise()
        except BaseException:
            self._give_back()
            raise

    def _take(self, x: np.ndarray, takes: str, gives: str) -> None:
        memory, out_shape = self.operator.memory, self.operator.out_shape
        out_bytes = 4 * math.prod(out_shape)
        sizes = [
            memory.device_resident_bytes,
            memory.device_workspace_bytes,
            x.nbytes if takes == DEVICE else 0,
            out_bytes if gives == DEVICE else 0,
        ]
        self.tensor_bytes = carved_bytes(sizes[2:])
        taken = self.device.allocate(max(1, carved_bytes(sizes)))
        self._cleanup.callback(taken.free)
        self._resident, self._workspace, own_x, own_out = carve(taken.array, sizes)
        if takes == DEVICE:
            self._x: DeviceArray | np.ndarray = own_x.view(np.float32, x.shape)
            self.device.uploads.copy(self._x, x)
        else:
            self._x = _pinned(self.device, x.shape)
            self._x[:] = x
        if gives == DEVICE:
            self._out: DeviceArray | np.ndarray = own_out.view(np.float32, out_shape)
            self._fill_with_nan(own_out.view(np.float32, (out_bytes // 4,)))
        else:
            self._out = _pinned(self.device, out_shape)
            self._out.fill(np.nan)
        self.device.uploads.synchronise()

    def _fill_with_nan(self, flat: DeviceArray) -> None:
        step = min(flat.size, _FILL_BYTES // 4)
        nothing = np.full(step, np.nan, np.float32)
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            self.device.uploads.copy(part, nothing[: part.size])
        self.device.uploads.synchronise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._give_back()

    def close(self) -> None:
        """Release the operator and all its memory."""
        self._cleanup.close()

    def _give_back(self) -> None:
        """`close`, where something went wrong already: a device that is lost cannot even free."""
        with contextlib.suppress(DeviceError):
            self._cleanup.close()

    def place(self) -> None:
        """Give the operator its device memory; to be done once, before the first call."""
        self.operator.place(self._resident, self._workspace)

    def call(self) -> None:
        """Enqueue one call."""
        self.operator(self._x, self._out, self._workspace)

    def run(self) -> None:
        """One call, until it is done."""
        self.call()
        self.device.synchronise()

    def result(self) -> np.ndarray:
        """What the last call made, on the host."""
        self.device.synchronise()
        if isinstance(self._out, np.ndarray):
            return self._out
        found = np.empty(self._out.shape, np.float32)
        self.device.downloads.copy(found, self._out)
        self.device.downloads.synchronise()
        return found

    def sample(self, calls: int) -> tuple[float, float]:
        """Seconds of one of `calls` calls in a row: by the device's clock, and by the host's until all is done."""
        return timed_calls(self.device, self.call, calls)


def timed_calls(device: Device, call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds per call of what `call` enqueues: between two events on `compute`, and on the host's clock."""
    device.synchronise()
    start = time.perf_counter()
    begun = device.compute.record(timed=True)
    for _ in range(calls):
        call()
    ended = device.compute.record(timed=True)
    device.synchronise()
    wall_s = time.perf_counter() - start
    device_s = wall_s if device.simulated else ended.seconds_since(begun)
    return device_s / calls, wall_s / calls


class DeviceClock:
    """Seconds from an arbitrary origin by the device's own clock, once all work on `compute` so far is done.

    On a simulated device, whose events tell no time, by the host's.
    """

    def __init__(self, device: Device):
        self._device = device
        self._last, self._now_s = device.compute.record(timed=True), 0.0

    def __call__(self) -> float:
        # summed up from event to event: a long stretch between two has few digits left for a short call
        event = self._device.compute.record(timed=True)
        event.synchronise()
        self._now_s += event.seconds_since(self._last)
        self._last = event
        return time.perf_counter() if self._device.simulated else self._now_s


def calls_for(seconds: float, most: int = 1000) -> int:
    """Calls in a row that make a sample long enough to be timed, where one takes so many seconds."""
    return max(1, min(most, math.ceil(LEAST_SAMPLE_SECONDS / max(seconds, 1e-9))))


def load_libraries(device: Device) -> None:
    """Let the libraries that plans may need take what they take of this process once."""
    _ = device.blas_work_bytes, device.cudnn
    device.fft_work_bytes(FftSpec.dense("r2c", (8, 8, 8), 1))


def device_facts(device: Device) -> Mapping[str, object]:
    """What a device is, as JSON data."""
    return {
        "name": device.name,
        "architecture": device.architecture,
        "driver": device.driver,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes(),
        "simulated": device.simulated,
    }


def _pinned(device: Device, shape: tuple[int, ...]) -> np.ndarray:
    nbytes = 4 * math.prod(shape)
    return device.pinned(nbytes)[:nbytes].view(np.float32).reshape(shape)
