# cython: language_level=3, cdivision=True
"""What all stages of Winograd convolution know of a layer, and where its strips of tiles lie (`winograd.pyx`)."""

cdef extern from "winograd_lanes.h" nogil:
    enum: ZN_LANES
    enum: ZN_LINE_VECTORS
    ctypedef struct zn_wino_lines:
        pass
    ctypedef struct zn_wino:
        int n[3]
        int m[3]
        zn_wino_lines *input[3]
        zn_wino_lines *output[3]
    zn_wino_lines *zn_wino_input_of(int n)
    zn_wino_lines *zn_wino_output_of(int n, int m)


cdef enum:
    MAX_LANES = 16


cdef struct Axis:
    int kernel
    int n  # points of a tile
    int m  # outputs of a tile
    int padding
    int dilation
    int size  # voxels of the input
    int out  # voxels of the output
    int phases  # interleaved sub-lattices that hold outputs
    int tiles  # of one sub-lattice


cdef struct Geometry:
    Axis axis[3]
    zn_wino transform
    long batch, in_channels, out_channels
    long in_vectors, out_vectors  # vectors of channels
    bint takes_blocked, gives_blocked
    long tiles, points, block, strip  # in all; of a tile; tiles that go together; of a strip, at most
    long a_row, c_row, slot  # floats from tile to tile of the factors and products, and from point to point
    long slots_floats, staged_floats, scratch_step


# Neighbours along x.
cdef struct Strip:
    long count  # tiles
    long batch
    int source[3]  # voxel of the input that the first tile starts at; may be negative
    int target[3]  # of the output


cdef inline long padded(long floats) noexcept nogil:
    """`floats` rounded up to an odd number of cache lines, so that neighbours differ in their cache sets."""
    return (floats + 15) // 16 * 16 | 16


cdef inline int ceiling(long a, long b) noexcept nogil:
    """a / b, rounded up; b > 0."""
    return <int> -((-a) // b) if a < 0 else <int> ((a + b - 1) // b)


cdef inline Axis axis_of(int kernel, int m, int padding, int dilation, int size) noexcept nogil:
    """An axis cut into tiles of `m` outputs; `out` < 1 where the kernel does not fit."""
    cdef Axis a
    cdef int longest
    a.kernel, a.padding, a.dilation, a.size, a.m = kernel, padding, dilation, size, m
    a.n = m + kernel - 1
    a.out = size + 2 * padding - (kernel - 1) * dilation
    a.phases = min(dilation, a.out)
    longest = (a.out + dilation - 1) // dilation if a.out > 0 else 0
    a.tiles = (longest + m - 1) // m
    return a


cdef inline void lay_out(Geometry *g, long block) noexcept nogil:
    """Everything that follows from axes and channels, in blocks of so many tiles."""
    cdef int i
    g.in_vectors = (g.in_channels + ZN_LANES - 1) // ZN_LANES
    g.out_vectors = (g.out_channels + ZN_LANES - 1) // ZN_LANES
    g.tiles, g.points = g.batch, 1
    for i in range(3):
        g.tiles *= g.axis[i].phases * g.axis[i].tiles
        g.points *= g.axis[i].n
    g.block = max(<long> 1, min(block, g.tiles))
    g.strip = min(<long> g.axis[2].tiles, max(<long> 4, 16 // <long> g.axis[2].m), g.block)
    g.a_row, g.c_row = g.in_vectors * ZN_LANES, g.out_vectors * ZN_LANES
    g.slot = padded(g.block * max(g.a_row, g.c_row))
    g.slots_floats = (g.points + 1) * g.slot
    g.staged_floats = padded(ZN_LINE_VECTORS * ZN_LANES * g.axis[0].n * g.axis[1].n
                             * (g.axis[2].n + (g.strip - 1) * g.axis[2].m))
    g.scratch_step = g.slots_floats + g.staged_floats + padded(ZN_LANES * g.points)


cdef inline Strip strip_at(const Geometry *g, long tile, long most) noexcept nogil:
    """The strip from `tile` on, of at most `most` tiles.

    Tiles are numbered by batch element, sub-lattice (z, y, x), then z, y, x.
    """
    cdef Strip s
    cdef const Axis *a
    cdef long index[3]
    cdef int i
    for i in range(2, -1, -1):
        index[i] = tile % g.axis[i].tiles
        tile //= g.axis[i].tiles
    for i in range(2, -1, -1):
        a = &g.axis[i]
        s.target[i] = <int> (tile % a.phases + index[i] * a.m * a.dilation)
        s.source[i] = s.target[i] - a.padding
        tile //= a.phases
    s.batch = tile
    s.count = min(most, g.strip, g.axis[2].tiles - index[2])
    return s
