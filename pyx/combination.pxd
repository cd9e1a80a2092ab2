# cython: language_level=3, cdivision=True
"""What is to be combined (combine.h), and all threads at work on it."""
from cython.parallel cimport prange

from array_ends cimport write_to


cdef extern from "combine.h" nogil:
    enum: ZN_LANES
    enum: ZN_SOURCES
    int ZN_SUM, ZN_PRODUCT, ZN_SLOPE, ZN_CENTRED

    ctypedef struct zn_combination:
        const float *x[16]
        float *out
        long count, run, lanes, channels
        const float *scale
        const float *bias
        const float *shift
        long period
        int op, code
        float a, b
        int stream

    void zn_combine(const zn_combination *todo, long image, long first, long last)
    bint zn_combine_streams(const float *out, long floats, long lanes)


cdef enum:
    COMBINE_CHUNK = 16384    # floats of an image that a thread takes at a time; a multiple of all ZN_LANES


cdef inline long shape_of(zn_combination *todo, out, long channels) except -1:
    """The images of `out`; sets what follows from its shape, and no factors, which would repeat with each batch element."""
    todo.out = write_to(out)
    todo.lanes = ZN_LANES if out.ndim == 6 else 1
    todo.run = out.shape[2] * out.shape[3] * out.shape[4] * todo.lanes
    todo.channels, todo.period = channels, out.shape[1]
    todo.scale = todo.bias = todo.shift = NULL
    todo.a = todo.b = 0
    cdef long images = out.shape[0] * out.shape[1]
    todo.stream = zn_combine_streams(todo.out, images * todo.run, todo.lanes)
    return images


cdef inline void combine_chunks(const zn_combination *todo, long images, long threads) noexcept nogil:
    cdef long chunks = (todo.run + COMBINE_CHUNK - 1) // COMBINE_CHUNK, job, first
    for job in prange(images * chunks, num_threads=threads, schedule="static"):
        first = job % chunks * COMBINE_CHUNK
        zn_combine(todo, job // chunks, first, min(<long> first + COMBINE_CHUNK, todo.run))


cdef inline void combine(const zn_combination *todo, long images, long threads) noexcept:
    """Writes all of `out`, without the interpreter's lock."""
    with nogil:
        combine_chunks(todo, images, threads)
