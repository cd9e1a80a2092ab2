# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Convolutions within groups of channels, and transposed ones; rows of the result are cut evenly over the threads."""
from cython.parallel cimport prange

from array_ends cimport read_from, write_to


cdef extern from "grouped.h" nogil:
    int ZN_LANES
    ctypedef struct zn_grouped:
        long groups, inner, outer
        long nz, ny, nx, oz, oy, ox
        long kz, ky, kx, sz, sy, sx, dz, dy, dx
        long pz, py, px
        bint transposed
        int code
        float a, b
    void zn_grouped_row(const zn_grouped *g, const float *x, const float *weight, const float *bias, float *out, long o,
                        long z, long y)
    void zn_depthwise_block_row(const zn_grouped *g, const float *x, const float *weight, const float *bias, float *out,
                                long block, long z, long y)


def convolve(x, out, const float[::1] weight, const float[::1] bias, groups, kernel, stride, dilation, padding,
             bint transposed, int code, float a, float b, long threads):
    """Cross-correlation of x, padded, or transposed of it, with `padding` voxels cut off before; bias and activation.

    Plain arrays go with the weights of the layer, as they are; blocked ones have one channel a group, and weights
    (block, tap, lane), bias (block, lane).
    """
    cdef zn_grouped g
    cdef const float *source = read_from(x)
    cdef float *target = write_to(out)
    cdef bint blocked = x.ndim == 6
    cdef long lanes = ZN_LANES if blocked else 1, outs = out.shape[1], ins = x.shape[1]
    g.groups, g.inner, g.outer = (groups, 1, 1) if blocked else (groups, ins // groups, outs // groups)
    g.nz, g.ny, g.nx = x.shape[2:5]
    g.oz, g.oy, g.ox = out.shape[2:5]
    g.kz, g.ky, g.kx = kernel
    g.sz, g.sy, g.sx = stride
    g.dz, g.dy, g.dx = dilation
    g.pz, g.py, g.px = padding
    g.transposed = transposed
    g.code = code
    g.a = a
    g.b = b
    cdef long rows = out.shape[0] * outs * g.oz * g.oy, voxels = g.nz * g.ny * g.nx * lanes, r, image
    for r in prange(rows, nogil=True, num_threads=threads, schedule="static"):
        image = r // (g.oz * g.oy)
        if blocked:
            zn_depthwise_block_row(&g, source + image * voxels, &weight[0], &bias[0], target + r * g.ox * lanes,
                                   image % outs, r // g.oy % g.oz, r % g.oy)
        else:
            zn_grouped_row(&g, source + image // outs * ins * voxels, &weight[0], &bias[0], target + r * g.ox, image % outs,
                           r // g.oy % g.oz, r % g.oy)
