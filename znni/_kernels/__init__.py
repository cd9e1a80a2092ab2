"""Compiled kernels (sources in pyx/). Refuses to load on a CPU that lacks what they were built for."""

import platform
from pathlib import Path


def _cpu_flags() -> set[str]:
    text = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split(":", 1)[1].split()}


def _check(march: str, needed: list[str], have: set[str]) -> None:
    missing = [name for name in needed if name not in have]
    if have and missing:
        raise ImportError(
            f"znni's kernels were built for -march={march}, but this CPU lacks {', '.join(missing)}; "
            "rebuild here (pip install --no-binary znni --force-reinstall znni), or build with ZNNI_MARCH=x86-64"
        )


try:
    from znni._kernels._build_info import INSTRUCTION_SETS, MARCH
except ModuleNotFoundError as error:
    raise ImportError(
        "znni's kernels are not built; install the package (pip install .) instead of importing its source tree"
    ) from error
_check(MARCH, INSTRUCTION_SETS, _cpu_flags())
