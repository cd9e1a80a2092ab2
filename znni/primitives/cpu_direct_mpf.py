"""`cpu.direct_mpf`: a direct convolution and its max-pooling fragments in one pass (``pyx/direct_mpf.pyx``).

The full-resolution map, which would be written and read once, is never held: tiles of it are pooled while in cache.
Lanes are output channels, so a blocked output is stored as it is computed. What a config sets:

``tile``
    Windows, along y and x, to a tile at most: a plane of their maxima should stay in L2.
``stream``
    Store past the caches, which pays for an output much larger than they are; plain rows only where they are whole
    cache lines, since streaming ragged ones took 1.8 times the time of storing them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from znni._kernels import direct_mpf
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import ONES, Activation, ConvMaxPoolFragments, Shape, Triple, by_x
from znni.layouts import BLOCKED, PLAIN, layouts_of
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit
from znni.primitives.cpu_direct import pack_channels

#: Terms to a span at most: the weights of two vectors of channels then take half of a 32 KiB L1 cache.
_SPAN_TERMS = 256
#: An output larger than this is not expected to be found in the caches by the next layer.
_CACHED_BYTES = 32 << 20
#: Floats in a cache line.
_LINE = 16
#: Bytes of maxima that a tile holds of the planes before, at most: they should stay in an L2 cache.
_PLANE_BYTES = 640 << 10


@dataclass(frozen=True)
class Tiling:
    """How one layer on one shape is cut, which is what `direct_mpf.convolve` goes by. Steps and offsets count floats.

    `tiles` are tasks along z, y and x; further ones are the `blocks` of `units` (vectors of output channels). `pitch`
    is a row of sums, `plane` a plane of maxima; what ends in ``_at`` says where a part of the scratch or of the
    resident array begins.
    """

    threads: int
    activation: Activation
    code: int
    code_before: int
    parts: int
    in_steps: tuple[int, int, int, int, int]
    out_channels: int
    units: int
    blocks: int
    terms: int
    span: int
    window: Triple
    stride: Triple
    size: Triple
    tiles: Triple
    pitch: int
    plane: int
    kept_at: int
    line_at: int
    spare_at: int
    scratch: int
    blocked: bool
    stream: bool
    workspace_bytes: int
    bias_at: int
    term_at: int
    weight_at: int
    resident_bytes: int


def _rises(activation: Activation) -> bool:
    """Whether the activation of a maximum is the maximum of the activations."""
    return {"leaky_relu": activation.a >= 0, "elu": activation.a >= 0, "tanh": activation.a * activation.b >= 0}.get(
        activation.name, True
    )


def _input_steps(shape: Shape, lanes: int) -> tuple[int, int, int, int, int]:
    """Floats from one batch element, block of `lanes` channels, z, y and x to the next; `lanes` is 1 if plain."""
    _, channels, z, y, x = shape
    return -(-channels // lanes) * z * y * x * lanes, z * y * x * lanes, y * x * lanes, x * lanes, lanes


def _term_offsets(layer: ConvMaxPoolFragments, shape: Shape, lanes: int) -> np.ndarray:
    """Where the input of each term (input channel, kernel voxel) lies from that of the first, in floats."""
    channel, (_, in_block, *steps) = np.arange(shape[1]), _input_steps(shape, lanes)
    taps = np.zeros(1, np.int64)
    for k, d, step in zip(layer.conv.kernel, layer.conv.dilation, steps, strict=True):
        taps = np.add.outer(taps, np.arange(k) * d * step)
    return np.add.outer(channel // lanes * in_block + channel % lanes, taps.ravel()).ravel()


def _tiles_x(windows: int, most: int, stride: int, more: int) -> int:
    """Into how many tiles to cut `windows` (of one fragment) of at most `most`, for the least time of all rows.

    A tile's row has `stride` voxels a window and `more` of them. Time is counted in multiply-adds: register blocks are
    full, or at the end of a row have what is left, but take no less than the latency of four.
    """

    def time(tiles: int) -> int:
        whole, rest = divmod((-(-windows // tiles) - 1) * stride + more, direct_mpf.BLOCK_POINTS)
        return tiles * (whole * direct_mpf.BLOCK_POINTS + (max(4, rest) if rest else 0))

    least = -(-windows // most)
    return min(range(least, min(least + 3, windows) + 1), key=time)


def _runs(planes: int, depth: int, step: int, others: int, threads: int) -> int:
    """Into how many runs to cut the z axis for the least time of the busiest thread, counted in planes computed."""

    def time(runs: int) -> int:
        return -(-runs * others // threads) * (-(-planes // runs) * step + depth)

    return min(range(1, min(planes, 4 * threads) + 1), key=lambda runs: (time(runs), runs))


@lru_cache(maxsize=4096)
def _tiling(layer: ConvMaxPoolFragments, shape: Shape, key: str, threads: int) -> Tiling:
    config = json.loads(key)
    takes, gives = layouts_of(config)
    lanes, conv = direct_mpf.LANES, layer.conv
    window, stride = layer.pool.window, layer.pool.stride
    size = layer.output_shape(shape)[2:]
    terms = shape[1] * math.prod(conv.kernel)
    units = -(-conv.out_channels // lanes)
    blocks = -(-units // direct_mpf.BLOCK_VECTORS)
    width = -(-units // blocks)
    fragments = math.prod(stride) // layer.parts
    kinds = stride[2] if stride[2] % fragments else fragments  # offsets along x that a part's fragments may have
    most_y, most_x = (max(1, t // s) for t, s in zip(config["tile"], stride[1:], strict=True))
    tiles_y, tiles_x = -(-size[1] // most_y), _tiles_x(size[2], most_x, stride[2], kinds + window[2] - 1)
    rows, row = -(-size[1] // tiles_y) * stride[1], -(-size[2] // tiles_x)
    pitch = ((row - 1) * stride[2] + kinds + window[2] - 1) * width * lanes
    plane = rows * kinds * row * width * lanes
    kept_at = window[1] * pitch
    line_at = kept_at + (window[0] - 1) * plane
    spare_at = line_at + (0 if gives == BLOCKED else row * lanes)
    stream = config["stream"] and (gives == BLOCKED or size[2] % _LINE == 0)
    scratch = aligned((spare_at + (row * lanes if stream and gives == PLAIN else 0)) * 4) // 4
    in_batch, _, *in_steps = _input_steps(shape, lanes if takes == BLOCKED else 1)
    term_at = aligned(units * lanes * 4)
    weight_at = term_at + aligned(terms * 8)
    rises = _rises(conv.activation)
    return Tiling(
        threads=threads,
        activation=conv.activation,
        code=conv.activation.code if rises else 0,
        code_before=0 if rises else conv.activation.code,
        parts=layer.parts,
        in_steps=(shape[0], in_batch, *in_steps),
        out_channels=conv.out_channels,
        units=units,
        blocks=blocks,
        terms=terms,
        span=-(-terms // -(-terms // _SPAN_TERMS)),
        window=window,
        stride=stride,
        size=size,
        tiles=(
            _runs(size[0], window[0] - 1, stride[0], shape[0] * blocks * tiles_y * tiles_x, threads),
            tiles_y,
            tiles_x,
        ),
        pitch=pitch,
        plane=plane,
        kept_at=kept_at,
        line_at=line_at,
        spare_at=spare_at,
        scratch=scratch,
        blocked=gives == BLOCKED,
        stream=stream,
        workspace_bytes=threads * scratch * 4,
        bias_at=0,
        term_at=term_at,
        weight_at=weight_at,
        resident_bytes=weight_at + aligned(units * lanes * terms * 4),
    )


class _DirectFragments(Operator):
    """`cpu.direct_mpf` with packed weights: one resident array holds the bias, the terms' offsets and the weights."""

    def __init__(
        self,
        primitive: Primitive,
        layer: ConvMaxPoolFragments,
        weights: Weights,
        shape: Shape,
        config: Config,
        threads: int,
    ):
        super().__init__(primitive, layer, shape, config, threads)
        self._tiling = t = _tiling(layer, shape, config_key(config), threads)
        self._packed = packed = aligned_empty(t.resident_bytes)
        packed[:] = 0  # lanes beyond the last channel
        packed[t.bias_at : t.bias_at + t.out_channels * 4].view(np.float32)[:] = weights["bias"]
        lanes = direct_mpf.LANES
        offsets = _term_offsets(layer, shape, lanes if self.takes == BLOCKED else 1)
        packed[t.term_at : t.term_at + offsets.size * 8].view(np.int64)[:] = offsets
        pack_channels(weights["weight"], packed[t.weight_at :], t.units, t.blocks, lanes)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """One part of the fragments, in one call of the kernel, which cuts the work into tasks for its threads."""
        if not 0 <= self.part < self.layer.parts:
            raise InvalidShape(f"this layer has parts 0 to {self.layer.parts - 1}, got part {self.part}")
        direct_mpf.convolve(x, out, self._packed, workspace, self._tiling, self.part)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The packed bias, offsets and weights."""
        return (self._packed,)


class CpuDirectFragments(Primitive):
    """Direct convolution with any kernel size and dilation, and max-pooling fragments with any window and stride."""

    name = "cpu.direct_mpf"
    kind = "conv_mpf"
    tolerance = 5e-6
    efficiency = (0.7, 0.6)
    layouts = tuple((takes, gives) for takes in (PLAIN, BLOCKED) for gives in (PLAIN, BLOCKED))

    def supports(self, layer: ConvMaxPoolFragments, shape: Shape) -> str | None:
        """None, unless the layer does not fit `shape`, or its convolution has a stride or padding."""
        if layer.conv.stride != ONES:
            return f"it convolves at stride 1, got {by_x(layer.conv.stride)}"
        if any(layer.conv.padding):
            return f"it convolves without padding, got {by_x(layer.conv.padding)}"
        return unfit(layer, shape)

    def configs(self, layer: ConvMaxPoolFragments, shape: Shape, machine=None) -> list[Config]:
        """Tiles that are long in x, and that are square."""
        out = layer.output_shape(shape)
        stream = 4 * math.prod(out) > _CACHED_BYTES
        held = 4 * direct_mpf.LANES * direct_mpf.BLOCK_VECTORS * max(1, layer.pool.window[0] - 1)
        side = max(16, int((_PLANE_BYTES // held) ** 0.5))
        return [{"tile": [max(8, side // by), side * by], "stream": stream} for by in (2, 1, 4)]

    def memory(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config, threads: int) -> Memory:
        """Packed weights, bias and offsets; rows of sums and planes of maxima of every thread."""
        self._check(layer, shape, config)
        tiling = _tiling(layer, shape, config_key(config), threads)
        return Memory(tiling.resident_bytes, tiling.workspace_bytes)

    def cost(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> Cost:
        """Of one part: a multiplication and an addition per term of the convolution; input and fragments once."""
        out, dense = layer.output_shape(shape), layer.conv.output_shape(shape)
        terms = shape[1] * math.prod(layer.conv.kernel)
        return Cost(2.0 * terms * math.prod(dense), 4.0 * (math.prod(shape) + math.prod(out) + terms * out[1]))

    def prepare(
        self, layer: ConvMaxPoolFragments, weights: Weights, shape: Shape, config: Config, threads: int
    ) -> Operator:
        """An operator with packed weights; `Unsupported` where the layer or the config is not for it."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _DirectFragments(self, layer, weights, shape, config, threads)

    def _check(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        tile = config.get("tile")
        fits = isinstance(tile, (list, tuple)) and len(tile) == 2 and all(isinstance(n, int) and n > 0 for n in tile)
        if not fits or not isinstance(config.get("stream"), bool):
            raise Unsupported(
                f"a config of {self.name} has a tile, two sizes (y, x) of at least 1, and stream, true or false, "
                f"got {config_key(config)}; see configs()"
            )


register(CpuDirectFragments())
