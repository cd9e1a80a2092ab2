# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Padding, slicing and resizing, by tables that say which input voxel each output voxel comes of, axis by axis.

In a blocked array a voxel is a vector of channels. Rows of the result are cut evenly over the threads.
"""
from cython.parallel cimport prange
from libc.string cimport memcpy

from array_ends cimport read_from, write_to


cdef extern from "simd.h" nogil:
    int ZN_LANES


cdef void gather_row(const float *x, float *out, const int *at, long n, long lanes, float fill, long real,
                     long lane, long block) noexcept nogil:
    """Voxels of a row, `fill` where there is none (x is NULL, or `at` negative); lanes from `real` on become 0.

    Blocked ones start at `lane` of their block; the rest is in the next one, `block` floats on.
    """
    cdef long i, j
    if lanes == 1:
        for i in range(n):
            out[i] = x[at[i]] if x and at[i] >= 0 else fill
        return
    for i in range(n):
        if x != NULL and at[i] >= 0 and lane != 0:
            for j in range(real):
                out[i * lanes + j] = x[at[i] * lanes + lane + j + (block - lanes if lane + j >= lanes else 0)]
        elif x and at[i] >= 0:
            memcpy(out + i * lanes, x + at[i] * lanes, lanes * sizeof(float))
        else:
            for j in range(lanes):
                out[i * lanes + j] = fill
        for j in range(real, lanes):
            out[i * lanes + j] = 0


def gather(x, out, const int[::1] zs, const int[::1] ys, const int[::1] xs, long channels, long skip, float fill, long threads):
    """out[b, c, z, y, x] = x[b, skip + c, zs[z], ys[y], xs[x]], or `fill` where an index is negative.

    Both arrays plain, or both blocked; `channels` are those of the result, which is fastest where `skip` fills blocks.
    """
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef long lanes = ZN_LANES if x.ndim == 6 else 1, blocks = out.shape[1], given = x.shape[1]
    cdef long ny = x.shape[3], nx = x.shape[4], nz = x.shape[2], oz = zs.shape[0], oy = ys.shape[0], ox = xs.shape[0]
    cdef long rows = out.shape[0] * blocks * oz * oy, r, image, z, y
    cdef const float *row
    cdef long lane = skip % lanes, block = nz * ny * nx * lanes
    skip = skip // lanes
    for r in prange(rows, nogil=True, num_threads=threads, schedule="static"):
        image = r // (oz * oy)
        z = zs[r // oy % oz]
        y = ys[r % oy]
        row = NULL
        if z >= 0 and y >= 0:
            row = source + (((image // blocks * given + skip + image % blocks) * nz + z) * ny + y) * nx * lanes
        gather_row(row, target + r * ox * lanes, &xs[0], ox, lanes, fill,
                   min(lanes, channels - image % blocks * lanes), lane, block)


cdef void linear_row(const float *a, const float *b, const float *c, const float *d, float pz, float py, float *mixed,
                     long nx, float *out, const int *first, const int *second, const float *part, long ox,
                     long lanes) noexcept nogil:
    """Mixes four rows of the input into one, then that along x."""
    cdef long i, j
    cdef float u, v, p
    cdef const float *one
    cdef const float *two
    for i in range(nx * lanes):
        u = a[i] + (b[i] - a[i]) * py
        v = c[i] + (d[i] - c[i]) * py
        mixed[i] = u + (v - u) * pz
    if lanes == 1:
        for i in range(ox):
            out[i] = mixed[first[i]] + (mixed[second[i]] - mixed[first[i]]) * part[i]
        return
    for i in range(ox):
        one = mixed + first[i] * lanes
        two = mixed + second[i] * lanes
        p = part[i]
        for j in range(lanes):
            out[i * lanes + j] = one[j] + (two[j] - one[j]) * p


def linear(x, out, unsigned char[::1] workspace, const int[:, ::1] zs, const int[:, ::1] ys, const int[:, ::1] xs,
           const float[::1] pz, const float[::1] py, const float[::1] px, long threads):
    """Of each voxel, the two input voxels around it along each axis (rows of the tables), the second weighed by `p`.

    Both arrays plain, or both blocked. Workspace: a row of the input for each thread.
    """
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef float *scratch = <float *> &workspace[0]
    cdef long lanes = ZN_LANES if x.ndim == 6 else 1, ny = x.shape[3], nx = x.shape[4], nz = x.shape[2]
    cdef long oz = zs.shape[1], oy = ys.shape[1], ox = xs.shape[1], row = nx * lanes
    cdef long rows = out.shape[0] * out.shape[1] * oz * oy, part, r, z, y
    cdef const float *image
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        for r in range(rows * part // threads, rows * (part + 1) // threads):
            image = source + r // (oz * oy) * nz * ny * row
            z = r // oy % oz
            y = r % oy
            linear_row(image + (zs[0, z] * ny + ys[0, y]) * row, image + (zs[0, z] * ny + ys[1, y]) * row,
                       image + (zs[1, z] * ny + ys[0, y]) * row, image + (zs[1, z] * ny + ys[1, y]) * row, pz[z], py[y],
                       scratch + part * row, nx, target + r * ox * lanes, &xs[0, 0], &xs[1, 0], &px[0], ox, lanes)
