# cython: language_level=3, cdivision=True
"""Tiled FFT, stage 2: z transforms, matrix products and inverse z transforms of one column (`fft_tiled.pyx`)."""

from libc.string cimport memset

from lane_fft cimport (
    ZN_ALIKE,
    ZN_FEW_TAPS,
    ZN_LANES,
    ZN_POINT,
    zn_cgemm,
    zn_cgemm_panel,
    zn_cgemm_rows,
    zn_cgemm_width,
    zn_fft_lines,
    zn_lines,
    zn_lines_at,
    zn_lines_of,
    zn_points_prefetch,
    zn_short_alike,
    zn_short_last,
    zn_short_panels,
    zn_stage_begin,
    zn_stage_end,
)
from tile_geometry cimport INPUT_Z, KERNELS_Z, N_STAGES, OUTPUT_Z, PRODUCTS, Geometry, lane_groups


cdef inline void multiply_column(const Geometry *g, const float *spectra, long count, float *column, float *scratch,
                                 double *spent) noexcept nogil:
    """Products of `count` tiles, in place: a column of the input becomes one of the output."""
    cdef double own[N_STAGES]  # apart from the other threads', since it is written that often
    cdef double *clock = NULL
    cdef double since
    cdef int stage, i
    cdef int alike[ZN_ALIKE]
    cdef int nz = g.axis[0].n, keep = g.axis[0].keep, width = zn_cgemm_width(g.gauss)
    cdef long panel = 0, kz, vector = g.in_channels * g.axis[0].kernel * ZN_POINT
    cdef float *a = scratch + g.fft_floats
    cdef float *b = a + nz * g.a_step
    cdef float *c = b + g.panels * g.b_step
    cdef float *few = c + nz * g.c_step
    if spent != NULL:
        memset(own, 0, sizeof(own))
        clock = own
    since = zn_stage_begin(clock)
    tiles_along_z(g, column, lane_groups(g, count), a, few, scratch)
    since = zn_stage_end(clock, INPUT_Z, since)
    while panel < g.vectors:
        width = min(width, <int> (g.vectors - panel))
        if g.axis[0].kernel <= ZN_FEW_TAPS:  # panels of a few taps are made where they are used, in the caches
            for kz in range(zn_short_last(nz) + 1):
                zn_short_panels(width, nz, <int> kz, g.circle[0], spectra + panel * vector, g.axis[0].kernel,
                                vector, g.in_channels, b, g.b_step)
                since = zn_stage_end(clock, KERNELS_Z, since)
                zn_short_alike(nz, <int> kz, alike)
                for i in range(ZN_ALIKE):
                    if alike[i] >= 0:
                        product(g, width, count, alike[i], a, b + i * g.b_step, c)
                since = zn_stage_end(clock, PRODUCTS, since)
        else:
            kernels_along_z(g, spectra + panel * vector, width, b, few, scratch)
            since = zn_stage_end(clock, KERNELS_Z, since)
            for kz in range(nz):
                product(g, width, count, kz, a, b + kz * g.b_step, c)
            since = zn_stage_end(clock, PRODUCTS, since)
        products_along_z(g, c, width, count, column + panel * keep * ZN_POINT, scratch)
        since = zn_stage_end(clock, OUTPUT_Z, since)
        panel += width
    if spent != NULL:
        for stage in range(N_STAGES):
            spent[stage] += own[stage]


cdef inline void product(const Geometry *g, int width, long count, long kz, const float *a, const float *b,
                         float *c) noexcept nogil:
    """The matrix product of one frequency."""
    zn_cgemm(g.gauss, width, count, g.in_channels, a + kz * g.a_step, g.rows, g.row_step, b, c + kz * g.c_step)


cdef inline void tiles_along_z(const Geometry *g, const float *column, long groups, float *a, float *few,
                               float *scratch) noexcept nogil:
    """z transforms of the tiles of a column, spread over the matrices A of its nz frequencies."""
    cdef int nz = g.axis[0].n, load = g.axis[0].load
    cdef long group, some, line, kz
    cdef const float *at = column
    cdef zn_lines source, target
    for group in range(0, groups, 8):
        some = min(<long> 8, groups - group)
        for line in range(some):
            zn_points_prefetch(at + 4 * load * ZN_POINT, ZN_POINT, load)
            source = zn_lines_of(at, False, ZN_POINT, 0, load)
            target = zn_lines_of(few + line * nz * ZN_POINT, False, ZN_POINT, 0, nz)
            zn_fft_lines(&g.fft[0], &source, &target, 1, scratch)
            at += load * ZN_POINT
        for kz in range(nz):
            zn_cgemm_rows(g.gauss, few + kz * ZN_POINT, nz * ZN_POINT, some, a + kz * g.a_step + group * ZN_LANES,
                          g.row_step)


cdef inline void kernels_along_z(const Geometry *g, const float *spectra, int width, float *b, float *few,
                                 float *scratch) noexcept nogil:
    """z transforms of the kernels of `width` vectors of output channels, as panels B of the nz frequencies."""
    cdef int nz = g.axis[0].n, kernel = g.axis[0].kernel
    cdef long channel, some, kz, v, depth = g.in_channels, row = width * ZN_POINT
    cdef zn_lines source, target
    for channel in range(0, depth, 4):
        some = min(<long> 4, depth - channel)
        for v in range(width):
            source = zn_lines_of(spectra + (v * depth + channel) * kernel * ZN_POINT, True, ZN_POINT,
                                 kernel * ZN_POINT, kernel)
            target = zn_lines_of(few + v * some * nz * ZN_POINT, True, ZN_POINT, nz * ZN_POINT, nz)
            zn_fft_lines(&g.fft[0], &source, &target, some, scratch)
        for kz in range(nz):
            zn_cgemm_panel(width, few + kz * ZN_POINT, nz * ZN_POINT, some * nz * ZN_POINT, some,
                           b + kz * g.b_step + channel * row)


cdef inline void products_along_z(const Geometry *g, const float *c, int width, long count, float *column,
                                  float *scratch) noexcept nogil:
    """Inverse z transforms of the products C of the nz frequencies, wanted planes only, into the column."""
    cdef int nz = g.axis[0].n, keep = g.axis[0].keep
    cdef long tile, some, v
    cdef const float *at
    cdef float *to
    cdef zn_lines source, target
    for tile in range(0, count, 8):
        some = min(<long> 8, count - tile)
        for v in range(width):
            at = c + tile * width * ZN_POINT + v * ZN_LANES
            source = zn_lines_at(at + width * ZN_LANES, at, g.c_step, width * ZN_POINT, nz)
            to = column + (tile * g.vectors + v) * keep * ZN_POINT
            target = zn_lines_of(to, True, ZN_POINT, g.vectors * keep * ZN_POINT, keep)
            zn_fft_lines(&g.fft[0], &source, &target, some, scratch)
