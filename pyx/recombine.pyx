# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Recombining fragments into the dense result that they are the sub-lattices of: all at once, or some of them at a time.

Rows of the result are written in an order in which fragments are read as they lie: first all rows at one offset (z, y) below
the step, which come of the same fragments. Into each row go the fragments, among those there are, that hold voxels of it.
"""
from cython.parallel cimport prange

from array_ends cimport read_from


cdef extern from "recombine.h" nogil:
    int ZN_LANES
    int ZN_STREAM_BYTES
    int ZN_ROW_STAGE
    void zn_recombine_row(float *dst, const float **rows, const long *at, long count, long n, long step)
    void zn_recombine_lanes(float *dst, long pitch, int channels, const float **rows, const long *at, long count, long n,
                            long step)
    void zn_recombine_stream(float *dst, long pitch, int channels, int lanes, const float **rows, const long *at, long n,
                             long step)
    void zn_row_prefetch(const float *dst, long pitch, int channels, long n)
    void zn_stream_end()


cdef enum:
    MEMBERS = 64             # fragments that go into a row together


cdef struct Fragments:
    long channels, blocks    # blocks of as many channels as `lanes`
    long lanes               # 1 where the fragments are plain
    long qz, qy, qx          # voxels of a fragment
    long sz, sy, sx          # voxels of the result for each of them
    const long *at_z         # what an offset along an axis adds to the number of the fragment it is of
    const long *at_y
    const long *at_x
    long first, last         # fragments that there are, counted over (batch, fragment)
    bint stream              # rows that are written as a whole go past the caches


cdef long members(const Fragments *f, long row, long start, long *at) noexcept nogil:
    """Offsets along x, from `start` on, of the fragments that hold voxels of a row; `row` is the number of the fragment
    that offset 0 would be of."""
    cdef long count = 0, x
    for x in range(start, f.sx):
        if f.first <= row + f.at_x[x] < f.last:
            at[count] = x
            count += 1
            if count == MEMBERS:
                break
    return count


cdef void fill_rows(const Fragments *f, const float *x, float *out, long image, long oz, long oy, const long *at,
                    long count, long first, long last) noexcept nogil:
    """Rows at offsets (oz, oy), `first` to `last` counted over (z, y) of the fragments, of the fragments at `at`."""
    cdef long ny = f.qy * f.sy, nx = f.qx * f.sx, pitch = f.qz * f.sz * ny * nx, row = f.qx * f.lanes
    cdef long fragment = f.blocks * f.qz * f.qy * row, block = image % f.blocks, batch = image // f.blocks
    cdef long number = batch * (f.sz * f.sy * f.sx) + f.at_z[oz] + f.at_y[oy] - f.first, q, i
    cdef int channels = <int> min(f.lanes, f.channels - block * f.lanes)
    cdef const float *base = x + block * f.qz * f.qy * row
    cdef const float *rows[MEMBERS]
    cdef float *target
    out += (batch * f.channels + block * f.lanes) * pitch
    for q in range(first, last):
        target = out + ((q // f.qy * f.sz + oz) * ny + q % f.qy * f.sy + oy) * nx
        for i in range(count):
            rows[i] = base + (number + f.at_x[at[i]]) * fragment + q * row
        if f.stream and count == f.sx:
            zn_recombine_stream(target, pitch, channels, <int> f.lanes, rows, at, f.qx, f.sx)
            continue
        if q % f.qy + 1 < f.qy:
            zn_row_prefetch(target + f.sy * nx, pitch, channels, nx)
        if f.lanes == 1:
            zn_recombine_row(target, rows, at, count, f.qx, f.sx)
        else:
            zn_recombine_lanes(target, pitch, channels, rows, at, count, f.qx, f.sx)


cdef void recombine_rows(const Fragments *f, const float *x, float *out, long first, long last) noexcept nogil:
    """Rows of fragments `first` to `last`, counted over (batch, block of channels, z, y), of all fragments."""
    cdef long rows = f.qz * f.qy, image, start, end, oz, oy, count, ox, number
    cdef long[MEMBERS] at
    while first < last:
        image, start = first // rows, first % rows
        end = min(rows, start + last - first)
        for oz in range(f.sz):
            for oy in range(f.sy):
                number = image // f.blocks * (f.sz * f.sy * f.sx) + f.at_z[oz] + f.at_y[oy]
                ox = 0
                while ox < f.sx:
                    count = members(f, number, ox, at)
                    if not count:
                        break
                    fill_rows(f, x, out, image, oz, oy, at, count, start, end)
                    ox = at[count - 1] + 1
        first += end - start
    if f.stream:
        zn_stream_end()


def recombine(x, float[:, :, :, :, ::1] out, const long[::1] table, steps, long first, long threads):
    """Interleave fragments into a dense result, of which other voxels stay as they are.

    `x` (plain or blocked) holds fragments from number `first` on, counted over (batch, fragment). `steps` (z, y, x) are
    result voxels for each voxel of a fragment; entry o of the part of `table` that belongs to an axis (first z, then y,
    then x) is what an offset of o along it adds to the number of the fragment it comes from.
    """
    cdef Fragments f
    cdef const float *source = read_from(x)
    cdef long before, rows, part, number
    f.lanes = ZN_LANES if x.ndim == 6 else 1
    f.channels, f.blocks = out.shape[1], x.shape[1]
    f.qz, f.qy, f.qx = x.shape[2:5]
    f.sz, f.sy, f.sx = steps
    f.at_z = &table[0]
    f.at_y = f.at_z + f.sz
    f.at_x = f.at_y + f.sy
    f.first, f.last = first, first + x.shape[0]
    f.stream = out.nbytes >= ZN_STREAM_BYTES and f.sx <= min(MEMBERS, ZN_ROW_STAGE // f.lanes)
    number = f.sz * f.sy * f.sx  # of fragments to a batch element
    rows = f.blocks * f.qz * f.qy  # of a batch element; only of some are there fragments
    before = f.first // number * rows
    rows *= (f.last - 1) // number + 1 - f.first // number
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        recombine_rows(&f, source, &out[0, 0, 0, 0, 0], before + rows * part // threads,
                       before + rows * (part + 1) // threads)
