"""Flood-filling of one object: a network whose field of view moves to wherever the object goes on.

Queue, movement and update are those of google/ffn ``ffn/inference/movement.py`` and ``inference.py`` (M. Januszewski et al.,
"High-precision automated reconstruction of neurons with flood-filling networks", 2018): after each step the faces of a box of
`deltas` around the centre are looked at; where the largest logit of a face passes the threshold, its place is put into the
queue, the surest first; places are visited once on a lattice of `deltas`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from znni.errors import InvalidShape
from znni.layers import Triple, by_x


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p / (1 - p))


@dataclass(frozen=True)
class FloodFillOptions:
    """Probabilities and steps of the FIB-25 example of google/ffn.

    `seed` is where it starts, `pad` what is not visited yet; a face is moved to from `move` on, and a voxel is the object's
    from `segment` on. Where more than `disconnected` of a step's voxels pass `move`, logits below one half do not rise again.
    """

    deltas: Triple = (8, 8, 8)
    seed: float = 0.95
    pad: float = 0.05
    move: float = 0.9
    segment: float = 0.6
    disconnected: float = 0.005


@dataclass(frozen=True)
class FloodFill:
    """What a flood-fill found.

    Attributes
    ----------
    mask : ndarray of bool (z, y, x)
        The object.
    logits : ndarray of float32 (z, y, x)
        NaN where the network did not look.
    steps : int
        Calls of the network.
    network_s, wall_s : float
        Seconds in the network, and in all.
    patch : (z, y, x)
        The field of view.
    """

    mask: np.ndarray
    logits: np.ndarray
    steps: int
    network_s: float
    wall_s: float
    patch: Triple

    @property
    def voxels_per_s(self) -> float:
        """Voxels that the network computed, per second of the loop."""
        return self.steps * math.prod(self.patch) / self.wall_s


def faces(logits: np.ndarray, deltas: Triple, threshold: float) -> list[tuple[float, Triple]]:
    """The largest logit of each face of the box of `deltas` around the centre that passes `threshold`, with its offset from the
    centre; the largest first."""
    centre = tuple(n // 2 for n in logits.shape)
    found = []
    for axis in range(3):
        for way in (-1, 1):
            index = [slice(c - d, c + d + 1) for c, d in zip(centre, deltas, strict=True)]
            index[axis] = slice(centre[axis] + way * deltas[axis], centre[axis] + way * deltas[axis] + 1)
            face = logits[tuple(index)]
            at = np.unravel_index(np.argmax(face), face.shape)
            score = float(face[at])
            if score >= threshold:
                offset = [int(a) - d for a, d in zip(at, deltas, strict=True)]
                offset[axis] = way * deltas[axis]
                found.append((score, tuple(offset)))
    return sorted(found, reverse=True)


class _Places:
    """Where to go next, each place of the lattice once."""

    def __init__(self, start: Triple, deltas: Triple):
        self._origin = tuple(s - d // 2 for s, d in zip(start, deltas, strict=True))
        self._deltas = deltas
        self._queue: deque[Triple] = deque([start])
        self._done: set[Triple] = set()

    def __iter__(self) -> Iterator[Triple]:
        while self._queue:
            place = self._queue.popleft()
            cell = tuple((p - o) // max(d, 1) for p, o, d in zip(place, self._origin, self._deltas, strict=True))
            if cell not in self._done:
                self._done.add(cell)
                yield place

    def add(self, place: Triple) -> None:
        self._queue.append(place)


def flood_fill(
    run: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    start: Sequence[int],
    patch: Triple = (33, 33, 33),
    options: FloodFillOptions | None = None,
    most_steps: int | None = None,
) -> FloodFill:
    """Fill the object that holds the voxel `start`.

    Parameters
    ----------
    run : callable
        From float32 (1, 2, *patch), image and logits, to the new logits (1, 1, *patch): ``plan.run``, or ``network.run``.
    image : ndarray of float32 (z, y, x)
        Normalised as the network was trained.
    start : (z, y, x)
        At least half a patch from every border.
    patch : (z, y, x)
        The network's field of view, odd along each axis.
    options : FloodFillOptions, optional
    most_steps : int, optional
        After which it stops.

    Raises
    ------
    InvalidShape
        Where the patch is larger than the image, even, or too small for the steps, or leaves the image at the start.
    """
    options, begin = options or FloodFillOptions(), time.perf_counter()
    half = tuple(n // 2 for n in patch)
    if any(n % 2 == 0 or h < d for n, h, d in zip(patch, half, options.deltas, strict=True)):
        raise InvalidShape(f"a patch that moves by {by_x(options.deltas)} must be odd and hold it, got {by_x(patch)}")
    if image.ndim != 3 or not _inside(start, half, image.shape):
        raise InvalidShape(
            f"a patch of {by_x(patch)} around {by_x(tuple(start))} leaves the image of {by_x(image.shape)}; "
            "start further inside"
        )
    logits = np.full(image.shape, np.nan, np.float32)
    logits[tuple(start)] = logit(options.seed)
    places = _Places(tuple(map(int, start)), options.deltas)
    x = np.empty((1, 2, *patch), np.float32)
    steps, network_s = 0, 0.0
    for place in places:
        if not _inside(place, half, image.shape) or (steps and not logits[place] >= logit(options.move)):
            continue
        here = tuple(slice(p - h, p + h + 1) for p, h in zip(place, half, strict=True))
        x[0, 0], before = image[here], logits[here]
        x[0, 1] = np.where(np.isnan(before), np.float32(logit(options.pad)), before)
        called = time.perf_counter()
        after = run(x)[0, 0].copy()
        network_s += time.perf_counter() - called
        if np.mean(after >= logit(options.move)) > options.disconnected:
            stay = (before < 0) & (after > before)  # false where it was not visited: a comparison with NaN
            after[stay] = before[stay]
        logits[here] = after
        steps += 1
        if most_steps is not None and steps >= most_steps:
            break
        for _, offset in faces(after, options.deltas, logit(options.move)):
            places.add(tuple(p + o for p, o in zip(place, offset, strict=True)))
    mask = logits >= np.float32(logit(options.segment))
    return FloodFill(mask, logits, steps, network_s, time.perf_counter() - begin, tuple(patch))


def _inside(place: Sequence[int], half: Triple, size: tuple[int, ...]) -> bool:
    return all(h <= p < n - h for p, h, n in zip(place, half, size, strict=True))
