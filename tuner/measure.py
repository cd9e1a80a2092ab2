"""What the search measures with: layers and plans in worker processes, each sample committed as it is taken."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tuner.worker import Worker, WorkerError
from znni.layers import Conv, ConvMaxPoolFragments, Layer, MaxPool, MaxPoolFragments, Recombine, Shape, describe
from znni.machine import Machine
from znni.network import Network
from znni.plan import Plan
from znni.predict import Measured
from znni.primitives import config_key, get
from znni.solve import Option
from znni.store import Store
from znni.store_rows import MeasurementKey
from znni.timing import Timing, bootstrap_interval, median

#: A layer is measured at a batch of fragments that is predicted to take about so long, and scaled from there.
TARGET_S = 0.25
#: Seconds of samples of one layer at most.
CAP_S = 1.0
#: Runs of a plan in one process, where they are quick, and seconds after which none is begun.
PLAN_ROUNDS, PLAN_CAP_S = 5, 4.0


@dataclass(frozen=True)
class PlanRun:
    """End-to-end runs of a plan in a process of its own."""

    samples: tuple[float, ...]
    peak_bytes: int
    #: The part of the plan's rounds that was run; `samples` are what all of them would take.
    share: float = 1.0

    @property
    def spent_s(self) -> float:
        """Seconds that a sample really took."""
        return self.seconds * self.share

    @property
    def seconds(self) -> float:
        """The median of the samples."""
        return median(self.samples)


@dataclass(frozen=True)
class Summary:
    """All runs of a plan together: voxels per second by the median, and its bootstrap interval."""

    voxels_per_s: float
    interval: tuple[float, float]


class Measurer:
    """Measures layers and plans of one network under one limit, and notes them in the store.

    Attributes
    ----------
    measurements, failures : int
        Rows written, and those of them that failed.
    last_failure : str
        Why the last one did.
    """

    def __init__(self, network: Network, store: Store, machine: Machine, limit_bytes: int, request: str):
        self.network, self.store, self.machine, self.limit_bytes = network, store, machine, limit_bytes
        self.request = request
        self.measurements = self.failures = 0
        self.last_failure = ""
        self._started, self._stopped = time.monotonic(), None
        self._worker = Worker()
        self._table: list[str] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds of this session that count."""
        return (self._stopped or time.monotonic()) - self._started

    def stop_clock(self) -> None:
        """What comes now is not charged to the budget."""
        self._stopped = time.monotonic()

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()

    def ceilings(self, threads: int) -> tuple[float, float]:
        """FLOP/s and bytes/s that `threads` threads reach at most."""
        found = self.machine.ceilings(threads, self.store)
        return found.flop_per_s, found.bytes_per_s

    def known(self, threads: int) -> list[Measured]:
        """What the store knows of this machine at that thread count."""
        rows = self.store.measured(self.machine.fingerprint, threads, kernels=self.machine.kernels)
        self._table += [_line(row) for row in rows]
        return rows

    def table_digest(self) -> str:
        """SHA-256 of the measurements decided from, the store's earlier ones included."""
        return hashlib.sha256("\n".join(sorted(self._table)).encode()).hexdigest()

    def baseline_bytes(self) -> int:
        """Resident bytes of a process that has all that ``znni-tune run`` loads, and this network, but no program yet."""
        with Worker() as fresh:
            return fresh.call("baseline", {"network": network_source(self.network)}, timeout_s=120.0)["resident_bytes"]

    def layer(self, layer: Layer, shape: Shape, option: Option, threads: int) -> Measured | None:
        """Measure one option of a layer, on a smaller shape where the whole takes long; None where it fails.

        The option's `seconds` are of one call.
        """
        choice = option.choice
        primitive = get(choice.primitive)
        whole, shape = shape, reduced(layer, shape, TARGET_S / option.seconds, primitive.whole_patch)
        key = MeasurementKey(
            layer, shape, choice.primitive, choice.config, threads, self.machine.fingerprint, self.machine.kernels
        )
        earlier = self.store.latest(key)
        if earlier and earlier.failed:
            return None
        memory = primitive.memory(layer, shape, choice.config, threads)
        row = self.store.open_measurement(key, predicted_bytes=memory.host_resident_bytes + memory.host_workspace_bytes)
        self.measurements += 1
        payload = {
            "layer": describe(layer),
            "shape": list(shape),
            "primitive": choice.primitive,
            "config": dict(choice.config),
            "threads": threads,
            "cap_s": CAP_S,
            "seed": 0,
            "check": True,
        }
        timeout_s = 30.0 + 20 * option.seconds * prod(shape) / prod(whole)
        try:
            found = self._worker.call("measure_layer", payload, timeout_s=timeout_s, on_sample=row.add_sample)
        except WorkerError as error:
            self._failed(str(error))
            row.fail(str(error))
            return None
        timing = Timing.from_dict(found["timing"])
        row.finish(timing, measured_bytes=found["measured_bytes"], relative_l2=found["relative_l2"])
        measured = Measured(layer, shape, choice.primitive, choice.config, timing.median_s)
        self._table.append(_line(measured))
        return measured

    def plan(self, plan: Plan, timeout_s: float, outer: int | None = None) -> PlanRun | None:
        """Run a plan end to end, or `outer` rounds of its outermost loop, in a fresh process; None where that fails."""
        row = self.store.open_plan_run(
            plan.digest,
            machine=self.machine.fingerprint,
            request=self.request,
            predicted_voxels_per_s=plan.throughput["predicted_voxels_per_s"],
            predicted_bytes=plan.memory["predicted_peak_bytes"],
        )
        self.measurements += 1
        payload = {
            "plan": plan.to_dict(),
            "rounds": PLAN_ROUNDS,
            "cap_s": PLAN_CAP_S,
            "limit_bytes": self.limit_bytes,
            "as_run": True,
            "outer": outer,
        }
        try:
            with Worker() as fresh:
                found = fresh.call("run_plan", payload, timeout_s=timeout_s, on_sample=row.add_sample)
        except WorkerError as error:
            self._failed(str(error))
            row.fail(str(error))
            return None
        run = PlanRun(tuple(found["seconds"]), found["peak_bytes"], found["share"])
        if run.peak_bytes > self.limit_bytes:
            reason = f"its measured peak of {run.peak_bytes} bytes is above the limit of {self.limit_bytes}"
            self._failed(reason)
            row.fail(reason, peak_bytes=run.peak_bytes)
            return None
        row.finish(measured_voxels_per_s=_voxels(plan) / run.seconds, peak_bytes=run.peak_bytes)
        return run

    def summary(self, plan: Plan, runs: Sequence[PlanRun]) -> Summary:
        """All runs of a plan together."""
        seconds = [second for run in runs for second in run.samples]
        low, high = bootstrap_interval(seconds)
        voxels = _voxels(plan)
        return Summary(voxels / median(seconds), (voxels / high, voxels / low))

    def _failed(self, reason: str) -> None:
        self.failures += 1
        self.last_failure = reason


def reduced(layer: Layer, shape: Shape, share: float, whole_patch: bool) -> Shape:
    """An input shape of about that share of `shape`: fewer fragments and, unless `whole_patch`, then fewer z planes."""
    if isinstance(layer, Recombine):
        return shape
    batch = max(1, min(shape[0], int(shape[0] * share)))
    share *= shape[0] / batch
    if share >= 0.5 or whole_patch:
        return (batch, *shape[1:])
    out_z = layer.output_shape(shape)[2]
    wanted = max(1, int(out_z * share))
    strided = layer.pool if isinstance(layer, ConvMaxPoolFragments) else layer
    stride = strided.stride[0] if isinstance(strided, Conv | MaxPool | MaxPoolFragments) else 1
    z = shape[2] - (out_z - wanted) * stride
    return (batch, shape[1], z, *shape[3:])


def network_source(network: Network) -> dict:
    """What a worker needs to load the network again."""
    return {"source": network.source, "seed": network.seed, "width": network.width, "weights": network.weights_source}


def _voxels(plan: Plan) -> int:
    return plan.batch * prod(plan.output_patch)


def _line(row: Measured) -> str:
    parts = [describe(row.layer), list(row.shape), row.primitive, config_key(row.config), row.seconds]
    return json.dumps(parts, sort_keys=True)
