# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Convolution by whole-patch FFTs, pruned (ZNNi's data-parallel and task-parallel CPU algorithms).

Spectra are stored [y][z][x], real planes then imaginary planes, so that the transforms along z, the only ones over all of
a spectrum, stay within one block of y. Transforms along x go over the rows that hold data, along y over their planes, along z
over everything; an inverse goes back over wanted rows only. The transform of a kernel along z, the product with the input's
spectrum, the sum over input channels and the inverse along z happen block by block: no whole spectrum of a kernel or a product
is ever stored.
"""
from cython.parallel cimport parallel, prange, threadid

cdef extern from "fft_rows.h" nogil:
    int ZN_LANES
    int ZN_ROWS
    ctypedef struct zn_fft:
        int n
    ctypedef struct zn_lines:
        pass
    zn_lines zn_lines_at(const float *re, const float *im, long step, long next, int count)
    zn_lines zn_lines_swap(zn_lines a)
    int zn_fft_init(zn_fft *plan, int n, const float *table)
    void zn_fft_table(int n, float *table)
    long zn_fft_table_floats(int n)
    long zn_fft_scratch_floats(int n)
    void zn_fft_lines(const zn_fft *plan, const zn_lines *source, const zn_lines *target, long lines, float *scratch)
    long zn_row_floats(int n)
    long zn_rows_scratch_floats(int n)
    void zn_rows_forward(const zn_fft *plan, const float **row, int have, const float *end, int count, int dilation,
                         float *re, float *im, long next, float *scratch)
    void zn_rows_inverse(const zn_fft *plan, const float *re, const float *im, long next, float *const *row, int have,
                         int count, float scale, float bias, int code, float pa, float pb, float *scratch)
    void zn_multiply_conj(const float *xr, const float *xi, const float *kr, const float *ki, float *sr, float *si, long n,
                          int first)

cdef extern from *:
    """
    #define ZN_MOST_ROWS 32
    """
    enum:
        ZN_MOST_ROWS

# What all functions below need to know of one convolution. Sizes are z, y, x.
cdef struct Geometry:
    zn_fft z
    zn_fft y
    zn_fft x
    int size[3]       # input voxels
    int kernel[3]     # taps
    int dilation[3]
    int out[3]        # output voxels
    int in_channels
    int out_channels
    int activation
    long xp           # floats of a row's spectrum
    long block        # floats of one plane (real or imaginary) of a spectrum's y block: transform size of z times xp
    float scale
    float a
    float b


def row_floats(int n):
    """Floats that the real parts of a row's spectrum take, for a transform of `n` points."""
    return zn_row_floats(n)


def table_floats(int n):
    """Floats of the twiddle table for `n` points."""
    return zn_fft_table_floats(n)


def scratch_floats(int nz, int ny, int nx):
    """Floats of scratch per thread for transforms of `nz`, `ny` and `nx` points."""
    return max(zn_fft_scratch_floats(nz), zn_fft_scratch_floats(ny), zn_rows_scratch_floats(nx))


def fill_table(int n, float[::1] table):
    """Write the twiddles for `n` points."""
    zn_fft_table(n, &table[0])


cdef void rows_of_y(const Geometry *g, const float *volume, int y, float *re, float *im, float *scratch) noexcept nogil:
    """Transform along x the rows (z, y) of one channel of the input, for one y."""
    cdef const float *row[ZN_MOST_ROWS]
    cdef int z = 0, have, i
    cdef long at = y * g.block
    while z < g.size[0]:
        have = min(ZN_ROWS, g.size[0] - z)
        for i in range(have):
            row[i] = volume + ((<long> z + i) * g.size[1] + y) * g.size[2]
        zn_rows_forward(&g.x, row, have, volume + <long> g.size[0] * g.size[1] * g.size[2], g.size[2], 1,
                        re + at + z * g.xp, im + at + z * g.xp, g.xp, scratch)
        z += have


cdef void lines_of_z(const Geometry *g, int z, float *re, float *im, float *scratch) noexcept nogil:
    """Transform along y, for one z, in place."""
    cdef zn_lines source = zn_lines_at(re + z * g.xp, im + z * g.xp, g.block, ZN_LANES, g.size[1])
    cdef zn_lines target = zn_lines_at(re + z * g.xp, im + z * g.xp, g.block, ZN_LANES, g.y.n)
    zn_fft_lines(&g.y, &source, &target, g.xp // ZN_LANES, scratch)


cdef void block_of_y(const Geometry *g, int y, float *re, float *im, float *scratch) noexcept nogil:
    """Transform along z, for one y, in place."""
    cdef zn_lines source = zn_lines_at(re + y * g.block, im + y * g.block, g.xp, ZN_LANES, g.size[0])
    cdef zn_lines target = zn_lines_at(re + y * g.block, im + y * g.block, g.xp, ZN_LANES, g.z.n)
    zn_fft_lines(&g.z, &source, &target, g.xp // ZN_LANES, scratch)


cdef void kernel_planes(const Geometry *g, const float *kernel, float *re, float *im, float *scratch) noexcept nogil:
    """Transform one kernel along x and y: [y of the transform][z tap][x] planes."""
    cdef const float *row[ZN_MOST_ROWS]
    cdef int z, y, have, i
    cdef long next = g.kernel[0] * g.xp, at
    cdef zn_lines source, target
    for z in range(g.kernel[0]):
        y = 0
        while y < g.kernel[1]:
            have = min(ZN_ROWS, g.kernel[1] - y)
            for i in range(have):
                row[i] = kernel + (z * g.kernel[1] + y + i) * g.kernel[2]
            at = z * g.xp + y * g.dilation[1] * next
            zn_rows_forward(&g.x, row, have, kernel + <long> g.kernel[0] * g.kernel[1] * g.kernel[2], g.kernel[2],
                            g.dilation[2], re + at, im + at, g.dilation[1] * next, scratch)
            y += have
        if g.dilation[1] > 1:
            for y in range((g.kernel[1] - 1) * g.dilation[1]):
                if y % g.dilation[1]:
                    for i in range(g.xp):
                        re[z * g.xp + y * next + i] = 0
                        im[z * g.xp + y * next + i] = 0
        source = zn_lines_at(re + z * g.xp, im + z * g.xp, next, ZN_LANES, (g.kernel[1] - 1) * g.dilation[1] + 1)
        target = zn_lines_at(re + z * g.xp, im + z * g.xp, next, ZN_LANES, g.y.n)
        zn_fft_lines(&g.y, &source, &target, g.xp // ZN_LANES, scratch)


cdef void kernel_block(const Geometry *g, const float *re, const float *im, float *to_re, float *to_im,
                       float *scratch) noexcept nogil:
    """Transform along z one y block of a kernel's planes."""
    cdef int z
    cdef long i, line, next = g.xp
    cdef zn_lines source, target
    if g.dilation[0] == 1:
        source = zn_lines_at(re, im, next, ZN_LANES, g.kernel[0])
    else:
        for z in range((g.kernel[0] - 1) * g.dilation[0] + 1):
            line = z // g.dilation[0] * next
            for i in range(g.xp):
                to_re[z * next + i] = 0 if z % g.dilation[0] else re[line + i]
                to_im[z * next + i] = 0 if z % g.dilation[0] else im[line + i]
        source = zn_lines_at(to_re, to_im, next, ZN_LANES, (g.kernel[0] - 1) * g.dilation[0] + 1)
    target = zn_lines_at(to_re, to_im, next, ZN_LANES, g.z.n)
    zn_fft_lines(&g.z, &source, &target, g.xp // ZN_LANES, scratch)


cdef void product_block(const Geometry *g, int y, int batch, const float *inputs, long spectrum, const float *planes,
                        long kernel_spectrum, float *partial, long partial_size, float *own) noexcept nogil:
    """One y block of one output channel: products with all kernels summed over input channels, inverted along z.

    `inputs` are the spectra [batch][channel], `planes` the kernels' [channel]; of the inverse only wanted z are kept, in
    `partial` [batch][y][z][x].
    """
    cdef float *kernel = own
    cdef float *total = own + 2 * g.block
    cdef float *scratch = total + 2 * batch * g.block
    cdef const float *x
    cdef const float *taps
    cdef float *s
    cdef int c, b
    cdef long at = y * g.block
    cdef zn_lines source, target
    for c in range(g.in_channels):
        taps = planes + c * kernel_spectrum + y * g.kernel[0] * g.xp
        kernel_block(g, taps, taps + kernel_spectrum // 2, kernel, kernel + g.block, scratch)
        for b in range(batch):
            x = inputs + (<long> b * g.in_channels + c) * spectrum + at
            s = total + 2 * b * g.block
            zn_multiply_conj(x, x + spectrum // 2, kernel, kernel + g.block, s, s + g.block, g.block, c == 0)
    for b in range(batch):
        s = total + 2 * b * g.block
        source = zn_lines_swap(zn_lines_at(s, s + g.block, g.xp, ZN_LANES, g.z.n))
        s = partial + b * partial_size + y * g.out[0] * g.xp
        target = zn_lines_swap(zn_lines_at(s, s + partial_size // 2, g.xp, ZN_LANES, g.out[0]))
        zn_fft_lines(&g.z, &source, &target, g.xp // ZN_LANES, scratch)


cdef void inverse_plane(const Geometry *g, int z, float *partial, long partial_size, float *out, float bias,
                        float *scratch) noexcept nogil:
    """One z plane of an output channel: inverse along y and x, bias, activation, store."""
    cdef float *row[ZN_MOST_ROWS]
    cdef float *re = partial + z * g.xp
    cdef float *im = re + partial_size // 2
    cdef long next = g.out[0] * g.xp
    cdef int y = 0, have, i
    cdef zn_lines source = zn_lines_swap(zn_lines_at(re, im, next, ZN_LANES, g.y.n))
    cdef zn_lines target = zn_lines_swap(zn_lines_at(re, im, next, ZN_LANES, g.out[1]))
    zn_fft_lines(&g.y, &source, &target, g.xp // ZN_LANES, scratch)
    while y < g.out[1]:
        have = min(ZN_ROWS, g.out[1] - y)
        for i in range(have):
            row[i] = out + ((<long> z * g.out[1]) + y + i) * g.out[2]
        zn_rows_inverse(&g.x, re + y * next, im + y * next, next, row, have, g.out[2], g.scale, bias, g.activation, g.a, g.b,
                        scratch)
        y += have


cdef void input_spectrum(const Geometry *g, const float *volume, float *spectrum, long size, float *scratch) noexcept nogil:
    cdef float *im = spectrum + size // 2
    cdef int i
    for i in range(g.size[1]):
        rows_of_y(g, volume, i, spectrum, im, scratch)
    for i in range(g.size[0]):
        lines_of_z(g, i, spectrum, im, scratch)
    for i in range(g.y.n):
        block_of_y(g, i, spectrum, im, scratch)


cdef void output_channel(const Geometry *g, int co, int batch, const float *inputs, long spectrum, const float *weight,
                         const float *bias, float *out, float *planes, long kernel_spectrum, float *partial,
                         long partial_size, float *own, long scratch_at) noexcept nogil:
    cdef long taps = <long> g.kernel[0] * g.kernel[1] * g.kernel[2]
    cdef long voxels = <long> g.out[0] * g.out[1] * g.out[2]
    cdef int c, y, z, b
    for c in range(g.in_channels):
        kernel_planes(g, weight + (<long> co * g.in_channels + c) * taps, planes + c * kernel_spectrum,
                      planes + c * kernel_spectrum + kernel_spectrum // 2, own + scratch_at)
    for y in range(g.y.n):
        product_block(g, y, batch, inputs, spectrum, planes, kernel_spectrum, partial, partial_size, own)
    for b in range(batch):
        for z in range(g.out[0]):
            inverse_plane(g, z, partial + b * partial_size, partial_size,
                          out + (<long> b * g.out_channels + co) * voxels, bias[co], own + scratch_at)


def convolve(const float[:, :, :, :, ::1] x, const float[:, :, :, :, ::1] weight, const float[::1] bias,
             float[:, :, :, :, ::1] out, const float[::1] table_z, const float[::1] table_y, const float[::1] table_x,
             sizes, dilation, int activation, float a, float b, int batch_block, bint task_parallel, int threads,
             float[::1] workspace):
    """Cross-correlate `x` (batch, in, z, y, x) with `weight` (out, in, kz, ky, kx) into `out`, valid, fused.

    `sizes` are the transforms' (z, y, x), of whose twiddles the tables are. `batch_block` batch elements share a kernel's
    transform. `task_parallel`: a thread per transform and per output channel; else all threads in each. `workspace` is laid
    out as `znni.primitives.cpu_fft` counts it.
    """
    cdef Geometry g
    cdef int i
    zn_fft_init(&g.z, sizes[0], &table_z[0])
    zn_fft_init(&g.y, sizes[1], &table_y[0])
    zn_fft_init(&g.x, sizes[2], &table_x[0])
    for i in range(3):
        g.size[i] = x.shape[2 + i]
        g.kernel[i] = weight.shape[2 + i]
        g.out[i] = out.shape[2 + i]
        g.dilation[i] = dilation[i]
    g.in_channels = x.shape[1]
    g.out_channels = out.shape[1]
    g.activation = activation
    g.a = a
    g.b = b
    g.xp = zn_row_floats(g.x.n)
    g.block = g.z.n * g.xp
    g.scale = 0.25 / (<double> g.z.n * g.y.n * g.x.n)  # both forward transforms are doubled
    with nogil:
        run(&g, &x[0, 0, 0, 0, 0], &weight[0, 0, 0, 0, 0], &bias[0], &out[0, 0, 0, 0, 0], x.shape[0], batch_block,
            task_parallel, threads, &workspace[0])


cdef void run(const Geometry *g, const float *x, const float *weight, const float *bias, float *out, int batch,
              int batch_block, bint task_parallel, int threads, float *workspace) noexcept nogil:
    cdef long spectrum = 2 * g.block * g.y.n
    cdef long kernel_spectrum = 2 * g.kernel[0] * g.xp * g.y.n
    cdef long partial_size = 2 * g.out[0] * g.xp * g.y.n
    cdef long in_voxels = <long> g.size[0] * g.size[1] * g.size[2]
    cdef long out_voxels = <long> g.out[0] * g.out[1] * g.out[2]
    cdef long taps = <long> g.kernel[0] * g.kernel[1] * g.kernel[2]
    cdef int teams = threads if task_parallel else 1
    cdef float *inputs = workspace
    cdef float *planes = inputs + batch_block * g.in_channels * spectrum
    cdef float *partials = planes + teams * g.in_channels * kernel_spectrum
    cdef float *owns = partials + teams * batch_block * partial_size
    cdef long scratch_at = 2 * (1 + batch_block) * g.block
    cdef long own_size = scratch_at + max(max(zn_fft_scratch_floats(g.z.n), zn_fft_scratch_floats(g.y.n)),
                                          zn_rows_scratch_floats(g.x.n))
    cdef int first = 0, now, i, co
    cdef const float *volume
    cdef float *target
    while first < batch:
        now = min(batch_block, batch - first)
        volume = x + first * g.in_channels * in_voxels
        target = out + first * g.out_channels * out_voxels
        if task_parallel:
            for i in prange(now * g.in_channels, schedule="dynamic", num_threads=threads):
                input_spectrum(g, volume + i * in_voxels, inputs + i * spectrum, spectrum,
                               owns + threadid() * own_size + scratch_at)
            for co in prange(g.out_channels, schedule="dynamic", num_threads=threads):
                output_channel(g, co, now, inputs, spectrum, weight, bias, target,
                               planes + threadid() * g.in_channels * kernel_spectrum, kernel_spectrum,
                               partials + threadid() * batch_block * partial_size, partial_size,
                               owns + threadid() * own_size, scratch_at)
        else:
            for i in range(now * g.in_channels):
                shared_input(g, volume + i * in_voxels, inputs + i * spectrum, spectrum, threads, owns + scratch_at, own_size)
            for co in range(g.out_channels):
                shared_output(g, co, now, inputs, spectrum, weight + co * g.in_channels * taps, bias[co],
                              target + co * out_voxels, planes, kernel_spectrum, partials, partial_size, threads, owns,
                              own_size, scratch_at)
        first += now


cdef void shared_input(const Geometry *g, const float *volume, float *spectrum, long size, int threads, float *scratch,
                       long own_size) noexcept nogil:
    """One input transform by all threads."""
    cdef float *im = spectrum + size // 2
    cdef int i
    with parallel(num_threads=threads):
        for i in prange(g.size[1]):
            rows_of_y(g, volume, i, spectrum, im, scratch + threadid() * own_size)
        for i in prange(g.size[0]):
            lines_of_z(g, i, spectrum, im, scratch + threadid() * own_size)
        for i in prange(g.y.n):
            block_of_y(g, i, spectrum, im, scratch + threadid() * own_size)


cdef void shared_output(const Geometry *g, int co, int batch, const float *inputs, long spectrum, const float *weight,
                        float bias, float *out, float *planes, long kernel_spectrum, float *partial, long partial_size,
                        int threads, float *owns, long own_size, long scratch_at) noexcept nogil:
    """One output channel by all threads."""
    cdef long taps = <long> g.kernel[0] * g.kernel[1] * g.kernel[2]
    cdef long voxels = <long> g.out_channels * g.out[0] * g.out[1] * g.out[2]
    cdef int c, y, i
    with parallel(num_threads=threads):
        for c in prange(g.in_channels):
            kernel_planes(g, weight + c * taps, planes + c * kernel_spectrum,
                          planes + c * kernel_spectrum + kernel_spectrum // 2, owns + threadid() * own_size + scratch_at)
        for y in prange(g.y.n):
            product_block(g, y, batch, inputs, spectrum, planes, kernel_spectrum, partial, partial_size,
                          owns + threadid() * own_size)
        for i in prange(batch * g.out[0]):
            inverse_plane(g, i % g.out[0], partial + i // g.out[0] * partial_size, partial_size,
                          out + i // g.out[0] * voxels, bias, owns + threadid() * own_size + scratch_at)
