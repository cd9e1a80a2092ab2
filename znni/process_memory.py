"""What this process holds in main memory, what it held at most, and what it may still take (Linux)."""

from __future__ import annotations

from pathlib import Path

from znni.cgroup import memory_limits
from znni.errors import ZnniError

_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of main memory that this process holds now (its resident set)."""
    return _reported("/proc/self/status", "VmRSS")


def peak_resident_bytes() -> int:
    """The most bytes that `resident_bytes` reached since the process began, or since `reset_peak`."""
    return _reported("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Let `peak_resident_bytes` start again from what is held now.

    Raises
    ------
    ZnniError
        Where the kernel or a sandbox does not allow it; a peak can then only be measured in a process of its own.
    """
    try:
        _CLEAR_REFS.write_text("5")
    except OSError as error:
        raise ZnniError(
            f"cannot reset the peak of resident memory: writing {_CLEAR_REFS} failed ({error.strerror}); "
            "measure the peak in a fresh process instead"
        ) from error


def available_bytes() -> int:
    """Bytes that this process can still take without swapping: the machine's, or what its cgroups leave, if that is
    less."""
    free = _reported("/proc/meminfo", "MemAvailable")
    return min([free, *(max(0, limit - used) for limit, used in memory_limits())])


def total_bytes() -> int:
    """Bytes of main memory that this machine has."""
    return _reported("/proc/meminfo", "MemTotal")


def _reported(path: str, key: str) -> int:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ZnniError(f"{path} does not report {key}; znni needs a Linux kernel that does")
