"""How the voxels of an array lie in memory: *plain*, channel after channel, or *blocked*, by vectors of channels; and on the
*device*: plain, but in the memory of the GPU.

Blocked, `LANES` channels of one voxel lie side by side (16 on AVX-512, 8 on AVX, 4 otherwise): an array of logical shape
``(batch, channels, z, y, x)`` is ``(batch, ceil(channels / LANES), z, y, x, LANES)``. Lanes beyond the last channel hold
zeros. Kernels whose SIMD lanes are channels read and write it as it lies (Jia, Zlateski, Durand & Li, "Optimizing
N-dimensional, Winograd-based convolution for manycore CPUs", PPoPP'18).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from znni._kernels.direct import LANES
from znni.errors import Unsupported
from znni.layers import Shape

PLAIN, BLOCKED, DEVICE = "plain", "blocked", "device"
#: Those of the host.
LAYOUTS = (PLAIN, BLOCKED)

_FLOAT_BYTES = 4


def array_shape(shape: Shape, layout: str) -> tuple[int, ...]:
    """Shape of the array that holds a tensor of logical `shape`."""
    if layout != BLOCKED:
        return tuple(shape)
    return (shape[0], -(-shape[1] // LANES), *shape[2:], LANES)


def tensor_bytes(shape: Shape, layout: str = PLAIN) -> int:
    """Bytes of a float32 array that holds a tensor of logical `shape`."""
    return _FLOAT_BYTES * prod(array_shape(shape, layout))


def layouts_of(config: Mapping) -> tuple[str, str]:
    """The layouts that an operator of this config takes its input in and gives its output in."""
    takes, gives = config.get("takes", PLAIN), config.get("gives", PLAIN)
    for layout in (takes, gives):
        if layout not in (*LAYOUTS, DEVICE):
            raise Unsupported(f"a layout is {', '.join(LAYOUTS)} or {DEVICE}, got {layout!r}")
    return takes, gives


def with_layouts(config: Mapping, takes: str, gives: str) -> dict:
    """`config` for these layouts; plain ones, the default, are not named."""
    named = {key: layout for key, layout in (("takes", takes), ("gives", gives)) if layout != PLAIN}
    return settings_of(config) | named


def settings_of(config: Mapping) -> dict:
    """`config` without its layouts."""
    return {key: value for key, value in config.items() if key not in ("takes", "gives")}


def packed(x: np.ndarray, layout: str) -> np.ndarray:
    """A plain array (batch, channels, z, y, x) as a new array in `layout`."""
    if layout == PLAIN:
        return np.ascontiguousarray(x).copy()
    blocks = np.zeros((x.shape[0], -(-x.shape[1] // LANES) * LANES, *x.shape[2:]), x.dtype)
    blocks[:, : x.shape[1]] = x
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(x.shape[0], -1, LANES, *x.shape[2:]), 2, 5))


def unpacked(array: np.ndarray, channels: int, layout: str) -> np.ndarray:
    """The plain array of `channels` channels that an array in `layout` holds."""
    if layout == PLAIN:
        return array
    whole = np.moveaxis(array, 5, 2).reshape(array.shape[0], -1, *array.shape[2:5])
    return np.ascontiguousarray(whole[:, :channels])
