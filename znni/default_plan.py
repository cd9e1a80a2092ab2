"""A plan from the cost model and the store alone, without a search: the one that `Network.run` uses, and every tuning starts
from."""

from __future__ import annotations

from collections.abc import Iterator

from znni.candidate import SLACK_BYTES, Solved, margins, needed_bytes, plan_of, solve_candidate, useful_share
from znni.errors import MemoryLimit
from znni.layers import Triple, by_x
from znni.network import Network
from znni.plan import Plan
from znni.predict import Predictor
from znni.process_memory import available_bytes, resident_bytes
from znni.verify import DEFAULT_TOLERANCE
from znni.walk import Candidate

#: Steps along an axis that are tried: fine at first, then about 1.3 times apart, where the throughput is flat.
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 46, 60, 78, 100, 130)
#: Of a flat network, along z, where there is no border to share.
_FLAT_STEPS = (1, 2, 8)
#: MiB by which the size of one and the same process differs from start to start: 1 was seen.
_VARIATION_MIB = 4
#: Predictions are no better than this; patches nearer to the best are as good.
_AS_GOOD = 0.97


def smallest_limit(network: Network, predictor: Predictor, baseline_bytes: int) -> int:
    """The least limit on the whole process under which some patch runs."""
    least = []
    for pooling in network.forms:
        output = (1, 1, 1) if pooling == "filter" else network.least_output
        least.append(needed_bytes(network, smallest_candidate(network, output, pooling, predictor.threads), predictor))
    return baseline_bytes + SLACK_BYTES + min(least)


def smallest_candidate(network: Network, output: Triple, pooling: str, threads: int) -> Candidate:
    """A candidate of that output patch, or of the only patch that the network takes."""
    if network.fixed:
        return Candidate(network.output_patch(network.patch), 1, pooling, threads, network.patch)
    return Candidate(output, 1, pooling, threads)


def _outputs(network: Network, volume: Triple | None) -> Iterator[list[Triple]]:
    """Families of output patches, each ordered from small to large: cubes, and slabs of few z for flat fields of view."""
    step, first = network.step, network.least_output
    if network.patch is not None and (network.fixed or network.patch[0] != network.patch[1]):
        yield [network.output_patch(network.patch)]
        if network.fixed:
            return
    caps = [10**9] * 3 if volume is None else [_cap(*sizes) for sizes in zip(volume, first, step, strict=True)]
    flat = network.field_of_view[0] * 4 <= network.field_of_view[1]
    for depth in _FLAT_STEPS if flat else (None,):
        family = []
        for i in _STEPS:
            target = i * max(step)
            counts = [max(1, min(cap, target // s)) for s, cap in zip(step, caps, strict=True)]
            if depth is not None:
                counts[0] = min(caps[0], depth)
            output = tuple(f + (c - 1) * s for f, c, s in zip(first, counts, step, strict=True))
            if output not in family:
                family.append(output)
        yield family


def _cap(n: int, first: int, step: int) -> int:
    """Steps that cover `n` output voxels."""
    return 1 + max(0, -(-(n - first) // step))


def default_candidate(
    network: Network,
    predictor: Predictor,
    budget_bytes: int,
    volume: Triple | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    device_budget_bytes: int = 0,
    split: bool = True,
    patch: Triple | None = None,
) -> Solved | None:
    """The best of a coarse set of patches by predicted throughput, or None where none fits.

    Where the `volume` (output voxels) to be run is known, patches that overhang it are charged for what they waste. Of
    patches as good as the best, the one that needs least memory.
    """
    form = network.forms[0]
    if patch is not None:
        only = Candidate(network.output_patch(patch), 1, form, predictor.threads, patch)
        return solve_candidate(network, only, predictor, budget_bytes, tolerance, device_budget_bytes, split)
    found: list[tuple[float, Solved]] = []
    for family in _outputs(network, volume):
        for output in family:
            candidate = smallest_candidate(network, output, form, predictor.threads)
            solved = solve_candidate(
                network, candidate, predictor, budget_bytes, tolerance, device_budget_bytes, split
            )
            if solved is None:
                break  # a larger one of the family does not fit either
            share = useful_share(output, volume, margins(network, candidate))
            found.append((solved.voxels_per_s * share, solved))
    if not found:
        least = (1, 1, 1) if network.forms[-1] == "filter" else network.least_output
        smallest = smallest_candidate(network, least, network.forms[-1], predictor.threads)
        return solve_candidate(network, smallest, predictor, budget_bytes, tolerance, device_budget_bytes, split)
    best_rate = max(rate for rate, _ in found)
    return min((s for rate, s in found if rate > _AS_GOOD * best_rate), key=lambda s: s.solution.total_bytes)


def default_plan(
    network: Network,
    *,
    memory_bytes: int | None = None,
    threads: int | None = None,
    volume: Triple | None = None,
    predictor: Predictor | None = None,
    baseline_bytes: int | None = None,
    patch: Triple | None = None,
) -> Plan:
    """A plan without a search.

    Parameters
    ----------
    network : Network
    memory_bytes : int, optional
        Limit on the resident set of the whole process; by default three quarters of what is free, and what it holds now.
    threads : int, optional
        By default as many as this process may use cores.
    volume : (z, y, x), optional
        Output voxels that will be wanted, if known.
    predictor : Predictor, optional
        By default one from the cost model alone.
    baseline_bytes : int, optional
        What the process takes before the program; by default what this one takes now.
    patch : (z, y, x), optional
        The input patch to take.

    Raises
    ------
    MemoryLimit
        Where no patch fits; it says what limit would do.
    """
    from znni.machine import this_machine

    machine = this_machine()
    threads = threads or machine.cores
    predictor = predictor or Predictor(threads)
    baseline_bytes = resident_bytes() if baseline_bytes is None else baseline_bytes
    limit = baseline_bytes + available_bytes() * 3 // 4 if memory_bytes is None else memory_bytes
    solved = default_candidate(network, predictor, limit - baseline_bytes - SLACK_BYTES, volume, patch=patch)
    if solved is None:
        raise limit_too_small(network, predictor, baseline_bytes, limit)
    return plan_of(
        network,
        solved,
        limit_bytes=limit,
        baseline_bytes=baseline_bytes,
        machine=machine.describe(),
        command="default plan",
    )


def limit_too_small(network: Network, predictor: Predictor, baseline_bytes: int, limit_bytes: int) -> MemoryLimit:
    """The error for a limit under which no patch of `network` runs."""
    mib = 1 << 20
    if predictor.gpu is not None:
        return MemoryLimit(
            f"{limit_bytes / mib:.0f} MiB, and what is allowed of the GPU's memory, are too little for any patch of "
            f"{network.name} (field of view {by_x(network.field_of_view)}); raise --memory, or --gpu-memory"
        )
    least = smallest_limit(network, predictor, baseline_bytes)
    return MemoryLimit(
        f"{limit_bytes / mib:.0f} MiB is too little for any patch of {network.name} "
        f"(field of view {by_x(network.field_of_view)}); the smallest limit that would do is "
        f"{-(-least // mib) + _VARIATION_MIB}MiB"
    )
