"""Grouped and transposed convolutions on the CPU: any of them on plain arrays, depthwise ones (as many groups as channels
come in and go out) on blocked ones too, a lane a channel."""

from __future__ import annotations

import math

import numpy as np

from znni._kernels import grouped
from znni.layers import ONES, ConvTranspose, Layer, Shape
from znni.layouts import BLOCKED, LANES, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_FLOAT_BYTES = 4


def by_lanes(values: np.ndarray) -> np.ndarray:
    """(channels, ..) as a flat array (blocks, .., lanes), with zeros beyond the last channel."""
    channels = values.shape[0]
    padded = np.zeros((-(-channels // LANES) * LANES, values[0].size), np.float32)
    padded[:channels] = values.reshape(channels, -1)
    return padded.reshape(-1, LANES, values[0].size).swapaxes(1, 2).reshape(-1).copy()


class GroupedOperator(Operator):
    """A grouped or transposed convolution with weights and shape of its own."""

    def __init__(self, primitive: Grouped, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        if self.takes == BLOCKED:
            self._weight, self._bias = by_lanes(weights["weight"]), by_lanes(weights["bias"])
        else:
            self._weight, self._bias = (np.array(weights[n], np.float32).reshape(-1) for n in ("weight", "bias"))

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The convolution, with bias and activation."""
        layer, act = self.layer, self.layer.activation
        transposed = isinstance(layer, ConvTranspose)
        dilation, padding = (ONES, layer.low) if transposed else (layer.dilation, layer.padding)
        grouped.convolve(
            x, out, self._weight, self._bias, layer.groups, layer.kernel, layer.stride, dilation, padding, transposed,
            act.code, act.a, act.b, self.threads,
        )  # fmt: skip

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """Weights and biases."""
        return self._weight, self._bias


class Grouped(Primitive):
    """What all four share: weights held in the order in which they are read."""

    efficiency = (0.1, 0.3)

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All that fit; on blocked arrays depthwise ones alone."""
        reason = unfit(layer, shape)
        if reason is None and self.layouts[0][0] == BLOCKED and not layer.groups == shape[1] == layer.out_channels:
            return "it takes as many groups as there are channels in and out"
        return reason

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """Weights and biases, up to whole vectors where these are of channels."""
        sizes = (math.prod(s) for s in layer.weight_shapes(shape[1]).values())
        if layouts_of(config)[0] == BLOCKED:
            sizes = [-(-layer.groups // LANES) * LANES * (math.prod(layer.kernel) + 1)]
        return Memory(host_resident_bytes=_FLOAT_BYTES * sum(sizes))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Two operations a product; the input read and the output written once, weights once."""
        out_shape = layer.output_shape(shape)
        takes, gives = layouts_of(config)
        weights = math.prod(layer.weight_shapes(shape[1])["weight"])
        if isinstance(layer, ConvTranspose):  # each input voxel meets each of its weights
            products = shape[0] * weights * math.prod(shape[2:])
        else:
            products = out_shape[0] * weights * math.prod(out_shape[2:])
        moved = tensor_bytes(shape, takes) + tensor_bytes(out_shape, gives) + _FLOAT_BYTES * weights
        return Cost(flop=2.0 * products, moved_bytes=float(moved))

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator that holds copies of the weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return GroupedOperator(self, layer, weights, shape, config, threads)


class CpuGroupedConv(Grouped):
    """Any grouped convolution, row by row of plain arrays."""

    name, kind = "cpu.grouped_conv", "grouped_conv"


class CpuConvTranspose(Grouped):
    """Any transposed convolution, row by row of plain arrays."""

    name, kind = "cpu.conv_transpose", "conv_transpose"


class CpuDepthwise(Grouped):
    """Depthwise convolutions of blocked arrays."""

    name, kind = "cpu.depthwise", "grouped_conv"
    layouts = ((BLOCKED, BLOCKED),)
    efficiency = (0.2, 0.5)


class CpuDepthwiseTranspose(Grouped):
    """Depthwise transposed convolutions of blocked arrays."""

    name, kind = "cpu.depthwise_transpose", "conv_transpose"
    layouts = ((BLOCKED, BLOCKED),)
    efficiency = (0.1, 0.5)


GROUPED_CONV = register(CpuGroupedConv())
CONV_TRANSPOSE = register(CpuConvTranspose())
DEPTHWISE = register(CpuDepthwise())
DEPTHWISE_TRANSPOSE = register(CpuDepthwiseTranspose())
