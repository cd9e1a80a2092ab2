# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Max-pooling, max-filtering and max-pooling fragments, of plain arrays and of blocked ones.

One engine does them all. For each row of windows it takes the maximum over z and y into a row of the input's length that
stays in the L1 cache, then the maximum along x, and on the way out keeps every stride-th value (pooling), all of them
(filter), or deals them out to the fragments they belong to (MPF), so that all fragments come of one pass over the input.
Rows are cut evenly over the threads. In a blocked array a value is a vector of channels, of which nothing is shuffled.
"""
from cython.parallel cimport prange
from libc.string cimport memmove

from array_ends cimport read_from, write_to


cdef extern from "interleave.h" nogil:
    void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk)
    void zn_pick2(float *even, float *odd, const float *src, long n, long taps)
    void zn_pick(float *dst, const float *src, long n, long step)


cdef extern from "lane_maxima.h" nogil:
    int ZN_STREAM_BYTES
    void zn_max_lanes(float *dst, const float *src, long n, long step, long taps, long apart, int stream)
    void zn_max_cubes(float *even, float *odd, float *kept, const float *a, const float *b, long n, int stream)
    void zn_stream_end()


cdef enum:
    BLOCK_FLOATS = 512       # MPF of 2x2x2 on 146 MiB took 0.85 of the time that it took with 2048


cdef struct Pool:
    long lanes               # floats of a value: 1, or a block of channels
    long channels            # or blocks of them
    long nz, ny, nx          # input, in values
    long rz, ry              # rows of windows, along z and y
    long oz, oy, ox          # output (of one fragment)
    long wz, wy, wx          # window
    long dz, dy, dx          # dilation
    long vz, vy              # input rows from one row of windows to the next
    long sx                  # stride along x
    long fz, fy, fx          # fragments; 1 where there are none
    long pitch               # floats from row to row in the scratch
    long block               # rows of windows that are done together
    long kept                # rows of maxima over z that a block needs for its maxima over y; 0: both at once
    bint through             # rows of maxima over z and y are results: nothing is left to do along x
    long rows                # rows of maxima over z and y in the scratch
    bint cubes               # fragments of 2 x 2 x 2 in one pass, with one row of maxima over z in the scratch
    long scratch             # floats of scratch for each thread
    bint stream              # blocked results go past the caches


cdef Pool describe(shape, window, dilation, stride, bint fragments):
    """All numbers that the engine needs of an array of that shape, plain or blocked; windows are known to fit."""
    cdef Pool p
    cdef long extent_y
    p.lanes = shape[5] if len(shape) == 6 else 1
    p.channels, p.nz, p.ny, p.nx = shape[1:5]
    p.wz, p.wy, p.wx = window
    p.dz, p.dy, p.dx = dilation
    p.sx = stride[2]
    p.fz, p.fy, p.fx = stride if fragments else (1, 1, 1)
    p.vz, p.vy = (1, 1) if fragments else stride[:2]
    extent_y = (p.wy - 1) * p.dy + 1
    p.rz = (p.nz - (p.wz - 1) * p.dz - 1) // p.vz + 1
    p.ry = (p.ny - extent_y) // p.vy + 1
    p.oz = p.rz // p.fz
    p.oy = p.ry // p.fy
    p.ox = (p.nx - (p.wx - 1) * p.dx - 1) // p.sx + 1
    p.pitch = (p.nx * p.lanes + 16) // 16 * 16
    p.block = min(p.ry, max(1, BLOCK_FLOATS // p.pitch))
    # Maxima over z are worth keeping where several rows of windows share them and both at once would be many loads.
    p.kept = 0
    if p.wz > 1 and p.wy > 1 and p.wz * p.wy > 4 and p.vy < p.wy:
        p.kept = (p.block - 1) * p.vy + extent_y
    p.through = p.sx == 1 and p.wx == 1
    p.rows = 0 if p.through else p.block + (1 if p.lanes == 1 and p.sx > 2 and p.wx > 1 else 0)
    p.cubes = p.lanes > 1 and fragments and p.wz == p.wy == p.wx == p.fz == p.fy == p.fx == 2
    p.scratch = (1 if p.cubes else p.kept + p.rows) * p.pitch
    p.stream = False
    return p


cdef void emit(Pool *p, float *out, long fragment_floats, const float *row, float *spare) noexcept nogil:
    """The maxima along x of one row of maxima over z and y, to the fragments they belong to."""
    cdef long f
    if p.lanes > 1:
        for f in range(p.fx):
            zn_max_lanes(out + f * fragment_floats, row + f * p.lanes, p.ox, p.sx, p.wx, p.dx, p.stream)
    elif p.sx == 1:
        zn_max_taps(out, row, p.ox, 1, 0, p.wx, p.dx)
    elif p.sx == 2:
        zn_pick2(out, out + fragment_floats if p.fx == 2 else NULL, row, p.ox, p.wx)
    else:
        if p.wx > 1:
            zn_max_taps(spare, row, p.nx - p.wx + 1, 1, 0, p.wx, 1)
            row = spare
        for f in range(p.fx):
            zn_pick(out + f * fragment_floats, row + f, p.ox, p.sx)


cdef void pool_rows(Pool *p, const float *x, float *out, long first, long last, float *scratch) noexcept nogil:
    """Rows of windows `first` to `last`, counted over (batch, channel, z, y)."""
    cdef long nx = p.nx * p.lanes, ox = p.ox * p.lanes, plane = p.ny * nx
    cdef long fragment_floats = p.channels * p.oz * p.oy * ox
    cdef long extent_y = (p.wy - 1) * p.dy + 1, fragments = p.fz * p.fy * p.fx
    cdef float *kept = scratch
    cdef float *rows = scratch + p.kept * p.pitch
    cdef float *spare = rows + p.block * p.pitch
    cdef float *target
    cdef float *row
    cdef const float *base
    cdef long r = first, y = first % p.ry, z = first // p.ry % p.rz, image = first // p.ry // p.rz
    cdef long n, i, j, at, fy, start, count, top, lo, hi = 0
    while r < last:
        n = min(p.block, min(p.ry - y, last - r))
        base = x + (image * p.nz + z * p.vz) * plane
        top = y * p.vy
        if p.kept:  # rows top to hi of the maxima over z are there from the block before
            lo = max(top, hi)
            if lo > top:
                memmove(kept, kept + (p.kept - (hi - top)) * p.pitch, (hi - top) * p.pitch * sizeof(float))
            hi = top + (n - 1) * p.vy + extent_y
            for i in range(lo, hi):
                zn_max_taps(kept + (i - top) * p.pitch, base + i * nx, nx, 1, 0, p.wz, p.dz * plane)
        for fy in range(p.fy):  # the block's rows `start`, `start` + fy, .. make the runs of the fragments (fy, all x)
            start = (fy - y % p.fy + p.fy) % p.fy
            count = (n - start + p.fy - 1) // p.fy
            if count <= 0:
                continue
            at = image // p.channels * fragments + (z % p.fz * p.fy + fy) * p.fx
            at = ((at * p.channels + image % p.channels) * p.oz + z // p.fz) * p.oy + (y + start) // p.fy
            target = out + at * ox
            for j in range(count):
                i = start + j * p.fy
                row = target + j * ox if p.through else rows + j * p.pitch
                if p.kept:
                    zn_max_taps(row, kept + i * p.vy * p.pitch, nx, 1, 0, p.wy, p.dy * p.pitch)
                else:
                    zn_max_taps(row, base + (top + i * p.vy) * nx, nx, p.wz, p.dz * plane, p.wy, p.dy * nx)
            if not p.through:
                for j in range(count):
                    emit(p, target + j * ox, fragment_floats, rows + j * p.pitch, spare)
        r += n
        y += n
        if y == p.ry:
            y = 0
            hi = 0
            z += 1
            if z == p.rz:
                z = 0
                image += 1
    if p.stream:
        zn_stream_end()


cdef void pool_cubes(Pool *p, const float *x, float *out, long first, long last, float *kept) noexcept nogil:
    """What `pool_rows` does, of windows of 2 x 2 x 2 and as many fragments in a blocked array."""
    cdef long row = p.nx * p.lanes, plane = p.ny * row, fragment_floats = p.channels * p.oz * p.oy * p.ox * p.lanes
    cdef long r = first, y = first % p.ry, z = first // p.ry % p.rz, image = first // p.ry // p.rz, at
    cdef const float *base
    while r < last:
        base = x + (image * p.nz + z) * plane
        zn_max_taps(kept, base + y * row, row, 1, 0, 2, plane)
        while y < p.ry and r < last:
            at = image // p.channels * 8 + (z % 2 * 2 + y % 2) * 2
            at = ((at * p.channels + image % p.channels) * p.oz + z // 2) * p.oy + y // 2
            zn_max_cubes(out + at * p.ox * p.lanes, out + at * p.ox * p.lanes + fragment_floats, kept,
                         base + (y + 1) * row, base + (y + 1) * row + plane, p.ox, p.stream)
            y += 1
            r += 1
        y = 0
        z += 1
        if z == p.rz:
            z = 0
            image += 1
    if p.stream:
        zn_stream_end()


def workspace_bytes(shape, window, dilation, stride, bint fragments, long threads):
    """Bytes of workspace that `pool` needs for an array of that shape, plain or blocked."""
    cdef Pool p = describe(shape, window, dilation, stride, fragments)
    return threads * p.scratch * <long>sizeof(float)


def pool(x, out, unsigned char[::1] workspace, window, dilation, stride, bint fragments, long threads):
    """Maxima over windows, to `out`, as an MPF (`fragments`) or as a pooling; both arrays plain, or both blocked.

    Dilation other than 1 needs stride 1. Shapes are the caller's affair.
    """
    cdef Pool p = describe(x.shape, window, dilation, stride, fragments)
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef long rows = x.shape[0] * p.channels * p.rz * p.ry, part
    cdef float *scratch = <float *>&workspace[0] if p.scratch else NULL
    p.stream = p.lanes > 1 and out.nbytes >= ZN_STREAM_BYTES and <size_t> target % (p.lanes * sizeof(float)) == 0
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        if p.cubes:
            pool_cubes(&p, source, target, rows * part // threads, rows * (part + 1) // threads,
                       scratch + part * p.scratch)
        else:
            pool_rows(&p, source, target, rows * part // threads, rows * (part + 1) // threads,
                      scratch + part * p.scratch)
