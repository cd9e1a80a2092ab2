# cython: language_level=3, cdivision=True
"""Winograd, stage 1: tiles of the input to points (`winograd.pyx`)."""

from libc.string cimport memset

from winograd_strips cimport MAX_LANES, ZN_LANES, ZN_LINE_VECTORS, Axis, Geometry, Strip, ceiling, zn_wino

cdef extern from "lane_rows.h" nogil:
    void zn_rows_load(const float **row, const float *last, long offset, const float *end, int count, int stride,
                      float *to, long step)
    void zn_rows_prefetch(const float **row, long offset, long floats)

cdef extern from "winograd_lanes.h" nogil:
    void zn_wino_forward(const zn_wino *w, const float *source, const long *step, float *buffer, float *points,
                         long slot)
    void zn_wino_prefetch(const zn_wino *w, const float *source, const long *step)
    void zn_wino_copy(const float *source, long step, long count, long ahead, float *to)


cdef inline void strip_to_points(const Geometry *g, const float *x, const Strip *strip, float *factors, float *staged,
                                 float *buffer) noexcept nogil:
    """The points of all channels of a strip."""
    cdef const Axis *a = &g.axis[0]
    cdef long vector, tile
    cdef long step[3]
    cdef long lies[3]
    cdef long length = a[2].n + (strip.count - 1) * a[2].m, apart, some
    cdef bint inside = True
    cdef int i
    cdef long needs
    cdef const float *source
    cdef const float *ahead
    lies[2] = a[2].dilation * ZN_LANES
    lies[1] = <long> a[1].dilation * a[2].size * ZN_LANES
    lies[0] = <long> a[0].dilation * a[1].size * a[2].size * ZN_LANES
    for i in range(3):
        needs = length if i == 2 else a[i].n
        inside = inside and strip.source[i] >= 0 and strip.source[i] + (needs - 1) * a[i].dilation < a[i].size
    if inside and g.takes_blocked:
        step[0], step[1], step[2] = lies[0], lies[1], lies[2]
        apart = <long> a[0].size * a[1].size * a[2].size * ZN_LANES
    else:
        step[2] = ZN_LANES
        step[1] = length * ZN_LANES
        step[0] = a[1].n * step[1]
        apart = a[0].n * step[0]
    vector = 0
    while vector < g.in_vectors:
        some = min(<long> ZN_LINE_VECTORS, g.in_vectors - vector)
        if inside and g.takes_blocked:
            source = x + ((strip.batch * g.in_vectors + vector) * a[0].size * a[1].size * a[2].size
                          + (<long> strip.source[0] * a[1].size + strip.source[1]) * a[2].size
                          + strip.source[2]) * ZN_LANES
            # the same voxels of the next channels, or the next voxels of the first channels
            ahead = source + some * apart
            if vector + some == g.in_vectors:
                ahead = source - vector * apart + strip.count * a[2].m * step[2]
        else:
            for i in range(some):
                stage(g, x, strip, vector + i, length, staged + i * apart)
            source = ahead = staged
        for tile in range(strip.count):
            for i in range(some):
                if inside and g.takes_blocked:
                    zn_wino_prefetch(&g.transform, ahead + i * apart + tile * a[2].m * step[2], step)
                zn_wino_forward(&g.transform, source + i * apart + tile * a[2].m * step[2], step, buffer,
                                factors + tile * g.a_row + (vector + i) * ZN_LANES, g.slot)
        vector += some


cdef inline void stage(const Geometry *g, const float *x, const Strip *strip, long vector, long length,
                       float *staged) noexcept nogil:
    """One vector of channels of a strip, zeros where it overhangs the input."""
    cdef const Axis *a = &g.axis[0]
    cdef const float *row[MAX_LANES]
    cdef long volume = <long> a[0].size * a[1].size * a[2].size, lane, z, y, offset
    cdef long d = a[2].dilation
    # samples from low to high - 1 of a row lie in the input
    cdef long low = max(0, ceiling(-strip.source[2], d))
    cdef long high = min(length, max(low, ceiling(a[2].size - strip.source[2], d)))
    cdef int iz, iy
    cdef const float *end = x + g.batch * g.in_channels * volume
    # floats to what is staged next: the same voxels of the next channels, or the next voxels of the first channels
    cdef long ahead = ZN_LINE_VECTORS * volume * ZN_LANES
    if vector + ZN_LINE_VECTORS >= g.in_vectors:
        ahead = -(vector // ZN_LINE_VECTORS) * ahead + strip.count * a[2].m * d * (ZN_LANES if g.takes_blocked else 1)
    low = min(low, high)
    for lane in range(ZN_LANES):
        row[lane] = x + (strip.batch * g.in_channels + min(vector * ZN_LANES + lane, g.in_channels - 1)) * volume
    for iz in range(a[0].n):
        z = strip.source[0] + iz * a[0].dilation
        for iy in range(a[1].n):
            y = strip.source[1] + iy * a[1].dilation
            if z < 0 or z >= a[0].size or y < 0 or y >= a[1].size or low == high:
                memset(staged, 0, length * ZN_LANES * sizeof(float))
                staged += length * ZN_LANES
                continue
            memset(staged, 0, low * ZN_LANES * sizeof(float))
            memset(staged + high * ZN_LANES, 0, (length - high) * ZN_LANES * sizeof(float))
            offset = (z * a[1].size + y) * a[2].size + strip.source[2] + low * d
            if not g.takes_blocked:
                zn_rows_prefetch(row, offset + ahead, (high - low) * d)
                zn_rows_load(row, row[ZN_LANES - 1], offset, end, <int> (high - low), <int> d,
                             staged + low * ZN_LANES, ZN_LANES)
            else:
                zn_wino_copy(x + ((strip.batch * g.in_vectors + vector) * volume + offset) * ZN_LANES, d * ZN_LANES,
                             high - low, ahead, staged + low * ZN_LANES)
            staged += length * ZN_LANES
