"""A library of tuned convolutions (cuDNN), as `gpu.cudnn` uses it: what `Device.cudnn` gives where one is installed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from znni.gpu.device import DeviceArray, Stream


@dataclass(frozen=True)
class ConvolutionSpec:
    """A 3D cross-correlation of (batch, channel, z, y, x) float32 arrays; shapes as `znni.layers.Conv` has them."""

    shape: tuple[int, int, int, int, int]
    out_channels: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    tf32: bool = False


class Convolutions(ABC):
    """The library. All its memory is given to it."""

    version: str

    @abstractmethod
    def algorithms(self) -> tuple[str, ...]:
        """Names of its forward algorithms, for 3D: "implicit_gemm", "implicit_precomp_gemm", "gemm", "fft_tiling", ..."""

    @abstractmethod
    def workspace_bytes(self, spec: ConvolutionSpec, algorithm: str) -> int | None:
        """Bytes that it wants; None where the algorithm cannot compute this."""

    @abstractmethod
    def convolve(
        self,
        stream: Stream,
        spec: ConvolutionSpec,
        algorithm: str,
        x: DeviceArray,
        weight: DeviceArray,
        out: DeviceArray,
        work: DeviceArray,
    ) -> None:
        """Enqueue ``out = x * weight``, without bias; weight is (out, in, z, y, x)."""
