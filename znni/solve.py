"""The exact choice of a primitive, config and layouts for each node, given patch, schedule, threads and a limit on bytes.

The time of a program is the sum over its nodes; its memory is the largest, over steps, of live tensors plus workspace, plus
everything resident. So for each level that the arena may reach, every node keeps its options whose step stays below it, and
what is left is a shortest path through the layouts of the tensors between nodes (where two nodes differ, a conversion lies
between them), under a bound on the sum of resident bytes: a multiple-choice knapsack, solved exactly by merging Pareto
fronts, one for each layout. (Without layouts, and with one shared workspace, it is solved as an integer program by mu-cuDNN,
Oyama et al., CLUSTER 2018.)

A GPU's memory is bounded in the same way beside the host's: "device" is a layout like the others, whose conversions are the
copies to and from it, levels are pairs, and so are the sums of resident bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from znni.layouts import DEVICE, PLAIN
from znni.primitives.base import Config


@dataclass(frozen=True)
class Choice:
    """How one node is computed."""

    primitive: str
    config: Config


@dataclass(frozen=True)
class Option:
    """One way to compute a node: its predicted time, all calls together, and the bytes that it takes.

    `step_bytes` is what the arena holds while it runs: live tensors and workspace, `device_step_bytes` what the one on the
    GPU does. `takes` and `gives` are its layouts; `basis` is where `seconds` comes from: "measured", "scaled" from a
    measurement, or "model"; `error` is the relative L2 error to expect of the layer.
    """

    choice: Choice
    seconds: float
    step_bytes: int
    resident_bytes: int
    takes: str = PLAIN
    gives: str = PLAIN
    basis: str = "model"
    workspace_bytes: int = 0
    error: float = 0.0
    device_step_bytes: int = 0
    device_resident_bytes: int = 0
    device_workspace_bytes: int = 0

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "gpu"."""
        return self.choice.primitive.partition(".")[0]


#: Conversions that may come before a node, by (layout that there is, layout that is taken).
Conversions = Mapping[tuple[str, str], Option]


@dataclass(frozen=True)
class Solution:
    """The chosen option of every node, in order; before each the conversion of its input, or None; and one after the last."""

    options: tuple[Option, ...]
    conversions: tuple[Option | None, ...]
    seconds: float
    arena_bytes: int
    resident_bytes: int
    device_arena_bytes: int = 0
    device_resident_bytes: int = 0

    @property
    def parts(self) -> tuple[Solution, ...]:
        """Itself: it is not split."""
        return (self,)

    @property
    def total_bytes(self) -> int:
        """Arena and resident bytes of the host together."""
        return self.arena_bytes + self.resident_bytes

    @property
    def device_bytes(self) -> int:
        """Arena and resident bytes of the GPU together."""
        return self.device_arena_bytes + self.device_resident_bytes


#: (resident bytes, the GPU's, seconds, (last option, conversion before it, the same of what came before))
_Entry = tuple[int, int, float, tuple | None]


def _front(entries: Sequence[_Entry]) -> list[_Entry]:
    """Entries that no other beats in resident bytes of either kind and seconds."""
    front: list[_Entry] = []
    flat = not any(entry[1] for entry in entries)  # then the last one kept decides
    for entry in sorted(entries, key=lambda e: e[:3]):  # those before it need no more of the host's
        rivals = front[-1:] if flat else front
        if not any(kept[1] <= entry[1] and kept[2] <= entry[2] for kept in rivals):
            front.append(entry)
    return front


def _fastest(entries: Sequence[_Entry]) -> list[_Entry]:
    """The entry of least seconds alone."""
    return [min(entries, key=lambda e: (e[2], e[0], e[1]))]


def smallest_bytes(nodes: Sequence[Sequence[Option]]) -> int:
    """A number of bytes that surely holds some choice of plain layouts: all nodes at their least resident, then least step."""
    least = []
    for own in nodes:
        plain = [o for o in own if o.takes == o.gives == PLAIN]
        if not plain:
            return sys.maxsize
        least.append(min(plain, key=lambda o: (o.resident_bytes, o.step_bytes)))
    return max(o.step_bytes for o in least) + sum(o.resident_bytes for o in least)


def undominated(options: Sequence[Option]) -> list[Option]:
    """Options that no other of the same layouts beats, or equals, in seconds and all kinds of bytes."""
    kept: list[Option] = []
    for o in sorted(options, key=lambda o: (o.seconds, o.step_bytes, o.resident_bytes)):
        if not any(
            k.takes == o.takes
            and k.gives == o.gives
            and k.step_bytes <= o.step_bytes
            and k.resident_bytes <= o.resident_bytes
            and k.device_step_bytes <= o.device_step_bytes
            and k.device_resident_bytes <= o.device_resident_bytes
            for k in kept
        ):
            kept.append(o)
    return kept


def solve(
    nodes: Sequence[Sequence[Option]],
    limit_bytes: int,
    conversions: Sequence[Conversions] | None = None,
    below_s: float = float("inf"),
    device_limit_bytes: int = 0,
    kept_on_host: Collection[int] = (),
) -> Solution | None:
    """The fastest choice within `limit_bytes`, and `device_limit_bytes` on the GPU, or None where there is none.

    Parameters
    ----------
    nodes : sequence of sequences of Option
        The options of each node, in order. The first takes a plain input.
    limit_bytes : int
        Of arena and resident bytes together.
    conversions : sequence of mappings, optional
        For each node, the conversions that may come before it; and one mapping more, for those after the last, whose
        result must be plain. By default there are none, and nodes must agree.
    below_s : float
        Only what is faster than this is wanted.
    kept_on_host : collection of int
        Numbers of nodes whose input must not come to them on the device (though it may be converted to that).
    """
    conversions = conversions or [{}] * (len(nodes) + 1)
    nodes = [undominated(own) for own in nodes]
    every = [o for own in (*nodes, *(own.values() for own in conversions)) for o in own]
    levels = sorted({o.step_bytes for o in every if o.step_bytes <= limit_bytes}, reverse=True)
    device_levels = {o.device_step_bytes for o in every if o.device_step_bytes <= device_limit_bytes}
    best: Solution | None = None
    for level, device_level in product(levels, sorted(device_levels, reverse=True)):

        def below(o: Option, level: int = level, device_level: int = device_level) -> bool:
            return o.step_bytes <= level and o.device_step_bytes <= device_level

        allowed = [[o for o in own if below(o)] for own in nodes]
        # where a node is left without options, or all that are left are too slow, a lower level allows no more
        if not all(allowed) or sum(min(o.seconds for o in own) for own in allowed) >= below_s:
            if device_level == max(device_levels):
                break
            continue
        between = [{k: o for k, o in own.items() if below(o)} for own in conversions]
        # the fastest path of all may fit as it is; only where it does not is there something to weigh
        resident_limits = limit_bytes - level, device_limit_bytes - device_level
        found = _path(allowed, between, (sys.maxsize, sys.maxsize), _fastest, kept_on_host)
        if found and found.seconds < below_s:
            if found.resident_bytes <= resident_limits[0] and found.device_resident_bytes <= resident_limits[1]:
                return found  # a lower level allows nothing faster
            found = _path(allowed, between, resident_limits, _front, kept_on_host)
            if found and found.seconds < below_s:
                best, below_s = found, found.seconds
    return best


def _path(
    nodes: Sequence[Sequence[Option]],
    conversions: Sequence[Conversions],
    resident_limits: tuple[int, int],
    kept: Callable[[Sequence[_Entry]], list[_Entry]],
    kept_on_host: Collection[int],
) -> Solution | None:
    limit, device_limit = resident_limits
    fronts: dict[str, list[_Entry]] = {PLAIN: [(0, 0, 0.0, None)]}
    for number, (own, before) in enumerate(zip(nodes, conversions, strict=False)):
        if number in kept_on_host:
            fronts.pop(DEVICE, None)
        merged: dict[str, list[_Entry]] = {}
        for o in own:
            for resident, device_resident, seconds, path, conversion in _arriving(fronts, before, o.takes):
                held, device_held = resident + o.resident_bytes, device_resident + o.device_resident_bytes
                if held <= limit and device_held <= device_limit:
                    entry = (held, device_held, seconds + o.seconds, (o, conversion, path))
                    merged.setdefault(o.gives, []).append(entry)
        fronts = {layout: kept(entries) for layout, entries in merged.items()}
    ends = [end for end in _arriving(fronts, conversions[-1], PLAIN) if end[0] <= limit and end[1] <= device_limit]
    if not ends:
        return None
    resident, device_resident, seconds, path, last = min(ends, key=lambda end: end[2])
    chosen: list[Option] = []
    before_each: list[Option | None] = [last]
    while path is not None:
        option, conversion, path = path
        chosen.append(option)
        before_each.append(conversion)
    chosen.reverse()
    before_each.reverse()
    steps = (*chosen, *filter(None, before_each))
    arena, device_arena = max(o.step_bytes for o in steps), max(o.device_step_bytes for o in steps)
    return Solution(tuple(chosen), tuple(before_each), seconds, arena, resident, device_arena, device_resident)


def _arriving(
    fronts: Mapping[str, list[_Entry]], conversions: Conversions, layout: str
) -> list[tuple[int, int, float, tuple | None, Option | None]]:
    """What can be in `layout` at a node: entries that are, and those that are converted to it."""
    arriving = [(*entry, None) for entry in fronts.get(layout, ())]
    for (have, taken), o in conversions.items():
        if taken == layout:
            for resident, device_resident, seconds, path in fronts.get(have, ()):
                held = resident + o.resident_bytes, device_resident + o.device_resident_bytes
                arriving.append((*held, seconds + o.seconds, path, o))
    return arriving
