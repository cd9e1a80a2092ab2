"""A library of convolutions, after cuDNN: NumPy, with the workspace demanded and overwritten."""

from __future__ import annotations

from math import prod

import numpy as np

from znni.errors import DeviceError
from znni.gpu.convolution import Convolutions, ConvolutionSpec
from znni.gpu.device import DeviceArray
from znni.layers import Conv

from .products import rounded_to_tf32

_GARBAGE = 0xFF


class SimulatedConvolutions(Convolutions):
    """Two algorithms that can: one everything, without workspace, one only what is not dilated; and one that cannot."""

    version = "0.0 (simulated)"

    def __init__(self, device):
        self._device = device

    def algorithms(self) -> tuple[str, ...]:
        return ("simulated_taps", "simulated_columns", "simulated_nothing")

    def workspace_bytes(self, spec: ConvolutionSpec, algorithm: str) -> int | None:
        if algorithm not in self.algorithms():
            raise DeviceError(f"there is no algorithm {algorithm!r}; there are {', '.join(self.algorithms())}")
        if algorithm == "simulated_taps":
            return 0
        if algorithm == "simulated_columns" and spec.dilation == (1, 1, 1):
            return 4 * prod(self._out_shape(spec)[2:]) + 100
        return None

    def _out_shape(self, spec: ConvolutionSpec):
        return Conv(spec.out_channels, spec.kernel, spec.stride, spec.padding, spec.dilation).output_shape(spec.shape)

    def convolve(
        self,
        stream,
        spec: ConvolutionSpec,
        algorithm: str,
        x: DeviceArray,
        weight: DeviceArray,
        out: DeviceArray,
        work: DeviceArray,
    ) -> None:
        device = self._device
        device.check_usable()
        need = self.workspace_bytes(spec, algorithm)
        if need is None:
            raise DeviceError(f"{algorithm} cannot compute {spec}")
        if work.nbytes < need:
            raise DeviceError(f"{algorithm} needs a workspace of {need} bytes, got {work.nbytes}")
        weight_shape = (spec.out_channels, spec.shape[1], *spec.kernel)
        shapes = ((x, spec.shape), (weight, weight_shape), (out, self._out_shape(spec)))
        for array, shape in shapes:
            if array.nbytes != 4 * prod(shape):
                raise DeviceError(f"a convolution takes {shape}, got {array.nbytes} bytes: {spec}")
            device.memory.check(array, "a convolution")

        def compute():
            values, taps, results = (device.memory.view(a).reshape(-1).view(np.float32).reshape(s) for a, s in shapes)
            scratch = device.memory.view(work).reshape(-1).view(np.uint8)
            if spec.tf32:
                values, taps = rounded_to_tf32(values), rounded_to_tf32(taps)
            results[...] = _correlated(spec, values, taps)
            scratch[:need] = _GARBAGE

        stream.enqueue("cudnn", compute)


def _correlated(spec: ConvolutionSpec, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Products of input and weight, summed tap by tap."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in spec.padding)])
    extent = [(k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True)]
    size = [(n - e) // s + 1 for n, e, s in zip(x.shape[2:], extent, spec.stride, strict=True)]
    total = np.zeros((x.shape[0], spec.out_channels, *size), np.float32)
    for tap in np.ndindex(*spec.kernel):
        start = [t * d for t, d in zip(tap, spec.dilation, strict=True)]
        cut = (slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, size, spec.stride, strict=True))
        total += np.einsum("oi,bizyx->bozyx", weight[(..., *tap)], x[(..., *cut)], optimize=True)
    return total
