"""Layers that combine tensors voxel by voxel on the CPU: sums, products, factors of channels, activations on their own.

All are one pass over input and output, bound by memory; activations are fused (`pyx/combine.h`).
"""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import combine
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, PLAIN, array_shape, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_FLOAT_BYTES = 4


def channel_values(values: np.ndarray, layout: str) -> np.ndarray:
    """A copy of a float32 vector with one value a channel; zeros for the empty lanes of a blocked layout."""
    found = np.zeros(channel_places(len(values), layout), np.float32)
    found[: len(values)] = values
    return found


def channel_places(channels: int, layout: str) -> int:
    """Channels that an array in `layout` has room for."""
    return math.prod(array_shape((1, channels, 1, 1, 1), layout))


class Combination(Operator):
    """A combination of one shape, with its weights, if any, copied."""

    def __init__(
        self, primitive: Primitive, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int
    ):
        super().__init__(primitive, layer, shape, config, threads)
        names = weight_names(layer, shape)
        self.weights = {name: channel_values(weights[name], self.takes) for name in names}
        activation = getattr(layer, "activation", None)
        self.activation = (activation.code, activation.a, activation.b) if activation else (0, 1.0, 1.0)

    def compute(self, x: np.ndarray | tuple[np.ndarray, ...], out: np.ndarray, workspace: np.ndarray) -> None:
        """The kernel of the primitive, on all voxels."""
        self.primitive.combine(self, x, out)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """Its weights."""
        return tuple(self.weights.values())


def weight_names(layer: Layer, shape: Shape) -> tuple[str, ...]:
    """Names of the layer's weights, one value a channel each."""
    return tuple(layer.weight_shapes(shape[1])) if hasattr(layer, "weight_shapes") else ()


class Combine(Primitive):
    """What they share: plain and blocked alike, and no memory but input, output and the weights."""

    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 2e-6
    efficiency = (0.2, 0.6)
    #: Operations for each value, but those of the activation.
    flop_of_value = 1

    def combine(self, operator: Combination, x: np.ndarray | tuple[np.ndarray, ...], out: np.ndarray) -> None:
        """Calls the kernel."""
        raise NotImplementedError

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All layers of its kind."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """The weights."""
        places = channel_places(shape[1], layouts_of(config)[0])
        return Memory(host_resident_bytes=_FLOAT_BYTES * places * len(weight_names(layer, shape)))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """A few operations for each value of each input; inputs read and output written once."""
        takes, gives = layouts_of(config)
        read = sum(tensor_bytes(own, takes) for own in layer.input_shapes(shape))
        inputs = len(layer.input_shapes(shape))
        flop = float(self.flop_of_value * inputs * math.prod(shape))
        return Cost(flop=flop, moved_bytes=float(read + tensor_bytes(shape, gives)))

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator that holds the weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return Combination(self, layer, weights, shape, config, threads)


class CpuAdd(Combine):
    """Sums of any number of tensors, with a scale and bias for each channel where the layer has them."""

    name, kind = "cpu.add", "add"

    def combine(self, operator: Combination, x: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        """One pass over up to 16 tensors."""
        scale, bias = operator.weights.get("scale"), operator.weights.get("bias")
        combine.add(x, out, operator.shape[1], scale, bias, *operator.activation, operator.threads)


class CpuAffine(Combine):
    """A scale and bias for each channel."""

    name, kind = "cpu.affine", "affine"
    flop_of_value = 2

    def combine(self, operator: Combination, x: np.ndarray, out: np.ndarray) -> None:
        """The sum of one tensor alone."""
        scale, bias = operator.weights["scale"], operator.weights["bias"]
        combine.add((x,), out, operator.shape[1], scale, bias, *operator.activation, operator.threads)


class CpuActivate(Combine):
    """An activation on its own."""

    name, kind = "cpu.activate", "activate"

    def combine(self, operator: Combination, x: np.ndarray, out: np.ndarray) -> None:
        """The sum of one tensor alone."""
        combine.add((x,), out, operator.shape[1], None, None, *operator.activation, operator.threads)


class CpuPRelu(Combine):
    """Leaky ReLU with a slope for each channel."""

    name, kind = "cpu.prelu", "prelu"

    def combine(self, operator: Combination, x: np.ndarray, out: np.ndarray) -> None:
        """The slope where x is negative."""
        combine.prelu(x, out, operator.shape[1], operator.weights["slope"], operator.threads)


class CpuMultiply(Combine):
    """Products of two tensors, or of one and a factor for each of its channels and batch elements."""

    name, kind = "cpu.multiply", "multiply"

    def combine(self, operator: Combination, x: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        """The kernel for either form of the second factor."""
        kernel = combine.multiply_channels if operator.layer.per_channel else combine.multiply
        kernel(*x, out, operator.shape[1], *operator.activation, operator.threads)


ADD = register(CpuAdd())
AFFINE = register(CpuAffine())
ACTIVATE = register(CpuActivate())
PRELU = register(CpuPRelu())
MULTIPLY = register(CpuMultiply())
