"""What a contest measured, kept in the store: primitives like any measurement, peers as rows of device ``peer``."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tuner.console import finite
from tuner.contest import Contender
from tuner.measure import measurement_key
from tuner.peers import library_of
from znni._version import __version__
from znni.errors import ZnniError
from znni.layers import Conv, Shape, layer_of
from znni.machine import Machine
from znni.primitives import get
from znni.store import OpenMeasurement, Store
from znni.store_rows import SIMULATED, DeviceFigures, MeasurementKey
from znni.timing import Timing, median, summarise

#: Device of rows that no primitive of znni was timed for.
PEER = "peer"
#: The convolution whose rate by PyTorch, in FLOP/s, is the R of a score.
RATE_LAYER = Conv(80, (3, 3, 3))
RATE_SHAPE: Shape = (1, 80, 58, 58, 58)
RATE_FLOP = 2 * 80 * 80 * 27 * 56**3


def key_of(spec: dict, machine: Machine) -> MeasurementKey:
    """The key under which a contender's samples are stored."""
    layer, shape = layer_of(spec["layer"]), tuple(spec["shape"])
    if "peer" in spec:
        library, _, setting = spec["peer"].partition("/")
        built = f"{library} {importlib.metadata.version(library.split('.')[0])}"
        config = {"variant": setting}
        return MeasurementKey(layer, shape, library, config, spec["threads"], machine.fingerprint, built, PEER)
    return measurement_key(layer, shape, get(spec["primitive"]), spec["config"], spec["threads"], machine)


class Recorder:
    """Rows of the store that fill as contenders take their turns."""

    def __init__(self, store: Store, machine: Machine):
        self._store, self._machine = store, machine
        self._open: dict[int, OpenMeasurement] = {}

    def __call__(self, contender: Contender, seconds: Sequence[float]) -> None:
        """Keep the samples of one turn."""
        row = self._open.get(id(contender))
        if row is None:
            key = key_of(contender.spec, self._machine)
            facts = contender.facts
            if facts.get("simulated"):
                key = replace(key, device=SIMULATED)
            row = self._store.open_measurement(
                key,
                predicted_bytes=facts.get("predicted_bytes"),
                predicted_device_bytes=facts.get("predicted_device_bytes"),
                clock="device" if "cold_s" in facts else "wall",
            )
            self._open[id(contender)] = row
        for sample in seconds:
            row.add_sample(sample)

    def finish(self, contenders: Sequence[Contender]) -> None:
        """Close the rows."""
        for contender in contenders:
            row = self._open.get(id(contender))
            if row is None:
                continue
            measured, error = contender.facts.get("measured_bytes"), contender.relative_l2
            if contender.failure:
                row.fail(contender.failure, measured_bytes=measured, relative_l2=error)
            else:
                figures = None
                if contender.walls:
                    facts = contender.facts
                    figures = DeviceFigures(
                        median(contender.walls),
                        facts["cold_s"],
                        facts.get("predicted_device_bytes"),
                        facts["measured_device_bytes"],
                    )
                row.finish(timing_of(contender.seconds), measured_bytes=measured, relative_l2=error, device=figures)


def describe_run(machine: Machine, threads: int, peers: Sequence[str], typed: Sequence[str]) -> dict:
    """What a file of results says beside the results: the machine, versions, the command, the time."""
    libraries = dict.fromkeys(library_of(peer).split(".")[0] for peer in peers)
    return {
        "machine": machine.describe(),
        "threads": threads,
        "versions": {"znni": __version__} | {name: importlib.metadata.version(name) for name in libraries},
        "command": shlex.join(["znni-tune", *typed]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def check_json_target(path: str) -> None:
    """`ZnniError` where `save_json` could not write to `path`, before anything is measured for it."""
    scratch = _scratch(path)
    try:
        scratch.touch()
        scratch.unlink()
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise ZnniError(f"cannot write {path}: {error.strerror}; choose another file with -o") from error


def _scratch(path: str) -> Path:
    return Path(path).parent / f".{Path(path).name}.{os.getpid()}"


def save_json(path: str, data: dict) -> None:
    """Write `data`, whole or not at all; `ZnniError` where that cannot be."""
    scratch = _scratch(path)
    try:
        scratch.write_text(json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ZnniError(f"cannot write {path}: {error.strerror}; choose another file with -o") from error


def timing_of(samples: Sequence[float]) -> Timing:
    """The samples of interleaved turns as one timing."""
    summary = summarise(samples)
    return Timing(tuple(samples), (), 1, summary.median_s, summary.iqr_s, summary.interval_s, single=len(samples) == 1)


def known_rate(store: Store, machine: Machine, threads: int) -> float | None:
    """R in FLOP/s by the newest rows of PyTorch here, the better of its memory formats; None where it was not timed."""
    rows = store.measurements(machine=machine.fingerprint, threads=threads, layer=RATE_LAYER, primitive="torch")
    medians = {
        str(dict(row.key.config)): row.median_s
        for row in rows
        if row.key.shape == RATE_SHAPE and row.median_s and not row.failed
    }
    return RATE_FLOP / min(medians.values()) if medians else None
