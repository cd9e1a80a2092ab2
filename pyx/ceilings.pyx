# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Work of known size by which a machine's ceilings are measured: multiply-adds in registers, and STREAM's triad.

Every thread works by itself in small chunks and notes when each was done, so that the rate of all together can be taken where
none of them had been interrupted (`znni.machine`).
"""

from cython.parallel cimport prange

cdef extern from "ceilings.h" nogil:
    const int ZN_CHAINS
    const int ZN_LANES
    double zn_seconds()
    float zn_multiply_adds(long rounds)
    void zn_triad(float *a, const float *b, const float *c, float s, long n)


def flop_per_round():
    """Floating-point operations of one round of `multiply_adds`."""
    return 2 * ZN_CHAINS * ZN_LANES


cdef long _multiply_adds(long rounds, double seconds, double *stamps, long most, double *result) noexcept nogil:
    cdef double start = zn_seconds()
    cdef long i = 0
    stamps[0] = start
    result[0] = 0.0
    while i + 1 < most and stamps[i] - start < seconds:
        result[0] += zn_multiply_adds(rounds)
        i = i + 1
        stamps[i] = zn_seconds()
    return i


def multiply_adds(long rounds, double seconds, double[:, ::1] stamps, long[::1] chunks, double[::1] results):
    """Multiply-adds in registers for `seconds`, on one thread per row of `stamps`, in chunks of `rounds` rounds.

    Parameters
    ----------
    stamps : double array (threads, most)
        Row t becomes the time at which thread t began, and at which it finished each chunk.
    chunks : long array (threads,)
        Becomes the number of chunks that each thread did: it also ends after ``most - 1``.
    results : double array (threads,)
        What came out of the arithmetic: `flop_per_round` / 2 per chunk, once `rounds` are enough to converge.
    """
    cdef int t, threads = stamps.shape[0]
    with nogil:
        for t in prange(threads, num_threads=threads, schedule="static"):
            chunks[t] = _multiply_adds(rounds, seconds, &stamps[t, 0], stamps.shape[1], &results[t])


cdef long _triad(
    float *a, const float *b, const float *c, float s, long n, long size, double seconds, double *stamps, long most
) noexcept nogil:
    cdef double start = zn_seconds()
    cdef long i = 0, at = 0
    stamps[0] = start
    while i + 1 < most and stamps[i] - start < seconds:
        zn_triad(a + at, b + at, c + at, s, size)
        at = at + size if at + 2 * size <= n else 0
        i = i + 1
        stamps[i] = zn_seconds()
    return i


def triad(
    float[:, ::1] a, const float[:, ::1] b, const float[:, ::1] c, float s, long size, double seconds,
    double[:, ::1] stamps, long[::1] chunks
):
    """``a = b + s c`` for `seconds`, thread t on row t, over and over, in chunks of `size` elements (12 bytes moved each).

    `stamps` and `chunks` are as in `multiply_adds`.
    """
    cdef int t, threads = stamps.shape[0]
    cdef long n = a.shape[1]
    if not (a.shape[0] == b.shape[0] == c.shape[0] == threads and n == b.shape[1] == c.shape[1] and 1 <= size <= n):
        raise ValueError(f"triad takes three arrays of {threads} rows of at least {size} elements")
    with nogil:
        for t in prange(threads, num_threads=threads, schedule="static"):
            chunks[t] = _triad(&a[t, 0], &b[t, 0], &c[t, 0], s, n, size, seconds, &stamps[t, 0], stamps.shape[1])


def fill(float[:, ::1] a, float value):
    """Write `value` everywhere, thread t row t, so that each thread's row lies in memory near to it."""
    cdef int t, threads = a.shape[0]
    cdef long i, n = a.shape[1]
    with nogil:
        for t in prange(threads, num_threads=threads, schedule="static"):
            for i in range(n):
                a[t, i] = value
