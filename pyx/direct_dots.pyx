# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Direct convolution with input channels in the lanes, for few output channels and a blocked input.

A vector of the input is the channels of one voxel as they lie in memory; it is multiplied by as many weights for each
of up to four output channels. Sums stay vectors, one a voxel and output channel, until all terms are in; only then are
their lanes added up, which makes rows of voxels. Where output channels are few, lanes of output channels would be idle.
"""

from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t

from array_ends cimport read_from, write_to

cdef extern from "direct_dots.h" nogil:
    const int ZN_LANES
    const int ZN_DOTS_CHANNELS
    void zn_dots(
        int channels, const float *x, long points, const ptrdiff_t *term, long terms, const float *weight, int add,
        float *sums)
    void zn_dots_store(
        const float *sums, long width, long points, float bias, float *out, int code, float a, float b)

#: Floats in a vector of this build.
LANES = ZN_LANES
#: The most output channels that a block has.
BLOCK_CHANNELS = ZN_DOTS_CHANNELS


cdef struct Problem:
    # steps count floats
    long batch, z, y, x, out_channels, blocks
    long in_batch, in_z, in_y
    long terms, span  # a span's weights, and what it reads of the input, stay in L1
    long rows, tiles, chunk  # rows to a task, tasks to a plane, points whose sums are held at once
    int code
    float a, b
    const float *src
    float *out
    const float *weight
    const float *bias
    const ptrdiff_t *term


cdef void rows_task(const Problem *p, long task, float *sums) noexcept nogil:
    """Some rows of one plane, all output channels."""
    cdef long plane = task // p.tiles, first = task % p.tiles * p.rows, y, x, points
    cdef long block, channel, width, term, terms, c
    cdef long volume = p.z * p.y * p.x, batch = plane // p.z, z = plane % p.z
    cdef const float *src = p.src + batch * p.in_batch + z * p.in_z
    cdef float *out = p.out + batch * p.out_channels * volume + z * p.y * p.x
    cdef const float *weight
    for y in range(first, min(first + p.rows, p.y)):
        x = 0
        while x < p.x:
            points = min(p.chunk, p.x - x)
            for block in range(p.blocks):
                channel = block * (p.out_channels // p.blocks) + min(block, p.out_channels % p.blocks)
                width = p.out_channels // p.blocks + (block < p.out_channels % p.blocks)
                weight = p.weight + channel * p.terms * ZN_LANES
                term = 0
                while term < p.terms:
                    terms = min(p.span, p.terms - term)
                    zn_dots(
                        width, src + y * p.in_y + x * ZN_LANES, points, p.term + term, terms,
                        weight + term * width * ZN_LANES, term > 0, sums)
                    term += terms
                for c in range(width):
                    zn_dots_store(
                        sums + c * ZN_LANES, width * ZN_LANES, points, p.bias[channel + c],
                        out + (channel + c) * volume + y * p.x + x, p.code, p.a, p.b)
            x += points


def convolve(x, out, const unsigned char[::1] resident, unsigned char[::1] workspace, plan):
    """Compute `out` from `x`.

    Parameters
    ----------
    x : float32, (batch, blocks of in channels, z, y, x, lanes)
    out : float32, (batch, out channels, z, y, x)
    resident : uint8, ``plan.resident_bytes`` of bias, term offsets and packed weights, 64-byte aligned
    workspace : uint8, at least ``plan.workspace_bytes``, 64-byte aligned
    plan : `znni.primitives.cpu_direct_dots.Blocking`
        Made for the shapes of `x` and `out`.

    Raises
    ------
    ValueError, TypeError
        Where an array is of another type, or shorter than the plan says.
    """
    cdef Problem p
    cdef int threads = plan.threads
    cdef long task, tasks, scratch = plan.scratch
    cdef float *sums = <float *> &workspace[0]
    if workspace.shape[0] < plan.workspace_bytes or resident.shape[0] < plan.resident_bytes:
        raise ValueError("workspace or resident array is smaller than the plan says")
    p.src, p.out = read_from(x), write_to(out)
    p.batch, p.out_channels, p.z, p.y, p.x = out.shape
    p.in_batch, p.in_z, p.in_y = plan.in_steps
    p.blocks, p.terms, p.span = plan.blocks, plan.terms, plan.span
    p.rows, p.tiles, p.chunk = plan.rows, plan.tiles, plan.chunk
    p.code, p.a, p.b = plan.activation.code, plan.activation.a, plan.activation.b
    p.bias = <const float *> &resident[0]
    p.term = <const ptrdiff_t *> &resident[<Py_ssize_t> plan.term_at]
    p.weight = <const float *> &resident[<Py_ssize_t> plan.weight_at]
    tasks = p.batch * p.z * p.tiles
    for task in prange(tasks, nogil=True, num_threads=threads, schedule="dynamic", chunksize=1):
        rows_task(&p, task, sums + threadid() * scratch)
