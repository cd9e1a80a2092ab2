"""Weights that were released with networks of the zoo, in the form that `znni.load` takes.

    network = znni.load("synapse_unet_dynamic", weights=lee_weights("synapse_unet.npz", dynamic=True))
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from znni.errors import FormatError

Arrays = Mapping[str, np.ndarray]
#: Of the batch norms of the released networks.
_EPSILON = 1e-5
Weights = dict[str, dict[str, np.ndarray]]


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {os.fspath(path)} as NPZ: {error}") from error


def lee_weights(path: str | os.PathLike, dynamic: bool = False) -> Weights:
    """Of ``synapse_unet`` and ``avan`` (seung-lab/modelzoo), from an NPZ of the PyTorch module's arrays.

    Parameters
    ----------
    path : str or path
    dynamic : bool
        For the networks whose batch norm has the statistics of the patch; else it is folded, with those of training.
    """
    arrays = _read(path)
    found: Weights = {}
    try:
        depth = sum(f"rszconvmod{d}.bn1.weight" in arrays for d in range(16))
        _biased(found, "embed_in", arrays, "inputconv.conv.conv")
        for level in range(depth + 1):
            _module(found, f"down{level}" if level < depth else "bridge", arrays, f"convmod{level}", dynamic)
        for level in range(depth):
            up = f"rszconvmod{level}"
            weight = arrays[f"{up}.upsampling.conv.conv.weight"]
            found[f"up{level}"] = {"weight": weight, "bias": np.zeros(len(weight), np.float32)}
            _normed_sum(found, f"merge{level}", arrays, f"{up}.bn1", dynamic)
            _module(found, f"up{level}.module", arrays, f"{up}.convmod", dynamic)
        _biased(found, "embed_out", arrays, "embedconv.conv.conv")
        (head,) = {name.rpartition(".")[0] for name in arrays if name.startswith("outputdeconv.")}
        _biased(found, "head", arrays, head)
    except (KeyError, ValueError) as error:
        raise FormatError(f"{os.fspath(path)} does not hold the arrays of such a network: {error}") from error
    return found


def _biased(found: Weights, name: str, arrays: Arrays, key: str) -> None:
    found[name] = {"weight": arrays[f"{key}.weight"], "bias": arrays[f"{key}.bias"]}


def _affine(arrays: Arrays, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of a batch norm in inference mode, in float64."""
    mean, variance = (arrays[f"{key}.running_{name}"].astype(np.float64) for name in ("mean", "var"))
    scale = arrays[f"{key}.weight"] / np.sqrt(variance + _EPSILON)
    return scale, arrays[f"{key}.bias"] - mean * scale


def _norm(arrays: Arrays, key: str) -> dict[str, np.ndarray]:
    return {"scale": arrays[f"{key}.weight"], "bias": arrays[f"{key}.bias"]}


def _normed_sum(found: Weights, name: str, arrays: Arrays, key: str, dynamic: bool) -> None:
    if dynamic:
        found[name] = _norm(arrays, key)
    else:
        scale, shift = _affine(arrays, key)
        found[name] = {"scale": scale.astype(np.float32), "bias": shift.astype(np.float32)}


def _module(found: Weights, name: str, arrays: Arrays, key: str, dynamic: bool) -> None:
    for number, part in ((1, "a"), (2, "b")):
        weight, zero = arrays[f"{key}.conv{number}.conv.weight"], np.zeros(arrays[f"{key}.bn{number}.bias"].shape, "f")
        if dynamic:
            found[f"{name}.{part}.sums"] = {"weight": weight, "bias": zero}
            found[f"{name}.{part}"] = _norm(arrays, f"{key}.bn{number}")
        else:
            scale, shift = _affine(arrays, f"{key}.bn{number}")
            scaled = (weight * scale[:, None, None, None, None]).astype(np.float32)
            found[f"{name}.{part}"] = {"weight": scaled, "bias": shift.astype(np.float32)}
    last = arrays[f"{key}.conv3.conv.weight"]
    found[f"{name}.c"] = {"weight": last, "bias": np.zeros(len(last), np.float32)}
    _normed_sum(found, name, arrays, f"{key}.bn3", dynamic)


def ffn_weights(path: str | os.PathLike) -> Weights:
    """Of ``ffn``, from an NPZ of google/ffn's arrays (kernels are z, y, x, in, out)."""
    arrays = _read(path)
    prefix, end = "seed_update.", ".weights"
    names = [name[len(prefix) : -len(end)] for name in arrays if name.startswith(prefix) and name.endswith(end)]
    if "conv_lom" not in names:
        raise FormatError(f"{os.fspath(path)} does not hold the arrays of a flood-filling network")
    return {
        name: {
            "weight": np.ascontiguousarray(arrays[f"{prefix}{name}.weights"].transpose(4, 3, 0, 1, 2)),
            "bias": arrays[f"{prefix}{name}.biases"],
        }
        for name in names
    }
