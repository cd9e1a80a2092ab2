"""A process that measures candidates for another, and may die of it: crash, hang or out of memory cost one candidate.

    with Worker() as worker:
        result = worker.call("measure_layer", payload, timeout_s=60, on_sample=row.add_sample)

The parent's side is `Worker`; the child is ``python -m tuner.worker``. It is reused from call to call, started again
after it had to be killed, and killed by the kernel when its parent ends, however that ends. Requests and answers are
JSON, one a line, on pipes of their own: what a task prints goes to standard error, whose end is kept for the error. A process
that lost its device is replaced as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from znni.errors import DeviceLost, RunFailed, ZnniError

#: Seconds that a new process may take to be ready; starting an interpreter on a busy machine takes some.
_START_TIMEOUT_S = 60.0
#: Seconds between the end of a worker's answers and the end of the worker.
_EXIT_TIMEOUT_S = 5.0
_KEPT_STDERR_BYTES = 4000
_PR_SET_PDEATHSIG = 1


class WorkerError(RunFailed):
    """A task that did not come to its end: the message is the reason in a sentence, `detail` all that is known."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class TaskTimeout(WorkerError):
    """The task took longer than it may, and its process was killed."""


class TaskCrashed(WorkerError):
    """The task took its process down: `signal_name` is what killed it, or None where it exited by itself."""

    def __init__(self, reason: str, detail: str = "", signal_name: str | None = None):
        super().__init__(reason, detail)
        self.signal_name = signal_name


class TaskRaised(WorkerError):
    """The task raised an exception of the type named `kind`; `detail` is its traceback."""

    def __init__(self, reason: str, detail: str = "", kind: str = ""):
        super().__init__(reason, detail)
        self.kind = kind


class Worker:
    """A process for tasks, started at the first call. To be used, and closed, by the thread that calls it.

    Parameters
    ----------
    tasks : str
        Module whose ``TASKS`` maps names to functions of (payload, on_sample).
    """

    def __init__(self, tasks: str = "tuner.tasks"):
        self._tasks = tasks
        self._process: subprocess.Popen | None = None
        self._stderr = None
        self._received = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process now in use, if any."""
        return self._process and self._process.pid

    def call(
        self,
        task: str,
        payload: Mapping,
        *,
        timeout_s: float,
        on_sample: Callable[[float], object] | None = None,
    ) -> dict:
        """Run a task, and return its result.

        Parameters
        ----------
        task : str
            One of the task module's names. A task that needs a process that ran nothing before gets one.
        payload : mapping of JSON data
        timeout_s : float
            Seconds that the task may take; starting a process, where one is needed, comes on top.
        on_sample : callable, optional
            Told each sample as the task takes it.

        Raises
        ------
        TaskTimeout, TaskCrashed, TaskRaised
            All of them `WorkerError`, and `RunFailed`. The next call works again, in a new process where need be.
        """
        try:
            answer = self._ask(task, payload, timeout_s, on_sample)
            if "stale" in answer or "died idle" in answer:
                self.close()
                answer = self._ask(task, payload, timeout_s, on_sample)
        except BaseException:  # also Ctrl-C, or an error of on_sample: what still runs must not be taken for idle
            self.close()
            raise
        if "error" in answer:
            error = answer["error"]
            if error["lost"]:
                self.close()
            raise TaskRaised(error["reason"], error["detail"], error["kind"])
        return answer["result"]

    def close(self) -> None:
        """Kill the process and all that it started, if there is one; a later call starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the group is still its own
        process.wait()
        process.stdin.close()
        process.stdout.close()
        self._stderr.close()

    def _ask(self, task: str, payload: Mapping, timeout_s: float, on_sample: Callable | None) -> dict:
        idle = self._process is not None
        if not idle or self._has_exited():
            self.close()
            self._start()
            idle = False
        deadline = time.monotonic() + timeout_s
        try:
            self._send({"task": task, "payload": dict(payload)}, task, deadline, timeout_s)
            answer = self._receive(task, deadline, timeout_s)
        except TaskCrashed:
            if idle:  # a killed process can linger before it counts as exited; it never began this task
                return {"died idle": True}
            raise
        while "result" not in answer and "error" not in answer and "stale" not in answer:
            if on_sample and "sample" in answer:
                on_sample(answer["sample"])
            answer = self._receive(task, deadline, timeout_s)
        return answer

    def _start(self) -> None:
        self._received = b""
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # what can be imported here can be there
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-m", "tuner.worker", str(os.getpid()), self._tasks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        os.set_blocking(self._process.stdin.fileno(), False)
        self._receive("starting the worker", time.monotonic() + _START_TIMEOUT_S, _START_TIMEOUT_S)

    def _send(self, message: dict, task: str, deadline: float, timeout_s: float) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        pipe = self._process.stdin.fileno()
        while rest:
            self._wait_for(pipe, select.POLLOUT, task, deadline, timeout_s)
            try:
                rest = rest[os.write(pipe, rest) :]
            except BrokenPipeError:
                raise self._crash(task) from None

    def _receive(self, task: str, deadline: float, timeout_s: float) -> dict:
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._received:
            self._wait_for(pipe, select.POLLIN, task, deadline, timeout_s)
            part = os.read(pipe, 1 << 16)
            if not part:
                raise self._crash(task)
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _wait_for(self, pipe: int, event: int, task: str, deadline: float, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TaskTimeout(f"{task} took longer than {timeout_s:g} s and was stopped", self._last_words())

    def _has_exited(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its number stays its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _crash(self, task: str) -> TaskCrashed:
        """The error for a process that closed its pipe."""
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        while not self._has_exited():
            if time.monotonic() > deadline:
                return TaskCrashed(f"{task} closed its worker's pipe", self._last_words())
            time.sleep(0.001)
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if ended.si_code == os.CLD_EXITED:
            return TaskCrashed(f"{task} ended its process with exit code {ended.si_status}", self._last_words())
        name = signal.Signals(ended.si_status).name
        why = " (probably out of memory)" if name == "SIGKILL" else ""
        return TaskCrashed(f"{task} was killed by {name}{why}", self._last_words(), name)

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _KEPT_STDERR_BYTES))
        return self._stderr.read().decode(errors="replace").strip()


def _die_with_parent(parent: int) -> None:
    """Be killed as soon as the parent (the thread that started this process) ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _die_first_of_all() -> None:
    """Where memory runs out, let the kernel kill this process rather than its parent or others."""
    with contextlib.suppress(OSError):  # where it may not be set, the kernel chooses for itself
        Path("/proc/self/oom_score_adj").write_text("1000")


def _reason(error: BaseException) -> str:
    """An exception as one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(error, ZnniError):  # a sentence already
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main(parent: int, tasks_module: str) -> None:
    """The child: run tasks as they are asked for, until there is no more to read."""
    _die_with_parent(parent)
    _die_first_of_all()
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def answer(**message: object) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    tasks = importlib.import_module(tasks_module).TASKS
    answer(ready=os.getpid())
    fresh = True
    for line in requests:
        request = json.loads(line)
        task = tasks.get(request["task"])
        if task is not None and getattr(task, "needs_fresh_process", False) and not fresh:
            answer(stale=True)
            continue
        fresh = False
        answer(begun=request["task"])
        try:
            if task is None:
                raise ValueError(f"no task is named {request['task']!r}; there are {', '.join(sorted(tasks))}")
            answer(result=task(request["payload"], lambda seconds: answer(sample=seconds)))
        except Exception as error:
            reason, kind = _reason(error), type(error).__name__
            # nothing more can be done with a lost device in this process
            lost = isinstance(error, DeviceLost)
            answer(error={"reason": reason, "detail": traceback.format_exc(), "kind": kind, "lost": lost})
            error.__traceback__ = None
            gc.collect()  # an error can refer to itself, and keep what its frames held: memory of a device


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
