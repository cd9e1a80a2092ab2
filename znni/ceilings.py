"""What a machine can do at most: FLOP/s of multiply-adds in registers, and bytes/s of STREAM's triad (McCalpin, 1995).

All threads work at once, each notes when it finished each small chunk, and the ceiling is the best rate of all together
over any few milliseconds: a thread that is interrupted for a while does not spoil the figure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from znni._kernels import ceilings as kernels
from znni.process_memory import available_bytes

#: Seconds that each of the two measurements lasts, beside filling its arrays.
_SECONDS = 0.15
#: The rate is the best over any stretch of so many seconds.
_WINDOW_S = 0.004
#: Chunks of about 10 microseconds: some hundred of them in a window.
_ROUNDS = 5000
_ELEMENTS = 1 << 15
_MOST_CHUNKS = 50_000
#: The triad's three arrays are each as large as the last-level cache, within these bounds.
_LEAST_ARRAY_BYTES, _MOST_ARRAY_BYTES = 16 << 20, 256 << 20
#: Below this share of the processor time that its threads could have had, a measurement was disturbed by other work.
_UNDISTURBED = 0.9


@dataclass(frozen=True)
class Ceilings:
    """Peak rates of `threads` threads together. `disturbed`: other work took processor time, the true rates may be
    higher."""

    threads: int
    flop_per_s: float
    bytes_per_s: float
    disturbed: bool


def measure_ceilings(threads: int, l3_bytes: int = 0) -> Ceilings:
    """Measure both ceilings of `threads` threads, in about 0.3 s beside filling three arrays of `l3_bytes` each."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    stamps, chunks = np.zeros((threads, _MOST_CHUNKS)), np.zeros(threads, np.int64)
    results = np.zeros(threads)

    flop_share = _busy_share(threads, lambda: kernels.multiply_adds(_ROUNDS, _SECONDS, stamps, chunks, results))
    flop_per_s = peak_rate(stamps, chunks, _ROUNDS * kernels.flop_per_round())

    array_bytes = min(max(l3_bytes, _LEAST_ARRAY_BYTES), _MOST_ARRAY_BYTES, available_bytes() // 8)
    row = max(_ELEMENTS, array_bytes // 4 // threads)
    a, b, c = (np.empty((threads, row), np.float32) for _ in range(3))
    for array in (a, b, c):
        kernels.fill(array, 1.0)
    byte_share = _busy_share(threads, lambda: kernels.triad(a, b, c, 3.0, _ELEMENTS, _SECONDS, stamps, chunks))
    bytes_per_s = peak_rate(stamps, chunks, 12 * _ELEMENTS)
    return Ceilings(threads, flop_per_s, bytes_per_s, disturbed=min(flop_share, byte_share) < _UNDISTURBED)


def peak_rate(stamps: np.ndarray, chunks: np.ndarray, work: float, window_s: float = _WINDOW_S) -> float:
    """The most work per second that all threads did together over any stretch of `window_s`.

    Parameters
    ----------
    stamps : float64 array (threads, ..)
        Row t: when thread t began, then when it finished each chunk (seconds).
    chunks : int array (threads,)
        How many chunks each thread finished.
    work : float
        What one chunk is.
    """
    start = min(row[0] for row in stamps)
    ends = [row[: count + 1] - start for row, count in zip(stamps, chunks, strict=True)]
    last = max(row[-1] for row in ends)
    if last <= window_s:
        return sum(int(count) for count in chunks) * work / last
    grid = np.arange(0.0, last, window_s / 8)
    done = sum(np.interp(grid, row, work * np.arange(len(row))) for row in ends)
    return float((done[8:] - done[:-8]).max() / window_s)


def _busy_share(threads: int, work) -> float:
    """Run `work`; the processor time that this process got, as a share of what `threads` threads could have had."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - processor) / (threads * (time.perf_counter() - wall))
