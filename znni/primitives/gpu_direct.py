"""Direct convolution on the GPU (``gpu/cu/direct*.cu``): any kernel size, stride, dilation and padding.

An implicit matrix product: weights times input gathered term by term (input channel, kernel voxel), of which nothing is stored.
Output voxels are numbered through the whole batch, so that tiles are full whatever the size of an image. What a config sets:

``channels``
    Output channels of a block: 16 to 120, in tiles of 8 to 12 channels x 8 voxels a thread, with input and weights in shared
    memory (``direct.cu``); 4 or 8, with the input straight from the caches (``direct_few.cu``); or "all" where there are few
    terms, with the input in registers (``direct_short.cu``).
``voxels``
    Output voxels of a block: 128, 256 or 512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from znni.errors import InvalidShape, Unsupported
from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.layers import Conv, Shape, by_x
from znni.layouts import settings_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit

#: Voxels of a warp.
_WARP_VOXELS = 128
#: For each number of a block's channels, the channels of a thread and the warps along them; a warp has two threads' channels.
_TILES = {
    16: (8, 1), 20: (10, 1), 24: (12, 1), 32: (8, 2), 40: (10, 2), 48: (8, 3), 60: (10, 3), 64: (8, 4), 80: (10, 4),
    96: (8, 6), 120: (10, 6),
}  # fmt: skip
#: Terms that a warp stages at a time, by channels of a thread and warps along them: about eight to a slab, as far as
#: registers go.
_WARP_TERMS = {
    (8, 1): 4, (8, 2): 3, (8, 3): 3, (8, 4): 2, (8, 6): 2, (10, 1): 2, (10, 2): 2, (10, 3): 3, (10, 4): 2, (10, 6): 2,
    (12, 1): 2,
}  # fmt: skip
#: Channels of a thread, and so of a block, that reads its input from the caches.
_FEW = (4, 8)
#: What a block's channels are that keeps its input in registers, and the terms that it can keep.
_ALL, _SHORT_TERMS = "all", 28
#: Warps that a multiprocessor should hold, so many for each of its four schedulers that registers suffice; and blocks that any
#: can hold.
_RESIDENT_WARPS = 12
_RESIDENT_FEW = {4: 28, 8: 20}
_RESIDENT_SHORT = {4: 24, 8: 24, 12: 16, 16: 16}
_MOST_RESIDENT_BLOCKS = 16
#: Kernel planes, rows and columns that a mask has bits for where the input is padded.
_MOST_TAPS = 63
#: With fewer blocks than this a large device is not filled; tiles of at most so many channels are then small ones.
_FEW_BLOCKS, _SMALL_CHANNELS = 264, 40


@dataclass(frozen=True)
class Tiling:
    """How a config cuts the work, and its kernel's macros.

    Attributes
    ----------
    channels : int
        Output channels of a block, to a multiple of which weights are padded.
    voxels : int
        Output voxels of a block.
    slab_terms : int
        Terms to a multiple of which weights are padded.
    listed_terms : int
        Terms that the kernel looks up, beyond the last one too.
    threads : int
        Of a block.
    """

    channels: int
    voxels: int
    slab_terms: int
    listed_terms: int
    source: str
    function: str
    threads: int
    macros: Mapping[str, int]

    @classmethod
    def of(cls, layer: Conv, shape: Shape, config: Config) -> Tiling:
        """That of a config, which `_possible` allows."""
        channels, voxels, terms = config["channels"], config["voxels"], _terms(layer, shape)
        voxel_warps = voxels // _WARP_VOXELS
        macros = {"VOXEL_WARPS": voxel_warps, "MASK_BITS": _mask_bits(layer)}
        if channels == _ALL:
            padded = -(-terms // 4) * 4
            macros |= {"TERMS": padded, "BLOCKS": _resident(_RESIDENT_SHORT.get(padded, 12), voxel_warps)}
            return cls(
                layer.out_channels, voxels, padded, padded, "direct_short.cu", "direct_short", 32 * voxel_warps, macros
            )
        if channels in _FEW:
            macros |= {"CHANNELS": channels, "BLOCKS": _resident(_RESIDENT_FEW[channels], voxel_warps)}
            return cls(channels, voxels, 1, terms, "direct_few.cu", "direct_few", 32 * voxel_warps, macros)
        each, channel_warps = _TILES[channels]
        warps, warp_terms = channel_warps * voxel_warps, _WARP_TERMS[each, channel_warps]
        slab_terms = warp_terms * channel_warps
        listed = (-(-terms // slab_terms) + 1) * slab_terms  # one slab is looked up ahead
        macros |= {
            "THREAD_CHANNELS": each,
            "CHANNEL_WARPS": channel_warps,
            "WARP_TERMS": warp_terms,
            "BLOCKS": _resident(_RESIDENT_WARPS, warps),
        }
        return cls(channels, voxels, slab_terms, listed, "direct.cu", "direct", 32 * warps, macros)

    def channel_tiles(self, layer: Conv) -> int:
        """Blocks along the channels."""
        return -(-layer.out_channels // self.channels)

    def blocks(self, layer: Conv, shape: Shape) -> int:
        """Blocks in all."""
        out = layer.output_shape(shape)
        return -(-out[0] * math.prod(out[2:]) // self.voxels) * self.channel_tiles(layer)


def _resident(warps: int, block_warps: int) -> int:
    """Blocks of so many warps that a multiprocessor should hold."""
    return min(_MOST_RESIDENT_BLOCKS, warps // block_warps)


def _most_voxels(channels: int | str) -> int:
    """Voxels of a block that has four warps, or as many as its channels take."""
    return _WARP_VOXELS * (max(1, 4 // _TILES[channels][1]) if channels in _TILES else 4)


def _possible(layer: Conv, shape: Shape, channels: object, voxels: object) -> bool:
    """Whether there is a kernel for such tiles."""
    if type(channels) not in (int, str) or type(voxels) is not int or voxels not in (128, 256, 512):
        return False
    if channels == _ALL:
        return _terms(layer, shape) <= _SHORT_TERMS
    return channels in (*_FEW, *_TILES) and voxels <= _most_voxels(channels)


def _work(channels: int, out_channels: int) -> float:
    """Instructions of a warp a term and 128 voxels, for all channels: products, and what feeds them."""
    tiles = -(-out_channels // channels)
    if channels in _FEW:
        return tiles * (4 * channels + 14.0)
    each, warps = _TILES[channels]
    return tiles * (warps * (8.25 * each + 3) + 16.0)


def _terms(layer: Conv, shape: Shape) -> int:
    return shape[1] * math.prod(layer.kernel)


def _mask_bits(layer: Conv) -> int:
    """The size of the masks that say which voxels of the kernel lie within the input; 0 where all do."""
    if not any(layer.padding):
        return 0
    return 32 if sum(layer.kernel) < 32 else 64


def _pieces(layer: Conv, shape: Shape, tiling: Tiling) -> list[int]:
    """Bytes of the packed weights, the bias, the terms' offsets and needs, and the axes."""
    tiles, slabs = tiling.channel_tiles(layer), -(-_terms(layer, shape) // tiling.slab_terms)
    packed = 4 * tiles * tiling.channels * slabs * tiling.slab_terms
    listed = 8 * tiling.listed_terms
    return [packed, 4 * layer.out_channels, listed, listed if any(layer.padding) else 0, 4 * 15]


def packed_weights(weight: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Weights (out, in, z, y, x) as (channel tile, term, channel of the tile), zero beyond the last of either; those of all
    channels in one block as (channel, term)."""
    flat = weight.reshape(len(weight), -1)
    tiles, slabs = -(-len(flat) // tiling.channels), -(-flat.shape[1] // tiling.slab_terms)
    padded = np.zeros((tiles * tiling.channels, slabs * tiling.slab_terms), np.float32)
    padded[: len(flat), : flat.shape[1]] = flat
    if tiling.function == "direct_short":
        return padded
    return np.ascontiguousarray(padded.reshape(tiles, tiling.channels, -1).transpose(0, 2, 1))


def term_table(layer: Conv, shape: Shape, listed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the terms lie from the first one's input, in bytes, and which bits of a mask they need; `listed` entries, those
    beyond the last term -1 and all bits."""
    steps = (4 * shape[3] * shape[4], 4 * shape[4], 4)
    place = np.indices(layer.kernel).reshape(3, -1)
    within = sum(k.astype(np.int64) * d * s for k, d, s in zip(place, layer.dilation, steps, strict=True))
    firsts = (0, layer.kernel[0], layer.kernel[0] + layer.kernel[1])
    bits = sum(np.uint64(1) << (k + first).astype(np.uint64) for k, first in zip(place, firsts, strict=True))
    offsets = np.full(listed, -1, np.int64)
    needs = np.full(listed, np.iinfo(np.uint64).max, np.uint64)
    terms = shape[1] * within.size
    offsets[:terms] = np.add.outer(np.arange(shape[1]) * (4 * math.prod(shape[2:])), within).ravel()
    needs[:terms] = np.tile(bits, shape[1])
    return offsets, needs


#: Relative L2 error over the root of the terms, which are added one after another: simulated, 1.44e-8 was measured at most,
#: with 2160 to 58320 terms.
ERROR_OF_A_TERM = 1.5e-8


class DirectOperator(GpuOperator):
    """A direct convolution of one shape; packed weights and the places of the terms are resident."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._tiling = tiling = Tiling.of(layer, shape, config)
        self._kernel = self.device.kernel(tiling.source, tiling.function, tiling.macros)
        self._sizes = _pieces(layer, shape, tiling)
        offsets, needs = term_table(layer, shape, tiling.listed_terms)
        axes = zip(shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel, strict=True)
        # kept until `fill` has uploaded them
        self._host = [
            packed_weights(weights["weight"], tiling),
            weights["bias"].astype(np.float32),
            offsets,
            needs,
            np.array(list(axes), np.int32),
        ]
        self._arguments: list = []

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Uploads weights, bias and tables."""
        pieces = carve(resident, self._sizes)
        for piece, array in zip(pieces, self._host, strict=True):
            if piece.nbytes:
                self.device.compute.copy(piece, array)
        self.device.compute.synchronise()
        self._host = []
        weights, bias, offsets, needs, axes = (piece if piece.nbytes else None for piece in pieces)
        layer, out, tiling = self.layer, self.out_shape, self._tiling
        steps = (4 * self.shape[3] * self.shape[4], 4 * self.shape[4], 4)
        origin = -sum(p * step for p, step in zip(layer.padding, steps, strict=True))
        voxels = out[0] * math.prod(out[2:])
        tiles, terms = tiling.channel_tiles(layer), _terms(layer, self.shape)
        self._grid = (tiling.blocks(layer, self.shape), 1, 1)
        counts = (-(-terms // tiling.slab_terms), layer.out_channels, tiles, layer.activation.code)
        if tiling.function == "direct_short":  # all terms and channels are one block's
            counts = (layer.out_channels, layer.activation.code)
        self._arguments = [
            *(weights, bias, offsets, needs),
            *map(np.int32, counts),
            *map(np.float32, (layer.activation.a, layer.activation.b)),
            np.int64(voxels),
            *map(np.int32, out[2:]),
            np.int64(tensor_bytes((1, *self.shape[1:]))),
            *(np.int64(s * step) for s, step in zip(layer.stride, steps, strict=True)),
            np.int64(origin),
            axes,
        ]

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """One launch."""
        block = (self._tiling.threads, 1, 1)
        self.device.compute.launch(self._kernel, self._grid, block, [x, out, *self._arguments])


class GpuDirect(GpuPrimitive):
    """Direct convolution, weights packed for the tiles of the config."""

    name, kind = "gpu.direct", "conv"
    tolerance = 5e-6
    efficiency = (0.7, 0.6)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, unless the kernel does not fit `shape`, or is padded and larger than masks can tell."""
        if reason := unfit(layer, shape):
            return reason
        if any(layer.padding) and sum(layer.kernel) > _MOST_TAPS:
            return (
                f"where it pads, the sizes of a kernel along z, y and x may add up to {_MOST_TAPS} at most, "
                f"got {by_x(layer.kernel)}"
            )
        return None

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """All channels at once where terms are few, then the tiles that waste least; small ones first where the best would not
        fill a device."""
        order = sorted((*_FEW, *_TILES), key=lambda channels: (_work(channels, layer.out_channels), channels))
        short = [_ALL] if _terms(layer, shape) <= _SHORT_TERMS else []
        tiles = [(channels, _most_voxels(channels)) for channels in (*short, *order[: 3 - len(short)])]
        first = Tiling.of(layer, shape, {"channels": tiles[0][0], "voxels": tiles[0][1]})
        if first.blocks(layer, shape) < _FEW_BLOCKS:
            small = [channels for channels in order if channels <= _SMALL_CHANNELS]
            tiles = [(channels, _WARP_VOXELS) for channels in (*short, *small[:2])] + tiles
        return [{"channels": channels, "voxels": voxels} for channels, voxels in dict.fromkeys(tiles)]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Packed weights, bias, and the places of the terms."""
        self._check(layer, shape, config)
        return Memory(device_resident_bytes=carved_bytes(_pieces(layer, shape, Tiling.of(layer, shape, config))))

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """A multiplication and an addition per term, in channels that fill up a tile too; input, output and weights once."""
        out, terms = layer.output_shape(shape), _terms(layer, shape)
        tiling = Tiling.of(layer, shape, config)
        channels = tiling.channel_tiles(layer) * tiling.channels
        return Cost(
            flop=2.0 * terms * (math.prod(out) // out[1]) * channels,
            moved_bytes=float(tensor_bytes(shape) + tensor_bytes(out) + 4 * terms * out[1]),
        )

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """Grows with the root of the terms, which are added one after another."""
        return max(super().error(layer, shape, config), ERROR_OF_A_TERM * _terms(layer, shape) ** 0.5)

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator with packed weights; `Unsupported` where the config cannot be applied to the layer."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return DirectOperator(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        settings = settings_of(config)
        if set(settings) != {"channels", "voxels"} or not _possible(layer, shape, **settings):
            raise Unsupported(
                f"a config of {self.name} has the channels of a block ({', '.join(map(str, (*_FEW, *_TILES)))}, or {_ALL} of a "
                f"layer of at most {_SHORT_TERMS} terms) and its voxels (128, 256 or 512, for four warps at most), "
                f"got {config_key(config)}; see configs()"
            )


register(GpuDirect())
