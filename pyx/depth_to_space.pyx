# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Channels spread over voxels: each row of the result takes turns between as many rows of the input as its factor says."""
from cython.parallel cimport prange

from array_ends cimport read_from, write_to


cdef extern from "depth_to_space.h" nogil:
    int ZN_LANES
    int ZN_STREAM_BYTES
    void zn_spread_lanes(const float *x, float *out, long channel, long real, long block, long n, long factor, long start,
                         bint stream)
    void zn_spread(const float *x, float *out, long n, long factor, long start)
    void zn_spread_pair(const float *a, const float *b, float *out, long n)
    void zn_stream_end()


def depth_to_space(x, out, factor, low, long channels, long threads):
    """Channel (rz, ry, rx, c) of x to voxels q factor + r - low of channel c; both arrays plain, or both blocked."""
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef bint blocked = x.ndim == 6
    cdef long lanes = ZN_LANES if blocked else 1, blocks = out.shape[1], given = x.shape[1]
    cdef long nz = x.shape[2], ny = x.shape[3], nx = x.shape[4], oz = out.shape[2], oy = out.shape[3], ox = out.shape[4]
    cdef long fz, fy, fx, lz, ly, lx, rows = out.shape[0] * blocks * oz * oy, part, r, image, z, y, f, phase, start, first
    cdef bint stream = blocked and out.nbytes >= ZN_STREAM_BYTES and <size_t> target % (lanes * sizeof(float)) == 0
    cdef const float *row
    fz, fy, fx = factor
    lz, ly, lx = low
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        for r in range(rows * part // threads, rows * (part + 1) // threads):
            image = r // (oz * oy)
            z = r // oy % oz + lz
            y = r % oy + ly
            for f in range(fx):  # voxels `start`, `start` + fx, .. are of phase f, input voxels `first`, `first` + 1, ..
                start = ((f - lx) % fx + fx) % fx
                first = (start + lx) // fx
                phase = (z % fz * fy + y % fy) * fx + f
                row = source + image // blocks * given * nz * ny * nx * lanes
                row = row + ((z // fz * ny + y // fy) * nx + first) * lanes
                if blocked:
                    zn_spread_lanes(row, target + r * ox * lanes, phase * channels + image % blocks * lanes,
                                    min(lanes, channels - image % blocks * lanes), nz * ny * nx * lanes, ox, fx, start, stream)
                    continue
                row = row + (phase * channels + image % blocks) * nz * ny * nx
                if fx == 2 and lx % 2 == 0:
                    zn_spread_pair(row, row + channels * nz * ny * nx, target + r * ox, ox)
                    break
                zn_spread(row, target + r * ox, ox, fx, start)
        if stream:
            zn_stream_end()
