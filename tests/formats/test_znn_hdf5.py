"""ZNN's HDF5 files: made here, and real ones."""

import sys

import numpy as np
import pytest
from scipy import signal

from znni.errors import FormatError
from znni.formats.znn_hdf5 import NETWORK, read_znn_hdf5
from znni.layers import Activation, Conv, MaxPool
from znni.load import load

h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py")

#: Block name to (group_type, options): two convolutions, a pooling between, tanh and a sum without bias.
BLOCKS = {
    "input": ("node", {"type": "input", "size": [2]}),
    "conv1": ("edge", {"type": "conv", "size": [2, 3, 2], "stride": [1, 1, 1], "input": "input", "output": "n1"}),
    "n1": ("node", {"type": "transfer", "function": "tanh", "function_args": "1.7159,0.6666", "size": [3]}),
    "pool": ("edge", {"type": "max_filter", "size": [1, 2, 2], "stride": [1, 2, 2], "input": "n1", "output": "n2"}),
    "n2": ("node", {"type": "sum", "size": [3]}),
    "conv2": ("edge", {"type": "conv", "size": [1, 2, 2], "stride": [1, 1, 1], "input": "n2", "output": "out"}),
    "out": ("node", {"type": "sum", "size": [1]}),
}


def arrays(dtype="f4"):
    rng = np.random.default_rng(2)
    return {
        "conv1/filters": rng.standard_normal((2, 3, 2, 3, 2)).astype(dtype),
        "conv2/filters": rng.standard_normal((3, 1, 1, 2, 2)).astype(dtype),
        "n1/biases": rng.standard_normal(3).astype(dtype),
        "conv1/momentum_vol": np.full((2, 3, 2, 3, 2), np.nan, dtype),
    }


@pytest.fixture
def write(tmp_path):
    """Writes a ZNN HDF5 file; a value of None leaves an option or array out."""

    def write(changed_options=(), changed_arrays=(), dtype="f4"):
        path = tmp_path / "net.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group(NETWORK)
            for name, (kind, options) in BLOCKS.items():
                block = group.create_group(name)
                options = {
                    "name": name,
                    "group_type": kind,
                    "eta": "0.01",
                    **options,
                    **dict(changed_options).get(name, {}),
                }
                for key, value in options.items():
                    if value is not None:
                        block[key] = np.asarray(value) if isinstance(value, list) else value
            for key, array in {**arrays(dtype), **dict(changed_arrays)}.items():
                if array is not None:
                    group[key] = array
        return path

    return write


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_network_and_weights(write, dtype):
    description = read_znn_hdf5(write(dtype=dtype))
    assert [node.layer for node in description.nodes] == [
        Conv(3, (2, 3, 2), activation=Activation("tanh", 1.7159, 0.6666)),
        MaxPool((1, 2, 2), (1, 2, 2)),
        Conv(1, (1, 2, 2)),
    ]
    assert description.in_channels == 2
    conv1, conv2 = description.weights["conv1"], description.weights["conv2"]
    np.testing.assert_allclose(conv1["bias"], arrays()["n1/biases"])
    assert not conv2["bias"].any()
    assert {array.dtype for own in (conv1, conv2) for array in own.values()} == {np.dtype("f4")}


def test_kernels_are_flipped_to_cross_correlation(write, evaluate):
    description = read_znn_hdf5(write({"n1": {"function": "linear", "function_args": None}}))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5, 6))
    filters, biases = (arrays()[key].astype("f8") for key in ("conv1/filters", "n1/biases"))
    got = evaluate(description.nodes[:1], description.weights, x)
    for out in range(3):
        convolved = sum(signal.convolve(x[0, i], filters[i, out], "valid") for i in range(2))
        np.testing.assert_allclose(got[0, out], convolved + biases[out], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "changed", "says"),
    [
        ({}, {"conv1/filters": None}, "the filters of .*: edges conv1 are missing"),
        ({}, {"n1/biases": None}, "the biases of .*: nodes n1 are missing"),
        (
            {},
            {"conv1/filters": np.zeros((3, 2, 2, 3, 2), "f4")},
            r"conv1 must have shape \(2, 3, 2, 3, 2\), got \(3, 2",
        ),
        ({}, {"n1/biases": np.zeros(4, "f4")}, r"n1 must have shape \(3,\), got \(4,\)"),
        ({}, {"conv1/filters": np.zeros((2, 3, 2, 3, 2), "i4")}, "conv1 must be float32 or float64, got int32"),
        (
            {},
            {"conv2/filters": np.full((3, 1, 1, 2, 2), np.nan, "f4")},
            "filters of .*edges conv2 hold NaN or infinite",
        ),
        ({}, {"n1/biases": np.array([0, np.inf, 0], "f4")}, "biases of .*nodes n1 hold NaN or infinite"),
        ({}, {"n1/biases": np.array([0, 1e300, 0], "f8")}, "biases of .*nodes n1 hold NaN or infinite"),
        ({"conv1": {"size": None}}, {}, "edges conv1 has no size"),
        ({"conv1": {"size": [2, 3, 2, 1]}}, {}, "the size of .*edges conv1 must be z,y,x"),
        ({"conv1": {"size": [0.5, 3.0, 2.0]}}, {}, "must be a positive integer"),
        ({"conv1": {"size": list(range(99))}}, {}, "the size of .*: conv1 must be a string or a few numbers"),
        ({"conv1": {"output": "gone"}}, {}, "edges conv1 has the output gone, which no nodes block defines"),
        ({"conv1": {"type": "deconv"}}, {}, "edges conv1 has the unknown type 'deconv'"),
        ({"n1": {"function": "maximum"}}, {}, "nodes n1 has the unknown function 'maximum'"),
        ({"n1": {"group_type": "knot"}}, {}, "n1 must have the group_type node or edge, got 'knot'"),
        ({"n1": {"group_type": None}}, {}, "n1 must have the group_type node or edge, got ''"),
        ({"n2": {"type": "input"}}, {}, "nodes n2 is a second input|nodes n2 is the input|second input beside n2"),
    ],
)
def test_what_is_wrong_is_named(write, options, changed, says):
    path = write(options, changed)
    with pytest.raises(FormatError, match=says) as error:
        read_znn_hdf5(path)
    assert str(path) in str(error.value)


def test_a_dataset_among_the_blocks_is_refused(write):
    with pytest.raises(FormatError, match="stray is not a group of nodes or edges"):
        read_znn_hdf5(write(changed_arrays={"stray": np.zeros(3)}))


def test_other_hdf5_files_are_refused(tmp_path):
    path = tmp_path / "volume.h5"
    with h5py.File(path, "w") as file:
        file["main"] = np.zeros(3)
    with pytest.raises(FormatError, match="has no group processing/znn/train/network"):
        read_znn_hdf5(path)


def test_what_is_no_hdf5_file_is_refused(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("INPUTS:1, LAYERS:1")
    with pytest.raises(FormatError, match="is not a readable HDF5 file"):
        read_znn_hdf5(path)
    with pytest.raises(FormatError, match=r"cannot read .*none.h5: No such file"):
        read_znn_hdf5(tmp_path / "none.h5")


def test_truncated_files_are_refused(write):
    path = write()
    data = path.read_bytes()
    for end in range(0, len(data) - 1, len(data) // 40):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError):
            read_znn_hdf5(path)


def test_a_datatype_in_place_of_an_option_is_refused(write):
    path = write({"n1": {"function": None}})
    with h5py.File(path, "a") as file:
        file[NETWORK]["n1"]["function"] = np.dtype("f4")
    with pytest.raises(FormatError, match=r"the function of .*: n1 must be a string or a few numbers"):
        read_znn_hdf5(path)


def test_without_h5py_the_error_says_what_to_install(write, monkeypatch):
    path = write()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(FormatError, match="pip install h5py"):
        read_znn_hdf5(path)


@pytest.mark.parametrize(
    ("name", "fov", "parameters", "head"),
    [
        ("trained/n4_trained.h5", (1, 95, 95), 219_290, (2, "linear")),
        ("znn-nets/affinity_n4_like.h5", (1, 94, 94), 219_155, (3, "sigmoid")),
        ("znn-nets/boundary_srini2d.h5", (1, 37, 37), 21_122, (2, "linear")),
    ],
)
def test_real_files(shared, name, fov, parameters, head):
    network = load(shared / "data" / name)
    assert network.field_of_view == fov
    assert network.parameters == parameters
    assert (network.out_channels, network.layers[-1].activation.name) == head


def test_real_weights_that_are_not_finite_are_refused(shared):
    with pytest.raises(FormatError, match=r"nan_weights.h5: edges conv1 hold NaN"):
        load(shared / "data/znn-nets/nan_weights.h5")


def test_trained_n4_gives_the_reference_logits(shared, evaluate):
    network = load(shared / "data/trained/n4_trained.h5")
    with np.load(shared / "data/trained/n4_reference.npz") as reference:
        x, logits = reference["input"], reference["logits"]
    got = evaluate(network.lowered("filter"), network.weights, x.reshape(1, 1, 1, 294, 294))[:, :, 0]
    assert got.shape == logits.shape
    assert np.linalg.norm(got - logits) < 2e-6 * np.linalg.norm(logits - logits.mean())


@pytest.mark.parametrize("name", ["affinity_n4_like", "boundary_srini2d"])
def test_other_real_nets_match_pytorch_s_dilated_form(shared, evaluate, name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    network = load(shared / f"data/znn-nets/{name}.h5")
    x = np.random.default_rng(4).standard_normal((1, 1, 1, 100, 103))
    y, dilation = torch.from_numpy(x), 1
    for node in network.nodes:
        if node.layer.kind == "max_pool":
            y = torch.nn.functional.max_pool3d(y, node.layer.window, stride=1, dilation=(1, dilation, dilation))
            dilation *= node.layer.stride[1]
        else:
            own = {key: torch.from_numpy(array.astype("f8")) for key, array in network.weights[node.name].items()}
            y = torch.nn.functional.conv3d(y, **own, dilation=(1, dilation, dilation))
            y = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda v: v}[node.layer.activation.name](y)
    assert y.std() > 0
    np.testing.assert_allclose(evaluate(network.lowered("filter"), network.weights, x), y.numpy(), atol=1e-12)
