"""The environment of a measurement, and its warnings in words."""

import json
import socket

import pytest

from znni.environment import environment, warnings_of

QUIET = {
    "governor": "performance",
    "turbo": False,
    "affinity": [0, 1, 2, 3],
    "cpu_quota": None,
    "load": [0.1, 0.1, 0.1],
    "available_bytes": 8 << 30,
    "thread_variables": {"OMP_THREAD_LIMIT": "64"},
}


def test_a_quiet_machine_gives_no_warning():
    assert warnings_of(QUIET, 4, 16 << 30) == []
    assert warnings_of(QUIET | {"governor": None, "turbo": None}, 4, 16 << 30) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"governor": "powersave"}, "governor is powersave"),
        ({"turbo": True}, "turbo is on"),
        ({"load": [3.5, 1.0, 1.0]}, "load average is 3.5 on 4 cores"),
        ({"affinity": [0, 1]}, "may use 2 of 4 cores"),
        ({"cpu_quota": 1.5}, "allows 1.5 cores"),
        ({"available_bytes": 1 << 30}, "1024 MiB of 16384 MiB"),
        ({"thread_variables": {"OMP_THREAD_LIMIT": "1"}}, "OMP_THREAD_LIMIT=1"),
    ],
)
def test_each_disturbance_is_said_in_words(change, words):
    (warning,) = warnings_of(QUIET | change, 4, 16 << 30)
    assert words in warning


def test_it_is_read_from_sys(tmp_path):
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = environment(tmp_path)
    assert (found["governor"], found["turbo"], found["transparent_hugepages"]) == ("schedutil", True, "madvise")
    assert any("schedutil" in warning for warning in found["warnings"])


def test_other_processors_say_boost(tmp_path):
    (tmp_path / "sys/devices/system/cpu/cpufreq").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpufreq/boost").write_text("0\n")
    assert environment(tmp_path)["turbo"] is False


def test_it_is_json_and_names_no_host():
    text = json.dumps(environment())
    assert socket.gethostname() not in json.loads(text) and '"hostname"' not in text
    assert {"captured", "load", "versions", "kernels", "warnings", "commit"} <= set(json.loads(text))
