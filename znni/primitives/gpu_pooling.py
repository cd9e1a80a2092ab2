"""Pooling on the GPU: max-pooling, max-filtering and max-pooling fragments (MPF), by ``cu/pooling.cu``.

MPF makes all prod(stride) fragments in one pass over the input (Zlateski, Lee & Seung, "ZNNi: maximizing the inference
throughput of 3D convolutional networks on CPUs and GPUs", SC'16), or, where its result is to lie on the host, fragment by
fragment: one is pooled while another is copied out, and the device never holds more than two of them.
"""

from __future__ import annotations

import math

import numpy as np

from znni.gpu.device import DeviceArray, Stream
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.layers import AXES, ONES, Layer, Shape, Triple
from znni.layouts import DEVICE, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_THREADS = 256
#: Positions along z that a thread goes through.
_CHUNK = 8
#: Fragments are copied to the host together up to so many bytes.
_TOGETHER_BYTES = 1 << 20
#: Positions of a plane, with those that its last block has too many, are counted in 32 bits.
_MOST_IN_PLANE = 2**31 - 1024


class PoolOperator(GpuOperator):
    """Maxima over windows of one shape, where device arrays are pooled as a whole."""

    fragments = False

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._window, self._dilation, self._stride = primitive.windows(layer)
        sizes = (("WINDOW", self._window), ("DILATION", self._dilation), ("STRIDE", self._stride))
        self._kernel = self.device.kernel(
            "pooling.cu",
            "pool",
            {f"{name}_{axis.upper()}": n for name, values in sizes for axis, n in zip(AXES, values, strict=True)}
            | {"FRAGMENTS": int(self.fragments), "CHUNK": _CHUNK},
        )

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Nothing: windows have no weights."""

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """The maxima."""
        self._pool(self.device.compute, x, out, self.shape[0])

    def _pool(self, stream: Stream, x: DeviceArray, out: DeviceArray, batch: int) -> None:
        """Pool `batch` elements, which begin where `x` does."""
        nz, ny, nx = self.out_shape[2:]
        strand = self._dilation[0] if self.fragments or self._stride[0] == 1 else 1
        if self.fragments:
            nz, ny, nx = (n * s for n, s in zip((nz, ny, nx), self._stride, strict=True))
        threads = min(_THREADS, -(-ny * nx // 32) * 32)
        blocks = -(-ny * nx // threads)
        channels, *size = self.shape[1:]
        stream.launch(
            self._kernel,
            (batch * channels * blocks, strand * -(-nz // (strand * _CHUNK)), 1),
            (threads, 1, 1),
            [
                x,
                out,
                np.int32(channels),
                np.int64(math.prod(size)),
                *map(np.int32, (size[1], size[2], nz, ny, nx, blocks)),
            ],
        )


class FragmentsOperator(PoolOperator):
    """All fragments in one pass."""

    fragments = True


class FragmentsToHost(PoolOperator):
    """One fragment after another, each a max-pooling of the input from its own first voxel on, and on to the host.

    Where all fragments of a batch element are few bytes, they are pooled in one pass, of several elements together.
    """

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        self._together = _together(layer, shape)
        self.fragments = self._together > 1
        super().__init__(primitive, layer, shape, config, threads)

    def compute(self, x: DeviceArray, out: np.ndarray, workspace: DeviceArray) -> None:
        """The fragments, pooled on `compute`, copied on `downloads`; a buffer waits for the copy before the last one."""
        compute, downloads, copied = self.device.compute, self.device.downloads, []
        buffers = carve(workspace, _buffers(self.layer, self.shape))
        for number, first in enumerate(range(0, self.out_shape[0], self._together)):
            if number >= len(buffers):
                compute.wait(copied[number - len(buffers)])
            part = out[first : first + self._together]
            buffer = buffers[number % len(buffers)].view(np.float32, part.shape)
            self._pool(compute, self._from(x, first), buffer, max(1, len(part) // math.prod(self._stride)))
            downloads.wait(compute.record())
            downloads.copy(part, buffer)
            copied.append(downloads.record())
        compute.wait(copied[-1])

    def _from(self, x: DeviceArray, number: int) -> DeviceArray:
        """The input from the first voxel of that fragment of the result on."""
        element, fragment = divmod(number, math.prod(self._stride))
        z, y, x_ = np.unravel_index(fragment, self._stride)
        channels, nz, ny, nx = self.shape[1:]
        start = int(((element * channels * nz + z) * ny + y) * nx + x_)
        return x.view(np.float32, (x.size - start,), 4 * start)


def _together(layer: Layer, shape: Shape) -> int:
    """Fragments that are copied to the host together: one, or all of some batch elements."""
    out_shape, fragments = layer.output_shape(shape), math.prod(layer.stride)
    elements = _TOGETHER_BYTES // (fragments * tensor_bytes((1, *out_shape[1:])))
    return fragments * min(shape[0], elements) or 1


def _buffers(layer: Layer, shape: Shape) -> list[int]:
    """Bytes of the buffers that fragments lie in on their way to the host."""
    out_shape, together = layer.output_shape(shape), _together(layer, shape)
    return [tensor_bytes((together, *out_shape[1:]))] * min(2, -(-out_shape[0] // together))


class Pool(GpuPrimitive):
    """What the three kinds of maxima over windows share. No memory beside input and output."""

    tolerance = 0.0
    operator: type[PoolOperator] = PoolOperator

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple]:
        """Window, dilation and stride."""
        raise NotImplementedError

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All layers of its kind whose windows fit."""
        if reason := unfit(layer, shape):
            return reason
        if shape[3] * shape[4] > _MOST_IN_PLANE:
            return f"a plane (y, x) may have {_MOST_IN_PLANE} voxels at most"
        return None

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """None."""
        return Memory()

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Comparisons, and the input read and output written once."""
        window, _, stride = self.windows(layer)
        out_shape = layer.output_shape(shape)
        planes = 1 if self.operator.fragments or stride[0] == 1 else window[0]
        comparisons = math.prod(out_shape) * (planes * window[1] * window[2] + window[0] - 2)
        return Cost(flop=float(comparisons), moved_bytes=float(tensor_bytes(shape) + tensor_bytes(out_shape)))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: maxima are values of the input."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return self.operator(self, layer, shape, config, threads)


class GpuMaxPool(Pool):
    """Max-pooling with any window and stride."""

    name, kind = "gpu.max_pool", "max_pool"

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple]:
        """Those of the layer, without dilation."""
        return layer.window, ONES, layer.stride


class GpuMaxFilter(Pool):
    """Max-filtering with any window and dilation."""

    name, kind = "gpu.max_filter", "max_filter"

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple]:
        """Those of the layer, at stride 1."""
        return layer.window, layer.dilation, ONES


class GpuMaxPoolFragments(Pool):
    """Max-pooling fragments with any window and stride, to the device or to the host."""

    name, kind = "gpu.mpf", "mpf"
    layouts = ((DEVICE, DEVICE), (DEVICE, PLAIN))
    operator = FragmentsOperator

    def windows(self, layer: Layer) -> tuple[Triple, Triple, Triple]:
        """Those of the layer; each offset below the stride is a fragment."""
        return layer.window, ONES, layer.stride

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """None; to the host, two fragments, or a few more where they are small."""
        if layouts_of(config)[1] == DEVICE:
            return Memory()
        return Memory(device_workspace_bytes=carved_bytes(_buffers(layer, shape)))

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        operator = FragmentsOperator if layouts_of(config)[1] == DEVICE else FragmentsToHost
        return operator(self, layer, shape, config, threads)


MAX_POOL = register(GpuMaxPool())
MAX_FILTER = register(GpuMaxFilter())
MPF = register(GpuMaxPoolFragments())
