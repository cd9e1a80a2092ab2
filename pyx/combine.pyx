# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Tensors combined voxel by voxel, plain or blocked: sums, products, factors of channels; and joined along channels."""
from cython.parallel cimport prange

from array_ends cimport read_from, write_to
from combination cimport ZN_LANES, ZN_SOURCES, combine, shape_of, zn_combination


cdef extern from "concat.h" nogil:
    int ZN_STREAM_BYTES
    void zn_shift_lanes(const float *low, const float *high, float *out, long n, int shift, int keep)
    void zn_copy_run(float *to, const float *from_, long n, int stream)


cdef extern from "combine.h" nogil:
    int ZN_SUM, ZN_PRODUCT, ZN_SLOPE


cdef enum:
    CHUNK = 16384            # floats of an image that a thread takes at a time; a multiple of all ZN_LANES

LANES = ZN_LANES


cdef const float *factors_of(factors) except? NULL:
    """The first of a float32 vector of factors; NULL where there are none."""
    cdef const float[::1] vector
    if factors is None:
        return NULL
    vector = factors
    return &vector[0]


def add(tuple x, out, long channels, scale, bias, int code, float a, float b, long threads):
    """activation(scale (x1 + x2 + ..) + bias); scale and bias are vectors of `channels` factors, filled up to whole blocks
    where x is blocked, or None."""
    cdef zn_combination todo
    cdef long images = shape_of(&todo, out, channels), done = 0, count
    todo.op = ZN_SUM
    while done < len(x):     # more than a few at a time: their sum is in out, and is read again
        todo.count = 0
        if done:
            todo.x[0] = todo.out
            todo.count = 1
        count = min(<long> ZN_SOURCES - todo.count, len(x) - done)
        for array in x[done:done + count]:
            todo.x[todo.count] = read_from(array)
            todo.count += 1
        done += count
        todo.code, todo.a, todo.b = 0, 0, 0
        if done == len(x):
            todo.code, todo.a, todo.b = code, a, b
            todo.scale, todo.bias = factors_of(scale), factors_of(bias)
        combine(&todo, images, threads)


def multiply(x, y, out, long channels, int code, float a, float b, long threads):
    """activation(x y)."""
    cdef zn_combination todo
    cdef long images = shape_of(&todo, out, channels)
    todo.op, todo.count, todo.code, todo.a, todo.b = ZN_PRODUCT, 2, code, a, b
    todo.x[0], todo.x[1] = read_from(x), read_from(y)
    combine(&todo, images, threads)


def multiply_channels(x, y, out, long channels, int code, float a, float b, long threads):
    """activation(x y), y having one voxel."""
    cdef zn_combination todo
    cdef long images = shape_of(&todo, out, channels)
    todo.op, todo.count, todo.code, todo.a, todo.b = ZN_SUM, 1, code, a, b
    todo.x[0], todo.scale, todo.period = read_from(x), read_from(y), images
    combine(&todo, images, threads)


def prelu(x, out, long channels, slope, long threads):
    """x, or slope x where it is negative; slope is as `add` has its factors."""
    cdef zn_combination todo
    cdef long images = shape_of(&todo, out, channels)
    todo.op, todo.count, todo.code = ZN_SLOPE, 1, 0
    todo.x[0], todo.scale = read_from(x), factors_of(slope)
    combine(&todo, images, threads)


cdef void copy_runs(const float *x, float *out, long batch, long n, long pitch, bint stream, long threads) noexcept nogil:
    """`batch` runs of n floats, which are `pitch` apart in out."""
    cdef long chunks = (n + CHUNK - 1) // CHUNK, job, first
    for job in prange(batch * chunks, num_threads=threads, schedule="static"):
        first = job % chunks * CHUNK
        zn_copy_run(out + job // chunks * pitch + first, x + job // chunks * n + first, min(<long> CHUNK, n - first), stream)


cdef void copy_lanes(const float *x, float *out, long batch, long blocks, long out_blocks, long voxels, long channels,
                     long offset, long threads) noexcept nogil:
    """`channels` of x to those of out from `offset` on, which is not the first of a block."""
    cdef long first_block = offset // ZN_LANES, touched = (offset + channels - 1) // ZN_LANES - first_block + 1
    cdef int shift = <int> (ZN_LANES - offset % ZN_LANES)
    cdef long step = CHUNK // ZN_LANES, chunks = (voxels + step - 1) // step
    cdef long job, image, k, first, at
    cdef const float *element
    cdef const float *low
    cdef const float *high
    for job in prange(batch * touched * chunks, num_threads=threads, schedule="static"):
        image, first = job // chunks, job % chunks * step
        k = image % touched                  # of its lanes, the last of x's block k - 1 and the first of block k
        element = x + (image // touched * blocks * voxels + first) * ZN_LANES
        low, high = NULL, NULL
        if k > 0:
            low = element + (k - 1) * voxels * ZN_LANES
        if k < blocks:
            high = element + k * voxels * ZN_LANES
        at = (image // touched * out_blocks + first_block + k) * voxels + first
        zn_shift_lanes(low, high, out + at * ZN_LANES, min(step, voxels - first), shift, k == 0)


def concat(tuple x, tuple channels, out, long threads):
    """Tensors of `channels` channels each, one after another; all plain, or all blocked."""
    cdef float *to = write_to(out)
    cdef bint blocked = out.ndim == 6, stream = out.nbytes >= ZN_STREAM_BYTES
    cdef long batch = out.shape[0], voxels = out.shape[2] * out.shape[3] * out.shape[4], out_units = out.shape[1]
    cdef long lanes = ZN_LANES if blocked else 1, offset = 0, own, units
    cdef const float *source
    for array, count in zip(x, channels):
        source = read_from(array)
        own, units = count, array.shape[1]
        with nogil:
            if offset % lanes:
                copy_lanes(source, to, batch, units, out_units, voxels, own, offset, threads)
            else:
                copy_runs(source, to + offset * voxels, batch, units * voxels * lanes, out_units * voxels * lanes, stream,
                          threads)
        offset += own
