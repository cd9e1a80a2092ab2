"""PyTorch on the GPU as a contender: cuDNN's convolutions, the fastest that it finds for the layer, in fp32 or TF32."""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING

import numpy as np

from tuner.peers import PreparedPeer, torch_module
from znni.layers import Layer

if TYPE_CHECKING:
    import torch


def missing_for_cuda() -> str | None:
    """What PyTorch lacks to compute on the GPU, in words; None where it can."""
    try:
        ctypes.CDLL("libcuda.so.1")  # without it there is no need to load PyTorch, which takes seconds
    except OSError:
        return "an NVIDIA driver (libcuda.so.1), which is not here"
    import torch

    if not torch.cuda.is_available():
        return "a PyTorch built for CUDA, and a GPU that it can use (torch.cuda.is_available())"
    return None


def prepare_on_cuda(peer: str, layer: Layer, weights: dict[str, np.ndarray], x: np.ndarray) -> PreparedPeer:
    """`layer` with `weights` and the input `x` on the GPU, in the memory format and precision that `peer` names.

    The first run lets cuDNN time its algorithms (``cudnn.benchmark``).
    """
    import torch

    memory_format = use_cuda(peer)
    source = torch.from_numpy(x).to("cuda").to(memory_format=memory_format)
    module = torch_module(layer, weights, x.shape[1]).to("cuda").to(memory_format=memory_format)
    return prepared_on_cuda(module, source)


def use_cuda(peer: str) -> torch.memory_format:
    """Set this process to the precision that `peer` names, and let cuDNN time its algorithms; its memory format."""
    import torch

    torch.set_grad_enabled(False)
    _, form, *precision = peer.split("/")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == ["tf32"]
    return torch.contiguous_format if form == "contiguous" else torch.channels_last_3d


def prepared_on_cuda(module: torch.nn.Module, source: torch.Tensor) -> PreparedPeer:
    """A module ready to run on an input that lies on the GPU."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    kept = []

    def call() -> None:
        kept[:] = ()  # its memory is for the next result
        kept[:] = [module(source)]

    def run() -> None:
        call()
        torch.cuda.synchronize()

    def timed(calls: int) -> tuple[float, float]:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begun.record()
        for _ in range(calls):
            call()
        ended.record()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - start
        return begun.elapsed_time(ended) / 1e3 / calls, wall_s / calls

    return PreparedPeer(
        run, lambda: kept[0].contiguous().cpu().numpy(), timed, lambda: torch.cuda.max_memory_allocated()
    )
