"""A whole network by PyTorch: dense, with dilated convolutions, at the patch that is fastest within a limit on memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tuner.peers import PreparedPeer, torch_module
from znni import geometry
from znni.layers import Conv, Maxout, Triple

if TYPE_CHECKING:
    import torch

    from znni.network import Network

#: Output patches that are tried: cubes, from this side on, each with about this many times the voxels of the one before.
_FIRST_SIDE, _GROWTH = 8, 1.6
_MOST_SIDE = 1024


def torch_network(network: Network) -> torch.nn.Module:
    """The network, poolings as dilated max-filters, as a module of PyTorch's on the CPU."""
    import torch

    class MaxoutModule(torch.nn.Module):
        def __init__(self, group: int):
            super().__init__()
            self.group = group

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(1, (-1, self.group)).amax(2)

    modules, channels = [], network.in_channels
    for node in network.lowered("filter"):
        layer = node.layer
        if isinstance(layer, Maxout):
            modules.append(MaxoutModule(layer.group))
            channels //= layer.group
            continue
        modules.append(torch_module(layer, network.weights.get(node.name, {}), channels))
        channels = layer.out_channels if isinstance(layer, Conv) else channels
    return torch.nn.Sequential(*modules).eval()


def sides() -> Iterator[int]:
    """Sides of the output patches that are tried, from small to large."""
    side, volume = _FIRST_SIDE, float(_FIRST_SIDE**3)
    while side <= _MOST_SIDE:
        yield side
        while round(volume ** (1 / 3)) <= side:
            volume *= _GROWTH
        side = round(volume ** (1 / 3))


def fastest_side(seconds_of: Callable[[int], float | None], cap_s: float) -> int | None:
    """The side of the output patch with most voxels per second; None where even the smallest does not fit.

    Parameters
    ----------
    seconds_of : callable
        Seconds that an output patch of that side takes, None where it does not fit.
    cap_s : float
        Seconds after which no further one is tried.
    """
    start, rates = time.monotonic(), {}
    for side in sides():
        seconds = seconds_of(side)
        if seconds is None:
            break
        rates[side] = side**3 / seconds
        if time.monotonic() - start > cap_s:
            break
    return max(rates, key=rates.get, default=None)


def prepare_network_on_cuda(
    peer: str, network: Network, limit_bytes: int | None, cap_s: float, output: Triple | None = None
) -> tuple[PreparedPeer, Triple] | None:
    """The network prepared on the GPU, with its output patch; None where none fits.

    Parameters
    ----------
    peer : str
        ``torch.cuda/`` with memory format and precision.
    limit_bytes : int, optional
        Of the GPU's memory.
    cap_s : float
        Seconds for finding the patch.
    output : (z, y, x), optional
        The patch, where it is known already.
    """
    import torch

    from tuner.peers_cuda import prepared_on_cuda, use_cuda

    memory_format = use_cuda(peer)
    if limit_bytes:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes))
    module = torch_network(network).to("cuda").to(memory_format=memory_format)

    def prepared(size: Triple) -> PreparedPeer:
        shape = (1, network.in_channels, *geometry.input_size(size, network.field_of_view))
        source = torch.rand(shape, device="cuda").to(memory_format=memory_format)
        return prepared_on_cuda(module, source)

    def seconds_of(side: int) -> float | None:
        try:
            own = prepared((side,) * 3)
            own.run()
            return own.timed(1)[0]
        except RuntimeError:  # out of memory, or more elements than cuDNN takes
            return None
        finally:
            own = None
            torch.cuda.empty_cache()

    if output is None:
        side = fastest_side(seconds_of, cap_s)
        if side is None:
            return None
        output = (side,) * 3
    return prepared(output), output
