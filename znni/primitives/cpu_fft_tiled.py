"""`cpu.fft_tiled`: convolution by FFTs of overlapping tiles (overlap-save; ``pyx/fft_tiled.pyx``).

What a config sets:

``tile``
    Points of the transforms (z, y, x), each a product of 2, 3, 5 and 7. A tile gives tile - kernel + 1 outputs an axis.
``block``
    Tiles that go together. Many share the kernels' z transforms and fill the matrix product; few take less workspace.
``spectra``
    ``resident``: the kernels' spectra are made once and kept. ``recomputed``: each call makes them, in its workspace.
    ``quarters``: each block makes them, a quarter at a time (of the frequencies along x), in a quarter of the bytes.
``product``
    ``gauss``: three real products for a complex one. ``plain``: four, with a third less to store of both factors. Gauss's
    where there is none.

After Zlateski, Jia, Li and Durand, "The anatomy of efficient FFT and Winograd convolutions on modern CPUs", ICS'19;
kernel spectra are kept as they are before the z transform, with the kernel's planes.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import log2, prod
from typing import NamedTuple

import numpy as np

from znni._kernels import fft_tiled
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.fft_sizes import is_good_size, next_good_size, tile_sizes
from znni.layers import Conv, Shape, by_x
from znni.layouts import BLOCKED, LAYOUTS, layouts_of
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit

#: The largest kernel and tile, per axis, that the engine is tested for.
_MOST_KERNEL, _MOST_POINTS = 256, 512
#: Settings of ``spectra``, and the parts in which each makes them.
_PARTS = {"resident": 1, "recomputed": 1, "quarters": 4}
_PRODUCTS = ("gauss", "plain")
#: Tiles to a block worth trying.
_BLOCKS = (96, 48, 24, 12, 4)
#: Tile along z, y and x where the kernel is 1: planes go in pairs, rows and voxels by the vector.
_POINTS_OF_NO_KERNEL = (2, 4, 8)
#: Shares of the peak that one Zen 4 core reaches, by which tiles are chosen: matrix products by rows in registers (1 to 6),
#: and transforms. Fitted to 47 tilings of layers of 80 channels, 3^3 to 9^3: off by 9 % (root mean square).
_ROW_RATES, _TRANSFORM_RATE = (0.21, 0.36, 0.45, 0.47, 0.58, 0.66), 0.36
#: Planes of a kernel up to which its z transforms are sums (``pyx/short_lines.h``).
_FEW_TAPS = 8
#: Tiles that are looked at with all sizes of blocks, out of all combinations.
_LIKELY = 32
#: Tiles that are offered beside the best, and, of the bytes that this takes, the shares within which the fastest is offered
#: too, if it should take no longer than so many times as long.
_OTHERS, _SHARES, _MOST_PATIENCE = 2, (0.5, 0.25, 0.125, 0.06), 3


def _tiling(layer: Conv, shape: Shape, config: Config, threads: int) -> fft_tiled.Tiling:
    takes, gives = layouts_of(config)
    return fft_tiled.Tiling(
        shape,
        layer.out_channels,
        layer.kernel,
        layer.dilation,
        layer.padding,
        config["tile"],
        config["block"],
        threads,
        _PARTS[config.get("spectra", "resident")],
        config.get("product", "gauss") == "gauss",
        takes == BLOCKED,
        gives == BLOCKED,
    )


def _padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // fft_tiled.LANES) * fft_tiled.LANES


def _flop(layer: Conv, shape: Shape, tiling: fft_tiled.Tiling, spectra: str) -> tuple[float, float]:
    """FLOP of one call: matrix products in Gauss's form, and transforms (5 n log2 n a complex line)."""
    z, y, x = tiling.axes
    out_rows = _padded(layer.out_channels)
    pairs = shape[1] * out_rows

    def line(n: int) -> float:
        return 5 * n * log2(n) + n

    def planes_of(count: int, rows: int) -> float:
        return -(-count // 2) * (rows * line(x["n"]) + x["n"] * line(y["n"]))

    products = 6.0 * tiling.tiles * tiling.columns * z["n"] * pairs
    blocks = -(-tiling.tiles // tiling.block)
    # kernels of few planes are summed up term by term; a line of others is also spread over panels
    kernel_line = 4 * z["kernel"] * z["n"] if z["kernel"] <= _FEW_TAPS else 1.3 * line(z["n"])
    along_z = tiling.columns * (tiling.tiles * (shape[1] + out_rows) * line(z["n"]) + blocks * pairs * kernel_line)
    forward, inverse = planes_of(z["load"], y["load"]), planes_of(z["keep"], y["keep"])
    planes = tiling.tiles * (shape[1] * forward + out_rows * inverse)
    made = {"resident": 0, "recomputed": 1, "quarters": blocks}[spectra]
    return products, along_z + planes + made * pairs * planes_of(*layer.kernel[:2])


def _row_rate(block: int) -> float:
    """Share of the peak at which a block of so many rows is multiplied, six rows or fewer at a time."""
    rows = block / -(-block // len(_ROW_RATES))
    low = int(rows)
    return _ROW_RATES[low - 1] + (rows - low) * (_ROW_RATES[min(low, len(_ROW_RATES) - 1)] - _ROW_RATES[low - 1])


class _Guess(NamedTuple):
    """What a tile in blocks of so many should take: seconds times the peak, and bytes with spectra in quarters."""

    seconds: float
    held_bytes: int
    tile: tuple[int, int, int]
    block: int


def _guess(layer: Conv, shape: Shape, tile: tuple[int, int, int], most: int) -> _Guess:
    """`tile` in equal blocks of at most `most`."""
    config = {"tile": tile, "spectra": "quarters"}
    tiles = _tiling(layer, shape, config | {"block": 1}, 1).tiles
    block = -(-tiles // -(-tiles // most))
    tiling = _tiling(layer, shape, config | {"block": block}, 1)
    products, transforms = _flop(layer, shape, tiling, "quarters")
    seconds = products / _row_rate(block) + transforms / _TRANSFORM_RATE
    return _Guess(seconds, tiling.workspace_bytes + tiling.spectra_bytes, tile, block)


@lru_cache(maxsize=4096)
def _configs(layer: Conv, shape: Shape) -> tuple[tuple, ...]:
    """(tile, block, spectra, product) worth timing, best guess first."""
    out = layer.output_shape(shape)
    sizes = []
    for o, k, d, few in zip(out[2:], layer.kernel, layer.dilation, _POINTS_OF_NO_KERNEL, strict=True):
        outputs = -(-o // d)
        sizes.append((next_good_size(min(few, outputs)),) if k == 1 else tile_sizes(outputs, k))
    rough = sorted(_guess(layer, shape, tile, _BLOCKS[0]) for tile in product(*sizes))
    likely = (*rough[:_LIKELY], *rough[_LIKELY :: -(-len(rough) // _LIKELY)])
    guesses = sorted({_guess(layer, shape, guess.tile, most) for guess in likely for most in _BLOCKS})
    best = guesses[0]
    found = [(best.tile, best.block, spectra, "gauss") for spectra in _PARTS]
    alike = {tuple(sorted(best.tile))}  # the other tiles are no permutations of these
    for guess in guesses:
        if len(alike) <= _OTHERS and tuple(sorted(guess.tile)) not in alike:
            alike.add(tuple(sorted(guess.tile)))
            found.append((guess.tile, guess.block, "resident", "gauss"))
    found.append((best.tile, best.block, "resident", "plain"))
    for share in _SHARES:
        thrifty = next((g for g in guesses if g.held_bytes <= share * best.held_bytes), None)
        if thrifty and thrifty.seconds < _MOST_PATIENCE * best.seconds:
            found.append((thrifty.tile, thrifty.block, "quarters", "gauss"))
    return tuple(dict.fromkeys(found))


class _Tiled(Operator):
    """Holds the twiddles and, if they are resident, the kernels' spectra, in one array; refers to weights and bias.

    Attributes
    ----------
    stages : tuple of str
        What `compute` can time.
    tiling : fft_tiled.Tiling
        Geometry of tiles and blocks.
    """

    stages = fft_tiled.STAGES

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self.tiling = tiling = _tiling(layer, shape, config, threads)
        self._weight, self._bias = weights["weight"], weights["bias"]
        self._kept = aligned_empty(self.memory.host_resident_bytes)
        tiling.prepare(self._kept[: tiling.table_bytes].view(np.float32))
        self._spectra = None
        if config["spectra"] == "resident":
            self._spectra = self._kept[aligned(tiling.table_bytes) :].view(np.float32)
            tiling.transform_kernels(self._weight, self._spectra, aligned_empty(tiling.scratch_bytes))

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray, stages: np.ndarray | None = None) -> None:
        """One call of the kernel; each thread adds its seconds to its row of `stages` (float64, threads x stages)."""
        code, a, b = self.layer.activation.code, self.layer.activation.a, self.layer.activation.b
        self.tiling.run(x, self._weight, self._spectra, self._bias, code, a, b, out, workspace, stages)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The twiddles and the kernels' spectra."""
        return (self._kept,)


class CpuFftTiled(Primitive):
    """Tiled FFT convolution of stride 1: kernels of 5^3 and up, and 3^3 with many channels."""

    name = "cpu.fft_tiled"
    kind = "conv"
    layouts = tuple(product(LAYOUTS, LAYOUTS))
    tolerance = 1e-5
    efficiency = (0.9, 0.2)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride and size it cannot do."""
        if layer.stride != (1, 1, 1):
            return f"tiled FFT convolution has stride 1 only, got {by_x(layer.stride)}"
        if max(layer.kernel) > _MOST_KERNEL:
            return f"tiled FFT convolution takes kernels of at most {_MOST_KERNEL} an axis, got {by_x(layer.kernel)}"
        return unfit(layer, shape)

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """The tiles that should be fastest, with blocks and spectra to choose from, and what takes the least memory."""
        self.refuse(layer, shape)
        return [{"tile": list(t), "block": b, "spectra": s, "product": p} for t, b, s, p in _configs(layer, shape)]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Twiddles and spectra; a block of tiles as spectra, matrices of every thread, and spectra where recomputed."""
        self._check(layer, shape, config)
        tiling = _tiling(layer, shape, config, threads)
        if config["spectra"] == "resident":
            return Memory(aligned(tiling.table_bytes) + tiling.spectra_bytes, tiling.workspace_bytes)
        return Memory(tiling.table_bytes, tiling.workspace_bytes + tiling.spectra_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """Transforms over the lines that matter, 6 or 8 FLOP a complex product; blocks and spectra written and read once."""
        tiling = _tiling(layer, shape, config, 1)
        blocks = -(-tiling.tiles // tiling.block)
        whole = tiling.spectra_bytes * tiling.parts
        z, y, x = tiling.axes
        read = 4.0 * shape[1] * z["load"] * y["load"] * x["load"]
        held = 8.0 * tiling.columns * (shape[1] * z["load"] + _padded(layer.out_channels) * z["keep"])
        spectra = whole * {"resident": blocks, "recomputed": blocks + 1, "quarters": 2 * blocks}[config["spectra"]]
        read = max(tiling.tiles * read, 4.0 * prod(shape))
        moved = read + tiling.tiles * 2 * held + spectra + 4.0 * prod(layer.output_shape(shape))
        products, transforms = _flop(layer, shape, tiling, config["spectra"])
        if config.get("product") == "plain":
            products *= 8 / 6
        return Cost(products + transforms, moved)

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """Measured on layers of 80 channels, kernels of 3^3 to 9^3 and tiles of 16^3 to 32^3: 2.1e-7 to 3.0e-7."""
        return 3e-7

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
        sound = isinstance(block, int) and block > 0 and spectra in _PARTS
        sound = sound and config.get("product", "gauss") in _PRODUCTS
        sound = sound and isinstance(tile, (list, tuple)) and len(tile) == 3 and all(isinstance(n, int) for n in tile)
        if not sound:
            raise Unsupported(
                f"a config of {self.name} has a tile (three sizes), a block of at least 1 tile, spectra, 'resident', "
                f"'recomputed' or 'quarters', and a product, 'gauss' or 'plain'; got {config_key(config)}; see configs()"
            )
        for n, k in zip(tile, layer.kernel, strict=True):
            if not k <= n <= _MOST_POINTS or not is_good_size(n):
                raise Unsupported(
                    f"a tile of {self.name} has {k} (the kernel) to {_MOST_POINTS} points an axis, each a product of "
                    f"2, 3, 5 and 7; got {by_x(tile)}; see configs()"
                )


register(CpuFftTiled())
