"""Contenders, each in a process of its own, timed in turn: while one runs, the others are stopped and cost nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from tuner.worker import Worker, WorkerError
from znni.errors import RunFailed
from znni.timing import LONG_SECONDS

#: One turn of a contender lasts about so long, in whole calls.
TURN_S = 0.1
#: A contender so many times slower than the fastest after its first turn takes no more of them.
HOPELESS = 8.0
#: Rounds after which more tell nothing new.
MOST_ROUNDS = 40


class Contender:
    """A process that runs what `spec` says (`tuner.contender`), stopped whenever nothing is asked of it.

    Parameters
    ----------
    name : str
    spec : dict
    turn_s : float
        Seconds that a turn lasts, about.
    stays : bool
        Whether it keeps its memory between its turns; else it is checked and ended after each, and prepared anew.

    Attributes
    ----------
    samples : list of list of float
        Seconds of each turn's calls; on the GPU by the device's clock.
    walls : list of float
        On the GPU, those by the host's clock, until all is done.
    """

    def __init__(self, name: str, spec: dict, turn_s: float = TURN_S, stays: bool = True):
        self.name, self.spec, self.turn_s, self.stays = name, spec, turn_s, stays
        self.samples: list[list[float]] = []
        self.walls: list[float] = []
        self.facts: dict = {}
        self.failure: str | None = None
        self.relative_l2: float | None = None
        self._worker = Worker("tuner.contender")
        self._ready = False
        self._first_turn: list[float] | None = None

    @property
    def seconds(self) -> list[float]:
        """All samples, in the order taken."""
        return [s for turn in self.samples for s in turn]

    @property
    def alive(self) -> bool:
        """Whether it still competes."""
        return self.failure is None

    def _ask(self, task: str, payload: dict, timeout_s: float) -> dict | None:
        """The task's result, or None where it failed (`failure` says why)."""
        if not self.alive:
            return None
        if self._worker.pid:
            os.kill(self._worker.pid, signal.SIGCONT)
        try:
            result = self._worker.call(task, payload, timeout_s=timeout_s)
        except WorkerError as error:
            self.failure = str(error)
            self.close()
            return None
        os.kill(self._worker.pid, signal.SIGSTOP)
        return result

    def prepare(self, timeout_s: float) -> bool:
        """Make it ready, its first run included, which is its first turn where it takes seconds; whether that went well."""
        found = self._ask("prepare", self.spec, timeout_s)
        self.facts = found or {}
        self._ready = found is not None
        first_s = self.facts.get("first_s", 0.0)
        self._first_turn = [first_s] if first_s >= LONG_SECONDS and not self.samples else None
        return self._ready

    def turn(self, timeout_s: float) -> list[float] | None:
        """One turn: as many calls as fill `turn_s`. Its samples are kept."""
        if not self._ready and not self.prepare(timeout_s):
            return None
        seconds, self._first_turn = self._first_turn, None
        if seconds is None:
            found = self._ask("time", {"fill_s": self.turn_s}, timeout_s)
            if found is None:
                return None
            self.facts["peak_bytes"] = found["peak_bytes"]
            self.walls += found["wall_s"]
            seconds = found["seconds"]
        self.samples.append(seconds)
        if not self.stays:
            self.check()
            self.close()
        return seconds

    def check(self, timeout_s: float = 300.0) -> None:
        """Let it compare its last result with float64, once."""
        if self.relative_l2 is None and self._ready:
            found = self._ask("check", {}, timeout_s)
            self.relative_l2 = found and found["relative_l2"]

    def start_over(self, spec: dict) -> None:
        """Run another spec from now on, whatever became of the last, whose samples are forgotten."""
        self.spec, self.failure, self.relative_l2, self._ready = spec, None, None, False
        self.samples, self.walls = [], []

    def close(self) -> None:
        """End the process; another turn would start a new one."""
        self._ready = False
        self._worker.close()


def middle(values: Sequence[float]) -> float:
    """The median."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def rounds(
    contenders: Sequence[Contender],
    budget_s: float,
    *,
    least: int = 3,
    patience: float = 3.0,
    hopeless: float = HOPELESS,
    rivals: Sequence[Contender] = (),
    timeout_s: float = 600.0,
    progress: Callable[[str], None] | None = None,
    on_turn: Callable[[Contender, list[float]], None] | None = None,
) -> int:
    """Turns of all contenders, round after round, every other one backwards, until the budget is spent.

    At least `least` rounds are run, unless that would take longer than `patience` times the budget. Contenders that fail,
    or are hopelessly slow, drop out; but the best of the `rivals` stays for as many rounds as that, for others to be
    compared with.

    Returns
    -------
    int
        Rounds that were run.
    """
    start = time.monotonic()
    done, running, slow = 0, [c for c in contenders if c.alive], []
    while running and done < MOST_ROUNDS:
        spent = time.monotonic() - start
        next_s = spent / done if done else 0.0
        if done >= least and spent + next_s > budget_s:
            break
        if 0 < done < least and spent + next_s > patience * budget_s:
            break
        for contender in running if done % 2 == 0 else running[::-1]:
            if progress:
                progress(f"round {done + 1}: {contender.name}")
            taken = contender.turn(timeout_s)
            if taken and on_turn:
                on_turn(contender, taken)
        done += 1
        running = [c for c in running if c.alive]
        if done == 1 and running:
            best = min(middle(c.samples[0]) for c in running)
            rival = min((c for c in running if c in rivals), key=lambda c: middle(c.samples[0]), default=None)
            slow = [c for c in running if middle(c.samples[0]) > hopeless * best]
            running = [c for c in running if c not in slow or c is rival]
        if done >= least:
            running = [c for c in running if c not in slow]
    return done


def ratio(ours: Contender, theirs: Contender) -> dict | None:
    """Time of `theirs` over time of `ours`, round by round: median, least and most. Above 1 ours is faster."""
    both = min(len(ours.samples), len(theirs.samples))
    if not both:
        return None
    found = [middle(theirs.samples[i]) / middle(ours.samples[i]) for i in range(both)]
    return {"median": middle(found), "low": min(found), "high": max(found), "rounds": both}


def failed(contenders: Sequence[Contender], what: str) -> RunFailed:
    """The error for a contest that nobody finished."""
    reasons = "; ".join(f"{c.name}: {c.failure}" for c in contenders if c.failure)
    return RunFailed(f"nothing computed {what}: {reasons or 'no contender'}")
