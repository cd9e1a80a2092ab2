"""`cpu.fft_tiled`: convolution by FFTs of overlapping tiles (overlap-save; ``pyx/fft_tiled.pyx``).

What a config sets:

``tile``
    Points of the transforms (z, y, x), each a product of 2, 3, 5 and 7. A tile gives tile - kernel + 1 outputs an axis.
``block``
    Tiles that go together. Many share the kernels' z transforms and fill the matrix product; few take less workspace.
``spectra``
    ``resident``: the kernels' spectra are made once and kept. ``recomputed``: each call makes them, in its workspace.

After Zlateski, Jia, Li and Durand, "The anatomy of efficient FFT and Winograd convolutions on modern CPUs", ICS'19;
complex products in Gauss's form. Kernel spectra are kept as they are before the z transform, with the kernel's planes.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import log2, prod

import numpy as np

from znni._kernels import fft_tiled
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.fft_sizes import is_good_size, next_good_size, tile_sizes
from znni.layers import Conv, Shape, by_x
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit

#: The largest kernel and tile, per axis, that the engine is tested for.
_MOST_KERNEL, _MOST_POINTS = 256, 512
#: Tiles to a block worth trying.
_BLOCKS = (96, 48, 24, 12, 4)
#: Tile along z, y and x where the kernel is 1: planes go in pairs, rows and voxels by the vector.
_POINTS_OF_NO_KERNEL = (2, 4, 8)
#: Shares of the peak that one Zen 4 core reached: the matrix product by rows in registers (1 to 6), z transforms, whose
#: lines are in the caches, and the other transforms, which pass through memory.
_ROW_RATES, _Z_RATE, _PLANE_RATE = (0.29, 0.49, 0.62, 0.64, 0.8, 0.9), 0.21, 0.18


def _tiling(layer: Conv, shape: Shape, config: Config, threads: int) -> fft_tiled.Tiling:
    return fft_tiled.Tiling(
        shape, layer.out_channels, layer.kernel, layer.dilation, config["tile"], config["block"], threads
    )


def _padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // fft_tiled.LANES) * fft_tiled.LANES


def _flop(layer: Conv, shape: Shape, tiling: fft_tiled.Tiling, recomputed: bool) -> tuple[float, float, float]:
    """FLOP of one call: matrix products, z transforms, and x and y transforms (5 n log2 n a complex line)."""
    z, y, x = tiling.axes
    out_rows = _padded(layer.out_channels)
    pairs = shape[1] * out_rows

    def line(n: int) -> float:
        return 5 * n * log2(n) + n

    def planes_of(count: int, rows: int) -> float:
        return -(-count // 2) * (rows * line(x["n"]) + x["n"] * line(y["n"]))

    products = 6.0 * tiling.tiles * tiling.columns * z["n"] * pairs
    blocks = -(-tiling.tiles // tiling.block)
    along_z = tiling.columns * line(z["n"]) * (tiling.tiles * (shape[1] + out_rows) + blocks * pairs)
    forward, inverse = planes_of(z["load"], y["load"]), planes_of(z["keep"], y["keep"])
    planes = tiling.tiles * (shape[1] * forward + out_rows * inverse)
    if recomputed:
        planes += pairs * planes_of(*layer.kernel[:2])
    return products, along_z, planes


@lru_cache(maxsize=4096)
def _configs(layer: Conv, shape: Shape) -> tuple[tuple, ...]:
    """(tile, block, spectra) worth timing, best guess first."""
    out = layer.output_shape(shape)
    axes, sizes = [], {}
    for o, k, d, few in zip(out[2:], layer.kernel, layer.dilation, _POINTS_OF_NO_KERNEL, strict=True):
        outputs = -(-o // d)
        # axes that are alike are cut alike
        axes.append((outputs, k, few if k == 1 else 0))
        sizes[axes[-1]] = (next_good_size(min(few, outputs)),) if k == 1 else tile_sizes(outputs, k)
    guesses = []
    for chosen in product(*sizes.values()):
        points = dict(zip(sizes, chosen, strict=True))
        tile = tuple(points[axis] for axis in axes)
        tiles = fft_tiled.Tiling(shape, layer.out_channels, layer.kernel, layer.dilation, tile, 1, 1).tiles
        for block in {-(-tiles // -(-tiles // most)) for most in _BLOCKS}:
            tiling = _tiling(layer, shape, {"tile": tile, "block": block}, 1)
            products, along_z, planes = _flop(layer, shape, tiling, False)
            rate = _ROW_RATES[min(5, -(-block // -(-block // 6)) - 1)]
            seconds = products / rate + along_z / _Z_RATE + planes / _PLANE_RATE
            guesses.append((seconds, tiling.workspace_bytes + tiling.spectra_bytes, tile, block))
    guesses.sort()
    found = []
    for rank, tile in enumerate(list(dict.fromkeys(tile for _, _, tile, _ in guesses))[:3]):
        blocks = [block for _, _, t, block in guesses if t == tile]
        for block in blocks[: 2 if rank == 0 else 1]:
            found += [(tile, block, spectra) for spectra in ("resident", "recomputed")[rank == 2 :]]
    least = min((g for g in guesses if g[0] < 3 * guesses[0][0]), key=lambda guess: guess[1])
    if (*least[2:], "recomputed") not in found:
        found.append((*least[2:], "recomputed"))
    return tuple(found)


class _Tiled(Operator):
    """Holds the twiddles and, if they are resident, the kernels' spectra, in one array; refers to weights and bias."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._tiling = tiling = _tiling(layer, shape, config, threads)
        self._weight, self._bias = weights["weight"], weights["bias"]
        self._kept = aligned_empty(self.memory.host_resident_bytes)
        tiling.prepare(self._kept[: tiling.table_bytes].view(np.float32))
        self._spectra = None
        if config["spectra"] == "resident":
            self._spectra = self._kept[aligned(tiling.table_bytes) :].view(np.float32)
            tiling.transform_kernels(self._weight, self._spectra, aligned_empty(tiling.scratch_bytes))

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """One call of the kernel."""
        activation = self.layer.activation
        self._tiling.run(
            x, self._weight, self._spectra, self._bias, activation.code, activation.a, activation.b, out, workspace
        )

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The twiddles and the kernels' spectra."""
        return (self._kept,)


class CpuFftTiled(Primitive):
    """Tiled FFT convolution of stride 1 without padding: kernels of 5^3 and up, and 3^3 with many channels."""

    name = "cpu.fft_tiled"
    kind = "conv"
    tolerance = 1e-5
    efficiency = (0.9, 0.2)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, padding and size it cannot do."""
        if layer.stride != (1, 1, 1):
            return f"tiled FFT convolution has stride 1 only, got {by_x(layer.stride)}"
        if any(layer.padding):
            return f"tiled FFT convolution has no padding, got {by_x(layer.padding)}"
        if max(layer.kernel) > _MOST_KERNEL:
            return f"tiled FFT convolution takes kernels of at most {_MOST_KERNEL} an axis, got {by_x(layer.kernel)}"
        return unfit(layer, shape)

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """The tiles that should be fastest, with blocks and spectra to choose from, and what takes the least memory."""
        return [{"tile": list(t), "block": b, "spectra": s} for t, b, s in _configs(layer, shape)]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Twiddles and spectra; a block of tiles as spectra, matrices of every thread, and spectra where recomputed."""
        self._check(layer, shape, config)
        tiling = _tiling(layer, shape, config, threads)
        if config["spectra"] == "resident":
            return Memory(aligned(tiling.table_bytes) + tiling.spectra_bytes, tiling.workspace_bytes)
        return Memory(tiling.table_bytes, tiling.workspace_bytes + tiling.spectra_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """Transforms over the lines that matter, 6 FLOP a complex product; blocks and spectra written and read once."""
        recomputed = config["spectra"] == "recomputed"
        tiling = _tiling(layer, shape, config, 1)
        z, y, x = tiling.axes
        read = 4.0 * shape[1] * z["load"] * y["load"] * x["load"]
        held = 8.0 * tiling.columns * (shape[1] * z["load"] + _padded(layer.out_channels) * z["keep"])
        spectra = tiling.spectra_bytes * (-(-tiling.tiles // tiling.block) + recomputed)
        moved = tiling.tiles * (read + 2 * held) + spectra + 4.0 * prod(layer.output_shape(shape))
        return Cost(sum(_flop(layer, shape, tiling, recomputed)), moved)

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator for these weights, to which it refers; `Unsupported` where the config does not fit the layer."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _Tiled(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        tile, block, spectra = (config.get(name) for name in ("tile", "block", "spectra"))
        sound = isinstance(block, int) and block > 0 and spectra in ("resident", "recomputed")
        sound = sound and isinstance(tile, (list, tuple)) and len(tile) == 3 and all(isinstance(n, int) for n in tile)
        if not sound:
            raise Unsupported(
                f"a config of {self.name} has a tile (three sizes), a block of at least 1 tile, and spectra, "
                f"'resident' or 'recomputed'; got {config_key(config)}; see configs()"
            )
        for n, k in zip(tile, layer.kernel, strict=True):
            if not k <= n <= _MOST_POINTS or not is_good_size(n):
                raise Unsupported(
                    f"a tile of {self.name} has {k} (the kernel) to {_MOST_POINTS} points an axis, each a product of "
                    f"2, 3, 5 and 7; got {by_x(tile)}; see configs()"
                )


register(CpuFftTiled())
