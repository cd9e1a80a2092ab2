# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Means over windows, and means and maxima over all voxels of a channel; of plain arrays and of blocked ones."""
from cython.parallel cimport prange

from array_ends cimport read_from, write_to


cdef extern from "means.h" nogil:
    int ZN_LANES
    void zn_reduce_run(const float *x, double *into, long n, long lanes, bint maximum)
    void zn_add_picked(float *to, const float *from_, long n, long step)


cdef enum:
    MOST_LANES = 16
    RUN = 4096               # voxels that are reduced before their result joins the others


cdef void window_row(const float *x, float *out, long plane, long line, long z0, long z1, long y0, long y1, long nx, long ox,
                     long wx, long sx, long px, long lanes, long whole) noexcept nogil:
    """A row of means over windows of a blocked array, whose voxels along z and y are given.

    Sums are divided by `whole`, or by the voxels of their window where that is 0.
    """
    cdef long i, j, z, y, k, first, last
    cdef float[MOST_LANES] total
    cdef float share
    cdef const float *at
    for i in range(ox):
        first = max(0, i * sx - px)
        last = min(nx, i * sx - px + wx)
        for j in range(lanes):
            total[j] = 0
        for z in range(z0, z1):
            for y in range(y0, y1):
                at = x + z * plane + y * line
                for k in range(first, last):
                    for j in range(lanes):
                        total[j] += at[k * lanes + j]
        share = whole if whole else (z1 - z0) * (y1 - y0) * (last - first)
        for j in range(lanes):
            out[i * lanes + j] = total[j] / share


cdef void plain_row(const float *x, float *out, long plane, long line, long z0, long z1, long y0, long y1, long nx, long ox,
                    long wx, long sx, long px, long whole) noexcept nogil:
    """What `window_row` does, of a plain array: all windows of the row at once, voxel by voxel of theirs."""
    cdef long i, z, y, k, first, last
    cdef float share
    for i in range(ox):
        out[i] = 0
    for z in range(z0, z1):
        for y in range(y0, y1):
            for k in range(wx):  # windows `first` to `last` have their voxel k on the input
                first = max(0, (px - k + sx - 1) // sx) if px > k else 0
                last = min(ox, (nx - 1 + px - k) // sx + 1) if nx + px > k else 0
                if first < last:
                    zn_add_picked(out + first, x + z * plane + y * line + first * sx + k - px, last - first, sx)
    for i in range(ox):
        share = whole
        if not whole:
            share = (z1 - z0) * (y1 - y0) * (min(nx, i * sx - px + wx) - max(0, i * sx - px))
        out[i] = out[i] / share


def avg_pool(x, out, window, stride, padding, bint count_padding, long threads):
    """Means over windows; both arrays plain, or both blocked."""
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef long lanes = ZN_LANES if x.ndim == 6 else 1
    cdef long nz = x.shape[2], ny = x.shape[3], nx = x.shape[4], oz = out.shape[2], oy = out.shape[3], ox = out.shape[4]
    cdef long wz, wy, wx, sz, sy, sx, pz, py, px, rows = out.shape[0] * out.shape[1] * oz * oy, r, z, y
    wz, wy, wx = window
    sz, sy, sx = stride
    pz, py, px = padding
    cdef long line = nx * lanes, whole = wz * wy * wx if count_padding else 0
    for r in prange(rows, nogil=True, num_threads=threads, schedule="static"):
        z = r // oy % oz * sz - pz
        y = r % oy * sy - py
        if lanes == 1:
            plain_row(source + r // (oz * oy) * nz * ny * line, target + r * ox, ny * line, line, max(0, z), min(nz, z + wz),
                      max(0, y), min(ny, y + wy), nx, ox, wx, sx, px, whole)
            continue
        window_row(source + r // (oz * oy) * nz * ny * line, target + r * ox * lanes, ny * line, line, max(0, z),
                   min(nz, z + wz), max(0, y), min(ny, y + wy), nx, ox, wx, sx, px, lanes, whole)


cdef void join_runs(const double *parts, float *out, long runs, long lanes, long voxels, bint maximum) noexcept nogil:
    """Runs, in order, to one value a lane."""
    cdef long i, j
    cdef double total
    for j in range(lanes):
        total = parts[j]
        for i in range(1, runs):
            if not maximum:
                total += parts[i * lanes + j]
            elif parts[i * lanes + j] > total or parts[i * lanes + j] != parts[i * lanes + j]:
                total = parts[i * lanes + j]
        out[j] = <float> (total if maximum else total / voxels)


def global_workspace_bytes(shape):
    """Bytes of workspace that `global_pool` needs for an array of that shape, plain or blocked."""
    runs = -(-shape[2] * shape[3] * shape[4] // RUN)
    return 8 * shape[0] * shape[1] * runs * (shape[5] if len(shape) == 6 else 1)


def global_pool(x, out, unsigned char[::1] workspace, bint maximum, long threads):
    """Mean or maximum over all voxels of each channel; both arrays plain, or both blocked."""
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef double *parts = <double *> &workspace[0]
    cdef long lanes = ZN_LANES if x.ndim == 6 else 1, voxels = x.shape[2] * x.shape[3] * x.shape[4]
    cdef long images = out.shape[0] * out.shape[1], runs = (voxels + RUN - 1) // RUN, job
    for job in prange(images * runs, nogil=True, num_threads=threads, schedule="static"):
        zn_reduce_run(source + (job // runs * voxels + job % runs * RUN) * lanes, parts + job * lanes,
                      min(RUN, voxels - job % runs * RUN) * lanes, lanes, maximum)
    for job in prange(images, nogil=True, num_threads=threads, schedule="static"):
        join_runs(parts + job * runs * lanes, target + job * lanes, runs, lanes, voxels, maximum)
