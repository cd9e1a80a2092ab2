# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Winograd convolution along y alone, with consecutive x voxels in the lanes: for few input channels.

Lanes of channels would be idle where there are few, and a nested transform has little to multiply between its two ends.
Along one axis, F(m, r) takes m + r - 1 products for m r, and no vector is ever shuffled: rows of the input are added up
to rows of points, and rows of products to rows of outputs. Per tile of m output rows, by one thread:

1. Input transform: for each input channel and kernel plane, n = m + r - 1 rows of the input, padding included, to n
   rows of points. They stay in L1 for all output channels.
2. For a block of output channels and two vectors of voxels at a time, per point the products over input
   channels, kernel planes and kernel columns, in registers.
3. Output transform, bias, activation; rows go straight to the output, whole cache lines at once. Where the output's
   rows are not made of those, they are gathered first.

Where a layer is dilated along y, a tile has every dilation-th row.
"""

from cython.parallel cimport parallel, prange, threadid
from libc.stdint cimport uintptr_t

from array_ends cimport read_from, write_to

cdef extern from "winograd_voxels.h" nogil:
    const int ZN_LANES
    const int ZN_COLUMN_CHANNELS
    const int ZN_COLUMN_WIDTH
    const int ZN_LINE
    ctypedef struct zn_column_points:
        int n
        long rows
        long point
        long row
        long columns
        long apart
    ctypedef struct zn_column_place:
        float *to
        long row
        long channel
        int stream
    void zn_column_input(int n, const float **row, long first, long size, float *to, long width)
    void zn_column_prefetch(const float *x, long n)
    void zn_column_products(
        int channels, const zn_column_points *lie, const float *x, const float *weight, float *product)
    void zn_column_output(
        int n, int m, int channels, const float *product, const float *bias, zn_column_place place, int code, float a,
        float b)
    void zn_column_copy(float *to, const float *source, long n, int stream)
    void zn_stream_end()

#: Floats in a vector of this build.
LANES = ZN_LANES
#: The most output channels of a block.
BLOCK_CHANNELS = ZN_COLUMN_CHANNELS
#: Voxels of a row of a block.
BLOCK_WIDTH = ZN_COLUMN_WIDTH

cdef enum:
    MAX_POINTS = 8


cdef struct Problem:
    # offsets and steps count floats
    long in_channels, in_z, in_y, in_x, out_channels, z, y, x
    long kernel_z, dilation_z, stride_z, pad_z, pad_y, pad_x
    int m
    long blocks, terms
    long dilation_y  # a tile's rows are so many apart
    long tiles  # along y
    long chunks, width  # pieces of a row, and voxels of the output in each
    zn_column_points points
    long product_at, gather_at, scratch
    bint stream
    bint lines  # rows of the output are whole cache lines
    int code
    float a, b
    const float *src
    float *out
    const float *weight
    const float *bias


cdef void input_of(const Problem *p, long batch, long z, long y, long x, float *points) noexcept nogil:
    """All points of the tile of outputs from (z, y, x) on."""
    cdef const float *row[MAX_POINTS]
    cdef long channel, k, plane, at = 0
    cdef int j
    cdef const float *source
    for channel in range(p.in_channels):
        source = p.src + (batch * p.in_channels + channel) * p.in_z * p.in_y * p.in_x
        for k in range(p.kernel_z):
            plane = z * p.stride_z - p.pad_z + k * p.dilation_z
            for j in range(p.points.n):
                at = y - p.pad_y + j * p.dilation_y
                row[j] = NULL
                if 0 <= plane < p.in_z and 0 <= at < p.in_y:
                    row[j] = source + (plane * p.in_y + at) * p.in_x
            zn_column_input(p.points.n, row, x - p.pad_x, p.in_x, points, p.points.point)
            # what the next tile has more
            if p.chunks == 1 and p.dilation_y == 1 and row[p.points.n - 1] != NULL and at + p.m < p.in_y:
                zn_column_prefetch(row[p.points.n - 1] + p.in_x, p.m * p.in_x)
            points += p.points.row


cdef void task_of(const Problem *p, long task, float *scratch) noexcept nogil:
    """One tile of rows, or a piece of it, of all output channels."""
    cdef long chunk = task % p.chunks, tile = task // p.chunks % p.tiles
    cdef long y = tile // p.dilation_y * p.m * p.dilation_y + tile % p.dilation_y
    cdef long z = task // p.chunks // p.tiles % p.z, batch = task // p.chunks // p.tiles // p.z
    cdef long x = chunk * p.width, n = min(p.width, p.x - x), volume = p.z * p.y * p.x
    cdef long rows = min(<long> p.m, (p.y - y + p.dilation_y - 1) // p.dilation_y)
    cdef long pitch = max(n, <long> ZN_COLUMN_WIDTH)
    # whether blocks go straight to the output; else they are gathered, where rows lie end to end as in the output
    cdef bint straight = rows == p.m and n == pitch and (p.lines or not p.stream)
    cdef bint joined = p.chunks == 1 and p.dilation_y == 1 and n == pitch
    cdef long block, channel, channels, c, k, at
    cdef float *products = scratch + p.product_at
    cdef float *gathered = scratch + p.gather_at
    cdef float *out = p.out + (batch * p.out_channels * p.z + z) * p.y * p.x + y * p.x + x
    cdef zn_column_place place
    if straight:
        place.row, place.channel, place.stream = p.dilation_y * p.x, volume, p.stream
    else:
        place.row, place.channel, place.stream = pitch, p.m * pitch, False
    if rows <= 0:  # the last rows of some sub-lattices
        return
    input_of(p, batch, z, y, x, scratch)
    for block in range(p.blocks):
        channel = block * (p.out_channels // p.blocks) + min(block, p.out_channels % p.blocks)
        channels = p.out_channels // p.blocks + (block < p.out_channels % p.blocks)
        at = 0
        while at < n:
            # the last block overlaps the one before it rather than be ragged
            at = min(at, pitch - ZN_COLUMN_WIDTH)
            zn_column_products(
                channels, &p.points, scratch + at, p.weight + channel * p.points.n * p.terms, products)
            place.to = (out + channel * volume if straight else gathered) + at
            zn_column_output(p.points.n, p.m, channels, products, p.bias + channel, place, p.code, p.a, p.b)
            at += ZN_COLUMN_WIDTH
        if straight:
            continue
        for c in range(channels):
            if joined:
                zn_column_copy(out + (channel + c) * volume, gathered + c * p.m * pitch, rows * n, p.stream)
                continue
            for k in range(rows):
                zn_column_copy(
                    out + (channel + c) * volume + k * p.dilation_y * p.x, gathered + (c * p.m + k) * pitch, n,
                    p.stream)


def convolve(x, out, const unsigned char[::1] resident, unsigned char[::1] workspace, plan):
    """Compute `out` from `x`.

    Parameters
    ----------
    x : float32, (batch, in channels, z, y, x)
    out : float32, (batch, out channels, z, y, x)
    resident : uint8, ``plan.resident_bytes`` of bias and transformed kernels, 64-byte aligned
    workspace : uint8, at least ``plan.workspace_bytes``, 64-byte aligned
    plan : `znni.primitives.cpu_winograd_voxels.Tiling`
        Made for the shapes of `x` and `out`.

    Raises
    ------
    ValueError, TypeError
        Where an array is of another type, or shorter than the plan says.
    """
    cdef Problem p
    cdef int threads = plan.threads
    cdef long task, tasks, run
    cdef float *scratch = <float *> &workspace[0]
    if workspace.shape[0] < plan.workspace_bytes or resident.shape[0] < plan.resident_bytes:
        raise ValueError("workspace or resident array is smaller than the plan says")
    p.src, p.out = read_from(x), write_to(out)
    tasks, p.in_channels, p.in_z, p.in_y, p.in_x = x.shape
    p.out_channels, p.z, p.y, p.x = out.shape[1:]
    p.kernel_z, p.dilation_z, p.stride_z = plan.kernel_z, plan.dilation_z, plan.stride_z
    p.pad_z, p.pad_y, p.pad_x = plan.padding
    p.m, p.terms, p.blocks = plan.outputs, plan.terms, plan.blocks
    p.tiles, p.chunks, p.width, p.dilation_y = plan.tiles, plan.chunks, plan.width, plan.dilation_y
    p.points.n, p.points.rows, p.points.point = plan.points, plan.rows, plan.points_row
    p.points.row = p.points.n * p.points.point
    p.points.columns, p.points.apart = plan.terms // plan.rows, plan.dilation_x
    p.product_at, p.gather_at, p.scratch = plan.product_at, plan.gather_at, plan.scratch
    p.stream = plan.stream
    p.lines = p.x % ZN_LINE == 0 and <uintptr_t> p.out % (ZN_LINE * sizeof(float)) == 0
    p.code, p.a, p.b = plan.activation.code, plan.activation.a, plan.activation.b
    p.weight = <const float *> &resident[<Py_ssize_t> plan.weight_at]
    p.bias = <const float *> &resident[<Py_ssize_t> plan.bias_at]
    tasks *= p.z * p.tiles * p.chunks
    # neighbours share rows of the input
    run = max(1, min(4, tasks // (8 * threads)))
    with nogil, parallel(num_threads=threads):
        for task in prange(tasks, schedule="dynamic", chunksize=run):
            task_of(&p, task, scratch + threadid() * p.scratch)
        if p.stream:
            zn_stream_end()
