# cython: language_level=3, cdivision=True
"""Tiled FFT, stage 2: z transforms, matrix products and inverse z transforms of one column (`fft_tiled.pyx`)."""

from lane_fft cimport (
    ZN_LANES,
    ZN_POINT,
    zn_cgemm,
    zn_cgemm_panel,
    zn_cgemm_parts,
    zn_cgemm_rows,
    zn_cgemm_width,
    zn_fft_lines,
    zn_lines,
    zn_lines_at,
    zn_lines_of,
    zn_points_prefetch,
    zn_short_panels,
)
from tile_geometry cimport Geometry, lane_groups


cdef inline void multiply_column(const Geometry *g, const float *spectra, long count, float *column,
                                 float *scratch) noexcept nogil:
    """Products of `count` tiles, in place: a column of the input becomes one of the output."""
    cdef int nz = g.axis[0].n, keep = g.axis[0].keep, width = zn_cgemm_width(g.gauss)
    cdef long panel = 0, kz, vector = g.in_channels * g.axis[0].kernel * ZN_POINT
    cdef float *a = scratch + g.fft_floats
    cdef float *b = a + nz * g.a_step
    cdef float *c = b + g.panels * g.b_step
    cdef float *few = c + nz * g.c_step
    tiles_along_z(g, column, lane_groups(g, count), a, few, scratch)
    while panel < g.vectors:
        width = min(width, <int> (g.vectors - panel))
        if g.panels == 2:  # panels of a few taps are made where they are used, in the caches
            for kz in range(nz // 2 + 1):
                zn_short_panels(g.gauss, width, nz, <int> kz, g.circle[0], spectra + panel * vector, g.axis[0].kernel,
                                vector, g.in_channels, b, b + g.b_step)
                product(g, width, count, kz, a, b, c)
                if 0 < kz < nz - kz:
                    product(g, width, count, nz - kz, a, b + g.b_step, c)
        else:
            kernels_along_z(g, spectra + panel * vector, width, b, few, scratch)
            for kz in range(nz):
                product(g, width, count, kz, a, b + kz * g.b_step, c)
        products_along_z(g, c, width, count, column + panel * keep * ZN_POINT, scratch)
        panel += width


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
            zn_points_prefetch(at + 4 * load * ZN_POINT, load)
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
    cdef long channel, some, kz, v, depth = g.in_channels, row = zn_cgemm_parts(g.gauss) * width * ZN_LANES
    cdef zn_lines source, target
    for channel in range(0, depth, 4):
        some = min(<long> 4, depth - channel)
        for v in range(width):
            source = zn_lines_of(spectra + (v * depth + channel) * kernel * ZN_POINT, True, ZN_POINT,
                                 kernel * ZN_POINT, kernel)
            target = zn_lines_of(few + v * some * nz * ZN_POINT, True, ZN_POINT, nz * ZN_POINT, nz)
            zn_fft_lines(&g.fft[0], &source, &target, some, scratch)
        for kz in range(nz):
            zn_cgemm_panel(g.gauss, width, few + kz * ZN_POINT, nz * ZN_POINT, some * nz * ZN_POINT, some,
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
