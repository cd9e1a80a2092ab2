# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Means over windows, and means and maxima over all voxels of a channel; of plain arrays and of blocked ones."""
from cython.parallel cimport prange

from array_ends cimport read_from, write_to


cdef extern from "simd.h" nogil:
    int ZN_LANES


cdef enum:
    MOST_LANES = 16
    RUN = 4096               # voxels that are reduced before their result joins the others


cdef void window_row(const float *x, float *out, long plane, long line, long z0, long z1, long y0, long y1, long nx, long ox,
                     long wx, long sx, long px, long lanes, long whole) noexcept nogil:
    """A row of means over windows, whose voxels along z and y are given; each divided by `whole`, or by its voxels if 0."""
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
        window_row(source + r // (oz * oy) * nz * ny * line, target + r * ox * lanes, ny * line, line, max(0, z),
                   min(nz, z + wz), max(0, y), min(ny, y + wy), nx, ox, wx, sx, px, lanes, whole)


cdef void reduce_run(const float *x, double *into, long voxels, long lanes, bint maximum) noexcept nogil:
    """The sum in double, or the maximum (NaN where there is one), of a run of voxels, lane by lane."""
    cdef double[MOST_LANES] total
    cdef double value
    cdef long i, j
    if maximum:
        for j in range(lanes):
            total[j] = x[j]
        for i in range(1, voxels):
            for j in range(lanes):
                value = x[i * lanes + j]
                total[j] = value if value > total[j] or value != value else total[j]
    elif lanes == 1:  # sums beside each other, which are vectors
        for j in range(MOST_LANES):
            total[j] = 0
        for i in range(voxels // MOST_LANES):
            for j in range(MOST_LANES):
                total[j] += x[i * MOST_LANES + j]
        for i in range(voxels // MOST_LANES * MOST_LANES, voxels):
            total[0] += x[i]
        for j in range(1, MOST_LANES):
            total[0] += total[j]
    else:
        for j in range(lanes):
            total[j] = 0
        for i in range(voxels):
            for j in range(lanes):
                total[j] += x[i * lanes + j]
    for j in range(lanes):
        into[j] = total[j]


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
        reduce_run(source + (job // runs * voxels + job % runs * RUN) * lanes, parts + job * lanes,
                   min(RUN, voxels - job % runs * RUN), lanes, maximum)
    for job in prange(images, nogil=True, num_threads=threads, schedule="static"):
        join_runs(parts + job * runs * lanes, target + job * lanes, runs, lanes, voxels, maximum)
