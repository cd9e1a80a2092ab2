"""One point of the outer search: a patch, a batch, a form of pooling and a thread count, with the exact best choice inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import inf, prod

from znni import geometry
from znni.arena import aligned
from znni.errors import InvalidShape
from znni.layers import Conv, ConvMaxPoolFragments, Recombine, Relayout, Shape, Triple
from znni.layouts import LAYOUTS, PLAIN, tensor_bytes
from znni.network import Network
from znni.nodes import INPUT
from znni.plan import Plan, PlannedLayer
from znni.predict import Predictor
from znni.schedule import Call, Levels, calls_of, lifetimes, loops_of, schedules
from znni.solve import Option, Solution, smallest_bytes, solve
from znni.verify import DEFAULT_TOLERANCE

#: What a process may take beyond its baseline and the program: thread stacks, page rounding, small objects. Measured peaks
#: stay below it with room to spare.
SLACK_BYTES = 16 << 20
RELAYOUT = Relayout()
#: A schedule is preferred to those before it, which hold more together, where it takes less than this share of their time.
_BETTER = 0.995


@dataclass(frozen=True)
class Candidate:
    """What the outer search decides. `output` is the output patch (z, y, x)."""

    output: Triple
    batch: int
    pooling: str
    threads: int


@dataclass(frozen=True)
class Solved:
    """A candidate with the fastest schedule and choice that fit."""

    candidate: Candidate
    levels: Levels
    calls: tuple[Call, ...]
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


def input_shape(network: Network, candidate: Candidate) -> Shape:
    """Shape of the candidate's input; `InvalidShape` where the patch cannot be."""
    patch = geometry.input_size(candidate.output, network.field_of_view)
    network.check_patch(patch, candidate.pooling)
    return (candidate.batch, network.in_channels, *patch)


class Walk:
    """A candidate in one order of its fragments: its calls, and the bytes of tensors beside each one's own."""

    def __init__(self, network: Network, candidate: Candidate, levels: Levels):
        shape = input_shape(network, candidate)
        self.levels = levels
        self.nodes = network.lowered(candidate.pooling, levels)
        loops = loops_of(self.nodes, levels)
        self.calls = calls_of(self.nodes, loops, shape)
        self._shapes = {INPUT: shape} | {call.node.name: call.out_shape for call in self.calls}
        self._spans = lifetimes(self.nodes, loops)
        # of what is held beside a step's own, the layout is another node's affair: the larger one is counted
        large = {name: aligned(max(tensor_bytes(s, layout) for layout in LAYOUTS)) for name, s in self._shapes.items()}
        for name in (INPUT, *(node.name for node in self.nodes if isinstance(node.layer, Recombine))):
            large[name] = aligned(tensor_bytes(self._shapes[name]))  # plain, whoever makes it
        self._beside = []
        for step, call in enumerate(self.calls):
            own = {call.node.name, call.node.inputs[0]}
            alive = (name for name, (first, last) in self._spans.items() if first <= step <= last and name not in own)
            self._beside.append(sum(large[name] for name in alive))

    def live_bytes(self, step: int, takes: str, gives: str) -> int:
        """Bytes of all tensors alive at a step that takes and gives these layouts."""
        call = self.calls[step]
        return (
            self._beside[step]
            + aligned(tensor_bytes(call.source, takes))
            + aligned(tensor_bytes(call.out_shape, gives))
        )

    @property
    def parts(self) -> int:
        """Parts that the fragments of all levels are cut into, together."""
        return prod(level.parts for level in self.levels)

    @property
    def least_bytes(self) -> int:
        """Bytes that no choice of primitives can go below: plain tensors alone."""
        return max(self.live_bytes(step, PLAIN, PLAIN) for step in range(len(self.calls)))

    def options(self, predictor: Predictor, most_error: float) -> list[list[Option]]:
        """For each call the options that are accurate enough and not beaten, with all its repeats and all that is alive."""
        return [
            [
                replace(
                    o,
                    seconds=o.seconds * call.repeats,
                    step_bytes=self.live_bytes(step, o.takes, o.gives) + o.workspace_bytes,
                )
                for o in predictor.best_options(call.node.layer, call.in_shape, most_error)
            ]
            for step, call in enumerate(self.calls)
        ]

    def least_s(self, predictor: Predictor, most_error: float) -> float:
        """Seconds that no choice can go below; infinite where a call has no option."""
        found = (
            (call.repeats, predictor.best_options(call.node.layer, call.in_shape, most_error)) for call in self.calls
        )
        return sum(repeats * min((o.seconds for o in own), default=inf) for repeats, own in found)

    def conversions(self, predictor: Predictor) -> list[dict[tuple[str, str], Option]]:
        """For each call, and after the last, the conversions of its input from one layout to another."""
        found = []
        ends = [(call.in_shape, call.source, call.repeats) for call in self.calls]
        # the recombination before it is plain already, and without poolings nothing is repeated
        ends.append((self.calls[-1].out_shape, self.calls[-1].out_shape, 1))
        for step, (shape, source, repeats) in enumerate(ends):
            call = self.calls[min(step, len(self.calls) - 1)]
            if isinstance(call.node.layer, ConvMaxPoolFragments):  # it comes before the loop over its parts
                repeats //= call.node.layer.parts
            own: dict[tuple[str, str], Option] = {}
            for o in predictor.options(RELAYOUT, shape):
                # a slice is converted beside the tensor that it is of, which is held on
                live = aligned(tensor_bytes(source, o.takes)) + aligned(tensor_bytes(shape, o.gives))
                beside = self._beside[step] if step < len(self.calls) else 0
                choice = replace(
                    o, seconds=o.seconds * repeats, step_bytes=beside + live + o.workspace_bytes
                )
                if (o.takes, o.gives) not in own or choice.seconds < own[o.takes, o.gives].seconds:
                    own[o.takes, o.gives] = choice
            found.append(own)
        return found


def walks(network: Network, candidate: Candidate) -> Iterator[Walk]:
    """The candidate in every order that is worth considering, breadth first first."""
    input_shape(network, candidate)  # refuses a patch that cannot be
    for levels in schedules(network.lowered(candidate.pooling), candidate.batch):
        yield Walk(network, candidate, levels)


def least_live_bytes(network: Network, candidate: Candidate) -> int:
    """Bytes of tensors alone: what no schedule and choice of primitives can go below."""
    return min(walk.least_bytes for walk in walks(network, candidate))


def most_layer_error(network: Network, tolerance: float) -> float:
    """The relative L2 error that one convolution may have, where those of all of them add up as independent ones do.

    A network's error is relative to its output's deviation, a layer's to its output's norm, which after ReLU is about twice
    as large (n337 by F(4,3) and F(6,3): 2.4e-5 where 1.2e-5 would follow from the layers' alone).
    """
    return tolerance / (2 * max(1, sum(isinstance(layer, Conv) for layer in network.layers)) ** 0.5)


def needed_bytes(network: Network, candidate: Candidate, predictor: Predictor) -> int:
    """Bytes of arena and residents that suffice for the candidate's leanest choice."""
    return min(smallest_bytes(walk.options(predictor, inf)) for walk in walks(network, candidate))


def solve_candidate(
    network: Network,
    candidate: Candidate,
    predictor: Predictor,
    budget_bytes: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Solved | None:
    """The candidate's fastest schedule and choice within `budget_bytes` (arena and residents), or None where nothing fits."""
    best: Solved | None = None
    enough = False
    most_error = most_layer_error(network, tolerance)
    for walk in sorted(walks(network, candidate), key=lambda walk: walk.parts):
        if walk.least_bytes > budget_bytes or (enough and walk.parts > 1):
            continue
        below_s = _BETTER * best.solution.seconds if best else inf
        least_s = walk.least_s(predictor, most_error)
        if least_s >= below_s:
            for call in walk.calls if best is None else ():
                _refuse_unless_computed(network, call, predictor)
            continue
        solution = solve(
            walk.options(predictor, most_error), budget_bytes, walk.conversions(predictor), below_s
        )
        if solution:
            best = Solved(candidate, walk.levels, walk.calls, solution)
            # cutting saves nothing but memory, so where the limit does not bind there is nothing to gain
            enough = enough or solution.seconds <= least_s / _BETTER
    return best


def _refuse_unless_computed(network: Network, call: Call, predictor: Predictor) -> None:
    layer = call.node.layer
    fused = isinstance(layer, ConvMaxPoolFragments)  # which no network has of its own
    if not fused and not predictor.options(layer, call.in_shape):
        raise InvalidShape(f"no primitive here computes layer {call.node.name} of {network.name}: {layer}")


def planned_layers(solved: Solved) -> list[PlannedLayer]:
    """The steps of a plan: one for each node, and the conversions between them."""
    solution = solved.solution
    found = []

    def add(name: str, option: Option) -> None:
        found.append(
            PlannedLayer(
                name=name,
                primitive=option.choice.primitive,
                config=dict(option.choice.config),
                predicted_s=option.seconds,
                host_bytes=option.workspace_bytes + option.resident_bytes,
                layout=option.gives,
                basis=option.basis,
                error=option.error,
            )
        )

    for call, option, before in zip(solved.calls, solution.options, solution.conversions, strict=False):
        if before:
            add(f"relayout_{call.node.name}", before)
        add(call.node.name, option)
    if solution.conversions[-1]:
        add("relayout_output", solution.conversions[-1])
    return found


def border_efficiency(network: Network, solved: Solved) -> float:
    """Direct arithmetic that an infinite patch would need for the output, over that of the plan, recomputation included."""
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
        },
        normalise=normalise,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
