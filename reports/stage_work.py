"""Operations and bytes of each stage of the convolutions by transforms: what their seconds are divided into.

Operations are counted twice: as `flop` the way the field counts them, 5 n log2 n for a complex line of n points (so half of
that for a real one), and as `counted_flop` one by one, additions and multiplications, as the kernels do them. Lines that are
pruned do not count, lanes left over do, as they are computed. Bytes are those that a stage cannot do without reading from, or
writing to, the level of the hierarchy that its working set needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod

from znni._kernels import fft_tiled, winograd
from znni.layouts import BLOCKED, tensor_bytes
from znni.machine import Machine
from znni.primitives import Operator
from znni.primitives.cpu_winograd import INPUT_FLOP, OUTPUT_FLOP, tile_transforms

#: Levels of the hierarchy, by the ceiling that holds there.
MEMORY, L3, L2 = "memory", "L3", "L2"
#: Additions and multiplications of a complex butterfly (``pyx/fft_butterflies.h``).
_BUTTERFLY_FLOP = {2: 4, 3: 16, 4: 16, 5: 48, 6: 44, 7: 96, 8: 60}
_TWIDDLE_FLOP = 6
#: Taps up to which kernels are summed up term by term along z, and along x.
_FEW_TAPS, _SHORT = 8, 16


@dataclass(frozen=True)
class Work:
    """What a stage does in one call, by all threads. `level` is where its bytes come from and go to."""

    flop: float
    counted_flop: float
    moved_bytes: float
    level: str


def line_flop(n: int) -> tuple[float, float]:
    """Of a complex transform of `n` points: 5 n log2 n, and as the codelets do it."""
    counted, done = 0.0, 1
    for radix in fft_tiled.radices(n):
        counted += n / radix * _BUTTERFLY_FLOP[radix]
        counted += _TWIDDLE_FLOP * (done - 1) * (radix - 1) * (n // (done * radix))
        done *= radix
    return 5 * n * log2(n), counted


def fft_tiled_work(operator: Operator, machine: Machine) -> dict[str, Work]:
    """By stage of `cpu.fft_tiled`; those that a call does not have are left out."""
    layer, shape, t, lanes = operator.layer, operator.shape, operator.tiling, fft_tiled.LANES
    z, y, x = t.axes
    gauss = operator.config.get("product", "gauss") == "gauss"
    rows = _whole(shape[1], lanes) if operator.takes == BLOCKED else shape[1]
    inputs, outputs = t.tiles * rows, t.tiles * _whole(layer.out_channels, lanes)
    pairs, blocks = shape[1] * _whole(layer.out_channels, lanes), -(-t.tiles // t.block)
    made = {"resident": 0, "recomputed": 1, "quarters": blocks}[operator.config["spectra"]]
    few = z["kernel"] <= _FEW_TAPS
    lines = [line_flop(axis["n"]) for axis in (z, y, x)]
    held = 8.0 * t.columns * t.block * (rows * z["load"])  # the columns of a block
    level = MEMORY if held > machine.l3_bytes else L3

    def planes(count: int, along_x: int, kind: int) -> float:
        """Of so many planes in pairs; splitting or merging is counted one by one only."""
        transformed = along_x * lines[2][kind] + x["n"] * lines[1][kind]
        return -(-count // 2) * (transformed + 4 * t.columns * kind)

    def along_z(count: int, kind: int) -> float:
        return t.columns * count * lines[0][kind]

    def kernel_planes(kind: int) -> float:
        transformed = x["n"] * lines[1][kind]
        if kind and x["kernel"] <= _SHORT:
            transformed += y["kernel"] * (x["n"] // 2 + 1) * (8 * (x["kernel"] - 1) + 4)
        else:
            transformed += y["kernel"] * lines[2][kind]
        return -(-z["kernel"] // 2) * (transformed + 4 * t.columns * kind)

    sets = z["n"] // 4 + 1 if z["n"] % 2 == 0 else z["n"] // 2 + 1
    sums = sets * 8 * (z["kernel"] - 1) + 4 * z["n"] if few else lines[0][1]
    columns_in = 8.0 * t.columns * inputs * z["load"]
    columns_out = 8.0 * t.columns * outputs * z["keep"]
    spectra = 8.0 * t.columns * pairs * z["kernel"]
    kernels_z = t.columns * blocks * pairs
    parts, panels = 3 if gauss else 2, -(-_whole(layer.out_channels, lanes) // (lanes * (2 if gauss else 1)))
    products = (6.0 if gauss else 8.0) * t.columns * z["n"] * t.tiles * pairs
    a_bytes, c_bytes = 4.0 * parts * t.columns * z["n"] * inputs, 8.0 * t.columns * z["n"] * outputs
    b_bytes = 8.0 * z["n"] * kernels_z
    read_x, written = tensor_bytes(shape, operator.takes), tensor_bytes(operator.out_shape, operator.gives)
    work = {
        "input": Work(
            inputs * planes(z["load"], y["load"], 0), inputs * planes(z["load"], y["load"], 1), read_x + columns_in, level
        ),
        "input_z": Work(
            along_z(inputs, 0), along_z(inputs, 1) + (2 if gauss else 0) * t.columns * z["n"] * inputs, columns_in, level
        ),
        "kernels_z": Work(
            kernels_z * (lines[0][0]), kernels_z * sums, blocks * spectra * (sets if few else 1) + b_bytes, L2
        ),
        "products": Work(products, products, panels * a_bytes + b_bytes + c_bytes, L2),
        "output_z": Work(along_z(outputs, 0), along_z(outputs, 1), columns_out, level),
        "output": Work(
            outputs * planes(z["keep"], y["keep"], 0), outputs * planes(z["keep"], y["keep"], 1), columns_out + written, level
        ),
    }  # fmt: skip
    if made:
        weights = 4.0 * prod(layer.weight_shapes(shape[1])["weight"])
        flop = [made * pairs * kernel_planes(kind) for kind in (0, 1)]
        spectra_level = MEMORY if t.spectra_bytes > machine.l3_bytes else L3
        work["kernels"] = Work(*flop, made * (weights + spectra), spectra_level)
    return work


def winograd_work(operator: Operator, machine: Machine) -> dict[str, Work]:
    """By stage of `cpu.winograd`."""
    layer, shape, t, lanes = operator.layer, operator.shape, operator.tiling, winograd.LANES
    forward, inverse = tile_transforms(tuple(operator.config["tile"]), layer.kernel, INPUT_FLOP, OUTPUT_FLOP)
    inputs, outputs = lanes * t.tiles * t.in_vectors, lanes * t.tiles * t.out_vectors
    points_in, points_out = 4.0 * inputs * t.points, 4.0 * outputs * t.points
    products = 2.0 * t.tiles * t.points * shape[1] * t.out_vectors * lanes
    kernels = -(-t.tiles // t.block) * t.kernel_bytes
    level = L2 if t.workspace_bytes / operator.threads <= machine.l2_bytes else L3
    read_x, written = tensor_bytes(shape, operator.takes), tensor_bytes(operator.out_shape, operator.gives)
    return {
        "input": Work(inputs * forward, inputs * forward, read_x + points_in, level),
        "products": Work(products, products, points_in + points_out + kernels, level),
        "output": Work(outputs * inverse, outputs * inverse, points_out + written, level),
    }


def _whole(channels: int, lanes: int) -> int:
    """Channels in whole vectors."""
    return -(-channels // lanes) * lanes
