"""`gpu.fft_tiled`: convolution by FFTs of overlapping tiles on the device (overlap-save).

What a config sets, beside what all of `znni.gpu.fft_convolution` have:

``tile``
    Points of the transforms (z, y, x), each a product of 2, 3, 5 and 7. A tile gives tile - extent + 1 outputs an axis.

After Zlateski, Jia, Li and Durand, "The anatomy of efficient FFT and Winograd convolutions on modern CPUs", ICS'19.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from znni.errors import Unsupported
from znni.fft_sizes import is_good_size, next_good_size, tile_sizes
from znni.gpu.fft_convolution import FftConvolution
from znni.gpu.fft_tiling import Tiling
from znni.gpu.spectra import BYTES, CGEMM, LINES
from znni.gpu.transforms import BlockTransforms
from znni.layers import Conv, Shape, Triple, by_x
from znni.primitives.base import Config, register

#: The largest tile that is offered, where it is large enough for the kernel; points along x where the kernel is 1 there.
_MOST_POINTS, _POINTS_OF_NO_KERNEL = 64, 32
#: Bytes that the spectra of a block of tiles may take, worth trying.
_BUDGETS = (1 << 30, 1 << 27, 1 << 24)
#: By what tiles are compared: FLOP that take as long as a byte moved, of which large devices have about so many; bytes moved
#: for each complex number of a tile's spectrum (loaded, transformed along three axes, transposed, multiplied); rows of a
#: matrix that cuBLAS multiplies at a time, so that few tiles take as long as so many.
_FLOP_TO_A_BYTE, _BYTES_MOVED, _ROWS = 10, 80, 32
#: Tiles that are offered beside the best, and shares of the bytes that this takes, within which the best is offered too.
_OTHERS, _SHARES = 2, (0.25, 0.06)
#: Parts of the tiles and of the output channels where memory is what counts.
_THRIFTY_PARTS = 4


class _Guess(NamedTuple):
    """What a tile in blocks of so many should take: bytes moved, or as long as that; and bytes held."""

    moved_bytes: float
    held_bytes: int
    tile: Triple
    block: int


class GpuFftTiled(FftConvolution):
    """Tiled FFT convolution of stride 1: kernels of 5^3 and up, and 3^3 with many channels."""

    name = "gpu.fft_tiled"
    keys = ("tile",)

    def transforms(self, layer: Conv, shape: Shape, config: Config) -> BlockTransforms:
        """Of tiles."""
        return BlockTransforms(layer, shape, Tiling.of(layer, shape, tuple(config["tile"])))

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, kernel and size it cannot do."""
        reason = super().supports(layer, shape)
        return reason or self.too_large(self.transforms(layer, shape, {"tile": _sizes(layer, shape, least=True)[0]}))

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """The tiles that should be fastest, the best with spectra, products and TF32 to choose from; and less memory."""
        self.refuse(layer, shape)
        guesses = _guesses(layer, shape)
        best = guesses[0]

        def config(guess: _Guess, spectra: str, product: str, **others) -> dict:
            blocks = {"tile": list(guess.tile), "block": guess.block, "outputs": layer.out_channels}
            return blocks | {"spectra": spectra, "product": product} | others

        configs = [config(best, "resident", CGEMM), config(best, "resident", CGEMM, tf32=True)]
        configs += [config(best, "recomputed", CGEMM), config(best, "resident", LINES)]
        alike = {tuple(sorted(best.tile))}  # the other tiles are no permutations of these
        for guess in guesses:
            if len(alike) <= _OTHERS and tuple(sorted(guess.tile)) not in alike:
                alike.add(tuple(sorted(guess.tile)))
                configs.append(config(guess, "resident", CGEMM))
        for share in _SHARES:
            thrifty = next((g for g in guesses if g.held_bytes <= share * best.held_bytes), best)
            configs.append(config(thrifty, "recomputed", CGEMM))
        parts = {"block": -(-thrifty.block // _THRIFTY_PARTS), "outputs": -(-layer.out_channels // _THRIFTY_PARTS)}
        configs.append(config(thrifty, "recomputed", LINES, **parts))
        return [made for i, made in enumerate(configs) if made not in configs[:i]]

    def check(self, layer: Conv, shape: Shape, config: Config) -> None:
        """See `FftConvolution.check`; of tiles that do not fit, too."""
        super().check(layer, shape, config)
        tile = config["tile"]
        sound = isinstance(tile, (list, tuple)) and len(tile) == 3 and all(isinstance(n, int) for n in tile)
        least = tuple(max(e, low) for e, low in zip(layer.extent, (1, 1, 2), strict=True))
        if not sound or any(n < e or not is_good_size(n) for n, e in zip(tile, least, strict=True)):
            raise Unsupported(
                f"a tile of {self.name} has three sizes (z, y, x), products of 2, 3, 5 and 7 and at least {by_x(least)} for "
                f"this kernel; got {tile}; see configs()"
            )
        if reason := self.too_large(self.transforms(layer, shape, config)):
            raise Unsupported(reason)


def _sizes(layer: Conv, shape: Shape, least: bool = False) -> list[Triple]:
    """All tiles worth a thought; only the smallest with `least`."""
    axes = []
    for axis, (outputs, k, extent) in enumerate(
        zip(layer.output_shape(shape)[2:], layer.kernel, layer.extent, strict=True)
    ):
        if k == 1:
            sizes = (1,) if axis < 2 else (max(2, next_good_size(min(outputs, _POINTS_OF_NO_KERNEL))),)
        else:
            sizes = tile_sizes(outputs, extent, _MOST_POINTS)
            if axis == 2:  # of even sizes the real transforms are done by complex ones of half the size
                sizes = sorted({2 * next_good_size(-(-n // 2)) for n in sizes})
        axes.append(sizes[:1] if least else sizes)
    return list(product(*axes))


@lru_cache(maxsize=1024)
def _guesses(layer: Conv, shape: Shape) -> tuple[_Guess, ...]:
    """All tiles worth a thought in blocks worth one, best guess first."""
    channels, out_channels, outputs = shape[1], layer.out_channels, layer.output_shape(shape)
    pairs, images = channels * out_channels, channels + out_channels
    guesses = set()
    for tile in _sizes(layer, shape):
        steps = (n - extent + 1 for n, extent in zip(tile, layer.extent, strict=True))
        tiles = shape[0] * prod(-(-o // step) for o, step in zip(outputs[2:], steps, strict=True))
        spectrum = tile[0] * tile[1] * (tile[2] // 2 + 1)
        for budget in _BUDGETS:
            block = min(max(1, budget // (BYTES * spectrum * images)), tiles)
            blocks = -(-tiles // block)
            block = -(-tiles // blocks)
            rows = blocks * -(-block // _ROWS) * _ROWS
            moved = rows * pairs * 8 / _FLOP_TO_A_BYTE + tiles * images * _BYTES_MOVED + blocks * pairs * BYTES
            guesses.add(_Guess(spectrum * moved, BYTES * spectrum * (pairs + block * images), tile, block))
    return tuple(sorted(guesses))


register(GpuFftTiled())
