"""A candidate in one order of its fragments: which calls it makes, and what is held in memory at each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import inf, prod

from znni.arena import aligned
from znni.gpu.device import device_aligned
from znni.graph_walk import GraphWalk
from znni.layers import Conv, ConvMaxPoolFragments, Recombine, Relayout, Shape, Triple
from znni.layouts import DEVICE, LAYOUTS, PLAIN, tensor_bytes
from znni.network import Network
from znni.nodes import INPUT
from znni.predict import Predictor
from znni.schedule import Call, Levels, calls_of, lifetimes, loops_of, schedules, span_of
from znni.solve import Option

RELAYOUT = Relayout()
#: Where a part of a network may be computed. On the GPU alone convolutions are; what is left of the CPU may do the rest.
CPU, GPU, BOTH = ("cpu",), ("gpu",), ("cpu", "gpu")


@dataclass(frozen=True)
class Candidate:
    """What the outer search decides. `output` is the output patch (z, y, x)."""

    output: Triple
    batch: int
    pooling: str
    threads: int
    #: The input patch, where it is not the smallest that gives `output`.
    patch: Triple | None = None


def input_shape(network: Network, candidate: Candidate) -> Shape:
    """Shape of the candidate's input; `InvalidShape` where the patch cannot be."""
    patch = candidate.patch or network.input_patch(candidate.output)
    network.check_patch(patch, candidate.pooling)
    return (candidate.batch, network.in_channels, *patch)


class Walk:
    """A candidate in one order of its fragments: its calls, and the bytes of tensors beside each one's own.

    What a loop slices is held on the host; the dense result, which a loop fills, where `dense_on_device` says.

    Parameters
    ----------
    network, candidate, levels
    span : (int, int), optional
        The nodes, from the first number up to the second, that are walked; what lies between them and others is held by
        neither (`znni.pipeline`). By default all.
    dense_on_device : bool

    Raises
    ------
    InvalidShape
        Where the patch cannot be, or the span cuts a loop.
    """

    def __init__(
        self,
        network: Network,
        candidate: Candidate,
        levels: Levels,
        span: tuple[int, int] | None = None,
        dense_on_device: bool = False,
    ):
        shape = input_shape(network, candidate)
        self.levels, self.span = levels, span
        nodes = network.lowered(candidate.pooling, levels)
        loops = loops_of(nodes, levels)
        self._outside: set[str] = set()
        if span:
            every, (first, last) = nodes, span
            if first:
                before, _ = span_of(nodes, loops, 0, first)
                shape = calls_of(before, (), shape)[-1].out_shape
                self._outside.add(INPUT)
            nodes, loops = span_of(nodes, loops, first, last)
            if last < len(every):
                self._outside.add(nodes[-1].name)
        self.nodes, self.loops = nodes, loops
        self.calls = calls_of(nodes, loops, shape)
        #: Numbers of the nodes that take slices of what a loop holds, which is on the host.
        self.kept_on_host = frozenset(loop.start for loop in loops if loop.slices)
        self._dense_on_device = dense_on_device if loops else None
        self._shapes = {INPUT: shape} | {call.node.name: call.out_shape for call in self.calls}
        spans = lifetimes(nodes, loops)
        # of what is held beside a step's own, the layout is another node's affair: the larger one is counted
        large = {name: aligned(max(tensor_bytes(s, layout) for layout in LAYOUTS)) for name, s in self._shapes.items()}
        for name in (INPUT, *(node.name for node in nodes if isinstance(node.layer, Recombine))):
            large[name] = aligned(tensor_bytes(self._shapes[name]))  # plain, whoever makes it
        for name in self._outside:
            large[name] = 0
        dense = {nodes[-1].name} if self._dense_on_device else set()
        self._beside, self._device_beside = [], []
        for step, call in enumerate(self.calls):
            own = {call.node.name, call.node.inputs[0]}
            alive = {name for name, (first, last) in spans.items() if first <= step <= last and name not in own}
            self._beside.append(sum(large[name] for name in alive - dense))
            self._device_beside.append(sum(device_aligned(tensor_bytes(self._shapes[name])) for name in alive & dense))

    def _bytes(self, name: str, shape: Shape, layout: str) -> int:
        """Of a tensor, or a slice of it, on the host."""
        outside = layout == PLAIN and name in self._outside
        return 0 if layout == DEVICE or outside else aligned(tensor_bytes(shape, layout))

    def live_bytes(self, step: int, takes: str, gives: str) -> int:
        """Bytes of all tensors alive on the host at a step that takes and gives these layouts."""
        call = self.calls[step]
        source = PLAIN if step in self.kept_on_host and takes == DEVICE else takes  # its slice was copied
        return (
            self._beside[step]
            + self._bytes(call.node.inputs[0], call.source, source)
            + self._bytes(call.node.name, call.out_shape, gives)
        )

    def device_live_bytes(self, step: int, takes: str, gives: str) -> int:
        """Bytes of all tensors alive on the device at a step that takes and gives these layouts."""
        call = self.calls[step]
        return self._device_beside[step] + _device_bytes(call.in_shape, takes) + _device_bytes(call.out_shape, gives)

    @property
    def parts(self) -> int:
        """Parts that the fragments of all levels are cut into, together."""
        return prod(level.parts for level in self.levels)

    @property
    def least_bytes(self) -> int:
        """Bytes that no choice of the CPU's primitives can go below: plain tensors alone."""
        return max(self.live_bytes(step, PLAIN, PLAIN) for step in range(len(self.calls)))

    def options(
        self, predictor: Predictor, most_error: float, devices: Collection[str] = CPU
    ) -> list[list[Option]]:
        """For each call the options on `devices` that are accurate enough and not beaten, with all its repeats and all that
        is alive."""
        found = [
            [
                replace(
                    o,
                    seconds=o.seconds * call.repeats,
                    step_bytes=self.live_bytes(step, o.takes, o.gives) + o.workspace_bytes,
                    device_step_bytes=self.device_live_bytes(step, o.takes, o.gives) + o.device_workspace_bytes,
                )
                for o in _allowed(predictor, call, most_error, devices)
            ]
            for step, call in enumerate(self.calls)
        ]
        if self._dense_on_device is not None:
            found[-1] = [o for o in found[-1] if (o.gives == DEVICE) == self._dense_on_device]
        return found

    def least_s(self, predictor: Predictor, most_error: float, devices: Collection[str] = CPU) -> float:
        """Seconds that no choice can go below; infinite where a call has no option."""
        return sum(
            call.repeats * min((o.seconds for o in _allowed(predictor, call, most_error, devices)), default=inf)
            for call in self.calls
        )

    def conversions(
        self, predictor: Predictor, devices: Collection[str] = CPU
    ) -> list[dict[tuple[str, str], Option]]:
        """For each call, and after the last, the conversions of its input from one layout to another."""
        found = []
        ends = [(call.node.inputs[0], call.in_shape, call.source, call.repeats) for call in self.calls]
        # the recombination before it is plain already, and without poolings nothing is repeated
        last = self.calls[-1]
        ends.append((last.node.name, last.out_shape, last.out_shape, 1))
        for step, (name, shape, source, repeats) in enumerate(ends):
            call = self.calls[min(step, len(self.calls) - 1)]
            if isinstance(call.node.layer, ConvMaxPoolFragments):  # it comes before the loop over its parts
                repeats //= call.node.layer.parts
            inside = step < len(self.calls)
            own: dict[tuple[str, str], Option] = {}
            for o in predictor.options(RELAYOUT, shape):
                if o.device == "gpu" and "gpu" not in devices:
                    continue
                # a slice is converted beside the tensor that it is of, which is held on
                made = 0 if o.gives == DEVICE else aligned(tensor_bytes(shape, o.gives))
                if not inside:
                    made = self._bytes(name, shape, o.gives)
                live = self._bytes(name, source, o.takes) + made
                device_live = _device_bytes(shape, o.takes) + _device_bytes(shape, o.gives)
                choice = replace(
                    o,
                    seconds=o.seconds * repeats,
                    step_bytes=(self._beside[step] if inside else 0) + live + o.workspace_bytes,
                    device_step_bytes=(self._device_beside[step] if inside else 0)
                    + device_live
                    + o.device_workspace_bytes,
                )
                if (o.takes, o.gives) not in own or choice.seconds < own[o.takes, o.gives].seconds:
                    own[o.takes, o.gives] = choice
            found.append(own)
        return found


def _allowed(predictor: Predictor, call: Call, most_error: float, devices: Collection[str]) -> Iterator[Option]:
    """Options of a call on `devices`; and where the GPU is among them, the CPU's of all that is no convolution."""
    light = "gpu" in devices and not isinstance(call.node.layer, Conv | ConvMaxPoolFragments)
    for o in predictor.best_options(call.node.layer, call.in_shape, most_error):
        if light or o.device in devices:
            yield o


def _device_bytes(shape: Shape, layout: str) -> int:
    return device_aligned(tensor_bytes(shape)) if layout == DEVICE else 0


def walks(network: Network, candidate: Candidate) -> Iterator[Walk]:
    """The candidate in every order that is worth considering, breadth first first."""
    input_shape(network, candidate)  # refuses a patch that cannot be
    for levels in schedules(network.lowered(candidate.pooling), candidate.batch):
        yield Walk(network, candidate, levels)


def least_live_bytes(network: Network, candidate: Candidate, devices: Collection[str] = CPU) -> int:
    """Bytes of the host's tensors alone: what no schedule and choice of primitives can go below."""
    if not network.chain:
        return GraphWalk(network.lowered(candidate.pooling), input_shape(network, candidate)).least_bytes
    if "gpu" in devices:  # all between input and output may lie there
        shape = input_shape(network, candidate)
        out = (candidate.batch, network.out_channels, *candidate.output)
        return max(aligned(tensor_bytes(shape)), aligned(tensor_bytes(out)))
    return min(walk.least_bytes for walk in walks(network, candidate))
