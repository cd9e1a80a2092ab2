"""Timed runs of a plan's program: one after another, or a stream of patches through a split one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from znni.timing import LONG_SECONDS

if TYPE_CHECKING:
    from znni.pipeline import Pipeline
    from znni.plan import Plan
    from znni.program import Program

#: Of what inputs are filled with, over and over: drawing as much noise as a patch holds takes longer than some plans.
NOISE_VOXELS = 1 << 18


class PlanRuns:
    """Runs of one program, and what they took.

    Parameters
    ----------
    plan : Plan
    program : Program or Pipeline
        The plan's.
    noise : ndarray of float32
        What inputs are filled with, over and over.

    Attributes
    ----------
    seconds : list of float
        Of each run; of a split plan, from one patch's result to the next one's.
    share : float
        The part of the plan's rounds that was run.
    """

    def __init__(self, plan: Plan, program: Program | Pipeline, noise: np.ndarray):
        self._program, self._noise = program, noise
        self._stream = plan.split is not None
        self.seconds: list[float] = []
        self.share = 1.0
        self._steps: list[list[float]] = []

    def take(self, rounds: int, cap_s: float, outer: int | None, on_sample: Callable[[float], object]) -> None:
        """Take up to `rounds` samples, and begin none after `cap_s` seconds, but at least one.

        The first run, which touches memory for the first time, is a sample only where a run takes seconds, or the cap allows no
        more. With `outer`, as many rounds of the outermost loop are run for each.
        """
        if self._stream:
            self._take_stream(rounds, cap_s, on_sample)
            return
        start = time.perf_counter()
        self.share = outer / self._program.loops[0].parts if outer and self._program.loops else 1.0
        first_s = self._once(outer)
        if first_s >= LONG_SECONDS or 2 * first_s > cap_s:
            self._add(first_s, on_sample)
        else:
            self._steps.clear()
        while not self.seconds or (
            first_s < LONG_SECONDS
            and len(self.seconds) < rounds
            and time.perf_counter() - start + self.seconds[-1] <= cap_s
        ):
            self._add(self._once(outer), on_sample)

    def sample(self, runs: int) -> list[float]:
        """Seconds of so many runs more."""
        before = len(self.seconds)
        if self._stream:
            self._take_stream(runs, float("inf"), lambda seconds: None)
        else:
            for _ in range(runs):
                self._add(self._once(None), lambda seconds: None)
        return self.seconds[before:]

    def step_seconds(self) -> list[float]:
        """Median seconds of each step; those of steps on a device from a run in which each was waited for."""
        if not self._steps:
            self._fill(self._program.input)
            self._steps.append(self._program.run_timed())
        return [float(np.median(own)) for own in zip(*self._steps, strict=True)]

    def _add(self, seconds: float, on_sample: Callable[[float], object]) -> None:
        self.seconds.append(seconds)
        on_sample(seconds)

    def _once(self, outer: int | None) -> float:
        """Seconds of one run; its steps are noted where timing them does not hold anything up."""
        self._fill(self._program.input)
        if outer:
            self._steps.append(self._program.run_timed(outer))
            return sum(self._steps[-1])
        begun = time.perf_counter()
        if self._program.device is None:
            self._steps.append(self._program.run_timed())
        else:
            self._program.run()
        return time.perf_counter() - begun

    def _take_stream(self, rounds: int, cap_s: float, on_sample: Callable[[float], object]) -> None:
        """Patches through both parts at once. The first one's result comes late; from then on there is one after another."""
        start, came = time.perf_counter(), []

        def jobs() -> Iterator[int]:
            for number in range(rounds + 1):
                if number > 1 and time.perf_counter() - start > cap_s:
                    return
                yield number

        def drain(job: int, out: np.ndarray) -> None:
            came.append(time.perf_counter())
            if len(came) > 1:
                self._add(came[-1] - came[-2], on_sample)

        self._program.run_all(jobs(), lambda job, x: self._fill(x), drain)

    def _fill(self, x: np.ndarray) -> None:
        flat, step = x.reshape(-1), self._noise.size
        for begin in range(0, flat.size, step):
            part = flat[begin : begin + step]
            part[:] = self._noise[: part.size]
