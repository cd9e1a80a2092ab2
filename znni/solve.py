"""The exact choice of a primitive and config for each node, given patch, batch, threads and a limit on bytes.

The time of a program is the sum over its nodes; its memory is the largest, over steps, of live tensors plus workspace, plus
everything resident. So for each level that the arena may reach, every node keeps its options whose step stays below it, and
what is left is a multiple-choice knapsack over resident bytes, solved exactly by merging Pareto fronts. (The same problem,
with one shared workspace, is solved as an integer program by mu-cuDNN, Oyama et al., CLUSTER 2018.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znni.program import Choice


@dataclass(frozen=True)
class Option:
    """One way to compute a node: its predicted time and the bytes that it takes."""

    choice: Choice
    seconds: float
    workspace_bytes: int
    resident_bytes: int
    #: Where `seconds` comes from: "measured", "scaled" from a measurement, or "model".
    basis: str = "model"


@dataclass(frozen=True)
class Solution:
    """The chosen option of every node, in order."""

    options: tuple[Option, ...]
    seconds: float
    arena_bytes: int
    resident_bytes: int

    @property
    def total_bytes(self) -> int:
        """Arena and resident bytes together."""
        return self.arena_bytes + self.resident_bytes


def _front(options: Sequence[tuple[int, float, tuple]]) -> list[tuple[int, float, tuple]]:
    """(resident bytes, seconds, ..) entries that no other beats in both."""
    front: list[tuple[int, float, tuple]] = []
    for entry in sorted(options, key=lambda e: (e[0], e[1])):
        if not front or entry[1] < front[-1][1]:
            front.append(entry)
    return front


def smallest_bytes(live_bytes: Sequence[int], options: Sequence[Sequence[Option]]) -> int:
    """A number of bytes that surely holds some choice: all nodes at their least resident, then least workspace."""
    least = [min(node, key=lambda o: (o.resident_bytes, o.workspace_bytes)) for node in options]
    arena = max(live + o.workspace_bytes for live, o in zip(live_bytes, least, strict=True))
    return arena + sum(o.resident_bytes for o in least)


def solve(live_bytes: Sequence[int], options: Sequence[Sequence[Option]], limit_bytes: int) -> Solution | None:
    """The fastest choice within `limit_bytes`, or None where there is none.

    Parameters
    ----------
    live_bytes : sequence of int
        Bytes of tensors alive at each node's step (`znni.program.live_tensor_bytes`).
    options : sequence of sequences of Option
        The candidates of each node.
    """
    levels = sorted(
        {live + o.workspace_bytes for live, node in zip(live_bytes, options, strict=True) for o in node}, reverse=True
    )
    best: Solution | None = None
    floor = max(live_bytes)
    for level in levels:
        if level < floor:
            break
        if level > limit_bytes:
            continue
        allowed = [
            [o for o in node if live + o.workspace_bytes <= level]
            for live, node in zip(live_bytes, options, strict=True)
        ]
        if not all(allowed):
            break  # a lower level allows no more
        if best and sum(min(o.seconds for o in node) for node in allowed) >= best.seconds:
            break  # nor is it faster
        found = _knapsack(live_bytes, allowed, limit_bytes - level)
        if found and (best is None or found.seconds < best.seconds):
            best = found
    return best


def _knapsack(live_bytes: Sequence[int], options: Sequence[Sequence[Option]], resident_limit: int) -> Solution | None:
    front: list[tuple[int, float, tuple]] = [(0, 0.0, ())]
    for node in options:
        own = _front([(o.resident_bytes, o.seconds, (o,)) for o in node])
        merged = [
            (r0 + r1, s0 + s1, chosen + o) for r0, s0, chosen in front for r1, s1, o in own if r0 + r1 <= resident_limit
        ]
        front = _front(merged)
        if not front:
            return None
    resident, seconds, chosen = front[-1]
    arena = max(live + o.workspace_bytes for live, o in zip(live_bytes, chosen, strict=True))
    return Solution(chosen, seconds, arena, resident)
