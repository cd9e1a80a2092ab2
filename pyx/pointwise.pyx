# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is computed voxel by voxel: softmax and maxout over channels, and activations."""
from cython.parallel cimport prange


cdef extern from "pointwise.h" nogil:
    int ZN_GROUP
    void zn_softmax(const float *x, float *out, long channels, long voxels, long first, long last)
    void zn_bias_activate(float *y, long n, float bias, int code, float a, float b)


cdef extern from "maximum.h" nogil:
    void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk)


cdef enum:
    CHUNK = 4096             # voxels of maxout and activations that are done together


def softmax(const float[:, :, :, :, ::1] x, float[:, :, :, :, ::1] out, long threads):
    """exp(x_c - max x) / sum_c exp(x_c - max x), voxel by voxel."""
    cdef long channels = x.shape[1], voxels = x.shape[2] * x.shape[3] * x.shape[4]
    cdef long groups = (voxels + ZN_GROUP - 1) // ZN_GROUP, jobs = x.shape[0] * groups, job, b, first
    for job in prange(jobs, nogil=True, num_threads=threads, schedule="static"):
        b = job // groups
        first = job % groups * ZN_GROUP
        zn_softmax(&x[b, 0, 0, 0, 0], &out[b, 0, 0, 0, 0], channels, voxels, first, min(first + ZN_GROUP, voxels))


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
