"""Every measurement, for ever: an SQLite file that several processes may read and write at once.

Each sample is committed as it is taken, so that a process that is killed loses at most the sample in flight; what it
leaves is read like any other row. The main table is ``measurements``, one row for each timing of a layer;
`znni.store_file.SCHEMA` lists the others. Nothing taken on a simulated device is ever accepted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from znni.layers import Layer, describe
from znni.store_file import StoreFile, default_path
from znni.store_rows import (
    SIMULATED,
    DeviceFigures,
    MeasurementKey,
    StoredMeasurement,
    StoredPlanRun,
    StoredRequest,
    json_text,
    measurement_of,
    plan_run_of,
    request_of,
)
from znni.timing import Timing

if TYPE_CHECKING:
    from znni.gpu.ceilings import DeviceCeilings
    from znni.predict import Measured


class OpenMeasurement:
    """A row of ``measurements`` that is being filled; every call commits."""

    def __init__(self, store: Store, row: int):
        self._store, self._row = store, row

    def add_sample(self, seconds: float) -> None:
        """Append one sample, in seconds per call."""
        self._store.append_sample("measurements", self._row, seconds)

    def finish(
        self,
        timing: Timing,
        *,
        measured_bytes: int | None = None,
        relative_l2: float | None = None,
        device: DeviceFigures | None = None,
    ) -> None:
        """Close the row with what the timing said; its samples must have been added as they came.

        `device` goes with samples by the device's clock.
        """
        columns = {
            "median_s": timing.median_s,
            "iqr_s": timing.iqr_s,
            "single": timing.single,
            "early_stopped": timing.early_stopped,
            "finished": 1,
            "measured_bytes": measured_bytes,
            "relative_l2": relative_l2,
        }
        self._store.update("measurements", self._row, columns | (asdict(device) if device else {}))

    def fail(self, reason: str, *, measured_bytes: int | None = None, relative_l2: float | None = None) -> None:
        """Close the row as failed, with the reason in words: it counts as no measurement, and says not to try again."""
        columns = {"failed": reason, "finished": 1, "measured_bytes": measured_bytes, "relative_l2": relative_l2}
        self._store.update("measurements", self._row, columns)

    def drop(self) -> None:
        """Remove the row: what went wrong says nothing of what was to be measured (a device's memory that others held)."""
        self._store.execute("DELETE FROM measurements WHERE id = ?", (self._row,))


class OpenPlanRun:
    """A row of ``plan_runs`` that is being filled; every call commits."""

    def __init__(self, store: Store, row: int):
        self._store, self._row = store, row

    def add_sample(self, seconds: float) -> None:
        """Append the seconds of one run."""
        self._store.append_sample("plan_runs", self._row, seconds)

    def finish(
        self, *, measured_voxels_per_s: float, peak_bytes: int | None, peak_device_bytes: int | None = None
    ) -> None:
        """Close the row with what the runs came to."""
        columns = {
            "measured_voxels_per_s": measured_voxels_per_s,
            "peak_bytes": peak_bytes,
            "peak_device_bytes": peak_device_bytes,
        }
        self._store.update("plan_runs", self._row, columns)

    def fail(self, reason: str, *, peak_bytes: int | None = None, peak_device_bytes: int | None = None) -> None:
        """Close the row as failed, with the reason in words."""
        columns = {"failed": reason, "peak_bytes": peak_bytes, "peak_device_bytes": peak_device_bytes}
        self._store.update("plan_runs", self._row, columns)


class Store(StoreFile):
    """What was measured, run, verified and asked for, in one file (`StoreFile` says which, and what can go wrong)."""

    # Measurements of layers

    def open_measurement(
        self,
        key: MeasurementKey,
        *,
        predicted_bytes: int | None = None,
        predicted_device_bytes: int | None = None,
        clock: str = "wall",
    ) -> OpenMeasurement:
        """A new row for samples, by the host's clock ("wall") or the "device"'s, to be added to as they are taken.

        Raises
        ------
        ValueError
            For a simulated device, on which results can be checked but nothing can be timed.
        """
        _refuse_simulated(key.device)
        columns = key.columns() | {
            "predicted_bytes": predicted_bytes,
            "predicted_device_bytes": predicted_device_bytes,
            "clock": clock,
            "created": _now(),
        }
        return OpenMeasurement(self, self.insert("measurements", columns))

    def measurements(
        self,
        *,
        machine: str | None = None,
        threads: int | None = None,
        layer: Layer | None = None,
        primitive: str | None = None,
    ) -> list[StoredMeasurement]:
        """The rows that match what is given, oldest first; failed and unfinished ones among them."""
        wanted = {"machine": machine, "threads": threads, "primitive": primitive}
        if layer is not None:
            wanted["layer"] = json_text(describe(layer))
        return [measurement_of(row) for row in self.select("measurements", wanted)]

    def count_measurements(self) -> int:
        """How many rows ``measurements`` has."""
        return self.execute("SELECT count(*) FROM measurements").fetchone()[0]

    def latest(self, key: MeasurementKey) -> StoredMeasurement | None:
        """The newest row of exactly this key that failed or has samples."""
        rows = [measurement_of(row) for row in self.select("measurements", key.columns())]
        return next((m for m in reversed(rows) if m.failed or m.samples), None)

    def measured(
        self, machine: str, threads: int, layer: Layer | None = None, kernels: str | None = None
    ) -> list[Measured]:
        """What predictions can start from: the newest median of each key that has samples and did not fail since.

        What the GPU was measured to take is under `znni.store_rows.NO_THREADS` threads.

        With `kernels`, a digest, only what those kernels were measured to take: others may be faster, and know other configs.

        Other libraries, kept with the device ``peer`` for comparison, are left out.
        """
        from znni.predict import Measured

        newest = {}
        for m in self.measurements(machine=machine, threads=threads, layer=layer):
            if m.key.device != "peer" and (m.failed or m.samples) and kernels in (None, m.key.kernels):
                columns = m.key.columns()
                newest[columns["layer"], columns["shape"], m.key.primitive, columns["config"], m.key.device] = m
        return [
            Measured(m.key.layer, m.key.shape, m.key.primitive, m.key.config, m.median_s)
            for m in newest.values()
            if not m.failed
        ]

    # Plans run end to end

    def open_plan_run(
        self,
        plan: str,
        *,
        machine: str,
        request: str | None = None,
        predicted_voxels_per_s: float | None = None,
        predicted_bytes: int | None = None,
        predicted_device_bytes: int | None = None,
        device: str = "cpu",
    ) -> OpenPlanRun:
        """A new row for runs of the plan of that digest on "cpu", "gpu" or both ("split"); `ValueError` for a simulated
        device."""
        _refuse_simulated(device)
        columns = {
            "plan": plan,
            "request": request,
            "machine": machine,
            "predicted_voxels_per_s": predicted_voxels_per_s,
            "predicted_bytes": predicted_bytes,
            "predicted_device_bytes": predicted_device_bytes,
            "device": device,
            "created": _now(),
        }
        return OpenPlanRun(self, self.insert("plan_runs", columns))

    def plan_runs(self, *, plan: str | None = None, request: str | None = None) -> list[StoredPlanRun]:
        """The rows that match what is given, oldest first."""
        return [plan_run_of(row) for row in self.select("plan_runs", {"plan": plan, "request": request})]

    def save_verification(self, plan: str, result: dict) -> None:
        """Keep how the plan of that digest compared with the reference."""
        self.execute("INSERT OR REPLACE INTO verifications VALUES (?, ?, ?)", (plan, json_text(result), _now()))

    def verification(self, plan: str) -> dict | None:
        """What `save_verification` kept."""
        row = self.execute("SELECT result FROM verifications WHERE plan = ?", (plan,)).fetchone()
        return row and json.loads(row["result"])

    # Requests to tune

    def save_request(
        self, digest: str, *, spent_s: float, trials: int, plan: dict | None = None, complete: bool | None = None
    ) -> None:
        """Keep the totals of a request; its plan and whether it is complete stay as they were where None is given."""
        self.execute(
            "INSERT INTO requests VALUES (:digest, :spent_s, :trials, :plan, COALESCE(:complete, 0), :now) "
            "ON CONFLICT (digest) DO UPDATE SET spent_s = :spent_s, trials = :trials, plan = COALESCE(:plan, plan), "
            "complete = COALESCE(:complete, complete), updated = :now",
            {
                "digest": digest,
                "spent_s": spent_s,
                "trials": trials,
                "plan": None if plan is None else json_text(plan),
                "complete": complete,
                "now": _now(),
            },
        )

    def request(self, digest: str) -> StoredRequest | None:
        """What `save_request` kept."""
        row = self.execute("SELECT * FROM requests WHERE digest = ?", (digest,)).fetchone()
        return row and request_of(row)

    # Ceilings

    def save_ceilings(self, machine: str, threads: int, flop_per_s: float, bytes_per_s: float) -> None:
        """Keep what a machine can do at most with so many threads."""
        self.execute(
            "INSERT OR REPLACE INTO ceilings VALUES (?, ?, ?, ?, ?)",
            (machine, threads, flop_per_s, bytes_per_s, _now()),
        )

    def ceilings(self, machine: str, threads: int) -> tuple[float, float] | None:
        """(FLOP/s, bytes/s) that `save_ceilings` kept."""
        row = self.execute(
            "SELECT flop_per_s, bytes_per_s FROM ceilings WHERE machine = ? AND threads = ?", (machine, threads)
        ).fetchone()
        return row and (row["flop_per_s"], row["bytes_per_s"])

    def save_device_ceilings(self, machine: str, ceilings: DeviceCeilings) -> None:
        """Keep what a machine's GPU can do at most."""
        self.execute(
            "INSERT OR REPLACE INTO device_ceilings VALUES (:machine, :flop_per_s, :bytes_per_s, :upload_bytes_per_s, "
            ":download_bytes_per_s, :now)",
            asdict(ceilings) | {"machine": machine, "now": _now()},
        )

    def device_ceilings(self, machine: str) -> DeviceCeilings | None:
        """What `save_device_ceilings` kept."""
        from znni.gpu.ceilings import DeviceCeilings

        row = self.execute("SELECT * FROM device_ceilings WHERE machine = ?", (machine,)).fetchone()
        return row and DeviceCeilings(**{f.name: row[f.name] for f in fields(DeviceCeilings)})


def measured_here(layer: Layer, threads: int) -> list[Measured]:
    """What the default store knows of `layer` on this machine; nothing where there is no store yet."""
    from znni.machine import this_machine

    if not default_path().exists():
        return []
    with Store() as store:
        machine = this_machine()
        return store.measured(machine.fingerprint, threads, layer, machine.kernels)


def _refuse_simulated(device: str) -> None:
    if device == SIMULATED:
        raise ValueError("a simulated device proves results, never speed: its timings are not stored")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
