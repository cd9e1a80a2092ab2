"""All memory of a program as one allocation, each buffer at an offset that follows from its lifetime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Buffers start at multiples of this: a cache line, and the widest SIMD vector.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """Offsets of buffers (in the order given) within an arena of `total_bytes`."""

    offsets: tuple[int, ...]
    total_bytes: int


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def aligned_empty(nbytes: int) -> np.ndarray:
    """An uninitialised uint8 array of `nbytes` that starts at a multiple of the alignment."""
    raw = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + nbytes]


def peak_live_bytes(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at once: no layout can be smaller."""
    steps = {b.first for b in buffers}
    return max((sum(aligned(b.nbytes) for b in buffers if b.first <= s <= b.last) for s in steps), default=0)


def layout(buffers: Sequence[Buffer]) -> Layout:
    """Offsets for `buffers`, no two of which overlap in both time and space.

    For a chain, where buffers die in the order of their birth, placing them at alternate ends of the arena reaches the lower
    bound `peak_live_bytes`; for a graph, largest first is tried as well, and the smaller layout wins.
    """
    bound = peak_live_bytes(buffers)
    by_birth = sorted(range(len(buffers)), key=lambda i: (buffers[i].first, -buffers[i].last))
    best = _place(buffers, by_birth, bound, alternate=True)
    if best.total_bytes > bound:
        by_size = sorted(range(len(buffers)), key=lambda i: -buffers[i].nbytes)
        best = min(best, _place(buffers, by_size, bound, alternate=False), key=lambda at: at.total_bytes)
    return best


def _place(buffers: Sequence[Buffer], order: Sequence[int], bound: int, alternate: bool) -> Layout:
    placed: dict[int, int] = {}
    at_end = False
    for i in order:
        b = buffers[i]
        size = aligned(b.nbytes)
        busy = sorted(
            (placed[j], placed[j] + aligned(buffers[j].nbytes))
            for j in placed
            if buffers[j].first <= b.last and b.first <= buffers[j].last
        )
        gaps, floor = [], 0
        for start, end in busy:
            if start - floor >= size:
                gaps.append((floor, start))
            floor = max(floor, end)
        if bound - floor >= size:
            gaps.append((floor, bound))
        if not gaps:
            placed[i] = floor
        elif alternate and at_end and b.last > b.first:
            placed[i] = gaps[-1][1] - size
        else:
            placed[i] = gaps[0][0]
        if b.last > b.first:
            at_end = not at_end
    total = max((placed[i] + aligned(buffers[i].nbytes) for i in placed), default=0)
    return Layout(tuple(placed[i] for i in range(len(buffers))), total)
