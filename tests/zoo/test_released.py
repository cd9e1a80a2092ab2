"""Released weights of networks of the zoo give what their authors found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from znni import load
from znni.errors import FormatError
from znni.zoo.released_weights import ffn_weights, lee_weights

SHARED = Path(__file__).parents[3] / "shared/data/trained"


def needs(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"needs {name}")
    return SHARED / name


def test_synapses_by_statistics_of_the_patch():
    h5py = pytest.importorskip("h5py")
    with h5py.File(needs("synapse_sample1.h5")) as file:
        x = file["main"][:][None, None].astype(np.float32) / 255
    network = load("synapse_unet_dynamic", weights=lee_weights(needs("synapse_unet.npz"), dynamic=True))
    assert abs((network.run(x) > 0.25).sum() - 4865) <= 49


def test_arrays_and_onnx_file_are_one_network():
    pytest.importorskip("onnx")
    folded = load("synapse_unet", weights=lee_weights(needs("synapse_unet.npz")))
    file = load(needs("synapse_unet.onnx"))
    x = np.random.default_rng(0).random((1, 1, 3, 32, 32), np.float32)
    expected = file.reference(x)
    assert np.linalg.norm(folded.reference(x) - expected) <= 2e-6 * np.linalg.norm(expected)


def test_voxel_association():
    network = load("avan", weights=lee_weights(needs("voxel_association.npz")))
    x = np.random.default_rng(0).random((1, 2, 3, 32, 32), np.float32)
    expected = network.reference(x)
    deviation = np.linalg.norm(expected - expected.mean((0, 2, 3, 4), keepdims=True))
    assert np.linalg.norm(network.run(x) - expected) <= 2e-5 * deviation


@pytest.mark.parametrize("read", [lee_weights, ffn_weights])
def test_other_arrays_are_refused(tmp_path, read):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(FormatError, match=r"other\.npz does not hold the arrays of"):
        read(tmp_path / "other.npz")
    with pytest.raises(FormatError, match=r"cannot read .*none\.npz"):
        read(tmp_path / "none.npz")
