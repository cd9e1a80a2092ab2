"""Weights from mappings and files."""

import numpy as np
import pytest

from znni.errors import FormatError
from znni.formats.weight_files import read_weights
from znni.initialise import seeded_weights
from znni.layers import Conv, MaxPool
from znni.nodes import chain

NODES = chain([Conv(3, (1, 2, 3)), MaxPool((1, 2, 2), (1, 2, 2)), Conv(2, (1, 1, 1))])
WEIGHTS = seeded_weights(NODES, 1, 0)
FLAT = {f"{node}/{key}": array for node, own in WEIGHTS.items() for key, array in own.items()}


def assert_same(got):
    assert got.keys() == WEIGHTS.keys()
    for node, own in WEIGHTS.items():
        for key, array in own.items():
            assert got[node][key].dtype == np.float32
            np.testing.assert_array_equal(got[node][key], array)


def test_mapping():
    assert_same(read_weights(WEIGHTS, NODES))
    assert_same(read_weights({n: {k: a.astype("f8") for k, a in own.items()} for n, own in WEIGHTS.items()}, NODES))


def test_npz(tmp_path):
    np.savez(tmp_path / "weights.npz", **FLAT)
    assert_same(read_weights(tmp_path / "weights.npz", NODES))
    assert_same(read_weights(str(tmp_path / "weights.npz"), NODES))


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        for key, array in FLAT.items():
            file[key] = array
    assert_same(read_weights(tmp_path / "weights.h5", NODES))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"9_conv": {}}, "the network has no layer '9_conv' with weights; it has 1_conv, 3_conv"),
        ({"1_conv": np.zeros(3)}, "layer 1_conv must be a mapping of 'weight' and 'bias'"),
        ({"1_conv": {"kernel": np.zeros(3)}}, "layer 1_conv must be a mapping of 'weight' and 'bias'"),
        ({"1_conv": {"weight": np.array(["a"])}}, "weight of layer 1_conv must hold real numbers, got <U1"),
        ({"1_conv": {"weight": np.zeros(3, "c8")}}, "must hold real numbers, got complex64"),
    ],
)
def test_mappings_that_cannot_be(weights, says):
    with pytest.raises(FormatError, match=says):
        read_weights(weights, NODES)


@pytest.mark.parametrize("arrays", [{"weight": np.zeros(3)}, {"1_conv/kernel": np.zeros(3)}])
def test_npz_with_other_names(tmp_path, arrays):
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(FormatError, match=r"weights.npz: arrays must be named node/weight or node/bias .*, got"):
        read_weights(tmp_path / "weights.npz", NODES)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **FLAT)
    data = path.read_bytes()
    np.savez(tmp_path / "objects.npz", **{"1_conv/weight": np.array([{}], object)})
    for content in (
        b"",
        b"PK\x03\x04 no zip",
        data[: len(data) // 2],
        data[:-30],
        b"\x80\x04N.",
        np.zeros(3).tobytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"weights.npz is not a readable NPZ file"):
            read_weights(path, NODES)
    with pytest.raises(FormatError, match=r"objects.npz is not a readable NPZ file of plain arrays"):
        read_weights(tmp_path / "objects.npz", NODES)
    with pytest.raises(FormatError, match=r"none.npz"):
        read_weights(tmp_path / "none.npz", NODES)
    with pytest.raises(FormatError, match=r"weights.txt is not a file of weights; expected one of .npz, .h5, .hdf5"):
        read_weights(tmp_path / "weights.txt", NODES)


def test_a_plain_array_is_refused(tmp_path):
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(FormatError, match=r"array.npz is not a readable NPZ file"):
        read_weights(tmp_path / "array.npz", NODES)
