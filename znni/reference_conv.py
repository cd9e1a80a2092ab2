"""Dilated convolution in float64 by NumPy alone, fast enough for kernels of 9^3 between 80 channels.

Arrays are channels-last: ``(batch, z, y, x, channel)``. It is computed the cheaper of two ways, by count of operations:

*direct*: the taps of each output voxel gathered into rows, and matrix products.
*overlap-save*: the sub-lattices of the dilation are cut into overlapping tiles; discrete Fourier transforms along each
axis, a matrix product per frequency, and inverse transforms that give only the outputs free of wrap-around. Tiles are
small, so a transform is a product with its dense matrix, pruned to the taps it has and the outputs it is asked for, and
the first axis keeps half of its spectrum, data being real. Complex numbers stay split into real planes: each product
takes three real ones (Gauss), whose sums are folded into the matrices of the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from znni.layers import Triple

#: Bytes that a convolution may take beyond its input and output.
WORKSPACE_BYTES = 2**30
#: Multiply-adds up to which OpenBLAS stays on the calling thread.
_PRODUCT_SIZE = 2**18
#: Of a direct convolution, numbers in a row of taps and in a block of rows.
_ROW, _BLOCK = 128, 2**18
#: Tiles in one matrix product, where memory allows: kernel spectra are read once for all of them.
_TILES_AT_ONCE = 32
#: Outputs per tile and axis that are tried.
_TILE_OUTPUTS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)
#: For the choice, a double to or from memory counts as so many operations, and the Python around a tile as so many
#: doubles.
_FLOP_PER_MOVE, _MOVES_PER_TILE = 16, 20_000
#: Gauss's complex product: with these sums of the parts of x and of w, and the three products p of them, the real and
#: imaginary part are _SUM_P @ p.
_SUM_X = np.array([[1, 0], [0, 1], [1, 1]])
_SUM_W = np.array([[-1, 1], [1, 1], [1, 0]])
_SUM_P = np.array([[0, -1, 1], [1, 0, 1]])


def convolve(
    x: np.ndarray, w: np.ndarray, dilation: Triple, pool: Executor, threads: int, tiling: Tiling | None = None
) -> np.ndarray:
    """Valid cross-correlation of `x` with the kernels `w`, whose taps are `dilation` voxels apart.

    Parameters
    ----------
    x : ndarray, float64, shape (batch, z, y, x, in)
        Finite, and at least as large as the dilated kernel.
    w : ndarray, real, shape (out, in, kz, ky, kx)
    dilation : (z, y, x)
    pool : Executor
        Of `threads` threads, on which blocks are computed.
    threads : int
    tiling : Tiling, optional
        By default what `choose_tiling` says.

    Returns
    -------
    ndarray, float64, shape (batch, z, y, x, out)
    """
    w = np.ascontiguousarray(w.transpose(2, 3, 4, 1, 0), dtype=np.float64)  # (kz, ky, kx, in, out)
    size = (n - (k - 1) * d for n, k, d in zip(x.shape[1:4], w.shape[:3], dilation, strict=True))
    out = np.zeros((len(x), *size, w.shape[-1]))
    tiling = tiling or choose_tiling(out.shape[:4], w.shape, dilation)
    (_direct if tiling.outputs is None else _overlap_save)(x, w, tiling, out, pool, threads)
    return out


@dataclass(frozen=True)
class Tiling:
    """How a convolution is computed: directly (`outputs` None), or by tiles of `outputs` voxels of a sub-lattice."""

    kernel: Triple
    dilation: Triple
    outputs: Triple | None
    flop: float = 0.0  # memory traffic counted as such

    @property
    def size(self) -> Triple:
        """Input voxels that a tile spans."""
        return tuple(k + m - 1 for k, m in zip(self.kernel, self.outputs, strict=True))

    def tiles(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple, tuple]]:
        """Index of a tile's input and of its output, for every tile of an output of `shape` (batch, z, y, x)."""
        axes = [[(b, b) for b in range(shape[0])]]
        for n, k, d, m in zip(shape[1:], self.kernel, self.dilation, self.outputs, strict=True):
            axes.append([])
            for start in (r + d * i for r in range(min(n, d)) for i in range(0, -(-(n - r) // d), m)):
                count = min(m, -(-(n - start) // d))
                ends = (start + d * (count + k - 2) + 1, start + d * (count - 1) + 1)
                axes[-1].append(tuple(slice(start, end, d) for end in ends))
        return ((tuple(p[0] for p in parts), tuple(p[1] for p in parts)) for parts in product(*axes))


def choose_tiling(shape: tuple[int, ...], weights: tuple[int, ...], dilation: Triple) -> Tiling:
    """The cheapest way to an output of `shape` (batch, z, y, x) with weights of shape (kz, ky, kx, in, out)."""
    (batch, *size), (*kernel, c, o) = shape, weights
    kernel = tuple(kernel)
    taps = math.prod(kernel)
    direct = Tiling(kernel, dilation, None, math.prod(shape) * taps * c * (2.0 * o + 2 * _FLOP_PER_MOVE))
    if taps == 1:
        return direct
    choices, counts = [], []
    for n, k, d in zip(size, kernel, dilation, strict=True):
        longest = -(-n // d)
        tiles = sorted({-(-longest // m) for m in (_TILE_OUTPUTS if k > 1 else (1,))})
        choices.append([-(-longest // t) for t in tiles])
        counts.append([min(n, d) * float(t) for t in tiles])
    outputs = np.meshgrid(*choices, indexing="ij")  # of a tile, per axis: grids over all choices
    tiles = batch * math.prod(np.meshgrid(*counts, indexing="ij"))
    forward, kernels, inverse, points = _transform_flop(kernel, outputs)
    arithmetic = tiles * (c * forward + o * inverse + 2 * points * c * o) + c * o * kernels
    passes = np.maximum(1, 16 * points * c * o / WORKSPACE_BYTES)  # over the tiles, where kernel spectra take half
    read = 2 * c * math.prod(m + k - 1 for m, k in zip(outputs, kernel, strict=True))
    moves = points * (4 * tiles * (c + o) + (4 + tiles / _TILES_AT_ONCE) * c * o)
    moves += tiles * passes * (read + 3 * o * math.prod(outputs) + _MOVES_PER_TILE)
    flop = arithmetic + _FLOP_PER_MOVE * moves
    best = np.unravel_index(np.argmin(flop), flop.shape)
    if flop[best] >= direct.flop:
        return direct
    return Tiling(kernel, dilation, tuple(int(m[best]) for m in outputs), float(flop[best]))


def _transform_flop(kernel: Triple, outputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Operations to transform a channel of a tile, a kernel, and back, and real numbers of a spectrum."""
    axes = [(k, m, m + k - 1) for k, m in zip(kernel, outputs, strict=True) if k > 1]
    forward = kernels = inverse = 0.0
    before, parts = 1, 1
    for number, (k, m, t) in enumerate(axes):
        frequencies = t if number else t // 2 + 1
        after = axes[number + 1 :]
        rows = 2 * before * frequencies * (2 if after else 3) * parts
        forward = forward + rows * t * math.prod(t for _, _, t in after)
        kernels = kernels + rows * k * math.prod(k for k, _, _ in after)
        inverse = inverse + rows * m * math.prod(m for _, m, _ in after)
        before, parts = before * frequencies, 2
    return forward, kernels, inverse, 3 * before


def _matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """np.matmul by columns, in products so small that BLAS computes them on the calling thread.

    The threads of the pool are then the only ones: BLAS threads waiting for one another on a busy machine were seen to
    take fifty times as long as one thread alone.
    """
    columns = max(1, _PRODUCT_SIZE // (a.shape[-2] * a.shape[-1]))
    for i in range(0, b.shape[-1], columns):
        np.matmul(a, b[..., i : i + columns], out=out[..., i : i + columns])


class _Buffers:
    """Two flat arrays in which results of successive steps lie by turns, and one for a tile."""

    def __init__(self, size: int, tile_size: int):
        self._flat = [np.empty(size), np.empty(size)]
        self.tile = np.zeros(tile_size)

    def empty(self, *shape: int) -> np.ndarray:
        """An array in the buffer that the previous one is not in."""
        self._flat.reverse()
        return self._flat[0][: math.prod(shape)].reshape(shape)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a @ b`` in the buffer that the previous result is not in."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = self.empty(*lead, a.shape[-2], b.shape[-1])
        _matmul(a, b, out)
        return out


class _Spare(list):
    """Buffers, one per thread, lent to a block at a time: fresh memory for each would cost more than what fills it."""

    def __init__(self, threads: int, size: int, tile_size: int = 0):
        super().__init__(_Buffers(size, tile_size) for _ in range(threads))

    @contextmanager
    def lent(self) -> Iterator[_Buffers]:
        """One of the buffers, which then no other block has."""
        buffers = self.pop()
        try:
            yield buffers
        finally:
            self.append(buffers)


def _direct(x: np.ndarray, w: np.ndarray, tiling: Tiling, out: np.ndarray, pool: Executor, threads: int) -> None:
    """Rows of some taps times their kernels, added up over the taps, a few lines along x at a time."""
    (batch, depth, height, width), (c, o) = out.shape[:4], w.shape[3:]
    taps = list(product(*map(range, tiling.kernel)))
    at_once = max(1, _ROW // c)
    lines = max(1, _BLOCK // (width * max(at_once * c, o)))
    spare = _Spare(threads, lines * width * max(at_once * c, o))

    def block(at):
        b, z, y = at
        part = out[b, z, y : y + lines]
        with spare.lent() as buffers:
            for first in range(0, len(taps), at_once):
                some = taps[first : first + at_once]
                rows = buffers.empty(*part.shape[:2], len(some), c)
                for i, tap in enumerate(some):
                    dz, dy, dx = (t * d for t, d in zip(tap, tiling.dilation, strict=True))
                    rows[:, :, i] = x[b, z + dz, y + dy : y + dy + len(part), dx : dx + width]
                matrix = w.reshape(-1, o)[first * c : (first + len(some)) * c]
                part += buffers.matmul(rows.reshape(*part.shape[:2], -1), matrix)

    list(pool.map(block, product(range(batch), range(depth), range(0, height, lines))))


def _transforms(tiling: Tiling) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Matrices along each axis longer than one: of tiles, of kernels (conjugate), and, inverse, of products.

    Rows of the first two are (frequency, part), their columns (part, voxel); of the third it is the other way round. A
    part is real or imaginary, or on the last axis one of Gauss's three sums; the first axis has voxels without parts.
    """
    axes = [(k, m, t) for k, m, t in zip(tiling.kernel, tiling.outputs, tiling.size, strict=True) if k > 1]
    on_tiles, on_kernels, on_products = [], [], []
    for number, (k, m, t) in enumerate(axes):
        frequencies, parts = (np.arange(t), 2) if number else (np.arange(t // 2 + 1), 1)
        wave = np.exp(-2j * np.pi / t * (np.outer(frequencies, np.arange(t)) % t))
        mirrored = (number == 0) & (frequencies > 0) & (2 * frequencies < t)
        back = (wave[:, :m].conj() * np.where(mirrored, 2, 1)[:, None] / t).T
        on_tiles.append(_planes(wave)[:, :parts].transpose(2, 0, 1, 3).reshape(-1, parts * t))
        on_kernels.append(_planes(wave[:, :k].conj())[:, :parts].transpose(2, 0, 1, 3).reshape(-1, parts * k))
        on_products.append(_planes(back)[:parts].transpose(0, 2, 3, 1).reshape(parts * m, -1))
    every = np.eye(len(frequencies))
    on_tiles[-1] = np.kron(every, _SUM_X) @ on_tiles[-1]
    on_kernels[-1] = np.kron(every, _SUM_W) @ on_kernels[-1]
    on_products[-1] = on_products[-1] @ np.kron(every, _SUM_P)
    return on_tiles, on_kernels, on_products


def _planes(matrix: np.ndarray) -> np.ndarray:
    """A complex matrix as real ones: [part of the result, part of the operand, row, column]."""
    return np.array([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])


def _forward(matrices: list[np.ndarray], a: np.ndarray, buffers: _Buffers) -> np.ndarray:
    """Transforms the axes of `a` from the second on; along the first it has (frequency, part) already."""
    for number in range(1, len(matrices)):
        done = math.prod(len(m) // 2 for m in matrices[:number])
        a = buffers.matmul(matrices[number], a.reshape(done, matrices[number].shape[1], -1))
    return a


def _inverse(matrices: list[np.ndarray], a: np.ndarray, buffers: _Buffers) -> np.ndarray:
    """From spectra back to voxels, from the last axis to the second."""
    for number in range(len(matrices) - 1, 0, -1):
        ahead = math.prod(m.shape[1] // 2 for m in matrices[:number])
        a = buffers.matmul(matrices[number], a.reshape(ahead, matrices[number].shape[1], -1))
    return a


@dataclass(frozen=True)
class _Frequencies:
    """Overlap-save for some frequencies of the first axis: their rows of the transforms, and their kernel spectra."""

    tiling: Tiling
    on_tiles: list[np.ndarray]
    on_kernels: list[np.ndarray]
    on_products: list[np.ndarray]
    spectra: np.ndarray  # (frequency and part, in * out channels)
    spare: _Spare

    def transform_kernels(self, w: np.ndarray, columns: slice) -> None:
        """Spectra of the kernels `columns` of `w`, (taps of the first axis, other taps, in * out)."""
        with self.spare.lent() as buffers:
            begun = buffers.matmul(self.on_kernels[0], w[:, :, columns].reshape(len(w), -1))
            self.spectra[:, columns] = _forward(self.on_kernels, begun, buffers).reshape(len(self.spectra), -1)

    def add_tiles(self, x: np.ndarray, out: np.ndarray, tiles: list[tuple[tuple, tuple]]) -> None:
        """What these frequencies bring to the outputs of `tiles`."""
        size, c, o = self.tiling.size, x.shape[-1], out.shape[-1]
        rows, first = self.on_tiles[0].shape
        others = math.prod(size) // first
        with self.spare.lent() as buffers:
            tile, ready = buffers.tile[: math.prod(size) * c].reshape(*size, c), buffers.empty(rows, others * c)
            turned = buffers.empty(rows, others, len(tiles), c)
            for i, (source, _) in enumerate(tiles):
                read = x[source]
                if read.shape != tile.shape:  # beyond the input: reaches only outputs that are not wanted
                    tile.fill(0)
                tile[tuple(map(slice, read.shape))] = read
                _matmul(self.on_tiles[0], tile.reshape(first, -1), ready)
                turned[:, :, i] = ready.reshape(rows, others, c)
            spectra = _forward(self.on_tiles, turned, buffers).reshape(-1, len(tiles), c)
            products = buffers.matmul(spectra, self.spectra.reshape(-1, c, o))
            turned = _inverse(self.on_products, products, buffers).reshape(rows, -1, len(tiles), o)
            ready = buffers.empty(rows, turned.shape[1] * o)
            tile = buffers.tile[: math.prod(self.tiling.outputs) * o]
            for i, (_, target) in enumerate(tiles):
                ready.reshape(rows, -1, o)[...] = turned[:, :, i]
                _matmul(self.on_products[0], ready, tile.reshape(-1, ready.shape[1]))
                part = out[target]
                part += tile.reshape(*self.tiling.outputs, o)[tuple(map(slice, part.shape[:3]))]


def _overlap_save(x: np.ndarray, w: np.ndarray, tiling: Tiling, out: np.ndarray, pool: Executor, threads: int) -> None:
    """Adds the convolution to `out`, some frequencies of the first axis at a time, so that their kernel spectra fit."""
    on_tiles, on_kernels, on_products = _transforms(tiling)
    tiles, (c, o), voxels = list(tiling.tiles(out.shape[:4])), w.shape[3:], math.prod(tiling.size)
    parts = 2 if len(on_tiles) > 1 else 3
    frequencies, points = len(on_tiles[0]) // parts, 3 * voxels // on_tiles[0].shape[1]  # and numbers for each
    buffer_size = points * max(c, o)  # for a frequency and a tile
    tile_size = max(voxels * c, math.prod(tiling.outputs) * o)

    def fits(at_once, many):
        numbers = at_once * points * c * o + threads * (2 * at_once * many * buffer_size + tile_size)
        return 8 * numbers <= WORKSPACE_BYTES

    many = min(_TILES_AT_ONCE, -(-len(tiles) // threads))
    at_once = max((n for n in range(2, frequencies + 1) if fits(n, many)), default=1)
    at_once = -(-frequencies // -(-frequencies // at_once))
    many = max((n for n in range(2, many + 1) if fits(at_once, n)), default=1)
    buffer_size *= at_once * many
    spare, spectra = _Spare(threads, buffer_size, tile_size), np.empty((at_once * points, c * o))
    w = w.reshape(on_kernels[0].shape[1], -1, c * o)
    columns = min(buffer_size // (at_once * points), -(-c * o // threads))
    for start in range(0, frequencies, at_once):
        now = slice(parts * start, parts * min(start + at_once, frequencies))
        some = _Frequencies(
            tiling,
            [on_tiles[0][now], *on_tiles[1:]],
            [on_kernels[0][now], *on_kernels[1:]],
            [on_products[0][:, now], *on_products[1:]],
            spectra[: (now.stop - now.start) // parts * points],
            spare,
        )
        parts_of_w = (slice(i, i + columns) for i in range(0, c * o, columns))
        list(pool.map(partial(some.transform_kernels, w), parts_of_w))
        parts_of_tiles = (tiles[i : i + many] for i in range(0, len(tiles), many))
        list(pool.map(partial(some.add_tiles, x, out), parts_of_tiles))
