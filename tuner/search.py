"""The search for the fastest plan within a limit: Optuna outside, the exact solver inside.

Optuna is asked for the patch, batch, form of pooling and threads, and told output voxels per second. Inside each trial the
choice of primitives is exact (`znni.solve`), on what is measured and, where nothing is, on what is predicted; a trial whose
optimistic bound cannot beat the best is told its prediction and never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import optuna
from optuna.trial import TrialState

from tuner.layer_measurements import LayerMeasurements
from tuner.measure import Measurer, PlanRun
from tuner.request import Request
from tuner.space import Infeasible, Space, build_space, candidate_of, distributions, guesses, thread_counts
from znni.candidate import SLACK_BYTES, Solved, margins, most_layer_error, plan_of, solve_candidate, useful_share
from znni.default_plan import default_candidate, limit_too_small
from znni.errors import PlanMismatch, RunFailed
from znni.machine import this_machine
from znni.network import Network
from znni.plan import Plan
from znni.predict import Predictor
from znni.solve import Option
from znni.split import seconds_by_split
from znni.verify import verify
from znni.walk import BOTH, CPU, Candidate

#: How much faster than predicted a plan may turn out: where all was measured, and where the cost model guessed.
_OPTIMISM = {"measured": 1.1, "scaled": 1.15, "model": 1.4}
#: A plan must be predicted to gain at least this much on the best measured one to be worth running.
_WORTHWHILE = 1.02
#: Trials in a row that lead to no measurement, after which the search has converged.
_IDLE_TRIALS = 80
#: A plan that is predicted to take more than this share of the budget for one run is measured on a part of it.
_WHOLE_RUN_SHARE = 0.1
#: Share of the budget kept for confirming.
_CONFIRM_SHARE = 0.25


@dataclass
class Measured:
    """A plan that ran end to end, with all its samples."""

    solved: Solved
    plan: Plan
    runs: list[PlanRun] = field(default_factory=list)

    @property
    def candidate(self) -> Candidate:
        """What the outer search decided."""
        return self.solved.candidate

    @property
    def voxels_per_s(self) -> float:
        """Output voxels per second by the median of all rounds."""
        return self.plan.throughput["measured_voxels_per_s"]


def tune(
    network: Network,
    request: Request,
    store,
    *,
    save: Callable[[Plan], None] | None = None,
    progress: Callable[[dict], None] | None = None,
    command: str = "",
) -> Plan:
    """The fastest plan found for `request` within its budget; from the store alone where it was spent already.

    Parameters
    ----------
    store : znni.store.Store
        Where every measurement is kept, and what earlier searches found.
    save : callable, optional
        Called with every plan that is the best so far, the unmeasured default plan first.
    progress : callable, optional
        Called with events: ``stage``, ``spent_s``, ``budget_s``, ``best_voxels_per_s``, ``trials``, ``measurements``,
        ``failed``, ``note``.

    Raises
    ------
    MemoryLimit
        Where no patch fits; it says the smallest limit that would do.
    InvalidShape
        Where the fixed patch cannot be.
    """
    machine = this_machine()
    digest = request.digest(network, machine)
    earlier = store.request(digest)
    if earlier and earlier.plan and earlier.complete and (request.frozen or earlier.spent_s >= request.budget_s):
        plan = Plan.from_dict(earlier.plan, "the stored plan")
        plan.command = command or plan.command
        plan.bind(network, "the stored plan")
        if save:
            save(plan)
        return plan
    if request.frozen:
        raise PlanMismatch(
            "--frozen: the store holds no finished search for this request; run it once without --frozen"
        )
    search = _Search(network, request, store, machine, digest, save, progress, command)
    if earlier:
        search.spent_before_s, search.trials_before = earlier.spent_s, earlier.trials
    try:
        return search.run()
    finally:
        search.close()


class _Search:
    """One tuning in progress."""

    def __init__(self, network, request, store, machine, digest, save, progress, command):
        self.network, self.request, self.store, self.machine, self.digest = network, request, store, machine, digest
        self.save, self.progress, self.command = save, progress, command
        self.spent_before_s, self.trials_before = 0.0, 0
        self.measurer = Measurer(network, store, machine, request.memory_bytes, digest, request.gpu_memory_bytes)
        self.split = request.split and request.only is None
        self.threads = (request.threads,) if request.threads else thread_counts(machine.cores)
        self.predictors = {threads: self._predictor(threads) for threads in self.threads}
        self._layers = LayerMeasurements(self.measurer, self.predictors, lambda note: self._tell("layers", note))
        self.infeasible = Infeasible()
        self.measured: dict[str, Measured] = {}
        self.trials = 0
        self.kept: Plan | None = None
        self.finished = False

    def _predictor(self, threads: int) -> Predictor:
        flop_per_s, bytes_per_s = self.measurer.ceilings(threads)
        gpu = self.measurer.gpu_ceilings() if self.request.gpu_memory_bytes else None
        known = self.measurer.known(threads)
        return Predictor(threads, flop_per_s, bytes_per_s, known, self.request.foreign, gpu, self.request.only)

    @property
    def spent_s(self) -> float:
        """Seconds of the budget used so far, earlier sessions included."""
        return self.spent_before_s + self.measurer.elapsed_s

    def _rate(self, found: Solved | Measured) -> float:
        """Wanted output voxels per second: what overhangs the volume, where it is known, does not count."""
        candidate = found.candidate
        margin = margins(self.network, candidate)
        return found.voxels_per_s * useful_share(candidate.output, self.request.volume, margin)

    @property
    def left_s(self) -> float:
        return self.request.budget_s - self.spent_s

    @property
    def best(self) -> Measured | None:
        return max(self.measured.values(), key=self._rate, default=None)

    def close(self) -> None:
        """Stop the workers and note what was spent."""
        self.measurer.close()
        self._note_request(complete=None)

    def run(self) -> Plan:
        """Default plan, layers, search, confirmation."""
        self.baseline_bytes = self.measurer.baseline_bytes()
        self.budget_bytes = self.request.memory_bytes - self.baseline_bytes - SLACK_BYTES
        self.device_budget_bytes = self.request.gpu_memory_bytes or 0
        devices = BOTH if self.device_budget_bytes else CPU
        space = build_space(
            self.network,
            self.budget_bytes,
            self.threads,
            self.request.output,
            self.request.volume,
            devices,
            self.request.patch,
        )
        start = self._default(space)
        self._keep(self._plan(start))
        self._tell("default", "running the default plan")
        self._run_plan(start)
        until_s = self.left_s / 2
        self._layers.alternatives(start, lambda: self.left_s >= until_s, self._holds)
        self._outer(space, start)
        ranked = self._confirm()
        self.measurer.stop_clock()
        best = self._verified(ranked)
        self._note_request(complete=True)
        self._tell("done", "")
        return best

    def _default(self, space: Space) -> Solved:
        predictor = self.predictors[max(self.threads)]
        if not space.pooling:
            raise limit_too_small(self.network, predictor, self.baseline_bytes, self.request.memory_bytes)
        if self.request.output is None or self.request.patch is not None:
            solved = default_candidate(
                self.network,
                predictor,
                self.budget_bytes,
                self.request.volume,
                self.request.tolerance,
                self.device_budget_bytes,
                self.split,
                self.request.patch,
            )
        else:
            solved = self._solve(space.candidate(space.pooling[0], (1, 1, 1), 1, max(self.threads)))
        if solved is None:
            raise limit_too_small(self.network, predictor, self.baseline_bytes, self.request.memory_bytes)
        return solved

    def _outer(self, space: Space, start: Solved) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # the seed of a resumed search must be another one, or it would replay the same draws
        sampler = optuna.samplers.TPESampler(seed=self.request.seed + self.trials_before, n_startup_trials=20)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        space_ranges = distributions(space)
        for guess in guesses(space, start.candidate):
            study.enqueue_trial(guess, skip_if_exists=True)
        seen: dict[Candidate, float | None] = {}
        idle = 0
        while idle < min(_IDLE_TRIALS, space.points) and self.left_s > self._reserve_s():
            trial = study.ask(space_ranges)
            self.trials += 1
            candidate = candidate_of(space, trial.params)
            if candidate in seen:
                value = seen[candidate]
                measured = False
            else:
                value, measured = self._try(candidate, trial)
                seen[candidate] = value
            idle = 0 if measured else idle + 1
            if value is None:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, value)
            if self.trials % 20 == 0:
                self._tell("plan", "searching")

    def _try(self, candidate: Candidate, trial: optuna.Trial) -> tuple[float | None, bool]:
        """Voxels per second of a candidate (predicted, or measured where it looks best), and whether anything was run."""
        if self.infeasible.rules_out(candidate):
            trial.set_constraint("host_bytes", 1.0)
            return None, False
        solved = self._solve(candidate)
        if solved is None:
            self.infeasible.add(candidate)
            trial.set_constraint("host_bytes", 1.0)
            return None, False
        trial.set_constraint("host_bytes", solved.solution.total_bytes / self.budget_bytes - 1.0)
        if self.device_budget_bytes:
            trial.set_constraint("device_bytes", solved.solution.device_bytes / self.device_budget_bytes - 1.0)
        measured = False
        for _ in range(3):
            if not self._promising(solved):
                return self._rate(solved), measured
            if not self._layers.missing(solved, lambda: self.left_s > self._reserve_s()):
                break
            measured = True
            solved = self._solve(candidate)
        best = self.best
        if best and self._rate(solved) < _WORTHWHILE * self._rate(best):
            return self._rate(solved), measured
        ran = self._run_plan(solved)
        return self._rate(ran or solved), ran is not None or measured

    def _solve(self, candidate: Candidate, tolerance: float | None = None) -> Solved | None:
        predictor = self.predictors[candidate.threads]
        tolerance = tolerance or self.request.tolerance
        return solve_candidate(
            self.network,
            candidate,
            predictor,
            self.budget_bytes,
            tolerance,
            self.device_budget_bytes,
            self.split,
        )

    def _promising(self, solved: Solved) -> bool:
        """Whether the candidate could beat the best measured plan, were every prediction too slow by its usual error."""
        if self.best is None:
            return True
        optimistic_s = max(
            sum(option.seconds / _OPTIMISM[option.basis] for option in part.options) for part in solved.solution.parts
        )
        bound = self._rate(solved) * solved.solution.seconds / optimistic_s
        return bound > _WORTHWHILE * self._rate(self.best)

    def _holds(self, option: Option) -> bool:
        """Whether the limits hold an option beside the network's weights."""
        host_bytes = option.workspace_bytes + option.resident_bytes + self.network.weight_bytes
        device_bytes = option.device_workspace_bytes + option.device_resident_bytes
        return host_bytes < self.budget_bytes and device_bytes <= self.device_budget_bytes

    def _reserve_s(self) -> float:
        """Seconds to keep for confirming: two rounds of the best plan, but no more than a share of the budget."""
        best = self.best
        once = best.runs[-1].spent_s if best else 0.0
        return min(2 * once + 1.0, _CONFIRM_SHARE * self.request.budget_s)

    def _plan(self, solved: Solved) -> Plan:
        return plan_of(
            self.network,
            solved,
            limit_bytes=self.request.memory_bytes,
            baseline_bytes=self.baseline_bytes,
            machine=self.machine.describe(),
            normalise=self.request.normalise,
            command=self.command,
            device_limit_bytes=self.request.gpu_memory_bytes,
        )

    def _run_plan(self, solved: Solved) -> Measured | None:
        """Run a plan end to end in a fresh process; None where that failed (and why is stored)."""
        plan = self._plan(solved)
        entry = self.measured.get(plan.digest) or Measured(solved, plan)
        plan = entry.plan
        # a plan whose single run would take a good part of the budget is measured by one round of its outermost loop
        rounds = next((level.parts for level in solved.levels if level.parts > 1), 1)
        rounds = rounds if solved.split is None else 1
        outer = 1 if rounds > 1 and solved.solution.seconds > _WHOLE_RUN_SHARE * self.request.budget_s else None
        timeout_s = max(self.left_s, 10.0) + 4 * solved.solution.seconds
        run = self.measurer.plan(plan, timeout_s=timeout_s, outer=outer)
        if run is None:
            self._tell("plan", f"failed: {self.measurer.last_failure}")
            return None
        entry.runs.append(run)
        self._fill(entry)
        self.measured[plan.digest] = entry
        if self.best is entry:
            self._keep(plan)
        self._tell("plan", "measured")
        return entry

    def _fill(self, entry: Measured) -> None:
        summary = self.measurer.summary(entry.plan, entry.runs)
        entry.plan.throughput.update(measured_voxels_per_s=summary.voxels_per_s, interval=list(summary.interval))
        entry.plan.throughput["measured_share"] = entry.runs[-1].share
        entry.plan.memory["measured_peak_bytes"] = max(run.peak_bytes for run in entry.runs)
        if self.device_budget_bytes:
            entry.plan.memory["measured_device_peak_bytes"] = max(run.peak_device_bytes for run in entry.runs)

    def _confirm(self) -> list[Measured]:
        """Run the two best plans again in turn; all plans, best first. Inside the noise less memory wins."""
        top = sorted(self.measured.values(), key=self._rate, reverse=True)[:2]
        if not top:
            raise RunFailed(f"no plan for {self.network.name} ran to its end: {self.measurer.last_failure}")
        rivals = [m for m in top if self._rate(m) > 0.9 * self._rate(top[0])]
        for _ in range(3):
            for entry in rivals:
                if self.left_s > entry.runs[-1].spent_s:
                    self._run_plan(entry.solved)
        winner = max(rivals, key=self._rate)
        for entry in rivals:
            ends = zip((entry, winner), (1, 0), strict=True)
            high, low = (m.plan.throughput["interval"][end] * self._rate(m) / m.voxels_per_s for m, end in ends)
            if high >= low and entry.plan.memory["measured_peak_bytes"] < winner.plan.memory["measured_peak_bytes"]:
                winner = entry
        return [winner, *sorted((m for m in self.measured.values() if m is not winner), key=self._rate, reverse=True)]

    def _verified(self, ranked: list[Measured]) -> Plan:
        """The first plan that keeps the tolerance; verification is not charged to the budget.

        Where none does, the best candidate is solved again with more accurate layers only.
        """
        worst = 0.0
        for entry in chain(ranked, self._more_accurate(ranked[0])):
            plan = entry.plan
            self._tell("verify", "comparing with the float64 reference")
            plan.bind(self.network)
            plan.verification = verify(plan, tolerance=self.request.tolerance, store=self.store)
            if plan.verification["passed"]:
                plan.search.update(complete=True)
                if self.device_budget_bytes:
                    plan.schedule["split_seconds"] = self._seconds_by_split(entry.solved)
                self._keep(plan)
                return plan
            worst = plan.verification["relative_l2"]
            self._tell("verify", f"relative L2 error {worst:.1e} misses the tolerance")
        raise RunFailed(
            f"no plan for {self.network.name} keeps the tolerance of {self.request.tolerance:g}; "
            f"the last tried has a relative L2 error of {worst:.1e}"
        )

    def _seconds_by_split(self, solved: Solved) -> list[list[float] | None]:
        """What explains where a plan is split, or why it is not."""
        found = seconds_by_split(
            self.network,
            solved.candidate,
            solved.levels,
            self.predictors[solved.candidate.threads],
            most_layer_error(self.network, self.request.tolerance),
            (self.budget_bytes, self.device_budget_bytes),
        )
        return [list(pair) if pair else None for pair in found]

    def _more_accurate(self, missed: Measured) -> Iterator[Measured]:
        """Plans of the same candidate whose layers may err by ever less."""
        tolerance = self.request.tolerance
        for _ in range(3):
            tolerance /= 3
            solved = self._solve(missed.candidate, tolerance)
            ran = solved and self._run_plan(solved)
            if ran:
                yield ran

    def _keep(self, plan: Plan) -> None:
        """Make `plan` the one that an interruption leaves."""
        plan.search.update(
            trials=self.trials,
            measurements=self.measurer.measurements,
            seed=self.request.seed,
            budget_s=self.request.budget_s,
            table_digest=self.measurer.table_digest(),
        )
        self.kept = plan
        self._note_request(complete=None)
        if self.save:
            self.save(plan)

    def _note_request(self, complete: bool | None) -> None:
        kept = self.kept.to_dict() if self.kept else None
        # a search that converged early has answered for its whole budget
        self.finished = self.finished or bool(complete)
        spent_s = max(self.spent_s, self.request.budget_s) if self.finished else self.spent_s
        self.store.save_request(
            self.digest, spent_s=spent_s, trials=self.trials_before + self.trials, plan=kept, complete=complete
        )

    def _tell(self, stage: str, note: str) -> None:
        if self.progress is None:
            return
        best = self.best
        self.progress(
            {
                "stage": stage,
                "spent_s": self.spent_s,
                "budget_s": self.request.budget_s,
                "best_voxels_per_s": best.voxels_per_s if best else None,
                "trials": self.trials,
                "measurements": self.measurer.measurements,
                "failed": self.measurer.failures,
                "note": note,
            }
        )
