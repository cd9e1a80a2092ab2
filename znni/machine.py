"""What this machine is: all that changes results or speed for good, and nothing that comes and goes (clock, load,
name)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from znni._kernels import _build_info
from znni.cgroup import cpu_quota
from znni.nvidia import gpu_driver, gpu_model
from znni.process_memory import total_bytes

if TYPE_CHECKING:
    from znni.ceilings import Ceilings
    from znni.store import Store

_ROOT = Path("/")
#: Instruction sets that kernels can be compiled to use, by their names in /proc/cpuinfo (x86 and Arm).
_INSTRUCTION_SETS = (
    "pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "avx", "f16c", "fma", "bmi1", "bmi2", "avx2", "avx512f", "avx512bw",
    "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "asimdhp",
    "sve", "sve2",
)  # fmt: skip
_GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """A machine and the kernels built on it. Sizes are 0 where the system does not tell them.

    Attributes
    ----------
    fingerprint : str
        SHA-256 of what changes results or speed for good: everything here but `cores` and the caches (which go with the
        CPU), RAM to the nearest GiB.
    cores : int
        What this process may use: its affinity, and its share of time where a container sets one.
    kernels : str
        Digest of the kernels' sources and compiler flags.
    """

    fingerprint: str
    cpu: str
    cores: int
    machine_cores: int
    ram_bytes: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    instruction_sets: tuple[str, ...]
    kernels: str
    python: str
    numpy: str
    gpu: str | None = None
    gpu_driver: str | None = None

    def describe(self) -> dict:
        """The machine as JSON data, for plan files and reports."""
        return asdict(self) | {"instruction_sets": list(self.instruction_sets)}

    def differences(self, described: dict) -> list[str]:
        """In words, how this machine differs from the one that `describe` said; empty where the fingerprints agree."""
        if described.get("fingerprint") == self.fingerprint:
            return []
        here, words = _lasting(self.describe()), []
        for key, value in _lasting(described).items():
            if value != here[key]:
                words.append(f"{_WORDS[key]}: {_said(value)} there, {_said(here[key])} here")
        return words or ["it was described by another version of znni"]

    def ceilings(self, threads: int, store: Store | None = None) -> Ceilings:
        """Peak FLOP/s and bytes/s of `threads` threads: what the `store` holds, else measured now (about 0.3 s) and
        stored.

        What was measured while other work took processor time is returned, but not stored.
        """
        from znni.ceilings import Ceilings, measure_ceilings

        known = store.ceilings(self.fingerprint, threads) if store else None
        if known:
            return Ceilings(threads, *known, disturbed=False)
        found = measure_ceilings(threads, self.l3_bytes)
        if store and not found.disturbed:
            store.save_ceilings(self.fingerprint, threads, found.flop_per_s, found.bytes_per_s)
        return found


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine that this runs on."""
    return read_machine()


def read_machine(root: Path = _ROOT) -> Machine:
    """The machine whose /proc and /sys lie under `root`."""
    cpuinfo = _cpuinfo(root)
    caches = _caches(root)
    facts = {
        "cpu": _cpu_name(cpuinfo),
        "cores": usable_cores(root),
        "machine_cores": os.cpu_count() or 1,
        "ram_bytes": total_bytes(),
        "l1_bytes": caches.get(1, 0),
        "l2_bytes": caches.get(2, 0),
        "l3_bytes": caches.get(3, 0),
        "instruction_sets": _instruction_sets(cpuinfo),
        "kernels": kernels_digest(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": ".".join(np.__version__.split(".")[:2]),
        "gpu": gpu_model(root),
        "gpu_driver": gpu_driver(root),
    }
    text = json.dumps(_lasting(facts), sort_keys=True, default=list)
    return Machine(fingerprint=hashlib.sha256(text.encode()).hexdigest(), **facts)


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: its affinity, and whole cores of the time that its control groups allow; at
    least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def kernels_digest() -> str:
    """Digest of what the kernels were built from (sources and compiler flags); of the built files, where that is not
    known."""
    digest = getattr(_build_info, "SOURCE_DIGEST", None)
    if digest:
        return digest
    h = hashlib.sha256()
    for path in sorted(Path(_build_info.__file__).parent.glob("*.so")):
        h.update(path.name.encode())
        h.update(path.read_bytes())
    return h.hexdigest()


_WORDS = {
    "cpu": "CPU",
    "machine_cores": "cores",
    "ram_bytes": "GiB of RAM",
    "instruction_sets": "instruction sets",
    "kernels": "znni's kernels",
    "python": "Python",
    "numpy": "NumPy",
    "gpu": "GPU",
    "gpu_driver": "GPU driver",
}


def _lasting(facts: dict) -> dict:
    """What of `facts` enters the fingerprint."""
    lasting = {key: facts.get(key) for key in _WORDS}
    lasting["ram_bytes"] = round((lasting["ram_bytes"] or 0) / _GIB)  # a kernel's own share of it varies
    lasting["instruction_sets"] = list(lasting["instruction_sets"] or ())
    return lasting


def _said(value: object) -> str:
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "none" if value is None else str(value)[:40]


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entries."""
    found = {}
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            if found:
                break
            continue
        found[key.strip()] = value.strip()
    return found


def _cpu_name(cpuinfo: dict[str, str]) -> str:
    """The model's name with the numbers that tell apart models whose names a hypervisor has shortened."""
    name = cpuinfo.get("model name") or platform.machine()
    keys = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    numbers = [f"{key.removeprefix('cpu ').removeprefix('CPU ')} {cpuinfo[key]}" for key in keys if key in cpuinfo]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _instruction_sets(cpuinfo: dict[str, str]) -> tuple[str, ...]:
    have = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return tuple(name for name in _INSTRUCTION_SETS if name in have)


def _caches(root: Path) -> dict[int, int]:
    """Bytes of the first core's data caches, by level."""
    found = {}
    for folder in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
            found[int(level)] = int(size.rstrip("KMG")) * unit
    return found
