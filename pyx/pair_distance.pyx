# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Affinities of pairs of voxels by the L1 distance of their embeddings, row by row."""
from cython.parallel cimport prange
from libc.math cimport fabsf


cdef void pair_row(const float *x, float *out, long channels, long voxels, long n, long apart, long first, long last,
                   float reach) noexcept nogil:
    """Voxels `first` to `last` of a row of `n`, with those `apart` floats on; the others become 0."""
    cdef long i, c
    cdef float near
    for i in range(n):
        out[i] = 0
    for c in range(channels):
        for i in range(first, last):
            out[i] += fabsf(x[c * voxels + i] - x[c * voxels + i + apart])
    for i in range(first, last):
        near = (reach - out[i]) / reach
        out[i] = 0 if near < 0 else near * near


def pair_distance(const float[:, :, :, :, ::1] x, float[:, :, :, :, ::1] out, const long[:, ::1] offsets, float margin,
                  long threads):
    """max(0, (2 margin - ||x_v - x_{v + offset}||_1) / (2 margin))^2 for each of `offsets`; 0 where that lies outside."""
    cdef long channels = x.shape[1], nz = x.shape[2], ny = x.shape[3], nx = x.shape[4], pairs = offsets.shape[0]
    cdef long rows = x.shape[0] * pairs * nz * ny, r, z, y, k, dz, dy, dx, first, last
    for r in prange(rows, nogil=True, num_threads=threads, schedule="static"):
        y = r % ny
        z = r // ny % nz
        k = r // (ny * nz) % pairs
        dz = offsets[k, 0]
        dy = offsets[k, 1]
        dx = offsets[k, 2]
        first = max(0, -dx)
        last = nx - max(0, dx)
        if not (0 <= z + dz < nz and 0 <= y + dy < ny):
            last = first
        pair_row(&x[0, 0, 0, 0, 0] + ((r // (ny * nz * pairs) * channels * nz + z) * ny + y) * nx,
                 &out[0, 0, 0, 0, 0] + r * nx, channels, nz * ny * nx, nx, (dz * ny + dy) * nx + dx, first, last, 2 * margin)
