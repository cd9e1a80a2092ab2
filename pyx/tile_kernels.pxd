# cython: language_level=3, cdivision=True
"""Tiled FFT: spectra of the kernels along y and x, conjugate, scaled; lanes are output channels (`fft_tiled.pyx`)."""

from libc.string cimport memset

from lane_fft cimport (
    ZN_LANES,
    ZN_POINT,
    zn_fft_lines,
    zn_lines,
    zn_lines_of,
    zn_points_scale,
    zn_rows_load_within,
    zn_short_line,
    zn_stream_fence,
)
from tile_columns cimport Ahead, lines_to_columns
from tile_geometry cimport Geometry
from tile_places cimport Axis


cdef enum:
    SHORT = 16  # taps along x that are summed one by one; more go through the FFT


cdef inline void kernel_group(const Geometry *g, const float *weight, int first, int last, float *spectra, long group,
                              float *scratch) noexcept nogil:
    """Columns first <= kx < last of a group, which is vector of output channels * input channels + input channel."""
    cdef const Axis *a = &g.axis[0]
    cdef int nx = a[2].n, i, planes, y, z
    cdef long plane = <long> a[1].kernel * a[2].kernel, size = a[0].kernel * plane, lane, channel
    cdef long output = group // g.in_channels * ZN_LANES
    cdef const float *source[16]
    cdef float *points = scratch + g.fft_floats
    cdef float *line = points + nx * g.plane_step
    cdef zn_lines taps, lines
    cdef Ahead nothing
    nothing.rows = 0
    for lane in range(ZN_LANES):
        channel = min(output + lane, g.out_channels - 1)
        source[lane] = weight + (channel * g.in_channels + group % g.in_channels) * size
    spectra += group * a[0].kernel * ZN_POINT
    for z in range(0, a[0].kernel, 2):
        planes = min(2, a[0].kernel - z)
        for y in range(a[1].kernel):
            if planes == 1:
                memset(line, 0, a[2].kernel * ZN_POINT * sizeof(float))
            for i in range(planes):
                zn_rows_load_within(source, source[0], source[ZN_LANES - 1], (z + i) * plane + y * a[2].kernel, weight,
                                    weight + g.out_channels * g.in_channels * size, a[2].kernel, 1,
                                    line + i * ZN_LANES, ZN_POINT)
            zn_points_scale(line, a[2].kernel, g.scale)
            if a[2].kernel <= SHORT:
                zn_short_line(nx, first, last, g.circle[2], line, a[2].kernel, points + y * ZN_POINT, g.plane_step)
            else:
                taps = zn_lines_of(line, True, ZN_POINT, 0, a[2].kernel)
                lines = zn_lines_of(points + y * ZN_POINT, True, g.plane_step, 0, nx)
                zn_fft_lines(&g.fft[2], &taps, &lines, 1, scratch)
        lines_to_columns(g, True, points, a[1].kernel, first, last, planes == 1, spectra + z * ZN_POINT,
                         g.spectra_step, line, &nothing, scratch)
    zn_stream_fence()
