"""Convolution by register-blocked products over (input channel, kernel voxel) terms (``pyx/direct.pyx``).

Weights are packed once, for the lanes of this build; the input is read where it lies. `cpu.direct` has output channels
in the lanes: any stride, tiny volumes, many channels, either layout. `cpu.direct_voxels` has consecutive x voxels in
them: few output channels, or few terms, in the plain layout. What a config sets:

``terms``
    Terms (input channel, kernel voxel) to a span, whose weights should stay in L1.
``points``
    Voxels, or with `cpu.direct_voxels` vectors of them, to a chunk, whose input should stay in the caches.
``stream``
    Only `cpu.direct_voxels`: store past the caches, which pays for an output much larger than they are; `cpu.direct`
    does so with large blocked ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from znni._kernels import direct
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv, Shape, Triple, by_x
from znni.layouts import BLOCKED, PLAIN, layouts_of
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit

#: A zero-padded layer is computed in slabs whose padded input is about this large, so that it is read from the caches.
_SLAB_BYTES = 8 << 20
#: Register blocks of channels whose sums are held at once, so that a span's input is read once for all of them.
_GROUP = 8
#: An output larger than this is not expected to be found in the caches by the next layer.
_CACHED_BYTES = 32 << 20
#: Of few terms, one larger than this is stored past the caches: at 18 MB that took three quarters of the time.
_STREAMED_BYTES = 16 << 20


@dataclass(frozen=True)
class Blocking:
    """How one layer on one shape is cut, which is what `direct.convolve` goes by. Steps and offsets count floats.

    `size` is the output (z, y, x) after joining axes that lie contiguously in the input. The tasks of the threads are
    chunks of points times `splits` parts of the `blocks` of `units` (vectors of output channels, or single ones). A
    line of `voxels` is `rows` output rows with the gaps between them, cut into `pieces`, or `lines` to a chunk.
    """

    voxels: bool
    threads: int
    activation: Activation
    in_channels: int
    out_channels: int
    in_lanes: int
    out_lanes: int
    size: Triple
    in_steps: tuple[int, int, int, int, int]
    stride_z: int
    padding: Triple
    slab_batch: int
    slab_z: int
    slab_planes: int
    kernel_terms: int
    span_channels: int
    span_terms: int
    parts: int
    spans: int
    last_term: int
    units: int
    blocks: int
    splits: int
    group: int
    chunk: int
    rows: int
    lines: int
    pieces: int
    in_place: bool
    stream: bool
    table_bytes: int
    row: int
    scratch_bytes: int
    workspace_bytes: int
    bias_at: int
    term_at: int
    weight_at: int
    resident_bytes: int


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _evenly(total: int, most: int) -> int:
    """The size of the parts when `total` is cut evenly into as few as allow at most `most` each."""
    return -(-total // -(-total // most))


def _share(points: int, chunk: int, block_points: int, blocks: int, threads: int) -> tuple[int, int]:
    """Points to a chunk (at most `chunk`) and splits of the channel blocks, for the least time of the busiest thread.

    Time is counted in register blocks, with one more per chunk and channel block for fetching the weights.
    """
    least = -(-points // chunk)
    few = least < 8 * threads
    options = []
    for splits in range(1, blocks + 1 if few else 2):
        for count in {least, *range(max(least, threads), 4 * threads + 1)} if few else {least}:
            size = min(chunk, _up(-(-points // count), block_points))
            tasks = -(-points // size) * splits
            options.append((-(-tasks // threads) * (size / block_points + 1) * -(-blocks // splits), splits, -size))
    _, splits, size = min(options)
    return -size, splits


def _spans(channels: int, kernel_terms: int, terms: int) -> tuple[int, int]:
    """Channels, and terms of them, to a span of about `terms`: whole channels, or an even part of one."""
    span = _evenly(channels, max(1, min(channels, terms // kernel_terms)))
    return span, span * kernel_terms if kernel_terms <= terms else _evenly(kernel_terms, terms)


def _slab(layer: Conv, shape: Shape, out: Shape) -> Triple:
    """Batch elements, output planes and padded input planes to a slab; zeros where nothing is padded."""
    if not any(layer.padding):
        return (0, 0, 0)
    extent, stride = layer.extent[0], layer.stride[0]
    plane_bytes = 4 * shape[1] * (shape[3] + 2 * layer.padding[1]) * (shape[4] + 2 * layer.padding[2])
    # no fewer planes than the kernel spans, so that at most half of what is copied was copied before
    planes = _evenly(out[2], min(out[2], max(extent, (_SLAB_BYTES // plane_bytes - extent) // stride + 1)))
    padded = (planes - 1) * stride + extent
    batch = _evenly(shape[0], max(1, _SLAB_BYTES // (plane_bytes * padded))) if planes == out[2] else 1
    return (batch, planes, padded)


def _tap_offsets(layer: Conv, plane: int, width: int, lanes: int = 1) -> np.ndarray:
    """Where the input of each kernel voxel lies from that of the first, given the floats in a plane, row and voxel."""
    steps = (plane, width, lanes)
    z, y, x = (np.arange(k) * d * s for k, d, s in zip(layer.kernel, layer.dilation, steps, strict=True))
    return (z[:, None, None] + y[:, None] + x).ravel()


@lru_cache(maxsize=4096)
def _blocking(voxels: bool, layer: Conv, shape: Shape, key: str, threads: int) -> Blocking:
    config = json.loads(key)
    lanes = direct.LANES
    in_lanes, out_lanes = (lanes if layout == BLOCKED else 1 for layout in layouts_of(config))
    out, stride = layer.output_shape(shape), layer.stride
    batch, channels, depth = shape[:3]
    blocks_in = -(-channels // in_lanes)
    slab_batch, slab_z, slab_planes = _slab(layer, (batch, blocks_in * in_lanes, *shape[2:]), out)
    height, width = (n + 2 * p for n, p in zip(shape[3:], layer.padding[1:], strict=True))
    width *= in_lanes
    plane = height * width
    in_channel = (slab_planes or depth) * plane
    in_z, in_y, in_x = stride[0] * plane, stride[1] * width, stride[2] * in_lanes
    z, y, x = (slab_z or out[2], *out[3:])
    if in_y == x * in_x:
        y, x = 1, y * x
        if in_z == x * in_x and not slab_z:
            z, x = 1, z * x
    elements = (slab_batch or batch) * z * y

    kernel_terms = layer.kernel[0] * layer.kernel[1] * layer.kernel[2]
    span_channels, span_terms = _spans(channels, kernel_terms, config["terms"])
    parts = -(-span_channels * kernel_terms // span_terms)
    unit_lanes, most = (1, direct.BLOCK_CHANNELS) if voxels else (lanes, direct.BLOCK_VECTORS)
    units = -(-layer.out_channels // unit_lanes)
    blocks = -(-units // most)
    block_points = direct.block_points(-(-units // blocks))
    rows = lines = pieces = 1
    in_place = False
    if voxels:
        # a plane becomes one line where that takes fewer vectors than its rows do
        line, joined = -(-x // lanes), -(-((y - 1) * in_y + x) // lanes)
        if joined < y * line:
            rows, line = y, joined
        count = elements // rows
        most_points = _up(min(config["points"], count * line), block_points)
        chunk, splits = _share(count * line, most_points, block_points, blocks, threads)
        if chunk >= line:
            lines = _evenly(count, chunk // line)
            chunk = lines * line
        else:
            chunk = min(line, _up(_evenly(line, chunk), block_points))
            pieces = -(-line // chunk)
        in_place = rows == 1 and x >= lanes and parts == 1 and span_channels == channels
        row = (most_points + 1) * lanes
    else:
        most_points = _up(min(config["points"], elements * x), block_points)
        chunk, splits = _share(elements * x, most_points, block_points, blocks, threads)
        row = (most_points + direct.BLOCK_POINTS) * most * lanes
    group = min(_GROUP, -(-blocks // splits))
    table_bytes = aligned((3 if voxels else 1) * (most_points + direct.BLOCK_POINTS) * 8)
    scratch_bytes = table_bytes + aligned(row * (most if voxels else min(_GROUP, blocks)) * 4)
    # a slab ends with a vector to spare, since the last row is read by whole vectors
    slab_bytes = aligned((slab_batch * blocks_in * in_channel + lanes) * 4) if slab_z else 0
    term_at = aligned(units * unit_lanes * 4)
    weight_at = term_at + aligned(channels * kernel_terms * 8)
    return Blocking(
        voxels=voxels,
        threads=threads,
        activation=layer.activation,
        in_channels=channels,
        out_channels=layer.out_channels,
        in_lanes=in_lanes,
        out_lanes=out_lanes,
        size=(z, y, x),
        in_steps=(blocks_in * in_channel, in_channel, in_z, in_y, in_x),
        stride_z=stride[0],
        padding=layer.padding,
        slab_batch=slab_batch,
        slab_z=slab_z,
        slab_planes=slab_planes,
        kernel_terms=kernel_terms,
        span_channels=span_channels,
        span_terms=span_terms,
        parts=parts,
        spans=-(-channels // span_channels) * parts,
        last_term=(channels - 1) * in_channel + int(_tap_offsets(layer, plane, width, in_lanes)[-1]),
        units=units,
        blocks=blocks,
        splits=splits,
        group=group,
        chunk=chunk,
        rows=rows,
        lines=lines,
        pieces=pieces,
        in_place=in_place,
        stream=config["stream"] if voxels else out_lanes > 1 and 4 * math.prod(out) > _CACHED_BYTES,
        table_bytes=table_bytes,
        row=row,
        scratch_bytes=scratch_bytes,
        workspace_bytes=threads * scratch_bytes + slab_bytes,
        bias_at=0,
        term_at=term_at,
        weight_at=weight_at,
        resident_bytes=weight_at + units * unit_lanes * channels * kernel_terms * 4,
    )


class _Direct(Operator):
    """A direct convolution whose resident array holds the bias, the terms' offsets and the packed weights."""

    def __init__(self, primitive: Direct, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._blocking = b = _blocking(primitive.voxels, layer, shape, config_key(config), threads)
        self._packed = packed = aligned_empty(b.resident_bytes)
        packed[:] = 0  # lanes beyond the last channel
        packed[b.bias_at : b.bias_at + layer.out_channels * 4].view(np.float32)[:] = weights["bias"]
        channel, plane, width = np.arange(shape[1]), b.in_steps[2] // layer.stride[0], b.in_steps[3] // layer.stride[1]
        offsets = np.add.outer(
            channel // b.in_lanes * b.in_steps[1] + channel % b.in_lanes,
            _tap_offsets(layer, plane, width, b.in_lanes),
        )
        packed[b.term_at : b.term_at + offsets.size * 8].view(np.int64)[:] = offsets.ravel()
        pack_channels(weights["weight"], packed[b.weight_at :], b.units, b.blocks, 1 if b.voxels else direct.LANES)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """One call of the kernel, which cuts the work into tasks for its threads."""
        direct.convolve(x, out, self._packed, workspace, self._blocking)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The packed bias, offsets and weights."""
        return (self._packed,)


def pack_channels(weight: np.ndarray, packed: np.ndarray, units: int, blocks: int, lanes: int) -> None:
    """Weights (out, in, kz, ky, kx) as float32 into the bytes of `packed`, which are zero: block by block, and of each
    the weights of one term side by side. The `units` of `lanes` channels are dealt evenly to the blocks."""
    terms, unit = weight.reshape(len(weight), -1).T, 0
    for block in range(blocks):
        end = unit + units // blocks + (block < units % blocks)
        at, stop = (u * lanes * len(terms) * 4 for u in (unit, end))
        part = terms[:, unit * lanes : end * lanes]
        packed[at:stop].view(np.float32).reshape(len(terms), -1)[:, : part.shape[1]] = part
        unit = end


class Direct(Primitive):
    """What both forms share."""

    kind = "conv"
    tolerance = 5e-6
    #: Whether voxels are in the lanes.
    voxels: bool

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Packed weights, bias and offsets; tables and sums of every thread, and a slab of padded input."""
        self._check(layer, shape, config)
        blocking = _blocking(self.voxels, layer, shape, config_key(config), threads)
        return Memory(blocking.resident_bytes, blocking.workspace_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """A multiplication and an addition per term, in idle lanes too; input, output and weights once."""
        out, lanes = layer.output_shape(shape), direct.LANES
        terms = shape[1] * layer.kernel[0] * layer.kernel[1] * layer.kernel[2]
        axis = 4 if self.voxels else 1
        computed = math.prod(out) // out[axis] * -(-out[axis] // lanes) * lanes
        return Cost(2.0 * terms * computed, 4.0 * (math.prod(shape) + math.prod(out) + terms * out[1]))

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator with packed weights; `Unsupported` where the config cannot be applied to the layer."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _Direct(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        fits = all(isinstance(config.get(name), int) and config[name] > 0 for name in ("terms", "points"))
        if not fits or (self.voxels and not isinstance(config.get("stream"), bool)):
            also = ", and stream, true or false" if self.voxels else ""
            raise Unsupported(
                f"a config of {self.name} has terms and points of at least 1{also}, got {config_key(config)}; "
                "see configs()"
            )


class CpuDirect(Direct):
    """Output channels in the lanes: any kernel size, stride, dilation and zero padding."""

    name = "cpu.direct"
    voxels = False
    efficiency = (0.85, 0.6)
    layouts = tuple((takes, gives) for takes in (PLAIN, BLOCKED) for gives in (PLAIN, BLOCKED))

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, unless the kernel does not fit `shape`."""
        return unfit(layer, shape)

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Chunks that fit L2, and that fit L1."""
        return [{"terms": 216, "points": 384}, {"terms": 216, "points": 96}]


class CpuDirectVoxels(Direct):
    """Consecutive x voxels in the lanes: stride 1 along x, any kernel size, dilation and zero padding."""

    name = "cpu.direct_voxels"
    voxels = True
    efficiency = (0.75, 0.6)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None where the input can be read by whole vectors."""
        if reason := unfit(layer, shape):
            return reason
        if layer.stride[2] != 1:
            return f"it needs stride 1 along x, got {layer.stride[2]}; use cpu.direct"
        batch, channels, z, y, x = shape
        last = int(_tap_offsets(layer, y * x, x)[-1])
        if not any(layer.padding) and (batch * channels - channels + 1) * z * y * x < last + direct.LANES:
            return (
                f"it reads {direct.LANES} voxels at once, and there are fewer from the kernel's last voxel on; "
                "use cpu.direct"
            )
        return None

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Long chunks that are streamed for few terms and a large output, else ones that fit L1."""
        terms = shape[1] * layer.kernel[0] * layer.kernel[1] * layer.kernel[2]
        few = {"terms": 432, "points": 96, "stream": False}
        if terms <= 432 and 4 * math.prod(layer.output_shape(shape)) > _STREAMED_BYTES:
            return [few | {"points": 768, "stream": True}, few]
        return [few, few | {"points": 24}]


register(CpuDirect())
register(CpuDirectVoxels())
