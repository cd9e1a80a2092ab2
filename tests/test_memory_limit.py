"""The limit holds for the whole process: `znni-tune run`, in processes of its own, stays below it, measured from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tuner
from tuner.measure import Measurer
from znni.default_plan import default_plan
from znni.load import load
from znni.machine import this_machine
from znni.store import Store

MIB = 1 << 20


#: Runs its arguments and prints their peak, as the kernel counts it for ended children. An interpreter of its own, since a
#: child's figure starts from its parent's size, and that of a test run is large.
WATCH = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); " + (
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
)


def peak_of_run(plan: Path, image: Path, out: Path) -> tuple[int, dict]:
    """Peak resident bytes of ``znni-tune run``, and what it said."""
    command = [sys.executable, "-m", "tuner.cli", "run", str(plan), str(image), str(out), "--json", "--overwrite"]
    env = os.environ | {"PYTHONPATH": str(Path(tuner.__file__).parents[1])}
    watched = [sys.executable, "-c", WATCH, *command]
    printed = subprocess.run(watched, stdout=subprocess.PIPE, env=env, cwd=out.parent, check=True, text=True).stdout
    said, peak = printed.rstrip().rsplit("\n", 1)
    return int(peak), json.loads(said)


@pytest.mark.parametrize(
    ("name", "width", "mib"),
    [
        ("n337", 8, 256),
        pytest.param("n337", None, 512, marks=pytest.mark.heavy),
        pytest.param("n337", None, 1024, marks=pytest.mark.heavy),
        pytest.param("n337", None, 2048, marks=pytest.mark.heavy),
        pytest.param("n337", None, 4096, marks=pytest.mark.heavy),
        pytest.param("n926", None, 1024, marks=pytest.mark.heavy),
        pytest.param("n926", None, 4096, marks=pytest.mark.heavy),
    ],
)
def test_peak_stays_below_the_limit(name, width, mib, tmp_path):
    network = load(name, width=width)
    with Store(tmp_path / "store.db") as store:
        measurer = Measurer(network, store, this_machine(), mib * MIB, "test")
        baseline_bytes = measurer.baseline_bytes()
        measurer.close()
    plan = default_plan(network, memory_bytes=mib * MIB, baseline_bytes=baseline_bytes, threads=2)
    plan.save(tmp_path / "plan.json")
    image = np.random.default_rng(0).random(plan.input_patch, np.float32)
    np.save(tmp_path / "image.npy", image)
    peak, said = peak_of_run(tmp_path / "plan.json", tmp_path / "image.npy", tmp_path / "out.npy")
    assert peak <= plan.memory["predicted_peak_bytes"] <= mib * MIB
    assert abs(said["peak_bytes"] - peak) < 4 * MIB
    assert peak > plan.memory["arena_bytes"]
