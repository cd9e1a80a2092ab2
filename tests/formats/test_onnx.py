"""ONNX files read as networks give what ONNX Runtime gives; what cannot be read is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from znni import load
from znni.errors import FormatError, InvalidShape

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from .onnx_graphs import RandomGraph, model  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared/data/trained"


def runtime(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-3 * expected.size**0.5))


def as_five(x):
    return x[:, :, None] if x.ndim == 4 else x.reshape(*x.shape, 1, 1, 1) if x.ndim == 2 else x


def check(tmp_path, proto, x, tolerance=1e-5):
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    expected = as_five(runtime(path, x))
    network = load(path)
    found = network.reference(as_five(x))
    assert found.shape == expected.shape
    assert error(found, expected) <= tolerance
    return network, expected


@pytest.mark.parametrize("seed", range(200))
def test_random_graphs_equal_onnx_runtime(tmp_path, seed):
    graph = RandomGraph(seed)
    x = graph.input
    network, expected = check(tmp_path, graph.model, x, 2e-5)
    assert error(network.run(as_five(x)), expected) <= 1e-4


def one(kind, shapes, opset=17, in_shape=(1, 4, 5, 8, 9), integers=None, **attributes):
    """A model of one operator, with constants of these shapes after its input."""
    rng = np.random.default_rng(0)
    constants = {f"c{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    constants |= {f"i{i}": np.array(v, np.int64) for i, v in enumerate(integers or ())}
    node = helper.make_node(kind, ["x", *constants], ["y"], name="the_node", **attributes)
    return model([node], constants, in_shape, opset)


ONES = {
    "asymmetric pads": one("Conv", [(3, 4, 2, 3, 2), (3,)], pads=[1, 0, 1, 0, 1, 0]),
    "same upper": one("Conv", [(3, 4, 2, 3, 4)], auto_pad="SAME_UPPER", strides=[1, 2, 3]),
    "same lower": one("Conv", [(3, 4, 2, 3, 4)], auto_pad="SAME_LOWER"),
    "strides and dilations": one("Conv", [(3, 4, 2, 3, 2)], strides=[2, 1, 3], dilations=[2, 1, 2]),
    "groups": one("Conv", [(6, 2, 1, 3, 3)], group=2),
    "transposed": one("ConvTranspose", [(4, 3, 3, 4, 2), (3,)], strides=[2, 1, 3], pads=[1, 0, 0, 1, 1, 1]),
    "transposed with output padding": one(
        "ConvTranspose", [(4, 3, 3, 3, 3)], strides=[2, 2, 2], pads=[1] * 6, output_padding=[1, 0, 1]
    ),
    "transposed, depthwise": one("ConvTranspose", [(4, 1, 1, 4, 4)], strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1], group=4),
    "transposed, dilated": one("ConvTranspose", [(4, 3, 2, 2, 2)], strides=[1, 2, 1], dilations=[2, 1, 3]),
    "max with pads": one("MaxPool", [], kernel_shape=[2, 3, 3], strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1]),
    "max with dilation": one("MaxPool", [], kernel_shape=[2, 2, 2], strides=[1, 2, 3], dilations=[2, 3, 1]),
    "max rounded up": one("MaxPool", [], kernel_shape=[2, 2, 2], strides=[2, 2, 2], ceil_mode=1),
    "mean with pads": one("AveragePool", [], kernel_shape=[2, 3, 3], strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1]),
    "mean, pads counted": one("AveragePool", [], kernel_shape=[1, 3, 3], pads=[0, 1, 1, 0, 1, 1], count_include_pad=1),
    "global mean": one("GlobalAveragePool", []),
    "reduce": one("ReduceMean", [], axes=[2, 3, 4]),
    "group norm": one("GroupNormalization", [(4,), (4,)], opset=21, num_groups=2),
    "resized to sizes": model(
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"s": np.array([1, 4, 9, 15, 17], np.int64)},
        (1, 4, 5, 8, 9),
    ),
    "upsample": model(
        [helper.make_node("Upsample", ["x", "s"], ["y"])], {"s": np.array([1, 1, 1, 2, 2], "f")}, (1, 2, 3, 4, 5), 9
    ),
    "softmax": one("Softmax", [], axis=1),
    "depth to space": one("DepthToSpace", [], in_shape=(1, 8, 6, 5), blocksize=2),
    "flat convolution": one("Conv", [(3, 4, 3, 3)], in_shape=(1, 4, 8, 9), pads=[1, 1, 1, 1]),
    "sum": model([helper.make_node("Sum", ["x", "x", "x"], ["y"])], {}, (1, 2, 3, 4, 5)),
    "linear": model(
        [
            helper.make_node("GlobalMaxPool", ["x"], ["a"]),
            helper.make_node("Flatten", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "w", "c"], ["y"], transB=1),
        ],
        {"w": np.random.default_rng(0).standard_normal((5, 4)).astype("f"), "c": np.arange(5, dtype="f")},
        (1, 4, 3, 4, 5),
        out_rank=2,
    ),
}


@pytest.mark.parametrize("what", ONES)
def test_operators_equal_onnx_runtime(tmp_path, what):
    proto = ONES[what]
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    check(tmp_path, proto, np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def crop_to_match():
    """A valid convolution, added to its input cut to the same size by arithmetic on shapes."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="valid"),
        helper.make_node("Shape", ["a"], ["size"]),
        helper.make_node("Slice", ["size", "two", "five"], ["spatial"]),
        helper.make_node("Add", ["spatial", "one"], ["ends"]),
        helper.make_node("Slice", ["x", "ones", "ends", "axes"], ["cut"]),
        helper.make_node("Add", ["a", "cut"], ["y"]),
    ]
    constants = {
        "w": np.random.default_rng(0).standard_normal((2, 2, 3, 3, 3)).astype("f"), "two": np.array([2]), "five": np.array([5]),
        "one": np.array(1), "ones": np.array([1, 1, 1]), "axes": np.array([2, 3, 4]),
    }  # fmt: skip
    return model(nodes, constants, (1, 2, "z", "y", "x"))


def test_a_crop_to_match_is_fixed_numbers(tmp_path):
    network, _ = check(tmp_path, crop_to_match(), np.random.default_rng(0).standard_normal((1, 2, 7, 8, 9)).astype("f"))
    assert not network.fixed and [n.layer.kind for n in network.nodes] == ["conv", "slice", "add"]
    assert network.output_patch((7, 8, 9)) == (5, 6, 7)


def test_a_model_of_one_size_takes_no_other(tmp_path):
    onnx.save(ONES["softmax"], tmp_path / "model.onnx")
    network = load(tmp_path / "model.onnx")
    assert network.fixed and network.patch == (5, 8, 9)
    with pytest.raises(InvalidShape, match="was made for input patches of 5x8x9 alone, got 5x8x8"):
        network.run(np.zeros((1, 4, 5, 8, 8), np.float32))


def test_the_released_synapse_net_equals_onnx_runtime():
    path = SHARED / "synapse_unet.onnx"
    if not path.exists():
        pytest.skip("needs the released synapse U-Net")
    h5py = pytest.importorskip("h5py")
    with h5py.File(SHARED / "synapse_sample1.h5") as file:
        x = file["main"][:8, 40:104, 40:104][None, None].astype(np.float32) / 255
    network = load(path)
    expected = runtime(path, x)
    assert error(network.reference(x), expected) < 2e-5 and error(network.run(x), expected) < 2e-5


SEVERAL = [helper.make_node("Split", ["x"], ["y", "z"], name="parts", axis=1)]
UNSUPPORTED = {
    **{
        kind: (one(kind, [], **extra), rf"node the_node \({kind}, opset \d+\) is not supported; supported are Add, ")
        for kind, extra in {
            "HardSigmoid": {}, "Selu": {}, "Softplus": {}, "Softsign": {}, "Abs": {}, "Sin": {}, "Erf": {}, "Ceil": {},
            "Floor": {}, "Round": {}, "Sign": {}, "Neg": {}, "Exp": {}, "Log": {}, "Sqrt": {}, "Reciprocal": {},
            "LpNormalization": {}, "MeanVarianceNormalization": {}, "LRN": {"size": 3}, "Hardmax": {}, "HardSwish": {},
            "GlobalLpPool": {}, "LpPool": {"kernel_shape": [1, 2, 2]}, "ReduceSum": {}, "Transpose": {}, "Mish": {"opset": 18},
            "LogSoftmax": {}, "Celu": {}, "ThresholdedRelu": {}, "CumSum": {"integers": [[1]]},
        }.items()
    },
    "cubic": (one("Resize", [(0,)], mode="cubic"), "the_node .* mode cubic is not supported"),
    "softmax over x": (one("Softmax", [], axis=-1), "only the softmax over channels"),
    "concat of z": (model([helper.make_node("Concat", ["x", "x"], ["y"], axis=2)], {}, (1, 1, 2, 3, 4)), "along the channels"),
    "reduce over z": (one("ReduceMax", [], axes=[2]), "only reductions over all spatial axes"),
    "reshape": (one("Reshape", [], integers=[[1, 2, 10, 8, 9]]), r"\(1, 4, 5, 8, 9\) to \(1, 2, 10, 8, 9\) is not supported"),
    "two outputs": (model(SEVERAL, {}, (1, 2, 3, 4, 5)), r"parts \(Split"),
    "slice backwards": (one("Slice", [], integers=[[-1], [0], [2], [-1]]), "a slice from -1 to 0 by -1 of 5 is not supported"),
    "slice of batch": (one("Slice", [], integers=[[0], [0], [0]]), "the_node"),
    "pad of channels": (one("Pad", [], integers=[[0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]), "padding of batch or channels"),
    "pad that wraps": (one("Pad", [], opset=19, integers=[[0] * 10], mode="wrap"), "padding by wrap is not supported"),
    "batch of resize": (
        model([helper.make_node("Resize", ["x", "", "s"], ["y"])], {"s": np.array([1, 2, 1, 1, 1], "f")}, (1, 1, 2, 3, 4)),
        "resizing batch or channels",
    ),
    "constant over voxels": (one("Add", [(1, 1, 1, 1, 9)]), "does not go by channel"),
    "weight of other channels": (one("Conv", [(3, 5, 1, 1, 1)]), "the_node"),
    "NaN": (
        model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": np.full((1, 1, 1, 1, 1), np.nan, "f")}, (1, 1, 2, 3, 4)),
        "weight holds NaN",
    ),
    "one axis": (one("Relu", [], in_shape=(1, 4, 9)), "got 3 axes"),
    "channels free": (one("Relu", [], in_shape=(1, None, 4, 4, 4)), "number of channels"),
    "other domain": (
        model([helper.make_node("Odd", ["x"], ["y"], domain="org.odd")], {}, (1, 1, 2, 3, 4)), "domain",
    ),
    "storage order": (one("MaxPool", [], kernel_shape=[1, 2, 2], storage_order=1), "storage_order = 1 is not supported"),
    "output shape": (
        one("ConvTranspose", [(4, 1, 1, 2, 2)], strides=[1, 2, 2], output_shape=[5, 16, 18]),
        "output_shape = .* is not supported",
    ),
    "does not fit": (one("Conv", [(1, 4, 9, 9, 9)]), "kernel 9x9x9 needs at least 9 voxels along z, got 5"),
    "not the input": (
        model([helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.zeros(3, "f")))], {}, (1, 1, 2, 3, 4)),
        "does not depend on its input",
    ),
    "integers": (
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Identity", ["x"], ["y"])], "g",
                [helper.make_tensor_value_info("x", TensorProto.INT64, (1, 1, 2, 3, 4))],
                [helper.make_tensor_value_info("y", TensorProto.INT64, (1, 1, 2, 3, 4))],
            )
        ),
        "must be of floats",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path, what):
    proto, says = UNSUPPORTED[what]
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises((FormatError, InvalidShape), match=says):
        load(path)


def damaged(what: str) -> bytes:
    good = ONES["groups"].SerializeToString()
    return {
        "empty": b"",
        "text": b"this is no model",
        "half": good[: len(good) // 2],
        "first byte": bytes([255]) + good[1:],
        "zeros": bytes(100),
    }[what]


@pytest.mark.parametrize("what", ["empty", "text", "half", "first byte", "zeros"])
def test_what_is_no_model_is_refused(tmp_path, what):
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged(what))
    with pytest.raises(FormatError, match=r"model\.onnx"):
        load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read .*none\.onnx"):
        load(tmp_path / "none.onnx")
