"""What a reader makes of a network file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from znni.layers import Triple
from znni.nodes import Node

#: float32 arrays ``weight`` (out, in, kz, ky, kx) and ``bias`` (out,) by node name; kernels are cross-correlated.
Weights = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Description:
    """A network as its file has it.

    Attributes
    ----------
    nodes : tuple of Node
        In an order in which each follows what it reads.
    in_channels : int
    weights : dict or None
        None where the file holds none.
    unbiased : frozenset of str
        Convolutions whose bias is zero by the file's meaning, for files that hold no weights.
    sliding, patch, fixed
        As in `znni.network.Network`.
    """

    nodes: tuple[Node, ...]
    in_channels: int
    weights: Weights | None = None
    unbiased: frozenset[str] = field(default_factory=frozenset)
    sliding: bool = True
    patch: Triple | None = None
    fixed: bool = False
