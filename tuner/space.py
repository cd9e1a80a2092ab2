"""The outer search space: patch per axis in steps, batch, form of pooling, threads; every point of it is a valid patch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from znni.layers import Triple
from znni.network import Network
from znni.walk import CPU, Candidate, least_live_bytes

#: More patches at once than this have never paid in ZNNi's experiments, where a batch of 1 was best everywhere.
MOST_BATCH = 4
#: Steps along one axis beyond which no machine of today holds a patch.
_MOST_STEPS = 4096


@dataclass(frozen=True)
class Space:
    """What the outer search draws from.

    Attributes
    ----------
    step : dict of pooling to (z, y, x)
        Output voxels per step along each axis.
    most_steps : dict of pooling to (z, y, x)
        Steps along each axis at which a patch of one step along the others just fits.
    threads : tuple of int
    output : (z, y, x) or None
        The one output patch to use, where the user fixed it.
    least : dict of pooling to (z, y, x), optional
        The smallest output patch; by default one step.
    patch : (z, y, x) or None
        The input patch that gives `output`, where several do.
    """

    step: dict[str, Triple]
    most_steps: dict[str, Triple]
    threads: tuple[int, ...]
    output: Triple | None = None
    least: dict[str, Triple] | None = None
    patch: Triple | None = None

    @property
    def pooling(self) -> tuple[str, ...]:
        """The forms of pooling in which at least the smallest patch fits."""
        return tuple(self.step)

    def candidate(self, pooling: str, steps: Triple, batch: int, threads: int) -> Candidate:
        """The candidate at `steps` steps along each axis."""
        if self.output is not None:
            return Candidate(self.output, batch, pooling, threads, self.patch)
        axes = zip(steps, self.most_steps[pooling], self.step[pooling], self._least(pooling), strict=True)
        output = tuple(least + (min(n, most) - 1) * s for n, most, s, least in axes)
        return Candidate(output, batch, pooling, threads)

    def steps_of(self, candidate: Candidate) -> Triple:
        """The steps at which `candidate` lies."""
        axes = zip(candidate.output, self.step[candidate.pooling], self._least(candidate.pooling), strict=True)
        return tuple(1 + (o - least) // s for o, s, least in axes)

    def _least(self, pooling: str) -> Triple:
        return (self.least or self.step)[pooling]

    @property
    def points(self) -> int:
        """How many candidates there are, at most (the axes together may not fit)."""
        if self.output is not None:
            return len(self.pooling) * len(self.threads) * MOST_BATCH
        total = 0
        for pooling in self.pooling:
            z, y, x = self.most_steps[pooling]
            total += z * y * x
        return total * len(self.threads) * MOST_BATCH


def build_space(
    network: Network,
    budget_bytes: int,
    threads: tuple[int, ...],
    output: Triple | None = None,
    volume: Triple | None = None,
    devices: Collection[str] = CPU,
    patch: Triple | None = None,
) -> Space:
    """The space of candidates whose tensors fit into `budget_bytes`, and none larger than the output `volume` needs.

    Without poolings both forms are the same, and only one is kept.
    """
    step, most, smallest = {}, {}, {}
    if network.fixed:
        output, patch = network.output_patch(network.patch), network.patch
    for pooling in network.forms:
        own = (1, 1, 1) if pooling == "filter" else network.step
        least = (1, 1, 1) if pooling == "filter" else network.least_output
        if output is not None:
            if patch is None:
                network.check_patch(network.input_patch(output), pooling)
            if least_live_bytes(network, Candidate(output, 1, pooling, 1, patch), devices) <= budget_bytes:
                step[pooling], most[pooling], smallest[pooling] = own, (1, 1, 1), output
            continue
        if least_live_bytes(network, Candidate(least, 1, pooling, 1), devices) > budget_bytes:
            continue
        step[pooling], smallest[pooling] = own, least
        most[pooling] = tuple(
            _most_steps(network, pooling, own, least, axis, budget_bytes, devices) for axis in range(3)
        )
        if volume is not None:
            caps = (1 + max(0, -(-(n - f) // s)) for n, f, s in zip(volume, least, own, strict=True))
            most[pooling] = tuple(min(a, b) for a, b in zip(most[pooling], caps, strict=True))
    return Space(step, most, threads, output, smallest, patch)


def _most_steps(
    network: Network,
    pooling: str,
    step: Triple,
    least: Triple,
    axis: int,
    budget_bytes: int,
    devices: Collection[str],
) -> int:
    low, high = 1, _MOST_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        output = list(least)
        output[axis] += (middle - 1) * step[axis]
        if least_live_bytes(network, Candidate(tuple(output), 1, pooling, 1), devices) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


class Infeasible:
    """Candidates that did not fit, and with each of them every one that is at least as large in all respects."""

    def __init__(self) -> None:
        self._found: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        """Remember that `candidate` does not fit."""
        self._found.append(candidate)

    def rules_out(self, candidate: Candidate) -> bool:
        """Whether a candidate that does not fit is no larger than this one."""
        return any(
            small.pooling == candidate.pooling
            and small.threads <= candidate.threads
            and small.batch <= candidate.batch
            and all(a <= b for a, b in zip(small.output, candidate.output, strict=True))
            for small in self._found
        )


def thread_counts(cores: int) -> tuple[int, ...]:
    """All cores, and where there are many half of them: sharing hardware threads or bandwidth, all can be slower."""
    return (cores, cores // 2) if cores > 2 else (cores,)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's parameters: steps along each axis (log-uniform), batch, form of pooling, threads."""
    found: dict[str, BaseDistribution] = {
        "pooling": CategoricalDistribution(space.pooling),
        "batch": IntDistribution(1, MOST_BATCH),
        "threads": CategoricalDistribution(space.threads),
    }
    if space.output is None:
        for axis, name in enumerate(("steps_z", "steps_y", "steps_x")):
            most = max(space.most_steps[pooling][axis] for pooling in space.pooling)
            found[name] = IntDistribution(1, most, log=True)
    return found


def candidate_of(space: Space, params: dict) -> Candidate:
    """The candidate that Optuna's parameters name."""
    steps = tuple(params.get(name, 1) for name in ("steps_z", "steps_y", "steps_x"))
    return space.candidate(params["pooling"], steps, params["batch"], params["threads"])


def params_of(space: Space, candidate: Candidate) -> dict:
    """Optuna's parameters of a candidate."""
    params = {"pooling": candidate.pooling, "batch": candidate.batch, "threads": candidate.threads}
    if space.output is None:
        params |= dict(zip(("steps_z", "steps_y", "steps_x"), space.steps_of(candidate), strict=True))
    return params


def guesses(space: Space, start: Candidate) -> list[dict]:
    """Where to look first: the default candidate, one step more or less along each axis and along all, other threads."""
    steps = space.steps_of(start)
    found = [params_of(space, start)]
    for threads in space.threads:
        if threads != start.threads:
            found.append(found[0] | {"threads": threads})
    if space.output is not None:
        return found
    for change in (
        (1, 1, 1),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (-1, 0, 0),
        (0, -1, 0),
        (0, 0, -1),
        (2, 2, 2),
        (-1, -1, -1),
    ):
        moved = tuple(s + c for s, c in zip(steps, change, strict=True))
        if all(1 <= m <= most for m, most in zip(moved, space.most_steps[start.pooling], strict=True)):
            found.append(params_of(space, space.candidate(start.pooling, moved, start.batch, start.threads)))
    return found
