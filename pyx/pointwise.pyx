# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is computed voxel by voxel: softmax and maxout over channels, and activations."""
from cython.parallel cimport prange

from array_ends cimport read_from


cdef extern from "pointwise.h" nogil:
    int ZN_GROUP
    void zn_softmax(const float *x, float *out, long channels, long voxels, long first, long last)
    void zn_bias_activate(float *y, long n, float bias, int code, float a, float b)


cdef extern from "relayout.h" nogil:
    int ZN_LANES
    void zn_to_plain(const float *x, float *to, long pitch, int channels, long first, long last)


cdef extern from "maximum.h" nogil:
    void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk)


cdef enum:
    CHUNK = 4096             # voxels of maxout and activations that are done together


cdef void softmax_group(const float *x, float *out, long channels, long voxels, long first, bint blocked) noexcept nogil:
    """A group of voxels from `first` on, of one batch element; blocked ones are made plain in `out`, then worked on there."""
    cdef long last = min(first + ZN_GROUP, voxels), block
    if blocked:
        for block in range((channels + ZN_LANES - 1) // ZN_LANES):
            zn_to_plain(x + block * voxels * ZN_LANES, out + block * ZN_LANES * voxels + first, voxels,
                        <int> min(<long> ZN_LANES, channels - block * ZN_LANES), first, last)
        x = out
    zn_softmax(x, out, channels, voxels, first, last)


def softmax(x, float[:, :, :, :, ::1] out, long threads):
    """exp(x_c - max x) / sum_c exp(x_c - max x), voxel by voxel, of a plain or blocked x."""
    cdef const float *source = read_from(x)
    cdef bint blocked = x.ndim == 6
    cdef long channels = out.shape[1], voxels = out.shape[2] * out.shape[3] * out.shape[4]
    cdef long floats = x.shape[1] * voxels * (ZN_LANES if blocked else 1)
    cdef long groups = (voxels + ZN_GROUP - 1) // ZN_GROUP, jobs = out.shape[0] * groups, job
    for job in prange(jobs, nogil=True, num_threads=threads, schedule="static"):
        softmax_group(source + job // groups * floats, &out[job // groups, 0, 0, 0, 0], channels, voxels,
                      job % groups * ZN_GROUP, blocked)


def maxout(const float[:, :, :, :, ::1] x, float[:, :, :, :, ::1] out, long threads):
    """Maximum over groups of adjacent channels, as many as x has for each of out."""
    cdef long group = x.shape[1] // out.shape[1], voxels = x.shape[2] * x.shape[3] * x.shape[4]
    cdef long chunks = (voxels + CHUNK - 1) // CHUNK, images = out.shape[0] * out.shape[1], job, image, first
    for job in prange(images * chunks, nogil=True, num_threads=threads, schedule="static"):
        image = job // chunks
        first = job % chunks * CHUNK
        zn_max_taps(&out[0, 0, 0, 0, 0] + image * voxels + first, &x[0, 0, 0, 0, 0] + image * group * voxels + first,
                    min(CHUNK, voxels - first), 1, 0, group, voxels)


def activate(float[::1] y, int code, float a, float b, long threads):
    """The activation of that code (`znni.layers.Activation`), in place."""
    cdef long n = y.shape[0], chunks = (n + CHUNK - 1) // CHUNK, job
    for job in prange(chunks, nogil=True, num_threads=threads, schedule="static"):
        zn_bias_activate(&y[0] + job * CHUNK, min(CHUNK, n - job * CHUNK), 0.0, code, a, b)
