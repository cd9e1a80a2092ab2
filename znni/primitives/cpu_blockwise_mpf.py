"""`cpu.blockwise_mpf`: any convolution and its max-pooling fragments, block after block of the volume.

Another primitive computes the convolution of one block, which is pooled while it is in the caches and forgotten; the
full-resolution map is never held. It is what large kernels want, whose Fourier transforms beat `cpu.direct_mpf` many times.
What a config sets:

``conv``, ``with``
    The primitive that convolves a block, and its config.
``block``
    Windows of each fragment to a block, per axis, at most.
"""

from __future__ import annotations

import json
from functools import lru_cache
from math import prod

import numpy as np

from znni._kernels import blockwise
from znni.arena import aligned
from znni.errors import Unsupported
from znni.layers import ConvMaxPoolFragments, Shape, Triple
from znni.layouts import BLOCKED, LANES, LAYOUTS, array_shape, layouts_of, tensor_bytes, with_layouts
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, get, register, unfit

#: Primitives that convolve blocks.
_INNER = ("cpu.fft_tiled", "cpu.winograd", "cpu.direct")
#: Windows to a block, per axis, worth trying.
_BLOCKS = (32, 16)


def _width(layout: str) -> int:
    return LANES if layout == BLOCKED else 1


def _blocks(layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> tuple[Triple, Triple, Shape]:
    """Blocks along each axis, windows of a fragment to one, and the shape of a block's input."""
    wanted = layer.pool.output_shape(layer.conv.output_shape(shape))[2:]
    counts = tuple(-(-n // most) for n, most in zip(wanted, config["block"], strict=True))
    sizes = tuple(-(-n // count) for n, count in zip(wanted, counts, strict=True))
    taken = (
        e - 1 + w - 1 + s * n
        for e, w, s, n in zip(layer.conv.extent, layer.pool.window, layer.pool.stride, sizes, strict=True)
    )
    return counts, sizes, (1, shape[1], *taken)


@lru_cache(maxsize=1024)
def _inner(layer: ConvMaxPoolFragments, shape: Shape, key: str) -> tuple[Primitive, dict, Shape]:
    """The primitive that convolves a block, its config with layouts, and the shape that it takes."""
    config = json.loads(key)
    takes, gives = layouts_of(config)
    return get(config["conv"]), with_layouts(config["with"], takes, gives), _blocks(layer, shape, config)[2]


class _Blockwise(Operator):
    """Holds the operator of one block."""

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
        inner, own, block = _inner(layer, shape, config_key(config))
        self._operator = inner.prepare(layer.conv, weights, block, own, threads)
        self._counts, self._sizes, self._block = _blocks(layer, shape, config)
        self._wanted = self.out_shape[2:]
        self._taken = array_shape(block, self.takes)
        self._made = array_shape(self._operator.out_shape, self.gives)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Block after block."""
        pool = self.layer.pool
        space, taken, made, lines = self._carved(workspace)
        width_in, width_out = _width(self.takes), _width(self.gives)
        own = out.shape[0] // x.shape[0]
        for element in range(x.shape[0]):
            image = _flat(x[element])
            fragments = out[element * own : (element + 1) * own]
            fragments = fragments.reshape(*fragments.shape[:4], -1)
            for origin in self._origins():
                start = tuple(o * s for o, s in zip(origin, pool.stride, strict=True))
                blockwise.cut(image, _flat(taken[0]), start, width_in, self.threads)
                self._operator(taken, made, space)
                blockwise.pool(
                    _flat(made[0]),
                    fragments,
                    lines,
                    origin,
                    self._sizes,
                    pool.window,
                    pool.stride,
                    self.part * own,
                    width_out,
                    self.threads,
                )

    def _carved(self, workspace: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The block's operator's workspace, its input and output, and lines for pooling."""
        at = aligned(self._operator.memory.host_workspace_bytes)
        space = workspace[:at]
        tensors = []
        for shape in (self._taken, self._made):
            nbytes = 4 * prod(shape)
            tensors.append(workspace[at : at + nbytes].view(np.float32).reshape(shape))
            at += aligned(nbytes)
        return space, *tensors, workspace[at:]

    def _origins(self):
        """Where the blocks begin in the fragments; the last one of an axis is shifted back."""
        z, y, x = (
            [min(i * size, n - size) for i in range(count)]
            for count, size, n in zip(self._counts, self._sizes, self._wanted, strict=True)
        )
        return ((a, b, c) for a in z for b in y for c in x)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """Those of the block's operator."""
        return self._operator.resident_arrays


def _flat(image: np.ndarray) -> np.ndarray:
    """(image, z, y, x of floats), whatever the layout."""
    return image.reshape(*image.shape[:3], -1)


class CpuBlockwiseMpf(Primitive):
    """A convolution and its fragments by blocks; stride 1, no padding, whatever else the block's primitive takes."""

    name = "cpu.blockwise_mpf"
    kind = "conv_mpf"
    tolerance = 2e-5
    layouts = tuple((takes, gives) for takes in LAYOUTS for gives in LAYOUTS)
    efficiency = (0.9, 0.2)

    def supports(self, layer: ConvMaxPoolFragments, shape: Shape) -> str | None:
        """None, or what of stride and padding it cannot do."""
        if reason := unfit(layer, shape):
            return reason
        if layer.conv.stride != (1, 1, 1) or any(layer.conv.padding):
            return "blocks are convolved at stride 1 without padding"
        if not self._inner_configs(layer, shape, _BLOCKS[0]):
            return "no primitive that convolves blocks supports the convolution"
        return None

    def _inner_configs(self, layer: ConvMaxPoolFragments, shape: Shape, most: int) -> list[Config]:
        block = _blocks(layer, shape, {"block": (most,) * 3})[2]
        found = []
        for name in _INNER:
            try:
                inner = get(name)
            except Unsupported:
                continue
            if len(inner.layouts) == len(self.layouts) and inner.supports(layer.conv, block) is None:
                found += [
                    {"conv": name, "with": dict(config), "block": [most] * 3}
                    for config in inner.configs(layer.conv, block)[:2]
                ]
        return found

    def configs(self, layer: ConvMaxPoolFragments, shape: Shape, machine=None) -> list[Config]:
        """The first configs of each primitive that convolves blocks, on larger and smaller ones."""
        wanted = max(layer.pool.output_shape(layer.conv.output_shape(shape))[2:])
        found = []
        for most in dict.fromkeys(min(most, wanted) for most in _BLOCKS):
            found += self._inner_configs(layer, shape, most)
        return found

    def memory(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config, threads: int) -> Memory:
        """What the block's operator takes, one block of input and one of output, and a line for every thread."""
        self._check(layer, shape, config)
        inner, own, block = _inner(layer, shape, config_key(config))
        takes, gives = layouts_of(config)
        within = inner.memory(layer.conv, block, own, threads)
        made = layer.conv.output_shape(block)
        workspace = aligned(within.host_workspace_bytes)
        workspace += aligned(tensor_bytes(block, takes)) + aligned(tensor_bytes(made, gives))
        workspace += threads * 4 * (made[4] * _width(gives) + 16)
        return Memory(within.host_resident_bytes, workspace)

    def cost(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> Cost:
        """All blocks' convolutions, their maps through the caches, and input and output once."""
        inner, own, block = _inner(layer, shape, config_key(config))
        blocks = shape[0] * prod(_blocks(layer, shape, config)[0])
        one = inner.cost(layer.conv, block, own)
        out = layer.output_shape(shape)
        return Cost(blocks * one.flop, blocks * one.moved_bytes + 4.0 * (prod(shape) + prod(out)))

    def error(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> float:
        """That of the convolution; maxima add none."""
        inner, own, block = _inner(layer, shape, config_key(config))
        return inner.error(layer.conv, block, own)

    def prepare(
        self, layer: ConvMaxPoolFragments, weights: Weights, shape: Shape, config: Config, threads: int
    ) -> Operator:
        """An operator that holds the block's operator."""
        self._check(layer, shape, config)
        return _Blockwise(self, layer, weights, shape, config, threads)

    def _check(self, layer: ConvMaxPoolFragments, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        block = config.get("block")
        if config.get("conv") not in _INNER or not isinstance(block, list | tuple) or len(block) != 3:
            raise Unsupported(
                f"a config of {self.name} has a conv of {', '.join(_INNER)}, its config in with, and a block (z, y, x), got "
                f"{config_key(config)}; see configs()"
            )


register(CpuBlockwiseMpf())
