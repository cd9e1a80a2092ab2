"""What the search measures with: layers and plans in worker processes, each sample committed as it is taken."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod

from tuner.plan_device import device_of, planned_device_bytes
from tuner.worker import TaskRaised, Worker, WorkerError
from znni.gpu.ceilings import DeviceCeilings
from znni.gpu.sources import sources_digest
from znni.layers import Conv, ConvMaxPoolFragments, Layer, MaxPool, MaxPoolFragments, Recombine, Shape, describe
from znni.machine import Machine
from znni.network import Network
from znni.plan import Plan
from znni.predict import Measured
from znni.primitives import config_key, get
from znni.primitives.base import Config, Memory, Primitive
from znni.solve import Option
from znni.store import OpenMeasurement, Store
from znni.store_rows import NO_THREADS, SIMULATED, DeviceFigures, MeasurementKey, json_text
from znni.timing import Timing, bootstrap_interval, median

#: A layer is measured at a batch of fragments that is predicted to take about so long, and scaled from there; on the GPU,
#: where as much work takes that much less, what goes there and back would else take longer than the measurement.
TARGET_S = {"cpu": 0.25, "gpu": 0.03}
#: Seconds of samples of one layer at most.
CAP_S = 1.0
#: Seconds that beginning a measurement may take: on the device kernels are compiled.
_START_S = {"cpu": 30.0, "gpu": 120.0}
#: Errors that say nothing of what was to be measured, but of what else the device was doing.
_PASSING = ("DeviceMemory", "NoDevice")
#: Runs of a plan in one process, where they are quick, and seconds after which none is begun.
PLAN_ROUNDS, PLAN_CAP_S = 5, 4.0


@dataclass(frozen=True)
class PlanRun:
    """End-to-end runs of a plan in a process of its own. A sample of a split plan is the time from patch to patch."""

    samples: tuple[float, ...]
    peak_bytes: int
    #: The part of the plan's rounds that was run; `samples` are what all of them would take.
    share: float = 1.0
    peak_device_bytes: int = 0

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

    Parameters
    ----------
    network, store, machine
    limit_bytes : int
        Of a plan's process.
    request : str
        Digest of what was asked for.
    gpu_memory_bytes : int, optional
        Limit on a plan's memory on the device; None where the GPU is not used.

    Attributes
    ----------
    measurements, failures : int
        Rows written, and those of them that failed.
    last_failure : str
        Why the last one did.
    """

    def __init__(
        self,
        network: Network,
        store: Store,
        machine: Machine,
        limit_bytes: int,
        request: str,
        gpu_memory_bytes: int | None = None,
    ):
        self.network, self.store, self.machine, self.limit_bytes = network, store, machine, limit_bytes
        self.request, self.gpu_memory_bytes = request, gpu_memory_bytes
        self.measurements = self.failures = 0
        self.last_failure = ""
        self._started, self._stopped = time.monotonic(), None
        self._worker = Worker()
        self._table: list[str] = []
        self._refused: set[str] = set()
        self._simulated: bool | None = None

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

    def gpu_ceilings(self) -> DeviceCeilings:
        """What the GPU reaches at most: from the store, else measured now and stored."""
        return gpu_ceilings(self.store, self.machine, self._worker)

    def known(self, threads: int) -> list[Measured]:
        """What the store knows of this machine at that thread count, and of its GPU, where that is used."""
        rows = self.store.measured(self.machine.fingerprint, threads, kernels=self.machine.kernels)
        if self.gpu_memory_bytes is not None:
            rows += self.store.measured(self.machine.fingerprint, NO_THREADS, kernels=sources_digest())
        self._table += [_line(row) for row in rows]
        return rows

    def table_digest(self) -> str:
        """SHA-256 of the measurements decided from, the store's earlier ones included."""
        return hashlib.sha256("\n".join(sorted(self._table)).encode()).hexdigest()

    def baseline_bytes(self) -> int:
        """Resident bytes of a process that has all that ``znni-tune run`` loads, and this network, but no program yet.

        Where the GPU is used, its context and libraries are among them.
        """
        payload = {"network": network_source(self.network), "gpu": self.gpu_memory_bytes is not None}
        with Worker() as fresh:
            return fresh.call("baseline", payload, timeout_s=120.0)["resident_bytes"]

    def layer(self, layer: Layer, shape: Shape, option: Option, threads: int) -> Measured | None:
        """Measure one option of a layer, on a smaller shape where the whole takes long; None where it fails.

        The option's `seconds` are of one call.
        """
        choice = option.choice
        primitive = get(choice.primitive)
        whole, shape = shape, reduced(layer, shape, TARGET_S[primitive.device] / option.seconds, primitive.whole_patch)
        key = measurement_key(layer, shape, primitive, choice.config, threads, self.machine)
        if primitive.device == "gpu" and self._device_is_simulated():
            key = replace(key, device=SIMULATED)
        earlier = self.store.latest(key)
        if (earlier and earlier.failed) or json_text(key.columns()) in self._refused:
            return None
        row = self._open(key, primitive.memory(layer, shape, choice.config, threads))
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
        timeout_s = _START_S[primitive.device] + 20 * option.seconds * prod(shape) / prod(whole)
        try:
            found = self._worker.call("measure_layer", payload, timeout_s=timeout_s, on_sample=row.add_sample)
        except WorkerError as error:
            self._failed(str(error))
            if isinstance(error, TaskRaised) and error.kind in _PASSING:
                row.drop()
                self._refused.add(json_text(key.columns()))
            else:
                row.fail(str(error))
            return None
        timing = Timing.from_dict(found["timing"])
        row.finish(
            timing,
            measured_bytes=found["measured_bytes"],
            relative_l2=found["relative_l2"],
            device=device_figures(found),
        )
        measured = Measured(layer, shape, choice.primitive, choice.config, timing.median_s)
        self._table.append(_line(measured))
        return measured

    def _open(self, key: MeasurementKey, memory: Memory) -> OpenMeasurement:
        on_device = key.device != "cpu"
        return self.store.open_measurement(
            key,
            predicted_bytes=memory.host_resident_bytes + memory.host_workspace_bytes,
            predicted_device_bytes=memory.device_resident_bytes + memory.device_workspace_bytes if on_device else None,
            clock="device" if on_device else "wall",
        )

    def _device_is_simulated(self) -> bool:
        """Whether the worker's device is a test's, whose timings the store refuses."""
        if self._simulated is None:
            self._simulated = self._worker.call("device", {}, timeout_s=60.0)["simulated"]
        return self._simulated

    def plan(self, plan: Plan, timeout_s: float, outer: int | None = None) -> PlanRun | None:
        """Run a plan end to end, or `outer` rounds of its outermost loop, in a fresh process; None where that fails."""
        where = device_of(plan)
        row = self.store.open_plan_run(
            plan.digest,
            machine=self.machine.fingerprint,
            request=self.request,
            predicted_voxels_per_s=plan.throughput["predicted_voxels_per_s"],
            predicted_bytes=plan.memory["predicted_peak_bytes"],
            predicted_device_bytes=None if where == "cpu" else planned_device_bytes(plan),
            device=SIMULATED if where != "cpu" and self._device_is_simulated() else where,
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
        if where != "cpu":
            timeout_s += _START_S["gpu"]
        try:
            with Worker() as fresh:
                found = fresh.call("run_plan", payload, timeout_s=timeout_s, on_sample=row.add_sample)
        except WorkerError as error:
            self._failed(str(error))
            row.fail(str(error))
            return None
        run = PlanRun(tuple(found["seconds"]), found["peak_bytes"], found["share"], found["peak_device_bytes"])
        peaks = {"peak_bytes": run.peak_bytes, "peak_device_bytes": run.peak_device_bytes if where != "cpu" else None}
        for place, peak, limit in (
            ("", run.peak_bytes, self.limit_bytes),
            (" on the device", run.peak_device_bytes, self.gpu_memory_bytes or 0),
        ):
            if peak > limit:
                reason = f"its measured peak of {peak} bytes{place} is above the limit of {limit}"
                self._failed(reason)
                row.fail(reason, **peaks)
                return None
        row.finish(measured_voxels_per_s=_voxels(plan) / run.seconds, **peaks)
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


def gpu_ceilings(store: Store, machine: Machine, worker: Worker) -> DeviceCeilings:
    """What the GPU reaches at most: from the store, else measured now by the worker, and stored."""
    found = store.device_ceilings(machine.fingerprint)
    if found is None:
        found = DeviceCeilings(**worker.call("device_ceilings", {}, timeout_s=_START_S["gpu"]))
        store.save_device_ceilings(machine.fingerprint, found)
    return found


def measurement_key(
    layer: Layer, shape: Shape, primitive: Primitive, config: Config, threads: int, machine: Machine
) -> MeasurementKey:
    """The key under which a measurement of a primitive on this machine is stored."""
    if primitive.device == "gpu":
        return MeasurementKey(
            layer, shape, primitive.name, config, NO_THREADS, machine.fingerprint, sources_digest(), "gpu"
        )
    return MeasurementKey(layer, shape, primitive.name, config, threads, machine.fingerprint, machine.kernels)


def device_figures(found: Mapping) -> DeviceFigures | None:
    """What the result of measuring a layer says of the device; None where it was measured on the CPU."""
    if found.get("clock") != "device":
        return None
    return DeviceFigures(**{f.name: found[f.name] for f in fields(DeviceFigures)})


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
