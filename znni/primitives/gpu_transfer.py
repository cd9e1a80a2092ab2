"""Between host and device: plain arrays as they are, in the order of the other work."""

from __future__ import annotations

import numpy as np

from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive
from znni.layers import Layer, Shape
from znni.layouts import DEVICE, PLAIN, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings


class TransferOperator(GpuOperator):
    """Copies of one shape, one way."""

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Nothing: there are no weights."""

    def compute(self, x: DeviceArray | np.ndarray, out: DeviceArray | np.ndarray, workspace: DeviceArray) -> None:
        """The copy, on `compute`: it is a step like others, and what overlaps copies with work is `gpu.stream`."""
        self.device.compute.copy(out, x)


class Transfer(GpuPrimitive):
    """What both ways share."""

    kind = "relayout"
    tolerance = 0.0

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """Any tensor."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """None."""
        return Memory()

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; every voxel is read and written once."""
        return Cost(flop=0.0, moved_bytes=2.0 * tensor_bytes(shape))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return TransferOperator(self, layer, shape, config, threads)


class GpuUpload(Transfer):
    """A plain host array into device memory."""

    name = "gpu.upload"
    layouts = ((PLAIN, DEVICE),)


class GpuDownload(Transfer):
    """A device array into a plain host array."""

    name = "gpu.download"
    layouts = ((DEVICE, PLAIN),)


UPLOAD = register(GpuUpload())
DOWNLOAD = register(GpuDownload())
