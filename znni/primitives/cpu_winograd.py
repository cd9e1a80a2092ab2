"""`cpu.winograd`: convolution by Winograd's minimal filtering, nested along the axes (``pyx/winograd.pyx``).

What a config sets:

``tile``
    Outputs of a tile (z, y, x): 2, 4 or 6 where the kernel is 3, 2 or 4 where it is 5, and 1 where it is 1, which
    leaves the axis as it is. F(m, r) on an axis takes m + r - 1 products for m outputs of a kernel of r.
``block``
    Tiles that a thread transforms, multiplies and transforms back together. Many share the reading of the transformed
    kernels; few stay in the caches.

After Jia, Zlateski, Durand and Li, "Optimizing N-dimensional, Winograd-based convolution for manycore CPUs", PPoPP'18,
and Zlateski, Jia, Li and Durand, "The anatomy of efficient FFT and Winograd convolutions on modern CPUs", ICS'19. The
points are those of `znni.winograd_points`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod, sqrt

import numpy as np

from znni._kernels import winograd
from znni.arena import aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Conv, Shape, by_x
from znni.layouts import BLOCKED, PLAIN, layouts_of, tensor_bytes
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit
from znni.winograd_points import kernel_transform

#: Outputs that a tile may have along an axis, by the kernel there.
OUTPUTS = {1: (1,), 3: (2, 4, 6), 5: (2, 4)}
#: By outputs and kernel of an axis: by how much it multiplies the error.
ERROR_GROWTH = {(1, 1): 1.0, (2, 3): 1.33, (4, 3): 2.23, (6, 3): 4.7, (2, 5): 2.4, (4, 5): 4.5}
#: Tiles to a block worth trying, best guess first, in calls of the matrix product's micro-kernel; and the bytes of
#: points that a block should not go beyond. On layers of 28 to 80 channels 24 tiles (on AVX2) were first or within 9 %.
_BLOCK_CALLS, _BLOCK_BYTES = (4, 8, 2), 4 << 20
#: FLOP of the input transform of one line, by points, and of the output transform, by points and outputs.
INPUT_FLOP = {1: 0, 4: 4, 6: 24, 8: 48}
OUTPUT_FLOP = {(1, 1): 0, (4, 2): 5, (6, 4): 21, (6, 2): 12, (8, 6): 43, (8, 4): 28}
#: What a Zen 4 core took: ns of a line's input transform, by points, and of its output transform, by points and
#: outputs; of a vector that is read or stored; and of a FLOP of the matrix products.
_INPUT_NS = {1: 0.0, 4: 2.4, 6: 3.5, 8: 7.3}
_OUTPUT_NS = {(1, 1): 0.0, (4, 2): 3.0, (6, 4): 3.8, (6, 2): 3.7, (8, 6): 6.1, (8, 4): 5.0}
_VECTOR_NS, _FLOP_NS = 3.5, 1 / 78


def _tiling(layer: Conv, shape: Shape, config: Config, threads: int) -> winograd.Tiling:
    takes, gives = layouts_of(config)
    return winograd.Tiling(
        shape,
        layer.out_channels,
        layer.kernel,
        layer.padding,
        layer.dilation,
        config["tile"],
        config["block"],
        threads,
        takes == BLOCKED,
        gives == BLOCKED,
    )


def tile_transforms(tile: tuple[int, ...], kernel: tuple[int, ...], inputs: dict, outputs: dict) -> tuple[float, float]:
    """The input and the output transform of one channel of a tile, given what a line costs by points (and outputs)."""
    z, y, x = (m + k - 1 for m, k in zip(tile, kernel, strict=True))
    forward = z * y * inputs[x] + z * x * inputs[y] + y * x * inputs[z]
    inverse = y * x * outputs[z, tile[0]] + tile[0] * x * outputs[y, tile[1]] + tile[0] * tile[1] * outputs[x, tile[2]]
    return forward, inverse


def _products(layer: Conv, shape: Shape, tiling: winograd.Tiling) -> float:
    """FLOP of the matrix products."""
    return 2.0 * tiling.tiles * tiling.points * shape[1] * tiling.out_vectors * winograd.LANES


def _guess_ns(layer: Conv, shape: Shape, tiling: winograd.Tiling, tile: tuple[int, ...]) -> float:
    """What the layer should take one thread, but for what all tiles have in common."""
    forward, inverse = tile_transforms(tile, layer.kernel, _INPUT_NS, _OUTPUT_NS)
    forward += _VECTOR_NS * tiling.points
    transforms = tiling.tiles * (tiling.in_vectors * forward + tiling.out_vectors * inverse)
    return transforms + _FLOP_NS * _products(layer, shape, tiling)


def _blocks(tiling: winograd.Tiling) -> list[int]:
    """Tiles to a block, best guess first."""
    row_bytes = 4 * winograd.LANES * max(tiling.in_vectors, tiling.out_vectors) * tiling.points
    held = [n for n in _BLOCK_CALLS if n * winograd.ROWS * row_bytes <= _BLOCK_BYTES] or _BLOCK_CALLS[-1:]
    # every thread should get several blocks
    held = sorted(held, key=lambda n: 8 * n * winograd.ROWS > tiling.tiles)
    return list(dict.fromkeys(min(n * winograd.ROWS, tiling.tiles) for n in held))


@lru_cache(maxsize=4096)
def _configs(layer: Conv, shape: Shape) -> tuple[tuple[tuple[int, ...], int], ...]:
    """(tile, block) worth timing, best guess first."""
    guesses, sizes = [], []
    for out, k, d in zip(layer.output_shape(shape)[2:], layer.kernel, layer.dilation, strict=True):
        # a tile beyond the least that holds all outputs costs more, and errs more
        enough = min((m for m in OUTPUTS[k] if m * d >= out), default=OUTPUTS[k][-1])
        sizes.append([m for m in OUTPUTS[k] if m <= enough])
    for tile in product(*sizes):
        tiling = _tiling(layer, shape, {"tile": tile, "block": 1}, 1)
        guess = _guess_ns(layer, shape, tiling, tile)
        guesses.append((guess, _growth(layer, tile), tiling.kernel_bytes, tile, _blocks(tiling)))
    guesses.sort()
    best = guesses[0]
    chosen = guesses[:3]
    # the fastest of those that err less, and that keep less, than the best guess
    chosen += [guess for guess in guesses if guess[1] < best[1] / 2][:1]
    chosen += [guess for guess in guesses if guess[2] < best[2] / 2][:1]
    found = [(tile, blocks[0]) for _, _, _, tile, blocks in chosen]
    found[1:1] = [(best[3], block) for block in best[4][1:]]
    return tuple(dict.fromkeys(found))


def _growth(layer: Conv, tile: tuple[int, ...]) -> float:
    """By how much the transforms of a tile multiply the error."""
    return prod(ERROR_GROWTH[m, k] for m, k in zip(tile, layer.kernel, strict=True))


class _Winograd(Operator):
    """Holds the transformed kernels; refers to the bias.

    Attributes
    ----------
    stages : tuple of str
        What `compute` can time.
    tiling : winograd.Tiling
        Geometry of tiles and blocks.
    """

    stages = winograd.STAGES

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self.tiling = _tiling(layer, shape, config, threads)
        self._bias = weights["bias"]
        self._kernels = aligned_empty(self.memory.host_resident_bytes).view(np.float32)
        transforms = (kernel_transform(m, k) for m, k in zip(config["tile"], layer.kernel, strict=True))
        self.tiling.transform_kernels(weights["weight"], *transforms, self._kernels)

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray, stages: np.ndarray | None = None) -> None:
        """One call of the kernel; each thread adds its seconds to its row of `stages` (float64, threads x stages)."""
        code, a, b = self.layer.activation.code, self.layer.activation.a, self.layer.activation.b
        self.tiling.run(x, self._kernels, self._bias, code, a, b, out, workspace, stages)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The transformed kernels."""
        return (self._kernels,)


class CpuWinograd(Primitive):
    """Winograd convolution of stride 1: kernels of 1, 3 and 5 along each axis."""

    name = "cpu.winograd"
    kind = "conv"
    layouts = tuple(product((PLAIN, BLOCKED), repeat=2))
    #: Of F(6, 3) along three axes on 33 channels: 8e-6 on average, but 1.4e-5 on the worst of 100 layers of one tile.
    tolerance = 2e-5
    efficiency = (0.7, 0.5)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, kernel and size it cannot do."""
        if layer.stride != (1, 1, 1):
            return f"Winograd convolution has stride 1 only, got {by_x(layer.stride)}"
        if not set(layer.kernel) <= set(OUTPUTS):
            return f"Winograd convolution takes kernels of 1, 3 or 5 along each axis, got {by_x(layer.kernel)}"
        if layer.kernel == (1, 1, 1):
            return "a kernel of 1x1x1 is a matrix product, of which Winograd's transforms save nothing"
        return unfit(layer, shape)

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """The tiles that should be fastest, one that errs less, one that keeps less, and blocks to choose from."""
        return [{"tile": list(tile), "block": block} for tile, block in _configs(layer, shape)]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """The transformed kernels; for every thread the points of a block of tiles, and a strip of them as it comes."""
        self._check(layer, shape, config)
        tiling = _tiling(layer, shape, config, threads)
        return Memory(tiling.kernel_bytes, tiling.workspace_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """Products of whole vectors of outputs and transforms; input, output and transformed kernels moved once."""
        tiling = _tiling(layer, shape, config, 1)
        forward, inverse = tile_transforms(tuple(config["tile"]), layer.kernel, INPUT_FLOP, OUTPUT_FLOP)
        transforms = winograd.LANES * tiling.tiles * (tiling.in_vectors * forward + tiling.out_vectors * inverse)
        takes, gives = layouts_of(config)
        moved = tensor_bytes(shape, takes) + tensor_bytes(layer.output_shape(shape), gives) + tiling.kernel_bytes
        return Cost(_products(layer, shape, tiling) + transforms, float(moved))

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """Relative L2 error, as on an input and weights of independent normal numbers.

        Measured: every form nested in 1D, 2D and 3D, and all mixtures of them, on 1 to 128 channels; from 1.1e-7 of
        F(2, 3) along one axis of 1 to 1.1e-5 of F(6, 3) along three of 128. What the transforms do multiplies by axis,
        to within 27 % on 1 channel, 5 % on 16 and more.
        """
        runs = -(-shape[1] // winograd.RUN)
        return 1e-8 * sqrt(30 + 3 * (shape[1] / runs + runs)) * _growth(layer, tuple(config["tile"]))

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator for these weights; `Unsupported` where the config does not fit the layer."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _Winograd(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        tile, block = config.get("tile"), config.get("block")
        sound = isinstance(block, int) and block > 0 and isinstance(tile, (list, tuple)) and len(tile) == 3
        if not sound or any(m not in OUTPUTS[k] for m, k in zip(tile, layer.kernel, strict=True)):
            known = ", ".join(f"{k}: {' or '.join(map(str, OUTPUTS[k]))}" for k in sorted(set(layer.kernel)))
            raise Unsupported(
                f"a config of {self.name} has a tile (outputs along z, y and x; by the kernel there, {known}) and a "
                f"block of at least 1 tile; got {config_key(config)}; see configs()"
            )


register(CpuWinograd())
