"""The machine's identity: what enters the fingerprint, what does not, and made-up machines under another root."""

import json
import os
import types

import pytest

from znni import machine
from znni.ceilings import Ceilings
from znni.machine import Machine, kernels_digest, read_machine, this_machine, usable_cores

ZEN4 = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC 9354
stepping	: 1
cpu MHz		: 3250.000
flags		: fpu sse sse2 pni fma avx avx2 avx512f avx512bw made_up

processor	: 1
cpu MHz		: 1500.000
model name	: AMD EPYC 9354
"""


def _root(folder, cpuinfo=ZEN4, caches=True):
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(cpuinfo)
    entries = [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "1024K"), (3, "Unified", "32M")]
    for number, (level, kind, size) in enumerate(entries if caches else []):
        index = folder / f"sys/devices/system/cpu/cpu0/cache/index{number}"
        index.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (index / name).write_text(f"{value}\n")
    return folder


def test_a_machine_is_read_from_proc_and_sys(tmp_path):
    found = read_machine(_root(tmp_path))
    assert found.cpu == "AMD EPYC 9354 (family 25, model 17, stepping 1)"
    assert found.instruction_sets == ("pni", "avx", "fma", "avx2", "avx512f", "avx512bw")
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (32 << 10, 1 << 20, 32 << 20)


def test_what_the_system_does_not_tell_is_zero(tmp_path):
    found = read_machine(_root(tmp_path, caches=False))
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (0, 0, 0)


def _fingerprint(tmp_path, name, cpuinfo=ZEN4):
    (tmp_path / name).mkdir()
    return read_machine(_root(tmp_path / name, cpuinfo)).fingerprint


def test_the_fingerprint_ignores_what_comes_and_goes(tmp_path, monkeypatch):
    one = _fingerprint(tmp_path, "one")
    assert _fingerprint(tmp_path, "clock", ZEN4.replace("3250", "2000")) == one
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    ram_bytes = machine.total_bytes()
    monkeypatch.setattr(machine, "total_bytes", lambda: ram_bytes - (8 << 20))
    assert _fingerprint(tmp_path, "affinity, load and a little RAM") == one


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.setattr(os, "cpu_count", lambda: 3),
        lambda m: m.setattr(machine, "total_bytes", lambda: 3 << 40),
        lambda m: m.setattr(machine, "kernels_digest", lambda: "other"),
        lambda m: m.setattr(machine.platform, "python_version_tuple", lambda: ("3", "99", "0")),
        lambda m: m.setattr(machine.np, "__version__", "9.9.9"),
    ],
    ids=["cores", "ram", "kernels", "python", "numpy"],
)
def test_the_fingerprint_follows_what_stays(tmp_path, monkeypatch, change):
    one = _fingerprint(tmp_path, "one")
    change(monkeypatch)
    assert _fingerprint(tmp_path, "other") != one


def test_the_fingerprint_follows_the_cpu(tmp_path):
    one = _fingerprint(tmp_path, "one")
    assert _fingerprint(tmp_path, "model", ZEN4.replace("model		: 17", "model		: 18")) != one
    assert _fingerprint(tmp_path, "flags", ZEN4.replace("avx512f ", "")) != one


def test_the_gpu_and_its_driver_are_part_of_the_machine(tmp_path):
    bare = read_machine(_root(tmp_path))
    assert (bare.gpu, bare.gpu_driver) == (None, None)
    proc = tmp_path / "proc/driver/nvidia"
    (proc / "gpus/0000:01:00.0").mkdir(parents=True)
    (proc / "gpus/0000:01:00.0/information").write_text("Model: \t NVIDIA H200\nIRQ: \t 52\n")
    (proc / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Release Build\n")
    with_gpu = read_machine(tmp_path)
    assert (with_gpu.gpu, with_gpu.gpu_driver) == ("NVIDIA H200", "580.82.07")
    assert with_gpu.fingerprint != bare.fingerprint
    assert "GPU: none there, NVIDIA H200 here" in with_gpu.differences(bare.describe())


def test_cores_are_what_affinity_and_quota_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for quota, cores in ((None, 8), (16.0, 8), (3.7, 3), (0.5, 1)):
        monkeypatch.setattr(machine, "cpu_quota", lambda root, quota=quota: quota)
        assert usable_cores(tmp_path) == cores


def test_the_description_is_json_and_compares_in_words(tmp_path):
    here = read_machine(_root(tmp_path))
    described = json.loads(json.dumps(here.describe()))
    assert described["fingerprint"] == here.fingerprint and described["kernels"] == here.kernels
    assert here.differences(described) == []
    there = described | {"fingerprint": "another", "cpu": "Z80", "instruction_sets": [], "ram_bytes": 64 << 10}
    words = "; ".join(here.differences(there))
    assert "CPU: Z80 there, AMD EPYC 9354" in words
    assert "instruction sets: none there, pni avx" in words
    assert "GiB of RAM: 0 there" in words
    assert here.differences({"fingerprint": "another"} | {k: v for k, v in described.items() if k != "fingerprint"})


def test_this_machine_is_read_once_and_usable():
    here = this_machine()
    assert here is this_machine()
    assert 1 <= here.cores <= here.machine_cores and here.ram_bytes > 1 << 28
    assert len(here.fingerprint) == 64


def test_the_kernels_digest_without_a_build_record_follows_the_built_files(tmp_path, monkeypatch):
    record = types.SimpleNamespace(__file__=str(tmp_path / "_build_info.py"))
    monkeypatch.setattr(machine, "_build_info", record)
    (tmp_path / "a.so").write_bytes(b"1")
    one = kernels_digest()
    (tmp_path / "a.so").write_bytes(b"2")
    assert kernels_digest() != one
    record.SOURCE_DIGEST = "from the build"
    assert kernels_digest() == "from the build"


class _Store:
    def __init__(self):
        self.saved = {}

    def ceilings(self, fingerprint, threads):
        return self.saved.get((fingerprint, threads))

    def save_ceilings(self, fingerprint, threads, flop_per_s, bytes_per_s):
        self.saved[fingerprint, threads] = (flop_per_s, bytes_per_s)


@pytest.mark.parametrize("disturbed", [False, True])
def test_ceilings_are_measured_once_unless_disturbed(tmp_path, monkeypatch, disturbed):
    here, store, asked = read_machine(_root(tmp_path)), _Store(), []

    def measure(threads, l3_bytes):
        asked.append((threads, l3_bytes))
        return Ceilings(threads, 1e11, 2e10, disturbed)

    monkeypatch.setattr("znni.ceilings.measure_ceilings", measure)
    first, second = here.ceilings(2, store), here.ceilings(2, store)
    assert (first.flop_per_s, first.bytes_per_s) == (second.flop_per_s, second.bytes_per_s) == (1e11, 2e10)
    assert asked == [(2, 32 << 20)] * (2 if disturbed else 1)
    assert bool(store.saved) != disturbed
    assert here.ceilings(1).threads == 1


def test_a_machine_can_be_hashed():
    assert len({this_machine(), Machine(**{**this_machine().describe(), "instruction_sets": ()})}) == 2
