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


cdef extern from "lane_rows.h" nogil:
    enum: ZN_LANES
    ctypedef struct zn_vec:
        pass
    zn_vec zn_load(const float *p)
    void zn_rows_load(const float **row, const float *last, long offset, const float *end, int count, int stride,
                      float *to, long step)
    void zn_rows_prefetch(const float **row, long offset, long floats)
    void zn_rows_store(const float *source, long step, int count, zn_vec bias, int code, float a, float b,
                       float **row, long offset, int stride, const int *first, const int *last)

cdef extern from "real_gemm.h" nogil:
    enum: ZN_GEMM_RUN
    int zn_gemm_rows()
    int zn_gemm_width(long left)
    void zn_gemm(long rows, long depth, long vectors, const float *a, long a_row, const float *b, float *c, long c_row)

cdef extern from "winograd_lanes.h" nogil:
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
    void zn_wino_forward(const zn_wino *w, const float *source, const long *step, float *buffer, float *points,
                         long slot)
    void zn_wino_prefetch(const zn_wino *w, const float *source, const long *step)
    void zn_wino_copy(const float *source, long step, long count, long ahead, float *to)
    void zn_wino_inverse(const zn_wino *w, const float *points, long slot, float *buffer, float *out,
                         const long *out_step)
    void zn_wino_finish(const float *source, const long *step, const int *count, long channels, zn_vec bias, int code,
                        float a, float b, float *to, const long *to_step)

LANES = ZN_LANES
ROWS = zn_gemm_rows()  # tiles that the matrix product takes in one go
RUN = ZN_GEMM_RUN  # input channels that it sums up in one go

cdef enum:
    MAX_LANES = 16
    MAX_POINTS = 8  # of an axis


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


# Neighbours along x.
cdef struct Strip:
    long count  # tiles
    long batch
    int source[3]  # voxel of the input that the first tile starts at; may be negative
    int target[3]  # of the output


# What is fused into the store.
cdef struct Finish:
    const float *bias
    int activation
    float a
    float b


cdef long padded(long floats) noexcept nogil:
    """`floats` rounded up to an odd number of cache lines, so that neighbours differ in their cache sets."""
    return (floats + 15) // 16 * 16 | 16


cdef int ceiling(long a, long b) noexcept nogil:
    """a / b, rounded up; b > 0."""
    return <int> -((-a) // b) if a < 0 else <int> ((a + b - 1) // b)


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

    cdef Axis axis[3]
    cdef zn_wino transform
    cdef long in_channels, out_channels, batch, strip
    cdef long a_row, c_row, slot  # floats from tile to tile of the factors and products, and from point to point
    cdef long slots_floats, staged_floats, scratch_step
    cdef int threads
    cdef bint takes_blocked, gives_blocked
    cdef readonly long tiles, points, block, in_vectors, out_vectors, kernel_bytes, workspace_bytes

    def __init__(self, shape, long out_channels, kernel, padding, dilation, tile, long block, int threads,
                 bint takes_blocked, bint gives_blocked):
        cdef int i, longest
        cdef Axis *a
        self.batch, self.in_channels, self.out_channels, self.threads = shape[0], shape[1], out_channels, threads
        self.in_vectors = (self.in_channels + ZN_LANES - 1) // ZN_LANES
        self.out_vectors = (out_channels + ZN_LANES - 1) // ZN_LANES
        self.takes_blocked, self.gives_blocked = takes_blocked, gives_blocked
        self.tiles, self.points = self.batch, 1
        for i in range(3):
            a = &self.axis[i]
            a.kernel, a.padding, a.dilation, a.size, a.m = kernel[i], padding[i], dilation[i], shape[2 + i], tile[i]
            a.n = a.m + a.kernel - 1
            a.out = a.size + 2 * a.padding - (a.kernel - 1) * a.dilation
            self.transform.n[i], self.transform.m[i] = a.n, a.m
            self.transform.input[i], self.transform.output[i] = NULL, NULL
            if a.n != 1:
                self.transform.input[i] = zn_wino_input_of(a.n)
                self.transform.output[i] = zn_wino_output_of(a.n, a.m)
                if self.transform.output[i] == NULL:
                    raise ValueError(f"there is no transform F({a.m}, {a.kernel})")
            if a.out < 1:
                raise ValueError(f"a kernel of {a.kernel} does not fit {a.size} voxels")
            a.phases = min(a.dilation, a.out)
            longest = (a.out + a.dilation - 1) // a.dilation
            a.tiles = (longest + a.m - 1) // a.m
            self.tiles *= a.phases * a.tiles
            self.points *= a.n
        self.block = max(<long> 1, min(block, self.tiles))
        self.strip = min(<long> self.axis[2].tiles, max(<long> 4, 16 // <long> self.axis[2].m), self.block)
        self.a_row, self.c_row = self.in_vectors * ZN_LANES, self.out_vectors * ZN_LANES
        self.slot = padded(self.block * max(self.a_row, self.c_row))
        self.slots_floats = (self.points + 1) * self.slot
        self.staged_floats = padded(ZN_LINE_VECTORS * ZN_LANES * self.axis[0].n * self.axis[1].n
                                    * (self.axis[2].n + (self.strip - 1) * self.axis[2].m))
        self.scratch_step = self.slots_floats + self.staged_floats + padded(ZN_LANES * self.points)
        self.kernel_bytes = 4 * self.points * self.in_channels * self.c_row
        self.workspace_bytes = 4 * threads * self.scratch_step

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
        cdef const double *g[3]
        cdef const float *source = &weight[0, 0, 0, 0, 0]
        cdef float *to = &kernels[0]
        cdef long channel, floats = self.points * self.in_channels * self.c_row
        g[0], g[1], g[2] = &gz[0, 0], &gy[0, 0], &gx[0, 0]
        with nogil:
            memset(to, 0, floats * sizeof(float))
            for channel in prange(self.in_channels, num_threads=self.threads, schedule="static"):
                self.kernels_of(source, g, channel, to)

    cdef void kernels_of(self, const float *weight, const double **g, long channel, float *to) noexcept nogil:
        """All kernels of one input channel."""
        cdef double now[MAX_POINTS * MAX_POINTS * MAX_POINTS]
        cdef double rows[MAX_POINTS * MAX_POINTS * MAX_POINTS]
        cdef Axis *a = self.axis
        cdef long volume = <long> a[0].kernel * a[1].kernel * a[2].kernel
        cdef long o, vector, first, width, i, p
        cdef const float *kernel
        first, width = 0, zn_gemm_width(self.out_vectors)
        for o in range(self.out_channels):
            vector = o // ZN_LANES
            if vector == first + width:
                first, width = vector, zn_gemm_width(self.out_vectors - vector)
            kernel = weight + (o * self.in_channels + channel) * volume
            for i in range(volume):
                now[i] = kernel[i]
            lengthen(now, rows, <long> a[0].kernel * a[1].kernel, a[2].kernel, 1, a[2].n, g[2])
            lengthen(rows, now, a[0].kernel, a[1].kernel, a[2].n, a[1].n, g[1])
            lengthen(now, rows, 1, a[0].kernel, <long> a[1].n * a[2].n, a[0].n, g[0])
            for p in range(self.points):
                to[(p * self.in_channels * self.out_vectors + first * self.in_channels + channel * width
                    + vector - first) * ZN_LANES + o % ZN_LANES] = <float> rows[p]

    def run(self, x, const float[::1] kernels not None, const float[::1] bias not None, int activation, float a,
            float b, out, unsigned char[::1] workspace not None):
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
        """
        cdef const float[:, :, :, :, ::1] plain_x
        cdef const float[:, :, :, :, :, ::1] blocked_x
        cdef float[:, :, :, :, ::1] plain_out
        cdef float[:, :, :, :, :, ::1] blocked_out
        cdef const float *source
        cdef float *target
        cdef float *scratch = <float *> &workspace[0]
        cdef float *own
        cdef Finish finish
        cdef long block, blocks = (self.tiles + self.block - 1) // self.block
        if <size_t> scratch % 64:
            raise ValueError("the workspace must start at a multiple of 64 bytes; take it from an arena")
        if self.takes_blocked:
            blocked_x = x
            source = &blocked_x[0, 0, 0, 0, 0, 0]
        else:
            plain_x = x
            source = &plain_x[0, 0, 0, 0, 0]
        if self.gives_blocked:
            blocked_out = out
            target = &blocked_out[0, 0, 0, 0, 0, 0]
        else:
            plain_out = out
            target = &plain_out[0, 0, 0, 0, 0]
        finish.bias, finish.activation, finish.a, finish.b = &bias[0], activation, a, b
        with nogil, parallel(num_threads=self.threads):
            own = scratch + threadid() * self.scratch_step
            for block in prange(blocks, schedule="dynamic", chunksize=1):
                self.do_block(source, &kernels[0], &finish, block, target, own)

    cdef void do_block(self, const float *x, const float *kernels, const Finish *finish, long block, float *out,
                       float *scratch) noexcept nogil:
        cdef long first = block * self.block, count = min(self.block, self.tiles - first), tile, point
        cdef float *factors = scratch + self.slot
        cdef float *staged = scratch + self.slots_floats
        cdef float *buffer = staged + self.staged_floats
        cdef Strip strip
        tile = 0
        while tile < count:
            strip = self.strip_at(first + tile, count - tile)
            self.forward(x, &strip, factors + tile * self.a_row, staged, buffer)
            tile += strip.count
        for point in range(self.points):
            zn_gemm(count, self.in_channels, self.out_vectors, factors + point * self.slot, self.a_row,
                    kernels + point * self.in_channels * self.c_row, scratch + point * self.slot, self.c_row)
        tile = 0
        while tile < count:
            strip = self.strip_at(first + tile, count - tile)
            self.inverse(scratch + tile * self.c_row, &strip, finish, out, staged, buffer)
            tile += strip.count

    cdef Strip strip_at(self, long tile, long most) noexcept nogil:
        """The strip from `tile` on, of at most `most` tiles.

        Tiles are numbered by batch element, sub-lattice (z, y, x), then z, y, x.
        """
        cdef Strip s
        cdef const Axis *a
        cdef long index[3]
        cdef int i
        for i in range(2, -1, -1):
            index[i] = tile % self.axis[i].tiles
            tile //= self.axis[i].tiles
        for i in range(2, -1, -1):
            a = &self.axis[i]
            s.target[i] = <int> (tile % a.phases + index[i] * a.m * a.dilation)
            s.source[i] = s.target[i] - a.padding
            tile //= a.phases
        s.batch = tile
        s.count = min(most, self.strip, self.axis[2].tiles - index[2])
        return s

    # -- input --------------------------------------------------------------------------------------------------------

    cdef void forward(self, const float *x, const Strip *strip, float *factors, float *staged,
                      float *buffer) noexcept nogil:
        """The points of all channels of a strip."""
        cdef const Axis *a = self.axis
        cdef long vector, tile
        cdef long step[3]
        cdef long lies[3]
        cdef long length = a[2].n + (strip.count - 1) * a[2].m, apart, some
        cdef bint inside = True
        cdef int i
        cdef long needs
        cdef const float *source
        cdef const float *ahead
        lies[2] = a[2].dilation * ZN_LANES
        lies[1] = <long> a[1].dilation * a[2].size * ZN_LANES
        lies[0] = <long> a[0].dilation * a[1].size * a[2].size * ZN_LANES
        for i in range(3):
            needs = length if i == 2 else a[i].n
            inside = inside and strip.source[i] >= 0 and strip.source[i] + (needs - 1) * a[i].dilation < a[i].size
        if inside and self.takes_blocked:
            step[0], step[1], step[2] = lies[0], lies[1], lies[2]
            apart = <long> a[0].size * a[1].size * a[2].size * ZN_LANES
        else:
            step[2] = ZN_LANES
            step[1] = length * ZN_LANES
            step[0] = a[1].n * step[1]
            apart = a[0].n * step[0]
        vector = 0
        while vector < self.in_vectors:
            some = min(<long> ZN_LINE_VECTORS, self.in_vectors - vector)
            if inside and self.takes_blocked:
                source = x + ((strip.batch * self.in_vectors + vector) * a[0].size * a[1].size * a[2].size
                              + (<long> strip.source[0] * a[1].size + strip.source[1]) * a[2].size
                              + strip.source[2]) * ZN_LANES
                # the same voxels of the next channels, or the next voxels of the first channels
                ahead = source + some * apart
                if vector + some == self.in_vectors:
                    ahead = source - vector * apart + strip.count * a[2].m * step[2]
            else:
                for i in range(some):
                    self.stage(x, strip, vector + i, length, staged + i * apart)
                source = ahead = staged
            for tile in range(strip.count):
                for i in range(some):
                    if inside and self.takes_blocked:
                        zn_wino_prefetch(&self.transform, ahead + i * apart + tile * a[2].m * step[2], step)
                    zn_wino_forward(&self.transform, source + i * apart + tile * a[2].m * step[2], step, buffer,
                                    factors + tile * self.a_row + (vector + i) * ZN_LANES, self.slot)
            vector += some

    cdef void stage(self, const float *x, const Strip *strip, long vector, long length, float *staged) noexcept nogil:
        """One vector of channels of a strip, zeros where it overhangs the input."""
        cdef const Axis *a = self.axis
        cdef const float *row[MAX_LANES]
        cdef long volume = <long> a[0].size * a[1].size * a[2].size, lane, z, y, offset
        cdef long d = a[2].dilation
        # samples from low to high - 1 of a row lie in the input
        cdef long low = max(0, ceiling(-strip.source[2], d))
        cdef long high = min(length, max(low, ceiling(a[2].size - strip.source[2], d)))
        cdef int iz, iy
        cdef const float *end = x + self.batch * self.in_channels * volume
        # floats to what is staged next: the same voxels of the next channels, or the next voxels of the first channels
        cdef long ahead = ZN_LINE_VECTORS * volume * ZN_LANES
        if vector + ZN_LINE_VECTORS >= self.in_vectors:
            ahead = -(vector // ZN_LINE_VECTORS) * ahead + strip.count * a[2].m * d * (
                ZN_LANES if self.takes_blocked else 1)
        low = min(low, high)
        for lane in range(ZN_LANES):
            row[lane] = x + (strip.batch * self.in_channels + min(vector * ZN_LANES + lane, self.in_channels - 1)
                             ) * volume
        for iz in range(a[0].n):
            z = strip.source[0] + iz * a[0].dilation
            for iy in range(a[1].n):
                y = strip.source[1] + iy * a[1].dilation
                if z < 0 or z >= a[0].size or y < 0 or y >= a[1].size or low == high:
                    memset(staged, 0, length * ZN_LANES * sizeof(float))
                    staged += length * ZN_LANES
                    continue
                memset(staged, 0, low * ZN_LANES * sizeof(float))
                memset(staged + high * ZN_LANES, 0, (length - high) * ZN_LANES * sizeof(float))
                offset = (z * a[1].size + y) * a[2].size + strip.source[2] + low * d
                if not self.takes_blocked:
                    zn_rows_prefetch(row, offset + ahead, (high - low) * d)
                    zn_rows_load(row, row[ZN_LANES - 1], offset, end, <int> (high - low), <int> d,
                                 staged + low * ZN_LANES, ZN_LANES)
                else:
                    zn_wino_copy(x + ((strip.batch * self.in_vectors + vector) * volume + offset) * ZN_LANES,
                                 d * ZN_LANES, high - low, ahead, staged + low * ZN_LANES)
                staged += length * ZN_LANES

    # -- output -------------------------------------------------------------------------------------------------------

    cdef void inverse(self, const float *products, const Strip *strip, const Finish *finish, float *out, float *staged,
                      float *buffer) noexcept nogil:
        """All channels of a strip of output."""
        cdef const Axis *a = self.axis
        cdef float bias[MAX_LANES]
        cdef float *row[MAX_LANES]
        cdef int nothing[MAX_LANES]
        cdef int held[MAX_LANES]
        cdef long volume = <long> a[0].out * a[1].out * a[2].out, vector, tile, lane, channels, offset
        cdef long step[3]
        cdef long lies[3]
        cdef int kept[3]
        cdef int i, z, y
        cdef const float *source
        for i in range(3):
            kept[i] = <int> (strip.count * a[2].m) if i == 2 else a[i].m
            kept[i] = min(kept[i], ceiling(a[i].out - strip.target[i], a[i].dilation))
        offset = (<long> strip.target[0] * a[1].out + strip.target[1]) * a[2].out + strip.target[2]
        lies[2] = a[2].dilation * ZN_LANES
        lies[1] = <long> a[1].dilation * a[2].out * ZN_LANES
        lies[0] = <long> a[0].dilation * a[1].out * a[2].out * ZN_LANES
        step[2] = ZN_LANES
        step[1] = strip.count * a[2].m * ZN_LANES
        step[0] = a[1].m * step[1]
        for vector in range(self.out_vectors):
            channels = min(<long> ZN_LANES, self.out_channels - vector * ZN_LANES)
            if vector % ZN_LINE_VECTORS == 0:
                for tile in range(strip.count):
                    for i in range(<int> min(<long> ZN_LINE_VECTORS, self.out_vectors - vector)):
                        zn_wino_inverse(&self.transform, products + tile * self.c_row + (vector + i) * ZN_LANES,
                                        self.slot, buffer, staged + i * a[0].m * step[0] + tile * a[2].m * ZN_LANES,
                                        step)
            for lane in range(ZN_LANES):
                bias[lane] = finish.bias[vector * ZN_LANES + lane] if lane < channels else 0.0
                row[lane] = out + (strip.batch * self.out_channels + vector * ZN_LANES + min(lane, channels - 1)
                                   ) * volume
                nothing[lane] = 0
                held[lane] = kept[2] if lane < channels else 0
            source = staged + vector % ZN_LINE_VECTORS * a[0].m * step[0]
            if self.gives_blocked:
                zn_wino_finish(source, step, kept, channels, zn_load(bias), finish.activation, finish.a, finish.b,
                               out + ((strip.batch * self.out_vectors + vector) * volume + offset) * ZN_LANES, lies)
                continue
            for z in range(kept[0]):
                for y in range(kept[1]):
                    zn_rows_store(source + z * step[0] + y * step[1], ZN_LANES, kept[2], zn_load(bias),
                                  finish.activation, finish.a, finish.b, row,
                                  offset + (z * lies[0] + y * lies[1]) // ZN_LANES, a[2].dilation, nothing, held)


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
