# cython: language_level=3
"""Where the tiles of a convolution lie: along each axis of an input, sub-lattice by sub-lattice (`fft_tiled.pyx`)."""


cdef struct Axis:
    int n  # points of the transform
    int kernel
    int keep  # outputs that a tile gives
    int load  # samples that a tile reads
    int size  # voxels of the input
    int out  # voxels of the output
    int dilation
    int phases  # interleaved sub-lattices that hold outputs
    int tiles  # of one sub-lattice


cdef struct Place:
    long source  # offset of the tile's first voxel in a channel of the input
    long target  # and of the output
    long batch
    int first[3]  # outputs that this tile stores: first <= i < last
    int last[3]
    int limit[3]  # samples that there are


cdef enum:
    MAX_LANES = 16


# Rows (a channel of a tile) that go together, one a lane.
cdef struct Lanes:
    const float *source[MAX_LANES]
    const float *highest  # of the sources
    const float *end  # of the array that they lie in
    float *target[MAX_LANES]
    int first[MAX_LANES]  # outputs along x that are stored
    int last[MAX_LANES]
    int limit[3][MAX_LANES]  # samples that there are
    bint ragged  # a lane has fewer than the tile reads


cdef inline Axis axis_of(int n, int kernel, int dilation, int size) noexcept nogil:
    """An axis cut into tiles of `n` points; `out` < 1 where the kernel does not fit."""
    cdef Axis a
    cdef int longest
    a.n, a.kernel, a.dilation, a.size = n, kernel, dilation, size
    a.out = size - (kernel - 1) * dilation
    a.phases = min(dilation, a.out)
    longest = (a.out + dilation - 1) // dilation
    a.keep = min(n - kernel + 1, longest)
    a.load = a.keep + kernel - 1
    a.tiles = (longest + a.keep - 1) // a.keep if a.keep > 0 else 0
    return a


cdef inline Place place_of(const Axis *axis, long tile) noexcept nogil:
    """Tiles are numbered by batch element, sub-lattice (z, y, x), then z, y, x.

    The last tile of an axis is shifted back so that it does not overhang, and stores what its neighbour does not.
    """
    cdef Place p
    cdef const Axis *a
    cdef long index[3]
    cdef long phase, in_stride = 1, out_stride = 1
    cdef int i, extent, low, high, origin
    for i in range(2, -1, -1):
        index[i] = tile % axis[i].tiles
        tile //= axis[i].tiles
    p.source = p.target = 0
    for i in range(2, -1, -1):
        a = &axis[i]
        phase = tile % a.phases
        tile //= a.phases
        extent = <int> ((a.out - phase + a.dilation - 1) // a.dilation)
        low = <int> (index[i] * a.keep)
        high = min(low + a.keep, extent)
        origin = max(0, min(low, extent - a.keep))
        p.first[i], p.last[i] = low - origin, high - origin
        p.limit[i] = extent + a.kernel - 1 - origin
        p.source += (phase + origin * a.dilation) * in_stride
        p.target += (phase + origin * a.dilation) * out_stride
        in_stride *= a.size
        out_stride *= a.out
    p.batch = tile
    return p


cdef inline void find_lanes(const Axis *axis, const float *x, long batch, long channels, long first, long rows,
                            long group, long width, Lanes *lanes) noexcept nogil:
    """The sources of lane group number `group`, of `width` lanes, among the `rows` of the tiles from `first` on; lanes
    beyond the last row repeat it."""
    cdef Place p
    cdef long voxels = <long> axis[0].size * axis[1].size * axis[2].size, lane, row, tile = -1
    cdef int i
    lanes.ragged = False
    lanes.highest = x
    lanes.end = x + batch * channels * voxels
    for lane in range(width):
        row = min(group * width + lane, rows - 1)
        if tile != first + row // channels:
            tile = first + row // channels
            p = place_of(axis, tile)
        lanes.source[lane] = x + (p.batch * channels + row % channels) * voxels + p.source
        lanes.highest = max(lanes.highest, lanes.source[lane])
        for i in range(3):
            lanes.limit[i][lane] = p.limit[i]
            if p.limit[i] < axis[i].load:
                lanes.ragged = True


cdef inline void blank(const Lanes *lanes, long z, long y, int count, float *line, long width,
                       long step) noexcept nogil:
    """Zeros where a lane's sub-lattice has ended, so that what lies beyond (NaN, say) stays out of the tile."""
    cdef long lane, x, start
    for lane in range(width):
        start = 0 if z >= lanes.limit[0][lane] or y >= lanes.limit[1][lane] else lanes.limit[2][lane]
        for x in range(start, count):
            line[x * step + lane] = 0.0
