"""A whole network by another library on the CPU, on the patch of a plan: PyTorch in its memory formats and compiled, ONNX
Runtime, OpenVINO.

The last two are given the model that PyTorch exports, made in a process of its own, so that what exporting takes is not taken
for what running takes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuner.peers import PreparedPeer, library_of
from znni.errors import RunFailed

if TYPE_CHECKING:
    from znni.layers import Shape
    from znni.network import Network

_EXPORT = """
import json, sys
from tuner.network_peers import export
export(json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
"""


def export(source: dict, shape: list[int], path: str) -> None:
    """Write the network that a plan names as ONNX, for inputs of `shape`."""
    import torch

    from znni.load import load
    from znni.torch_module import to_torch

    network = load(source["source"], source.get("weights"), source.get("seed"), source.get("width"))
    with torch.no_grad():
        torch.onnx.export(
            to_torch(network), (torch.zeros(shape),), path, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"],
        )  # fmt: skip


def prepare_network(peer: str, network: Network, source: dict, shape: Shape, threads: int) -> PreparedPeer:
    """The network prepared by `peer` for inputs of `shape`.

    Parameters
    ----------
    peer : str
        ``torch/contiguous``, ``torch/channels_last_3d``, ``torch.compile``, ``onnxruntime`` or ``openvino``.
    source : dict
        What a plan says of its network.
    """
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if peer.startswith("torch"):
        return _torch(peer, network, x, threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        _export_apart(source, shape, path)
        run = _onnxruntime if library_of(peer) == "onnxruntime" else _openvino
        return run(path, x, threads)


def _export_apart(source: dict, shape: Shape, path: Path) -> None:
    import json

    command = [sys.executable, "-c", _EXPORT, json.dumps(source), json.dumps(list(shape)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"PyTorch could not export the network: {done.stderr.strip().splitlines()[-1]}")


def _torch(peer: str, network: Network, x: np.ndarray, threads: int) -> PreparedPeer:
    import torch

    from znni.torch_module import to_torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    form = torch.contiguous_format if peer == "torch/contiguous" else torch.channels_last_3d
    module = to_torch(network).eval().to(memory_format=form)
    source = torch.from_numpy(x).to(memory_format=form)
    if peer == "torch.compile":
        module = torch.compile(module)
        module(source)  # it compiles when it is first called
    kept = []

    def run() -> None:
        kept.clear()
        kept.append(module(source))

    return PreparedPeer(run, lambda: kept[0].contiguous().numpy())


def _onnxruntime(path: Path, x: np.ndarray, threads: int) -> PreparedPeer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kept = []

    def run() -> None:
        kept[:] = session.run(None, {"x": x})

    return PreparedPeer(run, lambda: kept[0])


def _openvino(path: Path, x: np.ndarray, threads: int) -> PreparedPeer:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run(given: np.ndarray = x) -> None:  # held on: the request reads it where it lies
        request.infer()

    return PreparedPeer(run, lambda: np.array(request.get_output_tensor(0).data))
