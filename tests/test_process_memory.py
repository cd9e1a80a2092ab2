"""Resident memory, its peak, and what is free, against memory that is really taken."""

import mmap

import numpy as np
import pytest

from znni import process_memory
from znni.errors import ZnniError
from znni.process_memory import (
    available_bytes,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
    total_bytes,
)

MIB = 1 << 20


def take(nbytes: int) -> mmap.mmap:
    """Fresh pages, all touched; an allocator might hand out some that the process holds already."""
    pages = mmap.mmap(-1, nbytes)
    np.frombuffer(pages, np.uint8)[:] = 1
    return pages


def test_resident_memory_follows_what_is_touched():
    before = resident_bytes()
    pages = take(64 * MIB)
    assert resident_bytes() - before > 60 * MIB
    pages.close()


def test_the_peak_outlasts_what_is_given_back_until_it_is_reset():
    take(96 * MIB).close()
    peak = peak_resident_bytes()
    assert peak >= resident_bytes() + 60 * MIB
    reset_peak()
    assert peak_resident_bytes() < peak - 60 * MIB
    assert abs(peak_resident_bytes() - resident_bytes()) < 16 * MIB


def test_a_peak_that_cannot_be_reset_is_said_in_words(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with pytest.raises(ZnniError, match=r"cannot reset the peak .* fresh process"):
        reset_peak()


def test_available_is_within_the_machine():
    assert 0 < available_bytes() <= total_bytes()


def test_available_is_bounded_by_the_tightest_cgroup(monkeypatch):
    monkeypatch.setattr(process_memory, "memory_limits", lambda: [(100 * MIB, 40 * MIB), (80 * MIB, 70 * MIB)])
    assert available_bytes() == 10 * MIB
    monkeypatch.setattr(process_memory, "memory_limits", lambda: [(10 * MIB, 40 * MIB)])
    assert available_bytes() == 0
