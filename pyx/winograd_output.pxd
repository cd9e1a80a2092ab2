# cython: language_level=3, cdivision=True
"""Winograd, stage 3: products of the points to output, bias, activation, store (`winograd.pyx`)."""

from winograd_strips cimport MAX_LANES, ZN_LANES, ZN_LINE_VECTORS, Axis, Geometry, Strip, ceiling, zn_wino

cdef extern from "lane_rows.h" nogil:
    ctypedef struct zn_vec:
        pass
    zn_vec zn_load(const float *p)
    void zn_rows_store(const float *source, long step, int count, zn_vec bias, int code, float a, float b,
                       float **row, long offset, int stride, const int *first, const int *last)

cdef extern from "winograd_lanes.h" nogil:
    void zn_wino_inverse(const zn_wino *w, const float *points, long slot, float *buffer, float *out,
                         const long *out_step)
    void zn_wino_finish(const float *source, const long *step, const int *count, long channels, zn_vec bias, int code,
                        float a, float b, float *to, const long *to_step)


# What is fused into the store.
cdef struct Finish:
    const float *bias
    int activation
    float a
    float b


cdef inline void points_to_strip(const Geometry *g, const float *products, const Strip *strip, const Finish *finish,
                                 float *out, float *staged, float *buffer) noexcept nogil:
    """All channels of a strip of output."""
    cdef const Axis *a = &g.axis[0]
    cdef float bias[MAX_LANES]
    cdef float *row[MAX_LANES]
    cdef int nothing[MAX_LANES]
    cdef int held[MAX_LANES]
    cdef long volume = <long> a[0].out * a[1].out * a[2].out, vector, tile, lane, channels, offset
    cdef long step[3]
    cdef long lies[3]
    cdef int kept[3]
    cdef int i, z, y
    cdef const float *source
    for i in range(3):
        kept[i] = <int> (strip.count * a[2].m) if i == 2 else a[i].m
        kept[i] = min(kept[i], ceiling(a[i].out - strip.target[i], a[i].dilation))
    offset = (<long> strip.target[0] * a[1].out + strip.target[1]) * a[2].out + strip.target[2]
    lies[2] = a[2].dilation * ZN_LANES
    lies[1] = <long> a[1].dilation * a[2].out * ZN_LANES
    lies[0] = <long> a[0].dilation * a[1].out * a[2].out * ZN_LANES
    step[2] = ZN_LANES
    step[1] = strip.count * a[2].m * ZN_LANES
    step[0] = a[1].m * step[1]
    for vector in range(g.out_vectors):
        channels = min(<long> ZN_LANES, g.out_channels - vector * ZN_LANES)
        if vector % ZN_LINE_VECTORS == 0:
            for tile in range(strip.count):
                for i in range(<int> min(<long> ZN_LINE_VECTORS, g.out_vectors - vector)):
                    zn_wino_inverse(&g.transform, products + tile * g.c_row + (vector + i) * ZN_LANES, g.slot, buffer,
                                    staged + i * a[0].m * step[0] + tile * a[2].m * ZN_LANES, step)
        for lane in range(ZN_LANES):
            bias[lane] = finish.bias[vector * ZN_LANES + lane] if lane < channels else 0.0
            row[lane] = out + (strip.batch * g.out_channels + vector * ZN_LANES + min(lane, channels - 1)) * volume
            nothing[lane] = 0
            held[lane] = kept[2] if lane < channels else 0
        source = staged + vector % ZN_LINE_VECTORS * a[0].m * step[0]
        if g.gives_blocked:
            zn_wino_finish(source, step, kept, channels, zn_load(bias), finish.activation, finish.a, finish.b,
                           out + ((strip.batch * g.out_vectors + vector) * volume + offset) * ZN_LANES, lies)
            continue
        for z in range(kept[0]):
            for y in range(kept[1]):
                zn_rows_store(source + z * step[0] + y * step[1], ZN_LANES, kept[2], zn_load(bias),
                              finish.activation, finish.a, finish.b, row,
                              offset + (z * lies[0] + y * lies[1]) // ZN_LANES, a[2].dilation, nothing, held)
