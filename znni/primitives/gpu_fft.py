"""`gpu.fft`: convolution by 3D FFTs of whole images on the device, padded to sizes that cuFFT does fast.

What a config sets: see `znni.gpu.fft_convolution`. After the GPU algorithms of Zlateski, Lee & Seung, "ZNNi: maximizing the
inference throughput of 3D convolutional networks on CPUs and GPUs", SC'16.
"""

from __future__ import annotations

from znni.gpu.fft_whole_patch import WholePatch
from znni.gpu.transforms import BlockTransforms
from znni.primitives.base import register


class GpuFft(WholePatch):
    """Whole-image FFT convolution of stride 1 by cuFFT's 3D transforms."""

    name = "gpu.fft"
    way = BlockTransforms


register(GpuFft())
