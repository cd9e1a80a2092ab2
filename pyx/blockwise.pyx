# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Blocks of a volume: cut out of an input, and pooled into the fragments of an output that is never held unpooled.

Arrays are seen as (image, z, y, x of `width` floats): images are channels, and `width` is 1, or in a blocked layout vectors
of channels, and `width` the lanes of a vector.
"""
from cython.parallel cimport prange
from libc.string cimport memcpy


cdef extern from "interleave.h" nogil:
    void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk)
    void zn_pick2(float *even, float *odd, const float *src, long n, long taps)
    void zn_pick(float *dst, const float *src, long n, long step)


def cut(const float[:, :, :, ::1] x, float[:, :, :, ::1] block, origin, long width, int threads):
    """Copy the block of `x` that begins at voxel `origin` (z, y, x) into `block`."""
    cdef long oz = origin[0], oy = origin[1], ox = origin[2], row, z, y, image
    cdef long nz = block.shape[1], ny = block.shape[2], floats = block.shape[3], at = ox * width
    for row in prange(block.shape[0] * nz * ny, nogil=True, num_threads=threads, schedule="static"):
        image = row // (nz * ny)
        z = row // ny % nz
        y = row % ny
        memcpy(&block[image, z, y, 0], &x[image, oz + z, oy + y, at], floats * sizeof(float))


cdef void pool_rows(const float *block, long nz, long ny, long nx, float *out, long pz, long py, long px,
                    const long *window, const long *stride, long first, long count, long images,
                    const long *origin, const long *size, long width, long image, long z, float *line) noexcept nogil:
    """The maxima of one image in plane `z` of the block's windows: `size` of them in each of `count` fragments."""
    cdef long f, fz, fy, fx, y, at
    cdef const float *base
    cdef float *row
    for f in range(first, first + count):
        fz = f // (stride[1] * stride[2])
        fy = f // stride[2] % stride[1]
        fx = f % stride[2]
        for y in range(size[1]):
            at = (((f - first) * images + image) * pz + origin[0] + z) * py + origin[1] + y
            row = out + (at * px + origin[2]) * width
            base = block + ((image * nz + fz + stride[0] * z) * ny + fy + stride[1] * y) * nx * width
            zn_max_taps(line, base, nx * width, window[0], ny * nx * width, window[1], nx * width)
            if width == 1 and stride[2] == 2 and window[2] <= 2:
                zn_pick2(row, NULL, line + fx, size[2], window[2])
            else:
                pick(row, line + fx * width, size[2], window[2], stride[2], width)


cdef void pick(float *row, const float *line, long count, long window, long stride, long width) noexcept nogil:
    """Maxima along x of `window` voxels, at a stride."""
    cdef long x
    for x in range(count):
        zn_max_taps(row + x * width, line + x * stride * width, width, 1, 0, window, width)


def pool(const float[:, :, :, ::1] block, float[:, :, :, :, ::1] out, unsigned char[::1] scratch, origin, size,
         window, stride, long first, long width, int threads):
    """Pool a block into its place in the fragments.

    Parameters
    ----------
    block : float32, (image, z, y, x * width)
        What is pooled: ``window - 1 + stride * size`` voxels an axis.
    out : float32, (fragment, image, z, y, x * width)
        Fragments `first`, `first` + 1, ..; voxels from `origin` on, `size` of them, are written.
    scratch : uint8, threads * 4 * (x * width of the block + 16) bytes
    origin, size, window, stride : (z, y, x)
    """
    cdef long[3] at = origin
    cdef long[3] count = size
    cdef long[3] w = window
    cdef long[3] s = stride
    cdef long nz = block.shape[1], ny = block.shape[2], nx = block.shape[3] // width
    cdef long pz = out.shape[2], py = out.shape[3], px = out.shape[4] // width, images = block.shape[0]
    cdef long part, row, rows = images * count[0], floats = block.shape[3] + 16
    cdef const float *source = &block[0, 0, 0, 0]
    cdef float *target = &out[0, 0, 0, 0, 0]
    cdef float *lines = <float *> &scratch[0]
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        for row in range(rows * part // threads, rows * (part + 1) // threads):
            pool_rows(source, nz, ny, nx, target, pz, py, px, w, s, first, out.shape[0], images, at, count, width,
                      row // count[0], row % count[0], lines + part * floats)
