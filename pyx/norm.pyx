# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Normalisation by the mean and deviation of the input itself, plain or blocked.

The workspace holds, in doubles, means and sums of squares of all chunks of all images (channels, or blocks of them); the
chunks are the same for any number of threads, and so is the result. Then, in floats, three factors for each channel.
"""
from cython.parallel cimport prange
from libc.math cimport sqrt

from array_ends cimport read_from
from combination cimport ZN_CENTRED, ZN_LANES, combine, shape_of, zn_combination


cdef extern from "norm.h" nogil:
    void zn_chunk_moments(const float *x, long n, int blocked, double *means, double *squares)
    void zn_merge_moments(double *means, double *squares, long count, long step, double n, double n_last)


cdef enum:
    CHUNK = 16384            # floats of an image whose moments are taken together; a multiple of all ZN_LANES


cdef struct Moments:
    double *means            # lanes of them for each chunk of each image; of a whole image, in its first
    double *squares
    long images, chunks, lanes


cdef long chunks_of(long run) noexcept nogil:
    return (run + CHUNK - 1) // CHUNK


def workspace_bytes(tuple shape):
    """Bytes of workspace for an array of `shape`, plain or blocked."""
    cdef long lanes = ZN_LANES if len(shape) == 6 else 1
    cdef long run = shape[2] * shape[3] * shape[4] * lanes, images = shape[0] * shape[1]
    return images * lanes * (chunks_of(run) * 2 * sizeof(double) + 3 * sizeof(float))


cdef void moments_of(const float *x, long run, const Moments *m, long threads) noexcept nogil:
    """Of all chunks, then of all images."""
    cdef long job, image, first, at, pitch = m.chunks * m.lanes, last = run - (m.chunks - 1) * CHUNK
    for job in prange(m.images * m.chunks, num_threads=threads, schedule="static"):
        image, first = job // m.chunks, job % m.chunks * CHUNK
        zn_chunk_moments(x + image * run + first, min(<long> CHUNK, run - first), m.lanes > 1, m.means + job * m.lanes,
                         m.squares + job * m.lanes)
    for job in prange(m.images * m.lanes, num_threads=threads, schedule="static"):
        at = job // m.lanes * pitch + job % m.lanes
        zn_merge_moments(m.means + at, m.squares + at, m.chunks, m.lanes, <double> (CHUNK // m.lanes),
                         <double> (last // m.lanes))


cdef long place(const Moments *m, long units, long element, long channel) noexcept nogil:
    """Where a channel of a batch element has its moments."""
    return (element * units + channel // m.lanes) * m.chunks * m.lanes + channel % m.lanes


cdef void merge_group(const Moments *m, long units, long element, long elements, long channel, long channels,
                      double voxels) noexcept nogil:
    """Makes the moments of so many batch elements and channels, from those on, those of all together."""
    cdef long b, c, at
    cdef double count = <double> (elements * channels), mean = 0, square = 0, off
    cdef double origin = m.means[place(m, units, element, channel)]
    for b in range(element, element + elements):
        for c in range(channel, channel + channels):
            mean = mean + (m.means[place(m, units, b, c)] - origin) / count
    mean = mean + origin
    for b in range(element, element + elements):
        for c in range(channel, channel + channels):
            at = place(m, units, b, c)
            off = m.means[at] - mean
            square = square + m.squares[at] + voxels * off * off
    for b in range(element, element + elements):
        for c in range(channel, channel + channels):
            at = place(m, units, b, c)
            m.means[at] = mean
            m.squares[at] = square / count   # as if of one channel: a sum over its voxels


cdef void factors_of(const Moments *m, long channels, long units, double voxels, double epsilon, const float *scale,
                     const float *bias, float *factor, float *offset, float *shift) noexcept nogil:
    """activation(factor (x - shift) + offset): shift is the mean rounded, whose rest offset has."""
    cdef long image, lane, channel, at
    cdef double mean, gain
    for image in range(m.images):
        for lane in range(m.lanes):
            channel = image % units * m.lanes + lane
            at = image * m.lanes + lane
            factor[at] = offset[at] = shift[at] = 0
            if channel < channels:
                mean = m.means[image * m.chunks * m.lanes + lane]
                gain = scale[channel] / sqrt(m.squares[image * m.chunks * m.lanes + lane] / voxels + epsilon)
                shift[at] = <float> mean
                factor[at] = <float> gain
                offset[at] = <float> (bias[channel] - (mean - shift[at]) * gain)


def norm(x, out, unsigned char[::1] workspace, long channels, bint over_batch, long group, double epsilon,
         const float[::1] scale, const float[::1] bias, int code, float a, float b, long threads):
    """activation(scale (x - mean) / sqrt(variance + epsilon) + bias); statistics of `group` adjacent channels of a batch
    element or, where `over_batch`, of all of them."""
    cdef zn_combination todo
    cdef Moments m
    cdef long units = out.shape[1], elements = out.shape[0] if over_batch else 1, element, channel
    cdef long sets = out.shape[0] // elements, groups = channels // group
    m.images = shape_of(&todo, out, channels)
    m.lanes, m.chunks = todo.lanes, chunks_of(todo.run)
    cdef long values = m.images * m.lanes
    cdef double voxels = <double> (todo.run // todo.lanes)
    m.means = <double *> &workspace[0]
    m.squares = m.means + values * m.chunks
    cdef float *factor = <float *> (m.squares + values * m.chunks)
    todo.op, todo.count, todo.code, todo.a, todo.b, todo.period = ZN_CENTRED, 1, code, a, b, m.images
    todo.x[0] = read_from(x)
    todo.scale, todo.bias, todo.shift = factor, factor + values, factor + 2 * values
    with nogil:
        moments_of(todo.x[0], todo.run, &m, threads)
        for element in range(sets):
            for channel in range(groups):
                merge_group(&m, units, element * elements, elements, channel * group, group, voxels)
        factors_of(&m, channels, units, voxels, epsilon, &scale[0], &bias[0], factor, factor + values, factor + 2 * values)
    combine(&todo, m.images, threads)
