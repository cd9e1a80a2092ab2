"""The commands end to end on small networks: what they print and write, and what they import."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from znni import __version__
from znni.load import load


def test_version_and_help(cli):
    assert cli("--version").out == f"znni-tune {__version__}\n"
    assert cli("--help").code == 0
    for name in ("networks", "doctor", "tune", "verify", "explain", "run", "bench"):
        assert name in cli("--help").out
        assert cli(name, "--help").code == 0


def test_no_command_is_refused(cli):
    found = cli()
    assert found.code == 2
    assert found.err.startswith("znni-tune: error: ")
    assert found.err.count("\n") == 1


def test_networks(cli):
    text = cli("networks")
    assert text.code == 0
    assert re.search(r"n337 +85x85x85 +1 +3 +871,603", text.out)
    data = {n["name"]: n for n in json.loads(cli("networks", "--json").out)}
    assert data["n926"]["field_of_view"] == [155, 155, 155]
    assert data["n337"]["layers"][:3] == ["1>80 k2 relu", "pool2", "80>80 k3 relu"]
    explained = cli("networks", "--explain").out
    assert "80>80 k9 relu" in explained
    assert "SC'16" in explained


def test_doctor(cli):
    data = json.loads(cli("doctor", "--json").out)
    assert data["machine"]["cores"] >= 1
    assert data["ceilings"]["flop_per_s"] > 0
    assert "cpu.direct" in data["primitives"]
    assert data["store"]["path"] == os.environ["ZNNI_STORE"]
    assert data["cuda"]["usable"] or data["cuda"]["missing"]
    findings = {finding["name"]: finding for finding in data["cuda"]["findings"]}
    assert {"driver", "device", "pycuda", "nvcc", "cuDNN"} <= set(findings)
    assert all(finding["text"] for finding in findings.values())
    missing = [p for p in data["packages"] if p["version"] is None]
    assert all(p["install"].startswith("pip install ") for p in missing)
    text = cli("doctor")
    assert text.code == 0
    assert data["machine"]["cpu"] in text.out
    assert ("GPU         can be used" in text.out) == data["cuda"]["usable"]
    assert all(f["found"] or f"{name}: missing: {f['text']}" in text.out for name, f in findings.items())
    assert not Path(os.environ["ZNNI_STORE"]).exists(), "looking at a store does not make one"


@pytest.mark.timeout(240)
def test_from_network_to_result(cli, process, small, volume):
    """tune, tune again, verify, explain, run."""
    tuned = cli("tune", small, "--memory", "256MiB", "--budget", "4s", "-o", "p.json", "--json")
    assert tuned.code == 0, tuned.err
    plan = json.loads(tuned.out)
    assert plan["search"]["complete"]
    assert plan["command"] == f"znni-tune tune {small} --memory 256MiB --budget 4s -o p.json --json"
    assert plan["throughput"]["measured_voxels_per_s"] > 0
    assert plan["memory"]["measured_peak_bytes"] <= plan["limits"]["host_bytes"] == 256 << 20
    assert plan == json.loads(Path("p.json").read_text())

    before = time.monotonic()
    again = cli("tune", small, "--memory", "256MiB", "--budget", "4s", "-o", "q.json", "--frozen", "--json")
    assert again.code == 0, again.err
    assert time.monotonic() - before < 3, "answers from the store"
    assert json.loads(again.out)["layers"] == plan["layers"]

    verified = cli("verify", "p.json", "--json")
    assert verified.code == 0, verified.err
    assert json.loads(verified.out)["relative_l2"] <= 2e-5
    assert json.loads(Path("p.json").read_text())["verification"]["relative_l2"] <= 2e-5

    explained = cli("explain", "p.json")
    assert explained.code == 0, explained.err
    assert "measured" in explained.out

    done = process("run", "p.json", volume, "out.npy", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["voxels"] == 14 * 15 * 16
    assert data["peak_bytes"] <= data["limit_bytes"] == 256 << 20
    result, x = np.load("out.npy"), np.load(volume)
    truth = load(small).reference(x[None, None])[0]
    assert result.shape == truth.shape == (2, 14, 15, 16)
    assert np.linalg.norm(result - truth) <= 2e-5 * np.linalg.norm(truth)


def test_tune_for_a_patch(cli, small):
    found = cli(
        "tune", small, "--memory", "256MiB", "--budget", "1s", "--patch", "15", "--threads", "1", "-o", "p.json"
    )
    assert found.code == 0, found.err
    plan = json.loads(Path("p.json").read_text())
    assert plan["patch"]["input"] == [15, 15, 15]
    assert plan["schedule"]["threads"] == 1
    assert "voxels/s" in found.out


def test_run_imports_little_and_is_quiet(environment, plan, volume):
    code = (
        "import sys; from tuner.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'optuna', 'matplotlib', 'sqlalchemy', 'scipy', 'torch', 'onnx', 'tqdm'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", plan, volume, "out.npy"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_run_normalises_and_overwrites(cli, plan, volume):
    assert cli("run", plan, volume, "out.npy").code == 0
    plain = np.load("out.npy")
    assert cli("run", plan, volume, "out.npy", "--normalise", "volume", "--overwrite").code == 0
    assert not np.allclose(np.load("out.npy"), plain)
    x = np.load(volume)
    np.save("normal.npy", (x - x.mean()) / x.std())
    assert cli("run", plan, "normal.npy", "normal_out.npy").code == 0
    np.testing.assert_allclose(np.load("normal_out.npy"), np.load("out.npy"), rtol=1e-3, atol=1e-4)


def test_a_volume_smaller_than_the_patch(cli, small, plan):
    x = np.random.default_rng(1).random((8, 9, 11), np.float32)
    np.save("little.npy", x)
    assert json.loads(Path(plan).read_text())["patch"]["input"][0] > 8
    assert cli("run", plan, "little.npy", "out.npy").code == 0
    truth = load(small).reference(x[None, None])[0]
    assert np.linalg.norm(np.load("out.npy") - truth) <= 1e-5 * np.linalg.norm(truth)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_tuning_keeps_its_best_plan(small, command, environment, how):
    """Ctrl-C once there is a plan: exit code 130, the plan is whole, and marked as not complete."""
    running = subprocess.Popen(
        command("tune", small, "--memory", "1GiB", "--budget", "100s", "-o", "p.json"),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not Path("p.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "the best plan so far is in p.json" in err
    assert "Traceback" not in err
    assert out == ""
    assert json.loads(Path("p.json").read_text())["search"]["complete"] is False
    assert not [name for name in os.listdir() if name.startswith(".p.json")]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(plan, command, environment, how):
    np.save("large.npy", np.zeros((400, 400, 400), np.float32))
    before = set(os.listdir())
    running = subprocess.Popen(command("run", plan, "large.npy", "out.npy"), env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while set(os.listdir()) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(how)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err == b"znni-tune: interrupted\n"
    assert set(os.listdir()) == before


def test_a_closed_pipe_is_no_error(command, environment):
    shell = f"{' '.join(command('networks', '--json'))} | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("module", "says"),
    [("znni._kernels._build_info", "kernels are not built"), ("optuna", "needs optuna.*pip install optuna")],
)
def test_what_is_not_installed_is_named(environment, small, module, says):
    code = f"import sys; sys.modules[{module!r}] = None; from tuner.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "tune", small, "--memory", "1GiB"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(says, done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_full_disk_on_stdout(command, environment):
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("networks"), env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "znni-tune: error: No space left on device\n"


def test_quantities_are_refused_in_a_sentence(cli, small):
    for arguments, says in (
        (("--memory", "4 apples"), "expected a size such as 4GiB"),
        (("--memory", "1GiB", "--budget", "0s"), "expected a time such as 120s"),
        (("--memory", "1GiB", "--budget", "soon"), "expected a time such as 120s"),
        (("--memory", "1GiB", "--threads", "0"), "expected an integer of at least 1"),
        (("--memory", "1GiB", "--patch", "92,92"), "z,y,x"),
        (("--memory", "1GiB", "--tolerance", "-1"), "expected a number above 0"),
        (("--memory", "1GiB", "--normalise", "mean"), "invalid choice"),
        ((), "required: --memory"),
    ):
        found = cli("tune", small, *arguments)
        assert found.code == 2
        assert says in found.err
        assert found.err.startswith("znni-tune tune: error: ")
        assert found.err.count("\n") == 1
