# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Max-pooling, max-filtering, max-pooling fragments, and the recombination of fragments.

One engine does the first three. For each row of windows it takes the maximum over z and y into a row of the input's length
that stays in the L1 cache, then the maximum along x, and on the way out keeps every stride-th value (pooling), all of them
(filter), or deals them out to the fragments they belong to (MPF), so that all fragments come of one pass over the input.
Rows are cut evenly over the threads.
"""
from cython.parallel cimport prange
from libc.string cimport memmove


cdef extern from "interleave.h" nogil:
    void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk)
    void zn_pick2(float *even, float *odd, const float *src, long n, long taps)
    void zn_pick(float *dst, const float *src, long n, long step)
    void zn_interleave(float *dst, const float **src, long n, long count, long step)


cdef enum:
    BLOCK_FLOATS = 512       # MPF of 2x2x2 on 146 MiB took 0.85 of the time that it took with 2048


cdef struct Pool:
    long channels
    long nz, ny, nx          # input
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
    long scratch             # floats of scratch for each thread


cdef Pool describe(shape, window, dilation, stride, bint fragments):
    """All numbers that the engine needs; windows are known to fit."""
    cdef Pool p
    cdef long extent_y
    p.channels, p.nz, p.ny, p.nx = shape[1:]
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
    p.pitch = (p.nx + 16) // 16 * 16
    p.block = min(p.ry, max(1, BLOCK_FLOATS // p.pitch))
    # Maxima over z are worth keeping where several rows of windows share them and both at once would be many loads.
    p.kept = 0
    if p.wz > 1 and p.wy > 1 and p.wz * p.wy > 4 and p.vy < p.wy:
        p.kept = (p.block - 1) * p.vy + extent_y
    p.through = p.sx == 1 and p.wx == 1
    p.rows = 0 if p.through else p.block + (1 if p.sx > 2 and p.wx > 1 else 0)
    p.scratch = (p.kept + p.rows) * p.pitch
    return p


cdef void emit(Pool *p, float *out, long fragment_floats, const float *row, float *spare) noexcept nogil:
    """The maxima along x of one row of maxima over z and y, to the fragments they belong to."""
    cdef long f
    if p.sx == 1:
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
    cdef long plane = p.ny * p.nx, fragment_floats = p.channels * p.oz * p.oy * p.ox
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
                zn_max_taps(kept + (i - top) * p.pitch, base + i * p.nx, p.nx, 1, 0, p.wz, p.dz * plane)
        for fy in range(p.fy):  # the block's rows `start`, `start` + fy, .. make the runs of the fragments (fy, all x)
            start = (fy - y % p.fy + p.fy) % p.fy
            count = (n - start + p.fy - 1) // p.fy
            if count <= 0:
                continue
            at = image // p.channels * fragments + (z % p.fz * p.fy + fy) * p.fx
            at = ((at * p.channels + image % p.channels) * p.oz + z // p.fz) * p.oy + (y + start) // p.fy
            target = out + at * p.ox
            for j in range(count):
                i = start + j * p.fy
                row = target + j * p.ox if p.through else rows + j * p.pitch
                if p.kept:
                    zn_max_taps(row, kept + i * p.vy * p.pitch, p.nx, 1, 0, p.wy, p.dy * p.pitch)
                else:
                    zn_max_taps(row, base + (top + i * p.vy) * p.nx, p.nx, p.wz, p.dz * plane, p.wy, p.dy * p.nx)
            if not p.through:
                for j in range(count):
                    emit(p, target + j * p.ox, fragment_floats, rows + j * p.pitch, spare)
        r += n
        y += n
        if y == p.ry:
            y = 0
            hi = 0
            z += 1
            if z == p.rz:
                z = 0
                image += 1


def workspace_bytes(shape, window, dilation, stride, bint fragments, long threads):
    """Bytes of workspace that `pool` needs."""
    cdef Pool p = describe(shape, window, dilation, stride, fragments)
    return threads * p.scratch * <long>sizeof(float)


def pool(const float[:, :, :, :, ::1] x, float[:, :, :, :, ::1] out, unsigned char[::1] workspace,
         window, dilation, stride, bint fragments, long threads):
    """Maxima over windows, to `out`, as an MPF (`fragments`) or as a pooling.

    Dilation other than 1 needs stride 1. Shapes are the caller's affair.
    """
    cdef Pool p = describe((<object>x).shape, window, dilation, stride, fragments)
    cdef long rows = x.shape[0] * p.channels * p.rz * p.ry, part
    cdef float *scratch = <float *>&workspace[0] if p.scratch else NULL
    cdef const float *source = &x[0, 0, 0, 0, 0]
    cdef float *target = &out[0, 0, 0, 0, 0]
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        pool_rows(&p, source, target, rows * part // threads, rows * (part + 1) // threads, scratch + part * p.scratch)


cdef enum:
    ROWS = 8                 # source rows that are interleaved at a time


cdef void recombine_rows(const float *x, float *out, const long *steps, const long *at_z, const long *at_y,
                         const long *at_x, long channels, long qz, long qy, long qx,
                         long first, long last) noexcept nogil:
    """Rows `first` to `last` of the dense result, counted over (batch, channel, z, y)."""
    cdef long fragment_floats = channels * qz * qy * qx, fragments = steps[0] * steps[1] * steps[2]
    cdef long r, y, z, image, batch, count, i, at
    cdef const float *base
    cdef const float *rows[ROWS]
    for r in range(first, last):
        y = r % (qy * steps[1])
        z = r // (qy * steps[1]) % (qz * steps[0])
        image = r // (qy * steps[1]) // (qz * steps[0])
        batch = image // channels * fragments + at_z[z % steps[0]] + at_y[y % steps[1]]
        base = x + batch * fragment_floats
        base += ((image % channels * qz + z // steps[0]) * qy + y // steps[1]) * qx
        at = 0
        while at < steps[2]:
            count = min(ROWS, steps[2] - at)
            for i in range(count):
                rows[i] = base + at_x[at + i] * fragment_floats
            zn_interleave(out + r * qx * steps[2] + at, rows, qx, count, steps[2])
            at += count


def recombine(const float[:, :, :, :, ::1] x, float[:, :, :, :, ::1] out, const long[::1] table, steps, long threads):
    """Interleave fragments into a dense result.

    `steps` (z, y, x) are result voxels for each voxel of a fragment; entry o of the part of `table` that belongs to an
    axis (first z, then y, then x) is what an offset of o along it adds to the batch index of the fragment it comes from.
    """
    cdef long[3] step = steps
    cdef const long *at_z = &table[0]
    cdef long rows = out.shape[0] * out.shape[1] * out.shape[2] * out.shape[3], part
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        recombine_rows(&x[0, 0, 0, 0, 0], &out[0, 0, 0, 0, 0], step, at_z, at_z + step[0], at_z + step[0] + step[1],
                       x.shape[1], x.shape[2], x.shape[3], x.shape[4],
                       rows * part // threads, rows * (part + 1) // threads)
