"""Resizing against ONNX Runtime, grouped and transposed convolutions against PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from znni.layers import ConvTranspose, GroupedConv, Resize
from znni.layers.resampling import COORDINATES, ROUNDING
from znni.primitives import get


def run(name: str, layer, weights: dict, x: np.ndarray) -> np.ndarray:
    """What the primitive of that name makes of plain `x`."""
    operator = get(name).prepare(layer, weights, x.shape, {}, 2)
    out = np.full(operator.out_shape, np.nan, np.float32)
    operator(x, out, np.empty(operator.workspace_bytes, np.uint8))
    return out


def resized_by_onnx(layer: Resize, x: np.ndarray) -> np.ndarray:
    """The same of ONNX Runtime, which is given factors where there is no `extra`, else sizes."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    shape = layer.output_shape(x.shape)
    by_size = any(layer.extra)
    given = (
        helper.make_tensor("by", kind.INT64, [5], shape)
        if by_size
        else helper.make_tensor("by", kind.FLOAT, [5], (1, 1, *layer.factor))
    )
    node = helper.make_node(
        "Resize",
        ["x", "", "", "by"] if by_size else ["x", "", "by"],
        ["y"],
        mode=layer.mode,
        coordinate_transformation_mode=layer.coordinates,
        nearest_mode=layer.rounding,
    )
    ends = [helper.make_tensor_value_info(n, kind.FLOAT, s) for n, s in (("x", x.shape), ("y", shape))]
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


FACTORS = [(1.0, 2.0, 2.0), (2.0, 3.0, 1.5), (0.5, 0.75, 2.0), (4 / 3, 1.0, 0.5)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("extra", [(0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("mode, rounding", [("linear", "floor"), *(("nearest", r) for r in ROUNDING)])
def test_resizes_as_onnx_runtime(coordinates, extra, mode, rounding):
    rng = np.random.default_rng(0)
    for factor, size in itertools.product(FACTORS, [(4, 6, 8), (3, 5, 7), (8, 3, 10)]):
        layer = Resize(factor, mode, coordinates, rounding, extra)
        x = rng.standard_normal((1, 2, *size), np.float32)
        np.testing.assert_allclose(
            run("cpu.resize", layer, {}, x),
            resized_by_onnx(layer, x),
            rtol=0,
            # coordinates of about 10 that differ in their last place, times the difference of two voxels
            atol=0 if mode == "nearest" else 5e-6,
            err_msg=f"{layer} of {size}",
        )


@pytest.mark.parametrize("groups, inner, outer", [(1, 3, 5), (3, 2, 2), (7, 1, 1)])
def test_transposes_as_pytorch(groups, inner, outer):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for kernel, stride, padding, more in [(3, 2, 1, 1), (2, 2, 0, 0), (4, 3, 1, 2), (3, 1, 2, 0)]:
        x = rng.standard_normal((2, groups * inner, 3, 4, 9), np.float32)
        weight = rng.standard_normal((groups * inner, outer, *(kernel,) * 3), np.float32)
        bias = rng.standard_normal(groups * outer, np.float32)
        there = torch.nn.functional.conv_transpose3d(
            *map(torch.from_numpy, (x, weight, bias)),
            stride=stride,
            padding=padding,
            output_padding=more,
            groups=groups,
        )
        layer = ConvTranspose(
            groups * outer, (kernel,) * 3, (stride,) * 3, (padding,) * 3, (padding - more,) * 3, groups
        )
        out = run("cpu.conv_transpose", layer, {"weight": weight, "bias": bias}, x)
        np.testing.assert_allclose(out, there.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups, inner, outer", [(1, 3, 5), (3, 2, 4), (7, 1, 1), (5, 1, 3)])
def test_convolves_in_groups_as_pytorch(groups, inner, outer):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    for kernel, stride, padding, dilation in [(3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 0, 2), (1, 3, 2, 1)]:
        x = rng.standard_normal((2, groups * inner, 4, 5, 11), np.float32)
        weight = rng.standard_normal((groups * outer, inner, *(kernel,) * 3), np.float32)
        bias = rng.standard_normal(groups * outer, np.float32)
        there = torch.nn.functional.conv3d(
            *map(torch.from_numpy, (x, weight, bias)), stride=stride, padding=padding, dilation=dilation, groups=groups
        )
        layer = GroupedConv(groups * outer, (kernel,) * 3, groups, (stride,) * 3, (padding,) * 3, (dilation,) * 3)
        out = run("cpu.grouped_conv", layer, {"weight": weight, "bias": bias}, x)
        np.testing.assert_allclose(out, there.numpy(), rtol=1e-4, atol=1e-4)
