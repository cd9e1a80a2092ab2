"""Rows of the store as Python sees them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from znni.layers import Layer, Shape, describe, layer_of
from znni.timing import summarise

if TYPE_CHECKING:
    from znni.primitives.base import Config


def json_text(data: object) -> str:
    """`data` as canonical JSON: the same text for the same data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


#: Device of what nothing is ever stored for.
SIMULATED = "simulated"
#: Threads of what is measured on the GPU.
NO_THREADS = 0


@dataclass(frozen=True)
class MeasurementKey:
    """What was measured: a primitive with a config on a layer and input shape, on a machine with these kernels.

    On the GPU, where the CPU's threads have no part in it, `threads` is `NO_THREADS`.
    """

    layer: Layer
    shape: Shape
    primitive: str
    config: Config
    threads: int
    machine: str
    kernels: str
    device: str = "cpu"

    def columns(self) -> dict[str, object]:
        """The key as the columns of ``measurements``, in canonical form."""
        return {
            "layer": json_text(describe(self.layer)),
            "shape": json_text(list(self.shape)),
            "primitive": self.primitive,
            "config": json_text(dict(self.config)),
            "threads": self.threads,
            "device": self.device,
            "machine": self.machine,
            "kernels": self.kernels,
        }


@dataclass(frozen=True)
class DeviceFigures:
    """What a measurement on the GPU says beside its samples, which are then seconds by the device's clock.

    Attributes
    ----------
    wall_s : float
        Median seconds of one call on the host's clock, until it is done.
    cold_s : float
        Seconds of preparing and the first call, kernels compiled and tables made.
    predicted_device_bytes, measured_device_bytes : int
        Of device memory beside input and output; other libraries predict none.
    """

    wall_s: float
    cold_s: float
    predicted_device_bytes: int | None
    measured_device_bytes: int


@dataclass(frozen=True)
class StoredMeasurement:
    """A row of ``measurements``. Median and interquartile range are of whatever samples there are; None without any.

    `clock` is whose seconds the samples are, "wall" or "device"; the rest is as `DeviceFigures` has it.
    """

    key: MeasurementKey
    samples: tuple[float, ...]
    median_s: float | None
    iqr_s: float | None
    single: bool
    early_stopped: bool
    finished: bool
    failed: str | None
    predicted_bytes: int | None
    measured_bytes: int | None
    relative_l2: float | None
    created: str
    clock: str
    wall_s: float | None
    cold_s: float | None
    predicted_device_bytes: int | None
    measured_device_bytes: int | None


@dataclass(frozen=True)
class StoredPlanRun:
    """A row of ``plan_runs``: seconds of each end-to-end run of a plan, and the peak of its process; on the device, too."""

    plan: str
    request: str | None
    machine: str
    predicted_voxels_per_s: float | None
    measured_voxels_per_s: float | None
    samples: tuple[float, ...]
    predicted_bytes: int | None
    peak_bytes: int | None
    failed: str | None
    created: str
    device: str
    predicted_device_bytes: int | None
    peak_device_bytes: int | None


@dataclass(frozen=True)
class StoredRequest:
    """What is known of a request to tune: the total spent on it, its trials, and the best plan (JSON data) so far."""

    spent_s: float
    trials: int
    plan: dict | None
    complete: bool
    updated: str


_AS_THEY_ARE = (
    "failed", "predicted_bytes", "measured_bytes", "relative_l2", "created", "clock", "wall_s", "cold_s",
    "predicted_device_bytes", "measured_device_bytes",
)  # fmt: skip


def measurement_of(row: sqlite3.Row) -> StoredMeasurement:
    """A row of ``measurements``."""
    layer, shape, config = (json.loads(row[name]) for name in ("layer", "shape", "config"))
    key = MeasurementKey(
        layer=layer_of(layer),
        shape=tuple(shape),
        config=config,
        **{name: row[name] for name in ("primitive", "threads", "machine", "kernels", "device")},
    )
    samples = tuple(json.loads(row["samples"]))
    median_s, iqr_s = row["median_s"], row["iqr_s"]
    if median_s is None and samples:  # the process that took them was killed
        summary = summarise(samples)
        median_s, iqr_s = summary.median_s, summary.iqr_s
    return StoredMeasurement(
        key=key,
        samples=samples,
        median_s=median_s,
        iqr_s=iqr_s,
        single=bool(row["single"]),
        early_stopped=bool(row["early_stopped"]),
        finished=bool(row["finished"]),
        **{name: row[name] for name in _AS_THEY_ARE},
    )


def plan_run_of(row: sqlite3.Row) -> StoredPlanRun:
    """A row of ``plan_runs``."""
    columns = dict(row)
    del columns["id"]
    return StoredPlanRun(**columns | {"samples": tuple(json.loads(row["samples"]))})


def request_of(row: sqlite3.Row) -> StoredRequest:
    """A row of ``requests``."""
    plan = None if row["plan"] is None else json.loads(row["plan"])
    return StoredRequest(row["spent_s"], row["trials"], plan, bool(row["complete"]), row["updated"])
