"""What is asked of a tuning, and by what two requests are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from znni.gpu.sources import sources_digest
from znni.layers import Triple
from znni.machine import Machine
from znni.network import Network


@dataclass(frozen=True)
class Request:
    """What is asked of a tuning.

    `output` fixes the output patch (z, y, x), and `patch` the input patch that gives it, where several do; `threads` None
    leaves them to the search; `volume` is the output voxels of the volumes that will be run, where they are known: patches
    that overhang it are charged for what they waste. `foreign` allows other libraries' primitives, where they are
    installed. `gpu_memory_bytes` is the limit on the open GPU's memory, None where none is to be used; `split` allows the
    CPU to compute the first layers while the GPU computes the rest; `only` ("gpu", "stream") is as
    `znni.predict.Predictor` has it, and leaves nothing to split.
    """

    memory_bytes: int
    threads: int | None = None
    budget_s: float = 60.0
    tolerance: float = 2e-5
    seed: int = 0
    normalise: str = "none"
    frozen: bool = False
    output: Triple | None = None
    patch: Triple | None = None
    volume: Triple | None = None
    foreign: bool = False
    gpu_memory_bytes: int | None = None
    split: bool = True
    only: str | None = None

    def digest(self, network: Network, machine: Machine) -> str:
        """What two requests must share to be the same one; the budget and `frozen` are not part of it."""
        parts = [
            network.digest, machine.fingerprint, machine.kernels, self.memory_bytes, self.threads, self.tolerance,
            self.seed, self.normalise, self.output, self.volume, self.foreign,
        ]  # fmt: skip
        if self.patch is not None:
            parts.append(self.patch)
        if self.gpu_memory_bytes:
            parts += [sources_digest(), self.gpu_memory_bytes, self.split, self.only]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
