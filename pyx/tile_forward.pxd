# cython: language_level=3, cdivision=True
"""Tiled FFT, stage 1: x and y transforms of the planes of a lane group, two real planes as one (`fft_tiled.pyx`).

A lane group of a plain input is ZN_LANES rows, each read from where it is and turned into lanes; of a blocked input it
is a block of channels of one tile, and its lines are transformed from where they lie.
"""

from libc.string cimport memset

from lane_fft cimport (
    ZN_LANES,
    ZN_POINT,
    zn_block_load,
    zn_block_prefetch,
    zn_fft_lines,
    zn_lines,
    zn_lines_at,
    zn_lines_of,
    zn_points_clear,
    zn_rows_load_within,
    zn_rows_prefetch,
    zn_stream_fence,
)
from tile_geometry cimport Geometry
from tile_columns cimport Ahead, lines_to_columns
from tile_places cimport Axis, Place, holds, place_of


cdef enum:
    MAX_LANES = 16


# Rows (a channel of a tile) of a plain input, one a lane.
cdef struct Lanes:
    const float *source[MAX_LANES]
    const float *lowest  # of the sources
    const float *highest
    int begin[3][MAX_LANES]  # samples that there are
    int end[3][MAX_LANES]
    bint ragged  # a lane has fewer than the tile reads


cdef inline void find_lanes(const Geometry *g, const float *x, long first, long rows, long group,
                            Lanes *lanes) noexcept nogil:
    """The sources of lane group number `group` among the `rows` of the tiles from `first` on; lanes beyond the last row
    repeat it."""
    cdef const Axis *a = &g.axis[0]
    cdef Place p
    cdef long voxels = <long> a[0].size * a[1].size * a[2].size, lane, row, tile = -1
    cdef int i
    lanes.ragged = False
    for lane in range(ZN_LANES):
        row = min(group * ZN_LANES + lane, rows - 1)
        if tile != first + row // g.rows:
            tile = first + row // g.rows
            p = place_of(a, tile)
        lanes.source[lane] = x + (p.batch * g.in_channels + row % g.rows) * voxels + p.source
        lanes.lowest = lanes.source[lane] if lane == 0 else min(lanes.lowest, lanes.source[lane])
        lanes.highest = lanes.source[lane] if lane == 0 else max(lanes.highest, lanes.source[lane])
        for i in range(3):
            lanes.begin[i][lane], lanes.end[i][lane] = p.begin[i], p.end[i]
            if p.begin[i] > 0 or p.end[i] < a[i].load:
                lanes.ragged = True


cdef inline void blank(const Lanes *lanes, long z, long y, int count, float *line) noexcept nogil:
    """Zeros where a lane has no samples: padding, or another sub-lattice, so that NaN there stays out of the tile."""
    cdef long lane, x, begin, end
    for lane in range(ZN_LANES):
        begin, end = lanes.begin[2][lane], lanes.end[2][lane]
        if not (lanes.begin[0][lane] <= z < lanes.end[0][lane] and lanes.begin[1][lane] <= y < lanes.end[1][lane]):
            begin = end = 0
        for x in range(begin):
            line[x * ZN_POINT + lane] = 0.0
        for x in range(end, count):
            line[x * ZN_POINT + lane] = 0.0


cdef inline void plain_group(const Geometry *g, const float *x, long first, long rows, long group, float *columns,
                             float *scratch) noexcept nogil:
    cdef const Axis *a = &g.axis[0]
    cdef long plane_stride = <long> a[0].dilation * a[1].size * a[2].size, row_stride = <long> a[1].dilation * a[2].size
    cdef long span = <long> (a[2].load - 1) * a[2].dilation + 1, z, y, i, at, ahead_z
    cdef int nx = a[2].n, planes
    cdef const float *end = x + g.batch * g.in_channels * a[0].size * a[1].size * a[2].size
    cdef float *points = scratch + g.fft_floats
    cdef float *line = points + nx * g.plane_step
    cdef Lanes lanes, next
    cdef Lanes *ahead
    cdef zn_lines source, target
    cdef Ahead nothing
    nothing.rows = 0
    find_lanes(g, x, first, rows, group, &lanes)
    find_lanes(g, x, first, rows, group + 1, &next)
    columns += group * a[0].load * ZN_POINT
    for z in range(0, a[0].load, 2):
        planes = <int> min(<long> 2, a[0].load - z)
        ahead, ahead_z = &lanes, z + 2  # what comes next is fetched meanwhile
        if ahead_z >= a[0].load:
            ahead, ahead_z = &next, 0
        for y in range(a[1].load):
            if planes == 1:
                memset(line, 0, a[2].load * ZN_POINT * sizeof(float))
            for i in range(planes):
                at = (z + i) * plane_stride + y * row_stride
                zn_rows_load_within(lanes.source, lanes.lowest, lanes.highest, at, x, end, a[2].load, a[2].dilation,
                                    line + i * ZN_LANES, ZN_POINT)
                if lanes.ragged:
                    blank(&lanes, z + i, y, a[2].load, line + i * ZN_LANES)
                zn_rows_prefetch(ahead.source, (ahead_z + i) * plane_stride + y * row_stride, span)
            source = zn_lines_of(line, False, ZN_POINT, 0, a[2].load)
            target = zn_lines_of(points + y * ZN_POINT, False, g.plane_step, 0, nx)
            zn_fft_lines(&g.fft[2], &source, &target, 1, scratch)
        lines_to_columns(g, False, points, a[1].load, 0, nx // 2 + 1, planes == 1, columns + z * ZN_POINT,
                         g.column_step, line, &nothing, scratch)
    zn_stream_fence()


cdef inline void block_group(const Geometry *g, const float *x, long first, long group, float *columns,
                             float *scratch) noexcept nogil:
    cdef const Axis *a = &g.axis[0]
    cdef long blocks = g.rows // ZN_LANES, voxels = <long> a[0].size * a[1].size * a[2].size, z, y
    cdef long step = a[2].dilation * ZN_LANES, row_stride = <long> a[1].dilation * a[2].size * ZN_LANES
    cdef long plane_stride = <long> a[0].dilation * a[1].size * a[2].size * ZN_LANES
    cdef int nx = a[2].n, planes, begin, end
    cdef Place p = place_of(a, first + group // blocks)
    cdef const float *here = x + ((p.batch * blocks + group % blocks) * voxels + p.source) * ZN_LANES
    cdef Place q = place_of(a, min(first + (group + 1) // blocks, g.tiles - 1))
    cdef const float *next = x + ((q.batch * blocks + (group + 1) % blocks) * voxels + q.source) * ZN_LANES
    cdef const float *re
    cdef const float *im
    cdef const float *ahead
    cdef long floats = (a[2].load - 1) * step + ZN_LANES
    cdef float *points = scratch + g.fft_floats
    cdef float *line = points + nx * g.plane_step
    cdef zn_lines source, target
    cdef Ahead other  # the second plane of those that come next
    columns += group * a[0].load * ZN_POINT
    for z in range(0, a[0].load, 2):
        planes = <int> min(<long> 2, a[0].load - z)
        re = here + z * plane_stride if holds(&p, 0, z) else NULL
        im = here + (z + 1) * plane_stride if planes == 2 and holds(&p, 0, z + 1) else NULL
        ahead = here + (z + 2) * plane_stride if z + 2 < a[0].load else next  # what comes next is fetched meanwhile
        begin, end = p.begin[1], p.end[1]
        if re == NULL and im == NULL:
            begin = end = 0
        other.first, other.step, other.floats, other.rows = ahead + plane_stride, row_stride, floats, a[1].load
        for y in range(begin):
            zn_points_clear(points + y * ZN_POINT, g.plane_step, nx)
        for y in range(begin, end):
            zn_block_prefetch(ahead + y * row_stride, floats)
            if re != NULL and im != NULL and p.begin[2] == 0:
                source = zn_lines_at(re + y * row_stride, im + y * row_stride, step, 0, p.end[2])
            else:
                zn_block_load(re + y * row_stride if re != NULL else NULL, im + y * row_stride if im != NULL else NULL,
                              step, p.begin[2], p.end[2], line)
                source = zn_lines_of(line, False, ZN_POINT, 0, p.end[2])
            target = zn_lines_of(points + y * ZN_POINT, False, g.plane_step, 0, nx)
            zn_fft_lines(&g.fft[2], &source, &target, 1, scratch)
        lines_to_columns(g, False, points, end, 0, nx // 2 + 1, planes == 1, columns + z * ZN_POINT, g.column_step,
                         line, &other, scratch)
    zn_stream_fence()
