"""One point of the outer search: a patch, a batch, a form of pooling and a thread count, with the exact best choice inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import inf, prod

from znni.errors import InvalidShape
from znni.graph_solve import GraphSolution
from znni.graph_walk import GraphWalk, relayout_name
from znni.layers import Conv, ConvMaxPoolFragments, Triple
from znni.network import Network
from znni.plan import Plan, PlannedLayer
from znni.predict import Predictor
from znni.schedule import Call, Levels
from znni.solve import Option, Solution, smallest_bytes, solve
from znni.split import SplitSolution, solve_split
from znni.verify import DEFAULT_TOLERANCE
from znni.walk import BOTH, CPU, Candidate, Walk, input_shape, walks

#: What a process may take beyond its baseline and the program: thread stacks, page rounding, small objects. Measured peaks
#: stay below it with room to spare.
SLACK_BYTES = 16 << 20
#: A schedule is preferred to those before it, which hold more together, where it takes less than this share of their time.
_BETTER = 0.995
#: The least limit of a graph is found this exactly.
_EXACT_BYTES = 256 << 10


@dataclass(frozen=True)
class Solved:
    """A candidate with the fastest schedule and choice that fit.

    `split` is the number of layers that the CPU computes before the GPU takes over; None where one program does all.
    """

    candidate: Candidate
    levels: Levels
    calls: tuple[Call, ...]
    solution: Solution | SplitSolution | GraphSolution
    split: int | None = None

    @property
    def voxels_per_s(self) -> float:
        """Predicted output voxels per second, where every patch is full."""
        return _voxels(self.candidate) / self.solution.seconds


def _voxels(candidate: Candidate) -> int:
    z, y, x = candidate.output
    return candidate.batch * z * y * x


def margins(network: Network, candidate: Candidate) -> Triple:
    """Output voxels at each border of a candidate's patch that are dropped between patches."""
    return network.margin(candidate.patch or network.input_patch(candidate.output)) if network.padded else (0, 0, 0)


def useful_share(output: Triple, volume: Triple | None, margin: Triple = (0, 0, 0)) -> float:
    """The fraction of computed voxels that are wanted when `output` patches cover `volume`, those within `margin` of borders
    between patches being dropped."""
    use = 1.0
    for o, m, n in zip(output, margin, volume or (None,) * 3, strict=True):
        if n is None:
            use *= (o - 2 * m) / o
        elif n > o:
            use *= n / ((1 + -(-(n - o) // max(1, o - 2 * m))) * o)
        else:
            use *= n / o
    return use


def most_layer_error(network: Network, tolerance: float) -> float:
    """The relative L2 error that one convolution may have, where those of all of them add up as independent ones do.

    A network's error is relative to its output's deviation, a layer's to its output's norm, which after ReLU is about twice
    as large (n337 by F(4,3) and F(6,3): 2.4e-5 where 1.2e-5 would follow from the layers' alone).
    """
    return tolerance / (2 * max(1, sum(isinstance(layer, Conv) for layer in network.layers)) ** 0.5)


def needed_bytes(network: Network, candidate: Candidate, predictor: Predictor) -> int:
    """Bytes of arena and residents that suffice for the candidate's leanest choice on the CPU."""
    if not network.chain:
        walk = GraphWalk(network.lowered(candidate.pooling), input_shape(network, candidate))
        low, high = walk.least_bytes, 4 * walk.least_bytes + (64 << 20)
        while high - low > _EXACT_BYTES:
            middle = (low + high) // 2
            low, high = (low, middle) if walk.solve(predictor, inf, middle) else (middle, high)
        return high
    return min(smallest_bytes(walk.options(predictor, inf)) for walk in walks(network, candidate))


def solve_candidate(
    network: Network,
    candidate: Candidate,
    predictor: Predictor,
    budget_bytes: int,
    tolerance: float = DEFAULT_TOLERANCE,
    device_budget_bytes: int = 0,
    split: bool = True,
) -> Solved | None:
    """The candidate's fastest schedule and choice within the budgets (arena and residents), or None where nothing fits.

    Parameters
    ----------
    budget_bytes, device_budget_bytes : int
        Of the host, and of the GPU; the latter counts where the predictor knows of one.
    split : bool
        Whether the first layers may be computed by the CPU while the GPU computes the rest of the patch before.
    """
    if not network.chain:
        return _solve_graph(network, candidate, predictor, budget_bytes, tolerance)
    best: Solved | None = None
    enough = False
    most_error = most_layer_error(network, tolerance)
    devices = CPU if predictor.gpu is None else BOTH
    for walk in _walks(network, candidate, devices):
        if (devices == CPU and walk.least_bytes > budget_bytes) or (enough and walk.parts > 1):
            continue
        below_s = _BETTER * best.solution.seconds if best else inf
        least_s = walk.least_s(predictor, most_error, devices)
        if least_s < below_s:
            solution = solve(
                walk.options(predictor, most_error, devices),
                budget_bytes,
                walk.conversions(predictor, devices),
                below_s,
                device_budget_bytes,
                walk.kept_on_host,
            )
            if solution:
                best = Solved(candidate, walk.levels, walk.calls, solution)
                below_s = _BETTER * solution.seconds
                # cutting saves nothing but memory, so where the limit does not bind there is nothing to gain
                enough = enough or solution.seconds <= least_s / _BETTER
        elif best is None:
            for call in walk.calls:
                _refuse_unless_computed(network, call, predictor)
        if devices == BOTH and split:
            budgets = budget_bytes, device_budget_bytes
            for at in range(1, len(walk.nodes)):
                found = solve_split(network, candidate, walk.levels, at, predictor, most_error, budgets, below_s)
                if found:
                    best = Solved(candidate, walk.levels, walk.calls, found, at)
                    below_s = _BETTER * found.seconds
    return best


def _solve_graph(
    network: Network, candidate: Candidate, predictor: Predictor, budget_bytes: int, tolerance: float
) -> Solved | None:
    """A graph's nodes run one after another, on the CPU."""
    walk = GraphWalk(network.lowered(candidate.pooling), input_shape(network, candidate))
    solution = walk.solve(predictor, most_layer_error(network, tolerance), budget_bytes)
    return solution and Solved(candidate, (), walk.calls, solution)


def _walks(network: Network, candidate: Candidate, devices: tuple[str, ...]) -> Iterator[Walk]:
    """The orders worth considering, those that cut less first; where there is a GPU, with the dense result on either side."""
    for walk in sorted(walks(network, candidate), key=lambda walk: walk.parts):
        yield walk
        if devices == BOTH and walk.loops:
            yield Walk(network, candidate, walk.levels, dense_on_device=True)


def _refuse_unless_computed(network: Network, call: Call, predictor: Predictor) -> None:
    layer = call.node.layer
    fused = isinstance(layer, ConvMaxPoolFragments)  # which no network has of its own
    if not fused and not predictor.options(layer, call.in_shape):
        raise InvalidShape(f"no primitive here computes layer {call.node.name} of {network.name}: {layer}")


def planned_layers(solved: Solved) -> list[PlannedLayer]:
    """The steps of a plan: one for each node, and the conversions between them."""
    found = []

    def add(name: str, option: Option) -> None:
        found.append(
            PlannedLayer(
                name=name,
                primitive=option.choice.primitive,
                config=dict(option.choice.config),
                predicted_s=option.seconds,
                host_bytes=option.workspace_bytes + option.resident_bytes,
                device_bytes=option.device_workspace_bytes + option.device_resident_bytes,
                layout=option.gives,
                basis=option.basis,
                error=option.error,
            )
        )

    calls = iter(solved.calls)
    for number, part in enumerate(solved.solution.parts, 1):
        for option, before in zip(part.options, part.conversions, strict=False):
            call = next(calls)
            for j, conversion in enumerate(before if isinstance(before, tuple) else (before,)):
                if conversion:
                    add(relayout_name(call.node.name, j), conversion)
            add(call.node.name, option)
        after = part.conversions[-1]
        after = after[0] if isinstance(after, tuple) else after
        if after:
            add("relayout_output" if number == len(solved.solution.parts) else "relayout_split", after)
    return found


def border_efficiency(network: Network, solved: Solved) -> float:
    """Direct arithmetic that an infinite patch would need for the output, over that of the plan, recomputation included."""
    if not network.sliding:
        return prod(n - 2 * m for n, m in zip(solved.candidate.output, margins(network, solved.candidate), strict=True)) / prod(
            solved.candidate.output
        )
    done = 0.0
    for call in solved.calls:
        layer = call.node.layer
        if isinstance(layer, Conv):
            done += call.repeats * 2.0 * prod(layer.output_shape(call.in_shape)) * call.in_shape[1] * prod(layer.kernel)
        elif isinstance(layer, ConvMaxPoolFragments):
            whole = layer.conv.output_shape(call.in_shape)
            done += call.repeats * 2.0 * prod(whole) * call.in_shape[1] * prod(layer.conv.kernel)
    return network.flop_per_voxel * _voxels(solved.candidate) / done if done else 1.0


def plan_of(
    network: Network,
    solved: Solved,
    *,
    limit_bytes: int,
    baseline_bytes: int,
    machine: dict,
    normalise: str = "none",
    command: str = "",
    device_limit_bytes: int | None = None,
) -> Plan:
    """The plan file's content for a solved candidate; what was measured and verified is filled in later."""
    candidate, solution = solved.candidate, solved.solution
    return Plan(
        network={
            "name": network.name,
            "digest": network.digest,
            "source": network.source,
            "seed": network.seed,
            "width": network.width,
            "weights": network.weights_source,
        },
        machine=machine,
        limits={"host_bytes": limit_bytes, "device_bytes": device_limit_bytes},
        split=solved.split,
        patch={
            "input": list(input_shape(network, candidate)[2:]),
            "output": list(candidate.output),
            "batch": candidate.batch,
        },
        schedule={
            "pooling": candidate.pooling,
            "threads": candidate.threads,
            "levels": [asdict(level) for level in solved.levels],
        },
        layers=planned_layers(solved),
        throughput={
            "predicted_voxels_per_s": solved.voxels_per_s,
            "measured_voxels_per_s": None,
            "interval": None,
            "border_efficiency": border_efficiency(network, solved),
        },
        memory={
            "predicted_peak_bytes": baseline_bytes + solution.total_bytes + SLACK_BYTES,
            "measured_peak_bytes": None,
            "baseline_bytes": baseline_bytes,
            "arena_bytes": solution.arena_bytes,
            "resident_bytes": solution.resident_bytes,
            "device_arena_bytes": solution.device_arena_bytes,
            "device_resident_bytes": solution.device_resident_bytes,
            "measured_device_peak_bytes": None,
        },
        normalise=normalise,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
