"""A graph with fewer passes over memory and the same result: scales and activations merged into what feeds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from znni.layers import LINEAR, Activate, Activation, Add, Affine, Conv, ConvTranspose, GroupedConv, Layer, Norm
from znni.nodes import Node

Weights = Mapping[str, Mapping[str, np.ndarray]]
_CONVOLUTIONS = (Conv, GroupedConv, ConvTranspose)


def fold(nodes: Sequence[Node], weights: Weights) -> tuple[tuple[Node, ...], dict[str, dict[str, np.ndarray]]]:
    """Merge each `Affine` and activation into the layer that it alone reads.

    Parameters
    ----------
    nodes : sequence of Node
    weights : mapping of node name to {name: float32 array}

    Returns
    -------
    nodes : tuple of Node
        A merged node has the name of the later one.
    weights : dict
        Products and sums are made in float64 and rounded once.
    """
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    made: dict[str, Node] = {}
    found = {name: dict(own) for name, own in weights.items()}
    renamed: dict[str, str] = {}
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        before = made.get(node.inputs[0])
        if isinstance(node.layer, Activate) and node.layer.activation == LINEAR and before is not None:
            renamed[node.name] = before.name
            readers[before.name] += readers.get(node.name, 0) - 1
            continue
        merged = None
        if before is not None and readers[before.name] == 1 and len(node.inputs) == 1:
            merged = _merged(before.layer, found.get(before.name, {}), node.layer, found.get(node.name, {}))
        if merged is not None:
            del made[before.name]
            found.pop(before.name, None)
            layer, own = merged
            node = Node(node.name, layer, before.inputs)
            if own:
                found[node.name] = own
        made[node.name] = node
    kept = tuple(made.values())
    return kept, {node.name: found[node.name] for node in kept if node.name in found}


def _merged(before: Layer, own: Mapping, layer: Layer, next_own: Mapping) -> tuple[Layer, dict] | None:
    """One layer that does what `before` and `layer` do, with its weights; None where there is none."""
    if getattr(before, "activation", None) != LINEAR:
        return None
    if isinstance(layer, Activate):
        return replace(before, activation=layer.activation), dict(own)
    if not isinstance(layer, Affine):
        return None
    scale, shift = (np.asarray(next_own[key], np.float64) for key in ("scale", "bias"))
    if isinstance(before, _CONVOLUTIONS):
        return replace(before, activation=layer.activation), _scaled(before, own, scale, shift)
    if isinstance(before, Add) and not before.affine:
        return replace(before, affine=True, activation=layer.activation), dict(next_own)
    if isinstance(before, (Add, Affine, Norm)):
        merged = {"scale": scale * own["scale"], "bias": scale * own["bias"] + shift}
        return _with(before, layer.activation), {key: _rounded(array) for key, array in merged.items()}
    return None


def _with(layer: Layer, activation: Activation) -> Layer:
    return replace(layer, activation=activation)


def _rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def _scaled(layer: Layer, own: Mapping, scale: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of a convolution whose output channels are scaled and shifted."""
    weight = np.asarray(own["weight"], np.float64)
    if isinstance(layer, ConvTranspose):  # (in, out / groups, ..): the groups' outputs are one after another
        each = scale.reshape(layer.groups, -1)
        split = weight.reshape(layer.groups, -1, *weight.shape[1:]) * each[:, None, :, None, None, None]
        weight = split.reshape(weight.shape)
    else:
        weight = weight * scale[:, None, None, None, None]
    return {"weight": _rounded(weight), "bias": _rounded(own["bias"] * scale + shift)}
