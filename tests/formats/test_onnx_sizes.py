"""ONNX operators whose meaning hangs on the size of the input, on broadcasting, or on rounding; malformed ones."""

from __future__ import annotations

import numpy as np
import pytest

from znni import load
from znni.errors import FormatError, InvalidShape

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from .onnx_graphs import model  # noqa: E402
from .test_onnx import check, one  # noqa: E402

FREE = (1, 4, "z", "y", "x")
WEIGHT = {"w": np.random.default_rng(0).standard_normal((4, 4, 3, 3, 3)).astype(np.float32)}
HALVED = helper.make_node("MaxPool", ["x"], ["half"], name="half", kernel_shape=[2] * 3, strides=[2] * 3)

#: Models of free size that another size makes another network.
BY_SIZE = {
    "auto_pad": ([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2] * 3)], WEIGHT),
    "ceil_mode": ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2] * 3, strides=[2] * 3, ceil_mode=1)], {}),
    "resize to the input": (
        [HALVED, helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Resize", ["half", "", "", "s"], ["y"])],
        {},
    ),
    "pad to a multiple": (
        [
            helper.make_node("Shape", ["x"], ["size"], start=2),
            helper.make_node("Neg", ["size"], ["negative"]),
            helper.make_node("Mod", ["negative", "sixteen"], ["rest"]),
            helper.make_node("Concat", ["none", "rest"], ["pads"], axis=0),
            helper.make_node("Pad", ["x", "pads"], ["y"]),
        ],
        {"sixteen": np.array(16), "none": np.zeros(7, np.int64)},
    ),
}


@pytest.mark.parametrize("what", BY_SIZE)
def test_what_goes_by_the_size_is_refused_where_that_is_free(tmp_path, what):
    nodes, constants = BY_SIZE[what]
    onnx.save(model(nodes, constants, FREE), tmp_path / "model.onnx")
    says = "is another layer for inputs of 32x32x32 and of 33x32x32|windows reach beyond the padding"
    with pytest.raises(FormatError, match=says):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("what", ["auto_pad", "ceil_mode", "resize to the input", "pad to a multiple"])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 10, 7)])
def test_what_goes_by_the_size_is_read_where_that_is_fixed(tmp_path, what, size):
    nodes, constants = BY_SIZE[what]
    x = np.random.default_rng(0).standard_normal((1, 4, *size)).astype(np.float32)
    check(tmp_path, model(nodes, constants, x.shape), x)


def test_a_crop_that_joins_keep_to_sizes_that_fit_stays_free(tmp_path):
    nodes = [HALVED, helper.make_node("Resize", ["half", "", "s"], ["up"]), helper.make_node("Add", ["x", "up"], ["y"])]
    proto = model(nodes, {"s": np.array([1, 1, 2, 2, 2], np.float32)}, FREE)
    network, _ = check(tmp_path, proto, np.random.default_rng(0).standard_normal((1, 4, 4, 6, 8)).astype(np.float32))
    with pytest.raises(InvalidShape):
        network.check_patch((5, 6, 8))


def gate():
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("Sigmoid", ["first"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
    return model(nodes, {"zero": np.array([0]), "one": np.array([1])}, (1, 4, 3, 4, 5))


def folded(*nodes, **constants):
    nodes = [*nodes, helper.make_node("Cast", ["c"], ["f"], to=1), helper.make_node("Mul", ["x", "f"], ["y"])]
    return model(nodes, constants, (1, 4, 3, 4, 5))


def planes(**attributes):
    return one("ConvTranspose", [(4, 2, 2, 2)], in_shape=(1, 4, 8, 9), strides=[2, 2], **attributes)


SCALE = {"s": np.array([1, 1, 1, 0.7, 0.7], np.float32)}
EQUAL = {
    "layer norm": one("LayerNormalization", [(4, 1, 1, 1), (4, 1, 1, 1)], in_shape=(2, 4, 3, 4, 5), axis=1),
    "a gate of one channel": gate(),
    "planes, padding of the output said": planes(output_padding=[0, 0]),
    "planes, padding of the output": planes(output_padding=[1, 0]),
    "0.7 of ten, linear": model([helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")], SCALE, (1, 4, 3, 10, 20)),
    "0.7 of ten, nearest": model([helper.make_node("Resize", ["x", "", "s"], ["y"])], SCALE, (1, 4, 3, 10, 20)),
    "remainder of C": folded(helper.make_node("Mod", ["a", "b"], ["c"], fmod=1), a=np.float32(-5.5), b=np.float32(3)),
    "product along an axis": folded(
        helper.make_node("ReduceProd", ["a"], ["c"], axes=[0], keepdims=0), a=np.array([[2.0], [3.0]], np.float32)
    ),
    "slice with steps alone": folded(
        helper.make_node("Slice", ["a", "from", "to", "", "by"], ["c"]),
        a=np.arange(5.0, dtype=np.float32), **{"from": np.array([3]), "to": np.array([5]), "by": np.array([2])},
    ),
    "a branch that nothing reads": model(
        [helper.make_node("Erf", ["x"], ["unread"]), helper.make_node("Relu", ["x"], ["y"])], {}, (1, 4, 3, 4, 5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EQUAL)
def test_these_equal_onnx_runtime(tmp_path, what):
    proto = EQUAL[what]
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    check(tmp_path, proto, np.random.default_rng(1).standard_normal(shape).astype(np.float32))


HUGE = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Exp", ["c"], ["d"])]
REFUSED = {
    "slopes along x": one("PRelu", [(4,)], in_shape=(1, 4, 4, 4, 4)),
    "slopes along z": one("PRelu", [(4, 1, 1)], in_shape=(1, 4, 4, 4, 4)),
    "sizes of other channels": model(
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"])], {"s": np.array([1, 8, 3, 4, 5])}, (1, 4, 3, 4, 5)
    ),
    "layer norm over x": one("LayerNormalization", [(5,), (5,)], in_shape=(1, 4, 3, 4, 5)),
    "layer norm by voxel": one("LayerNormalization", [(4, 3, 4, 5)], in_shape=(1, 4, 3, 4, 5), axis=1),
    "sums of two sizes": model([HALVED, helper.make_node("Add", ["x", "half"], ["y"])], {}, (1, 4, 8, 8, 8)),
    "unknown coordinates": model(
        [helper.make_node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="odd")], SCALE, (1, 4, 3, 4, 5)
    ),
    "stride 0": one("Conv", [(4, 4, 1, 1, 1)], strides=[0, 1, 1]),
    "negative pads": one("Conv", [(4, 4, 3, 3, 3)], pads=[-1] * 6),
    "no groups": one("GroupNormalization", [(4,), (4,)], opset=21, num_groups=0),
    "three groups of four": one("GroupNormalization", [(4,), (4,)], opset=21, num_groups=3),
    "blocks of 0": one("DepthToSpace", [], in_shape=(1, 4, 8, 8), blocksize=0),
    "sizes of 0": model(
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"])], {"s": np.array([1, 4, 0, 4, 5])}, (1, 4, 3, 4, 5)
    ),
    "words of no encoding": one("Pad", [], integers=[[0] * 10], mode=b"\xff\xfe"),
    "terabytes of constants": model(
        [*HUGE, helper.make_node("Add", ["x", "d"], ["y"])], {"s": np.array([1 << 44])}, (1, 4, 3, 4, 5)
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_these_are_refused_with_file_and_node(tmp_path, what):
    path = tmp_path / "model.onnx"
    path.write_bytes(REFUSED[what].SerializeToString())
    with pytest.raises(FormatError, match=r"model\.onnx.*node .* \(\w+, opset \d+\)"):
        load(path)
