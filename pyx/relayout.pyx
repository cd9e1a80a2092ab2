# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Between plain and blocked layouts (`znni.layouts`), at the pace of the memory."""
from cython.parallel cimport prange


cdef extern from "relayout.h" nogil:
    int ZN_LANES
    int ZN_STREAM_BYTES
    void zn_to_blocked(const float *x, float *out, long pitch, int channels, long first, long last, int stream)
    void zn_to_plain(const float *x, float *to, long pitch, int channels, long first, long last)
    void zn_to_plain_stream(const float *x, float *out, long pitch, int channels, long first, long last)
    void zn_stream_end()


cdef void convert(const float *plain, float *plain_out, const float *blocked, float *blocked_out, long channels,
                  long voxels, long first, long last, bint stream) noexcept nogil:
    """Voxels `first` to `last`, counted over (batch, block of channels, voxel); to the one of the results that is there."""
    cdef long blocks = (channels + ZN_LANES - 1) // ZN_LANES, image, start, end, rows, at
    cdef int there
    while first < last:
        image, start = first // voxels, first % voxels
        end = min(voxels, start + last - first)
        there = <int> min(<long> ZN_LANES, channels - image % blocks * ZN_LANES)
        rows = (image // blocks * channels + image % blocks * ZN_LANES) * voxels
        at = image * voxels * ZN_LANES
        if blocked_out:
            zn_to_blocked(plain + rows, blocked_out + at, voxels, there, start, end, stream)
        elif stream:
            zn_to_plain_stream(blocked + at, plain_out + rows, voxels, there, start, end)
        else:
            zn_to_plain(blocked + at, plain_out + rows + start, voxels, there, start, end)
        first += end - start
    if stream:
        zn_stream_end()


cdef void share_out(const float *plain, float *plain_out, const float *blocked, float *blocked_out, long batch,
                    long channels, long voxels, bint stream, long threads):
    cdef long all = batch * ((channels + ZN_LANES - 1) // ZN_LANES) * voxels, part
    for part in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        convert(plain, plain_out, blocked, blocked_out, channels, voxels, all * part // threads,
                all * (part + 1) // threads, stream)


def to_blocked(const float[:, :, :, :, ::1] x, float[:, :, :, :, :, ::1] out, long threads):
    """A plain array to a blocked one; lanes beyond the last channel become zero."""
    cdef float *to = &out[0, 0, 0, 0, 0, 0]
    cdef bint stream = out.nbytes >= ZN_STREAM_BYTES and <size_t> to % (ZN_LANES * sizeof(float)) == 0
    share_out(&x[0, 0, 0, 0, 0], NULL, NULL, to, x.shape[0], x.shape[1], x.shape[2] * x.shape[3] * x.shape[4], stream,
              threads)


def to_plain(const float[:, :, :, :, :, ::1] x, float[:, :, :, :, ::1] out, long threads):
    """A blocked array to a plain one of as many channels as that has."""
    share_out(NULL, &out[0, 0, 0, 0, 0], &x[0, 0, 0, 0, 0, 0], NULL, out.shape[0], out.shape[1],
              out.shape[2] * out.shape[3] * out.shape[4], out.nbytes >= ZN_STREAM_BYTES, threads)
