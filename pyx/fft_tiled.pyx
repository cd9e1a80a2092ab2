# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Tiled FFT convolution (overlap-save): tiles of the input, a complex matrix product per frequency, tiles of output.

Three stages per block of tiles. A *lane group* is ZN_LANES rows, a row being one channel of one tile; a *column* is the
line along z of one (ky, kx), and holds, lane group after lane group, the planes of the tile side by side.

1. x and y transforms of the planes of every lane group, two real planes as one complex plane (`tile_forward.pxd`,
   `tile_columns.pxd`).
2. Per column: z transforms of the tiles; then for each panel of output channels z transforms of the kernels, a matrix
   product for each kz, and inverse z transforms of the wanted planes, to where the column came from
   (`tile_products.pxd`).
3. Inverse y and x transforms of the wanted planes, bias, activation, store (`tile_inverse.pxd`).

That the z transforms are part of stage 2 lets kernel spectra be kept with kz planes instead of nz, a third to a sixth
of the bytes, and both spectra and block be read in runs of whole lines. Spectra can be made and used in parts, some kx
each (`tile_kernels.pxd`). A dilated layer is prod(dilation) interleaved sub-lattices; padding is samples that are not.
"""

from cython.parallel cimport parallel, prange, threadid

from lane_fft cimport (
    ZN_FFT_MAX_PASSES,
    ZN_LANES,
    zn_circle,
    zn_fft_factor,
    zn_fft_good,
    zn_fft_init,
    zn_fft_table,
    zn_fft_table_floats,
    zn_stage_begin,
    zn_stage_end,
)
from tile_forward cimport block_group, plain_group
from tile_geometry cimport (
    INPUT,
    KERNELS,
    N_STAGES,
    OUTPUT,
    Geometry,
    chunk,
    columns_before,
    lane_groups,
    lay_out,
    part_end,
    spectra_floats,
)
from tile_inverse cimport Finish, inverse_group
from tile_kernels cimport kernel_group
from tile_places cimport axis_of
from tile_products cimport multiply_column

cdef enum:
    STREAMED_BYTES = 8 << 20  # an output of so many is not read back from the caches, so it is written past them

LANES = ZN_LANES
#: What `run` can time: transforms along x and y, along z (of kernels, where they are used), and products.
STAGES = ("kernels", "input", "input_z", "kernels_z", "products", "output_z", "output")


def radices(int n):
    """Of the passes of a transform of `n` points, in their order; none where n is 1."""
    cdef int radix[ZN_FFT_MAX_PASSES]
    cdef int passes = zn_fft_factor(n, radix) if n > 1 else 0
    return tuple([radix[i] for i in range(passes)])


cdef class Tiling:
    """Geometry and kernels of one layer on one shape with one config.

    Parameters
    ----------
    shape : tuple of int
        Of the input: (batch, channel, z, y, x).
    out_channels : int
    kernel, dilation, padding, tile : tuple of int
        (z, y, x). `tile` is the points of the transforms: products of 2, 3, 5 and 7, none less than the kernel.
    block : int
        Tiles that are transformed, multiplied and transformed back together.
    threads : int
    parts : int
        That kernel spectra are made and used in where `run` makes them for each block.
    gauss : bool
        Products by three real multiplications rather than four.
    takes_blocks, gives_blocks : bool
        Whether the input, and the output, is blocked by vectors of channels (`znni.layouts`).

    Attributes
    ----------
    tiles, columns : int
        Tiles of the layer; columns (ky, kx) of a tile.
    block, parts : int
        As given, but no more than there are tiles, and kx.
    spectra_bytes, table_bytes : int
        Of the kernel spectra, or the largest part of them, and of the twiddles.
    workspace_bytes, scratch_bytes : int
        That `run` wants besides the spectra: the block, and scratch for every thread; the latter alone.

    Raises
    ------
    ValueError
        Where the kernel does not fit the tile or the input, or the FFT has no such size.
    """

    cdef Geometry g
    cdef int threads
    cdef readonly long tiles, block, columns, parts, spectra_bytes, table_bytes, workspace_bytes, scratch_bytes

    def __init__(self, shape, long out_channels, kernel, dilation, padding, tile, long block, int threads, int parts=1,
                 bint gauss=True, bint takes_blocks=False, bint gives_blocks=False):
        cdef Geometry *g = &self.g
        cdef int i
        g.batch, g.in_channels, g.out_channels, g.block = shape[0], shape[1], out_channels, block
        g.takes_blocks, g.gives_blocks, g.gauss, self.threads = takes_blocks, gives_blocks, gauss, threads
        for i in range(3):
            g.axis[i] = axis_of(tile[i], kernel[i], dilation[i], padding[i], shape[2 + i])
            if not zn_fft_good(tile[i]) or g.axis[i].keep < 1:
                raise ValueError(f"no tile of {tile[i]} points for a kernel of {kernel[i]} on {shape[2 + i]} voxels")
        lay_out(g, min(parts, g.axis[2].n // 2 + 1))
        self.tiles, self.block, self.columns, self.parts = g.tiles, g.block, g.columns, g.parts
        self.table_bytes = 4 * g.table_floats
        self.spectra_bytes = 4 * spectra_floats(g)
        self.scratch_bytes = 4 * threads * g.scratch_step
        self.workspace_bytes = 4 * g.columns * g.column_step + self.scratch_bytes

    @property
    def axes(self):
        """Geometry along z, y and x: dicts of `n` points, `keep` outputs of a tile, `load` samples it reads, ..."""
        return self.g.axis[0], self.g.axis[1], self.g.axis[2]

    def prepare(self, float[::1] table not None):
        """Fill the twiddles, `table_bytes` of them. `table` must live as long as this object is used."""
        cdef float *at = &table[0]
        cdef int i
        for i in range(3):
            zn_fft_table(self.g.axis[i].n, at)
            zn_fft_init(&self.g.fft[i], self.g.axis[i].n, at)
            at += zn_fft_table_floats(self.g.axis[i].n)
            zn_circle(self.g.axis[i].n, at)
            self.g.circle[i] = at
            at += 2 * self.g.axis[i].n

    def transform_kernels(self, const float[:, :, :, :, ::1] weight not None, float[::1] spectra not None,
                          unsigned char[::1] scratch not None):
        """Kernels transformed along y and x, conjugate and scaled.

        Parameters
        ----------
        weight : float32, (out channel, in channel, z, y, x)
        spectra : float32, `spectra_bytes` long (of one part), 64-byte aligned
            Is written.
        scratch : uint8, `scratch_bytes` long
        """
        with nogil:
            self.kernels(&weight[0, 0, 0, 0, 0], 0, &spectra[0], <float *> &scratch[0], NULL)

    def run(self, x not None, const float[:, :, :, :, ::1] weight, const float[::1] spectra,
            const float[::1] bias not None, int activation, float a, float b, out not None,
            unsigned char[::1] workspace not None, double[:, ::1] stages=None):
        """Compute the layer.

        Parameters
        ----------
        x : float32, (batch, in channel, z, y, x), or blocked: (batch, vector of channels, z, y, x, lane)
        weight : float32, (out channel, in channel, z, y, x)
            Used where `spectra` is None; may be None otherwise.
        spectra : float32 or None
            Of `transform_kernels`; None: they are made anew, at the end of `workspace`; if in parts, for every block.
        bias : float32, (out channel,)
        activation : int
            Its code, with parameters `a` and `b`.
        out : float32, (batch, out channel, z, y, x), or blocked
            Every element is written, zeros in lanes beyond the last channel.
        workspace : uint8, 64-byte aligned
            `workspace_bytes` long, and `spectra_bytes` more where `spectra` is None.
        stages : float64, (threads, len(STAGES)), optional
            Each thread adds the seconds that it spent in each stage.
        """
        cdef Finish finish
        cdef Geometry *g = &self.g
        cdef const float[:, :, :, :, ::1] plain_x
        cdef const float[:, :, :, :, :, ::1] blocked_x
        cdef float[:, :, :, :, ::1] plain_out
        cdef float[:, :, :, :, :, ::1] blocked_out
        cdef const float *source
        cdef float *target
        cdef float *columns = <float *> &workspace[0]
        cdef float *scratch = columns + g.columns * g.column_step
        cdef float *made = scratch + self.threads * g.scratch_step
        cdef const float *kept = made
        cdef const float *weights = NULL
        cdef double *spent = NULL
        cdef long first = 0, count
        cdef int part
        if <size_t> columns % 64:
            raise ValueError("the workspace must start at a multiple of 64 bytes; take it from an arena")
        if stages is not None:
            if stages.shape[0] != self.threads or stages.shape[1] != N_STAGES:
                raise ValueError(f"stages must be {self.threads} x {N_STAGES}, "
                                 f"got {stages.shape[0]} x {stages.shape[1]}")
            spent = &stages[0, 0]
        if spectra is None:
            weights = &weight[0, 0, 0, 0, 0]
        else:
            kept = &spectra[0]
        if g.takes_blocks:
            blocked_x = x
            source = &blocked_x[0, 0, 0, 0, 0, 0]
        else:
            plain_x = x
            source = &plain_x[0, 0, 0, 0, 0]
        if g.gives_blocks:
            blocked_out = out
            target = &blocked_out[0, 0, 0, 0, 0, 0]
        else:
            plain_out = out
            target = &plain_out[0, 0, 0, 0, 0]
        finish.bias, finish.activation, finish.a, finish.b = &bias[0], activation, a, b
        finish.stream = (
            g.gives_blocks and g.axis[2].dilation == 1 and <size_t> target % (4 * ZN_LANES) == 0
            and blocked_out.nbytes >= STREAMED_BYTES
        )
        with nogil:
            while first < g.tiles:
                count = min(g.block, g.tiles - first)
                self.forward(source, first, count, columns, scratch, spent)
                for part in range(g.parts):
                    if weights != NULL and (g.parts > 1 or first == 0):
                        self.kernels(weights, part, made, scratch, spent)
                    self.multiply(kept, part, count, columns, scratch, spent)
                self.inverse(columns, &finish, first, count, target, scratch, spent)
                first += count

    cdef void kernels(self, const float *weight, int part, float *spectra, float *scratch,
                      double *spent) noexcept nogil:
        """One part of the kernel spectra."""
        cdef Geometry *g = &self.g
        cdef long group, groups = g.vectors * g.in_channels
        cdef int some = chunk(groups, self.threads), first = part * g.part_kx, last = part_end(g, part)
        cdef float *own
        cdef double *clock
        cdef double since
        with parallel(num_threads=self.threads):
            own, clock = scratch + threadid() * g.scratch_step, own_clock(spent, threadid())
            for group in prange(groups, schedule="dynamic", chunksize=some):
                since = zn_stage_begin(clock)
                kernel_group(g, weight, first, last, spectra, group, own)
                zn_stage_end(clock, KERNELS, since)

    cdef void forward(self, const float *x, long first, long count, float *columns, float *scratch,
                      double *spent) noexcept nogil:
        """Stage 1: tiles first .. first + count - 1 of the input."""
        cdef Geometry *g = &self.g
        cdef long group, groups = lane_groups(g, count)
        cdef int some = chunk(groups, self.threads)
        cdef float *own
        cdef double *clock
        cdef double since
        with parallel(num_threads=self.threads):
            own, clock = scratch + threadid() * g.scratch_step, own_clock(spent, threadid())
            for group in prange(groups, schedule="dynamic", chunksize=some):
                since = zn_stage_begin(clock)
                if g.takes_blocks:
                    block_group(g, x, first, group, columns, own)
                else:
                    plain_group(g, x, first, count * g.rows, group, columns, own)
                zn_stage_end(clock, INPUT, since)

    cdef void multiply(self, const float *spectra, int part, long count, float *columns, float *scratch,
                       double *spent) noexcept nogil:
        """Stage 2: products of `count` tiles, of the columns of one part."""
        cdef Geometry *g = &self.g
        cdef long column, first = columns_before(g, part * g.part_kx), last = columns_before(g, part_end(g, part))
        cdef float *own
        cdef double *clock
        with parallel(num_threads=self.threads):
            own, clock = scratch + threadid() * g.scratch_step, own_clock(spent, threadid())
            for column in prange(first, last, schedule="dynamic"):
                multiply_column(g, spectra + (column - first) * g.spectra_step, count, columns + column * g.column_step,
                                own, clock)

    cdef void inverse(self, const float *columns, const Finish *finish, long first, long count, float *out,
                      float *scratch, double *spent) noexcept nogil:
        """Stage 3: tiles first .. first + count - 1 of the output."""
        cdef Geometry *g = &self.g
        cdef long group, groups = count * g.vectors
        cdef int some = chunk(groups, self.threads)
        cdef float *own
        cdef double *clock
        cdef double since
        with parallel(num_threads=self.threads):
            own, clock = scratch + threadid() * g.scratch_step, own_clock(spent, threadid())
            for group in prange(groups, schedule="dynamic", chunksize=some):
                since = zn_stage_begin(clock)
                inverse_group(g, columns, finish, first, group, out, own)
                zn_stage_end(clock, OUTPUT, since)


cdef inline double *own_clock(double *spent, int thread) noexcept nogil:
    """A thread's row of the stages' seconds; NULL where they are not asked for."""
    return NULL if spent == NULL else spent + thread * N_STAGES
