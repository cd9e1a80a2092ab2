"""`gpu.fft_pruned`: convolution by FFTs of whole images on the device, of which only lines that matter are transformed.

Most lines of a padded kernel are zero, and of the result only a part is kept (`znni.gpu.fft_lines`). What a config sets: see
`znni.gpu.fft_convolution`. After Zlateski, Lee & Seung, "ZNNi: maximizing the inference throughput of 3D convolutional
networks on CPUs and GPUs", SC'16.
"""

from __future__ import annotations

from znni.gpu.fft_lines import LineTransforms
from znni.gpu.fft_whole_patch import WholePatch
from znni.primitives.base import register


class GpuFftPruned(WholePatch):
    """Whole-image FFT convolution of stride 1 by pruned transforms, axis by axis."""

    name = "gpu.fft_pruned"
    way = LineTransforms


register(GpuFftPruned())
