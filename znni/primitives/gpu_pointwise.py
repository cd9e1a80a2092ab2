"""Layers that are computed voxel by voxel on the GPU: softmax and maxout, both over channels (``gpu/cu/pointwise.cu``)."""

from __future__ import annotations

import math

import numpy as np

from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive
from znni.layers import Layer, Shape
from znni.layouts import tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_SOURCE = "pointwise.cu"
#: Threads of a block, and voxels of an image that it has.
_THREADS, _CHUNK = 256, 1024
_MOST_BLOCKS = 2**31 - 1


def pointwise_grid(images: int, voxels: int) -> tuple[tuple[int, int, int], tuple[int, int, int], np.int32]:
    """Grid and block for so many images of `voxels` voxels each, and the chunks that an image is cut into."""
    chunks = -(-voxels // _CHUNK)
    return (images * chunks, 1, 1), (_THREADS, 1, 1), np.int32(chunks)


class PointwiseOperator(GpuOperator):
    """Softmax or maxout of one shape."""

    def __init__(self, primitive: Pointwise, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._kernel = self.device.kernel(_SOURCE, primitive.kind)
        images, channels = primitive.images(layer, shape)
        voxels = math.prod(shape[2:])
        self._grid, self._block, chunks = pointwise_grid(images, voxels)
        self._arguments = [np.int32(channels), np.int64(voxels), chunks]

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Nothing: there are no weights."""

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """One launch."""
        self.device.compute.launch(self._kernel, self._grid, self._block, [x, out, *self._arguments])


class Pointwise(GpuPrimitive):
    """What softmax and maxout share: no memory but input and output, and one pass over both."""

    efficiency = (0.2, 0.5)

    def images(self, layer: Layer, shape: Shape) -> tuple[int, int]:
        """How many sets of channels there are that have nothing to do with each other, and channels to a set."""
        raise NotImplementedError

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All layers of its kind that fit the shape."""
        if reason := unfit(layer, shape):
            return reason
        if pointwise_grid(self.images(layer, shape)[0], math.prod(shape[2:]))[0][0] > _MOST_BLOCKS:
            return f"it takes more than the {_MOST_BLOCKS} blocks of a launch"
        return None

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Nothing: a few voxels at a time are held in registers."""
        return Memory()

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return PointwiseOperator(self, layer, shape, config, threads)


class GpuSoftmax(Pointwise):
    """Softmax over channels, safe from overflow: the maximum is subtracted first."""

    name, kind = "gpu.softmax", "softmax"
    tolerance = 1e-6

    #: Of one value: an exponential, which is computed twice, and a comparison, addition and product.
    FLOP_OF_VALUE = 23

    def images(self, layer: Layer, shape: Shape) -> tuple[int, int]:
        """The batch, and all channels."""
        return shape[0], shape[1]

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Exponentials; the input read and the output written once, what is read again coming from the caches."""
        return Cost(flop=float(self.FLOP_OF_VALUE * math.prod(shape)), moved_bytes=2.0 * tensor_bytes(shape))


class GpuMaxout(Pointwise):
    """Maximum over groups of adjacent channels. A NaN in a group makes its maximum NaN."""

    name, kind = "gpu.maxout", "maxout"
    tolerance = 0.0

    def images(self, layer: Layer, shape: Shape) -> tuple[int, int]:
        """The groups of the whole batch, and the channels of one."""
        return shape[0] * shape[1] // layer.group, layer.group

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Comparisons; the input read and the output written once."""
        size, result = math.prod(shape), math.prod(layer.output_shape(shape))
        return Cost(flop=float(size - result), moved_bytes=4.0 * (size + result))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: maxima are values of the input."""
        return 0.0


SOFTMAX = register(GpuSoftmax())
MAXOUT = register(GpuMaxout())
