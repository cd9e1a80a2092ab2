"""A small network, its plan and a volume on disk, and the command line, called within this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tuner
from tuner.cli import main
from znni.default_plan import default_plan
from znni.load import load

#: FOV 8^3, patches of 7 + 2 i.
SMALL = "INPUTS:1, LAYERS:3\nCONV 3,3,3 4\nPOOL 2,2,2\nCONV 3,3,3 2\n"


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a store of its own."""
    monkeypatch.setenv("ZNNI_STORE", str(tmp_path / "store.db"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def cli(folder, capfd):
    """``cli(*arguments)``: run the command line in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as ended:
            code = ended.code or 0
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def command():
    """``command(*arguments)``: the command line as a list of words for a new process."""
    return lambda *arguments: [sys.executable, "-m", "tuner.cli", *map(str, arguments)]


@pytest.fixture
def environment(folder) -> dict[str, str]:
    """Variables with which a new process finds the package that is tested."""
    return os.environ | {"PYTHONPATH": str(Path(tuner.__file__).parents[1])}


@pytest.fixture
def process(command, environment):
    """``process(*arguments)``: run the command line in a process of its own; keywords go to `subprocess.run`."""

    def call(*arguments: object, **keywords) -> Result:
        done = subprocess.run(
            command(*arguments), env=environment, capture_output=True, text=True, timeout=300, **keywords
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def small(folder) -> str:
    """A network file."""
    (folder / "small.znni").write_text(SMALL)
    return "small.znni"


@pytest.fixture
def plan(small) -> str:
    """A plan file for it, from the cost model, for output patches of at most 12^3."""
    made = default_plan(load(small), memory_bytes=4 << 30, baseline_bytes=80 << 20, threads=2, volume=(12, 12, 12))
    made.save("plan.json")
    return "plan.json"


@pytest.fixture
def volume(folder) -> str:
    """A volume of 21 x 22 x 23 voxels."""
    np.save("volume.npy", np.random.default_rng(0).random((21, 22, 23), np.float32))
    return "volume.npy"
