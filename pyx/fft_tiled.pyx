# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Tiled FFT convolution (overlap-save): tiles of the input, a complex matrix product per frequency, tiles of output.

Three stages per block of tiles. A *lane group* is ZN_LANES rows, a row being one channel of one tile; a *column* is the
line along z of one (ky, kx), and holds, lane group after lane group, the planes of the tile side by side.

1. x and y transforms of the planes of every lane group, two real planes as one complex plane (`fft_planes.h`).
2. Per column: z transforms of the tiles; then for each panel of output channels z transforms of the kernels, a matrix
   product for each kz (`complex_gemm.h`), and inverse z transforms of the wanted planes, to where the column came from.
3. Inverse y and x transforms of the wanted planes, bias, activation, store. Kernel spectra carry the scale.

That the z transforms are part of stage 2 lets kernel spectra be kept with kz planes instead of nz, a third to a sixth
of the bytes, and both spectra and block be read in runs of whole lines. A dilated layer is prod(dilation) interleaved
sub-lattices.
"""

from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from tile_places cimport MAX_LANES, Axis, Lanes, Place, axis_of, blank, find_lanes, place_of


cdef extern from "fft_lanes.h" nogil:
    enum: ZN_LANES
    enum: ZN_POINT
    ctypedef struct zn_fft:
        int n
    ctypedef struct zn_lines:
        float *re
        float *im
        long step
        long next
        int count
    int zn_fft_good(int n)
    long zn_fft_table_floats(int n)
    long zn_fft_scratch_floats(int n)
    int zn_fft_init(zn_fft *plan, int n, const float *table)
    void zn_fft_table(int n, float *table)
    zn_lines zn_lines_at(const float *re, const float *im, long step, long next, int count)
    zn_lines zn_lines_of(const float *points, int inverse, long step, long next, int count)
    void zn_fft_lines(const zn_fft *plan, const zn_lines *source, const zn_lines *target, long lines, float *scratch)

cdef extern from "fft_planes.h" nogil:
    void zn_stream_fence()
    void zn_planes_split(int nx, int ny, const float *z, long width, int alone, float *columns, long step)
    void zn_planes_merge(int nx, int ny, const float *columns, long step, int alone, float *z, long width)
    void zn_points_scale(float *points, int count, float factor)
    void zn_points_prefetch(const float *points, int count)

cdef extern from "complex_gemm.h" nogil:
    enum: ZN_CGEMM_WIDTH
    void zn_gauss_rows(const float *points, long next, long lines, float *re, float *difference, float *total)
    void zn_gauss_panel(int width, const float *points, long next, long apart, long depth, float *panel)
    void zn_cgemm_panel(int width, long rows, long depth, const float *re, const float *difference, const float *total,
                        const float *panel, float *c)

cdef extern from "lane_rows.h" nogil:
    ctypedef struct zn_vec:
        pass
    zn_vec zn_load(const float *p)
    void zn_rows_load(const float **row, const float *last, long offset, const float *end, int count, int stride,
                      float *to, long step)
    void zn_rows_prefetch(const float **row, long offset, long floats)
    void zn_rows_store(const float *source, long step, int count, zn_vec bias, int code, float a, float b,
                       float **row, long offset, int stride, const int *first, const int *last)

LANES = ZN_LANES

# Planes of real samples, and where their spectra go.
cdef struct Samples:
    long plane_stride
    long row_stride
    int stride
    int ny
    int nx
    bint kernel  # of kernels: spectra are conjugate and scaled
    long step  # floats from column to column


# What is fused into the store.
cdef struct Finish:
    const float *bias
    int activation
    float a
    float b


cdef long padded(long floats) noexcept nogil:
    """`floats` rounded up to an odd number of cache lines, so that neighbours differ in their cache sets."""
    return (floats + 15) // 16 * 16 | 16


cdef int chunk(long groups, int threads) noexcept nogil:
    """Lane groups that a thread takes at a time: so few that none is waited for long, but neighbours share lines."""
    return <int> max(<long> 1, min(<long> 8, groups // (8 * threads)))


cdef class Tiling:
    """Geometry and kernels of one layer on one shape with one config.

    Parameters
    ----------
    shape : tuple of int
        Of the input: (batch, channel, z, y, x).
    out_channels : int
    kernel, dilation, tile : tuple of int
        (z, y, x). `tile` is the points of the transforms: products of 2, 3, 5 and 7, none less than the kernel.
    block : int
        Tiles that are transformed, multiplied and transformed back together.
    threads : int

    Attributes
    ----------
    tiles, columns : int
        Tiles of the layer; columns (ky, kx) of a tile.
    block : int
        As given, but no more than there are tiles.
    spectra_bytes, table_bytes : int
        Of the kernel spectra and of the twiddles.
    workspace_bytes, scratch_bytes : int
        That `run` wants besides the spectra: the block, and scratch for every thread; the latter alone.

    Raises
    ------
    ValueError
        Where the kernel does not fit the tile or the input, or the FFT has no such size.
    """

    cdef Axis axis[3]
    cdef zn_fft plan[3]
    cdef long in_channels, out_channels, batch
    cdef long vectors  # of output channels
    cdef int threads
    cdef float scale  # of the kernels: undoes the doublings of `zn_planes_split` and the three unnormalised transforms
    cdef long column_step, spectra_step  # floats from column to column
    cdef long fft_floats, row_step, plane_step, a_step, b_step, c_step, scratch_step
    cdef readonly long tiles, block, columns, spectra_bytes, table_bytes, workspace_bytes, scratch_bytes

    def __init__(self, shape, long out_channels, kernel, dilation, tile, long block, int threads):
        cdef int i, nz, ny, nx
        cdef long rows
        self.batch, self.in_channels, self.out_channels, self.threads = shape[0], shape[1], out_channels, threads
        self.vectors = (out_channels + ZN_LANES - 1) // ZN_LANES
        self.tiles, self.table_bytes, self.fft_floats = self.batch, 0, 0
        for i in range(3):
            self.axis[i] = axis_of(tile[i], kernel[i], dilation[i], shape[2 + i])
            if not zn_fft_good(tile[i]) or self.axis[i].keep < 1:
                raise ValueError(f"no tile of {tile[i]} points for a kernel of {kernel[i]} on {shape[2 + i]} voxels")
            self.tiles *= self.axis[i].phases * self.axis[i].tiles
            self.table_bytes += 4 * zn_fft_table_floats(tile[i])
            self.fft_floats = max(self.fft_floats, zn_fft_scratch_floats(tile[i]))
        nz, ny, nx = tile
        self.block = min(block, self.tiles)
        self.scale = 0.25 / (<double> nz * ny * nx)
        self.columns = nx // 2 * ny + ny // 2 + 1
        if nx % 2 == 0:
            self.columns -= ny - (ny // 2 + 1)
        rows = (self.block * self.in_channels + ZN_LANES - 1) // ZN_LANES * ZN_LANES
        self.column_step = ZN_POINT * (
            max(rows // ZN_LANES * self.axis[0].load, self.block * self.vectors * self.axis[0].keep) | 1
        )
        self.spectra_step = ZN_POINT * (self.vectors * self.in_channels * self.axis[0].kernel | 1)
        self.row_step = padded(rows)
        self.a_step = 3 * self.row_step
        self.b_step = padded(3 * ZN_CGEMM_WIDTH * ZN_LANES * self.in_channels)
        self.c_step = padded(ZN_CGEMM_WIDTH * ZN_POINT * self.block)
        self.plane_step = ZN_POINT * (ny | 1)
        self.scratch_step = padded(self.fft_floats + max(
            nx * (self.plane_step + ZN_POINT),
            nz * (self.a_step + self.b_step + self.c_step + 8 * ZN_POINT),
        ))
        self.spectra_bytes = 4 * self.columns * self.spectra_step
        self.scratch_bytes = 4 * threads * self.scratch_step
        self.workspace_bytes = 4 * self.columns * self.column_step + self.scratch_bytes

    @property
    def axes(self):
        """Geometry along z, y and x: dicts of `n` points, `keep` outputs of a tile, `load` samples it reads, ..."""
        return self.axis[0], self.axis[1], self.axis[2]

    def prepare(self, float[::1] table not None):
        """Fill the twiddles, `table_bytes` of them. `table` must live as long as this object is used."""
        cdef float *at = &table[0]
        cdef int i
        for i in range(3):
            zn_fft_table(self.axis[i].n, at)
            zn_fft_init(&self.plan[i], self.axis[i].n, at)
            at += zn_fft_table_floats(self.axis[i].n)

    def transform_kernels(self, const float[:, :, :, :, ::1] weight not None, float[::1] spectra not None,
                          unsigned char[::1] scratch not None):
        """Kernels transformed along y and x, conjugate and scaled.

        Parameters
        ----------
        weight : float32, (out channel, in channel, z, y, x)
        spectra : float32, `spectra_bytes` long, 64-byte aligned
            Is written.
        scratch : uint8, `scratch_bytes` long
        """
        with nogil:
            self.kernels(&weight[0, 0, 0, 0, 0], &spectra[0], <float *> &scratch[0])

    def run(self, const float[:, :, :, :, ::1] x not None, const float[:, :, :, :, ::1] weight,
            const float[::1] spectra, const float[::1] bias not None, int activation, float a, float b,
            float[:, :, :, :, ::1] out not None, unsigned char[::1] workspace not None):
        """Compute the layer.

        Parameters
        ----------
        x : float32, (batch, in channel, z, y, x)
        weight : float32, (out channel, in channel, z, y, x)
            Used where `spectra` is None; may be None otherwise.
        spectra : float32 or None
            Of `transform_kernels`; None: they are made anew, at the end of `workspace`.
        bias : float32, (out channel,)
        activation : int
            Its code, with parameters `a` and `b`.
        out : float32, (batch, out channel, z, y, x)
            Every element is written.
        workspace : uint8, 64-byte aligned
            `workspace_bytes` long, and `spectra_bytes` more where `spectra` is None.
        """
        cdef Finish finish
        cdef float *columns = <float *> &workspace[0]
        cdef float *scratch = columns + self.columns * self.column_step
        cdef float *made = scratch + self.threads * self.scratch_step
        cdef const float *kept = made
        cdef const float *weights = NULL
        cdef long first, count
        if <size_t> columns % 64:
            raise ValueError("the workspace must start at a multiple of 64 bytes; take it from an arena")
        if spectra is None:
            weights = &weight[0, 0, 0, 0, 0]
        else:
            kept = &spectra[0]
        finish.bias, finish.activation, finish.a, finish.b = &bias[0], activation, a, b
        with nogil:
            if weights != NULL:
                self.kernels(weights, made, scratch)
            first = 0
            while first < self.tiles:
                count = min(self.block, self.tiles - first)
                self.forward(&x[0, 0, 0, 0, 0], first, count, columns, scratch)
                self.multiply(kept, count, columns, scratch)
                self.inverse(columns, &finish, first, count, &out[0, 0, 0, 0, 0], scratch)
                first += count

    # -- kernels ------------------------------------------------------------------------------------------------------

    cdef void kernels(self, const float *weight, float *spectra, float *scratch) noexcept nogil:
        cdef long group, groups = self.vectors * self.in_channels
        cdef int some = chunk(groups, self.threads)
        cdef float *own
        with parallel(num_threads=self.threads):
            own = scratch + threadid() * self.scratch_step
            for group in prange(groups, schedule="dynamic", chunksize=some):
                self.kernel_group(weight, spectra, group, own)

    cdef void kernel_group(self, const float *weight, float *spectra, long group, float *scratch) noexcept nogil:
        """Lanes are output channels, the last one repeated; group = vector of them * input channels + input channel."""
        cdef Axis *a = self.axis
        cdef long size = <long> a[0].kernel * a[1].kernel * a[2].kernel, plane = <long> a[1].kernel * a[2].kernel
        cdef long first = group // self.in_channels * ZN_LANES, lane, channel, z
        cdef Lanes lanes
        cdef Samples samples
        for lane in range(ZN_LANES):
            channel = min(first + lane, self.out_channels - 1)
            lanes.source[lane] = weight + (channel * self.in_channels + group % self.in_channels) * size
        lanes.highest = lanes.source[ZN_LANES - 1]
        lanes.end = weight + self.out_channels * self.in_channels * size
        lanes.ragged = False
        samples.plane_stride, samples.row_stride, samples.stride = plane, a[2].kernel, 1
        samples.ny, samples.nx, samples.kernel, samples.step = a[1].kernel, a[2].kernel, True, self.spectra_step
        spectra += group * a[0].kernel * ZN_POINT
        for z in range(0, a[0].kernel, 2):
            self.planes_forward(&samples, &lanes, z, min(<long> 2, a[0].kernel - z), NULL, 0, spectra + z * ZN_POINT,
                                scratch)
        zn_stream_fence()

    # -- stage 1 ------------------------------------------------------------------------------------------------------

    cdef void forward(self, const float *x, long first, long count, float *columns, float *scratch) noexcept nogil:
        """Tiles first .. first + count - 1 of the input."""
        cdef long group, rows = count * self.in_channels, groups = (rows + ZN_LANES - 1) // ZN_LANES
        cdef int some = chunk(groups, self.threads)
        cdef float *own
        with parallel(num_threads=self.threads):
            own = scratch + threadid() * self.scratch_step
            for group in prange(groups, schedule="dynamic", chunksize=some):
                self.forward_group(x, first, rows, group, columns, own)

    cdef void forward_group(self, const float *x, long first, long rows, long group, float *columns,
                            float *scratch) noexcept nogil:
        cdef Axis *a = self.axis
        cdef Lanes lanes, next
        cdef Samples samples
        cdef long z
        samples.plane_stride = <long> a[0].dilation * a[1].size * a[2].size
        samples.row_stride, samples.stride = <long> a[1].dilation * a[2].size, a[2].dilation
        samples.ny, samples.nx, samples.kernel, samples.step = a[1].load, a[2].load, False, self.column_step
        find_lanes(a, x, self.batch, self.in_channels, first, rows, group, ZN_LANES, &lanes)
        find_lanes(a, x, self.batch, self.in_channels, first, rows, group + 1, ZN_LANES, &next)
        columns += group * a[0].load * ZN_POINT
        for z in range(0, a[0].load, 2):
            if z + 2 < a[0].load:
                self.planes_forward(&samples, &lanes, z, 2, &lanes, z + 2, columns + z * ZN_POINT, scratch)
            else:
                self.planes_forward(&samples, &lanes, z, a[0].load - z, &next, 0, columns + z * ZN_POINT, scratch)
        zn_stream_fence()

    cdef void planes_forward(self, const Samples *samples, Lanes *lanes, long z, long planes, Lanes *ahead,
                             long ahead_z, float *columns, float *scratch) noexcept nogil:
        """x and y transforms of planes z and, if there are two, z + 1, into columns: twice the spectra. `ahead` says
        where the planes lie that come next, to be fetched meanwhile."""
        cdef float *plane = scratch + self.fft_floats
        cdef float *line = plane + self.axis[2].n * self.plane_step
        cdef int ny = self.axis[1].n, nx = self.axis[2].n
        cdef long span = <long> (samples.nx - 1) * samples.stride + 1, y, i, x, at
        cdef zn_lines source, target
        for y in range(samples.ny):
            for i in range(planes):
                at = (z + i) * samples.plane_stride + y * samples.row_stride
                zn_rows_load(lanes.source, lanes.highest, at, lanes.end, samples.nx, samples.stride,
                             line + i * ZN_LANES, ZN_POINT)
                if lanes.ragged:
                    blank(lanes, z + i, y, samples.nx, line + i * ZN_LANES, ZN_LANES, ZN_POINT)
                if ahead != NULL:
                    at = (ahead_z + i) * samples.plane_stride + y * samples.row_stride
                    zn_rows_prefetch(ahead.source, at, span)
            if planes == 1:
                for x in range(samples.nx):
                    memset(line + x * ZN_POINT + ZN_LANES, 0, ZN_LANES * sizeof(float))
            if samples.kernel:
                zn_points_scale(line, samples.nx, self.scale)
            source = zn_lines_of(line, samples.kernel, ZN_POINT, 0, samples.nx)
            target = zn_lines_of(plane + y * ZN_POINT, samples.kernel, self.plane_step, 0, nx)
            zn_fft_lines(&self.plan[2], &source, &target, 1, scratch)
        source = zn_lines_of(plane, samples.kernel, ZN_POINT, self.plane_step, samples.ny)
        target = zn_lines_of(plane, samples.kernel, ZN_POINT, self.plane_step, ny)
        zn_fft_lines(&self.plan[1], &source, &target, nx, scratch)
        zn_planes_split(nx, ny, plane, self.plane_step, planes == 1, columns, samples.step)

    # -- stage 2 ------------------------------------------------------------------------------------------------------

    cdef void multiply(self, const float *spectra, long count, float *columns, float *scratch) noexcept nogil:
        """Products of `count` tiles, in place: columns of the input become columns of the output."""
        cdef long column
        cdef float *own
        with parallel(num_threads=self.threads):
            own = scratch + threadid() * self.scratch_step
            for column in prange(self.columns, schedule="dynamic"):
                self.multiply_column(spectra + column * self.spectra_step, count, columns + column * self.column_step,
                                     own)

    cdef void multiply_column(self, const float *spectra, long count, float *column, float *scratch) noexcept nogil:
        cdef int nz = self.axis[0].n, keep = self.axis[0].keep, width = ZN_CGEMM_WIDTH
        cdef long panel = 0, kz, vector = self.in_channels * self.axis[0].kernel * ZN_POINT
        cdef float *a = scratch + self.fft_floats
        cdef float *b = a + nz * self.a_step
        cdef float *c = b + nz * self.b_step
        cdef float *few = c + nz * self.c_step
        cdef float *at
        self.tiles_along_z(column, (count * self.in_channels + ZN_LANES - 1) // ZN_LANES, a, few, scratch)
        while panel < self.vectors:
            width = min(width, <int> (self.vectors - panel))
            self.kernels_along_z(spectra + panel * vector, width, b, few, scratch)
            for kz in range(nz):
                at = a + kz * self.a_step
                zn_cgemm_panel(width, count, self.in_channels, at, at + self.row_step, at + 2 * self.row_step,
                               b + kz * self.b_step, c + kz * self.c_step)
            self.products_along_z(c, width, count, column + panel * keep * ZN_POINT, scratch)
            panel += width

    cdef void tiles_along_z(self, const float *column, long groups, float *a, float *few,
                            float *scratch) noexcept nogil:
        """z transforms of the tiles of a column, spread over the matrices A of its nz frequencies."""
        cdef int nz = self.axis[0].n, load = self.axis[0].load
        cdef long group, some, line, kz
        cdef const float *at = column
        cdef float *to
        cdef zn_lines source, target
        for group in range(0, groups, 8):
            some = min(<long> 8, groups - group)
            for line in range(some):
                zn_points_prefetch(at + 4 * load * ZN_POINT, load)
                source = zn_lines_of(at, False, ZN_POINT, 0, load)
                target = zn_lines_of(few + line * nz * ZN_POINT, False, ZN_POINT, 0, nz)
                zn_fft_lines(&self.plan[0], &source, &target, 1, scratch)
                at += load * ZN_POINT
            for kz in range(nz):
                to = a + kz * self.a_step + group * ZN_LANES
                zn_gauss_rows(few + kz * ZN_POINT, nz * ZN_POINT, some, to, to + self.row_step, to + 2 * self.row_step)

    cdef void kernels_along_z(self, const float *spectra, int width, float *b, float *few,
                              float *scratch) noexcept nogil:
        """z transforms of the kernels of `width` vectors of output channels, as panels B of the nz frequencies."""
        cdef int nz = self.axis[0].n, kernel = self.axis[0].kernel
        cdef long channel, some, kz, v, depth = self.in_channels
        cdef zn_lines source, target
        for channel in range(0, depth, 4):
            some = min(<long> 4, depth - channel)
            for v in range(width):
                source = zn_lines_of(spectra + (v * depth + channel) * kernel * ZN_POINT, True, ZN_POINT,
                                     kernel * ZN_POINT, kernel)
                target = zn_lines_of(few + v * some * nz * ZN_POINT, True, ZN_POINT, nz * ZN_POINT, nz)
                zn_fft_lines(&self.plan[0], &source, &target, some, scratch)
            for kz in range(nz):
                zn_gauss_panel(width, few + kz * ZN_POINT, nz * ZN_POINT, some * nz * ZN_POINT, some,
                               b + kz * self.b_step + channel * 3 * width * ZN_LANES)

    cdef void products_along_z(self, const float *c, int width, long count, float *column,
                               float *scratch) noexcept nogil:
        """Inverse z transforms of the products C of the nz frequencies, wanted planes only, into the column."""
        cdef int nz = self.axis[0].n, keep = self.axis[0].keep
        cdef long tile, some, v
        cdef const float *at
        cdef float *to
        cdef zn_lines source, target
        for tile in range(0, count, 8):
            some = min(<long> 8, count - tile)
            for v in range(width):
                at = c + tile * width * ZN_POINT + v * ZN_LANES
                source = zn_lines_at(at + width * ZN_LANES, at, self.c_step, width * ZN_POINT, nz)
                to = column + (tile * self.vectors + v) * keep * ZN_POINT
                target = zn_lines_of(to, True, ZN_POINT, self.vectors * keep * ZN_POINT, keep)
                zn_fft_lines(&self.plan[0], &source, &target, some, scratch)

    # -- stage 3 ------------------------------------------------------------------------------------------------------

    cdef void inverse(self, const float *columns, const Finish *finish, long first, long count, float *out,
                      float *scratch) noexcept nogil:
        """Tiles first .. first + count - 1 of the output."""
        cdef long group, groups = count * self.vectors
        cdef int some = chunk(groups, self.threads)
        cdef float *own
        with parallel(num_threads=self.threads):
            own = scratch + threadid() * self.scratch_step
            for group in prange(groups, schedule="dynamic", chunksize=some):
                self.inverse_group(columns, finish, first, group, out, own)

    cdef void inverse_group(self, const float *columns, const Finish *finish, long first, long group, float *out,
                            float *scratch) noexcept nogil:
        """Lanes are output channels of one tile."""
        cdef Axis *a = self.axis
        cdef Lanes lanes
        cdef Place p = place_of(a, first + group // self.vectors)
        cdef long channel = group % self.vectors * ZN_LANES, voxels = <long> a[0].out * a[1].out * a[2].out
        cdef long lane, row, z, y, i, planes
        cdef float bias[MAX_LANES]
        cdef float *plane = scratch + self.fft_floats
        cdef float *line = plane + a[2].n * self.plane_step
        cdef zn_lines source, target
        for lane in range(ZN_LANES):
            row = min(channel + lane, self.out_channels - 1)
            bias[lane] = finish.bias[row]
            lanes.target[lane] = out + (p.batch * self.out_channels + row) * voxels + p.target
            lanes.first[lane] = p.first[2]
            lanes.last[lane] = p.last[2] if row == channel + lane else 0
        for z in range(0, a[0].keep, 2):
            if z + 1 < p.first[0] or z >= p.last[0]:
                continue
            planes = min(<long> 2, a[0].keep - z)
            zn_planes_merge(a[2].n, a[1].n, columns + (group * a[0].keep + z) * ZN_POINT, self.column_step, planes == 1,
                            plane, self.plane_step)
            source = zn_lines_of(plane, True, ZN_POINT, self.plane_step, a[1].n)
            target = zn_lines_of(plane, True, ZN_POINT, self.plane_step, a[1].keep)
            zn_fft_lines(&self.plan[1], &source, &target, a[2].n, scratch)
            for y in range(p.first[1], p.last[1]):
                source = zn_lines_of(plane + y * ZN_POINT, True, self.plane_step, 0, a[2].n)
                target = zn_lines_of(line, True, ZN_POINT, 0, a[2].keep)
                zn_fft_lines(&self.plan[2], &source, &target, 1, scratch)
                for i in range(max(<long> 0, p.first[0] - z), min(planes, p.last[0] - z)):
                    zn_rows_store(line + i * ZN_LANES, ZN_POINT, a[2].keep, zn_load(bias), finish.activation, finish.a,
                                  finish.b, lanes.target,
                                  ((z + i) * a[0].dilation * a[1].out + y * a[1].dilation) * a[2].out, a[2].dilation,
                                  lanes.first, lanes.last)
