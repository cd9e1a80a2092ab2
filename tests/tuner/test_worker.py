"""The worker process: whatever a task does to it, the caller gets a sentence and the next call works."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tuner.worker import TaskCrashed, TaskRaised, TaskTimeout, Worker, WorkerError
from znni.errors import RunFailed

TASKS = """
    import ctypes, os, signal, subprocess, sys, time
    from znni.errors import InvalidShape

    def echo(payload, on_sample):
        return {"pid": os.getpid(), "payload": payload}

    def samples(payload, on_sample):
        for value in payload["values"]:
            on_sample(value)
        return {}

    def die(payload, on_sample):
        print("last words", file=sys.stderr)
        for value in payload.get("values", ()):
            on_sample(value)
        os.kill(os.getpid(), payload["signal"])
        time.sleep(60)

    def segfault(payload, on_sample):
        ctypes.string_at(0)

    def leave(payload, on_sample):
        sys.exit(7)

    def hang(payload, on_sample):
        on_sample(1.0)
        time.sleep(600)

    def hang_with_child(payload, on_sample):
        on_sample(subprocess.Popen(["sleep", "600"]).pid)
        time.sleep(600)

    def complain(payload, on_sample):
        kind = {"shape": InvalidShape, "value": ValueError, "memory": MemoryError}[payload["kind"]]
        raise kind(payload["text"])

    def chatter(payload, on_sample):
        print('{"result": "not this"}', flush=True)
        os.write(1, b"nor this\\n")
        subprocess.run(["echo", "nor that"])
        return {"read": sys.stdin.read()}

    def unspeakable(payload, on_sample):
        return {"value": object()}

    def first(payload, on_sample):
        return {"pid": os.getpid()}
    first.needs_fresh_process = True

    functions = [echo, samples, die, segfault, leave, hang, hang_with_child, complain, chatter, unspeakable, first]
    TASKS = {task.__name__: task for task in functions}
"""

ALMOST_NOTHING_S = 0.2
PLENTY_S = 60.0


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "tasks_to_try.py").write_text(textwrap.dedent(TASKS))
    monkeypatch.syspath_prepend(tmp_path)
    return "tasks_to_try"


@pytest.fixture
def worker(tasks):
    with Worker(tasks) as made:
        yield made


def call(worker, task, timeout_s=PLENTY_S, on_sample=None, **payload):
    return worker.call(task, payload, timeout_s=timeout_s, on_sample=on_sample)


def is_running(pid):
    """Whether a process is there, and more than an entry that nobody has read yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_one_process_serves_many_calls(worker):
    assert worker.pid is None  # none before it is needed
    one, two = call(worker, "echo", a=[1, 2.5, "x", None]), call(worker, "echo")
    assert one == {"pid": worker.pid, "payload": {"a": [1, 2.5, "x", None]}} and two["pid"] == one["pid"] != os.getpid()


def test_payloads_and_results_larger_than_a_pipe(worker):
    text = "znni " * 200_000
    assert call(worker, "echo", text=text)["payload"]["text"] == text


def test_samples_arrive_one_by_one_to_the_last_bit(worker):
    told = []
    call(worker, "samples", on_sample=told.append, values=[0.1, 1 / 3, 1e-9 / 7])
    assert told == [0.1, 1 / 3, 1e-9 / 7]
    assert call(worker, "samples", values=[1.0]) == {}  # nobody need listen


def test_samples_before_a_crash_are_not_lost(worker):
    told = []
    with pytest.raises(TaskCrashed):
        call(worker, "die", on_sample=told.append, signal=signal.SIGKILL, values=[1.0, 2.0])
    assert told == [1.0, 2.0]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "die was killed by SIGSEGV"),
        (signal.SIGABRT, "die was killed by SIGABRT"),
        (signal.SIGKILL, "die was killed by SIGKILL (probably out of memory)"),
    ],
)
def test_a_crash_names_its_signal_and_the_next_call_works(worker, number, reason):
    before = call(worker, "echo")["pid"]
    with pytest.raises(TaskCrashed) as caught:
        call(worker, "die", signal=number)
    assert str(caught.value) == reason
    assert caught.value.signal_name == number.name
    assert "last words" in caught.value.detail
    assert isinstance(caught.value, WorkerError) and isinstance(caught.value, RunFailed)
    assert not is_running(before) and call(worker, "echo")["pid"] != before


def test_a_real_segmentation_fault_shows_where(worker):
    with pytest.raises(TaskCrashed, match="segfault was killed by SIGSEGV") as caught:
        call(worker, "segfault")
    assert "Segmentation fault" in caught.value.detail and "in segfault" in caught.value.detail


def test_leaving_is_a_crash_with_an_exit_code(worker):
    with pytest.raises(TaskCrashed, match="leave ended its process with exit code 7") as caught:
        call(worker, "leave")
    assert caught.value.signal_name is None
    assert call(worker, "echo")


def test_a_hang_is_killed(worker):
    told = []
    before = call(worker, "echo")["pid"]
    with pytest.raises(TaskTimeout, match=r"hang took longer than 0\.2 s and was stopped"):
        call(worker, "hang", ALMOST_NOTHING_S, told.append)
    assert not is_running(before) and worker.pid is None
    assert call(worker, "echo")["pid"] != before


def test_what_a_task_started_is_killed_with_it(worker):
    children = []

    def sample(pid):
        children.append(int(pid))
        raise KeyboardInterrupt  # by now it hangs

    with pytest.raises(KeyboardInterrupt):
        call(worker, "hang_with_child", on_sample=sample)
    wait_until_gone(children[0])


def test_an_error_of_on_sample_stops_the_task(worker):
    def sample(value):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        call(worker, "hang", on_sample=sample)
    assert worker.pid is None and call(worker, "echo")


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("shape", "input patch 97x97x97 does not fit", "input patch 97x97x97 does not fit"),
        ("value", "two\n   lines", "ValueError: two lines"),
        ("value", "", "ValueError"),
        ("memory", "Unable to allocate 1 TiB", "out of memory: Unable to allocate 1 TiB"),
        ("memory", "", "out of memory"),
    ],
)
def test_an_exception_becomes_one_sentence_and_keeps_its_traceback(worker, kind, text, reason):
    before = call(worker, "echo")["pid"]
    with pytest.raises(TaskRaised) as caught:
        call(worker, "complain", kind=kind, text=text)
    assert str(caught.value) == reason
    assert caught.value.kind in ("InvalidShape", "ValueError", "MemoryError")
    assert "Traceback" in caught.value.detail and "in complain" in caught.value.detail
    assert call(worker, "echo")["pid"] == before  # the process is as good as before


def test_what_a_task_prints_does_not_mix_with_answers(worker, capfd):
    assert call(worker, "chatter") == {"read": ""}
    assert capfd.readouterr() == ("", "")


def test_a_result_that_is_no_json_is_an_error(worker):
    with pytest.raises(TaskRaised, match="TypeError"):
        call(worker, "unspeakable")
    assert call(worker, "echo")


def test_an_unknown_task_names_those_there_are(worker):
    with pytest.raises(TaskRaised, match=r"no task is named 'guess'; there are chatter, .* unspeakable"):
        call(worker, "guess")


def test_a_task_that_must_be_first_gets_a_process_of_its_own(worker):
    pids = [call(worker, "first")["pid"], call(worker, "first")["pid"], call(worker, "echo")["pid"]]
    assert pids[0] != pids[1] == pids[2]


def test_a_worker_killed_while_idle_is_replaced(worker):
    before = call(worker, "echo")["pid"]
    os.kill(before, signal.SIGKILL)
    wait_until_gone(before)
    assert call(worker, "echo")["pid"] != before


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_tasks.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with Worker("broken_tasks") as worker, pytest.raises(TaskCrashed, match="starting the worker ended") as caught:
        call(worker, "echo")
    assert "no_such_module_anywhere" in caught.value.detail


def test_no_process_and_no_file_is_left_behind(tasks):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    with Worker(tasks) as worker:
        call(worker, "echo")
        during = open_files()
        for _ in range(3):
            with pytest.raises(TaskCrashed):
                call(worker, "die", signal=signal.SIGKILL)
            call(worker, "echo")
        assert open_files() == during
        pid = worker.pid
    assert open_files() < during
    assert not os.path.exists(f"/proc/{pid}")  # not even a zombie
    worker.close()  # twice does no harm


PARENT = """
    import sys
    from tuner.worker import Worker
    worker = Worker("tasks_to_try")
    print(worker.call("echo", {}, timeout_s=60)["pid"], flush=True)
    if sys.argv[1] == "busy":
        worker.call("hang", {}, timeout_s=600, on_sample=lambda value: print("hangs", flush=True))
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_parent_killed_outright_leaves_no_worker(tasks, state):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with parent:
        pid = int(parent.stdout.readline())
        if state == "busy":
            assert parent.stdout.readline() == "hangs\n"
        assert is_running(pid)
        parent.kill()
    wait_until_gone(pid)


def test_a_worker_whose_parent_is_gone_already_ends_at_once(tasks):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    nobody = 1 if os.getpid() != 1 else 2
    done = subprocess.run(
        [sys.executable, "-m", "tuner.worker", str(nobody), tasks],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1 and done.stdout == b""


def test_the_kernel_is_asked_to_take_the_worker_first_when_memory_runs_out(worker):
    pid = call(worker, "echo")["pid"]
    with open(f"/proc/{pid}/oom_score_adj") as file:
        assert file.read().strip() == "1000"


def test_the_worker_is_in_a_group_of_its_own(worker):
    pid = call(worker, "echo")["pid"]
    assert os.getpgid(pid) == pid != os.getpgid(0)
