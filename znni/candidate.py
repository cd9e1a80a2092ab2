"""One point of the outer search: a patch, a batch, a form of pooling and a thread count, with the exact best choice inside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from znni import geometry
from znni.errors import InvalidShape
from znni.layers import Shape, Triple
from znni.network import Network, Node, shapes_through
from znni.plan import Plan, PlannedLayer
from znni.predict import Predictor
from znni.program import live_tensor_bytes
from znni.solve import Solution, smallest_bytes, solve

#: What a process may take beyond its baseline and the program: thread stacks, page rounding, small objects. Measured peaks
#: stay below it with room to spare.
SLACK_BYTES = 16 << 20


@dataclass(frozen=True)
class Candidate:
    """What the outer search decides. `output` is the output patch (z, y, x)."""

    output: Triple
    batch: int
    pooling: str
    threads: int


@dataclass(frozen=True)
class Solved:
    """A candidate with the fastest choice that fits."""

    candidate: Candidate
    nodes: tuple[Node, ...]
    shapes: dict[str, Shape]
    solution: Solution

    @property
    def voxels_per_s(self) -> float:
        """Predicted output voxels per second, where every patch is full."""
        return _voxels(self.candidate) / self.solution.seconds


def _voxels(candidate: Candidate) -> int:
    z, y, x = candidate.output
    return candidate.batch * z * y * x


def useful_share(output: Triple, volume: Triple | None) -> float:
    """The fraction of computed voxels that are wanted when `output` patches cover `volume`."""
    if volume is None:
        return 1.0
    use = 1.0
    for n, o in zip(volume, output, strict=True):
        use *= n / (-(-n // o) * o)
    return use


def shapes_of(network: Network, candidate: Candidate) -> tuple[tuple[Node, ...], dict[str, Shape]]:
    """The nodes that run, and the shape of each result; `InvalidShape` where the patch cannot be."""
    patch = geometry.input_size(candidate.output, network.field_of_view)
    network.check_patch(patch, candidate.pooling)
    nodes = network.lowered(candidate.pooling)
    return nodes, shapes_through(nodes, (candidate.batch, network.in_channels, *patch))


def needed_bytes(network: Network, candidate: Candidate, predictor: Predictor) -> int:
    """Bytes of arena and residents that surely suffice for the candidate's leanest choice."""
    nodes, shapes = shapes_of(network, candidate)
    options = [predictor.options(node, shapes[node.inputs[0]]) for node in nodes]
    return smallest_bytes(live_tensor_bytes(nodes, shapes), options)


def solve_candidate(network: Network, candidate: Candidate, predictor: Predictor, budget_bytes: int) -> Solved | None:
    """The candidate's fastest choice within `budget_bytes` (arena and residents), or None where nothing fits."""
    nodes, shapes = shapes_of(network, candidate)
    live = live_tensor_bytes(nodes, shapes)
    if max(live) > budget_bytes:
        return None
    options = []
    for node in nodes:
        found = predictor.options(node, shapes[node.inputs[0]])
        if not found:
            raise InvalidShape(f"no primitive here computes layer {node.name} of {network.name}: {node.layer}")
        options.append(found)
    solution = solve(live, options, budget_bytes)
    return solution and Solved(candidate, nodes, shapes, solution)


def plan_of(
    network: Network,
    solved: Solved,
    *,
    limit_bytes: int,
    baseline_bytes: int,
    machine: dict,
    normalise: str = "none",
    command: str = "",
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
        limits={"host_bytes": limit_bytes, "device_bytes": None},
        patch={
            "input": list(geometry.input_size(candidate.output, network.field_of_view)),
            "output": list(candidate.output),
            "batch": candidate.batch,
        },
        schedule={"pooling": candidate.pooling, "threads": candidate.threads},
        layers=[
            PlannedLayer(
                name=node.name,
                primitive=option.choice.primitive,
                config=dict(option.choice.config),
                predicted_s=option.seconds,
                host_bytes=option.workspace_bytes + option.resident_bytes,
                basis=option.basis,
            )
            for node, option in zip(solved.nodes, solution.options, strict=True)
        ],
        throughput={
            "predicted_voxels_per_s": solved.voxels_per_s,
            "measured_voxels_per_s": None,
            "interval": None,
        },
        memory={
            "predicted_peak_bytes": baseline_bytes + solution.total_bytes + SLACK_BYTES,
            "measured_peak_bytes": None,
            "baseline_bytes": baseline_bytes,
            "arena_bytes": solution.arena_bytes,
            "resident_bytes": solution.resident_bytes,
        },
        normalise=normalise,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
