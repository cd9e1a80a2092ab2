"""Which cuts of a convolution into sub-layers are worth timing: for shares of the layer's bytes, what is copied least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod

import numpy as np

from znni.gpu.sublayers import Cut, Sublayers, layer_bytes
from znni.layers import Conv, Shape

#: Shares of a layer's bytes that its pieces on the device may take.
SHARES = (1 / 4, 1 / 16, 1 / 64)
#: And what inputs, results and weights may take in any case: smaller pieces are all overhead.
_LEAST_BYTES = 1 << 15
#: What a step costs to enqueue, as bytes that the link between host and device could copy meanwhile.
_STEP_BYTES = 1 << 22
#: What each byte that a step reads and writes on the device costs likewise: pieces of channels are transformed, or added up,
#: again and again.
_DEVICE_SHARE = 1 / 8
#: Pairs of pieces of output and input channels at most: each has an operator of its own.
_MOST_PAIRS = 64


@dataclass(frozen=True)
class Option:
    """A cut, whether all weights stay on the device, and the bytes that it is meant to keep to there."""

    cut: Cut
    resident: bool
    most_bytes: float


def cuts(layer: Conv, shape: Shape, filled: float = 1.0) -> list[Option]:
    """No cut, then one for each of `SHARES`; fewer where some are the same.

    Inputs, results and weights fill that part of a share; the rest is for what convolves to work in.
    """
    found = {Cut(): Option(Cut(), True, inf)}
    for share in SHARES:
        option = _best(layer, shape, share, filled)
        found.setdefault(option.cut, option)
    return list(found.values())


@lru_cache(maxsize=4096)
def _best(layer: Conv, shape: Shape, share: float, filled: float) -> Option:
    """The cut that copies least, of those that take at most that share of the layer's bytes; else the one that takes least."""
    out_shape = layer.output_shape(shape)
    most = max(share * layer_bytes(layer, shape), _LEAST_BYTES / filled)
    weights = 4 * prod(layer.kernel) * shape[1] * out_shape[1]
    keep = weights <= filled * most / 4
    lengths = (shape[0], out_shape[1], shape[1], 1 if layer.padding[0] else out_shape[2])
    pieces = np.meshgrid(*map(_doubling, lengths), indexing="ij")
    sizes = [-(-n // count) for n, count in zip(lengths, pieces, strict=True)]
    batches, outs, ins, slabs = (-(-n // size) for n, size in zip(lengths, sizes, strict=True))
    planes = sizes[3] if not layer.padding[0] else np.full_like(slabs, out_shape[2])
    taken = np.where(slabs > 1, (planes - 1) * layer.stride[0] + layer.extent[0], shape[2])
    x = 4 * sizes[0] * sizes[2] * taken * (shape[3] * shape[4])
    result = 4 * sizes[0] * sizes[1] * planes * (out_shape[3] * out_shape[4])
    uploads = batches * slabs * (ins + (outs - 1) * np.maximum(0, ins - 2))
    results, steps = batches * slabs * outs, batches * slabs * outs * ins
    held = x * np.minimum(2, batches * slabs * ins) + result * (np.minimum(2, results) + (ins > 1))
    held += weights if keep else weights // (outs * ins) * np.minimum(2, outs * ins)
    moved = np.maximum(uploads * x, results * result) + x + result + _STEP_BYTES * steps
    moved += (_DEVICE_SHARE * steps * (x + result)).astype(np.int64)
    moved += 0 if keep else weights * batches * slabs
    few = outs * ins <= _MOST_PAIRS
    fits = few & (held <= filled * most)
    chosen, by = (fits, moved) if fits.any() else (few, held)
    at = np.argmin(np.where(chosen, by, np.iinfo(np.int64).max))
    cut = Cut(*(int(n.flat[at]) for n in (batches, outs, ins, slabs)))
    return Option(cut, keep or cut.out * cut.into == 1, most)


def _doubling(n: int) -> list[int]:
    """1, 2, 4, .. below `n`, and `n`."""
    return [1 << i for i in range((n - 1).bit_length())] + [n]


def copied_bytes(sub: Sublayers) -> tuple[int, int]:
    """Bytes of input and of results that are copied between host and device."""
    steps = sub.steps()
    up = sum(4 * prod(sub.x_shape(step.into)) for step in steps if step.upload)
    down = sum(4 * prod(sub.result_shape(step.out)) for step in steps if step.last)
    return up, down
