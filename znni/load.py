"""From a name or a file to a network."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from znni.errors import FormatError, ZnniError
from znni.formats.description import Description
from znni.formats.onnx_reader import read_onnx
from znni.formats.weight_files import read_weights
from znni.formats.znn_hdf5 import read_znn_hdf5
from znni.formats.znn_text import read_znn
from znni.formats.znni_text import read_znni
from znni.initialise import seeded_weights
from znni.network import Network
from znni.zoo import networks
from znni.zoo.residual_unet import bilinear_weights, is_bilinear

READERS: dict[str, Callable[[str], Description]] = {
    ".znni": read_znni,
    ".znn": read_znn,
    ".h5": read_znn_hdf5,
    ".hdf5": read_znn_hdf5,
    ".onnx": read_onnx,
}


def load(
    name_or_path: str | os.PathLike,
    weights: str | os.PathLike | Mapping | None = None,
    seed: int | None = 0,
    width: int | None = None,
) -> Network:
    """A network of the zoo, or of a file.

    Parameters
    ----------
    name_or_path : str or path
        A name of `znni.zoo.networks`, or an ``.onnx``, ``.znni``, ``.znn`` or ZNN HDF5 (``.h5``) file.
    weights : path of an NPZ or HDF5 file, or mapping of node name to {"weight", "bias"}, optional
        For networks that come without; float32, cross-correlation. Default: made from `seed` (`znni.initialise`).
    seed : int
        Of the weights, where they are made; None is 0.
    width : int, optional
        Channels of a zoo network's first hidden layer, the other hidden layers in proportion (for tests).

    Returns
    -------
    Network
        ``load(network.source, network.weights_source, network.seed, network.width)`` makes it again, with the same
        digest, unless its weights were given as a mapping.

    Raises
    ------
    FormatError
        Where there is no such network, or a file cannot be read or used.
    ZnniError
        Where the seed or the width is not one.
    """
    text = os.fspath(name_or_path)
    suffix = Path(text).suffix.lower()
    if text in networks():
        return _from_zoo(text, weights, seed, width)
    if suffix not in READERS:
        raise FormatError(_unknown(text, suffix))
    if width is not None:
        raise FormatError(f"width narrows networks of the zoo; {text} is a file, whose widths are its own")
    return _from_file(text, READERS[suffix](text), weights, seed)


def _from_zoo(name: str, weights: str | os.PathLike | Mapping | None, seed: int | None, width: int | None) -> Network:
    published = networks()[name].narrowed(width)
    nodes, channels = published.nodes, published.in_channels
    kept = {"width": width, "sliding": published.sliding, "patch": published.patch, "fixed": published.fixed}
    if weights is not None:
        own = read_weights(weights, nodes)
        return Network(name, nodes, channels, own, weights_source=_path_of(weights), **kept)
    seed = 0 if seed is None else seed
    made = seeded_weights(nodes, channels, seed)
    for node in nodes:  # upstream's are given, not trained
        if is_bilinear(node.layer):
            made[node.name] = bilinear_weights(node.layer)
    return Network(name, nodes, channels, made, seed=seed, **kept)


def _from_file(
    path: str, description: Description, weights: str | os.PathLike | Mapping | None, seed: int | None
) -> Network:
    name, source, nodes, channels = Path(path).stem, os.path.abspath(path), description.nodes, description.in_channels
    if description.weights is not None:
        if weights is not None:
            raise FormatError(f"{path} holds its own weights; load it without others")
        kept = {"sliding": description.sliding, "patch": description.patch, "fixed": description.fixed}
        return Network(name, nodes, channels, description.weights, source=source, **kept)
    if weights is not None:
        own = read_weights(weights, nodes)
        return Network(name, nodes, channels, own, source=source, weights_source=_path_of(weights))
    seed = 0 if seed is None else seed
    try:
        made = seeded_weights(nodes, channels, seed)
    except ZnniError as error:
        raise FormatError(f"{path}: {error}") from error
    for node in description.unbiased:
        made[node]["bias"][:] = 0
    return Network(name, nodes, channels, made, source=source, seed=seed)


def _path_of(weights: str | os.PathLike | Mapping) -> str | None:
    return None if isinstance(weights, Mapping) else os.path.abspath(weights)


def _unknown(text: str, suffix: str) -> str:
    if suffix or os.sep in text:
        return f"cannot read {text}: expected a name of the zoo or a file that ends in {', '.join(READERS)}"
    near = difflib.get_close_matches(text, networks(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(networks())}"
    return f"no network is named {text!r}{hint}"
