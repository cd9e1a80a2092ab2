"""What every GPU primitive and operator has in common (`znni.primitives.base` is the contract)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from znni.errors import InvalidShape
from znni.gpu.current import current
from znni.gpu.device import DeviceArray, device_aligned
from znni.layers import Layer, Shape
from znni.layouts import DEVICE
from znni.primitives.base import Config, Operator, Primitive

#: Relative L2 error that a layer computed in TF32 may have: operands keep 10 bits of mantissa.
TF32_TOLERANCE = 3e-3
#: And the error to expect of it.
TF32_ERROR = 4e-4


class GpuOperator(Operator):
    """An operator whose work is enqueued on the device's `compute` stream.

    It is prepared on the host alone; `place` gives it its device memory, once, before the first call. A call returns before
    its work is done, and is complete once `compute` is past it: whatever it enqueues elsewhere it makes `compute` wait for,
    and it begins no earlier than `compute` gets to it.
    """

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self.device = current()
        self._placed = False

    @property
    def workspace_bytes(self) -> int:
        return self.memory.device_workspace_bytes

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None on the host: what stays lies in the memory that `place` was given."""
        return ()

    def place(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Enqueue what must be in place before the first call: weights, spectra of kernels, tables.

        Parameters
        ----------
        resident : DeviceArray of uint8
            ``memory.device_resident_bytes`` long, the operator's own until it is released.
        workspace : DeviceArray of uint8
            At least ``memory.device_workspace_bytes`` long; free again once `compute` is past this.
        """
        for array, need in ((resident, self.memory.device_resident_bytes), (workspace, self.workspace_bytes)):
            if array.nbytes < need:
                raise InvalidShape(f"{self.primitive.name} needs {need} bytes on the device, got {array.nbytes}")
        self.fill(resident, workspace)
        self._placed = True

    @abstractmethod
    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """The work of `place`; sizes are checked already."""

    def release(self) -> None:
        """Give back what libraries hold for it (tables of FFTs); it cannot be called any more."""
        self._placed = False

    def check_arrays(self, x, out, workspace) -> None:
        super().check_arrays(x, out, workspace)
        for array, layout in ((x, self.takes), (out, self.gives), (workspace, DEVICE)):
            wanted = DeviceArray if layout == DEVICE else np.ndarray
            if not isinstance(array, wanted):
                raise TypeError(f"{self.primitive.name} wants a {wanted.__name__}, got a {type(array).__name__}")
            if array is not workspace and array.dtype != np.float32:
                raise TypeError(f"{self.primitive.name} computes in float32, got {array.dtype}")
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                raise TypeError(f"{self.primitive.name} takes C-contiguous arrays, got strides {array.strides}")
        if not self._placed:
            raise InvalidShape(f"{self.primitive.name} was called before it was given its device memory (place)")


class GpuPrimitive(Primitive):
    """A primitive on the device: takes and gives device arrays, unless its `layouts` say otherwise."""

    device = "gpu"
    layouts = ((DEVICE, DEVICE),)

    def tolerance_of(self, config: Config) -> float:
        """TF32 has its own."""
        return TF32_TOLERANCE if config.get("tf32") else self.tolerance

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        return TF32_ERROR if config.get("tf32") else super().error(layer, shape, config)


def carve(array: DeviceArray, sizes: Sequence[int]) -> list[DeviceArray]:
    """Pieces of `array` of so many bytes each, one after another, each aligned (`carved_bytes` in all)."""
    pieces, at = [], 0
    for nbytes in sizes:
        pieces.append(array.view(np.uint8, (nbytes,), at))
        at += device_aligned(nbytes)
    return pieces


def carved_bytes(sizes: Sequence[int]) -> int:
    """Bytes that `carve` needs for pieces of these sizes."""
    return sum(device_aligned(nbytes) for nbytes in sizes)
