"""Weights for a network whose layers are known already: from a mapping, an NPZ or an HDF5 file.

NPZ keys and HDF5 datasets are named ``node/weight`` (out, in, kz, ky, kx; cross-correlation) and ``node/bias`` (out,).
An HDF5 file that ZNN wrote serves too: its convolutions are taken in order.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from znni.errors import FormatError
from znni.formats.description import Weights
from znni.formats.hdf5 import is_dataset, opened
from znni.formats.znn_hdf5 import holds_network, read_znn_hdf5
from znni.nodes import Node

_HDF5 = (".h5", ".hdf5")
_KEYS = ("weight", "bias", "scale", "slope")


def read_weights(source: str | os.PathLike | Mapping, nodes: Sequence[Node]) -> Weights:
    """Weights for the convolutions of `nodes`.

    Parameters
    ----------
    source : path of an ``.npz``, ``.h5`` or ``.hdf5`` file, or mapping of node name to {"weight", "bias"}
    nodes : sequence of Node

    Returns
    -------
    dict of node name to {"weight", "bias"}
        float32; shapes and missing arrays are for `Network` to check.

    Raises
    ------
    FormatError
        Naming the file and the array.
    """
    known = [node.name for node in nodes if hasattr(node.layer, "weight_shapes")]
    if isinstance(source, Mapping):
        return _checked("the weights given", source, known)
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return _checked(str(path), _nested(path, _npz(path)), known)
    if path.suffix.lower() in _HDF5:
        return _hdf5(path, known)
    raise FormatError(f"{path} is not a file of weights; expected one of .npz, {', '.join(_HDF5)}")


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise FormatError(f"{path} is not a readable NPZ file of plain arrays: {error}") from error


def _hdf5(path: Path, known: list[str]) -> Weights:
    with opened(path) as file:
        if not holds_network(file):
            arrays = {}
            file.visititems(lambda key, item: arrays.__setitem__(key, item[()]) if is_dataset(item) else None)
            return _checked(str(path), _nested(path, arrays), known)
    theirs = read_znn_hdf5(path).weights
    if len(theirs) != len(known):
        raise FormatError(f"{path} holds {len(theirs)} convolutions, the network has {len(known)}")
    return dict(zip(known, theirs.values(), strict=True))


def _nested(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    nested = {}
    for key, array in arrays.items():
        node, slash, part = key.rpartition("/")
        if not slash or part not in _KEYS:
            raise FormatError(f"{path}: arrays must be named node/weight or node/bias (or scale, slope), got {key!r}")
        nested.setdefault(node, {})[part] = array
    return nested


def _checked(what: str, weights: Mapping[str, Mapping[str, np.ndarray]], known: Sequence[str]) -> Weights:
    checked = {}
    for node, own in weights.items():
        if node not in known:
            raise FormatError(f"{what}: the network has no layer {node!r} with weights; it has {', '.join(known)}")
        if not isinstance(own, Mapping) or not set(own) <= set(_KEYS):
            raise FormatError(f"{what}: layer {node} must be a mapping of 'weight' and 'bias' (or scale, slope) to arrays")
        checked[node] = {key: _float32(array, f"{what}: {key} of layer {node}") for key, array in own.items()}
    return checked


def _float32(array: np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise FormatError(f"{what} must hold real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
