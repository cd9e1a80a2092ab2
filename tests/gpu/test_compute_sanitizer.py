"""The kernels under NVIDIA's compute-sanitizer, on a real device: addresses, races within shared memory, barriers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from znni.gpu.compile import SOURCES

_CONTRACT = "test_contract.py::test_computes_with_every_config"


def kernels() -> set[str]:
    """Names of all kernels."""
    declared = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")
    return {name for path in SOURCES.glob("*.cu") for name in declared.findall(path.read_text())}


def test_kernels_are_found():
    assert len(kernels()) >= len(list(SOURCES.glob("*.cu")))


@pytest.mark.gpu
@pytest.mark.heavy
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_nothing_is_said_of_a_kernel(tool, real_device):
    """Of every primitive with every config on small layers. What is said of the vendor's own kernels does not count."""
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit, on the PATH")
    folder = Path(__file__).parent
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(folder / _CONTRACT)]
    command = [sanitizer, "--tool", tool, sys.executable, *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parents[1])
    said = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith("=====")]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert any("SUMMARY" in line for line in said), "compute-sanitizer did not run"
    ours = re.compile(rf"\b({'|'.join(sorted(kernels()))})\b(\+0x|\()")
    assert not [line for line in said if ours.search(line)], "\n".join(said[:200])
