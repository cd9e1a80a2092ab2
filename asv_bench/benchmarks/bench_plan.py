"""A small plan end to end: n337 narrowed to width 8, by the default plan."""

import time

import numpy as np

import znni
from znni.default_plan import default_plan

from .common import THREADS


class SmallPlan:
    """n337 at width 8 in 512 MiB."""

    timeout = 120

    def setup(self):
        network = znni.load("n337", seed=0, width=8)
        plan = default_plan(network, memory_bytes=512 << 20, threads=THREADS, volume=(32, 32, 32))
        plan.bind(network)
        self.program = plan.program()
        self.program.input[:] = np.random.default_rng(0).standard_normal(self.program.input.shape)
        self.program.run()

    def time_run(self):
        self.program.run()

    def peakmem_run(self):
        self.program.run()

    def track_ns_per_voxel(self):
        samples = []
        for _ in range(3):
            start = time.perf_counter()
            self.program.run()
            samples.append(time.perf_counter() - start)
        batch, _, z, y, x = self.program.output.shape
        return 1e9 * float(np.median(samples)) / (batch * z * y * x)

    track_ns_per_voxel.unit = "ns/voxel"


def timeraw_import():
    """Import time of the package in a fresh interpreter."""
    return "import znni"
