# cython: language_level=3, cdivision=True
"""What all stages of the tiled FFT know of a layer, and how its arrays of spectra lie (`fft_tiled.pyx`).

A *lane group* is ZN_LANES rows, a row being one channel of one tile. A *column* is the line along z of one (ky, kx),
and holds, lane group after lane group, the planes of the tile side by side.
"""

from lane_fft cimport (
    ZN_ALIKE,
    ZN_CGEMM_WIDTH,
    ZN_FEW_TAPS,
    ZN_LANES,
    ZN_POINT,
    zn_cgemm_parts,
    zn_columns_before,
    zn_fft,
    zn_fft_scratch_floats,
    zn_fft_table_floats,
)
from tile_places cimport Axis


cdef struct Geometry:
    Axis axis[3]
    zn_fft fft[3]
    const float *circle[3]  # cos and sin of 2 pi j / n
    long batch, in_channels, out_channels
    long vectors  # of output channels
    long rows  # that a tile has in A: its channels, rounded up to whole vectors where the input is blocked
    bint takes_blocks, gives_blocks
    int gauss
    float scale  # of the kernels: undoes the doublings of `zn_planes_split` and the three unnormalised transforms
    long tiles, block  # in all; that go together
    long columns  # of a tile
    int parts  # that the kernel spectra are made and used in, each of so many kx:
    int part_kx
    long panels  # of B that are held at a time
    long column_step, spectra_step  # floats from column to column
    long fft_floats, table_floats, row_step, plane_step, a_step, b_step, c_step, scratch_step


cdef enum Stage:  # in the order of `fft_tiled.STAGES`
    KERNELS
    INPUT
    INPUT_Z
    KERNELS_Z
    PRODUCTS
    OUTPUT_Z
    OUTPUT
    N_STAGES


cdef inline long padded(long floats) noexcept nogil:
    """`floats` rounded up to an odd number of cache lines, so that neighbours differ in their cache sets."""
    return (floats + 15) // 16 * 16 | 16


cdef inline int chunk(long groups, int threads) noexcept nogil:
    """Lane groups that a thread takes at a time: so few that none is waited for long, but neighbours share lines."""
    return <int> max(<long> 1, min(<long> 8, groups // (8 * threads)))


cdef inline long lane_groups(const Geometry *g, long tiles) noexcept nogil:
    """Of the input of so many tiles; the last of a plain one may have lanes left over."""
    return (tiles * g.rows + ZN_LANES - 1) // ZN_LANES


cdef inline int part_end(const Geometry *g, int part) noexcept nogil:
    """The kx after those of a part."""
    return min((part + 1) * g.part_kx, g.axis[2].n // 2 + 1)


cdef inline long columns_before(const Geometry *g, int kx) noexcept nogil:
    """Columns of lesser kx."""
    return zn_columns_before(g.axis[2].n, g.axis[1].n, kx)


cdef inline void lay_out(Geometry *g, int parts) noexcept nogil:
    """Everything that follows from axes, channels, layouts, product and block."""
    cdef int nz = g.axis[0].n, ny = g.axis[1].n, nx = g.axis[2].n, i
    cdef long blocks
    g.vectors = (g.out_channels + ZN_LANES - 1) // ZN_LANES
    g.rows = g.in_channels
    if g.takes_blocks:
        g.rows = (g.in_channels + ZN_LANES - 1) // ZN_LANES * ZN_LANES
    g.tiles, g.table_floats, g.fft_floats = g.batch, 0, 0
    for i in range(3):
        g.tiles *= g.axis[i].phases * g.axis[i].tiles
        g.table_floats += zn_fft_table_floats(g.axis[i].n) + 2 * g.axis[i].n
        g.fft_floats = max(g.fft_floats, zn_fft_scratch_floats(g.axis[i].n))
    g.block = min(g.block, g.tiles)
    g.scale = 0.25 / (<double> nz * ny * nx)
    g.part_kx = (nx // 2 + parts) // parts
    g.parts = (nx // 2 + g.part_kx) // g.part_kx
    g.columns = columns_before(g, nx // 2 + 1)
    blocks = lane_groups(g, g.block)
    g.column_step = ZN_POINT * (max(blocks * g.axis[0].load, g.block * g.vectors * g.axis[0].keep) | 1)
    g.spectra_step = ZN_POINT * (g.vectors * g.in_channels * g.axis[0].kernel | 1)
    g.row_step = padded(blocks * ZN_LANES)
    g.a_step = zn_cgemm_parts(g.gauss) * g.row_step
    g.b_step = padded(ZN_CGEMM_WIDTH * ZN_POINT * g.in_channels)
    g.panels = ZN_ALIKE if g.axis[0].kernel <= ZN_FEW_TAPS else nz
    g.c_step = padded(ZN_CGEMM_WIDTH * ZN_POINT * g.block)
    g.plane_step = ZN_POINT * (g.axis[1].load | 1)
    g.scratch_step = padded(g.fft_floats + max(
        nx * (g.plane_step + ZN_POINT) + 2 * ny * ZN_POINT,
        g.panels * g.b_step + nz * (g.a_step + g.c_step + 8 * ZN_POINT),
    ))


cdef inline long spectra_floats(const Geometry *g) noexcept nogil:
    """Of the largest part of the kernel spectra."""
    cdef long most = 0
    cdef int part
    for part in range(g.parts):
        most = max(most, columns_before(g, part_end(g, part)) - columns_before(g, part * g.part_kx))
    return most * g.spectra_step
