"""What the system itself says of NVIDIA GPUs; no library is loaded, no device is woken."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/")
_VENDOR = "0x10de"
#: PCI classes of display and 3D controllers begin so.
_DISPLAY_CLASS = "0x03"
#: Where drivers put their libraries: their file names carry the driver's version.
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/nvidia/lib64",
    "usr/local/nvidia/lib",
)  # fmt: skip


def gpu_model(root: Path = _ROOT) -> str | None:
    """Model of the GPU, as the driver gives it under /proc; several different ones joined by commas. Its PCI number where a
    container hides that; None where there is no GPU."""
    models = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        said = re.search(r"^Model:\s*(.+?)\s*$", _text(path), re.MULTILINE)
        if said:
            models.append(said[1])
    if not models and any((root / "dev").glob("nvidia[0-9]*")):
        models = _pci_numbers(root) or ["NVIDIA"]
    return ", ".join(dict.fromkeys(models)) or None


def gpu_driver(root: Path = _ROOT) -> str | None:
    """Version of the driver, ``580.82.07``; None where there is no GPU, or where it cannot be told."""
    said = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", _text(root / "proc/driver/nvidia/version"), re.MULTILINE)
    if said:
        return said[1]
    if gpu_model(root) is None:
        return None
    for folder in _LIBRARY_FOLDERS:
        for path in sorted((root / folder).glob("libcuda.so.*.*")):
            return path.name.removeprefix("libcuda.so.")
    return None


def _pci_numbers(root: Path) -> list[str]:
    return [
        f"NVIDIA {_text(folder / 'device').strip().removeprefix('0x')}"
        for folder in sorted((root / "sys/bus/pci/devices").glob("*"))
        if _text(folder / "vendor").strip() == _VENDOR and _text(folder / "class").startswith(_DISPLAY_CLASS)
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
