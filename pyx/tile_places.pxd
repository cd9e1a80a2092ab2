# cython: language_level=3, cdivision=True
"""Where the tiles of a convolution lie: along each axis of an input, sub-lattice by sub-lattice (`fft_tiled.pyx`)."""


cdef struct Axis:
    int n  # points of the transform
    int kernel
    int keep  # outputs that a tile gives
    int load  # samples that a tile reads
    int size  # voxels of the input
    int out  # voxels of the output
    int padding
    int dilation
    int phases  # interleaved sub-lattices that hold outputs
    int tiles  # of one sub-lattice


cdef struct Place:
    long source  # offset of the tile's first sample in a channel of the input, before it where there is padding
    long target  # of its first output in a channel of the output
    long batch
    int first[3]  # outputs that this tile stores: first <= i < last
    int last[3]
    int begin[3]  # samples that there are, the others being zero: begin <= i < end
    int end[3]


cdef inline Axis axis_of(int n, int kernel, int dilation, int padding, int size) noexcept nogil:
    """An axis cut into tiles of `n` points; `keep` < 1 where the kernel does not fit."""
    cdef Axis a
    cdef int longest
    a.n, a.kernel, a.dilation, a.padding, a.size = n, kernel, dilation, padding, size
    a.out = size + 2 * padding - (kernel - 1) * dilation
    a.phases = min(dilation, a.out)
    longest = (a.out + dilation - 1) // dilation if a.out > 0 else 0
    a.keep = min(n - kernel + 1, longest)
    a.load = a.keep + kernel - 1
    a.tiles = (longest + a.keep - 1) // a.keep if a.keep > 0 else 0
    return a


cdef inline int steps(int voxels, int dilation) noexcept nogil:
    """Samples of a sub-lattice in so many voxels, the first voxel being one."""
    return (voxels + dilation - 1) // dilation if voxels > 0 else 0


cdef inline Place place_of(const Axis *axis, long tile) noexcept nogil:
    """Tiles are numbered by batch element, sub-lattice (z, y, x), then z, y, x.

    The last tile of an axis is shifted back so that it does not overhang, and stores what its neighbour does not.
    """
    cdef Place p
    cdef const Axis *a
    cdef long index[3]
    cdef long phase, in_stride = 1, out_stride = 1
    cdef int i, extent, low, high, origin, at
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
        at = <int> phase + origin * a.dilation
        p.target += at * out_stride
        at -= a.padding
        p.source += at * in_stride
        p.end[i] = min(a.load, steps(a.size - at, a.dilation))
        p.begin[i] = min(p.end[i], steps(-at, a.dilation))
        in_stride *= a.size
        out_stride *= a.out
    p.batch = tile
    return p


cdef inline bint holds(const Place *p, int axis, long i) noexcept nogil:
    """Whether there is a sample `i` along this axis."""
    return p.begin[axis] <= i < p.end[axis]
