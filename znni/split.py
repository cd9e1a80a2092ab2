"""Where to split a network between CPU and GPU, exactly: every cut, and for each the best choice on both sides of it.

Both sides work at the same time, on two patches, so a patch takes as long as the slower one (`znni.pipeline`); and both lie
in the host's memory at the same time, with the slots between them (ZNNi, SC'16, section 7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from znni.arena import aligned
from znni.errors import InvalidShape
from znni.layouts import tensor_bytes
from znni.network import Network
from znni.predict import Predictor
from znni.schedule import Levels
from znni.solve import Option, Solution, solve
from znni.walk import CPU, GPU, Candidate, Walk

#: Tensors between the two parts that are held at once.
SLOTS = 2


@dataclass(frozen=True)
class SplitSolution:
    """The choice of both parts, the CPU's first; `slot_bytes` is what lies between them."""

    parts: tuple[Solution, Solution]
    slot_bytes: int

    @property
    def options(self) -> tuple[Option, ...]:
        """Of every node, in order."""
        return (*self.parts[0].options, *self.parts[1].options)

    @property
    def seconds(self) -> float:
        """That a patch takes, while others are under way."""
        return max(part.seconds for part in self.parts)

    @property
    def arena_bytes(self) -> int:
        """Of the host: both arenas and the slots."""
        return sum(part.arena_bytes for part in self.parts) + self.slot_bytes

    @property
    def resident_bytes(self) -> int:
        """Of the host."""
        return sum(part.resident_bytes for part in self.parts)

    @property
    def total_bytes(self) -> int:
        """Arena and resident bytes of the host together."""
        return self.arena_bytes + self.resident_bytes

    @property
    def device_arena_bytes(self) -> int:
        """Of the GPU."""
        return sum(part.device_arena_bytes for part in self.parts)

    @property
    def device_resident_bytes(self) -> int:
        """Of the GPU."""
        return sum(part.device_resident_bytes for part in self.parts)

    @property
    def device_bytes(self) -> int:
        """Arena and resident bytes of the GPU together."""
        return self.device_arena_bytes + self.device_resident_bytes


def solve_split(
    network: Network,
    candidate: Candidate,
    levels: Levels,
    at: int,
    predictor: Predictor,
    most_error: float,
    budgets: tuple[int, int],
    below_s: float = inf,
) -> SplitSolution | None:
    """The fastest choice with `at` layers on the CPU and the rest on the GPU, or None where none fits or is below `below_s`.

    Parameters
    ----------
    budgets : (int, int)
        Bytes of the host, and of the GPU.
    """
    best: SplitSolution | None = None
    for first, rest in _parts(network, candidate, levels, at):
        least_s = first.least_s(predictor, most_error, CPU), rest.least_s(predictor, most_error, GPU)
        if max(least_s) >= below_s:
            continue
        slot_bytes = SLOTS * aligned(tensor_bytes(first.calls[-1].out_shape))
        before = first.options(predictor, most_error, CPU), first.conversions(predictor, CPU)
        after = rest.options(predictor, most_error, GPU), rest.conversions(predictor, GPU)
        host_bytes = budgets[0] - slot_bytes
        # what the GPU's part leaves of the host's memory is the CPU's: its choices, from the fastest to the leanest
        while host_bytes > 0:
            second = solve(after[0], host_bytes, after[1], below_s, budgets[1], rest.kept_on_host)
            if second is None:
                break
            left = budgets[0] - slot_bytes - second.total_bytes
            own = solve(before[0], left, before[1], below_s)
            if own:
                best = SplitSolution((own, second), slot_bytes)
                below_s = best.seconds
                if own.seconds <= second.seconds:
                    break  # the GPU's part is the slower one, and a leaner choice is no faster
            host_bytes = second.total_bytes - 1
    return best


def _parts(network: Network, candidate: Candidate, levels: Levels, at: int) -> Iterator[tuple[Walk, Walk]]:
    """Both sides of a cut, with the dense result on either side of the bus; none where the cut lies within a loop."""
    try:
        first = Walk(network, candidate, levels, (0, at))
        last = at + len(Walk(network, candidate, levels).nodes[at:])
        rest = Walk(network, candidate, levels, (at, last))
    except InvalidShape:
        return
    yield first, rest
    if rest.loops:
        yield first, Walk(network, candidate, levels, (at, last), dense_on_device=True)


def seconds_by_split(
    network: Network,
    candidate: Candidate,
    levels: Levels,
    predictor: Predictor,
    most_error: float,
    budgets: tuple[int, int],
) -> list[tuple[float, float] | None]:
    """For each number of layers on the CPU, 1 to all but one, the predicted seconds of both parts; None where none fits."""
    count = len(network.lowered(candidate.pooling, levels))
    found = (
        solve_split(network, candidate, levels, at, predictor, most_error, budgets) for at in range(1, count)
    )
    return [(s.parts[0].seconds, s.parts[1].seconds) if s else None for s in found]
