# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Direct convolution whose output goes through max-pooling fragments (MPF) while in cache, and never to memory.

A task is one block of output channels (the lanes) times a tile of windows in y and x times a run of them in z. Plane
by plane and row by row the convolution is computed into a ring of as many rows as a window is high; each row that
completes windows gives their maxima over y and x, which are combined with those of the planes before, in a ring of one
plane less than a window is deep, and go to the fragments they belong to. So only the rims of tiles are computed more
than once.

Every window is one voxel of one fragment: the one that starts at dense voxel Z is voxel Z // stride of fragment
Z % stride. A call that makes only some fragments computes only the rows that their windows touch.
"""

from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t

from array_ends cimport read_from, write_to

cdef extern from "direct_row.h" nogil:
    const int ZN_LANES
    const int ZN_ROW_VECTORS
    const int ZN_ROW_POINTS
    void zn_direct_row(
        int vectors, long step, const float *x, long points, const ptrdiff_t *term, long terms, const float *weight,
        const float *bias, float *sum)

cdef extern from "direct_maxima.h" nogil:
    ctypedef struct zn_mpf_line:
        const float *conv
        long rows, pitch
        long taps, voxel
        long step, n
        const float *kept
        long planes, plane
        float *keep
        float *out
        int stream, careful, code
        float a, b
    void zn_mpf_lanes(zn_mpf_line *line, int channels)
    int zn_mpf_finite(const float *sums, long n)
    void zn_mpf_row(const zn_mpf_line *line)
    void zn_mpf_spread(
        const float *source, long n, int channels, float *out, long channel, int stream, float *spare)
    void zn_mpf_activate(float *sums, long n, int code, float a, float b)
    void zn_stream_end()

#: Floats in a vector of this build.
LANES = ZN_LANES
#: The most vectors of output channels that a block has.
BLOCK_VECTORS = ZN_ROW_VECTORS
#: Voxels that it has along x, where it has as many vectors.
BLOCK_POINTS = ZN_ROW_POINTS


cdef struct Problem:
    # steps count floats; a window of the convolution at (b, z, y, x) sees the input from b * in_batch + z * in_z .. on
    long batch, in_batch, in_z, in_y, in_x
    long out_channels, units, blocks  # units: vectors of channels, dealt evenly to the blocks
    long terms, span                  # a span's weights stay in L1 while a row passes over them
    long wz, wy, wx, sz, sy, sx       # windows and strides
    long oz, oy, ox                   # a fragment
    long runs, tiles_y, tiles_x       # tasks along each axis
    long first, last                  # fragments to make
    long low_x, high_x                # those of them, or more, by their offset along x
    # scratch, in floats: rows of sums, planes of maxima, and a row of results before and after its transposition
    long pitch, plane, kept_at, line_at, spare_at, scratch
    bint blocked, stream
    int code, code_before             # activation of the maxima, or of the sums where it does not rise
    float a, b
    const float *src
    float *out
    const float *weight
    const float *bias
    const ptrdiff_t *term


cdef inline bint wanted(const Problem *p, long fz, long fy, long *low, long *high) noexcept nogil:
    """Whether fragments of offsets `fz`, `fy` are to be made, and which of them: `low` <= fx < `high`."""
    cdef long base = (fz * p.sy + fy) * p.sx
    low[0] = max(0, p.first - base)
    high[0] = min(p.sx, p.last - base)
    return low[0] < high[0]


cdef inline bint wanted_plane(const Problem *p, long fz) noexcept nogil:
    """Whether any fragment of offset `fz` is to be made."""
    return p.first < (fz + 1) * p.sy * p.sx and fz * p.sy * p.sx < p.last


cdef inline bint wanted_row(const Problem *p, long fy) noexcept nogil:
    """Whether any fragment of offset `fy` is to be made."""
    cdef long fz, low = 0, high = 0
    for fz in range(p.sz):
        if wanted(p, fz, fy, &low, &high):
            return True
    return False


cdef inline bint plane_between(const Problem *p, long begin, long end) noexcept nogil:
    """Whether wanted windows start in any of the planes `begin` to `end`."""
    cdef long z
    for z in range(begin, min(end, begin + p.sz)):
        if wanted_plane(p, z % p.sz):
            return True
    return False


cdef inline bint row_between(const Problem *p, long begin, long end) noexcept nogil:
    """Whether wanted windows start in any of the rows `begin` to `end`."""
    cdef long y
    for y in range(begin, min(end, begin + p.sy)):
        if wanted_row(p, y % p.sy):
            return True
    return False


cdef bint conv_row(
    const Problem *p, const float *src, long points, long unit, long width, float *sums
) noexcept nogil:
    """The sums of one row, span by span, activated if need be; return whether all are finite."""
    cdef long term = 0, terms
    cdef const float *weight = p.weight + unit * p.terms * ZN_LANES
    cdef const float *bias = p.bias + unit * ZN_LANES
    while term < p.terms:
        terms = min(p.span, p.terms - term)
        zn_direct_row(width, p.in_x, src, points, p.term + term, terms, weight + term * width * ZN_LANES, bias, sums)
        bias = NULL
        term += terms
    if p.code_before:
        zn_mpf_activate(sums, points * width, p.code_before, p.a, p.b)
    return zn_mpf_finite(sums, points * width)


cdef void task_of(const Problem *p, long task, float *scratch) noexcept nogil:
    """One block of channels of one tile of windows."""
    cdef long block = task % p.blocks, tile_x = task // p.blocks % p.tiles_x
    cdef long tile_y = task // p.blocks // p.tiles_x % p.tiles_y
    cdef long run = task // p.blocks // p.tiles_x // p.tiles_y % p.runs
    cdef long batch = task // p.blocks // p.tiles_x // p.tiles_y // p.runs
    cdef long unit = block * (p.units // p.blocks) + min(block, p.units % p.blocks)
    cdef long width = p.units // p.blocks + (block < p.units % p.blocks)
    # windows of this task, and how many of each fragment along x
    cdef long z0 = p.oz * run // p.runs * p.sz, z1 = p.oz * (run + 1) // p.runs * p.sz
    cdef long y0 = p.oy * tile_y // p.tiles_y * p.sy, y1 = p.oy * (tile_y + 1) // p.tiles_y * p.sy
    cdef long q0 = p.ox * tile_x // p.tiles_x, n = p.ox * (tile_x + 1) // p.tiles_x - q0
    cdef long points = (n - 1) * p.sx + p.high_x - p.low_x + p.wx - 1, depth = p.wz - 1, fragments = p.last - p.first
    cdef long volume = p.oz * p.oy * p.ox, units_out = p.units if p.blocked else p.out_channels
    cdef long lanes = ZN_LANES if p.blocked else 1
    cdef long z, y, fx, v, low = 0, high = 0, top, channels
    cdef bint stays, complete, gives
    cdef const float *src = p.src + batch * p.in_batch + (q0 * p.sx + p.low_x) * p.in_x
    cdef float *kept
    cdef float *to
    cdef zn_mpf_line line
    line.rows, line.pitch = p.wy, p.pitch
    line.taps, line.voxel, line.step, line.n = p.wx, width * ZN_LANES, p.sx * width * ZN_LANES, n
    line.planes, line.plane = depth, p.plane
    line.careful, line.code, line.a, line.b, line.stream = False, p.code, p.a, p.b, p.blocked and p.stream
    for z in range(z0, z1 + depth):
        if not plane_between(p, max(z0, z - depth), min(z + 1, z1)):
            continue
        stays = depth > 0 and plane_between(p, max(z0, z - depth + 1), min(z + 1, z1))
        complete = z - depth >= z0 and wanted_plane(p, (z - depth) % p.sz)
        for y in range(y0, y1 + p.wy - 1):
            if not row_between(p, max(y0, y - p.wy + 1), min(y + 1, y1)):
                continue
            if not conv_row(p, src + z * p.in_z + y * p.in_y, points, unit, width, scratch + y % p.wy * p.pitch):
                line.careful = True
            top = y - p.wy + 1
            if top < y0 or not wanted_row(p, top % p.sy):
                continue
            gives = complete and wanted(p, (z - depth) % p.sz, top % p.sy, &low, &high)
            for fx in range(p.low_x, p.high_x):
                kept = scratch + p.kept_at + (((top - y0) * (p.high_x - p.low_x) + fx - p.low_x) * n * width) * ZN_LANES
                to = p.out + (
                    (batch * fragments + ((z - depth) % p.sz * p.sy + top % p.sy) * p.sx + fx - p.first) * units_out
                    * volume + (((z - depth) // p.sz * p.oy + top // p.sy) * p.ox + q0)) * lanes
                for v in range(width):
                    channels = min(ZN_LANES, p.out_channels - (unit + v) * ZN_LANES)
                    line.conv = scratch + (fx - p.low_x) * line.voxel + v * ZN_LANES
                    line.kept = kept + v * n * ZN_LANES
                    line.keep = <float *> line.kept + z % depth * p.plane if stays else NULL
                    line.out = NULL
                    if gives and low <= fx and fx < high:
                        line.out = scratch + p.line_at
                        if p.blocked:
                            line.out = to + (unit + v) * volume * ZN_LANES
                    if line.out == NULL and line.keep == NULL:
                        continue
                    zn_mpf_lanes(&line, channels)
                    zn_mpf_row(&line)
                    if line.out != NULL and not p.blocked:
                        zn_mpf_spread(
                            line.out, n, channels, to + (unit + v) * ZN_LANES * volume, volume, p.stream,
                            scratch + p.spare_at)
    if p.stream:
        zn_stream_end()


def convolve(x, out, const unsigned char[::1] resident, unsigned char[::1] workspace, plan, int part):
    """Compute one part of the fragments of a convolution of `x`.

    Parameters
    ----------
    x : float32, (batch, in channels, z, y, x), or that in the blocked layout
    out : float32, (batch * fragments of a part, out channels, z, y, x), or that in the blocked layout
    resident : uint8, ``plan.resident_bytes`` of bias, term offsets and packed weights, 64-byte aligned
    workspace : uint8, at least ``plan.workspace_bytes``, 64-byte aligned
    plan : `znni.primitives.cpu_direct_mpf.Tiling`
        Made for the shapes of `x` and `out`.
    part : int
        Which part.

    Raises
    ------
    ValueError, TypeError
        Where an array is of another type, or shorter than the plan says.
    """
    cdef Problem p
    cdef int threads = plan.threads
    cdef long task, tasks, fx, f, fragments
    cdef float *scratch = <float *> &workspace[0]
    if workspace.shape[0] < plan.workspace_bytes or resident.shape[0] < plan.resident_bytes:
        raise ValueError("workspace or resident array is smaller than the plan says")
    p.src, p.out = read_from(x), write_to(out)
    p.batch, p.in_batch, p.in_z, p.in_y, p.in_x = plan.in_steps
    p.out_channels, p.units, p.blocks = plan.out_channels, plan.units, plan.blocks
    p.terms, p.span = plan.terms, plan.span
    p.wz, p.wy, p.wx = plan.window
    p.sz, p.sy, p.sx = plan.stride
    p.oz, p.oy, p.ox = plan.size
    p.runs, p.tiles_y, p.tiles_x = plan.tiles
    p.pitch, p.plane = plan.pitch, plan.plane
    p.kept_at, p.line_at, p.spare_at, p.scratch = plan.kept_at, plan.line_at, plan.spare_at, plan.scratch
    p.blocked, p.code, p.code_before = plan.blocked, plan.code, plan.code_before
    p.a, p.b = plan.activation.a, plan.activation.b
    # an array that is not aligned to its vectors cannot be streamed to
    p.stream = plan.stream and not (p.blocked and <uintptr_t> p.out % (ZN_LANES * sizeof(float)))
    p.weight = <const float *> &resident[<Py_ssize_t> plan.weight_at]
    p.bias = <const float *> &resident[<Py_ssize_t> plan.bias_at]
    p.term = <const ptrdiff_t *> &resident[<Py_ssize_t> plan.term_at]
    fragments = p.sz * p.sy * p.sx // <long> plan.parts
    p.first, p.last = part * fragments, (part + 1) * fragments
    p.low_x, p.high_x = p.sx, 0
    for f in range(p.first, p.last):
        fx = f % p.sx
        p.low_x, p.high_x = min(p.low_x, fx), max(p.high_x, fx + 1)
    tasks = p.batch * p.runs * p.tiles_y * p.tiles_x * p.blocks
    for task in prange(tasks, nogil=True, num_threads=threads, schedule="dynamic", chunksize=1):
        task_of(&p, task, scratch + threadid() * p.scratch)
