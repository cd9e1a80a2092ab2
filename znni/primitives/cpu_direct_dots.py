"""`cpu.direct_dots`: direct convolution of a blocked input to few output channels (``pyx/direct_dots.pyx``).

Lanes are input channels. It is for the last layers of networks, whose two or three output channels would leave most
lanes of `cpu.direct` idle, and whose input is blocked already. What a config sets:

``terms``
    Terms (block of input channels, kernel voxel) to a span, whose weights and input should stay in L1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from znni._kernels import direct_dots
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv, Shape, by_x
from znni.layouts import BLOCKED, PLAIN
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit

#: Points along x whose sums are held at once: 12 KiB of them, with four output channels and eight lanes.
_CHUNK = 96


@dataclass(frozen=True)
class Blocking:
    """How one layer on one shape is cut, which is what `direct_dots.convolve` goes by. Steps and offsets count floats.

    A task is `rows` rows of a plane, which is cut into `tiles`. Output channels are dealt evenly to `blocks`.
    """

    threads: int
    activation: Activation
    in_steps: tuple[int, int, int]
    blocks: int
    terms: int
    span: int
    rows: int
    tiles: int
    chunk: int
    scratch: int
    workspace_bytes: int
    term_at: int
    weight_at: int
    resident_bytes: int


def _evenly(total: int, most: int) -> int:
    """The size of the parts when `total` is cut evenly into as few as allow at most `most` each."""
    return -(-total // -(-total // most))


@lru_cache(maxsize=4096)
def _blocking(layer: Conv, shape: Shape, terms_to_a_span: int, threads: int) -> Blocking:
    lanes = direct_dots.LANES
    batch, channels, depth, height, width = shape
    out = layer.output_shape(shape)
    in_blocks, row = -(-channels // lanes), width * lanes
    terms = in_blocks * math.prod(layer.kernel)
    # tasks of about eight rows, fewer where threads would have nothing to do
    rows = _evenly(out[3], max(1, min(8, batch * out[2] * out[3] // (4 * threads))))
    chunk = _evenly(out[4], _CHUNK)
    scratch = aligned((chunk + lanes) * min(direct_dots.BLOCK_CHANNELS, layer.out_channels) * lanes * 4) // 4
    term_at = aligned(layer.out_channels * 4)
    weight_at = term_at + aligned(terms * 8)
    return Blocking(
        threads=threads,
        activation=layer.activation,
        in_steps=(in_blocks * depth * height * row, layer.stride[0] * height * row, layer.stride[1] * row),
        blocks=-(-layer.out_channels // direct_dots.BLOCK_CHANNELS),
        terms=terms,
        span=_evenly(terms, terms_to_a_span),
        rows=rows,
        tiles=-(-out[3] // rows),
        chunk=chunk,
        scratch=scratch,
        workspace_bytes=threads * scratch * 4,
        term_at=term_at,
        weight_at=weight_at,
        resident_bytes=weight_at + aligned(layer.out_channels * terms * lanes * 4),
    )


class _DirectDots(Operator):
    """`cpu.direct_dots` with packed weights: one resident array holds the bias, the terms' offsets and the weights."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._blocking = b = _blocking(layer, shape, config["terms"], threads)
        self._packed = packed = aligned_empty(b.resident_bytes)
        packed[:] = 0  # lanes beyond the last input channel
        lanes, (_, channels, depth, height, width) = direct_dots.LANES, shape
        packed[: layer.out_channels * 4].view(np.float32)[:] = weights["bias"]
        row = width * lanes
        offsets = np.arange(-(-channels // lanes)) * (depth * height * row)
        for k, d, step in zip(layer.kernel, layer.dilation, (height * row, row, lanes), strict=True):
            offsets = np.add.outer(offsets, np.arange(k) * d * step)
        packed[b.term_at : b.term_at + offsets.size * 8].view(np.int64)[:] = offsets.ravel()
        whole = packed[b.weight_at : b.weight_at + layer.out_channels * b.terms * lanes * 4].view(np.float32)
        kernel_terms, end = math.prod(layer.kernel), 0
        for block in range(b.blocks):
            first, end = end, end + layer.out_channels // b.blocks + (block < layer.out_channels % b.blocks)
            part = whole[first * b.terms * lanes : end * b.terms * lanes].reshape(-1, kernel_terms, end - first, lanes)
            for channel in range(channels):
                some = weights["weight"][first:end, channel].reshape(end - first, kernel_terms)
                part[channel // lanes, :, :, channel % lanes] = some.T

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """One call of the kernel, which cuts the work into tasks for its threads."""
        direct_dots.convolve(x, out, self._packed, workspace, self._blocking)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The packed bias, offsets and weights."""
        return (self._packed,)


class CpuDirectDots(Primitive):
    """Input channels in the lanes: any kernel size and dilation, strides along z and y, no padding."""

    name = "cpu.direct_dots"
    kind = "conv"
    tolerance = 5e-6
    efficiency = (0.75, 0.6)
    layouts = ((BLOCKED, PLAIN),)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, unless the kernel does not fit `shape`, or there is padding or a stride along x."""
        if any(layer.padding):
            return f"it convolves without padding, got {by_x(layer.padding)}"
        if layer.stride[2] != 1:
            return f"it needs stride 1 along x, got {layer.stride[2]}"
        return unfit(layer, shape)

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Spans whose weights take about a third of a 32 KiB L1 cache."""
        channels = min(layer.out_channels, direct_dots.BLOCK_CHANNELS)
        return [{"terms": (12 << 10) // (4 * direct_dots.LANES * channels)}]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Packed weights, bias and offsets; sums of every thread."""
        self._check(layer, shape, config)
        blocking = _blocking(layer, shape, config["terms"], threads)
        return Memory(blocking.resident_bytes, blocking.workspace_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """A multiplication and an addition per term and lane, sums over lanes; input, output and weights once."""
        out, lanes = layer.output_shape(shape), direct_dots.LANES
        terms = -(-shape[1] // lanes) * lanes * math.prod(layer.kernel)
        moved = math.prod(shape) + math.prod(out) + terms * out[1]
        return Cost((2.0 * terms + lanes) * math.prod(out), 4.0 * moved)

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator with packed weights; `Unsupported` where the layer or the config is not for it."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _DirectDots(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        if not isinstance(config.get("terms"), int) or config["terms"] < 1:
            raise Unsupported(
                f"a config of {self.name} has terms of at least 1, got {config_key(config)}; see configs()"
            )


register(CpuDirectDots())
