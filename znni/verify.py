"""Plan against truth: a patch of real size, compared on a sample of output blocks with the float64 reference.

Each block costs the reference its field of view, so blocks are small; they lie where, together, they reach every
fragment and every border. Errors are relative to the deviation of the reference output, not to its size: a network
whose outputs are nearly constant would hide them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from znni.errors import InvalidShape, RunFailed
from znni.geometry import input_size
from znni.layers import Triple, by_x
from znni.reference import reference, reference_flop

if TYPE_CHECKING:
    from znni.network import Network
    from znni.plan import Plan

#: Relative L2 error that a network's output may have, unless the user says otherwise.
DEFAULT_TOLERANCE = 2e-5
#: Output voxels per axis that a block has at least, where the patch has as many.
_LEAST = 4
#: The whole patch is compared where its input has at most this many times the voxels of a block's.
_WHOLE = 1.25
#: A block in the middle is compared as well where the reference needs at most this many operations for it.
_MIDDLE_FLOP = 1e11
#: Deviations below this part of the reference's norm are its own rounding: the output is constant.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Block:
    """A block of the output: batch element, first voxel (z, y, x) and size."""

    element: int
    start: Triple
    size: Triple

    def index(self, field_of_view: Triple = (1, 1, 1)) -> tuple[slice, ...]:
        """Index (batch, channel, z, y, x) of the block in the output or, given a field of view, of its input."""
        spans = zip(self.start, input_size(self.size, field_of_view), strict=True)
        return (slice(self.element, self.element + 1), slice(None), *(slice(a, a + n) for a, n in spans))


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes
    ----------
    reference : str
        What it was compared with, and on how many blocks.
    max_abs_error, relative_l2 : float
        Over all compared voxels; the second is the norm of the error over that of the reference output less its mean
        per channel. Infinite where the output holds NaN or infinite values anywhere.
    tolerance : float
        The `relative_l2` that was allowed.
    blocks : tuple of Block
        What was compared.
    passed : bool
        Whether it kept the tolerance.
    """

    reference: str
    max_abs_error: float
    relative_l2: float
    tolerance: float
    blocks: tuple[Block, ...]
    passed: bool

    def to_dict(self) -> dict:
        """As JSON data, which has no infinity: the largest double stands for it."""
        data = asdict(self) | {"blocks": [asdict(block) for block in self.blocks]}
        for key in ("max_abs_error", "relative_l2"):
            data[key] = min(data[key], sys.float_info.max)
        return data

    @classmethod
    def from_dict(cls, data: dict) -> Verification:
        """From what `to_dict` gave, possibly by way of JSON."""
        blocks = (Block(b["element"], tuple(b["start"]), tuple(b["size"])) for b in data["blocks"])
        errors = {
            key: math.inf if data[key] == sys.float_info.max else data[key] for key in ("max_abs_error", "relative_l2")
        }
        return cls(**(data | errors | {"blocks": tuple(blocks)}))


class Cache(Protocol):
    """Where results are kept by plan digest: `znni.store.Store`."""

    def verification(self, plan: str) -> dict | None:
        """What is kept."""

    def save_verification(self, plan: str, result: dict) -> None:
        """Keep it."""


def verify(plan: Plan, *, tolerance: float = DEFAULT_TOLERANCE, seed: int = 0, store: Cache | None = None) -> dict:
    """`compare` for a plan that is bound to its network, as `Verification.to_dict` gives it.

    With a `store`, a plan digest is compared only once, and the tolerance asked for now judges what was found then.
    """
    known = None if store is None else store.verification(plan.digest)
    if known is not None:
        return known | {"tolerance": tolerance, "passed": known["relative_l2"] <= tolerance}
    network, patch = plan.bound_network(), plan.input_patch
    found = compare(network, plan.run, patch, batch=plan.batch, tolerance=tolerance, seed=seed).to_dict()
    if store is not None:
        store.save_verification(plan.digest, found)
    return found


def compare(
    network: Network,
    run: Callable[[np.ndarray], np.ndarray],
    input_patch: Triple,
    *,
    batch: int = 1,
    tolerance: float = DEFAULT_TOLERANCE,
    seed: int = 0,
    x: np.ndarray | None = None,
    threads: int | None = None,
) -> Verification:
    """Run a patch once, and compare a sample of its output with the float64 reference.

    Parameters
    ----------
    network : Network
    run : callable
        From float32 (batch, in_channels, *input_patch) to (batch, out_channels, *output_patch); it leaves its argument
        as it is.
    input_patch : (z, y, x)
        At least the field of view.
    batch : int
    tolerance : float
        Relative L2 error allowed.
    seed : int
        Of the random input (standard normal).
    x : ndarray, optional
        The input, in place of a random one.
    threads : int, optional
        Of the reference; by default one per core.

    Returns
    -------
    Verification

    Raises
    ------
    InvalidShape
        Where the patch is smaller than the field of view, or `x` has another shape.
    RunFailed
        Where `run` returns another shape than the network has.
    """
    fov, shape = network.field_of_view, (batch, network.in_channels, *input_patch)
    output = network.output_patch(input_patch)
    if min(output) < 1:
        raise InvalidShape(
            f"input patch {by_x(input_patch)} is smaller than the field of view {by_x(fov)} of {network.name}"
        )
    if x is None:
        x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    elif x.shape != shape:
        raise InvalidShape(f"the input to verify with must be {by_x(shape)}, got {by_x(x.shape)}")
    out, expected = run(x), (batch, network.out_channels, *output)
    if out.shape != expected:
        raise RunFailed(f"running {network.name} on {by_x(shape)} gave {by_x(out.shape)}, expected {by_x(expected)}")
    if not np.isfinite(out).all():
        method = "none: the output holds NaN or infinite values"
        return Verification(method, math.inf, math.inf, tolerance, (), False)
    if not network.sliding:  # strides and padding see the whole patch, and norms the whole batch
        truth = reference(network, x, threads=threads)
        max_abs_error, relative_l2 = errors([(out, truth)])
        blocks = tuple(Block(element, (0, 0, 0), tuple(output)) for element in range(batch))
        method = f"float64, all of {by_x(output)}"
        return Verification(method, max_abs_error, relative_l2, tolerance, blocks, relative_l2 <= tolerance)
    size = block_size(output, network.step)
    middle = reference_flop(network, input_size(size, fov)) <= _MIDDLE_FLOP
    blocks = sample_blocks(output, network.step, fov, batch=batch, middle=middle)
    truths = [reference(network, x[block.index(fov)], threads=threads) for block in blocks]
    max_abs_error, relative_l2 = errors(zip((out[block.index()] for block in blocks), truths, strict=True))
    count = f"{len(blocks)} block{'s' if len(blocks) > 1 else ''} of {by_x(blocks[0].size)}"
    passed = relative_l2 <= tolerance
    return Verification(f"float64 overlap-save, {count}", max_abs_error, relative_l2, tolerance, blocks, passed)


def block_size(output: Triple, step: Triple) -> Triple:
    """Size of a block: along each axis a multiple of `step`, hence all fragments, or as much as the patch has."""
    return tuple(min(n, s * -(-_LEAST // s)) for n, s in zip(output, step, strict=True))


def sample_blocks(
    output: Triple, step: Triple, field_of_view: Triple, *, batch: int = 1, middle: bool = True
) -> tuple[Block, ...]:
    """Blocks of an output patch that together reach every fragment and every border.

    Parameters
    ----------
    output : (z, y, x)
        Output patch.
    step : (z, y, x)
        The lattice on which fragments repeat (`Network.step`).
    field_of_view : (z, y, x)
    batch : int
        Of each element after the first one block is taken, by turns at the one and the other corner.
    middle : bool
        Whether to take a block in the middle as well.

    Returns
    -------
    tuple of Block
        Blocks at two opposite corners of the first element (each touches three faces, and has every residue modulo
        `step`), and one in the middle; or the whole patch, where that costs the reference hardly more than one block.
    """
    size = block_size(output, step)
    whole, one = (math.prod(input_size(n, field_of_view)) for n in (output, size))
    if whole <= _WHOLE * one:
        return tuple(Block(element, (0, 0, 0), tuple(output)) for element in range(batch))
    low, high = (0, 0, 0), tuple(n - s for n, s in zip(output, size, strict=True))
    starts = [(0, low), (0, high)]
    if middle:
        starts.append((0, tuple(start // 2 for start in high)))
    starts += [(element, high if element % 2 else low) for element in range(1, batch)]
    return tuple(Block(element, start, size) for element, start in starts)


def errors(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Largest absolute error, and relative L2 error, of pairs (result, truth) of arrays (batch, channel, z, y, x).

    The latter is relative to the truth's deviation from its mean per channel; where the truth is constant, to its norm,
    and where it is zero, infinite unless the result is zero as well.
    """
    found, truth = (
        np.concatenate([np.moveaxis(a, 1, 0).reshape(a.shape[1], -1) for a in arrays], axis=1)
        for arrays in zip(*pairs, strict=True)
    )
    difference = found.astype(np.float64) - truth
    error, scale = np.linalg.norm(difference), np.linalg.norm(truth - truth.mean(axis=1, keepdims=True))
    norm = np.linalg.norm(truth)
    if scale <= _ROUNDING * norm:
        scale = norm
    relative = error / scale if scale else math.inf if error else 0.0
    return float(np.abs(difference).max()), float(relative)
