"""The contract test again, with kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from znni.primitives import registered

from .test_contract import NAMES

pytestmark = pytest.mark.sanitizers

ROOT = Path(__file__).resolve().parents[2]
#: -g1 has lines, without the variables that take the compiler several times as long.
FLAGS = "-fsanitize=address,undefined -fno-omit-frame-pointer -O1 -g1"
EXAMPLES = 40
OWN = [name for name in NAMES if not registered()[name].foreign]
#: Sanitizers take memory of their own, so that what a call takes cannot be told.
EXCEPT = "takes_no_memory"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources with watched kernels."""
    copy = tmp_path_factory.mktemp("sanitizers")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("pyx", "znni", "reports", "tuner", "tests"):
        built = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "_build_info.py", "results")
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    build = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=copy,
        env=os.environ | {"ZNNI_CFLAGS": FLAGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-4000:]
    return copy


def library(name: str) -> str:
    """Path of a sanitizer's library, as the compiler has it."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"the compiler comes without {name}")
    return found


@pytest.mark.parametrize("name", OWN)
def test_keeps_the_contract(name, checkout, tmp_path):
    settings = {
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={tmp_path}/address",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:log_path={tmp_path}/undefined",
        "ZNNI_EXAMPLES": str(EXAMPLES),
        "PYTHONPATH": str(checkout),
    }
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-qx",
            "tests/primitives/test_contract.py",
            "-k",
            f"[{name}] and not {EXCEPT}",
        ],
        cwd=checkout,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reports = "\n\n".join(path.read_text(errors="replace") for path in sorted(tmp_path.iterdir()))
    assert child.returncode == 0 and not reports, f"{reports[:8000]}\n\n{child.stdout[-4000:]}"
    assert " passed" in child.stdout, child.stdout[-4000:]
