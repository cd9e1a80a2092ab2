# cython: language_level=3, cdivision=True
"""Tiled FFT, stage 3: inverse y and x transforms of a tile's wanted planes, bias, activation, store."""

from lane_fft cimport (
    ZN_LANES,
    ZN_POINT,
    zn_block_store,
    zn_fft_lines,
    zn_lines,
    zn_lines_of,
    zn_points_prefetch,
    zn_load,
    zn_rows_store,
    zn_stream_fence,
)
from tile_columns cimport columns_to_lines
from tile_geometry cimport Geometry
from tile_places cimport Axis, Place, place_of


# What is fused into the store.
cdef struct Finish:
    const float *bias
    int activation
    float a
    float b
    bint stream  # past the caches


cdef inline void inverse_group(const Geometry *g, const float *columns, const Finish *finish, long first, long group,
                               float *out, float *scratch) noexcept nogil:
    """Lanes are output channels of one tile."""
    cdef const Axis *a = &g.axis[0]
    cdef Place p = place_of(a, first + group // g.vectors)
    cdef long vector = group % g.vectors, voxels = <long> a[0].out * a[1].out * a[2].out
    cdef long channel = vector * ZN_LANES, lane, row, z, y, i, at
    cdef int planes, lanes = <int> min(<long> ZN_LANES, g.out_channels - channel)
    cdef int first_x[16]
    cdef int last_x[16]
    cdef float bias[16]
    cdef float *target[16]
    cdef float *block = out + ((p.batch * g.vectors + vector) * voxels + p.target) * ZN_LANES
    cdef float *points = scratch + g.fft_floats
    cdef float *line = points + a[2].n * g.plane_step
    cdef zn_lines source, wanted
    cdef const float *source_columns
    cdef long done, some
    for lane in range(ZN_LANES):
        row = min(channel + lane, g.out_channels - 1)
        bias[lane] = finish.bias[row]
        target[lane] = out + (p.batch * g.out_channels + row) * voxels + p.target
        first_x[lane] = p.first[2]
        last_x[lane] = p.last[2] if lane < lanes else 0
    for z in range(0, a[0].keep, 2):
        if z + 1 < p.first[0] or z >= p.last[0]:
            continue
        planes = <int> min(<long> 2, a[0].keep - z)
        source_columns = columns + (group * a[0].keep + z) * ZN_POINT
        columns_to_lines(g, source_columns, planes == 1, points, line, scratch)
        done = 0
        for y in range(p.first[1], p.last[1]):
            # of the two points that come next in each column the second one is fetched meanwhile
            some = g.columns * (y + 1 - p.first[1]) // (p.last[1] - p.first[1]) - done
            zn_points_prefetch(source_columns + 3 * ZN_POINT + done * g.column_step, g.column_step, <int> some)
            done += some
            source = zn_lines_of(points + y * ZN_POINT, True, g.plane_step, 0, a[2].n)
            wanted = zn_lines_of(line, True, ZN_POINT, 0, a[2].keep)
            zn_fft_lines(&g.fft[2], &source, &wanted, 1, scratch)
            for i in range(max(<long> 0, p.first[0] - z), min(<long> planes, p.last[0] - z)):
                at = ((z + i) * a[0].dilation * a[1].out + y * a[1].dilation) * a[2].out
                if g.gives_blocks:
                    at = (at + p.first[2] * a[2].dilation) * ZN_LANES
                    zn_block_store(line + i * ZN_LANES + p.first[2] * ZN_POINT, ZN_POINT, p.last[2] - p.first[2],
                                   zn_load(bias), finish.activation, finish.a, finish.b, lanes, finish.stream,
                                   block + at, a[2].dilation * ZN_LANES)
                else:
                    zn_rows_store(line + i * ZN_LANES, ZN_POINT, a[2].keep, zn_load(bias), finish.activation, finish.a,
                                  finish.b, target, at, a[2].dilation, first_x, last_x)
    if finish.stream:
        zn_stream_fence()
