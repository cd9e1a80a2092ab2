"""Whole tunings of a narrowed network: limits kept, totals remembered, nothing lost by a kill."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tuner
from tuner.request import Request
from tuner.search import tune
from znni.errors import InvalidShape, MemoryLimit, PlanMismatch
from znni.load import load
from znni.store import Store

MIB = 1 << 20
REQUEST = Request(memory_bytes=220 * MIB, threads=2, budget_s=6.0)


@pytest.fixture(scope="module")
def network():
    return load("n337", seed=1, width=2)


@pytest.fixture(scope="module")
def tuned(network, tmp_path_factory):
    """(plan, plans saved on the way, events, path of the store) of one tuning."""
    path, saved, events = tmp_path_factory.mktemp("store") / "store.db", [], []
    with Store(path) as store:
        plan = tune(
            network, REQUEST, store, save=lambda p: saved.append(p.to_dict()), progress=events.append, command="test"
        )
    return plan, saved, events, path


def test_the_plan_was_measured_verified_and_keeps_its_limit(tuned):
    plan, _, events, _ = tuned
    assert plan.throughput["measured_voxels_per_s"] > 0
    low, high = plan.throughput["interval"]
    assert low <= plan.throughput["measured_voxels_per_s"] <= high
    assert plan.memory["measured_peak_bytes"] <= plan.memory["predicted_peak_bytes"] <= REQUEST.memory_bytes
    assert plan.verification["relative_l2"] <= REQUEST.tolerance
    assert plan.search["complete"]
    assert plan.command == "test"
    assert events[-1]["stage"] == "done"


def test_the_default_plan_is_saved_first(tuned):
    _, saved, _, _ = tuned
    assert saved[0]["throughput"]["measured_voxels_per_s"] is None
    assert not saved[0]["search"]["complete"]
    assert saved[-1]["search"]["complete"]


def test_the_same_request_is_answered_from_the_store(tuned, network):
    plan, _, _, path = tuned
    with Store(path) as store:
        rows = len(store.measurements()), len(store.plan_runs())
        again = tune(network, replace(REQUEST, frozen=True), store)
        assert (len(store.measurements()), len(store.plan_runs())) == rows
    assert again.digest == plan.digest
    assert again.to_dict() | {"command": ""} == json.loads(json.dumps(plan.to_dict())) | {"command": ""}


def test_a_larger_budget_goes_on(tuned, network):
    path = tuned[-1]
    with Store(path) as store:
        before = store.request(REQUEST.digest(network, _machine()))
        more = tune(network, replace(REQUEST, budget_s=before.spent_s + 3), store)
        after = store.request(REQUEST.digest(network, _machine()))
    assert after.spent_s > before.spent_s
    assert after.trials >= before.trials
    assert more.throughput["measured_voxels_per_s"] > 0


def test_frozen_fails_on_what_is_not_stored(tmp_path, network):
    with Store(tmp_path / "store.db") as store, pytest.raises(PlanMismatch, match="--frozen"):
        tune(network, replace(REQUEST, frozen=True), store)


def test_a_limit_too_small_names_one_that_would_do(tmp_path, network):
    with Store(tmp_path / "store.db") as store:
        with pytest.raises(MemoryLimit, match="smallest limit that would do is") as error:
            tune(network, replace(REQUEST, memory_bytes=10 * MIB), store)
        least = int(str(error.value).rsplit(" ", 1)[1].removesuffix("MiB")) * MIB
        plan = tune(network, replace(REQUEST, memory_bytes=least, budget_s=2.0), store)
    assert plan.memory["measured_peak_bytes"] <= least


def test_a_fixed_patch(tmp_path, network):
    with Store(tmp_path / "store.db") as store:
        plan = tune(network, replace(REQUEST, output=(8, 16, 8), budget_s=3.0), store)
        assert plan.output_patch == (8, 16, 8)
        with pytest.raises(InvalidShape, match="nearest are 92 and 100"):
            tune(network, replace(REQUEST, output=(13, 13, 13)), store)


def test_kill_9_loses_at_most_the_sample_in_flight_and_leaves_no_worker(tmp_path):
    store, plan = tmp_path / "store.db", tmp_path / "plan.json"
    environment = os.environ | {"MARK": str(tmp_path), "PYTHONPATH": str(Path(tuner.__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "tuner.cli",
        "tune",
        "n337",
        "--width",
        "2",
        "--memory",
        "220MiB",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        [*command, "--budget", "60s", "-o", str(plan), "--store", str(store)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while _samples(store) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = _samples(store)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _samples(store) >= kept
    assert plan.exists()
    while _marked(tmp_path):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _machine():
    from znni.machine import this_machine

    return this_machine()


def _samples(path) -> int:
    """Samples committed so far."""
    if not path.exists():
        return 0
    with sqlite3.connect(path) as db:
        try:
            tables = [db.execute(f"SELECT samples FROM {name}").fetchall() for name in ("measurements", "plan_runs")]
        except sqlite3.OperationalError:  # not laid out yet
            return 0
    return sum(text.count(",") + 1 for rows in tables for (text,) in rows if text != "[]")


def _marked(mark) -> list[str]:
    """Processes that have the mark in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if f"MARK={mark}".encode() in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found


def test_where_no_plan_keeps_the_tolerance_more_accurate_layers_are_tried(tmp_path, network, monkeypatch):
    seen = []

    def judged(plan, **_):
        seen.append(plan.digest)
        passed = len(seen) > 1 and plan.digest != seen[0]
        return {
            "reference": "none", "max_abs_error": 1.0, "relative_l2": 1e-6 if passed else 1.0, "tolerance": 2e-5,
            "passed": passed,
        }  # fmt: skip

    monkeypatch.setattr("tuner.search.verify", judged)
    monkeypatch.setattr("tuner.search._Search._outer", lambda self, space, start: None)
    monkeypatch.setattr("znni.primitives.cpu_direct.CpuDirect.error", lambda *_: 1e-7)
    with Store(tmp_path / "store.db") as store:
        request = replace(REQUEST, budget_s=2.0, output=(8, 8, 8))
        plan = tune(network, request, store)
    assert plan.verification["passed"] and len(set(seen)) > 1


def test_foreign_primitives_are_for_those_who_ask(network):
    machine = _machine()
    assert REQUEST.digest(network, machine) != replace(REQUEST, foreign=True).digest(network, machine)
