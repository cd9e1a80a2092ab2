"""Padding, slicing and resizing on the CPU, by tables made beforehand of which input voxel goes where along each axis."""

from __future__ import annotations

from math import prod

import numpy as np

from znni._kernels import resample
from znni.layers import Layer, Resize, Shape
from znni.layouts import BLOCKED, LANES, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, register, unfit
from znni.primitives.cpu_pooling import refuse_settings

_FLOAT_BYTES = 4


def coordinates(layer: Resize, axis: int, taken: int, given: int) -> np.ndarray:
    """Where along an input axis of `taken` voxels the `given` ones of the result lie: float32, so that ties fall as
    they do in ONNX Runtime, which computes in it."""
    i, half = np.arange(given, dtype=np.float32), np.float32(0.5)
    scale = np.float32(layer.factor[axis] if layer.extra[axis] == 0 else given / taken)
    if layer.coordinates == "asymmetric":  # by sizes, 2 * 7 / 4 is the tie that 2 / (4 / 7) just misses
        return i / scale if layer.extra[axis] == 0 else i * np.float32(taken) / np.float32(given)
    if layer.coordinates == "align_corners":
        return i * np.float32(taken - 1) / np.float32(given - 1) if given > 1 else i
    if layer.coordinates == "pytorch_half_pixel" and given == 1:
        return i * 0
    return (i + half) / scale - half


def nearest(layer: Resize, axis: int, taken: int, given: int) -> np.ndarray:
    """The input voxel of each voxel of the result, int32."""
    at, half = coordinates(layer, axis, taken, given), np.float32(0.5)
    rounded = {
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
        "round_prefer_floor": lambda: np.ceil(at - half),
        "round_prefer_ceil": lambda: np.floor(at) + (at - np.floor(at) >= half),  # at + half would itself round
    }[layer.rounding]()
    return np.clip(rounded, 0, taken - 1).astype(np.int32)


def around(layer: Resize, axis: int, taken: int, given: int) -> tuple[np.ndarray, np.ndarray]:
    """The two input voxels around each voxel of the result, int32 (2, given), and the weight of the second, float32."""
    at = np.clip(coordinates(layer, axis, taken, given), 0, taken - 1)
    first = at.astype(np.int32)
    pair = np.stack([first, np.minimum(first + 1, taken - 1)]).astype(np.int32)
    return pair, (at - first).astype(np.float32)


class GatherOperator(Operator):
    """Voxels by index, of one shape."""

    def __init__(self, primitive: Gather, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._tables = primitive.tables(layer, shape)
        self._first = (getattr(layer, "channels", None) or (0,))[0]
        self._fill = getattr(layer, "value", 0.0)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Copies of voxels."""
        resample.gather(x, out, *self._tables, self.out_shape[1], self._first, self._fill, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The tables."""
        return self._tables


class LinearOperator(Operator):
    """Linear interpolation of one shape."""

    def __init__(self, primitive: CpuResize, layer: Layer, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        sizes = zip(shape[2:], self.out_shape[2:], strict=True)
        pairs = [around(layer, axis, *size) for axis, size in enumerate(sizes)]
        self._tables = (*(pair for pair, _ in pairs), *(part for _, part in pairs))

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Mixtures of rows, then of the voxels of these."""
        resample.linear(x, out, workspace, *self._tables, self.threads)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The tables: voxels, and weights."""
        return self._tables


class Gather(Primitive):
    """What padding, slicing and resizing share: a table an axis, and one pass over the output."""

    layouts = ((PLAIN, PLAIN), (BLOCKED, BLOCKED))
    tolerance = 0.0
    efficiency = (0.5, 0.5)

    def tables(self, layer: Layer, shape: Shape) -> tuple[np.ndarray, ...]:
        """For each axis the input voxel of each output voxel, int32; negative where the fill value goes."""
        raise NotImplementedError

    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """All that fit."""
        return unfit(layer, shape)

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """The tables."""
        return Memory(host_resident_bytes=4 * sum(layer.output_shape(shape)[2:]))

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """No arithmetic; the input read and the output written once."""
        takes, gives = layouts_of(config)
        moved = tensor_bytes(shape, takes) + tensor_bytes(layer.output_shape(shape), gives)
        return Cost(flop=0.0, moved_bytes=float(moved))

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """None: values stay as they are."""
        return 0.0

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        self.refuse(layer, shape)
        refuse_settings(self, config)
        return GatherOperator(self, layer, shape, config, threads)


class CpuPad(Gather):
    """Padding by any mode."""

    name, kind = "cpu.pad", "pad"

    def tables(self, layer: Layer, shape: Shape) -> tuple[np.ndarray, ...]:
        """The numbers of the input's voxels, padded as the voxels are."""
        fill = {"constant_values": -1} if layer.mode == "constant" else {}
        sizes = zip(shape[2:], layer.low, layer.high, strict=True)
        return tuple(np.pad(np.arange(n, dtype=np.int32), (a, b), layer.mode, **fill).copy() for n, a, b in sizes)


class CpuSlice(Gather):
    """Slices of voxels and channels; blocked, those are fastest whose channels start a block."""

    name, kind = "cpu.slice", "slice"

    def tables(self, layer: Layer, shape: Shape) -> tuple[np.ndarray, ...]:
        """The voxels that are left."""
        cuts = zip(layer.low, shape[2:], layer.high, layer.step, strict=True)
        return tuple(np.arange(a, n - b, s, dtype=np.int32) for a, n, b, s in cuts)


class CpuResize(Gather):
    """Resizing to the nearest voxel, or by linear interpolation."""

    name, kind = "cpu.resize", "resize"
    tolerance = 2e-6  # linear: coordinates of float32

    def tables(self, layer: Layer, shape: Shape) -> tuple[np.ndarray, ...]:
        """The nearest voxels."""
        sizes = zip(shape[2:], layer.output_shape(shape)[2:], strict=True)
        return tuple(nearest(layer, axis, *size) for axis, size in enumerate(sizes))

    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """The tables; linear, these have two voxels and a weight, and a row of the input is mixed for each thread."""
        if layer.mode == "nearest":
            return super().memory(layer, shape, config, threads)
        lanes = LANES if layouts_of(config)[0] == BLOCKED else 1
        return Memory(
            host_resident_bytes=12 * sum(layer.output_shape(shape)[2:]),
            host_workspace_bytes=_FLOAT_BYTES * threads * shape[4] * lanes,
        )

    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Three operations for each mixture."""
        still = super().cost(layer, shape, config)
        if layer.mode == "nearest":
            return still
        out = layer.output_shape(shape)
        rows = prod(out[:4])
        return Cost(flop=float(9 * rows * shape[4] + 3 * rows * out[4]), moved_bytes=still.moved_bytes)

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """That of a few float32 operations, where it interpolates."""
        return 0.0 if layer.mode == "nearest" else 2e-7

    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator; there are no weights."""
        if layer.kind == self.kind and layer.mode == "linear":
            self.refuse(layer, shape)
            refuse_settings(self, config)
            return LinearOperator(self, layer, shape, config, threads)
        return super().prepare(layer, weights, shape, config, threads)


PAD = register(CpuPad())
SLICE = register(CpuSlice())
RESIZE = register(CpuResize())
