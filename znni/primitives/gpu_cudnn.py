"""`gpu.cudnn`: a library's tuned convolutions (cuDNN), where one is installed; bias and activation by a kernel of ours.

What a config sets:

``algorithm``
    One of the library's, by name.
``workspace_mib``
    What the algorithm may work in at most: a batch is cut into as few parts as that allows, which go one after another (Oyama,
    Ben-Nun, Hoefler & Matsuoka, "Accelerating deep learning frameworks with micro-batches", CLUSTER'18).
``tf32``
    Whether products may be rounded to TF32; else they are those of true float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from znni.errors import InvalidShape, Unsupported
from znni.gpu.convolution import Convolutions, ConvolutionSpec
from znni.gpu.current import current, is_open
from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.layers import Conv, Shape, by_x
from znni.layouts import settings_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Weights, config_key, register, unfit
from znni.primitives.gpu_direct import ERROR_OF_A_TERM
from znni.primitives.gpu_pointwise import pointwise_grid

_MIB = 1 << 20
#: Limits on the workspace that are tried.
_LIMITS_MIB = (4096, 256)
#: The library counts elements of a tensor in 32 bits.
_MOST_ELEMENTS = 2**31 - 1
#: Architectures from this one on have TF32.
_TF32_SINCE = 80


@dataclass(frozen=True)
class Cut:
    """Parts of the batch: `images` at a time, the last time what is left, and the workspace that both need."""

    images: int
    workspace_bytes: int


def _library() -> Convolutions | None:
    return current().cudnn if is_open() else None


def _spec(layer: Conv, shape: Shape, tf32: bool) -> ConvolutionSpec:
    return ConvolutionSpec(shape, layer.out_channels, layer.kernel, layer.stride, layer.padding, layer.dilation, tf32)


def _of_images(spec: ConvolutionSpec, images: int) -> ConvolutionSpec:
    return replace(spec, shape=(images, *spec.shape[1:]))


def _most_images(layer: Conv, shape: Shape) -> int:
    """Images of which the library can count all elements."""
    return _MOST_ELEMENTS // max(math.prod(shape[1:]), math.prod(layer.output_shape(shape)[1:]))


def _cut(layer: Conv, shape: Shape, algorithm: str, limit_bytes: int, tf32: bool) -> Cut | None:
    """The largest parts of the batch, halving them, that work within the limit; None where not even one image does."""
    library, spec = _library(), _spec(layer, shape, tf32)
    images, most = shape[0], _most_images(layer, shape)
    while images:
        if images <= most:
            sizes = {images, shape[0] % images or images}
            needs = [library.workspace_bytes(_of_images(spec, size), algorithm) for size in sizes]
            if None not in needs and max(needs) <= limit_bytes:
                return Cut(images, max(needs))
        images = -(-images // 2) if images > 1 else 0
    return None


class CudnnOperator(GpuOperator):
    """A convolution of one shape; plain weights and the bias are resident."""

    def __init__(self, primitive: GpuCudnn, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._images = primitive.cut(layer, shape, config).images
        self._spec = _spec(layer, shape, config["tf32"])
        self._kernel = self.device.kernel("pointwise.cu", "bias_activate")
        # kept until `fill` has uploaded them
        self._host = [np.array(weights[name], np.float32, order="C") for name in ("weight", "bias")]
        self._sizes = _pieces(layer, shape)
        images, voxels = self.out_shape[0] * self.out_shape[1], math.prod(self.out_shape[2:])
        self._grid, self._block, chunks = pointwise_grid(images, voxels)
        activation = layer.activation
        self._arguments = [np.int32(layer.out_channels), np.int64(voxels), chunks, np.int32(activation.code)]
        self._arguments += [np.float32(activation.a), np.float32(activation.b)]

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Uploads weights and bias."""
        pieces = carve(resident, self._sizes)
        self._weight, self._bias = (p.view(np.float32, h.shape) for p, h in zip(pieces, self._host, strict=True))
        for piece, array in zip(pieces, self._host, strict=True):
            self.device.compute.copy(piece, array)
        self.device.compute.synchronise()
        self._host = []

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """The library's products, part by part of the batch, then bias and activation in place."""
        stream, library = self.device.compute, self.device.cudnn
        algorithm = self.config["algorithm"]
        for first in range(0, self.shape[0], self._images):
            part = slice(first, min(first + self._images, self.shape[0]))
            spec = _of_images(self._spec, part.stop - part.start)
            library.convolve(stream, spec, algorithm, x[part], self._weight, out[part], workspace)
        stream.launch(self._kernel, self._grid, self._block, [out, self._bias, *self._arguments])


def _pieces(layer: Conv, shape: Shape) -> list[int]:
    return [4 * math.prod(s) for s in layer.weight_shapes(shape[1]).values()]


class GpuCudnn(GpuPrimitive):
    """A library's convolutions. All their memory is given to them."""

    name, kind = "gpu.cudnn", "conv"
    efficiency = (0.6, 0.5)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None where a device is open, the library is installed, and one of its algorithms computes one image."""
        if reason := unfit(layer, shape):
            return reason
        if not is_open():
            return "no device is open, and only then is it known whether cuDNN is installed; call znni.gpu.open_device() first"
        if (library := _library()) is None:
            return "cuDNN is not installed, or was not found"
        if not _most_images(layer, shape):
            return f"it counts the elements of a tensor in 32 bits, and one image has more than {_MOST_ELEMENTS}"
        if not any(self._cuts(layer, shape, library)):
            return f"no algorithm of cuDNN {library.version} computes it within {_LIMITS_MIB[0]} MiB of workspace"
        return None

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Every algorithm within the largest limit, and a smaller one where that cuts otherwise; true float32 first."""
        with_tf32 = int(current().architecture.removeprefix("sm_")) >= _TF32_SINCE
        found = []
        for tf32 in (False, True) if with_tf32 else (False,):
            for algorithm in _library().algorithms():
                seen = None
                for limit in _LIMITS_MIB:
                    cut = _cut(layer, shape, algorithm, limit * _MIB, tf32)
                    if cut and cut != seen:
                        found.append({"algorithm": algorithm, "workspace_mib": limit, "tf32": tf32})
                    seen = cut
        return found

    def cut(self, layer: Conv, shape: Shape, config: Config) -> Cut:
        """How the batch is cut; `Unsupported` where the config cannot be applied to the layer."""
        self.refuse(layer, shape)
        settings, library = settings_of(config), _library()
        kinds = {"algorithm": str, "workspace_mib": int, "tf32": bool}
        if set(settings) != set(kinds) or any(type(settings[name]) is not kind for name, kind in kinds.items()):
            raise Unsupported(
                f"a config of {self.name} has an algorithm, workspace_mib and tf32 (true or false), got {config_key(config)}; "
                "see configs()"
            )
        if settings["algorithm"] not in library.algorithms():
            raise Unsupported(
                f"cuDNN {library.version} has no algorithm {settings['algorithm']!r}; it has {', '.join(library.algorithms())}"
            )
        cut = _cut(layer, shape, settings["algorithm"], settings["workspace_mib"] * _MIB, settings["tf32"])
        if cut is None:
            raise Unsupported(
                f"{settings['algorithm']} of cuDNN {library.version} cannot compute this on {by_x(shape)} within "
                f"{settings['workspace_mib']} MiB of workspace"
            )
        return cut

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Weights and bias; what the algorithm wants for one part of the batch."""
        cut = self.cut(layer, shape, config)
        return Memory(
            device_resident_bytes=carved_bytes(_pieces(layer, shape)), device_workspace_bytes=cut.workspace_bytes
        )

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """A multiplication and an addition per term, whatever the algorithm; the output is read and written once more."""
        out, terms = layer.output_shape(shape), shape[1] * math.prod(layer.kernel)
        moved = tensor_bytes(shape) + 3 * tensor_bytes(out) + 4 * terms * out[1]
        return Cost(flop=2.0 * terms * math.prod(out), moved_bytes=float(moved))

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """Of TF32, that of its operands; else as if terms were added one after another."""
        grown = ERROR_OF_A_TERM * (shape[1] * math.prod(layer.kernel)) ** 0.5
        return max(super().error(layer, shape, config), grown)

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; `Unsupported` where the config cannot be applied to the layer."""
        self.refuse(layer, shape)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return CudnnOperator(self, layer, weights, shape, config, threads)

    def _cuts(self, layer: Conv, shape: Shape, library: Convolutions):
        """How the batch is cut by each algorithm, with the largest limit."""
        for algorithm in library.algorithms():
            yield _cut(layer, shape, algorithm, _LIMITS_MIB[0] * _MIB, False)


register(GpuCudnn())
