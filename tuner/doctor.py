"""What this machine and installation offer, and what stands in the way of good timings, in words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import asdict
from pathlib import Path

from tuner.units import bytes_text, digits
from znni._kernels import _build_info
from znni._version import __version__
from znni.environment import environment
from znni.machine import this_machine
from znni.primitives import registered
from znni.process_memory import available_bytes, total_bytes
from znni.store import Store
from znni.store_file import default_path

#: Module -> (distribution, what it is for, pip line).
_OPTIONAL = {
    "h5py": ("h5py", "HDF5 volumes and networks", "pip install h5py"),
    "tifffile": ("tifffile", "compressed TIFF volumes", "pip install tifffile"),
    "onnx": ("onnx", "ONNX files", "pip install onnx"),
    "torch": ("torch", "bench --peers torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu"),
    "onnxruntime": ("onnxruntime", "bench --peers onnxruntime", "pip install onnxruntime onnx"),
    "openvino": ("openvino", "bench --peers openvino", "pip install openvino onnx"),
    "asv": ("asv", "asv_bench", "pip install asv"),
}
#: Of the pieces that a GPU needs, those without which it can still be used.
_OPTIONAL_CUDA = ("cuDNN",)


def examine(store_path: str | None = None) -> dict:
    """Everything that the doctor looks at, as data."""
    machine, circumstances = this_machine(), environment()
    ceilings = machine.ceilings(machine.cores)
    primitives = sorted(registered())
    return {
        "version": __version__,
        "machine": machine.describe(),
        "build": {"march": _build_info.MARCH, **_instruction_sets(machine.instruction_sets)},
        "ceilings": {"flop_per_s": ceilings.flop_per_s, "bytes_per_s": ceilings.bytes_per_s, "threads": machine.cores},
        "memory": {"total_bytes": total_bytes(), "available_bytes": available_bytes()},
        "environment": circumstances,
        "store": _store(store_path),
        "primitives": primitives,
        "packages": packages(),
        "cuda": cuda(),
        "warnings": list(circumstances["warnings"]),
    }


def _instruction_sets(have: tuple[str, ...]) -> dict:
    built = list(_build_info.INSTRUCTION_SETS)
    wide = [name for name in have if name.startswith("avx") and built and name not in built]
    return {"instruction_sets": built, "unused_instruction_sets": wide}


def _store(path: str | None) -> dict:
    where = Path(path) if path else default_path()
    if not where.exists():
        return {"path": str(where), "bytes": 0, "measurements": 0}
    with Store(where) as store:
        measurements = store.execute("SELECT count(*) FROM measurements").fetchone()[0]
    return {"path": str(where), "bytes": where.stat().st_size, "measurements": measurements}


def packages() -> list[dict]:
    """The optional packages: version, or None and the line that brings them."""
    found = []
    for module, (distribution, use, line) in _OPTIONAL.items():
        version = None
        if importlib.util.find_spec(module) is not None:
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                version = "unknown"
        found.append({"package": distribution, "version": version, "for": use, "install": None if version else line})
    return found


def cuda() -> dict:
    """What a GPU needs, piece by piece, and what of it is missing, in words (`znni.gpu.diagnose`)."""
    from znni.gpu.diagnose import diagnose

    findings = diagnose()
    missing = [f"{f.name}: {f.text}" for f in findings if not f.found and f.name not in _OPTIONAL_CUDA]
    return {"usable": not missing, "missing": missing, "findings": [asdict(finding) for finding in findings]}


def doctor_text(found: dict) -> str:
    """What `examine` found, as text."""
    machine, build, memory = found["machine"], found["build"], found["memory"]
    surroundings, store, ceilings = found["environment"], found["store"], found["ceilings"]
    caches = ", ".join(
        f"L{level} {bytes_text(machine[f'l{level}_bytes'])}" for level in (1, 2, 3) if machine[f"l{level}_bytes"]
    )
    lines = [
        f"znni        {found['version']}",
        f"CPU         {machine['cpu']}",
        f"cores       {machine['cores']} of {machine['machine_cores']} usable; {caches}",
        f"ceilings    {digits(ceilings['flop_per_s'] / 1e9)} GFLOP/s, {digits(ceilings['bytes_per_s'] / 1e9)} GB/s "
        f"with {ceilings['threads']} threads",
        f"offers      {' '.join(machine['instruction_sets'])}",
        f"built for   -march={build['march']}: {' '.join(build['instruction_sets']) or 'not recorded'}",
    ]
    if build["unused_instruction_sets"]:
        lines.append(f"            does not use {' '.join(build['unused_instruction_sets'])}; rebuild here to use them")
    lines += [
        f"memory      {bytes_text(memory['available_bytes'])} free of {bytes_text(memory['total_bytes'])}",
        f"huge pages  {surroundings['transparent_hugepages'] or 'not told by this system'}",
        f"governor    {surroundings['governor'] or 'not told by this system'}",
        f"load        {', '.join(f'{value:.1f}' for value in surroundings['load'])}",
        "threads     "
        + (" ".join(f"{k}={v}" for k, v in surroundings["thread_variables"].items()) or "no variables set"),
        f"store       {store['path']}: {bytes_text(store['bytes'])}, {store['measurements']} measurements",
        f"primitives  {' '.join(found['primitives'])}",
    ]
    for package in found["packages"]:
        name = f"{package['package']} ({package['for']})"
        lines.append(f"package     {name}: {package['version'] or 'missing: ' + package['install']}")
    gpu = found["cuda"]
    lines.append(f"GPU         {'can be used' if gpu['usable'] else 'cannot be used; all else works'}")
    lines += [f"            {f['name']}: {'' if f['found'] else 'missing: '}{f['text']}" for f in gpu["findings"]]
    lines += [f"warning     {warning}" for warning in found["warnings"]]
    return "\n".join(lines)
