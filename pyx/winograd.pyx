# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Winograd convolution: tiles nested along z, y and x, and a real matrix product for each of their points.

Per block of tiles, all by one thread, in its own part of the workspace:

1. Input transforms (`winograd_lanes.h`): a tile of one vector of channels to its points. A *slot* is one point of all
   tiles of the block: a matrix, tiles x channels.
2. Per point a matrix product with the transformed kernels (`real_gemm.h`). The product of point p goes to slot p, its
   factor comes from slot p + 1, so that one set of slots, and the caches' lines, serve for both.
3. Output transforms, bias, activation, store.

Tiles go by *strips*, neighbours along x, so that rows of a plain layout are transposed to vectors once; a blocked input
is read where it lies, unless the strip overhangs it. What overhangs is zero, or not stored. A dilated layer is
prod(dilation) interleaved sub-lattices.
"""

from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from winograd_input cimport strip_to_points
from winograd_output cimport Finish, points_to_strip
from winograd_strips cimport (
    ZN_LANES,
    Axis,
    Geometry,
    Strip,
    axis_of,
    lay_out,
    strip_at,
    zn_wino_input_of,
    zn_wino_output_of,
)

cdef extern from "real_gemm.h" nogil:
    enum: ZN_GEMM_RUN
    int zn_gemm_rows()
    int zn_gemm_width(long left)
    void zn_gemm(long rows, long depth, long vectors, const float *a, long a_row, const float *b, float *c, long c_row)

cdef extern from "seconds.h" nogil:
    double zn_stage_begin(const double *spent)
    double zn_stage_end(double *spent, int stage, double since)

LANES = ZN_LANES
ROWS = zn_gemm_rows()  # tiles that the matrix product takes in one go
RUN = ZN_GEMM_RUN  # input channels that it sums up in one go
STAGES = ("input", "products", "output")  # that `run` can time

cdef enum:
    MAX_POINTS = 8  # of an axis

cdef enum:  # in the order of STAGES
    INPUT
    PRODUCTS
    OUTPUT
    N_STAGES


cdef class Tiling:
    """Geometry and kernels of one layer on one shape with one config.

    Parameters
    ----------
    shape : tuple of int
        Of the input: (batch, channel, z, y, x).
    out_channels : int
    kernel, padding, dilation : tuple of int
        (z, y, x).
    tile : tuple of int
        Outputs of a tile (z, y, x): 1 where the kernel is 1, else one of F(2, 3), F(4, 3), F(6, 3), F(2, 5), F(4, 5).
    block : int
        Tiles that a thread takes together.
    threads : int
    takes_blocked, gives_blocked : bool
        Whether input and output are blocked by channels.

    Attributes
    ----------
    tiles, points : int
        Tiles of the layer; points of a tile.
    block : int
        As given, but no more than there are tiles.
    in_vectors, out_vectors : int
        Vectors of channels.
    kernel_bytes : int
        Of the transformed kernels.
    workspace_bytes : int
        That `run` wants.

    Raises
    ------
    ValueError
        Where the kernel does not fit the input, or there is no such tile.
    """

    cdef Geometry g
    cdef int threads
    cdef readonly long tiles, points, block, in_vectors, out_vectors, kernel_bytes, workspace_bytes

    def __init__(self, shape, long out_channels, kernel, padding, dilation, tile, long block, int threads,
                 bint takes_blocked, bint gives_blocked):
        cdef Geometry *g = &self.g
        cdef int i
        cdef Axis *a
        g.batch, g.in_channels, g.out_channels, self.threads = shape[0], shape[1], out_channels, threads
        g.takes_blocked, g.gives_blocked = takes_blocked, gives_blocked
        for i in range(3):
            a = &g.axis[i]
            a[0] = axis_of(kernel[i], tile[i], padding[i], dilation[i], shape[2 + i])
            g.transform.n[i], g.transform.m[i] = a.n, a.m
            g.transform.input[i], g.transform.output[i] = NULL, NULL
            if a.n != 1:
                g.transform.input[i] = zn_wino_input_of(a.n)
                g.transform.output[i] = zn_wino_output_of(a.n, a.m)
                if g.transform.output[i] == NULL:
                    raise ValueError(f"there is no transform F({a.m}, {a.kernel})")
            if a.out < 1:
                raise ValueError(f"a kernel of {a.kernel} does not fit {a.size} voxels")
        lay_out(g, block)
        self.tiles, self.points, self.block = g.tiles, g.points, g.block
        self.in_vectors, self.out_vectors = g.in_vectors, g.out_vectors
        self.kernel_bytes = 4 * g.points * g.in_channels * g.c_row
        self.workspace_bytes = 4 * threads * g.scratch_step

    def transform_kernels(self, const float[:, :, :, :, ::1] weight not None, along_z, along_y, along_x,
                          float[::1] kernels not None):
        """Transform the kernels, in double precision, and pack them as the matrix product reads them.

        Parameters
        ----------
        weight : float32, (out channel, in channel, z, y, x)
        along_z, along_y, along_x : float64, (points, kernel)
            What `znni.winograd_points.kernel_transform` gives for each axis.
        kernels : float32, ``kernel_bytes`` long
            Is written.
        """
        cdef const double[:, ::1] gz = along_z, gy = along_y, gx = along_x
        cdef const double *by[3]
        cdef const float *source = &weight[0, 0, 0, 0, 0]
        cdef float *to = &kernels[0]
        cdef long channel, channels = self.g.in_channels
        by[0], by[1], by[2] = &gz[0, 0], &gy[0, 0], &gx[0, 0]
        with nogil:
            memset(to, 0, self.kernel_bytes)
            for channel in prange(channels, num_threads=self.threads, schedule="static"):
                kernels_of(&self.g, source, by, channel, to)

    def run(self, x, const float[::1] kernels not None, const float[::1] bias not None, int activation, float a,
            float b, out, unsigned char[::1] workspace not None, double[:, ::1] stages=None):
        """Compute the layer.

        Parameters
        ----------
        x : float32, (batch, in channel, z, y, x), or blocked: (batch, vector, z, y, x, lane)
        kernels : float32
            Of `transform_kernels`.
        bias : float32, (out channel,)
        activation : int
            Its code, with parameters `a` and `b`.
        out : float32, (batch, out channel, z, y, x), or blocked
            Every element is written.
        workspace : uint8, 64-byte aligned, ``workspace_bytes`` long
        stages : float64, (threads, len(STAGES)), optional
            Each thread adds the seconds that it spent in each stage.
        """
        cdef Geometry *g = &self.g
        cdef const float[:, :, :, :, ::1] plain_x
        cdef const float[:, :, :, :, :, ::1] blocked_x
        cdef float[:, :, :, :, ::1] plain_out
        cdef float[:, :, :, :, :, ::1] blocked_out
        cdef const float *source
        cdef float *target
        cdef float *scratch = <float *> &workspace[0]
        cdef float *own
        cdef double *spent = NULL
        cdef double *own_spent
        cdef Finish finish
        cdef long block, blocks = (g.tiles + g.block - 1) // g.block
        if <size_t> scratch % 64:
            raise ValueError("the workspace must start at a multiple of 64 bytes; take it from an arena")
        if stages is not None:
            if stages.shape[0] != self.threads or stages.shape[1] != N_STAGES:
                raise ValueError(f"stages must be {self.threads} x {N_STAGES}, "
                                 f"got {stages.shape[0]} x {stages.shape[1]}")
            spent = &stages[0, 0]
        if g.takes_blocked:
            blocked_x = x
            source = &blocked_x[0, 0, 0, 0, 0, 0]
        else:
            plain_x = x
            source = &plain_x[0, 0, 0, 0, 0]
        if g.gives_blocked:
            blocked_out = out
            target = &blocked_out[0, 0, 0, 0, 0, 0]
        else:
            plain_out = out
            target = &plain_out[0, 0, 0, 0, 0]
        finish.bias, finish.activation, finish.a, finish.b = &bias[0], activation, a, b
        with nogil, parallel(num_threads=self.threads):
            own = scratch + threadid() * g.scratch_step
            own_spent = NULL if spent == NULL else spent + threadid() * N_STAGES
            for block in prange(blocks, schedule="dynamic", chunksize=1):
                do_block(g, source, &kernels[0], &finish, block, target, own, own_spent)


cdef void do_block(const Geometry *g, const float *x, const float *kernels, const Finish *finish, long block,
                   float *out, float *scratch, double *spent) noexcept nogil:
    """All stages of a block of tiles."""
    cdef long first = block * g.block, count = min(g.block, g.tiles - first), tile, point
    cdef float *factors = scratch + g.slot
    cdef float *staged = scratch + g.slots_floats
    cdef float *buffer = staged + g.staged_floats
    cdef double since = zn_stage_begin(spent)
    cdef Strip strip
    tile = 0
    while tile < count:
        strip = strip_at(g, first + tile, count - tile)
        strip_to_points(g, x, &strip, factors + tile * g.a_row, staged, buffer)
        tile += strip.count
    since = zn_stage_end(spent, INPUT, since)
    for point in range(g.points):
        zn_gemm(count, g.in_channels, g.out_vectors, factors + point * g.slot, g.a_row,
                kernels + point * g.in_channels * g.c_row, scratch + point * g.slot, g.c_row)
    since = zn_stage_end(spent, PRODUCTS, since)
    tile = 0
    while tile < count:
        strip = strip_at(g, first + tile, count - tile)
        points_to_strip(g, scratch + tile * g.c_row, &strip, finish, out, staged, buffer)
        tile += strip.count
    zn_stage_end(spent, OUTPUT, since)


cdef void kernels_of(const Geometry *g, const float *weight, const double **by, long channel,
                     float *to) noexcept nogil:
    """All kernels of one input channel."""
    cdef double now[MAX_POINTS * MAX_POINTS * MAX_POINTS]
    cdef double rows[MAX_POINTS * MAX_POINTS * MAX_POINTS]
    cdef const Axis *a = &g.axis[0]
    cdef long volume = <long> a[0].kernel * a[1].kernel * a[2].kernel
    cdef long o, vector, first, width, i, p
    cdef const float *kernel
    first, width = 0, zn_gemm_width(g.out_vectors)
    for o in range(g.out_channels):
        vector = o // ZN_LANES
        if vector == first + width:
            first, width = vector, zn_gemm_width(g.out_vectors - vector)
        kernel = weight + (o * g.in_channels + channel) * volume
        for i in range(volume):
            now[i] = kernel[i]
        lengthen(now, rows, <long> a[0].kernel * a[1].kernel, a[2].kernel, 1, a[2].n, by[2])
        lengthen(rows, now, a[0].kernel, a[1].kernel, a[2].n, a[1].n, by[1])
        lengthen(now, rows, 1, a[0].kernel, <long> a[1].n * a[2].n, a[0].n, by[0])
        for p in range(g.points):
            to[(p * g.in_channels * g.out_vectors + first * g.in_channels + channel * width + vector - first)
               * ZN_LANES + o % ZN_LANES] = <float> rows[p]


cdef void lengthen(const double *source, double *to, long outer, int kernel, long inner, int n,
                   const double *g) noexcept nogil:
    """(outer, kernel, inner) to (outer, n, inner), by the matrix `g` (n, kernel)."""
    cdef long o, i
    cdef int p, k
    cdef double total
    for o in range(outer):
        for p in range(n):
            for i in range(inner):
                total = 0.0
                for k in range(kernel):
                    total = total + g[p * kernel + k] * source[(o * kernel + k) * inner + i]
                to[(o * n + p) * inner + i] = total
