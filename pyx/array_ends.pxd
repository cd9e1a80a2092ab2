# cython: language_level=3
"""Addresses of arrays that are plain, (batch, channel, z, y, x), or blocked, with an axis of lanes behind."""


cdef inline const float *read_from(x) except NULL:
    """The first float of `x`; `ValueError` or `TypeError` unless it is C-contiguous float32."""
    cdef const float[:, :, :, :, ::1] plain
    cdef const float[:, :, :, :, :, ::1] blocked
    if x.ndim == 5:
        plain = x
        return &plain[0, 0, 0, 0, 0]
    blocked = x
    return &blocked[0, 0, 0, 0, 0, 0]


cdef inline float *write_to(out) except NULL:
    """The first float of `out`; `ValueError` or `TypeError` unless it is writable C-contiguous float32."""
    cdef float[:, :, :, :, ::1] plain
    cdef float[:, :, :, :, :, ::1] blocked
    if out.ndim == 5:
        plain = out
        return &plain[0, 0, 0, 0, 0]
    blocked = out
    return &blocked[0, 0, 0, 0, 0, 0]
