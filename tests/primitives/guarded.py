"""Arrays that tell when something outside of them is touched.

`Canary` arrays lie between bytes that can be looked at afterwards. `fenced` arrays lie against pages that may not even be
read: touching those ends the process, so `stay_within` is for a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from znni.layouts import array_shape, packed, with_layouts
from znni.primitives import get

from .cases import SMALL, Case, cases, each

_GUARD_BYTES = 1024
ALL_ONES = 0xFF  # as float32, a NaN


class Canary:
    """An array full of NaN, `offset` bytes off a cache line, between guard zones in which every byte is `guard`.

    Zones of ones are NaN too, which shows in the results of what reads them; but it hides what writes NaN there.
    """

    def __init__(self, shape: tuple[int, ...], dtype=np.float32, offset: int = 0, guard: int = 0xA5):
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = np.full(nbytes + 2 * _GUARD_BYTES + 64 + offset, guard, np.uint8)
        start = _GUARD_BYTES - (whole.ctypes.data + _GUARD_BYTES) % -64 + offset
        self._guard, self._before, self._after = guard, whole[:start], whole[start + nbytes :]
        self.array = whole[start : start + nbytes].view(dtype).reshape(shape)
        self.array.view(np.uint8)[...] = ALL_ONES

    @property
    def intact(self) -> bool:
        """Whether the guard zones are as they were."""
        return bool((self._before == self._guard).all() and (self._after == self._guard).all())


def fenced(shape: tuple[int, ...], dtype, at_end: bool) -> np.ndarray:
    """An all-NaN array that ends where a page that must not be touched begins, or begins where one ends."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    everything = np.frombuffer(whole, np.uint8)
    everything[:] = ALL_ONES
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (0, room + mmap.PAGESIZE):
        if libc.mprotect(ctypes.c_void_p(everything.ctypes.data + page), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    start = mmap.PAGESIZE + (room - nbytes if at_end else 0)
    return everything[start : start + nbytes].view(dtype).reshape(shape)


def fenced_copy(array: np.ndarray, at_end: bool) -> np.ndarray:
    """`array` against a fence."""
    copy = fenced(array.shape, array.dtype, at_end)
    copy[:] = array
    return copy


def stay_within(name: str, examples: int) -> None:
    """Run the primitive of that name on fenced arrays; it does not return where one byte outside of them is touched."""
    primitive = get(name)

    def try_out(case: Case, threads: int, pick: int | None) -> None:
        if primitive.supports(case.layer, case.shape):
            return
        values, weights = case.arrays(seed=1)
        configs = [
            with_layouts(config, *pair)
            for config in primitive.configs(case.layer, case.shape)
            for pair in primitive.layouts
        ]
        for config in configs if pick is None else [configs[pick % len(configs)]]:
            operator = primitive.prepare(case.layer, weights, case.shape, config, threads)
            for at_end in (True, False):
                x = each(
                    lambda own, given=operator.takes, at_end=at_end: fenced_copy(packed(own, given), at_end), values
                )
                # a workspace is aligned, so it may end up to 63 bytes before the fence
                nbytes = -(-operator.memory.host_workspace_bytes // 64) * 64
                out = fenced(array_shape(operator.out_shape, operator.gives), np.float32, at_end)
                operator(x, out, fenced((nbytes,), np.uint8, at_end))

    for case in SMALL[primitive.kind]:
        try_out(case, 2, None)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(primitive.kind), st.integers(1, 3), st.integers(0, 999))
    def drawn(case, threads, pick):
        try_out(case, threads, pick)

    drawn()
