"""Each primitive at its best-guess config on layers of the published networks."""

import time

import numpy as np

from .common import LAYERS, prepared

_PRIMITIVES = ["cpu.direct", "cpu.fft", "cpu.fft_tiled", "cpu.mpf"]


class Primitive:
    """Seconds, peak bytes and nanoseconds per output voxel of one operator call."""

    params = (_PRIMITIVES, list(LAYERS))
    param_names = ("primitive", "layer")
    timeout = 120

    def setup(self, primitive, layer):
        self.operator, self.x, self.out, self.workspace, self.voxels = prepared(primitive, layer)
        self.operator(self.x, self.out, self.workspace)

    def time_call(self, primitive, layer):
        self.operator(self.x, self.out, self.workspace)

    def peakmem_call(self, primitive, layer):
        self.operator(self.x, self.out, self.workspace)

    def peakmem_setup_only(self, primitive, layer):
        """The baseline of `peakmem_call`."""

    def track_ns_per_voxel(self, primitive, layer):
        # asv takes larger for worse, so time per voxel it is, not voxels per second; and the median, as it keeps no samples.
        samples = []
        for _ in range(5):
            start = time.perf_counter()
            self.operator(self.x, self.out, self.workspace)
            samples.append(time.perf_counter() - start)
        return 1e9 * float(np.median(samples)) / self.voxels

    track_ns_per_voxel.unit = "ns/voxel"
