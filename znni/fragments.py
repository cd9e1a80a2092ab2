"""The functional face of max-pooling fragments: pool at every offset, and put a dense result together again.

A sliding-window network with max-pooling of stride s gives one voxel in s per axis. Pooling at all prod(s) offsets keeps
the others as *fragments*, which go through the layers above as a batch, and interleave into the dense result at the end
(Giusti et al., "Fast image scanning with deep max-pooling convolutional neural networks", ICIP'13; MPF in Zlateski, Lee &
Seung, "ZNNi", SC'16).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np

from znni.arena import aligned_empty
from znni.errors import InvalidShape
from znni.layers import Layer, MaxPoolFragments, Recombine, Triple, by_x, triple
from znni.machine import this_machine
from znni.primitives import get


def max_pool_fragments(
    x: np.ndarray,
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Max-pool `x` at all prod(stride) offsets.

    Parameters
    ----------
    x : array of (batch, channel, z, y, x)
        Of any real type; taken as float32. Each axis must hold ``window - 1 + stride * i`` voxels.
    window : int or (z, y, x)
    stride : int or (z, y, x), optional
        By default the window. It may be smaller, as in window 2, 2, 2 with stride 1, 2, 2, or larger.
    threads : int, optional
        By default as many as this process may use cores.

    Returns
    -------
    ndarray of float32, (batch * prod(stride), channel, z', y', x')
        Fragment ``f = (fz * sy + fy) * sx + fx`` of batch element b is element ``b * prod(stride) + f``: the pooling of x
        from voxel (fz, fy, fx) on. A NaN in a window makes its maximum NaN.

    Raises
    ------
    InvalidShape
        Where x is no 5D array of real numbers, or its size leaves fragments of different sizes.

    See Also
    --------
    recombine_fragments : the way back to a dense result.
    """
    x = _float32(x, "max_pool_fragments")
    window = _triple(window, "window")
    stride = window if stride is None else _triple(stride, "stride")
    return _computed("cpu.mpf", MaxPoolFragments(window, stride), x, threads)


def recombine_fragments(
    y: np.ndarray,
    strides: int | Sequence[int] | Sequence[int | Sequence[int]],
    threads: int | None = None,
) -> np.ndarray:
    """Interleave fragments into one dense result.

    Parameters
    ----------
    y : array of (batch * fragments, channel, z, y, x)
        Of any real type; taken as float32. Fragments are in the order in which `max_pool_fragments`, applied once for each
        of `strides`, makes them.
    strides : int, (z, y, x), or a list of these
        Strides of the pooling, or of all of them, first one first. Three integers are one stride (z, y, x): for three
        poolings write three triples.
    threads : int, optional
        By default as many as this process may use cores.

    Returns
    -------
    ndarray of float32, (batch, channel, z * sz, y * sy, x * sx)
        Where s is the product of the strides. Voxel Z comes of fragments f1, f2, .. at voxel q where
        ``Z = f1 + s1 * (f2 + s2 * (.. + q))``, along each axis.

    Raises
    ------
    InvalidShape
        Where y is no 5D array of real numbers, or its batch is no multiple of the number of fragments.
    """
    return _computed("cpu.recombine", Recombine(_strides(strides)), _float32(y, "recombine_fragments"), threads)


def _computed(primitive: str, layer: Layer, x: np.ndarray, threads: int | None) -> np.ndarray:
    threads = this_machine().cores if threads is None else threads
    if threads < 1:
        raise InvalidShape(f"threads must be at least 1, got {threads}")
    out = np.empty(layer.output_shape(x.shape), np.float32)
    operator = get(primitive).prepare(layer, {}, x.shape, {}, threads)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    return out


def _float32(x, function: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 5 or x.dtype.kind not in "buif":
        raise InvalidShape(
            f"{function} takes an array of real numbers of shape (batch, channel, z, y, x), "
            f"got {by_x(x.shape) or 'a scalar'} of {x.dtype}"
        )
    return np.ascontiguousarray(x, dtype=np.float32)


def _several(value) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _triple(value, name: str) -> Triple:
    """Like `triple`, of any integers (NumPy's too) and of nothing that would have to be rounded."""
    try:
        return triple(tuple(map(index, value)) if _several(value) else index(value), name)
    except TypeError as error:
        raise InvalidShape(f"{name} must be one integer or three (z, y, x), got {value!r}") from error


def _strides(strides) -> tuple[Triple, ...]:
    levels = list(strides) if _several(strides) else [strides]
    if len(levels) == 3 and not any(map(_several, levels)):
        levels = [levels]
    if not levels:
        raise InvalidShape("strides must be a stride, or a list of at least one, got an empty list")
    return tuple(_triple(stride, "stride") for stride in levels)
