"""`cpu.openvino`: a convolution compiled by OpenVINO, where that is installed; imported when the first one is prepared."""

from __future__ import annotations

import numpy as np

from znni.layers import Conv, Shape, by_x
from znni.primitives.base import Config, Primitive, Weights, register, unfit
from znni.primitives.foreign import ForeignConv, ForeignOperator


class _OpenVino(ForeignOperator):
    """Holds the compiled model and one request, which reads and writes the caller's arrays."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        import openvino

        super().__init__(primitive, layer, shape, config, threads)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._request = (
            openvino.Core().compile_model(_model(layer, weights, shape), "CPU", settings).create_infer_request()
        )
        self._tensor = openvino.Tensor

    def _call(self, x: np.ndarray, out: np.ndarray) -> None:
        self._request.set_input_tensor(self._tensor(x, shared_memory=True))
        self._request.set_output_tensor(self._tensor(out, shared_memory=True))
        self._request.infer()


def _model(layer: Conv, weights: Weights, shape: Shape):
    """The layer as a model of OpenVINO's operations."""
    import openvino
    from openvino import opset13 as operations

    x = operations.parameter(shape, np.float32)
    y = operations.convolution(
        x, operations.constant(weights["weight"]), layer.stride, layer.padding, layer.padding, layer.dilation
    )
    y = operations.add(y, operations.constant(weights["bias"].reshape(1, -1, 1, 1, 1)))
    a, b = (operations.constant(np.float32(value)) for value in (layer.activation.a, layer.activation.b))
    y = {
        "linear": lambda y: y,
        "relu": operations.relu,
        "leaky_relu": lambda y: operations.prelu(y, operations.constant(np.float32([layer.activation.a]))),
        "elu": lambda y: operations.elu(y, layer.activation.a),
        "tanh": lambda y: operations.multiply(operations.tanh(operations.multiply(y, b)), a),
        "sigmoid": operations.sigmoid,
        "clip": lambda y: operations.clamp(y, layer.activation.a, layer.activation.b),
    }[layer.activation.name](y)
    return openvino.Model([y], [x])


class CpuOpenVino(ForeignConv):
    """OpenVINO's convolution, activation included."""

    name = "cpu.openvino"
    library = "openvino"
    counted = (2, 3, 2)
    fixed_bytes = 8 << 20

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what is wrong with padding (outputs that see nothing but padding come out unwritten) or size."""
        if any(p >= e for p, e in zip(layer.padding, layer.extent, strict=True)):
            return f"OpenVINO pads less than the kernel spans, {by_x(layer.extent)}, got {by_x(layer.padding)}"
        return unfit(layer, shape)

    def _prepared(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> _OpenVino:
        return _OpenVino(self, layer, weights, shape, config, threads)


_openvino = CpuOpenVino()
if _openvino.is_installed:
    register(_openvino)
