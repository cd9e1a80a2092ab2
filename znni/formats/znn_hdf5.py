"""ZNN's HDF5 files: network and weights in one, under ``/processing/znn/train/network``.

A group for each block of nodes or edges (`group_type`), with its options as scalar strings or integer arrays;
``filters`` (in, out, z, y, x) on conv edges and ``biases`` (out) on transfer nodes, float32 or float64. ZNN convolves:
kernels are flipped along z, y and x here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError
from znni.formats.description import Description
from znni.formats.hdf5 import float_array, is_dataset, is_group, opened
from znni.formats.znn_blocks import Block, Step, chain_of_blocks
from znni.layers import Conv

if TYPE_CHECKING:
    import h5py

NETWORK = "processing/znn/train/network"
_OPTIONS = ("type", "size", "stride", "input", "output", "function", "function_args", "offset")
_GROUPS = {"node": "nodes", "edge": "edges"}


def read_znn_hdf5(path: str | os.PathLike) -> Description:
    """The network of a ZNN HDF5 file, with its weights.

    Raises
    ------
    FormatError
        Naming the file and the layer; also where h5py is not installed.
    """
    with opened(path) as file:
        if not holds_network(file):
            raise FormatError(f"{path} has no group {NETWORK}; it is not a network that ZNN wrote")
        groups = file[NETWORK]
        blocks = [_block(groups[name], name, str(path)) for name in groups]
        in_channels, steps = chain_of_blocks(str(path), blocks)
        weights = {s.node.name: _weights(groups, s) for s in steps if isinstance(s.node.layer, Conv)}
    return Description(tuple(step.node for step in steps), in_channels, weights)


def holds_network(file: h5py.File) -> bool:
    """Whether an open HDF5 file holds a network that ZNN wrote."""
    return is_group(file.get(NETWORK))


def _block(group: h5py.Group, name: str, where: str) -> Block:
    if not is_group(group):
        raise FormatError(f"{where}: {name} is not a group of nodes or edges")
    kind = _text(group, "group_type", f"{where}: {name}") if "group_type" in group else ""
    if kind not in _GROUPS:
        raise FormatError(f"{where}: {name} must have the group_type node or edge, got {kind!r}")
    options = {key: _text(group, key, f"{where}: {name}") for key in _OPTIONS if key in group}
    return Block(_GROUPS[kind], name, options, where)


def _text(group: h5py.Group, key: str, what: str) -> str:
    """A scalar string, or a few numbers as ``a,b,c``."""
    dataset = group[key]
    if not is_dataset(dataset) or dataset.size is None or dataset.size > 16:
        raise FormatError(f"the {key} of {what} must be a string or a few numbers")
    value = dataset[()]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ",".join(map(str, np.atleast_1d(value).tolist()))


def _weights(groups: h5py.Group, step: Step) -> dict[str, np.ndarray]:
    layer = step.node.layer
    shape = (step.in_channels, layer.out_channels, *layer.kernel)
    filters = float_array(groups[step.edge.name].get("filters"), shape, f"the filters of {step.edge}")
    bias = np.zeros(layer.out_channels, np.float32)
    if step.target.type == "transfer":
        bias = float_array(groups[step.target.name].get("biases"), bias.shape, f"the biases of {step.target}")
    return {"weight": np.ascontiguousarray(filters.swapaxes(0, 1)[:, :, ::-1, ::-1, ::-1]), "bias": bias}
