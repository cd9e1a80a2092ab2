"""The exact choice of a primitive, config and layouts for each node, given patch, schedule, threads and a limit on bytes.

The time of a program is the sum over its nodes; its memory is the largest, over steps, of live tensors plus workspace, plus
everything resident. So for each level that the arena may reach, every node keeps its options whose step stays below it, and
what is left is a shortest path through the layouts of the tensors between nodes (where two nodes differ, a conversion lies
between them), under a bound on the sum of resident bytes: a multiple-choice knapsack, solved exactly by merging Pareto
fronts, one for each layout. (Without layouts, and with one shared workspace, it is solved as an integer program by mu-cuDNN,
Oyama et al., CLUSTER 2018.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from znni.layouts import PLAIN
from znni.primitives.base import Config


@dataclass(frozen=True)
class Choice:
    """How one node is computed."""

    primitive: str
    config: Config


@dataclass(frozen=True)
class Option:
    """One way to compute a node: its predicted time, all calls together, and the bytes that it takes.

    `step_bytes` is what the arena holds while it runs: live tensors and workspace. `takes` and `gives` are its layouts;
    `basis` is where `seconds` comes from: "measured", "scaled" from a measurement, or "model"; `error` is the relative L2
    error to expect of the layer.
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

    @property
    def total_bytes(self) -> int:
        """Arena and resident bytes together."""
        return self.arena_bytes + self.resident_bytes


#: (resident bytes, seconds, (last option, conversion before it, the same of what came before))
_Entry = tuple[int, float, tuple | None]


def _front(entries: Sequence[_Entry]) -> list[_Entry]:
    """Entries that no other beats in both resident bytes and seconds."""
    front: list[_Entry] = []
    for entry in sorted(entries, key=lambda e: (e[0], e[1])):
        if not front or entry[1] < front[-1][1]:
            front.append(entry)
    return front


def _fastest(entries: Sequence[_Entry]) -> list[_Entry]:
    """The entry of least seconds alone."""
    return [min(entries, key=lambda e: (e[1], e[0]))]


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
    """Options that no other of the same layouts beats, or equals, in seconds and both kinds of bytes."""
    kept: list[Option] = []
    for o in sorted(options, key=lambda o: (o.seconds, o.step_bytes, o.resident_bytes)):
        if not any(
            k.takes == o.takes
            and k.gives == o.gives
            and k.step_bytes <= o.step_bytes
            and k.resident_bytes <= o.resident_bytes
            for k in kept
        ):
            kept.append(o)
    return kept


def solve(
    nodes: Sequence[Sequence[Option]],
    limit_bytes: int,
    conversions: Sequence[Conversions] | None = None,
    below_s: float = float("inf"),
) -> Solution | None:
    """The fastest choice within `limit_bytes`, or None where there is none.

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
    """
    conversions = conversions or [{}] * (len(nodes) + 1)
    nodes = [undominated(own) for own in nodes]
    levels = {o.step_bytes for own in nodes for o in own}
    levels |= {o.step_bytes for own in conversions for o in own.values()}
    best: Solution | None = None
    for level in sorted(levels, reverse=True):
        if level > limit_bytes:
            continue
        allowed = [[o for o in own if o.step_bytes <= level] for own in nodes]
        if not all(allowed):
            break  # a lower level allows no more
        if sum(min(o.seconds for o in own) for own in allowed) >= below_s:
            break  # nor is it faster
        between = [{k: o for k, o in own.items() if o.step_bytes <= level} for own in conversions]
        # the fastest path of all may fit as it is; only where it does not is there something to weigh
        found = _path(allowed, between, sys.maxsize, _fastest)
        if found and found.resident_bytes > limit_bytes - level:
            found = found.seconds < below_s and _path(allowed, between, limit_bytes - level, _front)
        if found and found.seconds < below_s:
            best, below_s = found, found.seconds
    return best


def _path(
    nodes: Sequence[Sequence[Option]],
    conversions: Sequence[Conversions],
    resident_limit: int,
    kept: Callable[[Sequence[_Entry]], list[_Entry]],
) -> Solution | None:
    fronts: dict[str, list[_Entry]] = {PLAIN: [(0, 0.0, None)]}
    for own, before in zip(nodes, conversions, strict=False):
        merged: dict[str, list[_Entry]] = {}
        for o in own:
            for resident, seconds, path, conversion in _arriving(fronts, before, o.takes, resident_limit):
                if resident + o.resident_bytes <= resident_limit:
                    entry = (resident + o.resident_bytes, seconds + o.seconds, (o, conversion, path))
                    merged.setdefault(o.gives, []).append(entry)
        fronts = {layout: kept(entries) for layout, entries in merged.items()}
    ends = _arriving(fronts, conversions[-1], PLAIN, resident_limit)
    if not ends:
        return None
    resident, seconds, path, last = min(ends, key=lambda end: end[1])
    chosen: list[Option] = []
    before_each: list[Option | None] = [last]
    while path is not None:
        option, conversion, path = path
        chosen.append(option)
        before_each.append(conversion)
    chosen.reverse()
    before_each.reverse()
    arena = max(o.step_bytes for o in (*chosen, *filter(None, before_each)))
    return Solution(tuple(chosen), tuple(before_each), seconds, arena, resident)


def _arriving(
    fronts: Mapping[str, list[_Entry]], conversions: Conversions, layout: str, resident_limit: int
) -> list[tuple[int, float, tuple | None, Option | None]]:
    """What can be in `layout` at a node: entries that are, and those that are converted to it."""
    arriving = [(*entry, None) for entry in fronts.get(layout, ())]
    for (have, taken), o in conversions.items():
        if taken == layout:
            for resident, seconds, path in fronts.get(have, ()):
                if resident + o.resident_bytes <= resident_limit:
                    arriving.append((resident + o.resident_bytes, seconds + o.seconds, path, o))
    return arriving
