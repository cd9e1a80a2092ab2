"""The circumstances of a measurement: what may make timings differ from one day to the next, and warnings in words."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from znni._kernels import _build_info
from znni._version import __version__
from znni.cgroup import cpu_quota
from znni.machine import kernels_digest
from znni.process_memory import available_bytes, total_bytes

_ROOT = Path("/")
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
)  # fmt: skip
#: Other work per core, by the load average, from which timings are called disturbed.
_BUSY_LOAD = 0.25
_SCARCE_RAM = 0.1


def environment(root: Path = _ROOT) -> dict:
    """The environment as JSON data; what could distort timings is said under ``warnings``, and nothing is changed.

    Keys: ``captured`` (UTC), ``governor``, ``turbo`` (None where the system does not tell), ``affinity`` (core
    numbers), ``cpu_quota`` (cores), ``load`` (1, 5 and 15 minutes), ``available_bytes``, ``transparent_hugepages``,
    ``thread_variables``, ``versions``, ``commit``, ``kernels``, ``march``, ``warnings``.
    """
    found = {
        "captured": datetime.now(UTC).isoformat(timespec="seconds"),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(root),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cpu_quota": cpu_quota(root),
        "load": list(os.getloadavg()),
        "available_bytes": available_bytes(),
        "transparent_hugepages": _chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "versions": {"znni": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "commit": _commit(Path(__file__).parent.parent),
        "kernels": kernels_digest(),
        "march": _build_info.MARCH,
    }
    return found | {"warnings": warnings_of(found, os.cpu_count() or 1, total_bytes())}


def warnings_of(found: dict, machine_cores: int, ram_bytes: int) -> list[str]:
    """What in an environment may distort timings, a sentence each."""
    warnings = []
    cores, load = len(found["affinity"]), found["load"][0]
    if found["governor"] not in (None, "performance"):
        warnings.append(
            f"the CPU frequency governor is {found['governor']}: clocks follow the load; performance would be steadier"
        )
    if found["turbo"]:
        warnings.append("turbo is on, so a cool or lightly loaded CPU runs faster than a warm or fully loaded one")
    if load > _BUSY_LOAD * machine_cores:
        warnings.append(
            f"the load average is {load:.1f} on {machine_cores} cores: other work is running and takes time from this"
        )
    if cores < machine_cores:
        warnings.append(f"this process may use {cores} of {machine_cores} cores")
    if found["cpu_quota"] is not None and found["cpu_quota"] < cores:
        warnings.append(
            f"a control group allows {found['cpu_quota']:g} cores' worth of time; beyond it threads are halted"
        )
    if found["available_bytes"] < _SCARCE_RAM * ram_bytes:
        warnings.append(
            f"only {found['available_bytes'] >> 20} MiB of {ram_bytes >> 20} MiB of RAM are free: the system may swap"
        )
    limit = found["thread_variables"].get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and int(limit) < cores:
        warnings.append(f"OMP_THREAD_LIMIT={limit} keeps kernels from the threads that they are asked to use")
    return warnings


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _turbo(root: Path) -> bool | None:
    no_turbo = _text(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = _text(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _chosen(text: str | None) -> str | None:
    """The bracketed one of several words: ``always [madvise] never``."""
    return text.partition("[")[2].partition("]")[0] if text and "[" in text else text


def _commit(checkout: Path) -> str | None:
    """The commit of the checkout that this runs from, marked ``-dirty`` where files differ; None where it runs from
    none."""
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here: the digest of the kernels still says what ran
    return described.stdout.strip() or None
