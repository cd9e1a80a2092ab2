"""Other libraries as contenders: one layer computed by PyTorch (on the CPU, or with cuDNN on the GPU), ONNX Runtime or
OpenVINO, each at its best settings.

Each is run in a process of its own (`tuner.contender`), with its own way to set threads, its inputs in its own layout
before the clock starts. Their allocation is their own; what they take is measured, not predicted.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import ZnniError
from znni.layers import ZEROS, Activation, Conv, Layer, MaxFilter, MaxPool, Shape, Softmax

if TYPE_CHECKING:
    import torch

#: Library -> (modules it needs, pip line, settings in which it competes; none where there is nothing to set).
_LIBRARIES = {
    "torch": (("torch",), "pip install torch", ("contiguous", "channels_last_3d")),
    "torch.compile": (("torch",), "pip install torch", ()),
    "torch.cuda": (
        ("torch",),
        "pip install torch",
        ("contiguous", "contiguous/tf32", "channels_last_3d", "channels_last_3d/tf32"),
    ),
    "openvino": (("openvino", "onnx"), "pip install openvino onnx", ()),
    "onnxruntime": (("onnxruntime", "onnx"), "pip install onnxruntime onnx", ()),
}
#: Words for every peer that is installed, and for none. Compiling takes PyTorch seconds and makes a lone convolution no
#: faster (80 -> 80 channels, 3^3, input 58^3: 0.400 s, and 0.398 s without), so that it must be asked for.
ALL, NONE = "all", "none"
_ONLY_ASKED_FOR = "torch.compile"


@dataclass(frozen=True)
class PreparedPeer:
    """A layer ready to run: `run` does the work, `result` gives what the last run made as (batch, channel, z, y, x).

    On the GPU, `timed` gives seconds per call of so many calls in a row, by the device's clock and by the host's, and
    `device_bytes` what the library took there at most.
    """

    run: Callable[[], object]
    result: Callable[[], np.ndarray]
    timed: Callable[[int], tuple[float, float]] | None = None
    device_bytes: Callable[[], int] | None = None


def peer_device(peer: str) -> str:
    """Where a peer computes: "cpu" or "gpu"."""
    return "gpu" if library_of(peer) == "torch.cuda" else "cpu"


def parse_peers(text: str, device: str = "cpu") -> tuple[str, ...]:
    """``torch,onnxruntime``, ``torch/contiguous``, ``all`` or ``none`` as peers, each a library with its setting.

    ``all`` are those that are installed and compute on `device`.

    Raises
    ------
    ZnniError
        Naming what there is, or what to install, where one is unknown or missing.
    """
    if text.strip() == ALL:
        libraries = [
            name
            for name in _LIBRARIES
            if name != _ONLY_ASKED_FOR and peer_device(name) == device and _missing(name) is None
        ]
        return tuple(peer for library in libraries for peer in _peers_of(library))
    found: list[str] = []
    for name in (name.strip() for name in text.split(",")):
        if name and name != NONE:
            library = library_of(name)
            if library not in _LIBRARIES or name not in (library, *_peers_of(library)):
                raise ZnniError(f"no peer is named {name!r}; known are {', '.join(peer_names())}, all and none")
            missing = _missing(library)
            if missing:
                raise ZnniError(f"peer {name} needs {missing}")
            found += _peers_of(library) if name == library else (name,)
    return tuple(dict.fromkeys(found))


def peer_names() -> tuple[str, ...]:
    """All peers that can be asked for; those on the GPU only where there is one."""
    libraries = [name for name in _LIBRARIES if peer_device(name) == "cpu" or _missing(name) is None]
    return tuple(name for library in libraries for name in dict.fromkeys((library, *_peers_of(library))))


def library_of(peer: str) -> str:
    """A peer's library: ``torch`` of ``torch/contiguous``."""
    return peer.split("/")[0]


def _peers_of(library: str) -> tuple[str, ...]:
    return tuple(f"{library}/{setting}" for setting in _LIBRARIES[library][2]) or (library,)


def _missing(library: str) -> str | None:
    """What a library needs and this machine lacks, in words; None where it can be used."""
    modules, line, _ = _LIBRARIES[library]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)}, which is not installed: {line}"
    if library == "torch.compile" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "a C++ compiler: apt install g++, or set CXX"
    if library == "torch.cuda":
        from tuner.peers_cuda import missing_for_cuda

        return missing_for_cuda()
    return None


def why_not(peer: str, layer: Layer) -> str | None:
    """Why `peer` cannot compute `layer`, or None."""
    if isinstance(layer, (Conv, Softmax, MaxPool)):
        return None
    if isinstance(layer, MaxFilter) and peer.startswith("torch"):
        return None
    return f"{peer} has no {layer.kind}"


def prepare_peer(peer: str, layer: Layer, weights: dict[str, np.ndarray], x: np.ndarray, threads: int) -> PreparedPeer:
    """`layer` with `weights`, prepared by `peer` for the input `x`."""
    if library_of(peer) == "torch.cuda":
        from tuner.peers_cuda import prepare_on_cuda

        return prepare_on_cuda(peer, layer, weights, x)
    if peer.startswith("torch"):
        return _torch(peer, layer, weights, x, threads)
    if peer == "onnxruntime":
        return _onnxruntime(layer, weights, x, threads)
    return _openvino(layer, weights, x, threads)


def _torch(peer: str, layer: Layer, weights: dict[str, np.ndarray], x: np.ndarray, threads: int) -> PreparedPeer:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    form = torch.contiguous_format if peer == "torch/contiguous" else torch.channels_last_3d
    source = torch.from_numpy(x).to(memory_format=form)
    module = torch_module(layer, weights, x.shape[1]).to(memory_format=form)
    if peer == "torch.compile":
        module = torch.compile(module, mode="max-autotune-no-cudagraphs")
        module(source)  # it compiles when it is first called
    kept = []

    def run() -> None:
        kept[:] = [module(source)]

    return PreparedPeer(run, lambda: kept[0].contiguous().numpy())


def torch_module(layer: Layer, weights: dict[str, np.ndarray], in_channels: int) -> torch.nn.Module:
    """`layer` as a module of PyTorch's, on the CPU."""
    import torch

    if isinstance(layer, Conv):
        conv = torch.nn.Conv3d(
            in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding, layer.dilation
        )
        conv.weight.copy_(torch.from_numpy(weights["weight"]))
        conv.bias.copy_(torch.from_numpy(weights["bias"]))
        module = torch.nn.Sequential(conv, *_torch_activation(layer.activation))
    elif isinstance(layer, Softmax):
        module = torch.nn.Softmax(dim=1)
    else:
        stride = layer.stride if isinstance(layer, MaxPool) else 1
        dilation = layer.dilation if isinstance(layer, MaxFilter) else 1
        module = torch.nn.MaxPool3d(layer.window, stride, dilation=dilation)
    return module.eval()


def _torch_activation(activation: Activation) -> list:
    import torch

    class ScaledTanh(torch.nn.Module):
        def forward(self, y):
            return torch.tanh(y.mul_(activation.b)).mul_(activation.a)

    return {
        "linear": lambda: [],
        "relu": lambda: [torch.nn.ReLU(inplace=True)],
        "leaky_relu": lambda: [torch.nn.LeakyReLU(activation.a, inplace=True)],
        "elu": lambda: [torch.nn.ELU(activation.a, inplace=True)],
        "tanh": lambda: [ScaledTanh()],
        "sigmoid": lambda: [torch.nn.Sigmoid()],
        "clip": lambda: [torch.nn.Hardtanh(activation.a, activation.b, inplace=True)],
    }[activation.name]()


def _onnx_model(layer: Layer, weights: dict[str, np.ndarray], shape: Shape) -> bytes:
    """A model of this one layer (and its activation), as ONNX bytes."""
    from onnx import TensorProto, helper, numpy_helper

    out_shape = layer.output_shape(shape)
    nodes, initializers = [], []
    if isinstance(layer, Conv):
        initializers = [numpy_helper.from_array(weights[name], name) for name in ("weight", "bias")]
        nodes.append(
            helper.make_node(
                "Conv", ["x", "weight", "bias"], ["conv"], kernel_shape=layer.kernel, strides=layer.stride,
                pads=[*layer.padding, *layer.padding], dilations=layer.dilation,
            )
        )  # fmt: skip
        nodes += _onnx_activation(layer.activation, initializers)
    elif isinstance(layer, Softmax):
        nodes.append(helper.make_node("Softmax", ["x"], ["y"], axis=1))
    else:
        nodes.append(
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=layer.window, strides=layer.stride, pads=[*ZEROS, *ZEROS]
            )
        )
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _onnx_activation(activation: Activation, initializers: list) -> list:
    from onnx import helper, numpy_helper

    if activation.name == "tanh":
        initializers += [numpy_helper.from_array(np.float32(getattr(activation, name)), name) for name in ("a", "b")]
        return [
            helper.make_node("Mul", ["conv", "b"], ["scaled"]),
            helper.make_node("Tanh", ["scaled"], ["curved"]),
            helper.make_node("Mul", ["curved", "a"], ["y"]),
        ]
    if activation.name == "clip":
        bounds = {"low": activation.a, "high": activation.b}
        initializers += [numpy_helper.from_array(np.float32(value), name) for name, value in bounds.items()]
        return [helper.make_node("Clip", ["conv", *bounds], ["y"])]
    name = {"linear": "Identity", "relu": "Relu", "leaky_relu": "LeakyRelu", "elu": "Elu", "sigmoid": "Sigmoid"}
    settings = {"alpha": activation.a} if activation.name in ("leaky_relu", "elu") else {}
    return [helper.make_node(name[activation.name], ["conv"], ["y"], **settings)]


def _onnxruntime(layer: Layer, weights: dict[str, np.ndarray], x: np.ndarray, threads: int) -> PreparedPeer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _onnx_model(layer, weights, x.shape), options, providers=["CPUExecutionProvider"]
    )
    kept = []

    def run() -> None:
        kept[:] = session.run(None, {"x": x})

    return PreparedPeer(run, lambda: kept[0])


def _openvino(layer: Layer, weights: dict[str, np.ndarray], x: np.ndarray, threads: int) -> PreparedPeer:
    import io

    import openvino

    core = openvino.Core()
    model = core.read_model(io.BytesIO(_onnx_model(layer, weights, x.shape)))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return PreparedPeer(request.infer, lambda: np.array(request.get_output_tensor(0).data))
