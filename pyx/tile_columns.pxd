# cython: language_level=3, cdivision=True
"""Tiled FFT: y transforms of a pair of planes, between its lines along y, which lie kx after kx, and the columns.

A line is split into columns, or merged from them, with its mirror (`fft_planes.h`) where they are in the first cache.
"""

from lane_fft cimport (
    ZN_POINT,
    zn_block_prefetch,
    zn_columns_merge,
    zn_columns_split,
    zn_fft_lines,
    zn_lines,
    zn_lines_of,
    zn_plane_columns,
)
from tile_geometry cimport Geometry


# Rows of voxels that are read soon, and asked for meanwhile.
cdef struct Ahead:
    const float *first
    long step, floats  # from row to row; of a row
    int rows


cdef inline void lines_to_columns(const Geometry *g, bint inverse, float *points, int rows, int first, int last,
                                  bint alone, float *columns, long step, float *buffer, const Ahead *ahead,
                                  float *scratch) noexcept nogil:
    """Lines first <= kx < last, of which there are the first `rows` points. `buffer` holds two lines."""
    cdef int nx = g.axis[2].n, ny = g.axis[1].n, kx, both, mirror, row = 0
    cdef zn_lines source, target = zn_lines_of(buffer, inverse, ZN_POINT, ny * ZN_POINT, ny)
    for kx in range(first, last):
        mirror = nx - kx if kx else 0
        both = 2 if mirror != kx else 1
        source = zn_lines_of(points + kx * g.plane_step, inverse, ZN_POINT, (mirror - kx) * g.plane_step, rows)
        while row * (last - first) < ahead.rows * (kx - first + 1):
            zn_block_prefetch(ahead.first + row * ahead.step, ahead.floats)
            row += 1
        zn_fft_lines(&g.fft[1], &source, &target, both, scratch)
        columns = zn_columns_split(ny, zn_plane_columns(nx, ny, kx), buffer, buffer + (both - 1) * ny * ZN_POINT, alone,
                                   columns, step)


cdef inline void columns_to_lines(const Geometry *g, const float *columns, bint alone, float *points, float *buffer,
                                  float *scratch) noexcept nogil:
    """Inverse transforms of all lines, wanted points only."""
    cdef int nx = g.axis[2].n, ny = g.axis[1].n, kx, both, mirror
    cdef zn_lines wanted, source = zn_lines_of(buffer, True, ZN_POINT, ny * ZN_POINT, ny)
    for kx in range(nx // 2 + 1):
        mirror = nx - kx if kx else 0
        both = 2 if mirror != kx else 1
        columns = zn_columns_merge(ny, zn_plane_columns(nx, ny, kx), columns, g.column_step, alone, buffer,
                                   buffer + (both - 1) * ny * ZN_POINT)
        wanted = zn_lines_of(points + kx * g.plane_step, True, ZN_POINT, (mirror - kx) * g.plane_step, g.axis[1].keep)
        zn_fft_lines(&g.fft[1], &source, &wanted, both, scratch)
