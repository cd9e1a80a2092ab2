# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Direct convolution: register-blocked products over (input channel, kernel voxel) terms, without an im2col.

Form "channels": the lanes are output channels, a block is two vectors of them times a few voxels, and each input voxel
is broadcast; voxels may lie anywhere, so any stride fills the registers, and so does any tiny volume. Form "voxels":
the lanes are consecutive x voxels, a block is up to four output channels times a few vectors, and each weight is
broadcast; it takes few output channels, and stores its sums without a transposition. Form "channels" reads and writes
either layout: a term is but an offset into the input, and sums are blocked already; form "voxels" is for the plain one.

The blocking is that of a matrix product (Goto and van de Geijn, ACM TOMS 34(3), 2008): a chunk of points stays in the
caches while spans of terms pass over it, and a span's weights stay in L1 while the chunk passes over them. Each span is
summed by itself and then added to those before, which also keeps float32 errors low.
"""

from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memmove, memset

from array_ends cimport read_from, write_to

cdef extern from "direct_kernel.h" nogil:
    const int ZN_LANES
    const int ZN_DIRECT_SUMS
    const int ZN_DIRECT_CHANNELS
    const int ZN_DIRECT_VECTORS
    int zn_direct_points(int side)
    void zn_direct_channels(
        int vectors, const float *x, const ptrdiff_t *point, long points, const ptrdiff_t *term, long terms,
        const float *weight, const float *bias, float *sums)
    void zn_direct_voxels(
        int channels, const float *x, const ptrdiff_t *point, const ptrdiff_t *place, long points,
        const ptrdiff_t *term, long terms, const float *weight, const float *bias, float *sums, long row)
    void zn_direct_store_channels(
        const float *sums, long width, long points, int channels, float *out, long out_channel,
        int code, float a, float b)
    void zn_direct_store_lanes(
        const float *sums, long width, long points, int channels, float *out, int stream, int code, float a, float b)
    void zn_direct_store_voxels(const float *sums, float *out, long n, int stream, int code, float a, float b)
    void zn_stream_end()

#: Floats in a vector of this build.
LANES = ZN_LANES
#: The most points that a register block may have: tables and sums go on for as many beyond a chunk's end.
BLOCK_POINTS = ZN_DIRECT_SUMS
#: The most output channels that a register block of form "voxels" has.
BLOCK_CHANNELS = ZN_DIRECT_CHANNELS
#: The most vectors of output channels that a register block of form "channels" has.
BLOCK_VECTORS = ZN_DIRECT_VECTORS


def block_points(int side):
    """Points in a register block with `side` vectors of channels, or `side` channels."""
    return zn_direct_points(side)


cdef struct Problem:
    # what is computed; steps count floats: output voxel (b, z, y, x) sees the input from b * in_batch + z * in_z .. on
    Py_ssize_t in_channels, out_channels, batch, z, y, x
    Py_ssize_t in_batch, in_channel, in_z, in_y, in_x, out_batch, out_channel
    Py_ssize_t last_start  # "voxels": from here on, a vector of the last term would read past the input
    const float *src
    float *out
    const float *weight
    const float *bias
    const ptrdiff_t *term  # where the terms lie from the voxel they are for
    # a span is `span_channels` channels, or one of the `parts` of a single one
    Py_ssize_t kernel_terms, span_channels, span_terms, parts, spans
    # output channels: `units` (vectors of them, or single ones) dealt evenly to `blocks`, of which a task has one of
    # `splits` parts; form "channels" adds a span to the sums of a `group` of blocks before it turns to the next
    Py_ssize_t units, blocks, splits, group
    # points, `chunk` to a task; a line of form "voxels" is `rows` rows with their gaps, cut into `pieces`, or `lines`
    # to a task
    Py_ssize_t chunk, rows, lines, pieces
    Py_ssize_t table_bytes, row
    bint in_place, stream, lanes_out  # "channels": the output is blocked
    int code
    float a, b


cdef inline Py_ssize_t first_unit(const Problem *p, Py_ssize_t block) noexcept nogil:
    """The first unit of a block, the first blocks having one more than the rest where they do not come out even."""
    return block * (p.units // p.blocks) + min(block, p.units % p.blocks)


cdef inline Py_ssize_t start_of(const Problem *p, Py_ssize_t row) noexcept nogil:
    """Where output row `row`, counted over batch, z and y, starts in the input."""
    return row // (p.z * p.y) * p.in_batch + row // p.y % p.z * p.in_z + row % p.y * p.in_y


cdef inline Py_ssize_t terms_of(
    const Problem *p, Py_ssize_t span, Py_ssize_t *channel, Py_ssize_t *first
) noexcept nogil:
    """How many terms a span has; the channel it begins in, and the first of that channel's terms."""
    channel[0] = span // p.parts * p.span_channels
    first[0] = span % p.parts * p.span_terms
    return min(p.span_terms, min(p.span_channels, p.in_channels - channel[0]) * p.kernel_terms - first[0])


cdef void channels_task(const Problem *p, Py_ssize_t task, char *scratch) noexcept nogil:
    """One chunk of voxels, counted over batch, z, y and x, times one part of the output channels."""
    cdef Py_ssize_t volume = p.z * p.y * p.x, whole = p.in_channels * p.kernel_terms
    cdef Py_ssize_t first = task // p.splits * p.chunk, points = min(p.chunk, p.batch * volume - first)
    cdef Py_ssize_t i, n, k, row, x, at, span, channel = 0, term = 0, terms, block, unit, width, batch
    cdef Py_ssize_t split = task % p.splits, stop
    cdef Py_ssize_t lead = p.blocks * split // p.splits, end = p.blocks * (split + 1) // p.splits
    cdef ptrdiff_t *point = <ptrdiff_t *> scratch
    cdef const float *bias
    cdef float *sums = <float *> (scratch + p.table_bytes)
    cdef float *held
    cdef float *out
    row, x, i = first // p.x, first % p.x, 0
    while i < points:
        at = start_of(p, row) + (x - i) * p.in_x
        n = min(points, i + p.x - x)
        for i in range(i, n):
            point[i] = at + i * p.in_x
        row, x, i = row + 1, 0, n
    for i in range(points, points + ZN_DIRECT_SUMS):
        point[i] = point[points - 1]

    while lead < end:
        stop = min(lead + p.group, end)
        for span in range(p.spans):
            terms = terms_of(p, span, &channel, &term)
            for block in range(lead, stop):
                unit = first_unit(p, block)
                width = first_unit(p, block + 1) - unit
                if span == 0:
                    bias = p.bias + unit * ZN_LANES
                else:
                    bias = NULL
                zn_direct_channels(
                    width, p.src, point, points, p.term + channel * p.kernel_terms + term, terms,
                    p.weight + (unit * whole + (channel * p.kernel_terms + term) * width) * ZN_LANES, bias,
                    sums + (block - lead) * p.row)
        for block in range(lead, stop):
            unit = first_unit(p, block)
            width = first_unit(p, block + 1) - unit
            for k in range(width):
                channel = (unit + k) * ZN_LANES
                i = 0
                while i < points:
                    batch = (first + i) // volume
                    n = min(points - i, (batch + 1) * volume - first - i)
                    held = sums + (block - lead) * p.row + (i * width + k) * ZN_LANES
                    out = p.out + batch * p.out_batch + channel * p.out_channel
                    at = first + i - batch * volume
                    if p.lanes_out:
                        zn_direct_store_lanes(
                            held, width * ZN_LANES, n, min(ZN_LANES, p.out_channels - channel), out + at * ZN_LANES,
                            p.stream, p.code, p.a, p.b)
                    else:
                        zn_direct_store_channels(
                            held, width * ZN_LANES, n, min(ZN_LANES, p.out_channels - channel), out + at,
                            p.out_channel, p.code, p.a, p.b)
                    i += n
        lead = stop
    if p.stream:
        zn_stream_end()


cdef inline Py_ssize_t squeeze(
    const Problem *p, float *row, const ptrdiff_t *shift, Py_ssize_t lines, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Close the gaps between the output rows in positions `begin` to `end` of `lines` lines; return the floats left.

    `row` holds each line by whole vectors, of which the last may have been read `shift` voxels early.
    """
    cdef Py_ssize_t line, a, e, at, past, vectors = (end - begin + ZN_LANES - 1) // ZN_LANES, done = 0
    cdef Py_ssize_t pitch = p.in_y if p.rows > 1 else end
    cdef float *held = row
    cdef float *last
    for line in range(lines):
        past = shift[(line + 1) * vectors - 1]
        if past:
            last = held + (vectors - 1) * ZN_LANES
            memmove(last, last + past, (ZN_LANES - past) * sizeof(float))
        at = begin // pitch * pitch
        while at < end:
            a = max(begin, at)
            e = min(end, at + p.x)
            if a < e:
                memmove(row + done, held + a - begin, (e - a) * sizeof(float))
                done += e - a
            at += pitch
        held += vectors * ZN_LANES
    return done


cdef void voxels_task(const Problem *p, Py_ssize_t task, char *scratch) noexcept nogil:
    """One piece of a line, or several lines, times one part of the output channels.

    A vector that would reach past the input is read `shift` voxels early. `in_place`, rows lie end to end in the sums,
    the next row overwriting what the last vector has too much; else they lie by whole vectors, and are squeezed at the
    end.
    """
    cdef Py_ssize_t volume = p.z * p.y * p.x, whole = p.in_channels * p.kernel_terms, table = p.chunk + ZN_DIRECT_SUMS
    cdef Py_ssize_t chunk = task // p.splits, split = task % p.splits, per_batch = p.z * p.y // p.rows
    cdef Py_ssize_t line, lines, first, start, begin = 0, close = (p.rows - 1) * p.in_y + p.x, at, past
    cdef Py_ssize_t points = 0, kept = 0, i, n, k, span, channel = 0, term = 0, terms, block, unit, width, batch
    cdef ptrdiff_t *point = <ptrdiff_t *> scratch
    cdef ptrdiff_t *place = point + table
    cdef ptrdiff_t *shift = place + table
    cdef const float *bias
    cdef float *sums = <float *> (scratch + p.table_bytes)
    cdef float *row
    if p.pieces > 1:
        line, lines = chunk // p.pieces, 1
        begin = chunk % p.pieces * p.chunk * ZN_LANES
        close = min(close, begin + p.chunk * ZN_LANES)
    else:
        line = chunk * p.lines
        lines = min(p.lines, p.batch * per_batch - line)
    # the first output voxel, counted over batch, z, y and x
    first = line * p.rows * p.x + begin
    if p.rows > 1:
        first += begin // p.in_y * p.x + min(p.x, begin % p.in_y) - begin
    for line in range(line, line + lines):
        start, at = start_of(p, line * p.rows), begin
        while at < close:
            past = max(0, start + at - p.last_start)
            point[points] = start + at - past
            shift[points] = past
            place[points] = ZN_LANES + (kept + at - begin - past if p.in_place else points * ZN_LANES)
            points += 1
            at += ZN_LANES
        kept += close - begin
    for i in range(points, points + ZN_DIRECT_SUMS):
        point[i] = point[points - 1]
        place[i] = place[points - 1]

    for block in range(p.blocks * split // p.splits, p.blocks * (split + 1) // p.splits):
        unit = first_unit(p, block)
        width = first_unit(p, block + 1) - unit
        bias = p.bias + unit
        for span in range(p.spans):
            terms = terms_of(p, span, &channel, &term)
            zn_direct_voxels(
                width, p.src, point, place, points, p.term + channel * p.kernel_terms + term, terms,
                p.weight + unit * whole + (channel * p.kernel_terms + term) * width, bias, sums, p.row)
            bias = NULL
        for k in range(width):
            row = sums + k * p.row + ZN_LANES
            if not p.in_place:
                kept = squeeze(p, row, shift, lines, begin, close)
            i = 0
            while i < kept:
                batch = (first + i) // volume
                n = min(kept - i, (batch + 1) * volume - first - i)
                zn_direct_store_voxels(
                    row + i, p.out + batch * p.out_batch + (unit + k) * p.out_channel + first + i - batch * volume,
                    n, p.stream, p.code, p.a, p.b)
                i += n
    if p.stream:
        zn_stream_end()


cdef void run(const Problem *p, bint voxels, int threads, char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    """All tasks, each thread with its own scratch."""
    cdef Py_ssize_t task, tasks = p.splits, volume = p.z * p.y * p.x
    cdef char *own
    if not voxels:
        tasks *= (p.batch * volume + p.chunk - 1) // p.chunk
    elif p.pieces > 1:
        tasks *= p.batch * p.z * p.y // p.rows * p.pieces
    else:
        tasks *= (p.batch * p.z * p.y // p.rows + p.lines - 1) // p.lines
    for task in prange(tasks, num_threads=threads, schedule="dynamic", chunksize=1):
        own = scratch + threadid() * scratch_bytes
        if voxels:
            voxels_task(p, task, own)
        else:
            channels_task(p, task, own)


cdef void pad_slab(
    const float *x, float *slab, Py_ssize_t batch, Py_ssize_t channels, Py_ssize_t planes, Py_ssize_t first,
    Py_ssize_t z, Py_ssize_t y, Py_ssize_t x_size, Py_ssize_t pad_y, Py_ssize_t pad_x, int threads
) noexcept nogil:
    """Copy `planes` z-planes of every channel from plane `first` on, zeros where there is no input, into a slab."""
    cdef Py_ssize_t row = x_size + 2 * pad_x, plane = row * (y + 2 * pad_y), item, at, i
    cdef float *to
    for item in prange(batch * channels * planes, num_threads=threads, schedule="static"):
        to = slab + item * plane
        at = first + item % planes
        if at < 0 or at >= z:
            memset(to, 0, plane * sizeof(float))
        else:
            memset(to, 0, pad_y * row * sizeof(float))
            memset(to + (pad_y + y) * row, 0, pad_y * row * sizeof(float))
            to = to + pad_y * row
            for i in range(y):
                memset(to, 0, pad_x * sizeof(float))
                memcpy(to + pad_x, x + ((item // planes * z + at) * y + i) * x_size, x_size * sizeof(float))
                memset(to + pad_x + x_size, 0, pad_x * sizeof(float))
                to = to + row


def convolve(x, out, const unsigned char[::1] resident, unsigned char[::1] workspace, plan):
    """Compute `out` from `x`.

    Parameters
    ----------
    x : float32, (batch, in channels, z, y, x), or that in the blocked layout
    out : float32, (batch, out channels, z, y, x), or that in the blocked layout
    resident : uint8, ``plan.resident_bytes`` of bias, term offsets and packed weights, 64-byte aligned
    workspace : uint8, at least ``plan.workspace_bytes``, 64-byte aligned
    plan : `znni.primitives.cpu_direct.Blocking`
        Made for the shapes of `x` and `out`.

    Raises
    ------
    ValueError, TypeError
        Where an array is of another type, or shorter than the plan says.
    """
    cdef Problem p
    cdef bint voxels = plan.voxels, padded = plan.slab_z > 0
    cdef int threads = plan.threads
    cdef Py_ssize_t scratch_bytes = plan.scratch_bytes, batch, channels, in_z, in_y, in_x, out_z = out.shape[2], b, z
    cdef Py_ssize_t slab_batch = plan.slab_batch, slab_z = plan.slab_z, planes = plan.slab_planes
    cdef Py_ssize_t stride_z = plan.stride_z, out_plane = out.shape[3] * out.shape[4], margin, element
    cdef Py_ssize_t pad_z = plan.padding[0], pad_y = plan.padding[1], pad_x = plan.padding[2]
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef char *scratch = <char *> &workspace[0]
    cdef float *slab = <float *> (scratch + threads * scratch_bytes)
    if workspace.shape[0] < plan.workspace_bytes or resident.shape[0] < plan.resident_bytes:
        raise ValueError("workspace or resident array is smaller than the plan says")
    # a blocked array is one of as many channels as it has blocks, whose voxels are ZN_LANES floats
    batch, channels, in_z, in_y, in_x = x.shape[:5]
    in_x, pad_x = in_x * <Py_ssize_t> plan.in_lanes, pad_x * <Py_ssize_t> plan.in_lanes
    p.lanes_out = plan.out_lanes > 1
    p.in_channels, p.out_channels, p.batch = plan.in_channels, plan.out_channels, batch
    p.z, p.y, p.x = plan.size
    p.in_batch, p.in_channel, p.in_z, p.in_y, p.in_x = plan.in_steps
    p.out_channel = out_z * out_plane
    p.out_batch = <Py_ssize_t> out.shape[1] * <Py_ssize_t> plan.out_lanes * p.out_channel
    p.kernel_terms, p.span_channels, p.span_terms = plan.kernel_terms, plan.span_channels, plan.span_terms
    p.units, p.blocks, p.splits = plan.units, plan.blocks, plan.splits
    p.chunk, p.rows, p.lines, p.pieces = plan.chunk, plan.rows, plan.lines, plan.pieces
    p.table_bytes, p.row, p.in_place = plan.table_bytes, plan.row, plan.in_place
    # lanes are streamed as they are, which their array must be aligned for
    p.stream = plan.stream and not (p.lanes_out and <uintptr_t> target % (ZN_LANES * sizeof(float)))
    p.code, p.a, p.b = plan.activation.code, plan.activation.a, plan.activation.b
    p.parts, p.spans, p.group = plan.parts, plan.spans, plan.group
    p.weight = <const float *> &resident[<Py_ssize_t> plan.weight_at]
    p.bias = <const float *> &resident[<Py_ssize_t> plan.bias_at]
    p.term = <const ptrdiff_t *> &resident[<Py_ssize_t> plan.term_at]
    p.src, p.out = source, target
    # how far the last term of a vector that is read lies from the first
    margin = plan.last_term
    with nogil:
        if not padded:
            p.last_start = batch * p.in_batch - margin - ZN_LANES
            run(&p, voxels, threads, scratch, scratch_bytes)
        else:
            p.src, element = slab, channels * in_z * in_y * in_x
            b = 0
            while b < batch:
                p.batch = min(slab_batch, batch - b)
                p.last_start = p.batch * p.in_batch - margin  # a slab ends with a vector to spare
                z = 0
                while z < out_z:
                    p.z = min(slab_z, out_z - z)
                    p.out = target + b * p.out_batch + z * out_plane * (ZN_LANES if p.lanes_out else 1)
                    pad_slab(source + b * element, slab, p.batch, channels, planes, z * stride_z - pad_z,
                             in_z, in_y, in_x, pad_y, pad_x, threads)
                    run(&p, voxels, threads, scratch, scratch_bytes)
                    z += slab_z
                b += slab_batch
